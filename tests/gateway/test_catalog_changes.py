"""What a refresh writes (gateway/catalog/rows.py), and its checkpoint (gateway/catalog/checkpoints.py)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pytest

import objmeta
from gateway.catalog import checkpoints, query, schema
from gateway.catalog.query import Session, sql
from objmeta.errors import NoSuchKey

ALL = "SELECT bucket, key, size FROM versions ORDER BY ALL"
BUCKETS = ("one", "two")
QUERY = """
import sys, objmeta
from gateway.catalog.query import sql
with objmeta.connect(sys.argv[1]) as client:
    print(sql(client, "SELECT count(*) FROM versions", catalog=sys.argv[2]).rows(), flush=True)
"""


@pytest.fixture
def client(tmp_path: Path) -> Iterator[objmeta.Client]:
    with objmeta.connect(tmp_path / "store") as client:
        for bucket in BUCKETS:
            client.create_bucket(bucket)
        yield client


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kept.duckdb"


def log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.wal")


def rows_of(path: Path) -> list[tuple[object, ...]]:
    checkpoints.wait()
    with duckdb.connect(str(path), read_only=True) as database:
        return database.execute("SELECT rowid, key, size, is_latest FROM version_rows ORDER BY rowid").fetchall()


@pytest.mark.parametrize("seed", range(3))
def test_after_any_changes_it_is_as_if_made_anew(client: objmeta.Client, path: Path, seed: int) -> None:
    chance = random.Random(seed)
    keys = [f"{number % 3}/{number}" for number in range(8)]
    for _ in range(9):
        for _ in range(chance.randrange(12)):
            bucket, key = chance.choice(BUCKETS), chance.choice(keys)
            what = chance.choice(("put", "put", "put", "delete", "remove", "restore", "again"))
            versions = client.list_versions(bucket, prefix=key).versions
            some = chance.choice(versions) if versions else None
            if what == "put":
                client.put_object(bucket, key, data=bytes(chance.randrange(50)), metadata={"n": f"{chance.random()}"})
            elif what == "delete":
                with contextlib.suppress(NoSuchKey):
                    client.delete_object(bucket, key)
            elif what == "again":
                client.put_object(bucket, key, data=b"same")
            elif some is not None and what == "remove":
                client.remove_version(bucket, some.key, some.version_id)
            elif some is not None and not some.is_delete_marker:
                client.copy_object(bucket, some.key, bucket, key, version_id=some.version_id)
        for table in ("objects", "versions", "chunks", "changes"):
            all_of_it = f"SELECT * FROM {table} ORDER BY ALL"
            anew = sql(client, all_of_it, catalog=":memory:").rows()
            assert sql(client, all_of_it, catalog=path).rows() == anew, table


def test_rows_that_are_there_stay(client: objmeta.Client, path: Path) -> None:
    for key in ("a", "b"):
        for size in (1, 2):
            client.put_object("one", key, data=bytes(size))
    sql(client, ALL, catalog=path)
    assert rows_of(path) == [(0, "a", 2, True), (1, "b", 2, True), (2, "a", 1, False), (3, "b", 1, False)]
    newest = client.put_object("one", "a", data=bytes(3))
    sql(client, ALL, catalog=path)
    there = [(1, "b", 2, True), (2, "a", 1, False), (3, "b", 1, False)]
    assert rows_of(path) == [(0, "a", 2, False), *there, (4, "a", 3, True)]
    client.remove_version("one", "a", newest.version_id)
    sql(client, ALL, catalog=path)
    assert rows_of(path) == [(0, "a", 2, True), *there]


def test_objects_of_the_same_number_are_told_apart(client: objmeta.Client, path: Path) -> None:
    keys = "SELECT 'one' AS bucket, range::VARCHAR AS key FROM range(500000)"
    with duckdb.connect() as database:
        same = f"SELECT min(key), max(key) FROM ({keys}) GROUP BY {schema._OBJECT} HAVING count(*) > 1 LIMIT 1"
        first, second = database.execute(same).fetchall()[0]
    for key in (first, second):
        version = client.put_object("one", key, data=b"1")
    sql(client, ALL, catalog=path)
    client.put_object("one", first, data=b"22")
    found = sql(client, ALL, catalog=path)
    assert (found.rows(), found.looked_at) == ([("one", first, 1), ("one", first, 2), ("one", second, 1)], 1)
    client.remove_version("one", second, version.version_id)
    found = sql(client, ALL, catalog=path)
    assert (found.rows(), found.looked_at) == ([("one", first, 1), ("one", first, 2)], 1)


def test_a_bucket_made_anew_whose_changes_come_in_several_pages(
    client: objmeta.Client, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query, "_CHANGES", 2)
    client.put_object("one", "old", data=b"x")
    sql(client, ALL, catalog=path)
    client.delete_object("one", "old")
    client.remove_version("one", "old", client.list_versions("one").versions[1].version_id)
    for version in client.list_versions("one").versions:
        client.remove_version("one", "old", version.version_id)
    client.remove_bucket("one")
    client.create_bucket("one")
    for number in range(50):
        client.put_object("one", f"{number:02}", data=b"x")
    found = sql(client, ALL, catalog=path)
    assert found.rows() == [("one", f"{number:02}", 1) for number in range(50)]


async def test_a_live_session_has_the_buckets_there_are(client: objmeta.Client, tmp_path: Path) -> None:
    async with objmeta.connect_async(tmp_path / "store") as own, Session(own, live=True) as session:
        for _ in range(2):
            assert (await session.sql("SELECT bucket FROM buckets ORDER BY 1")).rows() == [("one",), ("two",)]
            await session.sql("DELETE FROM kept.buckets")


def long_log(client: objmeta.Client, path: Path) -> None:
    """Have a query leave a log that is worth a checkpoint."""
    sql(client, ALL, catalog=path)
    client.put_object("one", "key", data=b"", metadata={"text": "x" * 200_000})
    sql(client, ALL, catalog=path)


def test_the_log_goes_to_the_file_after_the_answer(client: objmeta.Client, path: Path) -> None:
    long_log(client, path)
    checkpoints.wait()
    assert not log_of(path).exists()
    expected = sql(client, ALL, catalog=":memory:").rows()
    found = sql(client, ALL, catalog=path)
    assert (found.rows(), found.looked_at) == (expected, 0)


def test_where_it_is_read_no_checkpoint_is_made(client: objmeta.Client, path: Path) -> None:
    sql(client, ALL, catalog=path)
    lock = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR)
    long_log(client, path)
    checkpoints.wait()
    log_of(path).write_bytes(bytes(100_000))  # whatever it is: nobody may touch it now
    fcntl.flock(lock, fcntl.LOCK_SH)
    checkpoints.begin(path, log_of(path), path.with_name(f"{path.name}.lock"))
    checkpoints.wait()
    assert log_of(path).read_bytes() == bytes(100_000)
    os.close(lock)


def test_a_catalog_that_was_removed_is_not_made_by_a_checkpoint(client: objmeta.Client, path: Path) -> None:
    long_log(client, path)
    checkpoints.wait()
    path.unlink()
    log_of(path).write_bytes(bytes(100_000))
    checkpoints.begin(path, log_of(path), path.with_name(f"{path.name}.lock"))
    checkpoints.wait()
    assert not path.exists()
    log_of(path).unlink()
    assert sql(client, ALL, catalog=path).looked_at == 1


def test_beginning_a_checkpoint_waits_for_nothing(client: objmeta.Client, path: Path) -> None:
    """Python may do it anywhere, when it lets go of a query that was dropped: also while another one is waited for."""
    long_log(client, path)
    checkpoints.wait()
    log_of(path).write_bytes(bytes(100_000))
    checkpoints._CHECKPOINTS.before_fork()
    try:
        checkpoints.begin(path, log_of(path), path.with_name(f"{path.name}.lock"))
    finally:
        checkpoints._CHECKPOINTS.after_fork(False)
    checkpoints.wait()
    assert log_of(path).read_bytes() == bytes(100_000), "none was begun"


def test_where_no_thread_can_be_started_queries_go_on(
    client: objmeta.Client, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    sql(client, ALL, catalog=path)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        checkpoints.begin(path, path, path.with_name(f"{path.name}.lock"))
    checkpoints.wait()
    assert sql(client, ALL, catalog=path).looked_at == 0


def test_a_disk_that_is_full_by_then(
    client: objmeta.Client, make_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No checkpoint, and nothing else: the log is part of the catalog."""
    disk = make_disk(8)
    path, filler = disk / "kept.duckdb", disk / "filler"
    everything = "SELECT * FROM versions ORDER BY ALL"
    for number in range(400):
        client.put_object("one", f"{number}", data=b"x")
    sql(client, everything, catalog=path)
    checkpoints.wait()
    for number in range(400):
        client.put_object("one", f"{number}", data=b"yy", metadata={"text": "z" * 500})
    begun: list[tuple[Path, Path, Path]] = []
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "begin", lambda *given: begun.append(given))
        sql(client, everything, catalog=path)
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    checkpoints.begin(*begun[0])
    checkpoints.wait()
    expected = sql(client, everything, catalog=":memory:").rows()
    for _ in range(2):
        found = sql(client, everything, catalog=path)
        assert (found.rows(), found.looked_at) == (expected, 0)
        checkpoints.wait()
        filler.unlink(missing_ok=True)
    assert not log_of(path).exists()


def test_a_process_that_is_killed_in_its_checkpoint(client: objmeta.Client, path: Path, tmp_path: Path) -> None:
    everything = "SELECT * FROM versions ORDER BY ALL"
    command = [sys.executable, "-c", QUERY, str(tmp_path / "store"), str(path)]
    sql(client, everything, catalog=path)
    for number in range(5):
        client.put_object("one", f"{number}", data=b"", metadata={"text": f"{number}" * 200_000})
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.01 * number)
            process.kill()
        found = sql(client, everything, catalog=path)
        assert (found.rows(), found.looked_at) == (sql(client, everything, catalog=":memory:").rows(), 0)


def test_a_process_ends_after_its_checkpoint(client: objmeta.Client, path: Path, tmp_path: Path) -> None:
    sql(client, ALL, catalog=path)
    client.put_object("one", "key", data=b"", metadata={"text": "x" * 200_000})
    command = [sys.executable, "-c", QUERY, str(tmp_path / "store"), str(path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert (ended.stdout, ended.stderr) == ("[(1,)]\n", "")
    assert not log_of(path).exists()


def test_a_fork_waits_for_a_checkpoint(client: objmeta.Client, path: Path) -> None:
    long_log(client, path)
    child = os.fork()
    if not child:
        os._exit(int(log_of(path).exists()))
    assert os.waitpid(child, 0)[1] == 0
