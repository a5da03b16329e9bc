"""RocksStore's log: what is torn, damaged, or written over older batches."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from rocksdict import AccessType, Options, Rdict

from objmeta.core.messages import Accepted
from objmeta.errors import IntegrityError
from objmeta.store import rocks_files
from objmeta.store.rocks import RocksStore
from tests.store.build import CONFIGURATION, ask, ask_one, ballot, put, record
from tests.store.rocks import crashed, flip, log_of, names_in, zero


def test_a_batch_whose_number_lies_across_two_blocks_of_the_log_is_read(rocks: RocksStore) -> None:
    ask(rocks, put(b"k", 1, record(1)))
    log, written = log_of(rocks.path), 1

    def write(body_bytes: int) -> int:
        nonlocal written
        written += 1
        before = log.stat().st_size
        ask(rocks, put(b"k%06d" % written, 1, record(written, body=b"b" * body_bytes)))
        return log.stat().st_size - before

    block, number_at = 32 << 10, 11 + 12 + 6 + 16  # headers of record and batch, the key of the position, the mark
    beside = write(4000) - 4000
    for cut in range(1, 8):
        begin = block - cut - number_at
        while missing := (begin - log.stat().st_size) % block:
            write(missing - beside if 300 <= missing - beside <= 8000 else 4000)
        write(1000)
    rocks.close()
    with_all = RocksStore.open(rocks.path)
    assert len(names_in(with_all)) == written
    with_all.close()


def written(directory: Path, batches: int, data: bytes = b"") -> Path:
    """Files as a crash after that many batches leaves them: all is in the log."""
    store = RocksStore.create(directory / "original", 1, CONFIGURATION)
    for number in range(batches):
        ask_one(store, put(b"%06d" % number, 1, record(1, data=data), value=os.urandom(100)))
    copy = crashed(store, directory / "copy")
    store.close()
    return copy


@pytest.mark.parametrize("where", ["begin", "first block", "middle", "block", "sector", "near the end"])
def test_a_log_that_lost_what_was_acknowledged_is_refused_for_good(tmp_path: Path, where: str) -> None:
    path = written(tmp_path, 300, data=bytes(100))
    log = log_of(path)
    size = log.stat().st_size
    assert size > 96 << 10, "so that there are blocks in the middle"
    if where in ("begin", "middle", "near the end"):
        flip(log, {"begin": 40, "middle": size // 2, "near the end": size - 1200}[where])
    else:
        zero(
            log,
            {"first block": 0, "block": 32 << 10, "sector": 40 << 10}[where],
            4096 if where == "sector" else 32 << 10,
        )
    for _ in range(2):
        with pytest.raises(IntegrityError, match=r"log .* is damaged.*replace the node"):
            RocksStore.open(path)


@pytest.mark.parametrize("torn", ["cut", "one byte", "garbage", "zeros", "followed by zeros"])
def test_a_batch_that_was_being_written_is_dropped_as_a_whole(tmp_path: Path, torn: str) -> None:
    path = written(tmp_path, 40, data=os.urandom(40_000))
    log = log_of(path)
    content = log.read_bytes()
    if torn == "followed by zeros":
        log.write_bytes(content + bytes(100_000))
    elif torn == "cut":
        log.write_bytes(content[:-10_000])
    elif torn == "one byte":
        flip(log, len(content) - 20_000)
    else:
        zero(log, len(content) - 36_000, 36_000)
        if torn == "garbage":
            log.write_bytes(log.read_bytes()[:-9000] + os.urandom(9000))
    store = RocksStore.open(path)
    kept = 40 if torn == "followed by zeros" else 39
    assert names_in(store) == [b"%06d" % number for number in range(kept)]
    assert store.count() == kept
    assert ask_one(store, put(b"after", 1, record(1))) == Accepted(ballot(1))
    again = RocksStore.open(crashed(store, tmp_path / "again"))
    assert len(names_in(again)) == kept + 1
    store.close()
    again.close()


@pytest.fixture(scope="module")
def used_again(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[bytes]]:
    """Files as a crash leaves them when the log was written over for the second time, and the names that are there."""
    directory = tmp_path_factory.mktemp("again")
    store = RocksStore.create(directory / "original", 1, CONFIGURATION)
    names: list[bytes] = []
    seen: dict[int, int] = {}
    lives = batches = 0
    while lives < 2 or batches < 20:
        names.append(b"%06d" % len(names))
        ask_one(store, put(names[-1], 1, record(1, data=os.urandom(300_000 if lives < 2 else 2000))))
        log = max(rocks_files.database_path(store.path).glob("*.log"))
        there = log.stat()
        reused = seen.get(there.st_ino, 0) not in (0, int(log.stem))
        lives, batches = (lives + 1, 0) if reused else (lives, batches + 1)
        seen[there.st_ino] = int(log.stem)
        assert len(names) < 1000, "no log was used again"
    copy = crashed(store, directory / "copy")
    store.close()
    return copy, names


def newest_log_of(path: Path) -> tuple[Path, bytes, list[int]]:
    """The log being written, its content, and where in it this life's batches begin (their marks)."""
    log = max(rocks_files.database_path(path).glob("*.log"))
    content = log.read_bytes()
    database = Rdict(str(log.parent), Options(raw_mode=True), access_type=AccessType.read_only())
    position = database.get(b"mp")
    database.close()
    assert position is not None
    mark = position[:16]
    starts = [found.start() for found in re.finditer(re.escape(mark), content)]
    numbers = [int.from_bytes(content[at + 16 : at + 24]) for at in starts]
    own = numbers.index(max(numbers)) + 1
    assert own > 15
    assert len(starts) > own, "older batches lie behind"
    return log, content, starts[:own]


def test_a_log_that_is_written_over_is_read_to_its_end_and_no_further(
    used_again: tuple[Path, list[bytes]], tmp_path: Path
) -> None:
    origin, names = used_again
    path = tmp_path / "store"
    shutil.copytree(origin, path)
    newest_log_of(path)
    store = RocksStore.open(path)
    assert names_in(store) == names
    assert ask_one(store, put(b"after", 1, record(1))) == Accepted(ballot(1))
    again = RocksStore.open(crashed(store, tmp_path / "again"))
    assert names_in(again) == [*names, b"after"]
    store.close()
    again.close()


@pytest.mark.parametrize("where", ["begin", "first batch", "middle", "last but one", "zeros"])
def test_damage_in_a_log_that_is_written_over_is_refused(
    used_again: tuple[Path, list[bytes]], tmp_path: Path, where: str
) -> None:
    path = tmp_path / "store"
    shutil.copytree(used_again[0], path)
    log, _, starts = newest_log_of(path)
    if where == "zeros":
        zero(log, starts[5], starts[8] - starts[5])
    else:
        flip(log, {"begin": 3, "first batch": starts[0] + 400, "middle": starts[9] + 400}.get(where, starts[-2] + 400))
    for _ in range(2):
        with pytest.raises(IntegrityError, match=r"log .* is damaged.*replace the node"):
            RocksStore.open(path)


@pytest.mark.parametrize("torn", ["never written", "half", "one byte"])
def test_a_batch_that_was_being_written_over_older_ones_is_dropped_as_a_whole(
    used_again: tuple[Path, list[bytes]], tmp_path: Path, torn: str
) -> None:
    origin, names = used_again
    path = tmp_path / "store"
    shutil.copytree(origin, path)
    log, content, starts = newest_log_of(path)
    last = starts[-1] + 24  # of the last batch the mark and the number at least were written
    if torn == "one byte":
        flip(log, last + 400)
    else:
        older = os.urandom(1500)
        at = last if torn == "never written" else last + 500
        log.write_bytes(content[:at] + older + content[at + len(older) :])
    store = RocksStore.open(path)
    assert names_in(store) == names[:-1]
    assert store.count() == len(names) - 1
    store.close()
