"""Objects in and out: a client for the metadata and a blob store for the bytes, joined.

Rules.  How objects come in is in ``uploading``, and in ``parts``.  A get reads ahead by ``WINDOW`` chunks, verifies
every chunk, and of a whole object its etag as well.  A file is written under a temporary name next to its target and
renamed at the end, so that the target is never half-written.  Whatever names chunks that are stored already (a copy, a
version that is restored) touches them first, so that they are not deleted before the commit.
"""

from __future__ import annotations

import asyncio
import errno
import io
import os
import stat
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, AsyncIterable, Mapping, Sequence
from contextlib import aclosing, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from weakref import WeakSet

import msgspec
from blake3 import blake3

from gateway.blobs.files import creating, in_thread, reading, recycle_buffers, update, writing
from gateway.blobs.local import LocalBlobs
from gateway.blobs.places import BlobStore
from gateway.data.chunkcache import ChunkCache
from gateway.data.commits import RENEWALS_MAX, Commits, decode_list, put_of
from gateway.data.partial import claim, partial_path
from gateway.data.past import Past
from gateway.data.uploading import Progress, Upload
from objmeta import (
    AsyncClient,
    Chunk,
    Cluster,
    DeleteObject,
    Disks,
    Embedded,
    ObjectVersion,
    PutObject,
    connect_async,
    errors,
)
from objmeta.client import Location

READ_BYTES: Final = 2 << 20
"""A file is read in pieces of this length."""
WINDOW: Final = 12
"""Chunks that are read ahead: enough that reading, sending, hashing and writing overlap."""
COPY_BYTES: Final = 4 << 20
"""About so much goes to a file at a time, in one visit to a thread."""
CACHED_LISTS_MAX: Final = 4

Span = tuple[Chunk, int, int]
"""A chunk, and from where to where in it."""


def _ignore(count: int) -> None:
    return None


class Store:
    """A store's metadata (``client``) and bytes (``blobs``). Belongs to the event loop of its first use."""

    def __init__(self, client: AsyncClient, blobs: BlobStore) -> None:
        self.client = client
        self.blobs = blobs
        self._cache = ChunkCache(blobs)
        self._uploads: WeakSet[Upload] = WeakSet()
        self._lists: OrderedDict[tuple[Chunk, ...], tuple[Chunk, ...]] = OrderedDict()
        self.commits = Commits(client, blobs)
        recycle_buffers()

    def as_of(self, then: datetime) -> Store:
        """The same store as it was at some time, read only; closing that closes this one. See ``gateway.data.past``."""
        return Store(Past(self.client, then), self.blobs)

    async def close(self) -> None:
        """Discard uploads that were not ended, finish background copies, within bounds, and release everything."""
        self._cache.clear()
        await asyncio.gather(*(upload.leave() for upload in list(self._uploads)))
        try:
            await self.blobs.close()
        finally:
            await self.client.close()

    # -- In -----------------------------------------------------------------------------------------------------------

    def upload(
        self,
        bucket: str,
        key: str,
        *,
        content_type: str = "",
        metadata: Mapping[str, str] | None = None,
        if_absent: bool = False,
        if_version: str | None = None,
        expected_etag: str | None = None,
        progress: Progress | None = None,
    ) -> Upload:
        """Begin an object that is written piece by piece. ``if_absent`` and ``if_version`` as in put_object.

        With ``expected_etag`` (BLAKE3, hexadecimal) nothing is stored unless the content has it.
        """
        upload = Upload(
            self,
            bucket,
            key,
            content_type=content_type,
            metadata=metadata,
            if_absent=if_absent,
            if_version=if_version,
            expected_etag=expected_etag,
            progress=progress,
        )
        self._uploads.add(upload)
        return upload

    async def put_stream(
        self,
        bucket: str,
        key: str,
        source: AsyncIterable[bytes] | bytes,
        *,
        content_type: str = "",
        metadata: Mapping[str, str] | None = None,
        if_absent: bool = False,
        if_version: str | None = None,
        expected_etag: str | None = None,
        progress: Progress | None = None,
    ) -> ObjectVersion:
        """Store content, whatever its length, in bounded memory. Raises what :meth:`Upload.commit` raises."""
        upload = self.upload(
            bucket,
            key,
            content_type=content_type,
            metadata=metadata,
            if_absent=if_absent,
            if_version=if_version,
            expected_etag=expected_etag,
            progress=progress,
        )
        try:
            if isinstance(source, bytes):
                await upload.write(source)
            else:
                async for data in source:
                    await upload.write(data)
            return await upload.commit()
        except BaseException:
            await upload.discard()
            raise

    async def put_file(
        self,
        bucket: str,
        key: str,
        path: str | os.PathLike[str],
        *,
        content_type: str = "",
        metadata: Mapping[str, str] | None = None,
        if_absent: bool = False,
        if_version: str | None = None,
        expected_etag: str | None = None,
        progress: Progress | None = None,
    ) -> ObjectVersion:
        """Store a file (or what a pipe gives). Raises OSError if it cannot be read."""

        async def source() -> AsyncGenerator[bytes, None]:
            async with reading(Path(path)) as file:
                while data := await file.read(READ_BYTES):
                    yield data

        async with aclosing(source()) as pieces:
            return await self.put_stream(
                bucket,
                key,
                pieces,
                content_type=content_type,
                metadata=metadata,
                if_absent=if_absent,
                if_version=if_version,
                expected_etag=expected_etag,
                progress=progress,
            )

    async def copy(
        self,
        source_bucket: str,
        source_key: str,
        bucket: str,
        key: str,
        *,
        version_id: str | None = None,
        if_absent: bool = False,
        if_version: str | None = None,
    ) -> ObjectVersion:
        """Commit the content of a version under another name, or the same; no bytes are copied.

        Raises NoSuchBucket, NoSuchKey, NoSuchVersion, InvalidArgument (it is a delete marker), and as
        :meth:`copy_version`.
        """
        source = await self.client.get_object(source_bucket, source_key, version_id=version_id)
        return await self.copy_version(source, bucket, key, if_absent=if_absent, if_version=if_version)

    async def copy_version(
        self,
        source: ObjectVersion,
        bucket: str,
        key: str,
        *,
        content_type: str | None = None,
        metadata: Mapping[str, str] | None = None,
        if_absent: bool = False,
        if_version: str | None = None,
    ) -> ObjectVersion:
        """The same for a version that was got with its data; ``content_type`` and ``metadata`` in place of its own.

        Raises what AsyncClient.put_object raises, and Unavailable or IntegrityError if some of the content cannot be
        had; unless that is UnknownOutcome nothing was changed.
        """
        put = put_of(source, bucket, key, content_type, metadata, if_absent, if_version)
        (made,) = await self.commit_kept(source, [put])
        return made

    async def commit_kept(
        self, source: ObjectVersion, changes: Sequence[PutObject | DeleteObject]
    ) -> list[ObjectVersion]:
        """Make changes at once, one of which, the first, puts the content of ``source`` (see :func:`put_of`).

        Raises what AsyncClient.commit raises, and Unavailable or IntegrityError if some of the content cannot be had.
        """
        bucket, key = changes[0].bucket, changes[0].key
        generation = 0
        for _ in range(RENEWALS_MAX):
            if not source.is_inline:
                replicas = await self.commits.replicas(bucket)
                epoch = self.commits.epoch
                generation = await self._keep(source, replicas)
                if self.commits.epoch != epoch:
                    continue
            try:
                return await self.client.commit(changes, generation=generation)
            except errors.StaleGeneration:
                if not generation:
                    raise
                await self.commits.newer(generation)
        raise errors.Unavailable(f"{bucket}/{key} was not copied: generations or members moved on all the time")

    async def restore(self, bucket: str, key: str, version_id: str) -> ObjectVersion:
        """Make an old version's content current again, as a new version. Raises as :meth:`copy`."""
        return await self.copy(bucket, key, bucket, key, version_id=version_id)

    async def _keep(self, version: ObjectVersion, replicas: int) -> int:
        """Touch all of a version's chunks, and copy those anew that are in too few places; under which generation."""
        return await self.commits.keep((*version.lists, *await self.chunks_of(version)), replicas)

    # -- Out ----------------------------------------------------------------------------------------------------------

    async def resolved(self, version: ObjectVersion) -> ObjectVersion:
        """The version with its chunks; raises what :meth:`BlobStore.get` raises."""
        return msgspec.structs.replace(version, chunks=await self.chunks_of(version)) if version.lists else version

    async def chunks_of(self, version: ObjectVersion) -> tuple[Chunk, ...]:
        """The chunks of a version, also where there are so many that they are listed in chunks themselves.

        Raises what :meth:`BlobStore.get` raises.
        """
        if version.chunks or not version.lists:
            return version.chunks
        found = self._lists.get(version.lists)
        if found is None:
            pages = [await self.blobs.get(chunk) for chunk in version.lists]
            found = self._lists[version.lists] = tuple(chunk for page in pages for chunk in decode_list(page))
            while len(self._lists) > CACHED_LISTS_MAX:
                self._lists.popitem(last=False)
        return found

    async def read(self, version: ObjectVersion, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes ``start`` to ``stop`` of a version; like a slice, less where the content ends.

        Touches only the chunks it needs, and remembers the last few.  Raises what :meth:`BlobStore.get` raises.
        """
        spans = _spans(version, await self.chunks_of(version), start, stop)
        if version.is_inline or len(spans) > 2:
            whole = io.BytesIO()
            async with aclosing(self.stream(version, start, stop)) as pieces:
                async for piece in pieces:
                    whole.write(piece)
            return whole.getvalue()
        parts = await asyncio.gather(*(self._cache.get(*span) for span in spans))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def stream(
        self, version: ObjectVersion, start: int = 0, stop: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """The same in pieces, reading ahead in bounded memory.

        Of whole content the etag is verified too, before the last piece is given; IntegrityError if it differs.
        """
        whole = start == 0 and (stop is None or stop >= version.size)
        hasher = blake3()
        left = version.size
        async with aclosing(self.pieces(version, start, stop)) as pieces:
            async for piece in pieces:
                if whole:
                    await update(hasher, piece)
                    left -= len(piece)
                    if left == 0:
                        _check_etag(version, hasher.hexdigest())
                yield piece

    async def get_file(
        self,
        bucket: str,
        key: str,
        path: str | os.PathLike[str],
        *,
        version_id: str | None = None,
        progress: Progress | None = None,
    ) -> ObjectVersion:
        """Write a version's content to a file, which appears (or is replaced) only when all of it is there.

        A target that is no regular file, such as a pipe or ``/dev/stdout``, is written to directly.

        Raises NoSuchBucket, NoSuchKey, NoSuchVersion, IntegrityError, and OSError if the file cannot be written.
        """
        version = await self.client.get_object(bucket, key, version_id=version_id)
        if version.is_delete_marker:
            raise errors.NoSuchKey(f"version {version.version_id} of {bucket}/{key} is a delete marker")
        await self.get_version(version, path, progress=progress)
        return version

    async def get_version(
        self, version: ObjectVersion, path: str | os.PathLike[str], *, progress: Progress | None = None
    ) -> None:
        """The same of a version that was looked up. Raises IntegrityError, and OSError if it cannot be written."""
        target, mode = await in_thread(_target, Path(path))
        if mode is not None and not stat.S_ISREG(mode):
            async with writing(target) as file:
                await self.write_to(version, file, progress or _ignore)
            return
        while True:
            temporary = partial_path(target.parent)
            async with creating(temporary) as file:
                if not await in_thread(claim, file.fileno()):
                    continue
                await self.write_to(version, file, progress or _ignore)
                await file.flush()
                if mode is not None:
                    await in_thread(os.chmod, temporary, stat.S_IMODE(mode))
                await in_thread(os.replace, temporary, target)
                return

    async def write_to(self, version: ObjectVersion, file: Any, progress: Progress = _ignore) -> None:
        """Write a version's content to a file of aiofiles, its etag verified. Raises as :meth:`stream`, and OSError."""
        hasher = blake3()
        block: list[bytes] = []

        def hash_block() -> None:
            for piece in block:
                hasher.update(piece)

        async def copy_block() -> None:
            hashing = in_thread(hash_block)
            try:
                await file.writelines(block)
            finally:
                await hashing
            progress(sum(map(len, block)))
            block.clear()

        async with aclosing(self.pieces(version, 0, None)) as pieces:
            async for piece in pieces:
                block.append(piece)
                if sum(map(len, block)) >= COPY_BYTES:
                    await copy_block()
            await copy_block()
        _check_etag(version, hasher.hexdigest())

    async def pieces(self, version: ObjectVersion, start: int, stop: int | None) -> AsyncGenerator[bytes, None]:
        """The chunks of a range, each verified, without looking at the etag; as :meth:`stream`."""
        if version.is_inline:
            data = version.data
            if data is None:
                found = await self.client.get_object(version.bucket, version.key, version_id=version.version_id)
                data = found.data or b""
            _check_etag(version, blake3(data).hexdigest())
            yield data[max(start, 0) : stop]
            return
        spans = iter(_spans(version, await self.chunks_of(version), start, stop))
        ahead: deque[asyncio.Task[bytes]] = deque()
        try:
            while True:
                while len(ahead) < WINDOW and (span := next(spans, None)) is not None:
                    ahead.append(asyncio.create_task(self._fetch(*span)))
                if not ahead:
                    return
                piece = await ahead[0]
                ahead.popleft()
                yield piece
        finally:
            for task in ahead:
                task.cancel()
            await asyncio.gather(*ahead, return_exceptions=True)

    async def _fetch(self, chunk: Chunk, start: int, stop: int) -> bytes:
        return await self.blobs.get(chunk, start, None if stop == chunk.length else stop)


async def open_store(target: str | os.PathLike[str] | None = None, **settings: Any) -> Store:
    """Open a store as objmeta.connect does; nothing is opened before the first operation."""
    client = connect_async(target, **settings)
    if isinstance(client.location, Embedded):
        return Store(client, LocalBlobs(client.location.path / "blobs"))
    if isinstance(client.location, Disks):
        from gateway.blobs.disks import DiskBlobs

        async def disks() -> Sequence[tuple[Path, bool]]:
            return [(Path(node.address), node.state == "up") for node in (await client.status()).nodes]

        return Store(client, DiskBlobs(disks, client.generation))
    from gateway.blobs.client import ClusterBlobs
    from gateway.blobs.placement import PLACES, Place, Said, decode_places

    async def members() -> tuple[int, Sequence[Place]]:
        nodes, value = await asyncio.gather(client.status(), client.get(PLACES))
        said = decode_places(value.value if value is not None else None)
        return nodes.epoch, [
            Place(node.node_id, "" if node.state == "refused" else node.address, about.weight, about.zone)
            for node in nodes.nodes
            for about in (said.get(node.node_id, Said()),)
        ]

    blobs = ClusterBlobs(members, timeout_s=client.timeout_s, epoch=lambda: client.epoch, generation=client.generation)
    return Store(client, blobs)


async def open_store_at(location: Location, **settings: Any) -> Store:
    """Open the store that is at ``location``, as a client says."""
    if isinstance(location, Disks):
        return await open_store(disks=location.paths, **settings)
    target = ",".join(location.endpoints) if isinstance(location, Cluster) else location.path
    return await open_store(target, **settings)


# -- Helpers ----------------------------------------------------------------------------------------------------------


def _spans(version: ObjectVersion, chunks: Sequence[Chunk], start: int, stop: int | None) -> list[Span]:
    """The chunks, and parts of chunks, that hold bytes ``start`` to ``stop``."""
    if start < 0 or (stop is not None and stop < 0):
        raise errors.InvalidArgument(f"a range begins and ends at 0 or later, not {start}:{stop}")
    if not version.is_inline and sum(chunk.length for chunk in chunks) != version.size:
        raise errors.IntegrityError(f"the chunks of {version.bucket}/{version.key} do not add up to its size")
    end = version.size if stop is None else min(stop, version.size)
    spans: list[Span] = []
    position = 0
    for chunk in chunks:
        low, high = max(start - position, 0), min(end - position, chunk.length)
        if low < high:
            spans.append((chunk, low, high))
        position += chunk.length
        if position >= end:
            break
    return spans


def _check_etag(version: ObjectVersion, found: str) -> None:
    if found != version.etag:
        raise errors.IntegrityError(
            f"the content of {version.bucket}/{version.key} has BLAKE3 {found}, but its version says {version.etag}"
        )


def _target(path: Path) -> tuple[Path, int | None]:
    """Where a path leads through symbolic links, and the mode of what is there."""
    real = Path(os.path.realpath(path))
    with suppress(FileNotFoundError):
        mode = real.stat().st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        return real, mode
    return real, None
