"""What a mounted directory shows: names, sizes, listings, and what else is only looked at."""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from gateway.fs.entries import Name, file_entry
from gateway.fs.filesystem import ObjmetaFileSystem
from gateway.fs.oserrors import oserrors
from gateway.fs.readers import Reader
from gateway.mount.drafts import Draft, Spool
from objmeta import Embedded

BLOCK_BYTES: Final = 1 << 20
"""The size in which reading and writing goes best."""

_T = TypeVar("_T")


@dataclass(slots=True, eq=False)
class Handle:
    """An open file: of a version, or of a draft."""

    number: int
    path: str
    reader: Reader | None = None
    draft: Draft | None = None
    writes: bool = False
    appends: bool = False
    direct: bool = False
    """Whether the kernel must not keep its content, because the same file is open with other content as well."""


class Looking:
    """The part of a mounted directory that only looks.

    ``root`` is what is mounted: "", ``bucket`` or ``bucket/prefix``.
    """

    def __init__(
        self, fs: ObjmetaFileSystem, root: str, spool: Spool, say: Callable[[str], None], *, read_only: bool = False
    ) -> None:
        assert not fs.version_aware, "a part of a name must not be taken for a version"
        self._fs = fs
        self._root = root.strip("/")
        self._spool = spool
        self._say = say
        self._read_only = read_only or fs.as_of is not None
        self._began = time.time()
        self._tables = threading.RLock()
        self._changing_names = threading.RLock()
        self._handles: dict[int, Handle] = {}
        self._directories: dict[int, str] = {}
        self._drafts: dict[str, Draft] = {}
        self._number = 0
        self._told: set[str] = set()
        self.lost = 0
        """How many files could not be stored, and are kept on this machine."""

    # -- Names --------------------------------------------------------------------------------------------------------

    def _name(self, path: str) -> Name:
        bucket, _, key = "/".join(part for part in (self._root, path.strip("/")) if part).partition("/")
        return Name(bucket, key)

    def _changeable(self, path: str) -> Name:
        """The name of something that may be changed. Raises OSError (EROFS, EPERM)."""
        if self._read_only:
            raise OSError(errno.EROFS, "this mount is read only", path)
        name = self._name(path)
        if not name.key:
            raise OSError(errno.EPERM, "directories at the top are buckets, and nothing else can be there", path)
        return name

    def _run(self, coroutine: Coroutine[Any, Any, _T], path: str | None = None) -> _T:
        with oserrors(path):
            return self._fs.wait(self._fs.submit(coroutine))

    def _info(self, path: str) -> dict[str, Any]:
        """The entry of what is in the store. Raises FileNotFoundError."""
        name = self._name(path)
        try:
            found: dict[str, Any] = self._run(self._fs._info(name.path))
        except FileNotFoundError:
            if path == "/" and name.key:  # a prefix is mounted below which there is nothing yet
                return {"name": name.path, "size": 0, "type": "directory"}
            raise
        return found

    def _type(self, path: str) -> str:
        """ "file", "directory", or "" for nothing."""
        with self._tables:
            if path in self._drafts:
                return "file"
        try:
            return str(self._info(path)["type"])
        except FileNotFoundError:
            return ""

    # -- Looking ------------------------------------------------------------------------------------------------------

    def getattr(self, path: str | None, number: int | None = None) -> dict[str, Any]:
        """What stat shows; of an open file, what is open."""
        handle = None
        if number is not None:
            with self._tables:
                handle = self._handles.get(number)
        draft = handle.draft if handle else None
        if handle is None and path is not None:
            with self._tables:
                draft = self._drafts.get(path)
        if draft is not None:
            return self._attributes(False, draft.size, draft.changed_at)
        if handle is not None and handle.reader is not None:
            entry = file_entry(handle.reader.version)
        else:
            entry = self._info(self._path_of(path, number))
        return self._attributes(entry["type"] == "directory", entry["size"], entry.get("mtime", self._began))

    def _attributes(self, is_directory: bool, size: int, mtime: float) -> dict[str, Any]:
        mode = stat.S_IFDIR | 0o755 if is_directory else stat.S_IFREG | 0o644
        ns = int(mtime * 1e9)
        return {
            "st_mode": mode & ~0o222 if self._read_only else mode,
            "st_nlink": 2 if is_directory else 1,
            "st_size": size,
            "st_blocks": -(-size // 512),
            "st_blksize": BLOCK_BYTES,
            "st_uid": os.getuid(),
            "st_gid": os.getgid(),
            "st_atime": ns,
            "st_mtime": ns,
            "st_ctime": ns,
        }

    def opendir(self, path: str) -> int:
        """Begin to read a directory."""
        with self._tables:
            self._number += 1
            self._directories[self._number] = path
            return self._number

    def releasedir(self, path: str | None, number: int) -> int:
        """End it."""
        with self._tables:
            self._directories.pop(number, None)
        return 0

    def _path_of(self, path: str | None, number: int | None) -> str:
        if path is not None:
            return path
        with self._tables:
            found = self._directories.get(number or 0)
        if found is None:
            raise OSError(errno.EBADF, "this is not open")
        return found

    def readdir(self, path: str | None, number: int | None = None) -> Iterable[tuple[str, dict[str, int], int]]:
        """Names with their types. What no file system can show is left out, and said."""
        path = self._path_of(path, number)
        types = self._run(self._entries(self._name(path), path), path)
        below = path.rstrip("/") + "/"
        with self._tables:
            for each in self._drafts:
                if each.startswith(below) and "/" not in each[len(below) :]:
                    types[each[len(below) :]] = stat.S_IFREG
        names = {".": stat.S_IFDIR, "..": stat.S_IFDIR, **types}
        return [(name, {"st_mode": mode}, 0) for name, mode in names.items()]

    async def _entries(self, name: Name, path: str) -> dict[str, int]:
        if not name.bucket:
            return {entry["name"]: stat.S_IFDIR for entry in await self._fs._ls("", detail=True)}
        types: dict[str, int] = {}
        unseen: list[str] = []
        client = (await self._fs.store()).client
        async for item in client.iter_objects(name.bucket, name.prefix, delimiter="/"):
            key = item if isinstance(item, str) else item.key
            if key == name.prefix:
                continue  # the marker of this directory
            last = key[len(name.prefix) :].removesuffix("/" if isinstance(item, str) else "")
            mode = stat.S_IFDIR if isinstance(item, str) else stat.S_IFREG
            if last in ("", ".", "..") or last in types:
                unseen.append(key)
            if last not in ("", ".", ".."):
                types[last] = min(mode, types.get(last, mode), key=lambda each: each == stat.S_IFDIR)
        if unseen and path not in self._told:
            self._told.add(path)
            self._say(f"{name.path}: {len(unseen)} names in it cannot be shown as files, such as {unseen[0]!r}")
        return types

    def statfs(self, path: str) -> dict[str, int]:
        """Room on the disk of an embedded store; else on that of the drafts, by which writing is bounded."""
        location = self._fs.location
        found = os.statvfs(location.path if isinstance(location, Embedded) else self._spool.directory)
        names = ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail")
        return {**{name: getattr(found, name) for name in names}, "f_namemax": 255}
