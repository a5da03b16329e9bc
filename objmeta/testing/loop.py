"""An event loop with virtual time: nothing sleeps, nothing waits on a socket, the same program gives the same run.

Time stands still while anything is ready to run and then jumps to the next timer.  When neither is left although the
main future is open, every task waits for something that can never come: that is a deadlock, and an error.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

CLOCK_RESOLUTION_S = 1e-9
"""Timers closer together than this run in one go; also absorbs the rounding of sums of floats."""


class Deadlock(Exception):
    """Nothing is scheduled, and the main future is not done."""


class _VirtualSelector:
    """Where a real loop would wait for input, this one turns the clock forward."""

    def __init__(self) -> None:
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Deadlock("every task waits, and nothing is scheduled")
        if timeout > 0:
            self.now += timeout
        return []

    def close(self) -> None:
        """Nothing is held."""


class SimLoop(asyncio.BaseEventLoop):
    """An event loop for :func:`run`; ``failure`` is the first exception that escaped from a callback."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = _VirtualSelector()
        self._clock_resolution = CLOCK_RESOLUTION_S
        self.failure: BaseException | None = None
        self.set_debug(False)
        self.set_exception_handler(self._on_exception)

    def time(self) -> float:
        """Seconds since the loop was made."""
        return self._selector.now

    def fail(self, failure: BaseException) -> None:
        """Remember the first failure and stop."""
        if self.failure is None:
            self.failure = failure
        self.stop()

    def _on_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        failure = context.get("exception")
        if isinstance(failure, BaseException):
            self.fail(failure)
        else:
            self.fail(RuntimeError(context.get("message", "the event loop reported an error")))

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Threads would make a run differ from the next."""
        raise RuntimeError("no threads in a simulation")

    # What BaseEventLoop leaves to the loops that do real input and output.

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in virtual time.

    Raises what it raises, the first exception that escaped from a callback, or :class:`Deadlock`.
    """
    loop = SimLoop()
    try:
        task = loop.create_task(main)
        try:
            return loop.run_until_complete(task)
        except BaseException as error:
            raise (loop.failure or error) from None
        finally:
            _drain(loop)
            if task.done() and not task.cancelled():
                task.exception()
    finally:
        loop.set_exception_handler(lambda _loop, _context: None)
        loop.close()


def _drain(loop: SimLoop) -> None:
    """Cancel what is left over, so that no task is destroyed while it waits."""
    tasks = asyncio.all_tasks(loop)
    if not tasks:
        return
    loop.set_exception_handler(lambda _loop, _context: None)
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
