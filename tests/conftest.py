"""For all tests: what a shell does to jobs in the background must not reach the processes that tests start."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Ctrl-C is ignored by a job in the background, and by whatever it starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
