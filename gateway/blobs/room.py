"""Room for a bounded amount of something, such as bytes in memory."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Room:
    """A number of units of which each holder has some; who waits is served in order."""

    def __init__(self, units: int) -> None:
        self._free = units
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def share(self, units: int) -> AsyncIterator[None]:
        """Hold units, waiting for them first."""
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((units, granted))
        self._grant()
        try:
            await granted
            yield
        finally:
            if granted.done() and not granted.cancelled():
                self._free += units
            self._grant()

    def _grant(self) -> None:
        while self._waiting:
            units, granted = self._waiting[0]
            if not granted.cancelled():
                if units > self._free:
                    return
                self._free -= units
                granted.set_result(None)
            self._waiting.popleft()
