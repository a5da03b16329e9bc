"""Work in forked children."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable


def in_fork(work: Callable[[], str], timeout_s: float = 60) -> str:
    """Run ``work`` in a forked child, and return what it returned; its failure is text too."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = work()
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(sender, answer.encode())
        os._exit(0)
    os.close(sender)
    with os.fdopen(receiver, "rb") as pipe:
        answered = select.select([pipe], [], [], timeout_s)[0]
        if not answered:
            os.kill(child, signal.SIGKILL)
        answer = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    if answered and status:
        return f"the child ended with {status} after {answer!r}"
    return answer if answered else "the child hangs"
