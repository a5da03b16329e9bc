"""The index of a place: which chunks it holds, where, and what the collector knows of them. SQLite, for any number of
processes at once.

Rules.

* ``index.db`` is made under a temporary name, with a row for whatever chunks are there already, and renamed, while the
  directory is locked: of several makers exactly one wins. So a directory of the version before there was an index is
  taken over, and an index that was lost is made anew (move a damaged one away). Such rows are touched "at a time not
  known" (0); the first sweep dates them.
* Every change is one ``BEGIN IMMEDIATE`` … ``COMMIT`` that reads, decides and writes; nothing is kept from one to the
  next. Many changes share one (:meth:`Index.commit`), and its sync.
* WAL with ``synchronous=FULL``: a commit shows only after its sync, so readers see only what is durable. What is read
  back from the log of a killed process is synced before it is shown.
* A step does to files what it has to do before it changes the row, both within the transaction: see ``rules``.
* Waiting for other processes is bounded by ``timeout_s``.
* While the process forks no connection is open (``forking``).
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from objmeta import errors
from objmeta.forking import tell_of_forks

INDEX: Final = "index.db"
FORMAT: Final = 1
_APPLICATION_ID: Final = 0x4F424A42  # "OBJB"
_NEW_PREFIX: Final = ".new-"
_IDLE_MAX: Final = 4
_READER_CACHE_KIB: Final = 1 << 10
_WRITER_CACHE_KIB: Final = 8 << 10
_PAUSE_S: Final = (0.0005, 0.002)
"""SQLite's own waiting for a writer has steps of up to 100 ms, and a commit takes one."""
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

_SCHEMA: Final = (
    # newest: the greatest generation that was ever stated here.
    """CREATE TABLE place (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        floor INTEGER NOT NULL,
        newest INTEGER NOT NULL
    )""",
    # pack 0: a file of its own.  unmarked_since: the cycle that first found it unnamed, 0 if the last one found a mark.
    """CREATE TABLE chunks (
        digest BLOB PRIMARY KEY,
        length INTEGER NOT NULL,
        pack INTEGER NOT NULL,
        offset INTEGER NOT NULL,
        touched INTEGER NOT NULL,
        unmarked_since INTEGER NOT NULL,
        replicas INTEGER NOT NULL,
        damaged INTEGER NOT NULL
    ) WITHOUT ROWID""",
    "CREATE INDEX packed ON chunks (pack, offset) WHERE pack != 0",
    "INSERT INTO place VALUES (1, 0, 0)",
)
_COLUMNS: Final = "digest, length, pack, offset, touched, unmarked_since, replicas, damaged"
_SAVE: Final = f"INSERT OR REPLACE INTO chunks ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_FIND: Final = f"SELECT {_COLUMNS} FROM chunks WHERE digest = ?"
_PAGE: Final = f"SELECT {_COLUMNS} FROM chunks WHERE digest >= ? ORDER BY digest LIMIT ?"
_PAGE_TO: Final = f"SELECT {_COLUMNS} FROM chunks WHERE digest >= ? AND digest < ? ORDER BY digest LIMIT ?"

_T = TypeVar("_T")


class Row(NamedTuple):
    """One chunk; the columns of the table."""

    digest: bytes
    length: int
    pack: int = 0
    offset: int = 0
    touched: int = 0
    unmarked_since: int = 0
    replicas: int = 0
    damaged: int = 0


class View:
    """What can be read, in one snapshot."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def find(self, digest: bytes) -> Row | None:
        """The row of a chunk."""
        row = self._connection.execute(_FIND, (digest,)).fetchone()
        return None if row is None else Row._make(row)

    def page(self, start: bytes, end: bytes, limit: int) -> list[Row]:
        """Rows from ``start`` on, below ``end`` unless that is empty, in order of digest."""
        if end:
            return [Row._make(row) for row in self._connection.execute(_PAGE_TO, (start, end, limit))]
        return [Row._make(row) for row in self._connection.execute(_PAGE, (start, limit))]

    def totals(self) -> tuple[int, int, int, int]:
        """Chunks, their bytes, bytes of those in files of their own, damaged ones."""
        row = self._connection.execute(
            "SELECT count(*), total(length), total(length * (pack = 0)), total(damaged) FROM chunks"
        ).fetchone()
        return int(row[0]), int(row[1]), int(row[2]), int(row[3])

    def packed(self, overhead: int) -> dict[int, int]:
        """Bytes that are in use in each pack, where each chunk takes so many more than its length."""
        question = "SELECT pack, sum(length + ?) FROM chunks WHERE pack != 0 GROUP BY pack"
        return dict(self._connection.execute(question, (overhead,)))

    def in_pack(self, pack: int) -> list[Row]:
        """The rows of a pack, in the order of its file."""
        question = f"SELECT {_COLUMNS} FROM chunks WHERE pack = ? AND pack != 0 ORDER BY offset"
        return [Row._make(row) for row in self._connection.execute(question, (pack,))]


class Change(View):
    """A transaction that writes."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__(connection)
        self.floor, self.newest = connection.execute("SELECT floor, newest FROM place").fetchone()

    def save(self, row: Row) -> None:
        """Add a row, or replace it."""
        self._connection.execute(_SAVE, row)

    def remove(self, digest: bytes) -> None:
        """Remove a row."""
        self._connection.execute("DELETE FROM chunks WHERE digest = ?", (digest,))

    def note(self, generation: int) -> None:
        """Remember that a generation was stated."""
        if generation > self.newest:
            self._connection.execute("UPDATE place SET newest = ?", (generation,))
            self.newest = generation

    def raise_floor(self, generation: int) -> None:
        """Refuse lower generations from now on."""
        if generation > self.floor:
            self._connection.execute("UPDATE place SET floor = ?", (generation,))
            self.floor = generation
        self.note(generation)


class Index:
    """The index of the place in ``directory``, made at the first change. Thread-safe; opens again after a close.

    ``adopt`` lists what is in the directory when the index is made.
    """

    def __init__(self, directory: Path, adopt: Callable[[], Iterable[Row]], timeout_s: float) -> None:
        self._directory = directory
        self._path = directory / INDEX
        self._adopt = adopt
        self._timeout_s = timeout_s
        self._gate = _Gate()
        self._writing = threading.Lock()
        self._writer: sqlite3.Connection | None = None
        self._identity = (0, 0)
        self._idle: list[sqlite3.Connection] = []
        self._log_is_synced = False
        tell_of_forks(self)

    def read(self, question: Callable[[View], _T]) -> _T:
        """Ask something, in one snapshot. Raises StoreError, IntegrityError."""
        with self._reading() as connection:
            connection.execute("BEGIN")
            answer = question(View(connection))
            connection.execute("ROLLBACK")
            return answer

    def find(self, digest: bytes) -> Row | None:
        """The row of a chunk. Raises StoreError, IntegrityError."""
        with self._reading() as connection:
            return View(connection).find(digest)

    def commit(self, steps: Sequence[Callable[[Change], _T]]) -> list[_T | Exception]:
        """Do steps one after the other and make them durable together; what each returned, or the error it raised.

        Raises StoreFull, StoreError, IntegrityError when nothing of it was written.
        """
        with self._gate, self._writing, explained(self._directory):
            connection = self._opened()
            _take_turn(connection, self._timeout_s)
            try:
                change = Change(connection)
                results = [_attempted(step, change) for step in steps]
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # after some errors SQLite has ended it itself
                    connection.execute("ROLLBACK")
                raise
            return results

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._gate, explained(self._directory):
            connection, kept = self._reader()
            try:
                yield connection
            except BaseException:
                connection.close()
                raise
            if kept and len(self._idle) < _IDLE_MAX:
                self._idle.append(connection)
            else:
                connection.close()

    def close(self) -> None:
        """Release the files; the next use opens them again."""
        with self._gate, self._writing:
            self._close()

    def before_fork(self) -> None:
        """See :class:`objmeta.forking.Forkable`."""
        self._gate.shut()
        self._close()

    def after_fork(self, in_child: bool) -> None:
        """See :class:`objmeta.forking.Forkable`."""
        if in_child:
            self._gate, self._writing = _Gate(), threading.Lock()
        else:
            self._gate.open()

    def _close(self) -> None:
        connections, self._writer, self._idle = [*self._idle, self._writer], None, []
        self._log_is_synced = False
        for connection in connections:
            if connection is not None:
                connection.close()

    # -- Connections --------------------------------------------------------------------------------------------------

    def _is_there(self) -> bool:
        """Whether there is an index; connections to one that was removed under us are given up."""
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            return False
        if self._identity != (status.st_dev, status.st_ino):
            self._close()
            self._identity = (status.st_dev, status.st_ino)
        return True

    def _opened(self) -> sqlite3.Connection:
        """The connection to write with."""
        if not self._is_there():
            _make(self._directory, self._adopt)
            self._is_there()
        if self._writer is None:
            connection = self._connect("rw", _WRITER_CACHE_KIB)
            connection.execute("PRAGMA busy_timeout = 0")  # _take_turn waits instead
            self._writer = connection
        return self._writer

    def _reader(self) -> tuple[sqlite3.Connection, bool]:
        """A connection to read with, and whether it may be used again."""
        if not self._is_there() and not self._made():
            connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
            for statement in _SCHEMA:
                connection.execute(statement)
            return connection, False
        with suppress(IndexError):
            return self._idle.pop(), True
        try:
            return self._connect("rw", _READER_CACHE_KIB), True
        except sqlite3.OperationalError as error:
            if _primary(error) != sqlite3.SQLITE_CANTOPEN or Path(f"{self._path}-wal").exists():
                raise
            # A directory that cannot be written, and nobody is writing: there is no log, and none can be made.
            return self._connect("ro&immutable=1", _READER_CACHE_KIB), False

    def _made(self) -> bool:
        """Take over what is in the directory, for a reader; False if nothing can be there, or it cannot be written."""
        if not self._directory.is_dir():
            return False
        try:
            _make(self._directory, self._adopt)
        except (OSError, sqlite3.Error):
            return False
        return self._is_there()

    def _connect(self, mode: str, cache_kib: int) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self._path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=self._timeout_s,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if application != _APPLICATION_ID:
                raise errors.StoreError(f"{self._path} is not an index of chunks: name another directory")
            if version != FORMAT:
                raise errors.StoreError(
                    f"{self._path} has format {version}, and this version of objmeta knows format {FORMAT}: use the "
                    "version of objmeta that wrote it, or a newer one"
                )
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA temp_store = MEMORY")
            connection.execute("PRAGMA cell_size_check = ON")
            connection.execute(f"PRAGMA cache_size = -{cache_kib}")
            connection.execute("SELECT floor FROM place").fetchone()
            if not self._log_is_synced:
                _sync_log(self._directory, self._path)
                self._log_is_synced = True
        except BaseException:
            connection.close()
            raise
        return connection


class _Gate:
    """Lets everybody in, except while it is shut; who shuts it waits until nobody is inside."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._inside = 0
        self._shut = False

    def __enter__(self) -> None:
        with self._changed:
            while self._shut:
                self._changed.wait()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    def shut(self) -> None:
        with self._changed:
            self._shut = True
            while self._inside:
                self._changed.wait()

    def open(self) -> None:
        with self._changed:
            self._shut = False
            self._changed.notify_all()


# -- Helpers ----------------------------------------------------------------------------------------------------------


def _attempted(step: Callable[[Change], _T], change: Change) -> _T | Exception:
    """A step's answer, or the error that is its own and no matter of the others'."""
    try:
        return step(change)
    except (errors.ObjmetaError, OSError) as error:
        return error


def _take_turn(connection: sqlite3.Connection, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            connection.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError as error:
            if _primary(error) != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
        time.sleep(random.uniform(*_PAUSE_S))


def _make(directory: Path, adopt: Callable[[], Iterable[Row]]) -> None:
    """Make the index, with what is there already; nothing if somebody else has."""
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (directory / INDEX).exists():
            return
        for leftover in directory.glob(f"{_NEW_PREFIX}*"):
            leftover.unlink()
        new = directory / f"{_NEW_PREFIX}{secrets.token_hex(8)}"
        try:
            with closing(sqlite3.connect(new, isolation_level=None)) as connection:
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("BEGIN")
                connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {FORMAT}")
                for statement in _SCHEMA:
                    connection.execute(statement)
                connection.executemany(_SAVE, adopt())
                connection.execute("COMMIT")
                connection.execute("PRAGMA journal_mode = WAL")
            _sync(new)
            new.rename(directory / INDEX)
        except BaseException:
            for part in directory.glob(f"{new.name}*"):
                with suppress(OSError):
                    part.unlink()
            raise
        os.fsync(lock)
    finally:
        os.close(lock)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_log(directory: Path, database: Path) -> None:
    """Make the log durable, and its name: what recovery read from it may have been on its way to the disk only.

    Of SQLite's files only the log may be opened by others in this process: closing another drops SQLite's locks.
    """
    log = Path(f"{database}-wal")
    try:
        if log.stat().st_size:
            _sync(log)
        _sync(directory)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.EROFS:  # then nothing is on its way to the disk
            raise


@contextmanager
def explained(directory: Path) -> Iterator[None]:
    """Turn errors of SQLite and of the operating system into ours, naming the place."""
    try:
        yield
    except sqlite3.Error as error:
        raise _explain(directory, error) from error
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno in _FULL:
            raise errors.StoreFull(f"there is no room for more data in {directory}: {reason}") from error
        raise errors.StoreError(f"the data in {directory} cannot be used: {reason}") from error


def _explain(directory: Path, error: sqlite3.Error) -> errors.StoreError:
    code = _primary(error)
    if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and _is_full(directory)):
        return errors.StoreFull(f"there is no room for more data in {directory}")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return errors.IntegrityError(
            f"the index {directory / INDEX} is damaged ({error}): move it and its -wal and -shm files away while "
            "nobody uses the store, and it is made anew from the chunks that are there"
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return errors.StoreError(f"another process keeps the index in {directory} locked: end it or let it go on")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN):
        return errors.StoreError(f"the data in {directory} cannot be changed ({error}): check its permissions")
    return errors.StoreError(f"the index in {directory} failed ({error}): check the disk under it")


def _primary(error: sqlite3.Error) -> int:
    return (getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF


def _is_full(directory: Path) -> bool:
    """Whether writing fails for lack of room; SQLite reports limits and quotas as plain I/O errors."""
    probe = directory / f"{_NEW_PREFIX}{secrets.token_hex(8)}"
    try:
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(descriptor, bytes(64 << 10))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
            probe.unlink()
    except OSError as error:
        return error.errno in _FULL
    return False
