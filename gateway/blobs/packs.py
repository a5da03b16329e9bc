"""Packs: files that hold many small chunks one after the other, so that many of them share a sync and an inode.

Rules.

* Before each chunk stands a header (mark, length, BLAKE3), so a pack proves its content, and an index that was lost can
  be made anew. What lies between is what a killed or failed append left; nobody points there.
* Only who holds a pack's lock (``flock``, which ends with the process) appends to it, and holds it until the rows of
  what was appended are committed, or will never be. So whoever gets the lock and finds no row of the pack knows that
  there will be none, and may remove it.
* Each append has a pack to itself: while one syncs, the next is written to another pack of this process.
* What fails takes nothing with it: an append that fails is cut off again, and a pack whose sync failed is not used
  again by this process (the kernel may have dropped its pages).
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from gateway.blobs.places import CHUNK_LENGTH_MAX, digest_now
from objmeta.forking import tell_of_forks

PACKED_BYTES_MAX: Final = 4 << 20
"""Longer chunks, which no upload makes, have files of their own (decision 11)."""
PARTS_MAX: Final = 8
"""Of a chunk that is appended in parts: the system takes 1024 at once."""
PACK_BYTES_MAX: Final = 64 << 20
"""A pack that is longer is closed. Compaction copies at most half of one at a time."""
RESERVE_BYTES_MAX: Final = 32 << 20
_RESERVE_SHARE: Final = 16
HEADER: Final = struct.Struct(">4sI32s")
_MARK: Final = b"\x8fOC1"
_ENDING: Final = ".pack"
_ID_BYTES: Final = 7
"""Of random numbers no two are the same; SQLite's have 63 bits."""


class _Open:
    """A pack that this process appends to. ``pending``: appends whose rows are not settled yet."""

    def __init__(self, pack: int, descriptor: int) -> None:
        self.pack = pack
        self.descriptor = descriptor
        self.pending = 0
        self.retired = False


class Packs:
    """The packs in a directory. Thread-safe; after a fork the child takes packs of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._directory = f"{directory}{os.sep}"
        self._lock = threading.Lock()
        self._free: list[_Open] = []
        self._open: dict[int, _Open] = {}
        self._shunned: set[int] = set()
        tell_of_forks(self)

    def path(self, pack: int) -> Path:
        """The file of a pack."""
        return Path(self._name(pack))

    def _name(self, pack: int) -> str:
        return f"{self._directory}{pack:0{2 * _ID_BYTES}x}{_ENDING}"

    def sizes(self) -> dict[int, int]:
        """The packs there are, and the lengths of their files. Raises OSError."""
        found: dict[int, int] = {}
        with suppress(FileNotFoundError), os.scandir(self.directory) as entries:
            for entry in entries:
                if entry.name.endswith(_ENDING):
                    with suppress(FileNotFoundError, ValueError):
                        found[int(entry.name.removesuffix(_ENDING), 16)] = entry.stat().st_size
        return found

    def append(
        self, chunks: Sequence[tuple[bytes, Sequence[bytes | memoryview]]], *, to_free: bool = False
    ) -> tuple[int, list[int]]:
        """Append chunks (digest, and content in at most ``PARTS_MAX`` parts), durably.

        The pack, and where in it each content begins.  ``to_free``: what comes of it is more room, so it may use what
        is kept for that, and it goes to no pack of before, which may be the next to be emptied.
        Say :meth:`settled` when their rows are committed, or will not be.  Raises OSError; nothing was appended then.
        """
        with self._lock:
            pack = self._taken(to_free)
            pack.pending += 1
        is_usable = False
        try:
            offsets: list[int] = []
            parts: list[bytes | memoryview] = []
            size = position = os.fstat(pack.descriptor).st_size
            if not to_free:
                check_room(pack.descriptor, sum(len(part) for _, content in chunks for part in content))
            for digest, content in chunks:
                length = sum(map(len, content))
                parts += (HEADER.pack(_MARK, length, digest), *content)
                offsets.append(position + HEADER.size)
                position += HEADER.size + length
            try:
                _write(pack.descriptor, parts, size)
            except OSError:
                os.ftruncate(pack.descriptor, size)
                is_usable = True
                raise
            try:
                os.fdatasync(pack.descriptor)
            except OSError:
                self._give_up(pack, size)
                raise
            is_usable = position < PACK_BYTES_MAX
        except BaseException:
            with self._lock:
                pack.pending -= 1
            raise
        finally:
            with self._lock:
                if is_usable:
                    self._free.append(pack)
                else:
                    self._retire(pack)
        return pack.pack, offsets

    def settled(self, pack: int) -> None:
        """The rows of one append are committed, or will never be."""
        with self._lock:
            held = self._open.get(pack)
            if held is not None:
                held.pending -= 1
                self._release(held)

    def read(self, pack: int, offset: int, length: int) -> bytes:
        """Content, as it is there. Raises OSError (FileNotFoundError: the pack is gone)."""
        descriptor = os.open(self._name(pack), os.O_RDONLY)
        try:
            return os.pread(descriptor, length, offset)
        finally:
            os.close(descriptor)

    def scan(self, pack: int) -> Iterator[tuple[bytes, int, int]]:
        """Digest, length and offset of each whole chunk in a pack, dead ones too. Raises OSError."""
        data = self.path(pack).read_bytes()
        position = 0
        while (position := data.find(_MARK, position)) >= 0:
            start = position + HEADER.size
            if start > len(data):
                return
            _, length, digest = HEADER.unpack_from(data, position)
            if length <= CHUNK_LENGTH_MAX and digest_now(memoryview(data)[start : start + length]) == digest:
                yield digest, length, start
                position = start + length
            else:
                position += 1

    @contextmanager
    def locked(self, pack: int) -> Iterator[bool]:
        """Hold the lock of a pack, if nobody does; whether so."""
        try:
            descriptor = os.open(self.path(pack), os.O_RDONLY)
        except FileNotFoundError:
            yield False
            return
        try:
            yield _lock(descriptor)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Let go of packs, once what was appended is settled."""
        with self._lock:
            for pack in list(self._free):
                self._retire(pack)

    def before_fork(self) -> None:
        """See :class:`objmeta.forking.Forkable`."""
        self._lock.acquire()

    def after_fork(self, in_child: bool) -> None:
        """See :class:`objmeta.forking.Forkable`. The locks stay the parent's: closing does not give them up."""
        if in_child:
            for held in self._open.values():
                os.close(held.descriptor)
            self._open.clear()
            self._free.clear()
        self._lock.release()

    def _taken(self, fresh: bool) -> _Open:
        """A pack to append to, for the caller alone: this process's own, one that nobody uses, or a new one."""
        while self._free:
            pack = self._free.pop()
            if os.fstat(pack.descriptor).st_nlink:
                return pack
            self._retire(pack)
        for number, size in self.sizes().items() if not fresh else ():
            is_ours = number in self._shunned or number in self._open
            if size < PACK_BYTES_MAX and not is_ours and (taken := self._take(number)) is not None:
                return taken
        while (made := self._take(secrets.randbits(8 * _ID_BYTES) or 1, os.O_CREAT | os.O_EXCL)) is None:
            pass
        return made

    def _take(self, pack: int, flags: int = 0) -> _Open | None:
        try:
            descriptor = os.open(self.path(pack), os.O_RDWR | flags, 0o600)
        except (FileNotFoundError, PermissionError):
            if flags:
                raise  # no new one can be made
            return None
        try:
            taken = _lock(descriptor) and os.fstat(descriptor).st_nlink > 0
            if taken and flags:
                directory = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    os.fsync(directory)
                finally:
                    os.close(directory)
        except BaseException:
            os.close(descriptor)
            raise
        if not taken:
            os.close(descriptor)
            return None
        found = self._open[pack] = _Open(pack, descriptor)
        return found

    def _give_up(self, pack: _Open, size: int) -> None:
        """A sync failed: cut off what it was to make durable, and leave the pack alone."""
        self._shunned.add(pack.pack)
        with suppress(OSError):
            os.ftruncate(pack.descriptor, size)
            if not size:
                os.unlink(self.path(pack.pack))

    def _retire(self, pack: _Open) -> None:
        pack.retired = True
        if pack in self._free:
            self._free.remove(pack)
        self._release(pack)

    def _release(self, pack: _Open) -> None:
        if pack.retired and not pack.pending and self._open.pop(pack.pack, None) is not None:
            os.close(pack.descriptor)


def check_room(where: int | Path, length: int) -> None:
    """Raise OSError (ENOSPC) if so many bytes more would leave less than is kept for the index on a disk.

    Deleting has to write to the index before it frees anything, so a place that fills the disk to the last byte could
    not be collected any more.
    """
    room = os.statvfs(where)
    reserve = min(RESERVE_BYTES_MAX, room.f_blocks * room.f_frsize // _RESERVE_SHARE)
    if room.f_bavail * room.f_frsize < length + reserve:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write(descriptor: int, parts: list[bytes | memoryview], offset: int) -> None:
    done = os.pwritev(descriptor, parts, offset)
    if done == sum(map(len, parts)):
        return
    view, offset = memoryview(b"".join(parts))[done:], offset + done
    while view:
        written = os.pwrite(descriptor, view, offset)
        view = view[written:]
        offset += written
