"""SqliteStore and its files: opening, refusing, full disks and damage."""

from __future__ import annotations

import resource
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from objmeta.core.ballot import ZERO
from objmeta.core.listing import ScanRequest
from objmeta.core.messages import Accepted, Found, Prepare, Promise, RaiseFloors, RaiseTerm, Read, ScopeFloor
from objmeta.errors import IntegrityError, StoreError, StoreFull
from objmeta.store import checkpoints, directories, sqlite_files
from objmeta.store.sqlite import SqliteStore
from tests.store.build import CONFIGURATION, TAG, ask, ask_one, ballot, put, read_one, record, scan


def reopen(store: SqliteStore) -> SqliteStore:
    store.close()
    return SqliteStore.open(store.path)


def test_everything_is_there_after_opening_again(sqlite: SqliteStore) -> None:
    accept = put(b"k", 2, record(1, data=b"data"))
    ask(sqlite, accept, Prepare(b"k", ballot(5)), Prepare(b"promised", ballot(6)), RaiseTerm(b"scope", 4))
    ask(sqlite, RaiseFloors(2, ((b"ne", ScopeFloor(0, ballot(1), 3)),)))
    before = sqlite.scan(TAG, ScanRequest(b"", with_records=True)), sqlite.changes(0, 10)
    again = reopen(sqlite)
    assert (again.acceptor_id, again.configuration) == (1, CONFIGURATION)
    assert (again.scan(TAG, ScanRequest(b"", with_records=True)), again.changes(0, 10)) == before
    promises = ask(again, Prepare(b"k", ballot(5)), Prepare(b"promised", ballot(6)), Prepare(b"new", ballot(2)))
    assert [isinstance(reply, Promise) for reply in promises] == [False, False, True]
    assert promises[2] == Promise(ballot(2), ZERO, None, (), 3, 2)
    again.close()


def test_two_stores_in_one_process_see_each_others_steps(sqlite: SqliteStore) -> None:
    other = SqliteStore.open(sqlite.path)
    for counter in range(1, 6):
        one, two = (sqlite, other) if counter % 2 else (other, sqlite)
        assert ask_one(one, put(b"k", counter, record(1))) == Accepted(ballot(counter))
        assert isinstance(read_one(two, Read(b"k")), Found)
        assert read_one(two, Read(b"k")) == read_one(one, Read(b"k"))
        assert not isinstance(ask_one(two, Prepare(b"k", ballot(counter))), Promise)
    other.close()


def test_creating_twice_is_refused(sqlite: SqliteStore) -> None:
    with pytest.raises(StoreError, match="already"):
        SqliteStore.create(sqlite.path, 1, CONFIGURATION)


def test_open_or_create_makes_and_opens(tmp_path: Path) -> None:
    for _ in range(2):
        store = SqliteStore.open_or_create(tmp_path / "a" / "b", 1, lambda: CONFIGURATION)
        assert store.configuration == CONFIGURATION
        store.close()


def test_leftovers_of_a_maker_that_crashed_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".new-0123456789abcdef").write_bytes(b"half a store")
    SqliteStore.create(tmp_path, 1, CONFIGURATION).close()
    assert [path.name for path in tmp_path.iterdir()] == ["acceptor.db"]


def test_closing_leaves_one_file_and_may_be_repeated(sqlite: SqliteStore) -> None:
    ask_one(sqlite, put(b"k", 1, record(1)))
    sqlite.close()
    sqlite.close()
    assert [path.name for path in sqlite.path.iterdir()] == ["acceptor.db"]
    with pytest.raises(StoreError, match="closed"):
        sqlite.apply([])


def test_opening_never_makes_a_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no store in"):
        SqliteStore.open(tmp_path)
    with pytest.raises(StoreError, match="there is no store in"):
        SqliteStore.open(tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreError, match="file"):
            SqliteStore.open_or_create(path, 1, lambda: CONFIGURATION)


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    path = sqlite_files.database_path(tmp_path)
    path.write_bytes(b"not a database " * 1000)
    with pytest.raises(IntegrityError, match="damaged"):
        SqliteStore.open(tmp_path)
    path.unlink()
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE t (x)")
    with pytest.raises(StoreError, match="not a store of objmeta"):
        SqliteStore.open(tmp_path)


def test_a_newer_format_is_refused(sqlite: SqliteStore) -> None:
    sqlite.close()
    with closing(sqlite3.connect(sqlite_files.database_path(sqlite.path))) as other:
        other.execute(f"PRAGMA user_version = {sqlite_files.SCHEMA_VERSION + 1}")
    with pytest.raises(StoreError, match="newer"):
        SqliteStore.open(sqlite.path)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/data", "ext4"),
        ("/data/nfs/x", "nfs4"),
        ("/data/nfsx", "ext4"),
        ("/data/with space/x", "fuse.sshfs"),
        ("/data/over", "xfs"),
        ("/", "overlay"),
    ],
)
def test_the_file_system_under_a_path(path: str, kind: str) -> None:
    mounts = (
        "overlay / overlay rw 0 0\n/dev/a /data ext4 rw 0 0\nh:/x /data/nfs nfs4 rw 0 0\nbroken line\n"
        "h: /data/with\\040space fuse.sshfs rw 0 0\nh:/y /data/over nfs rw 0 0\n/dev/b /data/over xfs rw 0 0\n"
    )
    assert directories.file_system_of(path, mounts) == kind


def test_a_network_file_system_is_refused_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"network file system \(9p\).*run nodes"):
        directories.check_local(tmp_path / "new", f"/dev/a / ext4 rw 0 0\nshare {tmp_path.resolve()} 9p rw 0 0\n")


def test_a_full_disk_fails_the_whole_batch_and_nothing_more(
    sqlite: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask_one(sqlite, put(b"kept", 1, record(1)))
    sqlite.close()
    connect = sqlite_files.connect

    def connect_to_a_small_disk(directory: Path, *, cache_kib: int, read_only: bool = False) -> sqlite3.Connection:
        connection = connect(directory, cache_kib=cache_kib, read_only=read_only)
        connection.execute("PRAGMA max_page_count = 40")
        return connection

    monkeypatch.setattr(sqlite_files, "connect", connect_to_a_small_disk)
    store = SqliteStore.open(sqlite.path)
    big = record(2, data=bytes(1 << 20))
    with pytest.raises(StoreFull, match="full"):
        ask(store, put(b"small", 1, record(1)), Prepare(b"promised", ballot(7)), put(b"big", 1, big))
    assert [row.name for row in scan(store, ScanRequest(b""))[0]] == [b"kept"]
    assert store.changes(0, 10).watermark == 1
    assert ask(store, put(b"small", 1, record(1)), Prepare(b"promised", ballot(7))) == [
        Accepted(ballot(1)),
        Promise(ballot(7), ZERO, None),
    ]
    store.close()


@contextmanager
def files_no_longer_than(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_commit_that_cannot_be_written_is_void_for_good(sqlite: SqliteStore) -> None:
    ask_one(sqlite, put(b"kept", 1, record(1)))
    log = Path(f"{sqlite_files.database_path(sqlite.path)}-wal")
    with files_no_longer_than(log.stat().st_size + (64 << 10)), pytest.raises(StoreError, match="check the disk"):
        ask(sqlite, put(b"small", 1, record(1)), put(b"big", 1, record(2, data=bytes(1 << 20))))
    assert [row.name for row in scan(sqlite, ScanRequest(b""))[0]] == [b"kept"]
    again = reopen(sqlite)
    assert [row.name for row in scan(again, ScanRequest(b""))[0]] == [b"kept"]
    assert ask_one(again, put(b"big", 1, record(2, data=bytes(1 << 20)))) == Accepted(ballot(1))
    again.close()


def test_damage_is_found_and_never_returned(sqlite: SqliteStore) -> None:
    for number in range(20):
        ask(sqlite, *[put(b"%06d" % (100 * number + n), 1, record(1), value=b"v" * 200) for n in range(100)])
    sqlite.close()
    path = sqlite_files.database_path(sqlite.path)
    with path.open("r+b") as database:
        size = path.stat().st_size
        database.seek(8 * 4096)
        database.write(b"\xa5" * (size - 8 * 4096))
    store = SqliteStore.open(sqlite.path)
    with pytest.raises(IntegrityError, match="damaged"):
        store.scan(TAG, ScanRequest(b"", limit=100_000))
    store.close()


def test_a_number_too_large_to_store_fails_its_batch(sqlite: SqliteStore) -> None:
    with pytest.raises(StoreError, match="63 bits"):
        ask(sqlite, put(b"k", 1, record(1)), RaiseTerm(b"scope", 2**63))
    assert scan(sqlite, ScanRequest(b""))[0] == []


def test_a_locked_store_is_waited_for_and_then_named(sqlite: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_files, "BUSY_TIMEOUT_S", 0.05)
    with closing(sqlite3.connect(sqlite_files.database_path(sqlite.path), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked"):
            ask_one(sqlite, put(b"k", 1, record(1)))
        assert read_one(sqlite, Read(b"k")) == Found(ZERO, None)
        other.execute("ROLLBACK")
    assert ask_one(sqlite, put(b"k", 1, record(1))) == Accepted(ballot(1))


def test_the_log_stays_short_under_load_beside_readers(sqlite: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "STEPS_PER_PASS", 256)
    monkeypatch.setattr(checkpoints, "LOG_PAGES_RESTART", 256)
    done = threading.Event()
    failures: list[BaseException] = []

    def look() -> None:
        try:
            while not done.is_set():
                sqlite.scan(TAG, ScanRequest(b"", limit=100))
        except BaseException as error:
            failures.append(error)

    reader = threading.Thread(target=look)
    reader.start()
    for start in range(0, 6000, 60):
        names = [b"%08d" % (number * 7919 % 10**8) for number in range(start, start + 60)]
        ask(sqlite, *[put(name, 1, record(1, data=bytes(4000))) for name in names])
    done.set()
    reader.join()
    assert not failures
    log = Path(f"{sqlite_files.database_path(sqlite.path)}-wal")
    assert log.stat().st_size < 16 << 20, "each batch adds half a MiB: 50 MiB in all"
