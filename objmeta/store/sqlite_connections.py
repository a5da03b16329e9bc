"""A process's connections to one SQLite store, and whose turn it is on them.

Rules.

* One connection writes, one reads; who writes takes turns, who reads takes turns, and the two do not wait for each
  other.  Whoever wants both turns takes the writer's first.
* While the process forks none is open (``objmeta.forking``): the fork waits for the turns that are under way, at most
  as long as these wait for other processes.  The next turn opens the files again.
* In the child the store is refused.  Should a C library fork without saying so before, the child inherits connections:
  these are never closed there, as that would reach into the log that the parent is using.
"""

from __future__ import annotations

import ctypes
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from objmeta import forking
from objmeta.errors import ForkedClient, StoreError
from objmeta.store import sqlite_files as files
from objmeta.store.checkpoints import Checkpointer
from objmeta.store.directories import sync_directory

_WRITER_CACHE_KIB: Final = 32 << 10
_READER_CACHE_KIB: Final = 8 << 10
_CHECKPOINT_CACHE_KIB: Final = 1 << 10
_LOG_PAGES_BACKSTOP: Final = 16_384
"""64 MiB: should the checkpoint thread fall behind or fail, commits copy the log themselves."""


class Connections:
    """Opened by the first turn of each kind; kept alive by a count of its own until it is closed, so that no collector
    closes what a turn has open, or what a child inherited."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._pid = os.getpid()
        self._closed = False
        self._writing = threading.Lock()
        self._reading = threading.Lock()
        self._writer: sqlite3.Cursor | None = None
        self._reader: sqlite3.Cursor | None = None
        self._log_is_named = False
        self.checkpointer = Checkpointer(
            lambda: files.connect(directory, cache_kib=_CHECKPOINT_CACHE_KIB), self._reading
        )
        forking.tell_of_forks(self)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Cursor]:
        """A turn on the connection that writes. Raises StoreError, ForkedClient, IntegrityError; sqlite3.Error."""
        self._check_process()
        with self._writing:
            if self._writer is None:
                writer = self._open(_WRITER_CACHE_KIB, read_only=False)
                writer.execute("PRAGMA busy_timeout = 0")  # the store waits for other processes in its own way
                writer.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES_BACKSTOP}")
                self._writer, self._log_is_named = writer, False
            if not self._log_is_named:  # SQLite does this only on the connection that made the log
                sync_directory(self._directory)
                self._log_is_named = True
            yield self._writer

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Cursor]:
        """A turn on the connection that reads. Raises as :meth:`writing`."""
        self._check_process()
        with self._reading:
            if self._reader is None:
                self._reader = self._open(_READER_CACHE_KIB, read_only=True)
            yield self._reader

    def close(self) -> None:
        """Release the files, after the turns under way. Idempotent; does nothing in a forked child."""
        if os.getpid() != self._pid:
            return
        self.checkpointer.close()
        with self._writing, self._reading:
            if self._closed:
                return
            self._closed = True
            self._close()
        ctypes.pythonapi.Py_DecRef(ctypes.py_object(self))

    def before_fork(self) -> None:
        """See :class:`objmeta.forking.Forkable`."""
        self._writing.acquire()
        self._reading.acquire()
        with suppress(sqlite3.Error):
            self._close()

    def after_fork(self, in_child: bool) -> None:
        """See :class:`objmeta.forking.Forkable`."""
        self._reading.release()
        self._writing.release()

    def _open(self, cache_kib: int, *, read_only: bool) -> sqlite3.Cursor:
        if self._closed:
            raise StoreError(f"the store in {self._directory} is closed: open it again")
        connection = files.connect(self._directory, cache_kib=cache_kib, read_only=read_only)
        try:
            files.sync_log(self._directory)
        except BaseException:
            connection.close()
            raise
        return connection.cursor()

    def _close(self) -> None:
        cursors, self._reader, self._writer = (self._reader, self._writer), None, None
        for cursor in cursors:
            if cursor is not None:
                cursor.close()  # a cursor keeps its statement, and a statement the database open
                cursor.connection.close()

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise ForkedClient(
                f"the store in {self._directory} was opened by the parent process: open it again in the forked child"
            )
