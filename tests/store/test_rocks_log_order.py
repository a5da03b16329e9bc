"""RocksStore's logs as they follow one another: a hole between two is found, what a power cut leaves is none.

And what else is written, or opened, only at the second try.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from rocksdict import Options, Rdict, WriteBatch

from objmeta.core.configuration import Configuration, Membership
from objmeta.core.messages import Accepted, Adopt, Prepare, Refused
from objmeta.errors import IntegrityError, StoreError, UnknownOutcome
from objmeta.store import rocks_files
from objmeta.store.rocks import RocksStore
from objmeta.store.rocks_files import open_database, release
from tests.store.build import CONFIGURATION, ask_one, ballot, put, record
from tests.store.rocks import crashed, names_in

_MARK_AT = 28
"""Behind the headers of record and batch, and the key of the position."""


class Logs:
    """A store as a crash leaves it: the log before the newest one is needed still, and the newest was written over."""

    def __init__(self, path: Path, batches: int, mark: bytes) -> None:
        self.path = path
        self.batches = batches
        self.mark = mark

    def all(self) -> list[Path]:
        return sorted(rocks_files.database_path(self.path).glob("*.log"))

    def own(self, log: Path) -> list[tuple[int, int]]:
        """Where the batches of a log's present life begin, with their numbers."""
        content = log.read_bytes()
        found = [each.start() for each in re.finditer(re.escape(self.mark), content)]
        numbers = [int.from_bytes(content[at + 16 : at + 24]) for at in found]
        own = numbers.index(max(numbers)) + 1
        return list(zip([at - _MARK_AT for at in found[:own]], numbers[:own], strict=True))


@pytest.fixture(scope="module")
def left_by_a_crash(tmp_path_factory: pytest.TempPathFactory) -> Logs:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rocks_files, "_MEMTABLE_BYTES", 256 << 10)
        return _left_by_a_crash(tmp_path_factory.mktemp("logs"))


@pytest.fixture
def logs(left_by_a_crash: Logs, tmp_path: Path) -> Logs:
    path = shutil.copytree(left_by_a_crash.path, tmp_path / "store")
    return Logs(path, left_by_a_crash.batches, left_by_a_crash.mark)


def _left_by_a_crash(tmp_path: Path) -> Logs:
    store = RocksStore.create(tmp_path / "original", 1, CONFIGURATION)
    directory = rocks_files.database_path(store.path)
    seen: dict[int, int] = {}
    newest, full, batches, lives = Path(), Path(), 0, 0
    while True:
        ask_one(store, put(b"%06d" % batches, 1, record(1, data=os.urandom(3000))))
        batches += 1
        log = max(directory.glob("*.log"))
        there = log.stat()
        if log != newest:
            lives += seen.get(there.st_ino, 0) not in (0, int(log.stem))
            if lives == 4:
                break
            newest = log
        seen[there.st_ino] = int(log.stem)
        if lives == 3:
            if full != Path():
                shutil.rmtree(full)
            full = crashed(store, tmp_path / f"full-{batches}")
        assert batches < 2000, "no log was used again"
    for _ in range(3):
        ask_one(store, put(b"%06d" % batches, 1, record(1, data=os.urandom(3000))))
        batches += 1
    shutil.copy(log, rocks_files.database_path(full))
    store.close()
    shutil.copytree(full, tmp_path / "looked at")
    database, identity = open_database(tmp_path / "looked at", b"mp")
    release(database)
    return Logs(full, batches, identity.mark)


def test_two_logs_are_read_one_after_the_other(logs: Logs) -> None:
    before, newest = logs.all()[-2:]
    assert logs.own(before)[-1][1] + 1 == logs.own(newest)[0][1]
    store = RocksStore.open(logs.path)
    assert len(names_in(store)) == logs.batches
    store.close()


@pytest.mark.parametrize("lost", [1, 2, 1000])
def test_what_is_lost_at_the_end_of_a_log_before_the_newest_is_missed(logs: Logs, lost: int) -> None:
    log = logs.all()[-2]
    own = logs.own(log)
    begin = own[max(0, len(own) - lost)][0]
    content = log.read_bytes()
    log.write_bytes(content[:begin] + bytes(len(content) - begin))
    for _ in range(2):
        with pytest.raises(IntegrityError, match=r"log .* is damaged.*replace the node"):
            RocksStore.open(logs.path)


@pytest.mark.parametrize("written", ["nothing", "all but its beginning", "its beginning"])
def test_a_power_cut_in_the_first_batch_of_a_log_that_is_written_over_is_no_damage(
    logs: Logs, tmp_path: Path, written: str
) -> None:
    used, newest = logs.all()[0], logs.all()[-1]
    first = logs.own(newest)
    content, own = used.read_bytes(), newest.read_bytes()[: first[1][0]]
    assert len(own) < 4096
    newest.unlink()  # it is what was being begun
    if written == "all but its beginning":
        own = own + os.urandom(20_000 - len(own))  # as if it were longer
        content = content[:2048] + own[2048:] + content[len(own) :]
    elif written == "its beginning":
        content = own[:2048] + content[2048:]
    used.rename(newest)
    newest.write_bytes(content)
    for again in range(2):
        store = RocksStore.open(logs.path)
        assert len(names_in(store)) == first[0][1] - 1 + again
        assert ask_one(store, put(b"after%d" % again, 1, record(1))) == Accepted(ballot(1))
        logs.path = crashed(store, tmp_path / f"again-{again}")
        store.close()


@pytest.mark.parametrize("cut", range(1, 6))
def test_a_number_that_was_written_in_part_is_no_damage(logs: Logs, cut: int) -> None:
    log = logs.all()[-1]
    at, number = logs.own(log)[-1]
    content = bytearray(log.read_bytes())
    end = at + _MARK_AT + 16 + cut
    content[end : end + 4096] = b"\xfe" * 4096  # what was there before
    log.write_bytes(content)
    store = RocksStore.open(logs.path)
    assert store.position == number - 1
    store.close()


def test_an_error_at_opening_does_not_keep_the_database_open(tmp_path: Path) -> None:
    RocksStore.create(tmp_path, 1, CONFIGURATION).close()
    database, _ = open_database(tmp_path, b"mp")
    database.delete(b"mm")
    database.flush_wal(True)
    release(database)
    with pytest.raises(IntegrityError, match="lost its membership") as first:
        RocksStore.open(tmp_path)
    with pytest.raises(IntegrityError, match="lost its membership"):
        RocksStore.open(tmp_path)
    assert first.value.__traceback__ is not None


def test_a_batch_that_must_wait_for_memory_is_written_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stalls = 2
    elsewhere = Rdict(str(tmp_path / "elsewhere"), Options(raw_mode=True))

    class Crowded:
        """A database whose memory is full at first."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            self._database = Rdict(*arguments, **options)

        def write(self, batch: WriteBatch, *options: Any) -> None:
            nonlocal stalls
            if options and stalls:
                stalls -= 1
                elsewhere.write(batch)  # as RocksDB does, it uses the batch up
                raise Exception("Operation aborted: Write stall")
            self._database.write(batch, *options)

        def __getattr__(self, method: str) -> Any:
            return getattr(self._database, method)

    RocksStore.create(tmp_path / "store", 1, CONFIGURATION).close()
    monkeypatch.setattr(rocks_files, "Rdict", Crowded)
    store = RocksStore.open(tmp_path / "store")
    assert ask_one(store, put(b"k", 1, record(1))) == Accepted(ballot(1))
    assert (stalls, names_in(store)) == (0, [b"k"])
    store.close()
    elsewhere.close()


def test_a_membership_that_was_durable_after_all_is_known_when_the_store_is_open_again(
    rocks: RocksStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = Membership(Configuration(CONFIGURATION.store_id, 2, ((1, 2),)))

    def fails(*snapshot_and_others: object) -> None:
        del snapshot_and_others  # or the traceback would keep the database open
        raise StoreError("the disk is away")

    with monkeypatch.context() as broken:
        broken.setattr("objmeta.store.rocks._Instant", fails)  # the sync went well, and then something failed
        with pytest.raises(UnknownOutcome):
            ask_one(rocks, Adopt(newer))
    refused = ask_one(rocks, Prepare(b"k", ballot(1)))
    assert isinstance(refused, Refused)
    assert refused.membership == newer
    assert (rocks.membership, rocks.position) == (newer, 1)
