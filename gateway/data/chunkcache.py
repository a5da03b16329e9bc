"""Chunks that were just read, for readers that go to and fro in a file."""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from typing import Final

from gateway.blobs.places import BlobStore
from objmeta import Chunk

CACHED_CHUNKS_MAX: Final = 8
"""Ranged reads of one file (a Parquet footer, then columns) mostly meet in few chunks."""


class ChunkCache:
    """The last few chunks that ranged reads touched; readers that meet in one share its fetch."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._fetches: OrderedDict[Chunk, asyncio.Task[bytes]] = OrderedDict()
        self._owner: object = None

    async def get(self, chunk: Chunk, start: int, stop: int) -> bytes:
        """Bytes ``start`` to ``stop`` of a chunk. Raises as :meth:`gateway.blobs.places.BlobStore.get` does."""
        owner = (os.getpid(), asyncio.get_running_loop())
        if self._owner != owner:
            self._owner = owner
            self._fetches.clear()
        fetch = self._fetches.get(chunk)
        if fetch is None:
            fetch = self._fetches[chunk] = asyncio.create_task(self._blobs.get(chunk))
            fetch.add_done_callback(lambda done: self._forget_failure(chunk, done))
            while len(self._fetches) > CACHED_CHUNKS_MAX:
                self._fetches.popitem(last=False)
        self._fetches.move_to_end(chunk)
        data = await asyncio.shield(fetch)
        return data[start:stop]

    def clear(self) -> None:
        """Forget all, and stop what is under way."""
        if self._owner == (os.getpid(), asyncio.get_running_loop()):
            for fetch in self._fetches.values():
                fetch.cancel()
        self._fetches.clear()

    def _forget_failure(self, chunk: Chunk, fetch: asyncio.Task[bytes]) -> None:
        if (fetch.cancelled() or fetch.exception() is not None) and self._fetches.get(chunk) is fetch:
            del self._fetches[chunk]
