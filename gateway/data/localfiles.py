"""Content of objects as whole files on this machine, for readers that want a path: DuckDB, Polars, mmap.

Chunks lie in packs, many in one file and never at a boundary of the disk's blocks: so no file of the store is an
object, and none can become one by sharing blocks.  A file is therefore put together once, verified while that is done,
and kept in a directory under the name of its content: its BLAKE3, with the ending of the object's key, at which many
programs look.  Whatever has the same content is the same file, in any bucket, version or store.

Rules.
* A file never changes: it is written under another name, synced, made read-only, and linked to its own.
* Who is handed a file is handed a lease: a shared ``flock``, which ends with the object or the process.  Only a file
  without one is ever removed.  (On a file that is open or mapped already a removal has no effect anyway.)
* A file is trusted while its inode, length and times are those under which it was last verified, and that is less than
  ``VERIFIED_S`` ago; else it is read and hashed again, and made anew if it is not what its name says.
* There are at most ``bytes_max`` bytes, or as many as are leased; what was asked for longest ago goes first.
* Nothing ties a file to the object: one that was removed from the store for good may have its file here until there is
  need of the room, or until :meth:`LocalFiles.clear`.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import re
import stat
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self
from weakref import WeakValueDictionary

from blake3 import blake3

from gateway.blobs.files import creating, in_thread
from gateway.blobs.packs import check_room
from objmeta import ObjectVersion, errors

if TYPE_CHECKING:
    from gateway.data.transfer import Store

BYTES_MAX: Final = 16 << 30
VERIFIED_S: Final = 14 * 86_400.0
"""As often as nodes read all that they keep."""
LEFTOVER_AGE_S: Final = 60.0
TRIES: Final = 5
_PART: Final = ".part-"
_SEEN: Final = ".seen-"
_ENDINGS: Final = re.compile(r"(?:\.[A-Za-z0-9]{1,10}){1,2}\Z")


class LocalFile(str):
    """The path of a file with an object's content; ``version`` is which. The file stays while this object does.

    It can be a context manager, or be closed; after that the path may vanish one day, but not what was opened.  Sent to
    another process, it is plain text.
    """

    version: ObjectVersion
    _descriptor: int

    def __new__(cls, path: str, version: ObjectVersion, descriptor: int) -> Self:
        found = super().__new__(cls, path)
        found.version = version
        found._descriptor = descriptor
        return found

    def close(self) -> None:
        """Give the lease back."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)


class LocalFiles:
    """The files in ``directory``, which is made when it is needed. For any number of processes and event loops."""

    def __init__(self, directory: Path, bytes_max: int = BYTES_MAX) -> None:
        self.directory = directory
        self.bytes_max = bytes_max
        self._making: WeakValueDictionary[tuple[asyncio.AbstractEventLoop, str], asyncio.Lock] = WeakValueDictionary()

    async def get(self, store: Store, version: ObjectVersion) -> LocalFile:
        """A version's content as a file. Raises as Store.stream, InvalidArgument if it is too large, and OSError."""
        name = version.etag + _ending(version.key)
        key = (asyncio.get_running_loop(), name)
        making = self._making.get(key)
        if making is None:
            making = self._making[key] = asyncio.Lock()
        async with making:  # two that want one file at a time would make it twice
            made = 0
            for _ in range(TRIES):
                found = await in_thread(self._find, name, version, made)
                if found is not None:
                    return found
                made = await self._make(store, name, version)
        raise errors.StoreError(f"{self.directory / name} was removed again and again while it was made")

    def clear(self) -> int:
        """Remove every file that nobody has a lease on; how many bytes that freed. Raises OSError."""
        freed = 0
        with suppress(FileNotFoundError), os.scandir(self.directory) as entries:
            for entry in [each for each in entries if not each.name.startswith(".")]:
                with suppress(FileNotFoundError):
                    size = entry.stat(follow_symlinks=False).st_size
                    freed += size if self._remove(entry.name) else 0
        return freed

    async def _make(self, store: Store, name: str, version: ObjectVersion) -> int:
        """Put a file together; its inode. If somebody else did meanwhile, nothing has changed."""
        if version.size > self.bytes_max:
            raise errors.InvalidArgument(
                f"{version.bucket}/{version.key} has {version.size} bytes, and files on this machine may have "
                f"{self.bytes_max} together: set local_bytes higher, or read it through open()"
            )
        await in_thread(self._make_room, version.size)
        temporary = self.directory / f"{_PART}{os.urandom(8).hex()}"
        async with creating(temporary) as file:
            descriptor: int = file.fileno()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            await store.write_to(version, file)
            await file.flush()
            return await in_thread(_publish, descriptor, temporary, self.directory / name)

    def _find(self, name: str, version: ObjectVersion, made: int) -> LocalFile | None:
        """A file that is there, leased and verified; ``made`` is the inode of one that was verified just now."""
        path = self.directory / name
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        found = LocalFile(str(path), version, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        status = os.fstat(descriptor)
        if not status.st_nlink:
            return None  # removed while we waited
        seen = self.directory / f"{_SEEN}{name}"
        if status.st_ino != made and self._is_trusted(seen, status):
            with suppress(OSError):
                os.utime(seen)
            return found
        if status.st_ino != made and _digest(descriptor) != version.etag:
            with suppress(FileNotFoundError):
                os.unlink(path)
            return None
        self._note(seen, status)
        return found

    def _is_trusted(self, seen: Path, status: os.stat_result) -> bool:
        with suppress(OSError, ValueError):
            *identity, verified = seen.read_text().split()
            return identity == _identity(status) and 0 <= time.time() - float(verified) < VERIFIED_S
        return False

    def _note(self, seen: Path, status: os.stat_result) -> None:
        """Remember that a file was verified as it is; without room for that it is verified again next time."""
        temporary = self.directory / f"{_PART}{os.urandom(8).hex()}"
        with suppress(OSError):
            temporary.write_text(" ".join((*_identity(status), str(time.time()))))
            os.replace(temporary, seen)

    # -- Room ---------------------------------------------------------------------------------------------------------

    def _make_room(self, wanted: int) -> None:
        """Remove what was asked for longest ago until so many bytes more have room. Raises OSError (ENOSPC)."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        files: list[tuple[float, int, str]] = []
        seen: list[str] = []
        for entry in os.scandir(self.directory):
            with suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                if entry.name.startswith(_PART):
                    if time.time() - status.st_mtime > LEFTOVER_AGE_S:
                        self._remove(entry.name)
                elif entry.name.startswith(_SEEN):
                    seen.append(entry.name)
                elif not entry.name.startswith("."):
                    files.append((self._used(entry.name, status), status.st_size, entry.name))
        there = {name for _, _, name in files}
        for name in (each for each in seen if each.removeprefix(_SEEN) not in there):
            with suppress(FileNotFoundError):
                os.unlink(self.directory / name)
        total = sum(size for _, size, _ in files)
        for _, size, name in sorted(files):
            if total + wanted <= self.bytes_max and self._has_room(wanted):
                break
            if self._remove(name):
                total -= size
        if not self._has_room(wanted):
            raise OSError(errno.ENOSPC, f"there is no room for {wanted} bytes more", str(self.directory))

    def _has_room(self, wanted: int) -> bool:
        with suppress(OSError):
            check_room(self.directory, wanted)
            return True
        return False

    def _used(self, name: str, status: os.stat_result) -> float:
        with suppress(OSError):
            return os.stat(self.directory / f"{_SEEN}{name}").st_mtime
        return status.st_mtime

    def _remove(self, name: str) -> bool:
        """Remove a file unless somebody has a lease on it; whether so."""
        path = self.directory / name
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_ino != os.stat(path).st_ino:
                return False
            os.unlink(path)
            with suppress(FileNotFoundError):
                os.unlink(self.directory / f"{_SEEN}{name}")
        except (BlockingIOError, FileNotFoundError):
            return False
        finally:
            os.close(descriptor)
        return True


def _publish(descriptor: int, temporary: Path, path: Path) -> int:
    os.fchmod(descriptor, stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
    os.fsync(descriptor)
    with suppress(FileExistsError):
        os.link(temporary, path)
    return os.fstat(descriptor).st_ino


def _identity(status: os.stat_result) -> list[str]:
    """What no write to a file leaves as it was: the kernel sets the time of the last change, and nobody else can."""
    return [str(each) for each in (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)]


def _digest(descriptor: int) -> str:
    hasher = blake3()
    with open(descriptor, "rb", closefd=False, buffering=0) as file:
        buffer = memoryview(bytearray(4 << 20))
        while count := file.readinto(buffer):
            hasher.update(buffer[:count])
    return hasher.hexdigest()


def _ending(key: str) -> str:
    """The last one or two endings of a key's name, such as ``.parquet`` or ``.csv.gz``."""
    found = _ENDINGS.search(key.rpartition("/")[2])
    return found[0] if found else ""
