"""Processes whose clocks differ, and that can be paused anywhere: between any two steps of any of their tasks."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")

_RATE_MIN, _RATE_MAX = 0.95, 1.05


class Process:
    """A client's process: its clock, and whether it runs. All its tasks stand still while it is paused."""

    def __init__(self, number: int, rng: random.Random, clock_stands: bool) -> None:
        self.number = number
        self.rng = rng
        self._rate = rng.choice((_RATE_MIN, _RATE_MAX, rng.uniform(_RATE_MIN, _RATE_MAX)))
        self._offset = rng.uniform(0, 1e6)
        self._clock_stands = clock_stands
        self._paused_at: float | None = None
        self._sleepers: list[asyncio.Future[None]] = []
        self._loop = asyncio.get_running_loop()

    def clock(self) -> float:
        """The time this process believes it is."""
        now = self._loop.time()
        if self._clock_stands and self._paused_at is not None:
            now = self._paused_at
        return self._offset + self._rate * now

    def jump(self, seconds: float) -> None:
        """The clock goes forward although no time has passed."""
        self._offset += seconds

    @property
    def is_paused(self) -> bool:
        """Whether it stands still."""
        return self._paused_at is not None

    def pause(self, seconds: float) -> None:
        """Stand still for a while."""
        if self._paused_at is None:
            self._paused_at = self._loop.time()
            self._loop.call_later(seconds, self.wake)

    def wake(self) -> None:
        """Go on."""
        if self._paused_at is None:
            return
        if self._clock_stands:
            self._offset -= self._rate * (self._loop.time() - self._paused_at)
        self._paused_at = None
        sleepers, self._sleepers = self._sleepers, []
        for sleeper in sleepers:
            if not sleeper.done():
                sleeper.set_result(None)

    def nap(self) -> asyncio.Future[None]:
        """Done when the process goes on."""
        sleeper = self._loop.create_future()
        self._sleepers.append(sleeper)
        return sleeper


PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)
"""Whose tasks are being made; None for what is never paused."""


def _stepping(work: Coroutine[Any, Any, T], process: Process) -> Generator[Any, Any, T]:
    """Drive a coroutine, each step of it only while the process runs; a cancellation waits as well."""
    error: BaseException | None = None
    while True:
        while process.is_paused:
            try:
                yield from process.nap()
            except asyncio.CancelledError as cancelled:
                error = cancelled
        try:
            waiting = work.send(None) if error is None else work.throw(error)
        except StopIteration as done:
            result: T = done.value
            return result
        error = None
        try:
            yield waiting
        except GeneratorExit:
            work.close()
            raise
        except BaseException as thrown:
            error = thrown


class _Pausable(Coroutine[Any, Any, T]):
    """A coroutine that makes its steps only while its process runs."""

    def __init__(self, work: Coroutine[Any, Any, T], process: Process) -> None:
        self._work = work
        self._steps = _stepping(work, process)
        self._begun = False

    def send(self, value: Any) -> Any:
        self._begun = True
        return self._steps.send(value)

    def throw(self, *error: Any) -> Any:
        return self._steps.throw(*error) if self._begun else self._work.throw(*error)

    def close(self) -> None:
        self._steps.close()
        self._work.close()

    def __await__(self) -> Generator[Any, Any, T]:
        return self._steps


def task_of_a_process(
    loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T] | Generator[Any, None, T], **options: Any
) -> asyncio.Task[T]:
    """The task factory: what runs in a context with a process runs only while that does."""
    process = PROCESS.get()
    if process is not None and isinstance(work, Coroutine):
        work = _Pausable(work, process)
    return asyncio.Task(work, loop=loop, **options)
