"""What is written to a file before it is a version: a temporary file on this machine.

Rules.
* All who write to one file through one mount share its draft, and who opens it for reading meanwhile sees the draft.
* Publishing makes one version of the draft, whole.  ``Terms`` say on what condition: a file that was opened to be
  changed must still be what it was, one that was created exclusively must still be missing, and one that was
  truncated replaces whatever is there.  After that the condition is the version that was made.
* A draft that could not be published is not thrown away: it is moved to a place that the user is told.
* Drafts lie in a directory of their own mount.  Of a mount that was killed they stay there, and the next one says so.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from gateway.fs.conditions import Terms
from gateway.fs.entries import Name

_PREFIX: Final = "mount-"
_LOCK: Final = "lock"
_NAME_BYTES: Final = 100


class Draft:
    """The content of one file while somebody has it open for writing. Change it only while holding ``lock``."""

    def __init__(self, name: Name, file: Path) -> None:
        self.name = name
        self.file = file
        """Where the bytes lie."""
        self.lock = threading.RLock()
        self.users = 0
        """Open handles; this and the next are guarded by whoever has the table of drafts."""
        self.writers = 0
        """Those of them that were opened for writing."""
        self.terms = Terms()
        self.exclusive = False
        """Whether it was made on condition that there is no such file, and its maker waits to hear so."""
        self.changed = False
        """Whether there is something to publish."""
        self.blank = False
        """Whether it is empty and nothing was written since it was made or cut."""
        self.gone = False
        """Whether the file was removed or replaced: then there is nothing to publish any more."""
        self.failure: OSError | None = None
        """Why the last attempt to publish failed, or the draft could not be made."""
        self.changed_at = time.time()
        self._fd = -1

    def open(self) -> None:
        """Open the temporary file; it is made if it is missing."""
        self._fd = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @property
    def size(self) -> int:
        """Bytes. While the content is being fetched, that is waited for."""
        if self._fd < 0:
            with self.lock:
                return os.fstat(self._fd).st_size if self._fd >= 0 else 0
        return os.fstat(self._fd).st_size

    def read(self, size: int, offset: int) -> bytes:
        """At most ``size`` bytes from ``offset`` on; fewer only at the end."""
        return os.pread(self._fd, size, offset)

    def write(self, data: bytes, offset: int | None) -> int:
        """Write all of ``data``, at the end if there is no ``offset``. Raises OSError (ENOSPC, …)."""
        with self.lock:
            at = self.size if offset is None else offset
            left = memoryview(data)
            while left:
                self._touched(blank=False)
                written = os.pwrite(self._fd, left, at)
                left, at = left[written:], at + written
        return len(data)

    def truncate(self, length: int) -> None:
        """Cut, or fill up with zeros."""
        with self.lock:
            self._touched(blank=not length)
            os.ftruncate(self._fd, length)

    def _touched(self, blank: bool) -> None:
        self.changed, self.blank, self.failure, self.changed_at = True, blank, None, time.time()

    def close(self) -> None:
        """Close the temporary file and remove it, if it is still there."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self.file.unlink(missing_ok=True)


class Spool:
    """The directory in which the drafts of one mount lie, below ``root``."""

    def __init__(self, root: Path, say: Callable[[str], None]) -> None:
        self._root = root
        self._say = say
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._look_for_leftovers()
        made = Path(tempfile.mkdtemp(prefix="new-", dir=root))
        self._lock = os.open(made / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.directory = made.rename(root / made.name.replace("new-", _PREFIX, 1))  # only now is it seen by others

    def _look_for_leftovers(self) -> None:
        for directory in sorted(self._root.glob(f"{_PREFIX}*")):
            try:
                lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CLOEXEC)
            except OSError:
                continue  # it is being made or removed
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue  # its mount is alive
            else:
                files = [each for each in directory.iterdir() if each.name != _LOCK]
                if files:
                    self._say(f"an earlier mount was killed; files that it had not stored are in {directory}")
                else:
                    shutil.rmtree(directory, ignore_errors=True)
            finally:
                os.close(lock)

    def draft(self, name: Name) -> Draft:
        """A new draft; its file is not there yet."""
        return Draft(name, self.directory / f"{secrets.token_hex(4)}-{_last_part(name)}")

    def keep(self, draft: Draft) -> Path:
        """Move what is in a draft to where it stays; the place."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        kept = self._root / f"kept-{stamp}-{draft.file.name}"
        os.rename(draft.file, kept)
        return kept

    def close(self) -> None:
        """Remove the directory."""
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1
        shutil.rmtree(self.directory, ignore_errors=True)


def _last_part(name: Name) -> str:
    return name.key.rpartition("/")[2].encode(errors="replace")[:_NAME_BYTES].decode(errors="ignore")
