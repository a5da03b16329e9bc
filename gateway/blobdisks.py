"""Chunks on several disks of this machine: every disk is to have every chunk.

Rules.  A put returns when a majority of the store's disks has it durable; those that cannot be used count, but nothing
is ever written to their directories, which may be the empty places where they are to be mounted.  A get takes the first
good copy and gives it to the disks before it that had none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from gateway.blobs import BlobStatus, ChunkMissing, LocalBlobs
from gateway.files import in_thread
from objmeta import Chunk, errors

BLOBS: Final = "blobs"
_NAME_LENGTH: Final = 64

Usable = Callable[[], Awaitable[Sequence[tuple[Path, bool]]]]
"""Asks for the store's disks, and which of them can be used."""


class DiskBlobs:
    """Chunks in the directory ``blobs`` of each disk that ``disks`` names, which is asked again after failures."""

    def __init__(self, disks: Usable) -> None:
        self._disks = disks
        self._places: dict[Path, LocalBlobs] = {}
        self._up: list[LocalBlobs] = []
        self._count = 0
        self._asking = asyncio.Lock()

    async def put(self, data: bytes) -> Chunk:
        """Store a chunk; durable on a majority of the disks on return. Raises StoreFull, StoreError, NoQuorum."""
        places = await self._usable()
        done = await asyncio.gather(*(place.put(data) for place in places), return_exceptions=True)
        chunks = [each for each in done if isinstance(each, Chunk)]
        failures = [each for each in done if isinstance(each, BaseException)]
        for failure in failures:
            if not isinstance(failure, errors.StoreError):
                raise failure
        if failures:
            self._count = 0  # look again
        if len(chunks) <= max(self._count, len(places)) // 2:
            raise failures[0] if failures else errors.NoQuorum("no majority of the disks can be used; try again")
        return chunks[0]

    async def get(self, chunk: Chunk, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes ``start`` to ``stop`` of a chunk, all of which was verified.

        Raises IntegrityError (damaged everywhere), ChunkMissing, StoreError.
        """
        lacking: list[LocalBlobs] = []
        failure: errors.StoreError = ChunkMissing(f"chunk {chunk.digest.hex()} is missing on every disk")
        for place in await self._usable():
            try:
                data = await place.get(chunk)
            except errors.StoreError as problem:
                if isinstance(problem, errors.IntegrityError):
                    lacking.append(place)
                if not isinstance(problem, ChunkMissing):
                    failure = problem
                continue
            await asyncio.gather(*(other.put(data) for other in lacking), return_exceptions=True)
            return data if start == 0 and stop is None else data[start:stop]
        raise failure

    async def fill(self, path: Path) -> int:
        """Give the disk at ``path`` every chunk that the others have; how many it lacked. What is damaged is left out.

        Raises StoreFull, StoreError.
        """
        self._count = 0
        places = await self._usable()
        new = self._places[path]
        brought = 0
        for place in places:
            for digest, length in await in_thread(_listed, place.path) if place is not new else ():
                if await in_thread((new.path / digest[:2] / digest).exists):
                    continue
                with suppress(errors.IntegrityError):
                    await new.put(await place.get(Chunk(bytes.fromhex(digest), length)))
                    brought += 1
        return brought

    async def status(self) -> tuple[BlobStatus, ...]:
        """Each disk that can be used."""
        return tuple([status for place in await self._usable() for status in await place.status()])

    async def close(self) -> None:
        """Wait for what is under way, and end the threads."""
        await asyncio.gather(*(place.close() for place in self._places.values()))

    async def _usable(self) -> list[LocalBlobs]:
        async with self._asking:
            if not self._count:
                disks = await self._disks()
                for path, usable in disks:
                    if usable and path not in self._places:
                        self._places[path] = LocalBlobs(path / BLOBS)
                self._up = [self._places[path] for path, usable in disks if usable]
                self._count = len(disks)
            return self._up


def _listed(path: Path) -> list[tuple[str, int]]:
    """Digests and lengths of the chunks in a place."""
    return [(file.name, file.stat().st_size) for file in sorted(path.glob("??/*")) if len(file.name) == _NAME_LENGTH]
