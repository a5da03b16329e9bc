"""DuckDB on objmeta:// paths, with as many threads as it likes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gateway.fs.filesystem import ObjmetaFileSystem

ROWS = 400_000


@pytest.fixture
def con(fs: ObjmetaFileSystem) -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as found:
        found.register_filesystem(fs)
        yield found


def write(fs: ObjmetaFileSystem, path: str, start: int) -> int:
    """A Parquet file of several chunks and many row groups, its numbers in no order; returns their sum."""
    numbers = [(start + index) * 2_654_435_761 % (1 << 40) for index in range(ROWS)]
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


def test_what_fails_leaves_nothing_half_written(fs: ObjmetaFileSystem, con: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(duckdb.Error):
        con.execute("COPY (SELECT error('stop') FROM range(1000)) TO 'objmeta://bucket/x.parquet'")
    # DuckDB may look for what it is to remove before another thread of its own has closed the file, to which nothing
    # was written: then an empty one stays.
    assert [path for path in fs.find("bucket") if fs.size(path)] == []
    with pytest.raises(duckdb.IOException, match="No files found"):
        con.sql("FROM 'objmeta://bucket/none.parquet'")


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
