"""The whole store seen from outside: every head, its records, their chunks, and every copy of those.

Rules.  Heads and records are read through the client, so what is checked is what a reader would get.  Of each chunk
every place is asked whether it has a good copy; ``deep`` has the places read their copies, and reads what is inline.
A place that does not answer counts for nothing: what may be there is told apart from what is lost.  Memory is bounded;
a chunk that many versions share is looked up again when it was not met for long.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from enum import StrEnum
from typing import Final

import msgspec
from blake3 import blake3

from gateway.data.transfer import Store
from gateway.upkeep.service import Copy
from gateway.upkeep.stores import DataPlace, Places
from objmeta import Chunk, ObjectVersion, errors

BATCH_CHUNKS: Final = 500
BATCH_BYTES: Final = 32 << 20
"""Looked up together; with ``deep`` so many bytes are read for one answer."""
KNOWN_MAX: Final = 100_000
"""Chunks whose copies are remembered."""
_PAGE_OBJECTS: Final = 500
_READS_MAX: Final = 16


class Verdict(StrEnum):
    """What is wrong, worst first."""

    LOST = "lost"
    DAMAGED = "damaged"
    UNREACHABLE = "unreachable"
    TOO_FEW_COPIES = "too few copies"


class Finding(msgspec.Struct, frozen=True):
    """Something that is wrong with a version; or with what cannot be read at all (``version_id`` is empty then).

    ``good``, ``damaged`` and ``missing`` are the numbers of the places that said so of the chunk ``digest``.
    """

    verdict: Verdict
    bucket: str
    key: str
    version_id: str = ""
    digest: str = ""
    wanted: int = 0
    good: tuple[int, ...] = ()
    damaged: tuple[int, ...] = ()
    missing: tuple[int, ...] = ()
    detail: str = ""


class Counts:
    """What was looked at, and how much of it was found wrong."""

    def __init__(self) -> None:
        self.versions = 0
        self.chunks = 0
        self.bytes = 0
        self.copy_bytes = 0
        """Of all copies of the chunks; what ``deep`` reads."""
        self.found: dict[Verdict, int] = dict.fromkeys(Verdict, 0)


class Checker:
    """One check of a store; belongs to one event loop."""

    def __init__(self, store: Store, places: Places, *, deep: bool) -> None:
        self._store = store
        self._places = places
        self._deep = deep
        self._known: OrderedDict[Chunk, dict[int, Copy]] = OrderedDict()
        self._silent: dict[int, str] = dict(places.absent)
        self.counts = Counts()

    @property
    def silent(self) -> dict[int, str]:
        """Places that did not answer, by number, and why."""
        return self._silent

    async def run(self) -> AsyncGenerator[Finding, None]:
        """Everything that is wrong. Raises Unavailable where heads cannot be read."""
        for bucket in await self._store.client.buckets():
            wanted = self._places.wanted(bucket.settings.replicas)
            batch: list[tuple[ObjectVersion, Chunk]] = []
            size = 0
            async for version in self._versions(bucket.name):
                if isinstance(version, Finding):
                    yield self._counted(version)
                    continue
                self.counts.versions += 1
                if version.is_delete_marker or version.is_inline:
                    continue
                chunks, problem = await self._chunks(version)
                if problem is not None:
                    yield self._counted(problem)
                for chunk in chunks:
                    batch.append((version, chunk))
                    size += chunk.length
                    if len(batch) >= BATCH_CHUNKS or (self._deep and size >= BATCH_BYTES):
                        for finding in await self._copies(batch, wanted):
                            yield self._counted(finding)
                        batch, size = [], 0
            for finding in await self._copies(batch, wanted):
                yield self._counted(finding)

    def _counted(self, finding: Finding) -> Finding:
        self.counts.found[finding.verdict] += 1
        return finding

    # -- Heads and records --------------------------------------------------------------------------------------------

    async def _versions(self, bucket: str) -> AsyncIterator[ObjectVersion | Finding]:
        continuation: str | None = None
        while True:
            try:
                page = await self._store.client.list_versions(bucket, continuation=continuation, limit=_PAGE_OBJECTS)
            except errors.NoSuchBucket:
                return  # removed meanwhile
            except errors.IntegrityError:
                async for each in self._one_by_one(bucket):
                    yield each
                return
            inline = [version for version in page.versions if version.is_inline] if self._deep else []
            for finding in await _bounded(self._inline, inline):
                if finding is not None:
                    yield finding
            for version in page.versions:
                yield version
            continuation = page.continuation
            if continuation is None:
                return

    async def _one_by_one(self, bucket: str) -> AsyncIterator[ObjectVersion | Finding]:
        """A page cannot be read: find out which objects it is. (What was seen before is looked at again.)"""
        async for summary in self._store.client.iter_objects(bucket):
            if isinstance(summary, str):
                continue
            try:
                for version in await self._store.client.versions(bucket, summary.key):
                    yield version
            except errors.NotFound:
                continue
            except errors.IntegrityError as problem:
                yield Finding(Verdict.LOST, bucket, summary.key, detail=str(problem))

    async def _inline(self, version: ObjectVersion) -> Finding | None:
        client = self._store.client
        try:
            found = await client.get_object(version.bucket, version.key, version_id=version.version_id)
        except errors.NotFound:
            return None  # removed meanwhile
        except errors.IntegrityError as problem:
            return _of(version, Verdict.LOST, detail=str(problem))
        if blake3(found.data or b"").hexdigest() != version.etag:
            return _of(version, Verdict.DAMAGED, detail="the content in its record is not what its etag says")
        return None

    async def _chunks(self, version: ObjectVersion) -> tuple[Sequence[Chunk], Finding | None]:
        """Its chunks, those that list others included, and what is wrong with them."""
        try:
            chunks = await self._store.chunks_of(version)
        except errors.IntegrityError as problem:
            detail = f"the list of its chunks cannot be read: {problem}"
            return version.lists, _of(version, Verdict.LOST, detail=detail)
        except errors.Unavailable as problem:
            detail = f"the list of its chunks cannot be read: {problem}"
            return version.lists, _of(version, Verdict.UNREACHABLE, detail=detail)
        if sum(chunk.length for chunk in chunks) != version.size:
            return chunks, _of(version, Verdict.DAMAGED, detail="its chunks do not add up to its size")
        return (*version.lists, *chunks), None

    # -- Copies -------------------------------------------------------------------------------------------------------

    async def _copies(self, batch: Sequence[tuple[ObjectVersion, Chunk]], wanted: int) -> list[Finding]:
        unknown = list(dict.fromkeys(chunk for _, chunk in batch if chunk not in self._known))
        answers = await asyncio.gather(*(self._ask(place, unknown) for place in self._places.places))
        for index, chunk in enumerate(unknown):
            said = {
                place.node_id: answer[index]
                for place, answer in zip(self._places.places, answers, strict=True)
                if answer is not None
            }
            self._known[chunk] = said
            self.counts.copy_bytes += chunk.length * sum(copy is not Copy.MISSING for copy in said.values())
        self.counts.chunks += len(unknown)
        self.counts.bytes += sum(chunk.length for chunk in unknown)
        findings = [self._judged(version, chunk, wanted) for version, chunk in batch]
        while len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)
        return [finding for finding in findings if finding is not None]

    async def _ask(self, place: DataPlace, chunks: Sequence[Chunk]) -> list[Copy] | None:
        if not chunks or place.node_id in self._silent:
            return [] if not chunks else None
        try:
            return await place.look(chunks, self._deep)
        except errors.ObjmetaError as problem:
            self._silent[place.node_id] = str(problem)
            return None

    def _judged(self, version: ObjectVersion, chunk: Chunk, wanted: int) -> Finding | None:
        said = self._known[chunk]
        self._known.move_to_end(chunk)
        good, damaged, missing = (
            tuple(node for node, copy in sorted(said.items()) if copy is kind)
            for kind in (Copy.GOOD, Copy.DAMAGED, Copy.MISSING)
        )
        if not good and not self._silent:
            verdict = Verdict.LOST
        elif damaged:
            verdict = Verdict.DAMAGED
        elif not good:
            verdict = Verdict.UNREACHABLE
        elif len(good) < wanted:
            verdict = Verdict.TOO_FEW_COPIES
        else:
            return None
        return _of(version, verdict, chunk.digest.hex(), wanted, good, damaged, missing)


def _of(
    version: ObjectVersion,
    verdict: Verdict,
    digest: str = "",
    wanted: int = 0,
    good: tuple[int, ...] = (),
    damaged: tuple[int, ...] = (),
    missing: tuple[int, ...] = (),
    detail: str = "",
) -> Finding:
    return Finding(
        verdict, version.bucket, version.key, version.version_id, digest, wanted, good, damaged, missing, detail
    )


async def _bounded(
    work: Callable[[ObjectVersion], Awaitable[Finding | None]], items: Sequence[ObjectVersion]
) -> list[Finding | None]:
    gate = asyncio.Semaphore(_READS_MAX)

    async def one(item: ObjectVersion) -> Finding | None:
        async with gate:
            return await work(item)

    return await asyncio.gather(*(one(item) for item in items))
