"""What a node does by itself now and then: each kind of work at most once at a time, and none of it urgent."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from objmeta.errors import ObjmetaError

_JITTER: Final = 0.1
"""Intervals vary by this part of them, so that nodes which were started together do not work together for ever."""

_log = logging.getLogger(__name__)


class Background:
    """Work at intervals; belongs to one event loop, and :meth:`close` must be awaited."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._tasks: list[asyncio.Task[None]] = []

    def every(self, interval_s: float, what: str, work: Callable[[], Awaitable[object]]) -> None:
        """Do ``work`` an interval from now, and again an interval after it ended; what fails is logged."""
        self._tasks.append(asyncio.create_task(self._repeat(interval_s, what, work), name=f"objmeta {what}"))

    def forever(self, what: str, work: Coroutine[Any, Any, None]) -> None:
        """Run what minds its own times and failures, until it is closed."""
        self._tasks.append(asyncio.create_task(work, name=f"objmeta {what}"))

    async def close(self) -> None:
        """Stop, also in the middle of something."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _repeat(self, interval_s: float, what: str, work: Callable[[], Awaitable[object]]) -> None:
        while True:
            await asyncio.sleep(interval_s * self._rng.uniform(1 - _JITTER, 1 + _JITTER))
            try:
                await work()
            except ObjmetaError as problem:
                _log.warning("%s did not end well and is tried again in %g s: %s", what, interval_s, problem)
            except Exception:
                _log.exception("%s failed and is tried again in %g s", what, interval_s)
