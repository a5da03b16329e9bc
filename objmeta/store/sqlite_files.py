"""The files of a SQLite store: made atomically, opened with care, and errors put into words.

Rules.

* A store is one directory with one database.  It is made under a temporary name, synced and renamed while the directory
  is locked, so that of several makers exactly one wins and a crash leaves no half-made store.
* Opening never makes anything.  What was read back from the log of a killed process is synced before it is shown: it
  may have been on its way to the disk only.
* In this process nobody but SQLite may open the database or its ``-shm`` file: closing either would drop SQLite's
  locks (POSIX record locks belong to the process).  The ``-wal`` file carries no locks.
* A network file system is refused (``directories``): the log needs memory shared by all users of the files.
"""

from __future__ import annotations

import errno
import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import msgspec

from objmeta.core.ballot import ZERO
from objmeta.core.configuration import Configuration, Membership
from objmeta.errors import IntegrityError, StoreError
from objmeta.forking import no_fork
from objmeta.store.checksums import store_sum
from objmeta.store.directories import (
    NODE_LOCK,
    check_local,
    explain_os,
    full,
    locked,
    make_directories,
    sync_directory,
    sync_file,
)

DATABASE_NAME: Final = "acceptor.db"
_ROCKSDB_NAME: Final = "rocksdb"
BUSY_TIMEOUT_S: Final = 30.0
"""How long a step waits for other processes: a commit takes milliseconds, so only a stopped process takes this long."""
SCHEMA_VERSION: Final = 2
_APPLICATION_ID: Final = 0x4F424A4D  # "OBJM"
_PAGE_BYTES: Final = 4096
_NEW_PREFIX: Final = ".new-"
_PROBE_BYTES: Final = 64 << 10

_SCHEMA: Final = (
    """CREATE TABLE store (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        acceptor_id INTEGER NOT NULL,
        membership BLOB NOT NULL,
        generation_floor INTEGER NOT NULL,
        greatest_ballot BLOB NOT NULL,
        checksum INTEGER NOT NULL
    )""",
    """CREATE TABLE floors (
        scope BLOB PRIMARY KEY,
        term INTEGER NOT NULL,
        ballot BLOB NOT NULL,
        sequence INTEGER NOT NULL,
        checksum INTEGER NOT NULL
    ) WITHOUT ROWID""",
    # What does not prove itself (a record does, by the digest that names it) has a checksum, see ``checksums``.
    # accepted, flag and state are NULL where there is only a promise.
    """CREATE TABLE registers (
        name BLOB PRIMARY KEY,
        promised BLOB NOT NULL,
        accepted BLOB,
        flag INTEGER,
        whole INTEGER NOT NULL,
        state BLOB,
        checksum BLOB NOT NULL
    ) WITHOUT ROWID""",
    # Data lives apart, so that scans pass it by and big rows do not spread the names over more pages.
    """CREATE TABLE records (
        name BLOB NOT NULL,
        version_id BLOB NOT NULL,
        sequence INTEGER NOT NULL,
        digest BLOB NOT NULL,
        parent BLOB NOT NULL,
        body BLOB NOT NULL,
        data_number INTEGER,
        PRIMARY KEY (name, version_id, sequence, digest)
    ) WITHOUT ROWID""",
    "CREATE TABLE data (number INTEGER PRIMARY KEY, bytes BLOB NOT NULL)",
    "CREATE TABLE changes (number INTEGER PRIMARY KEY, name BLOB NOT NULL, checksum INTEGER NOT NULL)",
)


def database_path(directory: Path) -> Path:
    """Where the database of the store in ``directory`` is."""
    return directory / DATABASE_NAME


def make(
    directory: Path, acceptor_id: int, configuration: Configuration, addresses: tuple[tuple[int, str], ...] = ()
) -> bool:
    """Make the store in ``directory``; False if there is one already. Raises StoreError, StoreFull."""
    check_local(directory)
    with explained(directory):
        _check_not_a_node(directory)
        make_directories(directory)
        with locked(directory):
            if database_path(directory).exists():
                return False
            _check_not_a_node(directory)
            for leftover in directory.glob(f"{_NEW_PREFIX}*"):
                leftover.unlink()
            new = directory / f"{_NEW_PREFIX}{secrets.token_hex(8)}"
            try:
                _write_new(new, acceptor_id, Membership(configuration, addresses))
                new.rename(database_path(directory))
            except BaseException:
                for part in directory.glob(f"{new.name}*"):
                    part.unlink()
                raise
            sync_directory(directory)
            return True


def _check_not_a_node(directory: Path) -> None:
    """A node would not start again with another store beside its own, nor join one by a store it did not make."""
    if (directory / _ROCKSDB_NAME).exists() or (directory.parent / NODE_LOCK).exists():
        raise StoreError(
            f"{directory.parent} is the directory of a node: name the node by host:port instead, or another directory"
        )


def _write_new(path: Path, acceptor_id: int, membership: Membership) -> None:
    with no_fork(), closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("BEGIN")
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        for statement in _SCHEMA:
            connection.execute(statement)
        content = (acceptor_id, msgspec.msgpack.encode(membership), 0, ZERO.pack())
        connection.execute("INSERT INTO store VALUES (1, ?, ?, ?, ?, ?)", (*content, store_sum(*content)))
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = WAL")
    sync_file(path)


def connect(directory: Path, *, cache_kib: int, read_only: bool = False) -> sqlite3.Connection:
    """A connection to the store in ``directory``, checked to be one. Raises StoreError, IntegrityError."""
    path = database_path(directory)
    with explained(directory):
        if not path.is_file():
            if directory.exists() and not directory.is_dir():
                raise StoreError(f"{directory} is a file, not the directory of a store: name a directory")
            raise StoreError(f"there is no store in {directory}: name another directory, or make a store there first")
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=rw",
            uri=True,
            timeout=BUSY_TIMEOUT_S,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            _prepare(connection, directory, cache_kib, read_only)
        except BaseException:
            connection.close()
            raise
    return connection


def _prepare(connection: sqlite3.Connection, directory: Path, cache_kib: int, read_only: bool) -> None:
    def ask(pragma: str) -> object:
        row = connection.execute(f"PRAGMA {pragma}").fetchone()
        return row[0] if row else None

    if ask("application_id") != _APPLICATION_ID:
        path = database_path(directory)
        raise StoreError(f"{path} is a database, but not a store of objmeta: name another directory")
    version = ask("user_version")
    if version != SCHEMA_VERSION:
        raise StoreError(
            f"the store in {directory} has format {version}, and this version of objmeta knows format "
            f"{SCHEMA_VERSION}: use the version of objmeta that wrote it, or a newer one"
        )
    if ask("journal_mode") != "wal":
        raise StoreError(f"the store in {directory} is not in WAL mode: something else has changed it")
    ask("synchronous = FULL")
    ask("secure_delete = OFF")
    ask("temp_store = MEMORY")
    ask("cell_size_check = ON")  # looks at the structure of each page that is read from the disk
    connection.text_factory = bytes  # a flipped bit can turn the one into the other, and no text is kept here
    ask(f"cache_size = -{cache_kib}")
    if read_only:
        ask("query_only = ON")


def sync_log(directory: Path) -> None:
    """Make durable what recovery may just have read from the log of a killed process. Raises StoreError."""
    log = Path(f"{database_path(directory)}-wal")
    with explained(directory):
        try:
            if not log.stat().st_size:
                return
            sync_file(log)
        except FileNotFoundError:
            return
        sync_directory(directory)


@contextmanager
def explained(directory: Path) -> Iterator[None]:
    """Turn errors of SQLite and of the operating system into ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise explain(directory, error) from error
    except OverflowError as error:
        raise StoreError(f"the store in {directory} cannot hold a number of more than 63 bits") from error
    except OSError as error:
        raise explain_os(directory, error) from error
    except msgspec.MsgspecError as error:
        raise IntegrityError(damaged(directory, str(error))) from error


def explain(directory: Path, error: sqlite3.Error) -> StoreError:
    """What an error of SQLite means and what to do."""
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    primary = primary_code(error)
    if primary == sqlite3.SQLITE_FULL or (primary == sqlite3.SQLITE_IOERR and _is_full(directory)):
        return full(directory)
    if primary in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return IntegrityError(damaged(directory, str(error)))
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreError(
            f"another process has kept the store in {directory} locked for {BUSY_TIMEOUT_S:.0f} s: "
            "end that process or let it go on"
        )
    if primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_AUTH):
        return StoreError(f"the store in {directory} cannot be opened for writing ({error}): check its permissions")
    return StoreError(f"the store in {directory} failed ({name}: {error}): check the disk under it")


def damaged(directory: Path, what: str) -> str:
    """That a store is damaged, and what to do."""
    return (
        f"the store in {directory} is damaged ({what}); what can still be read is right: if the store is in this "
        "directory alone, copy that out and restore the rest from a copy; if it is one of several disks, replace it"
    )


def primary_code(error: sqlite3.Error) -> int:
    """SQLite's primary result code; 0 for an error of the module itself."""
    return (getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF


def _is_full(directory: Path) -> bool:
    """Whether writing fails for lack of space; SQLite reports quotas and full shared memory as plain I/O errors."""
    probe = directory / f"{_NEW_PREFIX}{secrets.token_hex(8)}"
    try:
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(descriptor, bytes(_PROBE_BYTES))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
            probe.unlink()
    except OSError as error:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return False
