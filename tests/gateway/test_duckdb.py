"""DuckDB on objmeta:// paths, with as many threads as it likes."""

from __future__ import annotations

import _thread
import asyncio
import concurrent.futures
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from gateway.data.uploading import Upload
from gateway.fs.filesystem import ObjmetaFileSystem
from objmeta import ObjectVersion

ROWS = 400_000


@pytest.fixture
def con(fs: ObjmetaFileSystem) -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as found:
        found.register_filesystem(fs)
        yield found


def write(fs: ObjmetaFileSystem, path: str, start: int, rows: int = ROWS) -> int:
    """A Parquet file of several chunks and many row groups, its numbers in no order; returns their sum."""
    numbers = [(start + index) * 2_654_435_761 % (1 << 40) for index in range(rows)]
    table = pa.table({"n": numbers, "pad": [os.urandom(16) for _ in numbers]})
    with fs.open(path, "wb") as file:
        pq.write_table(table, file, row_group_size=10_000, compression=None)
    return sum(numbers)


def test_many_threads_read_one_file_and_the_sums_are_right(
    fs: ObjmetaFileSystem, con: duckdb.DuckDBPyConnection
) -> None:
    expected = write(fs, "bucket/a.parquet", 0) + write(fs, "bucket/b.parquet", ROWS)
    assert fs.size("bucket/a.parquet") > 8 << 20
    for threads in (1, 4, 16):
        con.execute(f"SET threads = {threads}")
        for _ in range(3):
            query = "SELECT sum(n::HUGEINT), count(*), sum(octet_length(pad)) FROM 'objmeta://bucket/*.parquet'"
            assert con.sql(query).fetchall() == [(expected, 2 * ROWS, 32 * ROWS)]
    assert con.sql("SELECT count(*) FROM read_parquet('objmeta://bucket/b.parquet')").fetchall() == [(ROWS,)]


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns a thousand times as often as they do by default."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


def test_threads_that_take_turns_at_every_step_do_not_mix_up_positions(
    fs: ObjmetaFileSystem, con: duckdb.DuckDBPyConnection, restless: None
) -> None:
    expected = write(fs, "bucket/a.parquet", 0, 100_000)
    con.execute("SET threads = 8")
    for _ in range(10):
        assert con.sql("SELECT sum(n::HUGEINT) FROM 'objmeta://bucket/a.parquet'").fetchall() == [(expected,)]


def test_a_query_under_way_keeps_its_versions(fs: ObjmetaFileSystem, con: duckdb.DuckDBPyConnection) -> None:
    expected = write(fs, "bucket/a.parquet", 0)
    con.execute("SET threads = 2")
    result = con.execute("SELECT n FROM 'objmeta://bucket/a.parquet'")
    found = [row[0] for row in result.fetchmany(10)]
    fs.pipe_file("bucket/a.parquet", b"something else")
    while rows := result.fetchmany(50_000):
        found += [row[0] for row in rows]
    assert sum(found) == expected


def test_results_are_stored_and_partitioned(fs: ObjmetaFileSystem, con: duckdb.DuckDBPyConnection) -> None:
    con.execute("COPY (SELECT i, i % 3 AS p FROM range(100) t(i)) TO 'objmeta://bucket/one.parquet'")
    assert con.sql("SELECT sum(i) FROM 'objmeta://bucket/one.parquet'").fetchall() == [(4950,)]
    con.execute(
        "COPY (FROM 'objmeta://bucket/one.parquet') TO 'objmeta://bucket/parts' (FORMAT parquet, PARTITION_BY (p))"
    )
    assert fs.ls("bucket/parts", detail=False) == ["bucket/parts/p=0", "bucket/parts/p=1", "bucket/parts/p=2"]
    query = (
        "SELECT count(*) FROM read_parquet('objmeta://bucket/parts/**/*.parquet', hive_partitioning = true) WHERE p = 1"
    )
    assert con.sql(query).fetchall() == [(33,)]
    con.execute("COPY (SELECT 1 AS a) TO 'objmeta://bucket/deep/er/x.csv' (HEADER)")
    assert fs.cat_file("bucket/deep/er/x.csv") == b"a\n1\n"


def test_values_of_partitions_come_back_as_they_were(fs: ObjmetaFileSystem, con: duckdb.DuckDBPyConnection) -> None:
    values = ["a b", "ü😀", "50%", "x/y", "[1]", "a#1", "?versionId=1", "=", "", None]
    con.execute("CREATE TABLE t AS SELECT unnest(?) AS p, 1 AS n", [values])
    con.execute("COPY t TO 'objmeta://bucket/parts' (FORMAT csv, PARTITION_BY (p))")
    found = con.sql("SELECT p, n FROM read_csv('objmeta://bucket/parts/*/*.csv', hive_types = {'p': VARCHAR})")
    assert dict(found.fetchall()) == dict.fromkeys(values, 1)
    one = "SELECT n FROM read_csv('objmeta://bucket/parts/*/*.csv', hive_types = {'p': VARCHAR}) WHERE p = 'a b'"
    assert con.sql(one).fetchall() == [(1,)]


@pytest.mark.parametrize("form", ["parquet", "csv", "json"])
@pytest.mark.parametrize("option", ["USE_TMP_FILE true", "USE_TMP_FILE false", "PER_THREAD_OUTPUT true"])
def test_ways_to_write(fs: ObjmetaFileSystem, con: duckdb.DuckDBPyConnection, form: str, option: str) -> None:
    con.execute("SET threads = 4")
    con.execute(f"COPY (FROM range(300_000) t(i)) TO 'objmeta://bucket/out.{form}' (FORMAT {form}, {option})")
    files = fs.find("bucket")
    several = option.startswith("PER_THREAD")
    assert all(path.startswith(f"bucket/out.{form}/") for path in files) if several else files == [f"bucket/out.{form}"]
    where = f"objmeta://bucket/out.{form}" + (f"/*.{form}" if several else "")
    assert con.sql(f"SELECT count(*), sum(i) FROM '{where}'").fetchall() == [(300_000, 300_000 * 299_999 // 2)]


@pytest.mark.parametrize("options", ["", "(FORMAT csv)", "(FORMAT json)", "(FORMAT parquet, USE_TMP_FILE true)"])
@pytest.mark.parametrize("threads", [1, 4])
def test_what_fails_at_once_leaves_nothing(fs: ObjmetaFileSystem, options: str, threads: int) -> None:
    # who closes the file, and whether before or after DuckDB looks for it to remove it, differs from run to run
    for number in range(40):
        with duckdb.connect() as con:
            con.register_filesystem(fs)
            con.execute(f"SET threads = {threads}")
            with pytest.raises(duckdb.Error, match="stop"):
                con.execute(f"COPY (SELECT error('stop') FROM range(1000)) TO 'objmeta://bucket/{number}' {options}")
        assert fs.find("bucket") == []


@pytest.mark.parametrize("option", ["PER_THREAD_OUTPUT", "PARTITION_BY (p)"])
def test_of_a_directory_that_fails_nothing_but_the_directory_stays(
    fs: ObjmetaFileSystem, con: duckdb.DuckDBPyConnection, option: str
) -> None:
    rows = "SELECT error('stop') AS n, 1 AS p FROM range(1000)"
    for number in range(20):
        with pytest.raises(duckdb.Error, match="stop"):
            con.execute(f"COPY ({rows}) TO 'objmeta://bucket/{number}' (FORMAT csv, {option})")
        assert fs.find("bucket") == []
        con.execute(f"COPY (SELECT 1 AS n, 1 AS p) TO 'objmeta://bucket/{number}' (FORMAT csv, {option})")
        assert len(fs.find("bucket")) == 1
        fs.rm(f"bucket/{number}", recursive=True)


def test_a_missing_file_is_an_error(con: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(duckdb.IOException, match="No files found"):
        con.sql("FROM 'objmeta://bucket/none.parquet'")


def opened_by_no_python(fs: ObjmetaFileSystem, path: str) -> Any:
    """A file opened for writing as DuckDB's own threads do it: no Python code is calling."""
    found: list[Any] = []
    _thread.start_new_thread(found.extend, (map(fs.open, [path], ["wb"]),))
    deadline = time.monotonic() + 30
    while not found:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return found[0]


def test_what_duckdb_looks_for_before_it_closes_it_is_not_published(fs: ObjmetaFileSystem) -> None:
    handle = opened_by_no_python(fs, "bucket/x.csv")
    assert not fs.isfile("objmeta://bucket/x.csv")
    handle.close()
    assert handle.version is None
    assert not fs.exists("bucket/x.csv")
    opened_by_no_python(fs, "bucket/x.csv").close()  # nobody looked for this one
    assert fs.size("bucket/x.csv") == 0


def test_what_has_content_is_published_whoever_looks_for_it(fs: ObjmetaFileSystem) -> None:
    with opened_by_no_python(fs, "bucket/x.csv") as handle:
        handle.write(b"a")
        assert not fs.isfile("bucket/x.csv")
    with fs.open("bucket/empty.csv", "wb"):  # by Python code
        assert not fs.isfile("bucket/empty.csv")
    assert fs.isfile("bucket/x.csv")
    assert fs.isfile("bucket/empty.csv")


def test_who_looks_for_a_file_that_is_being_published_waits(
    fs: ObjmetaFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_go_on = threading.Event(), threading.Event()
    inner = Upload.commit

    async def commit(self: Upload) -> ObjectVersion:
        begun.set()
        await asyncio.to_thread(may_go_on.wait)
        return await inner(self)

    monkeypatch.setattr(Upload, "commit", commit)
    handle = opened_by_no_python(fs, "bucket/x.csv")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        closing = pool.submit(handle.close)
        assert begun.wait(30)
        asked = pool.submit(fs.isfile, "bucket/x.csv")
        early = concurrent.futures.wait([asked], timeout=0.1).done
        may_go_on.set()
        closing.result()
        assert not early
        assert asked.result()


@pytest.mark.parametrize("form", ["parquet", "csv"])
@pytest.mark.parametrize("option", ["USE_TMP_FILE true", "USE_TMP_FILE false", "PER_THREAD_OUTPUT", "PARTITION_BY (p)"])
def test_what_fails_late_is_not_there_either(
    fs: ObjmetaFileSystem, con: duckdb.DuckDBPyConnection, form: str, option: str
) -> None:
    con.execute("SET threads = 4")
    rows = "SELECT i % 3 AS p, CASE WHEN i = 700_000 THEN error('stop')::INT ELSE i END AS n FROM range(800_000) t(i)"
    with pytest.raises(duckdb.Error, match="stop"):
        con.execute(f"COPY ({rows}) TO 'objmeta://bucket/out' (FORMAT {form}, {option})")
    # DuckDB closes what it then removes, and closing publishes: what there was for a moment stays in the history.
    assert fs.find("bucket") == []


def test_what_fails_leaves_what_was_there(fs: ObjmetaFileSystem, con: duckdb.DuckDBPyConnection) -> None:
    fs.pipe_file("bucket/x.csv", b"a\n1\n")
    version = fs.ukey("bucket/x.csv")
    rows = "SELECT CASE WHEN i = 700_000 THEN error('stop')::INT ELSE i END FROM range(800_000) t(i)"
    with pytest.raises(duckdb.Error, match="stop"):
        con.execute(f"COPY ({rows}) TO 'objmeta://bucket/x.csv'")
    assert fs.ukey("bucket/x.csv") == version


def test_a_database_is_exported_and_imported(fs: ObjmetaFileSystem, con: duckdb.DuckDBPyConnection) -> None:
    con.execute("CREATE TABLE t AS FROM range(1000) r(i); CREATE VIEW v AS SELECT max(i) AS most FROM t")
    con.execute("EXPORT DATABASE 'objmeta://bucket/export' (FORMAT parquet)")
    assert fs.find("bucket/export") == [f"bucket/export/{name}" for name in ("load.sql", "schema.sql", "t.parquet")]
    with duckdb.connect() as other:
        other.register_filesystem(fs)
        other.execute("IMPORT DATABASE 'objmeta://bucket/export'")
        assert other.sql("FROM v").fetchall() == [(999,)]


def test_a_dataset_gets_the_filters_of_a_query(fs: ObjmetaFileSystem, con: duckdb.DuckDBPyConnection) -> None:
    con.execute(
        "COPY (SELECT i, i % 2 AS p FROM range(100) t(i)) TO 'objmeta://bucket/t' (FORMAT parquet, PARTITION_BY (p))"
    )
    for path in fs.find("bucket/t/p=0"):
        fs.pipe_file(path, b"no table, so whoever reads it fails")
    found = pyarrow.dataset.dataset(fs.find("bucket/t/p=1"), filesystem=fs, partitioning="hive").schema
    table = pyarrow.dataset.dataset("bucket/t", filesystem=fs, schema=found, partitioning="hive")
    con.register("t", table)
    assert con.sql("SELECT count(*) FROM t WHERE p = 1").fetchall() == [(50,)]


def test_a_dataset_reads_no_columns_and_row_groups_that_are_not_asked_for(
    fs: ObjmetaFileSystem, con: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pa.table({"n": range(4000), "pad": [os.urandom(16_000) for _ in range(4000)]})  # more than is read ahead
    with fs.open("bucket/a.parquet", "wb") as file:
        pq.write_table(table, file, row_group_size=1000, compression=None)
    found: list[int] = []
    inner = ObjmetaFileSystem._read_version

    async def counted(self: ObjmetaFileSystem, version: ObjectVersion, start: int, stop: int) -> bytes:
        found.append(stop - start)
        return await inner(self, version, start, stop)

    monkeypatch.setattr(ObjmetaFileSystem, "_read_version", counted)

    def read(query: str) -> int:
        found.clear()
        con.execute(query).fetchall()
        return sum(found)

    con.register("dataset", pyarrow.dataset.dataset("bucket/a.parquet", filesystem=fs))
    con.register("copy", table)
    whole = read("SELECT n, octet_length(pad) FROM dataset")
    assert whole >= table.nbytes
    assert read("SELECT sum(n) FROM dataset") < whole / 2
    assert read("SELECT n, octet_length(pad) FROM dataset WHERE n < 1000") < whole / 2
    plans = {
        name: con.execute(f"EXPLAIN SELECT sum(n) FROM {name} WHERE n < 9").fetchall() for name in ("dataset", "copy")
    }
    assert "Filters:" in plans["dataset"][0][1]
    assert "Filters:" not in plans["copy"][0][1]  # DuckDB filters what is in memory by itself


def test_a_database_is_attached_for_reading(
    fs: ObjmetaFileSystem, con: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    with duckdb.connect(tmp_path / "made.duckdb") as made:
        made.execute("CREATE TABLE t AS SELECT i, hash(i) AS h FROM range(200_000) t(i)")
        expected = made.sql("SELECT sum(i), bit_xor(h) FROM t").fetchall()
    fs.put_file(tmp_path / "made.duckdb", "bucket/made.duckdb")
    con.execute("SET threads = 4")
    con.execute("ATTACH 'objmeta://bucket/made.duckdb' AS other (READ_ONLY)")
    fs.pipe_file("bucket/made.duckdb", b"replaced")  # what is attached is one version
    for _ in range(3):
        assert con.sql("SELECT sum(i), bit_xor(h) FROM other.t").fetchall() == expected
    with pytest.raises(duckdb.Error, match="read-only"):
        con.execute("INSERT INTO other.t VALUES (1, 1)")
    con.execute("DETACH other")
    with pytest.raises(duckdb.Error, match="not offered: objects are replaced as a whole"):
        con.execute("ATTACH 'objmeta://bucket/made.duckdb' AS other")
    assert fs.cat_file("bucket/made.duckdb") == b"replaced"


@pytest.mark.parametrize("name", ["plain.csv", "a b.csv", "ü😀.csv", "[1].csv", "a#1.csv", "100%.csv"])
def test_names(fs: ObjmetaFileSystem, con: duckdb.DuckDBPyConnection, name: str) -> None:
    fs.pipe({f"bucket/{name}": b"a\n7\n", "bucket/decoy.txt": b"a\n8\n"})
    assert con.sql(f"SELECT * FROM read_csv('objmeta://bucket/{name}')").fetchall() == [(7,)]
    assert con.sql("SELECT * FROM read_csv('objmeta://bucket/*.csv')").fetchall() == [(7,)]


@pytest.mark.parametrize("mark", ["?versionId=", "#"])
def test_an_old_version(fs: ObjmetaFileSystem, con: duckdb.DuckDBPyConnection, mark: str) -> None:
    fs.pipe_file("bucket/x.csv", b"a\n1\n")
    version = fs.info("bucket/x.csv")["version_id"]
    fs.pipe_file("bucket/x.csv", b"a\n2\n")
    found: list[Any] = con.sql(f"FROM read_csv('objmeta://bucket/x.csv{mark}{version}')").fetchall()
    assert found == [(1,)]
