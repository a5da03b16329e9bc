"""The log beside a catalog is written into the file once the answer is there, so that no query waits for it.

Rules.
* A checkpoint loses and gains nothing: what is in the log is part of the catalog.  So where the catalog is in use, or
  the disk is full, none is made, and a later query sees to it.
* One at a time in a process, in a thread that the process waits for at its end and before it forks.  A query of the
  same process waits for it, as it would for another process's (``kept``), and so does whoever removes the file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from pathlib import Path
from typing import Final

import duckdb

from objmeta.forking import tell_of_forks

_LOG_BYTES: Final = 64 << 10
"""A log no longer than this costs the next query less than a millisecond."""


class _Checkpoints:
    """Those of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: threading.Thread | None = None
        tell_of_forks(self)

    def begin(self, path: Path, log: Path, lock: Path) -> None:
        """Make one of the catalog ``path`` in another thread, if it is worth it and ``lock`` can be had at once.

        Waits for nothing: Python may call it anywhere, when it lets go of a query that was dropped.
        """
        with contextlib.suppress(OSError, RuntimeError):  # no log; no thread can be started, or the process ends
            if os.stat(log).st_size < _LOG_BYTES or not self._lock.acquire(blocking=False):
                return
            try:
                if self._under_way is None or not self._under_way.is_alive():
                    thread = threading.Thread(target=_make, args=(path, lock), name="objmeta-checkpoint")
                    thread.start()
                    self._under_way = thread
            finally:
                self._lock.release()

    def wait(self) -> None:
        """Wait for the one that is under way."""
        with self._lock:
            self._end()

    def before_fork(self) -> None:
        """Wait for it: DuckDB does not survive a fork."""
        self._lock.acquire()
        self._end()

    def after_fork(self, in_child: bool) -> None:
        """Go on."""
        self._lock.release()

    def _end(self) -> None:
        if self._under_way is not None:
            self._under_way.join()
            self._under_way = None


_CHECKPOINTS: Final = _Checkpoints()
begin: Final = _CHECKPOINTS.begin
wait: Final = _CHECKPOINTS.wait


def _make(path: Path, lock: Path) -> None:
    with contextlib.ExitStack() as held, contextlib.suppress(OSError, duckdb.Error):
        mine = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
        held.callback(os.close, mine)
        fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
        database = held.enter_context(duckdb.connect(config={"temp_directory": ""}))
        if path.exists():  # else DuckDB would make it
            database.execute("ATTACH ? AS kept", [str(path)])
            database.execute("CHECKPOINT kept")
