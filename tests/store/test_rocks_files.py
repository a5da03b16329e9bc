"""RocksStore and its files: opening, refusing, full disks, killed processes and damage."""

from __future__ import annotations

import gc
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rocksdict import Options, Rdict

from objmeta.core.ballot import ZERO
from objmeta.core.listing import ScanRequest
from objmeta.core.messages import (
    Accepted,
    Erase,
    Erased,
    Fetch,
    Fetched,
    Found,
    Prepare,
    Promise,
    RaiseFloors,
    RaiseTerm,
    Read,
    Refusal,
    Refused,
    ScopeFloor,
)
from objmeta.errors import ForkedClient, IntegrityError, StoreError, StoreFull, UnknownOutcome
from objmeta.store import rocks_files
from objmeta.store.rocks import RocksStore
from objmeta.store.sqlite import SqliteStore
from tests.store.build import CONFIGURATION, TAG, ask, ask_one, ballot, put, read_one, record, scan
from tests.store.process import BATCH, finish, name, started
from tests.store.rocks import crashed, flip, names_in


def largest_table_of(directory: Path) -> Path:
    return max(rocks_files.database_path(directory).glob("*.sst"), key=lambda path: path.stat().st_size)


# -- Opening ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["closed", "crashed"])
def test_everything_is_there_after_opening_again(rocks: RocksStore, tmp_path: Path, how: str) -> None:
    accept = put(b"k", 2, record(1, data=b"data"))
    ask(rocks, accept, Prepare(b"k", ballot(5)), Prepare(b"promised", ballot(6)), RaiseTerm(b"scope", 4))
    ask(rocks, RaiseFloors(2, ((b"ne", ScopeFloor(0, ballot(1), 3)),)))
    before = rocks.scan(TAG, ScanRequest(b"", with_records=True)), rocks.changes(0, 10), rocks.count()
    path = rocks.path
    if how == "crashed":
        path = crashed(rocks, tmp_path / "copy")
    else:
        rocks.close()
    again = RocksStore.open(path)
    assert (again.acceptor_id, again.configuration) == (1, CONFIGURATION)
    assert (again.scan(TAG, ScanRequest(b"", with_records=True)), again.changes(0, 10), again.count()) == before
    promises = ask(again, Prepare(b"k", ballot(5)), Prepare(b"promised", ballot(6)), Prepare(b"new", ballot(2)))
    assert [isinstance(reply, Promise) for reply in promises] == [False, False, True]
    assert promises[2] == Promise(ballot(2), ZERO, None, (), 3, 2)
    again.close()


def test_an_opened_store_has_its_filters(rocks: RocksStore) -> None:
    options = max(rocks_files.database_path(rocks.path).glob("OPTIONS-*"))
    assert "filter_policy=bloomfilter" in options.read_text()


def test_creating_twice_is_refused(rocks: RocksStore) -> None:
    with pytest.raises(StoreError, match="already"):
        RocksStore.create(rocks.path, 1, CONFIGURATION)


def test_a_store_in_use_is_refused(rocks: RocksStore) -> None:
    with pytest.raises(StoreError, match="in use"):
        RocksStore.open(rocks.path)
    assert ask_one(rocks, put(b"k", 1, record(1))) == Accepted(ballot(1))


def test_leftovers_of_a_maker_that_crashed_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".new-0123456789abcdef").mkdir()
    (tmp_path / ".new-0123456789abcdef" / "CURRENT").write_bytes(b"half a store")
    RocksStore.create(tmp_path, 1, CONFIGURATION).close()
    assert [path.name for path in tmp_path.iterdir()] == ["rocksdb"]


def test_opening_never_makes_a_store(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(StoreError, match="there is no store in"):
            RocksStore.open(path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreError, match="file"):
            RocksStore.create(path, 1, CONFIGURATION)
    with pytest.raises(StoreError, match="is a file"):
        RocksStore.open(tmp_path / "file")


def test_a_store_of_sqlite_is_refused(sqlite: SqliteStore) -> None:
    with pytest.raises(StoreError, match=r"SQLite store.*empty directory"):
        RocksStore.open(sqlite.path)
    with pytest.raises(StoreError, match=r"SQLite store.*empty directory"):
        RocksStore.create(sqlite.path, 1, CONFIGURATION)


def test_a_newer_format_is_refused(rocks: RocksStore) -> None:
    rocks.close()
    database = Rdict(str(rocks_files.database_path(rocks.path)), Options(raw_mode=True))
    database[b"mi"] = msgspec.msgpack.encode((rocks_files.FORMAT + 1, "who knows"))
    database.close()
    with pytest.raises(StoreError, match="newer"):
        RocksStore.open(rocks.path)


def test_what_is_no_store_is_refused(rocks: RocksStore) -> None:
    rocks.close()
    (rocks_files.database_path(rocks.path) / "CURRENT").write_bytes(b"not a database")
    with pytest.raises(IntegrityError, match="replace the node"):
        RocksStore.open(rocks.path)


def test_closing_may_be_repeated(rocks: RocksStore) -> None:
    rocks.close()
    rocks.close()
    with pytest.raises(StoreError, match="closed"):
        rocks.apply([])


# -- Processes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("acknowledged", [1, 150])
def test_what_a_killed_writer_acknowledged_is_there(tmp_path: Path, acknowledged: int) -> None:
    directory = tmp_path / "acceptor"
    last = -1
    with started("write", "rocks", str(directory)) as writer:
        assert writer.stdout is not None
        while last + 1 < acknowledged:
            last = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        for line in writer.stdout.read().split():
            last = max(last, int(line))
        writer.wait()
    store = RocksStore.open(directory)
    found = set(names_in(store))
    for batch in range(last + 1):
        assert {name(batch, index) for index in range(BATCH)} <= found
    assert len(found) % BATCH == 0, "a batch is there as a whole or not at all"
    assert store.count() == len(found)
    whole = record(1, data=b"d" * 500)
    assert read_one(store, Fetch(name(last, 0), (whole.ref,))) == Fetched((whole,))
    assert ask_one(store, put(b"next", 1, record(1))) == Accepted(ballot(1))
    store.close()


def test_a_forked_child_is_refused(rocks: RocksStore) -> None:
    ask_one(rocks, put(b"k", 1, record(1)))
    child = os.fork()
    if child == 0:
        code = 0
        for use in (
            lambda: rocks.apply([]),
            lambda: rocks.read([(TAG, Read(b"k"))]),
            lambda: rocks.scan(TAG, ScanRequest(b"")),
            lambda: rocks.changes(0, 1),
        ):
            try:
                use()
                code = 1
            except ForkedClient:
                continue
            except BaseException:
                code = 2
        rocks.close()
        gc.collect()
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert ask_one(rocks, put(b"k", 2, record(1))) == Accepted(ballot(2))


def test_a_forked_child_that_ends_does_not_harm_its_parent(tmp_path: Path) -> None:
    directory = tmp_path / "acceptor"
    with started("fork", "rocks", str(directory)) as process:
        assert finish(process) == "done\n"
    store = RocksStore.open(directory)
    assert len(names_in(store)) == 101
    store.close()


# -- Disks in trouble -------------------------------------------------------------------------------------------------


def test_a_nearly_full_disk_refuses_batches_until_there_is_room(
    rocks: RocksStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask_one(rocks, put(b"kept", 1, record(1)))
    free = os.statvfs(rocks.path)
    with monkeypatch.context() as patch:
        patch.setattr(rocks_files, "RESERVE_BYTES", 2 * free.f_bavail * free.f_frsize)
        with pytest.raises(StoreFull, match="full"):
            ask(rocks, put(b"small", 1, record(1)), Prepare(b"promised", ballot(7)))
        assert names_in(rocks) == [b"kept"]
        assert ask_one(rocks, Prepare(b"kept", ballot(1))) == Refused(ballot(1), Refusal.CONFLICT, ballot(1))
    assert ask(rocks, put(b"small", 1, record(1)), Prepare(b"promised", ballot(7))) == [
        Accepted(ballot(1)),
        Promise(ballot(7), ZERO, None),
    ]


@contextmanager
def files_no_longer_than(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_batch_that_cannot_be_written_did_not_happen(rocks: RocksStore, tmp_path: Path) -> None:
    ask_one(rocks, put(b"kept", 1, record(1)))
    big = put(b"big", 1, record(2, data=os.urandom(1 << 20)))
    with files_no_longer_than(256 << 10):
        with pytest.raises(StoreError, match="File too large"):
            ask(rocks, put(b"small", 1, record(1)), big)
        assert names_in(rocks) == [b"kept"]
        assert ask_one(rocks, put(b"other", 1, record(1))) == Accepted(ballot(1))
    assert ask_one(rocks, big) == Accepted(ballot(1))
    again = RocksStore.open(crashed(rocks, tmp_path / "copy"))
    assert names_in(again) == [b"big", b"kept", b"other"]
    again.close()


def test_what_became_of_a_batch_is_unknown_while_the_store_cannot_be_opened(rocks: RocksStore) -> None:
    ask_one(rocks, put(b"kept", 1, record(1)))
    with files_no_longer_than(1 << 10):
        with pytest.raises(UnknownOutcome, match="may yet show"):
            ask_one(rocks, put(b"lost", 1, record(2, data=os.urandom(1 << 20))))
        with pytest.raises(StoreError, match="File too large"):
            ask_one(rocks, put(b"later", 1, record(1)))
        with pytest.raises(StoreError, match="try again"):
            read_one(rocks, Read(b"kept"))
    assert ask_one(rocks, put(b"after", 1, record(1))) == Accepted(ballot(1))
    assert names_in(rocks) == [b"after", b"kept"]


def test_a_batch_whose_sync_failed_is_looked_for(rocks: RocksStore, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = ["IO error: While fdatasync: Input/output error"]

    class FailingDisk:
        """The database, on a disk whose next sync fails."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            self._database = Rdict(*arguments, **options)

        def flush_wal(self, sync: bool) -> None:
            if failures:
                raise Exception(failures.pop())
            self._database.flush_wal(sync)

        def __getattr__(self, method: str) -> Any:
            return getattr(self._database, method)

    rocks.close()
    monkeypatch.setattr(rocks_files, "Rdict", FailingDisk)
    store = RocksStore.open(rocks.path)
    assert ask_one(store, put(b"k", 1, record(1))) == Accepted(ballot(1))  # opening it again made it durable
    assert not failures
    assert names_in(store) == [b"k"]
    store.close()


def fill(filler: Path) -> None:
    """Make a file that takes all there is."""
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(1 << 16)):
            pass


def test_a_disk_that_others_fill_up_loses_nothing(
    make_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rocks_files, "RESERVE_BYTES", 0)  # as if the room had gone after the look
    small_disk = make_disk(24)
    store = RocksStore.create(small_disk / "acceptor", 1, CONFIGURATION)
    accepted, failed = [], 0
    for round_number in range(3):
        filler = small_disk / "filler"
        fill(filler)
        for number in range(20):
            key = b"%d/%02d" % (round_number, number)
            try:
                ask_one(store, put(key, 1, record(1, data=os.urandom(100_000))))
                accepted.append(key)
            except (StoreFull, UnknownOutcome):
                failed += 1
        filler.unlink()
        key = b"%d/room" % round_number
        assert ask_one(store, put(key, 1, record(1))) == Accepted(ballot(1))
        accepted.append(key)
    assert failed > 3
    assert set(accepted) <= set(names_in(store))
    store.close()


# -- Damage -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(rocks: RocksStore) -> Iterator[tuple[RocksStore, list[bytes]]]:
    """A store with one bit of its largest table wrong, and the names that cannot be read for it."""
    names = [b"%06d" % number for number in range(2000)]
    for start in range(0, len(names), 100):
        ask(rocks, *[put(each, 1, record(1), value=os.urandom(200)) for each in names[start : start + 100]])
    rocks.close()
    RocksStore.open(rocks.path).close()  # from the log into a table
    table = largest_table_of(rocks.path)
    flip(table, table.stat().st_size * 9 // 10)  # rows are last
    store = RocksStore.open(rocks.path)
    replies = store.read([(TAG, Read(each)) for each in names])
    hurt = [each for each, reply in zip(names, replies, strict=True) if not isinstance(reply, Found)]
    assert {reply.reason for reply in replies if isinstance(reply, Refused)} == {Refusal.DAMAGED}
    yield store, hurt
    store.close()


def test_damage_concerns_its_registers_alone(damaged: tuple[RocksStore, list[bytes]]) -> None:
    store, hurt = damaged
    assert 1 <= len(hurt) < 100
    one = hurt[0]
    replies = ask(store, put(b"new", 2, record(1)), Prepare(one, ballot(2)), Prepare(b"000000", ballot(2)))
    assert isinstance(replies[0], Accepted)
    assert isinstance(replies[1], Refused)
    assert replies[1].reason is Refusal.DAMAGED
    assert isinstance(replies[2], Promise)
    with pytest.raises(IntegrityError, match="damaged"):
        scan(store, ScanRequest(one))


def test_an_accept_above_every_promise_mends_a_row(damaged: tuple[RocksStore, list[bytes]]) -> None:
    store, hurt = damaged
    rows = store.count()
    low, high = put(hurt[0], 1, record(1)), put(hurt[0], 9, record(1), value=b"mended")
    assert [type(reply) for reply in ask(store, low, high)] == [Refused, Accepted]
    assert read_one(store, Read(hurt[0])) == Found(ballot(9), high.state)
    assert store.count() == rows
    again = RocksStore.open(crashed(store, store.path.parent / "copy"))
    assert read_one(again, Read(hurt[0])) == Found(ballot(9), high.state)
    again.close()


def test_damage_met_in_the_background_does_not_stop_writing(damaged: tuple[RocksStore, list[bytes]]) -> None:
    store, _ = damaged
    for start in range(5):  # each opening leaves a table, and four of them are put together
        ask(store, *[put(b"%06d" % number, 2 + start, record(1)) for number in range(start, 300, 5)])
        store.close()
        store = RocksStore.open(store.path)
    for number in range(50):
        assert ask_one(store, put(b"later/%d" % number, 1, record(1))) == Accepted(ballot(1))
    store.close()


# -- What only this store has to care for ------------------------------------------------------------------------------


def test_names_with_zeros_keep_their_records_apart(rocks: RocksStore) -> None:
    names = [b"a", b"a\0", b"a\0\0", b"a\0\1", b"a\0\xff", b"\0", b"\0\xff\0"]
    for number, each in enumerate(names, 1):
        ask_one(rocks, put(each, 1, record(number, data=each)))
    for number, each in enumerate(names, 1):
        whole = record(number, data=each)
        assert read_one(rocks, Fetch(each, (whole.ref,))) == Fetched((whole,))
        assert (
            sum(
                isinstance(reply, Fetched) and bool(reply.records)
                for reply in rocks.read([(TAG, Fetch(other, (whole.ref,))) for other in names])
            )
            == 1
        )


def test_erasing_takes_records_and_data_along(rocks: RocksStore) -> None:
    one, two = record(1, data=b"one"), record(2, sequence=2, parent=record(1).ref, data=b"two")
    ask(rocks, put(b"k/x", 1, one), put(b"k/x\0", 1, one), put(b"k/x", 2, two, flag=2))
    assert ask_one(rocks, Erase(b"k/x", ballot(2))) == Erased(ballot(2), True)
    assert read_one(rocks, Fetch(b"k/x", (one.ref, two.ref))) == Fetched(())
    assert read_one(rocks, Fetch(b"k/x\0", (one.ref,))) == Fetched((one,))
    assert (names_in(rocks), rocks.count()) == ([b"k/x\0"], 1)
    ask(rocks, put(b"k/x", 3, one), Erase(b"k/x", ballot(3)))
    assert rocks.count() == 2, "no tombstone, so it stays"
