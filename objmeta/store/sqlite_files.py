"""The files of a SQLite store: made atomically, opened with care, and errors put into words.

Rules.

* A store is one directory with one database.  It is made under a temporary name, synced and renamed while the directory
  is locked, so that of several makers exactly one wins and a crash leaves no half-made store.
* Opening never makes anything.  What was read back from the log of a killed process is synced before it is shown: it
  may have been on its way to the disk only.
* In this process nobody but SQLite may open the database or its ``-shm`` file: closing either would drop SQLite's
  locks (POSIX record locks belong to the process).  The ``-wal`` file carries no locks.
* A network file system is refused: the write-ahead log needs memory shared by all users of the files.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import msgspec

from objmeta.core.ballot import ZERO
from objmeta.core.configuration import Configuration
from objmeta.errors import IntegrityError, StoreError, StoreFull

DATABASE_NAME: Final = "acceptor.db"
BUSY_TIMEOUT_S: Final = 30.0
"""How long a step waits for other processes: a commit takes milliseconds, so only a stopped process takes this long."""
SCHEMA_VERSION: Final = 1
_APPLICATION_ID: Final = 0x4F424A4D  # "OBJM"
_PAGE_BYTES: Final = 4096
_NEW_PREFIX: Final = ".new-"
_PROBE_BYTES: Final = 64 << 10

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

_SCHEMA: Final = (
    """CREATE TABLE store (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        acceptor_id INTEGER NOT NULL,
        configuration BLOB NOT NULL,
        ballot_floor BLOB NOT NULL,
        generation_floor INTEGER NOT NULL,
        sequence_floor INTEGER NOT NULL
    )""",
    "CREATE TABLE terms (scope BLOB PRIMARY KEY, term INTEGER NOT NULL) WITHOUT ROWID",
    # accepted, flag and state are NULL where there is only a promise.
    """CREATE TABLE registers (
        name BLOB PRIMARY KEY,
        promised BLOB NOT NULL,
        accepted BLOB,
        flag INTEGER,
        state BLOB
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
    "CREATE TABLE changes (number INTEGER PRIMARY KEY, name BLOB NOT NULL)",
)


def database_path(directory: Path) -> Path:
    """Where the database of the store in ``directory`` is."""
    return directory / DATABASE_NAME


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


def make(directory: Path, acceptor_id: int, configuration: Configuration) -> bool:
    """Make the store in ``directory``; False if there is one already. Raises StoreError, StoreFull."""
    check_local(directory)
    with explained(directory):
        _make_directories(directory)
        with _locked(directory):
            if database_path(directory).exists():
                return False
            for leftover in directory.glob(f"{_NEW_PREFIX}*"):
                leftover.unlink()
            new = directory / f"{_NEW_PREFIX}{secrets.token_hex(8)}"
            try:
                _write_new(new, acceptor_id, configuration)
                new.rename(database_path(directory))
            except BaseException:
                for part in directory.glob(f"{new.name}*"):
                    part.unlink()
                raise
            sync_directory(directory)
            return True


def _write_new(path: Path, acceptor_id: int, configuration: Configuration) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN")
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        for statement in _SCHEMA:
            connection.execute(statement)
        connection.execute(
            "INSERT INTO store VALUES (1, ?, ?, ?, 0, 0)",
            (acceptor_id, msgspec.msgpack.encode(configuration), ZERO.pack()),
        )
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
        raise _explain_os(directory, error) from error
    except msgspec.MsgspecError as error:
        raise IntegrityError(f"the store in {directory} is damaged ({error}): replace it from the others") from error


def explain(directory: Path, error: sqlite3.Error) -> StoreError:
    """What an error of SQLite means and what to do."""
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    primary = primary_code(error)
    if primary == sqlite3.SQLITE_FULL or (primary == sqlite3.SQLITE_IOERR and _is_full(directory)):
        return StoreFull(f"the disk under {directory} is full: free some space and try again")
    if primary in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return IntegrityError(f"the store in {directory} is damaged ({error}): restore it from a copy or another node")
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreError(
            f"another process has kept the store in {directory} locked for {BUSY_TIMEOUT_S:.0f} s: "
            "end that process or let it go on"
        )
    if primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_AUTH):
        return StoreError(f"the store in {directory} cannot be opened for writing ({error}): check its permissions")
    return StoreError(f"the store in {directory} failed ({name}: {error}): check the disk under it")


def primary_code(error: sqlite3.Error) -> int:
    """SQLite's primary result code; 0 for an error of the module itself."""
    return (getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF


def _explain_os(directory: Path, error: OSError) -> StoreError:
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(f"the disk under {directory} is full: free some space and try again")
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return StoreError(f"{directory} cannot be the directory of a store, as a file is in the way: name another one")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StoreError(f"the store in {directory} cannot be written ({reason}): check its permissions")
    return StoreError(f"the store in {directory} failed ({reason}): check the disk under it")


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


def _make_directories(directory: Path) -> None:
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for path in reversed(missing):
        sync_directory(path.parent)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
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
    """Make the content of a file durable; never call it on a database or ``-shm`` file that is in use."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
