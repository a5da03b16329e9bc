"""Bytes of objects, cut into chunks that are named by their BLAKE3: the interface, and the store on a local disk.

Rules of the local store.  A chunk lives in ``<path>/ab/<64 hexadecimal digits>``, ``ab`` being the first two.  It is
written under a temporary name in ``<path>/tmp``, synced, renamed, and its directory synced before anybody hears of it
(``groupsync`` shares these syncs); so a name, once there, has its content, and what a killed process leaves behind is a
temporary file that nobody sees.  A chunk is read as a whole and verified before any byte of it is returned.  Putting
what is already there verifies and keeps it; putting what is there damaged replaces it.  Nothing but the path is state:
any number of processes may use one directory, also after a fork.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Protocol

import msgspec
from blake3 import blake3

from gateway.files import HASH_INLINE_MAX, creating, in_thread, reading, recycle_buffers, update
from gateway.groupsync import GroupSync, sync_directories
from objmeta import Chunk, errors

CHUNK_LENGTH_MAX: Final = 64 << 20
"""The longest chunk anybody may store, in bytes: one is held in memory to be verified."""
LEFTOVER_AGE_S: Final = 900.0
LEFTOVER_AGE_MAX_S: Final = 86_400.0
SWEEP_MAX: Final = 1000

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class ChunkMissing(errors.IntegrityError):
    """A chunk that a manifest names is not where it should be."""


class BlobStatus(msgspec.Struct, frozen=True):
    """One place where chunks live. ``state`` is "up" or "down"; the numbers, in bytes, are 0 if unknown."""

    address: str
    state: str
    detail: str = ""
    disk_free: int = 0
    disk_total: int = 0


class BlobStore(Protocol):
    """Where chunks live. Chunks are immutable and named by their content, so every operation may be repeated."""

    async def put(self, data: bytes) -> Chunk:
        """Store a chunk; durable on return (in a cluster: on a majority of the nodes).

        Raises StoreFull, StoreError, and in a cluster NoQuorum; the chunk may then be on fewer nodes.
        """
        ...

    async def get(self, chunk: Chunk, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes ``start`` to ``stop`` of a chunk, all of which was verified.

        Raises IntegrityError (damaged), ChunkMissing (nowhere), StoreError, and in a cluster Unavailable.
        """
        ...

    async def status(self) -> tuple[BlobStatus, ...]:
        """Who is up, with how much room. Never raises for a place that is down."""
        ...

    async def close(self) -> None:
        """Finish what is under way, within bounds, and release connections and threads."""
        ...


# -- The store on a local disk ----------------------------------------------------------------------------------------


class LocalBlobs:
    """Chunks in a directory of this machine, which is made at the first put."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ready = False
        self._group: tuple[int, asyncio.AbstractEventLoop, GroupSync] | None = None
        self._preparing: set[asyncio.Future[None]] = set()
        recycle_buffers()

    async def put(self, data: bytes) -> Chunk:
        """Store a chunk; durable on return. Raises StoreFull, StoreError."""
        chunk = Chunk(await digest_of(data), len(data))

        async def frames() -> AsyncIterator[bytes]:
            yield data

        await self._store(chunk, frames())
        return chunk

    async def receive(self, chunk: Chunk, frames: AsyncIterator[bytes | memoryview]) -> None:
        """Store a chunk that arrives in pieces; durable on return. All of ``frames`` is taken, also on errors.

        Raises IntegrityError if the pieces are not that chunk, StoreFull, StoreError; nothing is visible then.
        """
        hasher = blake3()
        length = 0

        async def hashed() -> AsyncGenerator[bytes | memoryview, None]:
            nonlocal length
            async for frame in frames:
                length += len(frame)
                if length > chunk.length:
                    continue
                await update(hasher, frame)
                yield frame
            if length != chunk.length or hasher.digest() != chunk.digest:
                raise errors.IntegrityError(f"what arrived is not chunk {chunk.digest.hex()}, and was not stored")

        pieces = hashed()
        try:
            await self._store(chunk, pieces)
        except errors.StoreError:
            async for _ in frames:
                pass
            raise
        finally:
            await pieces.aclose()

    async def get(self, chunk: Chunk, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes ``start`` to ``stop`` of a chunk, all of which was verified.

        Raises IntegrityError (damaged), ChunkMissing, StoreError.
        """
        path = self._path(chunk)
        with _translated(path):
            try:
                data = await in_thread(_read_verified, path, chunk)
            except FileNotFoundError as missing:
                raise ChunkMissing(f"chunk {chunk.digest.hex()} is missing in {self.path}") from missing
        if data is None:
            raise errors.IntegrityError(f"chunk {chunk.digest.hex()} in {self.path} is damaged")
        return data if start == 0 and stop is None else data[start:stop]

    async def status(self) -> tuple[BlobStatus, ...]:
        """The room on the disk."""
        try:
            room = await in_thread(os.statvfs, self.path if self._ready else _existing(self.path))
        except OSError as error:
            return (BlobStatus(str(self.path), "down", os.strerror(error.errno or 0)),)
        return (BlobStatus(str(self.path), "up", "", room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize),)

    async def close(self) -> None:
        """Wait for what is under way, also of callers that are gone, and end the threads.

        The store opens again at the next use.
        """
        loop = asyncio.get_running_loop()
        preparing = [each for each in self._preparing if each.get_loop() is loop]
        if preparing:
            await asyncio.wait(preparing)
        held, self._group = self._group, None
        if held is not None and held[:2] == (os.getpid(), loop):
            await held[2].close()

    def _path(self, chunk: Chunk) -> Path:
        name = chunk.digest.hex()
        return self.path / name[:2] / name

    def _groupsync(self) -> GroupSync:
        owner = (os.getpid(), asyncio.get_running_loop())
        if self._group is None or self._group[:2] != owner:
            self._group = (*owner, GroupSync())
        return self._group[2]

    async def _store(self, chunk: Chunk, frames: AsyncIterator[bytes | memoryview]) -> None:
        path = self._path(chunk)
        with _translated(self.path):
            if not self._ready:
                await self._prepare()
            if await self._keep(chunk, path):
                async for _ in frames:
                    pass
                return
            temporary = self.path / "tmp" / f"{os.getpid()}-{os.urandom(8).hex()}"
            async with creating(temporary) as file:
                async for frame in frames:
                    await file.write(frame)
                await file.flush()
                await self._groupsync().settle(file.fileno(), temporary, path)

    async def _prepare(self) -> None:
        """Make the directories; goes on when the caller is cancelled, and :meth:`close` waits for it."""
        preparing = in_thread(_prepare, self.path)
        self._preparing.add(preparing)
        preparing.add_done_callback(self._preparing.discard)
        await asyncio.shield(preparing)
        self._ready = True

    async def _keep(self, chunk: Chunk, path: Path) -> bool:
        """Whether the chunk is there undamaged; it is then made durable, for whoever put it may not have synced yet."""
        with suppress(OSError):
            async with reading(path) as file:
                data = await file.read(chunk.length + 1)
                if len(data) == chunk.length and await digest_of(data) == chunk.digest:
                    await self._groupsync().settle(file.fileno(), None, path)
                    return True
        return False


# -- Helpers ----------------------------------------------------------------------------------------------------------


def _read_verified(path: Path, chunk: Chunk) -> bytes | None:
    """A chunk's bytes, None if they are not the chunk's.

    One visit to a thread and not four (open, read, hash, close): they take as long as hashing 4 MiB.
    """
    with open(path, "rb", buffering=0) as file:
        data = file.read(chunk.length + 1)
    return data if len(data) == chunk.length and _digest_now(data) == chunk.digest else None


def _digest_now(data: bytes) -> bytes:
    return blake3(data).digest()


async def digest_of(data: bytes) -> bytes:
    return _digest_now(data) if len(data) <= HASH_INLINE_MAX else await in_thread(_digest_now, data)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """OSError becomes StoreFull or StoreError that names the place."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno in _FULL:
            raise errors.StoreFull(f"there is no room for more data in {path}: {reason}") from error
        raise errors.StoreError(f"the data in {path} cannot be used: {reason}") from error


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _prepare(path: Path) -> None:
    """Make the directories, durably, and remove what dead processes left (a bounded number)."""
    made = [parent for parent in (path, *path.parents) if not parent.exists()]
    path.mkdir(parents=True, exist_ok=True)
    there = set(os.listdir(path))
    for name in ("tmp", *(f"{prefix:02x}" for prefix in range(256))):
        if name not in there:
            (path / name).mkdir(exist_ok=True)
    for error in sync_directories((path, *(parent.parent for parent in made))).values():
        raise error
    _sweep(path / "tmp")


def _sweep(directory: Path) -> None:
    """Remove temporary files that are old and whose writer is gone, or so old that its number must be another's."""
    now = time.time()
    with os.scandir(directory) as entries:
        for _, entry in zip(range(SWEEP_MAX), entries, strict=False):
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
