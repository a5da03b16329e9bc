"""A place on a local disk: chunks in a directory, for any number of processes at once.

* ``index.db``: which chunks are there and where (``index``). What it has no row for is not held, but still found by
  a get if it has a file.
* ``packs/<id>.pack``: many chunks (``packs``). Those that wait together share the sync of the pack, and all that wait
  share the commit of the index.
* ``ab/<64 hexadecimal digits>``: a very long chunk, or one of an older version; ``ab`` are the first two. It is written
  under a temporary name in ``tmp``, synced, renamed, and its directory synced, before it gets its row; these syncs are
  shared (``groupsync``).

What is acknowledged has its bytes and its row on the disk.  A chunk is read as a whole and verified before any byte of
it is returned; putting what is there verifies and keeps it, and replaces it if it is damaged.  What changes a chunk's
row is in ``rules``, with the argument why deletion and reuse never miss each other; sweeping in ``sweep``.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, TypeVar, cast

from blake3 import blake3

from gateway.blobs import rules
from gateway.blobs import sweep as blobsweep
from gateway.blobs.files import created, in_thread, recycle_buffers
from gateway.blobs.groupsync import Batches, GroupSync, sync_directories
from gateway.blobs.index import Change, Index, Row, explained
from gateway.blobs.packs import PACKED_BYTES_MAX, PARTS_MAX, Packs, check_room
from gateway.blobs.places import (
    BlobStatus,
    ChunkMissing,
    Held,
    Sweep,
    Swept,
    Usage,
    Verified,
    digest_of,
)
from gateway.blobs.rules import Bytes, Outcome
from objmeta import Chunk, errors

LEFTOVER_AGE_S: Final = 900.0
LEFTOVER_AGE_MAX_S: Final = 86_400.0
LEFTOVERS_MAX: Final = 1000
STEPS_MAX: Final = 256
"""In one commit: more would gain nothing and make the first wait for the last."""
APPENDED_MAX: Final = 64
"""In one append to a pack, which is written in one go. More would gain little: a sync costs no more for 64 of 20 KiB
than for 256."""
APPENDED_BYTES_MAX: Final = 8 << 20
APPENDS_AT_ONCE: Final = 2
"""While one batch is synced or commits its rows, the next is written, to another pack."""
LOOK_FIRST_BYTES_MIN: Final = 64 << 10
"""Whether a longer chunk is there is looked up before it is appended; a shorter one costs no more than that."""
_T = TypeVar("_T")
_Parts = Sequence[bytes | memoryview]


class _Packed(NamedTuple):
    """A chunk to be packed."""

    chunk: Chunk
    parts: _Parts
    generation: int
    is_sure: bool
    """Whether the content is known to be the chunk's."""
    replace: bool = False
    """What is there is bad."""


class LocalBlobs:
    """Satisfies :class:`gateway.blobs.places.BlobPlace`. The directory is made at the first put.

    ``timeout_s`` bounds how long an operation waits for other processes; chunks of up to ``packed_bytes_max`` bytes are
    packed.
    """

    def __init__(self, path: Path, *, timeout_s: float = 10.0, packed_bytes_max: int = PACKED_BYTES_MAX) -> None:
        self.path = path
        self._packed_bytes_max = packed_bytes_max
        self._bytes = Bytes(path, Packs(path / "packs"))
        self._index = Index(path, lambda: blobsweep.found(self._bytes), timeout_s)
        self._ready = False
        self._lanes: _Lanes | None = None
        self._preparing: set[asyncio.Future[None]] = set()
        self._trouble = ""
        recycle_buffers()

    # -- In -----------------------------------------------------------------------------------------------------------

    async def put(
        self, data: bytes | memoryview, *, generation: int, replicas: int = 0, chunk: Chunk | None = None
    ) -> Chunk:
        """Store a chunk; durable on return. Raises StaleGeneration, StoreFull, StoreError."""
        chunk = chunk or Chunk(await digest_of(data), len(data))
        await self._take_in(chunk, (data,), generation)
        return chunk

    async def receive(self, chunk: Chunk, parts: _Parts, *, generation: int) -> None:
        """Store a chunk that somebody sent, in parts; durable on return.

        Raises IntegrityError if these are not that chunk, StaleGeneration, StoreFull, StoreError; nothing is visible
        then.
        """
        if chunk.length > self._packed_bytes_max and not await in_thread(_are, chunk, parts):
            raise not_that_chunk(chunk)
        await self._take_in(chunk, parts, generation, is_sure=False)

    async def _take_in(self, chunk: Chunk, parts: _Parts, generation: int, is_sure: bool = True) -> None:
        """Store a chunk. Raises IntegrityError if the content is not its, which is looked at unless ``is_sure``."""
        if len(parts) > PARTS_MAX:
            parts = (b"".join(parts),)
        for _ in range(rules.TRIES):
            if chunk.length > self._packed_bytes_max:
                there = await self._store(chunk, parts, generation)
            else:
                there = await self._pack(chunk, parts, generation, is_sure)
            if there:
                return
        raise errors.StoreError(f"chunk {chunk.digest.hex()} was deleted in {self.path} while it arrived: try again")

    async def touch(self, chunks: Sequence[Chunk], *, generation: int, replicas: int = 0) -> list[bool]:
        """See :class:`gateway.blobs.places.BlobStore`."""

        def is_any_there() -> bool:
            return self._index.read(lambda view: any(view.find(chunk.digest) is not None for chunk in chunks))

        if not await self._threaded(is_any_there):  # nothing to commit; what is put next is judged by its generation
            return [False] * len(chunks)
        return await self._commit(rules.touch(self._bytes, chunks, generation))

    # -- Out ----------------------------------------------------------------------------------------------------------

    async def get(self, chunk: Chunk, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes ``start`` to ``stop`` of a chunk, all of which was verified.

        Raises IntegrityError (damaged), ChunkMissing, StoreError.
        """
        with explained(self.path):
            try:
                data = await in_thread(self._read, chunk)
            except FileNotFoundError as missing:
                raise ChunkMissing(f"chunk {chunk.digest.hex()} is missing in {self.path}") from missing
        if data is None:
            with suppress(errors.StoreError):
                await self._commit(rules.note_damage(self._bytes, chunk))
            raise errors.IntegrityError(f"chunk {chunk.digest.hex()} in {self.path} is damaged")
        return data if start == 0 and stop is None else data[start:stop]

    async def get_many(self, chunks: Sequence[Chunk]) -> list[bytes | errors.StoreError]:
        """See :class:`gateway.blobs.places.BlobPlace`. One visit to a thread for all."""

        def read() -> list[bytes | None]:
            contents = []
            for chunk in chunks:
                try:
                    contents.append(self._read(chunk))
                except (OSError, errors.StoreError):
                    contents.append(None)
            return contents

        return [
            data if data is not None else await self._content(chunk)
            for chunk, data in zip(chunks, await in_thread(read), strict=True)
        ]

    async def _content(self, chunk: Chunk) -> bytes | errors.StoreError:
        """A chunk that could not be read with others: once more, to tell why."""
        try:
            return await self.get(chunk)
        except errors.StoreError as problem:
            return problem

    async def has(self, chunks: Sequence[Chunk]) -> list[bool]:
        """See :class:`gateway.blobs.places.BlobPlace`."""

        def look() -> list[bool]:
            rows = self._index.read(lambda view: [view.find(chunk.digest) for chunk in chunks])
            return [row is not None and is_good(row, chunk) for row, chunk in zip(rows, chunks, strict=True)]

        def is_good(row: Row, chunk: Chunk) -> bool:
            now = blobsweep.current(self._index, self._bytes, row)
            return now is not None and not now.damaged and now.length == chunk.length

        with explained(self.path):
            return await in_thread(look)

    async def held(self, after: bytes = b"", limit: int = 1000) -> list[Held]:
        """See :class:`gateway.blobs.places.BlobPlace`."""
        with explained(self.path):
            return await in_thread(blobsweep.held, self._index, self._bytes, after, limit)

    # -- Upkeep -------------------------------------------------------------------------------------------------------

    async def raise_floor(self, generation: int) -> None:
        """See :class:`gateway.blobs.places.BlobPlace`."""
        await self._commit(lambda change: change.raise_floor(generation))

    async def sweep(self, sweep: Sweep) -> Swept:
        """See :class:`gateway.blobs.places.BlobPlace`. The last range of a cycle also compacts packs."""
        marks = {mark.digest: mark.replicas for mark in sweep.marks}
        for digests in await self._threaded(blobsweep.files_without_rows, self._index, self._bytes, sweep):
            await self._commit(rules.adopt(self._bytes, digests))
        start, done = sweep.start, Swept()
        while True:
            start, page = await self._commit(rules.judge(self._bytes, sweep, start, marks))
            done += page
            if not start:
                break
        if not sweep.end:
            await self._threaded(blobsweep.compact, self._index, self._bytes)
            await in_thread(_clear, self.path / "tmp")
        return done

    async def drop(self, chunk: Chunk, floor: int) -> bool:
        """See :class:`gateway.blobs.places.BlobPlace`."""
        return await self._commit(rules.drop(self._bytes, chunk, floor))

    async def verify(self, after: bytes, limit_bytes: int) -> Verified:
        """See :class:`gateway.blobs.places.BlobPlace`."""
        verified = await self._threaded(blobsweep.verify, self._index, self._bytes, after, limit_bytes)
        damaged = [chunk for chunk in verified.damaged if await self._commit(rules.note_damage(self._bytes, chunk))]
        return Verified(verified.next, verified.checked, verified.checked_bytes, tuple(damaged))

    async def usage(self) -> Usage:
        """See :class:`gateway.blobs.places.BlobPlace`."""
        return await self._threaded(blobsweep.usage, self._index, self._bytes)

    async def status(self) -> tuple[BlobStatus, ...]:
        """The room on the disk, and what went wrong last if nothing could be written since."""
        try:
            room = await in_thread(os.statvfs, _existing(self.path))
        except OSError as error:
            return (BlobStatus(str(self.path), "down", os.strerror(error.errno or 0)),)
        detail = self._trouble or ("it is read-only" if room.f_flag & os.ST_RDONLY else "")
        free, total = room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize
        return (BlobStatus(str(self.path), "up", detail, free, total),)

    async def close(self) -> None:
        """Wait for what is under way, also of callers that are gone, and end the threads.

        The place opens again at the next use.
        """
        loop = asyncio.get_running_loop()
        preparing = [each for each in self._preparing if each.get_loop() is loop]
        if preparing:
            await asyncio.wait(preparing)
        lanes, self._lanes = self._lanes, None
        if lanes is not None and lanes.is_ours():
            await lanes.close()
        self._bytes.packs.close()
        await in_thread(self._index.close)

    # -- How ----------------------------------------------------------------------------------------------------------

    async def _here(self) -> _Lanes:
        """The lanes of this loop, with everything in place for writing."""
        if not self._ready:
            await self._prepare()
        if self._lanes is None or not self._lanes.is_ours():
            self._lanes = _Lanes(self._index, self._bytes)
        return self._lanes

    async def _prepare(self) -> None:
        """Make the directories; goes on when the caller is cancelled, and :meth:`close` waits for it."""
        preparing = in_thread(self._make)
        self._preparing.add(preparing)
        preparing.add_done_callback(self._preparing.discard)
        await asyncio.shield(preparing)
        self._ready = True

    def _make(self) -> None:
        _prepare(self.path)
        self._index.commit(())  # so that it is made, and takes over what is there, before anything comes in

    @contextmanager
    def _noted(self) -> Iterator[None]:
        """Errors in words, and remembered for the status until something can be written again."""
        try:
            with explained(self.path):
                yield
        except errors.StoreError as error:
            self._trouble = str(error)
            raise
        self._trouble = ""

    async def _threaded(self, function: Callable[..., _T], *arguments: object) -> _T:
        with explained(self.path):
            return await in_thread(function, *arguments)

    async def _commit(self, step: Callable[[Change], _T]) -> _T:
        """Have a step done and committed, with others. Raises what it raised, StoreFull, StoreError."""
        with self._noted():
            answer = await (await self._here()).commits.submit(step)
        return cast("_T", answer)  # of the very step that was submitted

    async def _pack(self, chunk: Chunk, parts: _Parts, generation: int, is_sure: bool) -> bool:
        """Append a chunk to a pack; False if a sweep came between."""
        outcome = await self._append(_Packed(chunk, parts, generation, is_sure))
        if outcome is Outcome.WRONG:
            raise not_that_chunk(chunk)
        if outcome is Outcome.THERE:
            if (await self._look(chunk))[1]:
                return (await self.touch((chunk,), generation=generation))[0]
            outcome = await self._append(_Packed(chunk, parts, generation, True, replace=True))
        return outcome is Outcome.STORED

    async def _append(self, packed: _Packed) -> Outcome:
        with self._noted():
            return await (await self._here()).appends.submit(packed)

    async def _store(self, chunk: Chunk, parts: _Parts, generation: int) -> bool:
        """Have a chunk in a file of its own; False if a sweep came between."""
        with self._noted():
            lanes = await self._here()
        row, good = await self._look(chunk)
        if good and row is not None and (await self.touch((chunk,), generation=generation))[0]:
            return True
        if row is not None and not good:
            await self._commit(rules.distrust(row, generation))
        path = self._bytes.own(chunk.digest)
        with self._noted():
            check_room(self.path, chunk.length)
        temporary = self.path / "tmp" / f"{os.getpid()}-{os.urandom(8).hex()}"
        with self._noted():
            async with created(temporary, partial(_write, parts)) as descriptor:
                await lanes.files.settle(descriptor, temporary, path)
        new = Row(chunk.digest, chunk.length)
        return await self._commit(rules.store(self._bytes, new, generation, True)) is Outcome.STORED

    async def _look(self, chunk: Chunk) -> tuple[Row | None, bool]:
        """The row of a chunk, and whether its bytes are good."""
        return await self._threaded(rules.look, self._bytes, self._index.find, chunk)

    def _read(self, chunk: Chunk) -> bytes | None:
        """A chunk's bytes, None if they are not the chunk's. Raises OSError."""
        own = Row(chunk.digest, chunk.length)
        if chunk.length > self._packed_bytes_max:
            with suppress(FileNotFoundError):
                return self._bytes.read(own)
        before: Row | None = None
        for _ in range(rules.TRIES):
            row = self._index.find(chunk.digest)
            if row is None or row.length != chunk.length or row == before:
                break
            with suppress(FileNotFoundError):  # it may have moved from one pack to another
                return self._bytes.read(row)
            before = row
        return self._bytes.read(own)


class _Lanes:
    """Where operations of one event loop meet to share syncs and commits."""

    def __init__(self, index: Index, place: Bytes) -> None:
        self._index = index
        self._bytes = place
        self._owner = (os.getpid(), asyncio.get_running_loop())
        self._pool = ThreadPoolExecutor(1 + APPENDS_AT_ONCE, thread_name_prefix="objmeta-blobs")
        self.files = GroupSync()
        self.commits: Batches[Callable[[Change], object], object] = Batches(self._commit, STEPS_MAX, 1)
        self.appends: Batches[_Packed, Outcome] = Batches(
            self._append, APPENDED_MAX, APPENDS_AT_ONCE, lambda packed: packed.chunk.length, APPENDED_BYTES_MAX
        )

    def is_ours(self) -> bool:
        """Whether they belong to the running loop and process."""
        return self._owner == (os.getpid(), asyncio.get_running_loop())

    async def close(self) -> None:
        """Wait for what is under way, and end the threads."""
        await self.files.close()
        await self.appends.close()
        await self.commits.close()
        self._pool.shutdown(wait=False)

    async def _commit(self, steps: list[Callable[[Change], object]]) -> list[object | Exception]:
        return await self._owner[1].run_in_executor(self._pool, self._index.commit, steps)

    async def _append(self, batch: list[_Packed]) -> Sequence[Outcome | Exception]:
        return await self._owner[1].run_in_executor(self._pool, self._append_now, batch)

    def _append_now(self, batch: list[_Packed]) -> list[Outcome | Exception]:
        """All that is to be done in one visit to a thread, while the content is in the processor's cache."""
        found = [self._examined(packed) for packed in batch]
        new = [packed for packed, outcome in zip(batch, found, strict=True) if outcome is None]
        try:
            stored = iter(self._stored(new) if new else ())
        except Exception as error:
            stored = iter([error] * len(new))
        return [next(stored) if outcome is None else outcome for outcome in found]

    def _examined(self, packed: _Packed) -> Outcome | Exception | None:
        """None if it is to be appended."""
        if not packed.is_sure and not _are(packed.chunk, packed.parts):
            return Outcome.WRONG
        if packed.replace or packed.chunk.length <= LOOK_FIRST_BYTES_MIN:
            return None
        try:
            return Outcome.THERE if rules.look(self._bytes, self._index.find, packed.chunk)[1] else None
        except (errors.StoreError, OSError) as error:
            return error

    def _stored(self, batch: list[_Packed]) -> Sequence[Outcome | Exception]:
        packs = self._bytes.packs
        pack, offsets = packs.append([(packed.chunk.digest, packed.parts) for packed in batch])
        try:
            return self._index.commit(
                [
                    rules.store(
                        self._bytes,
                        Row(packed.chunk.digest, packed.chunk.length, pack, offset),
                        packed.generation,
                        packed.replace,
                    )
                    for packed, offset in zip(batch, offsets, strict=True)
                ]
            )
        finally:
            packs.settled(pack)


# -- Helpers ----------------------------------------------------------------------------------------------------------


def _are(chunk: Chunk, parts: _Parts) -> bool:
    """Whether parts are a chunk's content."""
    hasher = blake3()
    for part in parts:
        hasher.update(part)
    return hasher.digest() == chunk.digest and sum(map(len, parts)) == chunk.length


def not_that_chunk(chunk: Chunk) -> errors.IntegrityError:
    """What is raised when something else arrives than what was announced."""
    return errors.IntegrityError(f"what arrived is not chunk {chunk.digest.hex()}, and was not stored")


def _write(parts: _Parts, descriptor: int) -> None:
    """Write a new file. Raises OSError."""
    for part in parts:
        rest = memoryview(part)
        while rest:
            rest = rest[os.write(descriptor, rest) :]


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _prepare(path: Path) -> None:
    """Make the directories, durably, and remove what dead processes left (a bounded number)."""
    made = [parent for parent in (path, *path.parents) if not parent.exists()]
    path.mkdir(parents=True, exist_ok=True)
    there = set(os.listdir(path))
    for name in ("tmp", "packs", *(f"{prefix:02x}" for prefix in range(256))):
        if name not in there:
            (path / name).mkdir(exist_ok=True)
    for error in sync_directories((path, *(parent.parent for parent in made))).values():
        raise error
    _clear(path / "tmp")


def _clear(directory: Path) -> None:
    """Remove temporary files that are old and whose writer is gone, or so old that its number must be another's."""
    now = time.time()
    with os.scandir(directory) as entries:
        for _, entry in zip(range(LEFTOVERS_MAX), entries, strict=False):
            with suppress(OSError):
                age_s = now - entry.stat(follow_symlinks=False).st_mtime
                if age_s > LEFTOVER_AGE_MAX_S or (age_s > LEFTOVER_AGE_S and not _alive(entry.name.split("-")[0])):
                    os.unlink(entry.path)


def _alive(process: str) -> bool:
    if not process.isdecimal():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
