"""Keeping the write-ahead log short without making anybody wait for it.

SQLite's own automatic checkpoint runs inside the commit that crosses a threshold, and that one commit is slow.  Here a
thread of its own copies the log to the database, beside the commits.  The log can begin anew only at a moment when all
of it is copied and nobody reads from it; under load that moment never comes by itself.  So when the log is long and
nearly all copied, the committing thread makes that moment after its commit: it keeps this process's readers out for a
few milliseconds and copies what little is left.  Readers of other processes are not waited for; the next pass tries
again.  The thread sleeps while nothing is written, and has a connection during a pass only: none may be open while the
process forks (``objmeta.forking``).
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable
from typing import Final

from objmeta.forking import tell_of_forks

STEPS_PER_PASS: Final = 2048
"""Steps between two passes: some 20 MiB of log when names are scattered (a page or two each), far less otherwise."""
LOG_PAGES_RESTART: Final = 4096
"""16 MiB: a log that long is brought to its end so that it begins anew."""

_LOG: Final = logging.getLogger(__name__)


class Checkpointer:
    """Copies the log in the background.

    ``connect`` opens a connection for a pass, in its own thread; whoever reads in this process holds ``reading``.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection], reading: threading.Lock) -> None:
        self._connect = connect
        self._reading = reading
        self._steps = 0
        self._due = threading.Event()
        self._closing = False
        self._gap_is_small = False
        self._passing = threading.Lock()
        self._thread: threading.Thread | None = None
        tell_of_forks(self)

    def committed(self, steps: int, cursor: sqlite3.Cursor) -> None:
        """Called by the committing thread after each commit, with its cursor."""
        if self._gap_is_small:
            self._gap_is_small = False
            with self._reading:
                _copy(cursor, "RESTART")
        self._steps += steps
        if self._steps < STEPS_PER_PASS:
            return
        self._steps = 0
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="objmeta-checkpoint", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # the commit is done: a process out of threads must not fail it
                _LOG.warning("no thread for checkpoints, commits copy the log themselves: %s", error)
                return
            self._thread = thread
        self._due.set()

    def truncate(self, cursor: sqlite3.Cursor) -> bool:
        """Copy the whole log and cut it off; False if somebody reads from it or copies it just now.

        The caller keeps out who writes.
        """
        with self._reading:
            busy, _, _ = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy

    def close(self) -> None:
        """End the thread, after the pass it is in."""
        self._closing = True
        self._due.set()
        if self._thread is not None:
            self._thread.join()

    def before_fork(self) -> None:
        """See :class:`objmeta.forking.Forkable`."""
        self._passing.acquire()

    def after_fork(self, in_child: bool) -> None:
        """See :class:`objmeta.forking.Forkable`."""
        self._passing.release()

    def _run(self) -> None:
        while True:
            self._due.wait()
            self._due.clear()
            if self._closing:
                return
            with self._passing:
                self._pass()

    def _pass(self) -> None:
        try:
            connection = self._connect()
        except Exception:
            _LOG.exception("no connection for a checkpoint: it will be tried again")
            return
        cursor = connection.cursor()
        try:
            if _copy(cursor) > LOG_PAGES_RESTART:
                _copy(cursor)  # what came in during the first, long pass
                self._gap_is_small = True
        finally:
            cursor.close()
            connection.close()


def _copy(cursor: sqlite3.Cursor, how: str = "PASSIVE") -> int:
    """Copy what is in the log and not in use; the pages in the log."""
    try:
        _, pages, _ = cursor.execute(f"PRAGMA wal_checkpoint({how})").fetchone()
    except sqlite3.Error as error:  # nothing is lost: the log stays longer, and the next pass tries again
        _LOG.warning("a checkpoint failed and will be tried again: %s", error)
        return 0
    return int(pages)
