"""Scrub and repair of a store in a directory or on several disks, by whoever asks, as fast as the disks go.

``generation`` asks for the newest, which every copy that is made states (docs/collection.md, M1).
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence

from gateway.blobs.local import LocalBlobs
from gateway.blobs.places import ChunkMissing
from gateway.upkeep.pace import Pace
from gateway.upkeep.runs import Progress
from gateway.upkeep.scrubbing import Heal, Scrubber
from objmeta import Chunk, errors

_PAGE = 1000

Generation = Callable[[], Awaitable[int]]


async def scrub(place: LocalBlobs, others: Sequence[LocalBlobs], generation: Generation, progress: Progress) -> None:
    """Read everything at a place once; what is damaged is healed from the others. Raises StoreError."""
    heal = _healer(place, others, generation) if others else None
    await Scrubber(place, Pace(math.inf), heal).run(progress)


async def repair(place: LocalBlobs, others: Sequence[LocalBlobs], generation: Generation, progress: Progress) -> None:
    """Give a place what others have and it lacks; damaged copies count as lacking. Raises StoreFull, StoreError."""
    heal = _healer(place, others, generation)
    for other in others:
        after = b""
        while page := await other.held(after, _PAGE):
            after = page[-1].digest
            chunks = [held.chunk for held in page if not held.damaged]
            progress.chunks += len(chunks)
            lacking = [chunk for chunk, there in zip(chunks, await place.has(chunks), strict=True) if not there]
            for chunk in lacking:
                try:
                    await heal(chunk)
                    progress.fixed += 1
                    progress.bytes += chunk.length
                except errors.IntegrityError:
                    progress.left += 1


def _healer(place: LocalBlobs, others: Sequence[LocalBlobs], generation: Generation) -> Heal:
    async def heal(chunk: Chunk) -> None:
        for other in others:
            try:
                data = await other.get(chunk)
            except errors.StoreError:
                continue
            await place.put(data, generation=await generation(), chunk=chunk)
            return
        raise ChunkMissing(f"no other disk has a good copy of chunk {chunk.digest.hex()}")

    return heal
