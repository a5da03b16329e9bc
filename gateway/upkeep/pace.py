"""Bounds for work that nobody waits for: on bytes per second, and on its part of a processor."""

from __future__ import annotations

import asyncio
from typing import Final

_BURST_S: Final = 0.1
"""What was not used is saved up for this long at most: more would let a pause be followed by a stampede."""


class Pace:
    """At most ``bytes_per_s`` on average; ``math.inf`` is no bound. Belongs to one event loop."""

    def __init__(self, bytes_per_s: float) -> None:
        assert bytes_per_s > 0, "work that may not read a byte never ends"
        self._bytes_per_s = bytes_per_s
        self._free_at = 0.0

    async def take(self, count: int) -> None:
        """Account for ``count`` bytes, and wait until they are within the bound."""
        now = asyncio.get_running_loop().time()
        self._free_at = max(self._free_at, now - _BURST_S) + count / self._bytes_per_s
        await asyncio.sleep(max(0.0, self._free_at - now))


class Rest:
    """Pauses of ``multiple`` times what the work between them took."""

    def __init__(self, multiple: float) -> None:
        self._multiple = multiple
        self._since = asyncio.get_running_loop().time()

    async def pause(self) -> None:
        """It was done; what follows is work again."""
        await asyncio.sleep(self._multiple * (asyncio.get_running_loop().time() - self._since))
        self._since = asyncio.get_running_loop().time()
