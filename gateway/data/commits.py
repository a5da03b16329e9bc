"""Chunks and the versions that name them, under one generation.

Whatever stores or reuses chunks states the generation in which it began, and so does the commit that names them.
Chunks that were touched in a generation are not deleted before the floor has passed it, and from then on the commit is
refused.  Where something is refused for its age, the newest generation is taken; then everything that the commit names
has to be touched again, and what is gone by then cannot be committed.  The same when the members of the cluster have
changed since: nodes that said they have something may be gone (docs/collection.md, W4 and W5).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from gateway.blobs.places import BlobStore
from objmeta import AsyncClient, Chunk, ObjectVersion, PutObject, errors

LIST_CHUNKS_MAX: Final = 4096
"""Of objects with more chunks (5 GiB) the list of chunks is stored in chunks itself, so that records stay short."""
LIST_ENTRIES: Final = 16_384
"""In one of these: some 600 KiB."""
KNOWN_S: Final = 10.0
"""How long the generation and a bucket's settings are believed. An old generation is safe: it is refused earlier."""
ASKED_AT_ONCE: Final = 1000
RENEWALS_MAX: Final = 5
"""An operation that outlives so many generations is given up: each is hours."""


def decode_list(page: bytes) -> tuple[Chunk, ...]:
    """The chunks that a chunk lists. Raises IntegrityError."""
    try:
        return msgspec.msgpack.decode(page, type=tuple[Chunk, ...])
    except msgspec.MsgspecError as wrong:
        raise errors.IntegrityError(f"a list of chunks cannot be read: {wrong}") from None


class Content(NamedTuple):
    """Content that is stored in chunks: what a commit needs."""

    chunks: Sequence[Chunk]
    size: int
    etag: str
    generation: int
    """Under which all of it was touched, or under a later one."""
    epoch: int
    """Of the members when the first of it was touched (:attr:`Commits.epoch`)."""


class Prepared(NamedTuple):
    """A version that lacks nothing but its commit; of one that is not inlined the content says which chunks it has."""

    put: PutObject
    content: Content | None


def put_of(
    source: ObjectVersion,
    bucket: str,
    key: str,
    content_type: str | None = None,
    metadata: Mapping[str, str] | None = None,
    if_absent: bool = False,
    if_version: str | None = None,
) -> PutObject:
    """What puts the content of a version that was got with its data under a name; its chunks are to be touched first.

    ``content_type`` and ``metadata`` in place of its own.  Raises InvalidArgument for a delete marker.
    """
    if source.is_delete_marker:
        raise errors.InvalidArgument(
            f"version {source.version_id} of {source.key!r} is a delete marker and has no content"
        )
    return PutObject(
        bucket,
        key,
        data=source.data if source.is_inline else None,
        chunks=() if source.lists else source.chunks,
        lists=source.lists,
        size=source.size,
        etag=source.etag,
        content_type=source.content_type if content_type is None else content_type,
        metadata=source.metadata if metadata is None else metadata,
        if_absent=if_absent,
        if_version=if_version,
    )


class Commits:
    """Stores chunks and commits versions, for a :class:`gateway.data.transfer.Store`."""

    def __init__(self, client: AsyncClient, blobs: BlobStore) -> None:
        self.client = client
        self.blobs = blobs
        self._generation = (0, 0.0)
        self._replicas: dict[str, tuple[int, float]] = {}

    async def commit(self, bucket: str, key: str, content: Content, **options: Any) -> ObjectVersion:
        """Make content that is stored the current version of an object; ``options`` as in AsyncClient.put_object.

        Raises what AsyncClient.put_object raises, and Unavailable if some of the content was deleted meanwhile.
        """
        generation, epoch = content.generation, content.epoch
        for _ in range(RENEWALS_MAX):
            if epoch == self.epoch:
                try:
                    chunks, lists = await self._listed(bucket, content, generation)
                    if epoch == self.epoch:
                        return await self.client.put_object(
                            bucket,
                            key,
                            chunks=chunks,
                            lists=lists,
                            size=content.size,
                            etag=content.etag,
                            generation=generation,
                            **options,
                        )
                except errors.StaleGeneration:
                    await self.newer(generation)
            epoch = self.epoch
            try:
                generation = await self.keep(content.chunks, await self.replicas(bucket))
            except errors.IntegrityError as gone:
                raise errors.Unavailable(
                    f"{bucket}/{key} took so long that some of its content was deleted again; begin anew ({gone})"
                ) from gone
        raise errors.Unavailable(f"{bucket}/{key} was not committed: generations or members moved on all the time")

    async def commit_together(self, prepared: Sequence[Prepared]) -> list[ObjectVersion]:
        """Commit several versions at one instant, or none. Raises what AsyncClient.commit and :meth:`commit` raise."""
        contents = [(put.bucket, content) for put, content in prepared if content is not None]
        generation = min((content.generation for _, content in contents), default=0)
        epochs = {content.epoch for _, content in contents}
        for _ in range(RENEWALS_MAX):
            if epochs <= {self.epoch}:
                try:
                    changes = [await self._change(put, content, generation) for put, content in prepared]
                    if epochs <= {self.epoch}:
                        return await self.client.commit(changes, generation=generation)
                except errors.StaleGeneration:
                    if not contents:
                        raise
                    await self.newer(generation)
            epochs = {self.epoch}
            try:
                generation = min([await self.keep(each.chunks, await self.replicas(name)) for name, each in contents])
            except errors.IntegrityError as gone:
                raise errors.Unavailable(
                    f"these {len(prepared)} objects took so long that some of their content was deleted again; begin "
                    f"anew ({gone})"
                ) from gone
        raise errors.Unavailable("nothing was committed: generations or members moved on all the time")

    async def _change(self, put: PutObject, content: Content | None, generation: int) -> PutObject:
        if content is None:
            return put
        chunks, lists = await self._listed(put.bucket, content, generation)
        return msgspec.structs.replace(put, chunks=chunks, lists=lists)

    async def _listed(
        self, bucket: str, content: Content, generation: int
    ) -> tuple[tuple[Chunk, ...], tuple[Chunk, ...]]:
        """What a version names of its content: the chunks, or chunks that list them, which are stored."""
        chunks = tuple(content.chunks)
        if len(chunks) <= LIST_CHUNKS_MAX:
            return chunks, ()
        replicas = await self.replicas(bucket)
        lists = []
        for start in range(0, len(chunks), LIST_ENTRIES):
            page = msgspec.msgpack.encode(chunks[start : start + LIST_ENTRIES])
            lists.append(await self.blobs.put(page, generation=generation, replicas=replicas))
        return (), tuple(lists)

    @property
    def epoch(self) -> int:
        """A number that grows when members of the cluster change, as far as this process has heard of it."""
        return self.client.epoch

    async def keep(self, chunks: Sequence[Chunk], replicas: int) -> int:
        """Touch chunks, and copy those anew that are in too few places; under which generation, or a later one.

        Raises what BlobStore.get and BlobStore.put raise.
        """
        chunks = list(dict.fromkeys(chunks))
        generation, there = await self.touch(chunks, replicas)
        oldest = generation
        for chunk in (chunk for chunk, is_there in zip(chunks, there, strict=True) if not is_there):
            oldest = min(oldest, await self.put_chunk(chunk, await self.blobs.get(chunk), generation, replicas))
        return oldest

    async def generation(self, known_s: float = KNOWN_S) -> int:
        """A generation to begin an operation in: what was the newest not more than ``known_s`` ago."""
        found, at = self._generation
        now = asyncio.get_running_loop().time()
        if not found or now - at > known_s:
            found = await self.client.generation()
            self._generation = (found, now)
        return found

    async def newer(self, stale: int) -> int:
        """The newest generation, after ``stale`` was refused. Raises StaleGeneration if there is no newer one."""
        if self._generation[0] <= stale:
            self._generation = (0, 0.0)
        found = await self.generation()
        if found <= stale:
            raise errors.StaleGeneration(f"generation {stale} is refused, and the newest is {found}")
        return found

    async def replicas(self, bucket: str) -> int:
        """How many copies the chunks of a bucket are to have; 0: the default. Raises NoSuchBucket."""
        found, at = self._replicas.get(bucket, (0, 0.0))
        now = asyncio.get_running_loop().time()
        if not at or now - at > KNOWN_S:
            found = (await self.client.bucket(bucket)).settings.replicas
            self._replicas[bucket] = (found, now)
        return found

    async def touch(self, chunks: Sequence[Chunk], replicas: int) -> tuple[int, list[bool]]:
        """Touch chunks: under which generation, and for each whether it is there in enough copies."""
        for _ in range(RENEWALS_MAX):
            generation = await self.generation()
            found: list[bool] = []
            try:
                for start in range(0, len(chunks), ASKED_AT_ONCE):
                    page = chunks[start : start + ASKED_AT_ONCE]
                    found.extend(await self.blobs.touch(page, generation=generation, replicas=replicas))
            except errors.StaleGeneration:
                await self.newer(generation)
            else:
                return generation, found
        raise errors.Unavailable("generations moved on all the time")

    async def put_chunk(self, chunk: Chunk, data: bytes | memoryview, generation: int, replicas: int) -> int:
        """Store a chunk with this content; under which generation in the end. Raises what BlobStore.put raises."""
        for _ in range(RENEWALS_MAX):
            try:
                await self.blobs.put(data, generation=generation, replicas=replicas, chunk=chunk)
                return generation
            except errors.StaleGeneration:
                generation = await self.newer(generation)
        raise errors.Unavailable("generations moved on all the time")
