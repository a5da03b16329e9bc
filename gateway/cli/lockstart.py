"""Becomes the command of ``gateway lock``, and is killed when gateway dies. Run as a file: PARENT COMMAND ARGUMENT...

A program of its own, since a process with gRPC's threads in it cannot run Python between fork and exec: gRPC aborts
some of the children.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
NOT_RUNNABLE = 126
NOT_FOUND = 127


def main(parent: int, command: list[str]) -> int:
    """Never returns if the command can be run."""
    for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):  # as Python found them; exec keeps what is ignored
        signal.signal(number, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        return NOT_RUNNABLE
    try:
        os.execvp(command[0], command)
    except FileNotFoundError:
        sys.stderr.write(f"gateway: {command[0]}: command not found\n")
        return NOT_FOUND
    except OSError as failure:
        sys.stderr.write(f"gateway: {command[0]}: {failure.strerror}\n")
        return NOT_RUNNABLE


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
