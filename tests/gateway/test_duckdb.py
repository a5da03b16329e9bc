"""DuckDB on objmeta:// paths, with as many threads as it likes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from gateway.fs.filesystem import ObjmetaFileSystem

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


def test_what_fails_leaves_nothing_half_written(fs: ObjmetaFileSystem, con: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(duckdb.Error):
        con.execute("COPY (SELECT error('stop') FROM range(1000)) TO 'objmeta://bucket/x.parquet'")
    # DuckDB may look for what it is to remove before another thread of its own has closed the file, to which nothing
    # was written: then an empty one stays.
    assert [path for path in fs.find("bucket") if fs.size(path)] == []
    with pytest.raises(duckdb.IOException, match="No files found"):
        con.sql("FROM 'objmeta://bucket/none.parquet'")


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
    assert [path for path in fs.find("bucket") if fs.size(path)] == []


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
