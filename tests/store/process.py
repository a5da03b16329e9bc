"""Processes of their own for the tests of durable stores: ``python -m tests.store.process ROLE KIND DIRECTORY …``."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from objmeta.core.configuration import single_set
from objmeta.core.listing import ScanRequest
from objmeta.core.messages import Accepted, Prepare, Promise
from objmeta.errors import ForkedClient
from objmeta.store import rocks_files
from objmeta.store.rocks import RocksStore
from objmeta.store.sqlite import SqliteStore
from tests.store.build import CONFIGURATION, ask, ask_one, ballot, put, record, scan

BATCH = 8


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process in one of the roles below; killed on the way out if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.store.process", *arguments],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str]) -> str:
    """What the process printed until it ended by itself."""
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    return output


def name(batch: int, index: int) -> bytes:
    return b"%06d/%d" % (batch, index)


def _write(store: SqliteStore | RocksStore) -> None:
    """Writes batch after batch and says so once each is durable, until it is killed."""
    batch = 0
    while True:
        replies = ask(store, *[put(name(batch, index), 1, record(1, data=b"d" * 500)) for index in range(BATCH)])
        assert all(isinstance(reply, Accepted) for reply in replies)
        print(batch, flush=True)
        batch += 1


def _compete(store: SqliteStore, who: str, rounds: str) -> None:
    """Prepares the same ballots as others on one register, writes registers of its own, and prints what it won."""
    sys.stdin.readline()
    won = []
    for counter in range(1, int(rounds) + 1):
        if isinstance(ask_one(store, Prepare(b"contended", ballot(counter))), Promise):
            won.append(counter)
        assert ask_one(store, put(f"{who}/{counter}".encode(), 1, record(1))) == Accepted(ballot(1))
    store.close()
    print(*won)


def _make(directory: Path) -> None:
    """Opens or makes the store together with others and prints which one it has."""
    sys.stdin.readline()
    store = SqliteStore.open_or_create(directory, 1, lambda: single_set(os.urandom(16), (1,)))
    print(store.configuration.store_id.hex())
    store.close()


def _fork(store: SqliteStore | RocksStore) -> None:
    """Forks with the store open; the child may neither use nor harm it, and ends the ordinary way."""
    ask_one(store, put(b"before", 1, record(1)))
    child = os.fork()
    if child == 0:
        try:
            ask_one(store, put(b"child", 1, record(1)))
        except ForkedClient:
            store.close()
            del store
            gc.collect()
            sys.exit(0)
        os._exit(1)
    for number in range(50):
        ask_one(store, put(b"parent-%d" % number, 1, record(1)))
    assert os.waitpid(child, 0)[1] == 0
    for number in range(50, 100):
        ask_one(store, put(b"parent-%d" % number, 1, record(1)))
    print("done")


def _fork_and_close(store: SqliteStore) -> None:
    """Forks; the child opens the store anew, and writes before and after the parent closes its own."""
    (opened, say_opened), (closed, say_closed) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with _exiting():
            os.close(say_closed)
            own = SqliteStore.open(store.path)
            assert ask_one(own, put(b"child-0", 1, record(1))) == Accepted(ballot(1))
            os.write(say_opened, b"x")
            assert os.read(closed, 1)
            assert ask_one(own, put(b"child-1", 1, record(1))) == Accepted(ballot(1))
    os.close(say_opened)
    assert os.read(opened, 1)
    assert ask_one(store, put(b"parent", 1, record(1))) == Accepted(ballot(1))
    store.close()
    os.write(say_closed, b"x")
    assert os.waitpid(child, 0)[1] == 0


def _fork_while_busy(store: SqliteStore, children: str, writes: str) -> None:
    """Forks while threads write, read and tidy up; each child opens the store anew and writes beside them."""
    stop = threading.Event()
    busy = [0, 0]

    def write(thread: int) -> None:
        while not stop.is_set():
            names = [b"thread-%d/%d" % (thread, busy[thread] + index) for index in range(BATCH)]
            replies = ask(store, *[put(each, 1, record(1, data=b"d" * 5000)) for each in names])
            assert replies == [Accepted(ballot(1))] * BATCH
            busy[thread] += BATCH

    def read() -> None:
        while not stop.is_set():
            scan(store, ScanRequest(b""))

    def tidy() -> None:
        while not stop.is_set():
            store.tidy()

    with ThreadPoolExecutor(4) as pool:
        working = [pool.submit(write, 0), pool.submit(write, 1), pool.submit(read), pool.submit(tidy)]
        try:
            for number in range(int(children)):
                child = os.fork()
                if child == 0:
                    with _exiting():
                        own = SqliteStore.open(store.path)
                        for index in range(int(writes)):
                            written = put(b"child-%d/%d" % (number, index), 1, record(1))
                            assert ask_one(own, written) == Accepted(ballot(1))
                assert os.waitpid(child, 0)[1] == 0
        finally:
            stop.set()
    for each in working:
        each.result()
    print(*busy)


@contextmanager
def _exiting() -> Iterator[None]:
    """Ends a forked child as a kill would: what was acknowledged has to be there, and nothing is tidied up."""
    try:
        yield
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _open(kind: str, path: Path) -> SqliteStore | RocksStore:
    if kind == "sqlite":
        return SqliteStore.open_or_create(path, 1, lambda: CONFIGURATION)
    return RocksStore.open(path) if rocks_files.exists(path) else RocksStore.create(path, 1, CONFIGURATION)


def main(arguments: Sequence[str]) -> None:
    role, kind, directory, *rest = arguments
    path = Path(directory)
    if role == "make":
        _make(path)
        return
    store = _open(kind, path)
    if role == "write":
        _write(store)
    elif role == "fork":
        _fork(store)
    else:
        assert isinstance(store, SqliteStore), "only SQLite's store is shared by processes"
        if role == "compete":
            _compete(store, *rest)
        elif role == "fork-while-busy":
            _fork_while_busy(store, *rest)
        else:
            _fork_and_close(store)


if __name__ == "__main__":
    main(sys.argv[1:])
