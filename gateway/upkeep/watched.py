"""A node's chunks on its disk, and what that disk said last: full, read-only, failing.

A disk that cannot be written to says so to whoever puts a chunk, who turns to another node; the place remembers it
until something can be written again, and here that is tried where nobody else does.  That something could not be read
is told for ``READING_S``.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from gateway.blobs.local import LocalBlobs
from objmeta import Chunk, errors

READING_S: Final = 3600.0
_PROBE_BYTES: Final = 32


class WatchedBlobs(LocalBlobs):
    """The same place, with :meth:`trouble`.

    While ``leaves`` says so nothing is acknowledged: see ``repairing``.
    """

    def __init__(self, path: Path, leaves: Callable[[], bool] = lambda: False) -> None:
        super().__init__(path)
        self._leaves = leaves
        self._unread = ("", 0.0)

    async def trouble(self) -> str:
        """What is wrong with the disk, in words; empty if nothing is known to be."""
        (status,) = await self.status()
        text, at = self._unread
        fresh = text and asyncio.get_running_loop().time() < at + READING_S
        return "; ".join(filter(None, (status.detail, text if fresh else "")))

    async def probe(self) -> None:
        """If the disk is in trouble, see whether it still is: store a few bytes, which the collector takes away."""
        (status,) = await self.status()
        if status.detail:
            with suppress(errors.ObjmetaError):
                await self.put(os.urandom(_PROBE_BYTES), generation=0)

    async def put(
        self, data: bytes | memoryview, *, generation: int, replicas: int = 0, chunk: Chunk | None = None
    ) -> Chunk:
        """As LocalBlobs.put. Raises Unavailable on a node that leaves."""
        chunk = await super().put(data, generation=generation, replicas=replicas, chunk=chunk)
        self._check()
        return chunk

    async def receive(self, chunk: Chunk, parts: Sequence[bytes | memoryview], *, generation: int) -> None:
        """As LocalBlobs.receive. Raises Unavailable on a node that leaves."""
        await super().receive(chunk, parts, generation=generation)
        self._check()

    async def touch(self, chunks: Sequence[Chunk], *, generation: int, replicas: int = 0) -> list[bool]:
        """As LocalBlobs.touch; a node that leaves says of nothing that it is there."""
        found = await super().touch(chunks, generation=generation, replicas=replicas)
        return [False] * len(chunks) if self._leaves() else found

    def _check(self) -> None:
        # Afterwards, not before: what was acknowledged is then on the disk before the pass begins that hands all over.
        if self._leaves():
            raise errors.Unavailable("this node leaves the cluster and keeps nothing more")

    async def get(self, chunk: Chunk, start: int = 0, stop: int | None = None) -> bytes:
        """As LocalBlobs.get; what the disk could not read is remembered."""
        try:
            return await super().get(chunk, start, stop)
        except errors.IntegrityError:
            raise
        except errors.StoreError as problem:
            self._unread = (str(problem), asyncio.get_running_loop().time())
            raise
