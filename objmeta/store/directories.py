"""What every durable store needs of its directory: that it is local, made durably, and errors put into words."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from objmeta.errors import StoreError, StoreFull

NODE_LOCK: Final = "lock"
"""The file by which a node keeps other processes out of its directory; it is there before anything else is."""
NETWORK_FILE_SYSTEMS: Final = frozenset(
    {
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "coda",
        "davfs",
        "fuse.ceph",
        "fuse.davfs",
        "fuse.gcsfuse",
        "fuse.glusterfs",
        "fuse.goofys",
        "fuse.juicefs",
        "fuse.rclone",
        "fuse.s3fs",
        "fuse.sshfs",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "orangefs",
        "smb3",
        "smbfs",
    }
)


def check_local(directory: Path, mounts: str | None = None) -> None:
    """Raise StoreError if ``directory`` (or where it would be) is on a network file system.

    ``mounts`` is the text of a mount table, by default this process's own; without one nothing is refused.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return
    kind = file_system_of(os.path.realpath(directory), mounts)
    if kind in NETWORK_FILE_SYSTEMS:
        raise StoreError(
            f"{directory} is on a network file system ({kind}), where several users of one store would damage it: "
            "use a local disk, or run nodes (gateway serve) and connect to them"
        )


def file_system_of(path: str, mounts: str) -> str:
    """The type of the file system that ``path`` (absolute, resolved) is on, by the text of /proc/self/mounts."""
    best, kind = -1, ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[1])
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= best:  # of two mounts on one point the later one is seen
            best, kind = len(point), fields[2]
    return kind


def make_directories(directory: Path) -> None:
    """Make ``directory`` and what is missing above it, durably."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for path in reversed(missing):
        sync_directory(path.parent)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep other makers of a store out of ``directory``."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def sync_directory(directory: Path) -> None:
    """Make the names in ``directory`` durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make the content of a file durable; never call it on a file of SQLite that is in use, except its log."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def full(directory: Path) -> StoreFull:
    """The error that says that there is no room."""
    return StoreFull(f"the disk under {directory} is full: free some space and try again")


def explain_os(directory: Path, error: OSError) -> StoreError:
    """What an error of the operating system means and what to do."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return full(directory)
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return StoreError(f"{directory} cannot be the directory of a store, as a file is in the way: name another one")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StoreError(f"the store in {directory} cannot be written ({reason}): check its permissions")
    return StoreError(f"the store in {directory} failed ({reason}): check the disk under it")
