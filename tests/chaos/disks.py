"""Disks that can be filled up: one per node, below its directory.

Where a process may make mounts of its own (root, or a user namespace; see :func:`private_mounts`), each is a file
system in memory that is shrunk to what it holds: a real ENOSPC.  Elsewhere a running node is forbidden to make its
files any longer (RLIMIT_FSIZE), which it sees as failing writes.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from pathlib import Path
from typing import Final, Protocol

_BYTES: Final = 512 << 20
"""Of a disk in memory; only what is used takes any."""

_FILL_TRIES: Final = 20


class Disk(Protocol):
    """What a node's data is on."""

    def fill(self, pid: int) -> None:
        """Leave no room. ``pid`` is the node's process."""
        ...

    def free(self, pid: int | None) -> None:
        """Make room again. ``pid`` is the node's process if it runs."""
        ...


class MemoryDisk:
    """A file system in memory, at ``path``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.mkdir(parents=True)
        self._mount(f"size={_BYTES}")

    def fill(self, pid: int) -> None:
        """Shrink to what is used."""
        for left in reversed(range(_FILL_TRIES)):
            shown = os.statvfs(self._path)
            used = (shown.f_blocks - shown.f_bfree) * shown.f_frsize
            try:
                self._mount(f"remount,size={max(used, shown.f_frsize)}")
            except subprocess.CalledProcessError:  # the node has written more meanwhile
                if not left:
                    raise
            else:
                return

    def free(self, pid: int | None) -> None:
        """Grow again."""
        self._mount(f"remount,size={_BYTES}")

    def _mount(self, options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self._path)]
        subprocess.run(command, check=True, capture_output=True, text=True)


class LimitedFiles:
    """A directory in which a process may be forbidden to make files longer than its longest one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.mkdir(parents=True)

    def fill(self, pid: int) -> None:
        """Forbid it."""
        sizes = [found.stat().st_size for found in self._path.rglob("*") if found.is_file()]
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (max(sizes, default=0), hard))

    def free(self, pid: int | None) -> None:
        """Allow it; a process that began since was never forbidden anything."""
        if pid is not None:
            _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))


def private_mounts() -> list[str]:
    """The command under which a process may mount file systems that nobody else sees and that end with it.

    Empty if this machine allows none.
    """
    command = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or shutil.which("mount") is None:
        return []
    probe = [*command, "mount", "-t", "tmpfs", "tmpfs", "/tmp"]
    return command if subprocess.run(probe, check=False, capture_output=True).returncode == 0 else []
