"""Chunks on several disks of this machine: every disk is to have every chunk.

Rules.  A put returns when a majority of the store's disks has it durable; those that cannot be used count, but nothing
is ever written to their directories, which may be the empty places where they are to be mounted.  A get takes the first
good copy and gives it to the disks before it that had none.  Each disk is a place of its own (:meth:`DiskBlobs.places`)
for the collector and for scrub.  Copies that are made here state the newest generation (docs/collection.md, M1).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from gateway.blobs.local import LocalBlobs
from gateway.blobs.places import BlobStatus, ChunkMissing, digest_of
from objmeta import Chunk, errors

BLOBS: Final = "blobs"
_OPEN_TRIES: Final = 50
_OPEN_PAUSE_S: Final = 0.25
"""A disk that could not be opened is tried again after five seconds, so all tries take more than that."""

_T = TypeVar("_T")

Usable = Callable[[], Awaitable[Sequence[tuple[Path, bool]]]]
"""Asks for the store's disks, and which of them can be used."""


class DiskBlobs:
    """Chunks in the directory ``blobs`` of each disk that ``disks`` names, which is asked again after failures.

    ``generation`` asks for the newest.
    """

    def __init__(self, disks: Usable, generation: Callable[[], Awaitable[int]]) -> None:
        self._disks = disks
        self._generation = generation
        self._places: dict[Path, LocalBlobs] = {}
        self._up: list[LocalBlobs] = []
        self._count = 0
        self._stale = True
        self._asking = asyncio.Lock()

    async def put(
        self, data: bytes | memoryview, *, generation: int, replicas: int = 0, chunk: Chunk | None = None
    ) -> Chunk:
        """Store a chunk; durable on a majority of the disks on return, whatever ``replicas`` says.

        Raises StaleGeneration, StoreFull, StoreError, NoQuorum.
        """
        chunk = chunk or Chunk(await digest_of(data), len(data))
        done, _ = await self._everywhere(lambda place: place.put(data, generation=generation, chunk=chunk))
        return done[0]

    async def touch(self, chunks: Sequence[Chunk], *, generation: int, replicas: int = 0) -> list[bool]:
        """Whether each chunk is there, and now touched, on a majority of the disks. Raises as :meth:`put`."""
        done, count = await self._everywhere(lambda place: place.touch(chunks, generation=generation))
        return [2 * sum(answers) > count for answers in zip(*done, strict=True)]

    async def get(self, chunk: Chunk, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes ``start`` to ``stop`` of a chunk, all of which was verified.

        Raises IntegrityError (damaged everywhere), ChunkMissing, StoreError.
        """
        lacking: list[LocalBlobs] = []
        failure: errors.StoreError = ChunkMissing(f"chunk {chunk.digest.hex()} is missing on every disk")
        for place in await self.places():
            try:
                data = await place.get(chunk)
            except errors.StoreError as problem:
                if isinstance(problem, errors.IntegrityError):
                    lacking.append(place)
                if not isinstance(problem, ChunkMissing):
                    failure = problem
                continue
            if lacking:
                await self._heal(chunk, data, lacking)
            return data if start == 0 and stop is None else data[start:stop]
        raise failure

    async def _heal(self, chunk: Chunk, data: bytes, lacking: Sequence[LocalBlobs]) -> None:
        """Give a good copy to disks that had none, as far as that can be done now."""
        with suppress(errors.ObjmetaError):
            generation = await self._generation()
            puts = (place.put(data, generation=generation, chunk=chunk) for place in lacking)
            await asyncio.gather(*puts, return_exceptions=True)

    async def fill(self, path: Path) -> int:
        """Give the disk at ``path`` every chunk that the others have; how many it lacked. What is damaged is left out.

        Raises StoreFull, StoreError, NoQuorum if the generation cannot be asked for.
        """
        new = await self._opened(path)
        places = await self.places()
        brought = 0
        for place in places:
            after = b""
            while page := await place.held(after) if place is not new else []:
                after = page[-1].digest
                there = await new.has([each.chunk for each in page])
                for each in (each for each, is_there in zip(page, there, strict=True) if not is_there):
                    with suppress(errors.IntegrityError):
                        data = await place.get(each.chunk)
                        await new.put(data, generation=await self._generation(), chunk=each.chunk)
                        brought += 1
        return brought

    async def _opened(self, path: Path) -> LocalBlobs:
        """The disk at ``path``, which may have joined just now. Raises StoreError if it is not opened in time."""
        for _ in range(_OPEN_TRIES):
            self._stale = True
            places = await self.places()
            new = self._places.get(path)
            if new is not None and new in places:
                return new
            await asyncio.sleep(_OPEN_PAUSE_S)
        raise errors.StoreError(f"{path} has joined and could not be opened: give the same command once more")

    async def status(self) -> tuple[BlobStatus, ...]:
        """Each disk that can be used."""
        return tuple([status for place in await self.places() for status in await place.status()])

    async def close(self) -> None:
        """Wait for what is under way, and end the threads."""
        await asyncio.gather(*(place.close() for place in self._places.values()))

    async def places(self) -> list[LocalBlobs]:
        """The disks that can be used."""
        return (await self._known())[0]

    async def _known(self) -> tuple[list[LocalBlobs], int]:
        """The disks that can be used, and how many there are in all."""
        async with self._asking:
            if self._stale:
                disks = await self._disks()
                for path, usable in disks:
                    if usable and path not in self._places:
                        self._places[path] = LocalBlobs(path / BLOBS)
                self._up = [self._places[path] for path, usable in disks if usable]
                self._count, self._stale = len(disks), False
            return self._up, self._count

    async def _everywhere(self, ask: Callable[[LocalBlobs], Awaitable[_T]]) -> tuple[list[_T], int]:
        """Have something done on every disk: the answers of a majority or more, and how many disks there are."""
        places, count = await self._known()
        done = await asyncio.gather(*map(ask, places), return_exceptions=True)
        failures = [each for each in done if isinstance(each, BaseException)]
        for failure in failures:
            if not isinstance(failure, errors.StoreError):
                raise failure
        if failures:
            self._stale = True
        answers = [each for each in done if not isinstance(each, BaseException)]
        if 2 * len(answers) <= count:
            raise failures[0] if failures else errors.NoQuorum("no majority of the disks can be used; try again")
        return answers, count
