"""SqliteStore with several processes, killed processes and forked ones."""

from __future__ import annotations

import gc
import os
import signal
import sqlite3
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from objmeta.core.listing import ScanRequest
from objmeta.core.messages import Accepted, Fetch, Fetched, Prepare, Promise, Read
from objmeta.errors import ForkedClient
from objmeta.store.sqlite import SqliteStore
from tests.store.build import CONFIGURATION, TAG, ask_one, ballot, put, read_one, record, scan
from tests.store.process import BATCH, finish, name, started


@pytest.mark.parametrize("acknowledged", [1, 40, 150])
def test_what_a_killed_writer_acknowledged_is_there(tmp_path: Path, acknowledged: int) -> None:
    directory = tmp_path / "acceptor"
    last = -1
    with started("write", "sqlite", str(directory)) as writer:
        assert writer.stdout is not None
        while last + 1 < acknowledged:
            last = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        for line in writer.stdout.read().split():
            last = max(last, int(line))
        writer.wait()
    store = SqliteStore.open(directory)
    found = {row.name for row in scan(store, ScanRequest(b"", limit=100_000))[0]}
    for batch in range(last + 1):
        assert {name(batch, index) for index in range(BATCH)} <= found
    assert len(found) % BATCH == 0, "a batch is there as a whole or not at all"
    whole = record(1, data=b"d" * 500)
    assert read_one(store, Fetch(name(last, 0), (whole.ref,))) == Fetched((whole,))
    assert store.changes(0, 1).watermark == 1
    assert ask_one(store, put(b"next", 1, record(1))) == Accepted(ballot(1))
    store.close()


def test_a_second_process_goes_on_while_the_first_is_killed(tmp_path: Path, sqlite: SqliteStore) -> None:
    with started("write", "sqlite", str(sqlite.path)) as writer:
        assert writer.stdout is not None
        for counter in range(1, 30):
            writer.stdout.readline()
            assert ask_one(sqlite, put(b"here", counter, record(1))) == Accepted(ballot(counter))
    assert ask_one(sqlite, put(b"here", 30, record(1))) == Accepted(ballot(30))


def test_a_ballot_is_promised_to_one_process_only(tmp_path: Path) -> None:
    directory, processes, rounds = tmp_path / "acceptor", 4, 25
    SqliteStore.create(directory, 1, CONFIGURATION).close()
    with ExitStack() as stack:
        running = [
            stack.enter_context(started("compete", "sqlite", str(directory), str(number), str(rounds)))
            for number in range(processes)
        ]
        for process in running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        won = [int(counter) for process in running for counter in finish(process).split()]
    assert len(won) == len(set(won))
    assert rounds in won
    store = SqliteStore.open(directory)
    assert len(scan(store, ScanRequest(b""))[0]) == processes * rounds
    changes = store.changes(0, 1000)
    assert (len(changes.names), changes.watermark) == (processes * rounds, processes * rounds)
    assert isinstance(ask_one(store, Prepare(b"contended", ballot(rounds + 1))), Promise)
    store.close()


def test_of_several_makers_one_wins_and_the_others_open_its_store(tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "acceptor"
    with ExitStack() as stack:
        running = [stack.enter_context(started("make", "sqlite", str(directory))) for _ in range(4)]
        for process in running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        store_ids = {finish(process).strip() for process in running}
    store = SqliteStore.open(directory)
    assert store_ids == {store.configuration.store_id.hex()}
    store.close()
    assert [path.name for path in directory.iterdir()] == ["acceptor.db"]


def test_a_forked_child_is_refused(sqlite: SqliteStore) -> None:
    ask_one(sqlite, put(b"k", 1, record(1)))
    child = os.fork()
    if child == 0:
        code = 0
        for use in (
            lambda: sqlite.apply([]),
            lambda: sqlite.read([(TAG, Read(b"k"))]),
            lambda: sqlite.scan(TAG, ScanRequest(b"")),
            lambda: sqlite.changes(0, 1),
        ):
            try:
                use()
                code = 1
            except ForkedClient:
                continue
            except BaseException:
                code = 2
        sqlite.close()
        gc.collect()
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert ask_one(sqlite, put(b"k", 2, record(1))) == Accepted(ballot(2))


def test_a_forked_child_that_ends_does_not_harm_its_parent(tmp_path: Path) -> None:
    directory = tmp_path / "acceptor"
    with started("fork", "sqlite", str(directory)) as process:
        assert finish(process) == "done\n"
    store = SqliteStore.open(directory)
    assert len(scan(store, ScanRequest(b""))[0]) == 101
    store.close()


def sound_names(directory: Path) -> set[bytes]:
    """The registers of a store, once SQLite has found nothing wrong with its files."""
    with closing(sqlite3.connect(directory / "acceptor.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    store = SqliteStore.open(directory)
    found = {row.name for row in scan(store, ScanRequest(b"", limit=100_000))[0]}
    store.close()
    return found


def test_a_forked_child_keeps_what_it_wrote_when_its_parent_closes(tmp_path: Path) -> None:
    directory = tmp_path / "acceptor"
    with started("fork-and-close", "sqlite", str(directory)) as process:
        finish(process)
    assert sound_names(directory) == {b"parent", b"child-0", b"child-1"}


def test_a_fork_in_the_midst_of_transactions(tmp_path: Path) -> None:
    directory, children, writes = tmp_path / "acceptor", 12, 5
    with started("fork-while-busy", "sqlite", str(directory), str(children), str(writes)) as process:
        written = [int(count) for count in finish(process).split()]
    assert all(written)
    expected = {b"thread-%d/%d" % (thread, index) for thread in (0, 1) for index in range(written[thread])}
    expected |= {b"child-%d/%d" % (number, index) for number in range(children) for index in range(writes)}
    assert sound_names(directory) == expected
