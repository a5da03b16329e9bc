"""Objects in and out: a client for the metadata and a blob store for the bytes, joined.

Rules.  A put cuts content into chunks of ``CHUNK_BYTES``, keeps at most ``WINDOW`` of them in memory, and commits the
metadata only when all are durable; content of up to ``INLINE_BYTES_MAX`` goes into the record.  A put that fails leaves
nothing but chunks that nobody names.  A get reads ahead by the same window, verifies every chunk, and of a whole object
its etag as well.  A file is written under a temporary name next to its target and renamed at the end, so that the
target is never half-written.
"""

from __future__ import annotations

import asyncio
import errno
import io
import os
import stat
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final
from weakref import WeakSet

from blake3 import blake3

from gateway.bloblocal import LocalBlobs
from gateway.blobs import BlobStore
from gateway.files import creating, in_thread, reading, recycle_buffers, update, writing
from objmeta import AsyncClient, Chunk, Disks, Embedded, ObjectVersion, connect_async, errors

CHUNK_BYTES: Final = 4 << 20
INLINE_BYTES_MAX: Final = 8 << 10
WINDOW: Final = 8
"""Chunks in flight (32 MiB): enough that hashing, writing and syncing overlap."""
CACHED_CHUNKS_MAX: Final = 8
"""Ranged reads of one file (a Parquet footer, then columns) mostly meet in few chunks."""

Progress = Callable[[int], None]
"""Called with the number of bytes that are done since the last call."""
Span = tuple[Chunk, int, int]
"""A chunk, and from where to where in it."""


class Upload:
    """An object on its way in; nothing is visible before :meth:`commit`. A ``with`` block that fails discards it."""

    def __init__(
        self,
        store: Store,
        bucket: str,
        key: str,
        *,
        content_type: str = "",
        metadata: Mapping[str, str] | None = None,
        if_absent: bool = False,
        if_version: str | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._store = store
        self._bucket = bucket
        self._key = key
        self._options: dict[str, Any] = {
            "content_type": content_type,
            "metadata": metadata,
            "if_absent": if_absent,
            "if_version": if_version,
        }
        self._progress = progress or _ignore
        self._hasher = blake3()
        self._hashing: asyncio.Task[None] | None = None
        self._checking: asyncio.Task[None] | None = None
        self._parts: list[bytes | memoryview] = []
        self._buffered = 0
        self._putting: deque[asyncio.Task[Chunk]] = deque()
        self._chunks: list[Chunk] = []
        self._ended = False

    async def __aenter__(self) -> Upload:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            await self.discard()
        elif not self._ended:
            await self.commit()

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Add content. Waits while ``WINDOW`` chunks are under way; may raise what storing an earlier one raised."""
        self._check_open()
        view = memoryview(data if isinstance(data, bytes) else bytes(data))
        while self._buffered + len(view) >= CHUNK_BYTES:
            missing = CHUNK_BYTES - self._buffered
            self._parts.append(view[:missing])
            self._buffered = CHUNK_BYTES
            view = view[missing:]
            await self._send_chunk()
        if view:
            self._parts.append(view)
            self._buffered += len(view)

    async def commit(self) -> ObjectVersion:
        """Make the content the object's current version.

        Raises what AsyncClient.put_object and BlobStore.put raise; unless that is UnknownOutcome nothing was changed.
        """
        self._check_open()
        self._ended = True
        try:
            if not self._putting and not self._chunks and self._buffered <= INLINE_BYTES_MAX:
                data = b"".join(self._parts)
                version = await self._store.client.put_object(self._bucket, self._key, data=data, **self._options)
                self._progress(len(data))
                return version
            if self._buffered:
                await self._send_chunk()
            while self._putting:
                await self._receive_chunk()
            if self._hashing is not None:
                await self._hashing
            return await self._store.client.put_object(
                self._bucket,
                self._key,
                chunks=self._chunks,
                size=sum(chunk.length for chunk in self._chunks),
                etag=self._hasher.hexdigest(),
                **self._options,
            )
        finally:
            await self._stop()

    async def discard(self) -> None:
        """Give up; nothing becomes visible."""
        self._ended = True
        await self._stop()

    async def leave(self) -> None:
        """The store is being closed: discard what was not ended, and wait for the writes of what was."""
        if not self._ended:
            await self.discard()
        else:
            await asyncio.gather(*self._tasks(), return_exceptions=True)

    def _check_open(self) -> None:
        if self._ended:
            raise errors.InvalidArgument(f"the upload of {self._bucket}/{self._key} has ended; begin another")

    async def _send_chunk(self) -> None:
        data = _joined(self._parts)
        self._parts, self._buffered = [], 0
        if self._checking is None and self._putting:
            self._checking = asyncio.create_task(self._check_target())
        if len(self._putting) >= WINDOW:
            await self._receive_chunk()
        self._putting.append(asyncio.create_task(self._store.blobs.put(data, generation=0)))
        if self._hashing is not None:
            await self._hashing
        self._hashing = asyncio.create_task(update(self._hasher, data))

    async def _receive_chunk(self) -> None:
        if self._checking is not None:
            await self._checking
        chunk = await self._putting[0]
        self._putting.popleft()
        self._chunks.append(chunk)
        self._progress(chunk.length)

    async def _check_target(self) -> None:
        """Refuse early what the commit would refuse, before gigabytes are sent; the commit decides all the same."""
        try:
            current = await self._store.client.head_object(self._bucket, self._key)
        except errors.NoSuchKey:
            return
        name = f"{self._bucket}/{self._key}"
        if self._options["if_absent"]:
            raise errors.AlreadyExists(f"{name} exists already")
        wanted = self._options["if_version"]
        if wanted is not None and wanted != current.version_id:
            raise errors.PreconditionFailed(f"the current version of {name} is {current.version_id}, not {wanted}")

    async def _stop(self) -> None:
        tasks = self._tasks()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._parts = []

    def _tasks(self) -> list[asyncio.Task[Any]]:
        return [task for task in (*self._putting, self._hashing, self._checking) if task is not None]


class Store:
    """A store's metadata (``client``) and bytes (``blobs``). Belongs to the event loop of its first use."""

    def __init__(self, client: AsyncClient, blobs: BlobStore) -> None:
        self.client = client
        self.blobs = blobs
        self._cache = _ChunkCache(blobs)
        self._uploads: WeakSet[Upload] = WeakSet()
        recycle_buffers()

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
        progress: Progress | None = None,
    ) -> Upload:
        """Begin an object that is written piece by piece. ``if_absent`` and ``if_version`` as in put_object."""
        upload = Upload(
            self,
            bucket,
            key,
            content_type=content_type,
            metadata=metadata,
            if_absent=if_absent,
            if_version=if_version,
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
        progress: Progress | None = None,
    ) -> ObjectVersion:
        """Store a file (or what a pipe gives). Raises OSError if it cannot be read."""

        async def source() -> AsyncGenerator[bytes, None]:
            async with reading(Path(path)) as file:
                while data := await file.read(CHUNK_BYTES):
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
                progress=progress,
            )

    # -- Out ----------------------------------------------------------------------------------------------------------

    async def read(self, version: ObjectVersion, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes ``start`` to ``stop`` of a version; like a slice, less where the content ends.

        Touches only the chunks it needs, and remembers the last few.  Raises what :meth:`BlobStore.get` raises.
        """
        spans = _spans(version, start, stop)
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
        async with aclosing(self._pieces(version, start, stop)) as pieces:
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
        target, mode = await in_thread(_target, Path(path))
        if mode is not None and not stat.S_ISREG(mode):
            async with writing(target) as file:
                await self._copy(version, file, progress or _ignore)
            return version
        temporary = target.parent / f".objmeta-{os.urandom(8).hex()}.part"
        async with creating(temporary) as file:
            await self._copy(version, file, progress or _ignore)
            await file.flush()
            if mode is not None:
                await in_thread(os.chmod, temporary, stat.S_IMODE(mode))
            await in_thread(os.replace, temporary, target)
        return version

    async def _copy(self, version: ObjectVersion, file: Any, progress: Progress) -> None:
        hasher = blake3()
        async with aclosing(self._pieces(version, 0, None)) as pieces:
            async for piece in pieces:
                hashing = in_thread(hasher.update, piece)
                await file.write(piece)
                await hashing
                progress(len(piece))
        _check_etag(version, hasher.hexdigest())

    async def _pieces(self, version: ObjectVersion, start: int, stop: int | None) -> AsyncGenerator[bytes, None]:
        if version.is_inline:
            data = version.data
            if data is None:
                found = await self.client.get_object(version.bucket, version.key, version_id=version.version_id)
                data = found.data or b""
            _check_etag(version, blake3(data).hexdigest())
            yield data[max(start, 0) : stop]
            return
        spans = iter(_spans(version, start, stop))
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


class _ChunkCache:
    """The last few chunks that ranged reads touched; readers that meet in one share its fetch."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._fetches: OrderedDict[Chunk, asyncio.Task[bytes]] = OrderedDict()
        self._owner: object = None

    async def get(self, chunk: Chunk, start: int, stop: int) -> bytes:
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


async def open_store(target: str | os.PathLike[str] | None = None, **settings: Any) -> Store:
    """Open a store as objmeta.connect does; nothing is opened before the first operation."""
    client = connect_async(target, **settings)
    if isinstance(client.location, Embedded):
        return Store(client, LocalBlobs(client.location.path / "blobs"))
    if isinstance(client.location, Disks):
        from gateway.blobdisks import DiskBlobs

        async def disks() -> Sequence[tuple[Path, bool]]:
            return [(Path(node.address), node.state == "up") for node in (await client.status()).nodes]

        return Store(client, DiskBlobs(disks))
    from gateway.blobclient import ClusterBlobs

    async def members() -> Sequence[str]:
        nodes = (await client.status()).nodes
        return ["" if node.state == "refused" else node.address for node in nodes]

    return Store(client, ClusterBlobs(members=members, timeout_s=client.timeout_s, epoch=lambda: client.epoch))


# -- Helpers ----------------------------------------------------------------------------------------------------------


def _ignore(count: int) -> None:
    return None


def _joined(parts: list[bytes | memoryview]) -> bytes:
    """The parts as one, without a copy if there is only one and it is all of a bytes object."""
    if len(parts) == 1 and isinstance(view := parts[0], memoryview):
        whole = view.obj
        if isinstance(whole, bytes) and len(whole) == len(view):
            return whole
    return b"".join(parts)


def _spans(version: ObjectVersion, start: int, stop: int | None) -> list[Span]:
    """The chunks, and parts of chunks, that hold bytes ``start`` to ``stop``."""
    if start < 0 or (stop is not None and stop < 0):
        raise errors.InvalidArgument(f"a range begins and ends at 0 or later, not {start}:{stop}")
    if not version.is_inline and sum(chunk.length for chunk in version.chunks) != version.size:
        raise errors.IntegrityError(f"the chunks of {version.bucket}/{version.key} do not add up to its size")
    end = version.size if stop is None else min(stop, version.size)
    spans: list[Span] = []
    position = 0
    for chunk in version.chunks:
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
