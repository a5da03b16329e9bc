"""Natural batching: what has queued up while the last message was in flight leaves in the next one.

Nothing waits for company: with nothing in flight an item leaves at once (after the callbacks of this turn of the event
loop, so that what one turn produces travels together).
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Awaitable, Callable, Iterator
from typing import Final, Generic, TypeVar

Item = TypeVar("Item")

BATCH_ITEMS_MAX: Final = 1024
"""Keeps the turn of the event loop that unpacks a message to some milliseconds."""
BATCH_BYTES_MAX: Final = 1 << 20
"""Beyond a megabyte a longer message saves nothing, and what is behind it waits longer."""


class Outbox(Generic[Item]):
    """A queue for one sender; belongs to one event loop."""

    __slots__ = ("_idle", "_items", "_items_max", "_loop", "_waiting", "size")

    def __init__(self, loop: asyncio.AbstractEventLoop, items_max: int = BATCH_ITEMS_MAX) -> None:
        self._loop = loop
        self._items_max = items_max
        self._items: collections.deque[tuple[Item, int]] = collections.deque()
        self._waiting: asyncio.Future[None] | None = None
        self._idle = asyncio.Event()
        self.size = 0
        """Bytes queued."""

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        return (item for item, _ in self._items)

    def put(self, item: Item, size: int) -> None:
        """Queue an item of ``size`` bytes."""
        self._items.append((item, size))
        self.size += size
        if self._waiting is not None:
            self._wake()

    def clear(self) -> list[Item]:
        """Take everything out."""
        items = [item for item, _ in self._items]
        self._items.clear()
        self.size = 0
        return items

    def drop_oldest(self) -> Item:
        """Take the item out that has waited longest."""
        item, size = self._items.popleft()
        self.size -= size
        return item

    def nudge(self) -> None:
        """Have the sender send, even an empty message."""
        self._wake()

    async def take(self) -> list[Item]:
        """Wait for items and take a batch; empty after :meth:`nudge` without any."""
        if not self._items:
            self._waiting = self._loop.create_future()
            self._idle.set()
            try:
                await self._waiting
            finally:
                self._waiting = None
        queue = self._items
        batch: list[Item] = []
        size = 0
        while queue and len(batch) < self._items_max and size < BATCH_BYTES_MAX:
            item, item_size = queue.popleft()
            batch.append(item)
            size += item_size
        self.size -= size
        return batch

    async def drain_into(
        self, write: Callable[[bytes], Awaitable[object]], frame: Callable[[list[Item]], bytes]
    ) -> None:
        """Send batches, one at a time, until cancelled or ``write`` fails."""
        while True:
            await write(frame(await self.take()))

    async def idle(self) -> None:
        """Wait until everything queued has been written."""
        await self._idle.wait()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            self._idle.clear()
            waiting.set_result(None)
