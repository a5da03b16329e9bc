"""Operations behind a mount point, by libfuse 3 and the package mfusepy (the optional extra ``mount``).

What the kernel may remember is chosen so that nothing is ever shown wrong: names for a second, sizes and times not at
all, content only while one version of a file is open.  For the last, a handle whose file is open with other content as
well goes past the kernel's pages (``direct_io``), which are kept by name and know no versions.
"""

from __future__ import annotations

import errno
import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from gateway.mount.operations import Operations

DEVICE: Final = Path("/dev/fuse")
NAMES_KEPT_S: Final = 1.0
"""How long the kernel takes a name for known, in seconds."""

_PLAIN: Final = (
    "chmod", "chown", "getxattr", "link", "listxattr", "mkdir", "mknod", "opendir", "readdir", "releasedir",
    "removexattr", "rename", "rmdir", "setxattr", "statfs", "symlink", "unlink", "utimens",
)  # fmt: skip
"""Operations that need nothing of the open file beyond what they get."""
_LIBRARY: Final = "FUSE_LIBRARY_NAME"


def library(device: Path = DEVICE) -> Any:
    """The module mfusepy. Raises OSError (ENOSYS, ENODEV) that says what is missing and how to get it."""
    chosen = any(os.environ.get(name) for name in ("FUSE_LIBRARY_PATH", _LIBRARY))
    try:
        if not chosen:
            os.environ[_LIBRARY] = "fuse3"  # else it takes libfuse 2 where both are
        module = importlib.import_module("mfusepy")
    except ModuleNotFoundError:
        missing = "mounting needs the package mfusepy, which is optional: pip install 'objmeta[mount]'"
        raise OSError(errno.ENOSYS, missing) from None
    except OSError as failure:
        missing = (
            "mounting needs libfuse 3, which is not there: apt-get install fuse3 (Debian, Ubuntu), dnf install fuse3"
        )
        raise OSError(errno.ENOSYS, missing) from failure
    finally:
        if not chosen:
            os.environ.pop(_LIBRARY, None)
    if not device.exists():
        missing = (
            f"there is no {device}, through which directories are mounted: modprobe fuse, or start the container with "
            "--device /dev/fuse --cap-add SYS_ADMIN"
        )
        raise OSError(errno.ENODEV, missing)
    return module


def mount(
    operations: Operations, directory: Path, *, read_only: bool, mounted: Callable[[], None], device: Path = DEVICE
) -> None:
    """Mount, serve until somebody unmounts or a signal (SIGINT, SIGTERM, SIGHUP) comes, and unmount.

    What is being written at that time is waited for.  ``mounted`` is called when the directory can be used.  For the
    main thread only.  Raises OSError, also as :func:`library` does.
    """
    module = library(device)
    bridge = _Bridge(operations, mounted)

    class Fuse(module.FUSE):  # type: ignore[misc, name-defined]
        """The same with what it drops: the flags of rename, without which ``mv -n`` would replace files, and the open
        file of ftruncate."""

        def rename_fuse_3(self, old: bytes, new: bytes, flags: int) -> int:
            operations.rename(os.fsdecode(old), os.fsdecode(new), flags)
            return 0

        def truncate_fuse_3(self, path: bytes | None, length: int, file: Any) -> int:
            number = file.contents.fh if file else None
            return operations.truncate(None if path is None else os.fsdecode(path), length, number)

    options: dict[str, Any] = {"ro": True} if read_only else {}
    try:
        Fuse(
            bridge,
            str(directory),
            raw_fi=True,
            foreground=True,
            fsname="objmeta://",
            subtype="gateway",
            max_idle_threads=10,  # the library's own default, about which it complains
            attr_timeout=0,
            entry_timeout=NAMES_KEPT_S,
            hard_remove=True,  # else a file that is removed while it is open would become one with another name
            **options,
        )
    except RuntimeError as ended:
        # the library reports the end by a signal as it reports failure
        if not bridge.is_mounted:
            why = f"the directory could not be mounted (libfuse said why above; its number is {ended})"
            raise OSError(errno.EIO, why, str(directory)) from ended


class _Bridge:
    """What mfusepy calls: open files come as libfuse's struct, in which it is told what to do with them."""

    use_ns = True
    flag_nopath = True
    flag_nullpath_ok = True

    def __init__(self, operations: Operations, mounted: Callable[[], None]) -> None:
        self._operations = operations
        self._mounted = mounted
        self.is_mounted = False
        for name in _PLAIN:
            setattr(self, name, getattr(operations, name))

    def init(self, path: str) -> None:
        self.is_mounted = True
        self._mounted()

    def getattr(self, path: str | None, file: Any = None) -> dict[str, Any]:
        return self._operations.getattr(path, None if file is None else file.fh)

    def open(self, path: str, file: Any) -> int:
        handle = self._operations.open(path, file.flags)
        file.fh, file.direct_io = handle.number, handle.direct
        return 0

    def create(self, path: str, mode: int, file: Any) -> int:
        handle = self._operations.create(path, mode, file.flags)
        file.fh, file.direct_io = handle.number, handle.direct
        return 0

    def read(self, path: str | None, size: int, offset: int, file: Any) -> bytes:
        return self._operations.read(path, size, offset, file.fh)

    def write(self, path: str | None, data: bytes, offset: int, file: Any) -> int:
        return self._operations.write(path, data, offset, file.fh)

    def truncate(self, path: str | None, length: int) -> int:
        raise NotImplementedError("libfuse 3 has its own way to it")

    def flush(self, path: str | None, file: Any) -> int:
        return self._operations.flush(path, file.fh)

    def fsync(self, path: str | None, data_only: int, file: Any) -> int:
        return self._operations.fsync(path, data_only, file.fh)

    def release(self, path: str | None, file: Any) -> int:
        return self._operations.release(path, file.fh)
