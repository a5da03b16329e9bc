"""Parquet through Polars: what is pushed down, and that both ways give the same."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.dataset
import pytest
from polars.testing import assert_frame_equal

import gateway.polars
from gateway.data.localfiles import LocalFiles
from gateway.fs.filesystem import ObjmetaFileSystem
from gateway.polars import scan_parquet

FRAME = pl.DataFrame(
    {
        "n": range(5000),
        "part": [number % 4 for number in range(5000)],
        "text": [None if number % 11 == 0 else f"é{number}" for number in range(5000)],
        "when": [datetime(2026, 1, 1 + number % 28) for number in range(5000)],
    }
)


@pytest.fixture
def table(fs: ObjmetaFileSystem) -> ObjmetaFileSystem:
    for part in range(4):
        with fs.open(f"bucket/a table/part={part}/é.parquet", "wb") as file:
            FRAME.filter(pl.col("part") == part).write_parquet(file, row_group_size=500)
    return fs


@pytest.mark.parametrize("local", [True, False, None])
def test_queries(table: ObjmetaFileSystem, local: bool | None) -> None:
    lazy = scan_parquet("objmeta://bucket/a table", fs=table, local=local)
    whole = pl.concat([FRAME.filter(pl.col("part") == part) for part in range(4)])
    assert dict(lazy.collect_schema()) == dict(FRAME.schema)
    assert_frame_equal(lazy.collect(), whole)
    assert_frame_equal(lazy.select("text").collect(), whole.select("text"))
    assert lazy.select(pl.len()).collect().item() == 5000
    assert_frame_equal(lazy.head(7).collect(), whole.head(7))
    assert_frame_equal(lazy.head(2000).collect(), whole.head(2000))
    condition = (pl.col("n") > 100) & pl.col("text").is_not_null() & (pl.col("part") != 2)
    assert_frame_equal(
        lazy.filter(condition).select("n", "when").collect(), whole.filter(condition).select("n", "when")
    )
    assert_frame_equal(lazy.filter(condition).head(5).collect(), whole.filter(condition).head(5))
    assert_frame_equal(lazy.head(1500).filter(condition).collect(), whole.head(1500).filter(condition))
    grouped = lazy.group_by("part").agg(pl.col("n").sum()).sort("part")
    assert_frame_equal(grouped.collect(), whole.group_by("part").agg(pl.col("n").sum()).sort("part"))
    joined = lazy.join(scan_parquet("bucket/a table/*/*.parquet", fs=table, local=local), on="n")
    assert joined.select(pl.len()).collect().item() == 5000


def test_only_what_is_needed_is_fetched(table: ObjmetaFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []
    real = LocalFiles.get

    async def counted(self: Any, store: Any, version: Any) -> Any:
        fetched.append(version.key)
        return await real(self, store, version)

    monkeypatch.setattr(LocalFiles, "get", counted)
    lazy = scan_parquet("bucket/a table", fs=table)
    assert dict(lazy.collect_schema()) == dict(FRAME.schema)
    assert fetched == []
    lazy.head(10).collect()
    assert fetched == ["a table/part=0/é.parquet"]


def test_many_files(fs: ObjmetaFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway.polars, "FILES_AT_ONCE", 3)
    for part in range(8):
        with fs.open(f"bucket/t/{part}.parquet", "wb") as file:
            FRAME.slice(part * 100, 100).write_parquet(file)
    assert_frame_equal(scan_parquet("bucket/t", fs=fs).collect(), FRAME.head(800))
    found = scan_parquet("bucket/t", fs=fs).filter(pl.col("part") == 1).head(30).collect()
    assert_frame_equal(found, FRAME.filter(pl.col("part") == 1).head(30))


def test_a_scan_is_of_the_versions_there_were(table: ObjmetaFileSystem, home: Path) -> None:
    time = datetime.now(UTC)
    scans = [scan_parquet("bucket/a table", fs=table, local=local) for local in (True, False)]
    with table.open("bucket/a table/part=0/é.parquet", "wb") as file:
        FRAME.head(1).write_parquet(file)
    table.rm("bucket/a table/part=1", recursive=True)
    for lazy in scans:
        assert lazy.select(pl.len()).collect().item() == 5000
    past = {"path": str(home), "as_of": time.isoformat()}
    assert scan_parquet("bucket/a table", storage_options=past).select(pl.len()).collect().item() == 5000
    assert scan_parquet("bucket/a table", fs=table).select(pl.len()).collect().item() == 2501
    history = table.object_version_info("bucket/a table/part=0/é.parquet")
    assert scan_parquet(history[-1]["name"], fs=table).select(pl.len()).collect().item() == 1250


def test_hive_partitions(fs: ObjmetaFileSystem, home: Path) -> None:
    for part in range(4):
        with fs.open(f"bucket/h/part={part}/x.parquet", "wb") as file:
            FRAME.filter(pl.col("part") == part).drop("part").write_parquet(file)
    lazy = scan_parquet("bucket/h", fs=fs, hive_partitioning=True)
    found = lazy.filter(pl.col("part") == 3).select(pl.col("n").sum()).collect().item()
    assert found == FRAME.filter(pl.col("part") == 3)["n"].sum()
    with pytest.raises(ValueError, match="exclude each other"):
        scan_parquet("bucket/h", fs=fs, local=True, hive_partitioning=True)


def test_a_dataset_of_arrow(table: ObjmetaFileSystem) -> None:
    lazy = pl.scan_pyarrow_dataset(pyarrow.dataset.dataset("bucket/a table", filesystem=table))
    whole = lazy.collect().sort("n")
    assert_frame_equal(whole.select("n", "text"), FRAME.select("n", "text"))
    condition = (pl.col("n") > 100) & (pl.col("part") != 2)
    found = lazy.filter(condition).select("text", "n").collect().sort("n")
    assert_frame_equal(found, FRAME.filter(condition).select("text", "n"))
    assert lazy.head(7).collect().height == 7
    table.pipe_file("bucket/a table/part=1/é.parquet", b"no table, so whoever reads it fails")
    names = table.find("bucket/a table")
    schema = pyarrow.dataset.dataset(names[0], filesystem=table).schema
    parts = pyarrow.dataset.dataset(names, schema=schema, filesystem=table, partitioning="hive")
    kept = pl.scan_pyarrow_dataset(parts).filter(pl.col("part") == 3).select("n").collect().sort("n")
    assert_frame_equal(kept, FRAME.filter(pl.col("part") == 3).select("n"))


def test_what_is_not_there_or_no_parquet(fs: ObjmetaFileSystem) -> None:
    fs.mkdir("bucket/empty")
    for source in ("bucket/none", "bucket/empty", "nowhere/x", "bucket/*.parquet"):
        with pytest.raises(FileNotFoundError):
            scan_parquet(source, fs=fs)
    fs.pipe_file("bucket/text", b"no parquet" * 10)
    with pytest.raises(pl.exceptions.PolarsError):
        scan_parquet("bucket/text", fs=fs).collect()


def test_leases_end_with_the_query(table: ObjmetaFileSystem) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        scan_parquet("bucket/a table", fs=table).collect()
        scan_parquet("bucket/a table", fs=table).head(3).collect()
    assert len(os.listdir("/proc/self/fd")) <= before + 5


def test_file_objects(fs: ObjmetaFileSystem) -> None:
    with fs.open("bucket/ü #1.parquet", "wb") as file:
        FRAME.write_parquet(file, row_group_size=500)
    with fs.open("bucket/ü #1.parquet") as file:
        assert_frame_equal(pl.read_parquet(file, columns=["text", "n"]), FRAME.select("text", "n"))
    with fs.open("bucket/ü #1.parquet") as file:
        assert_frame_equal(pl.scan_parquet(file).filter(pl.col("n") > 4990).collect(), FRAME.filter(pl.col("n") > 4990))
    with fs.open("bucket/x.csv", "wb") as file:
        FRAME.select("n", "text").write_csv(file)
    with fs.open("bucket/x.csv") as file:
        assert_frame_equal(pl.read_csv(file), FRAME.select("n", "text"))
    with fs.open("bucket/x.arrow", "wb") as file:
        FRAME.write_ipc(file)
    with fs.open("bucket/x.arrow") as file:
        assert_frame_equal(pl.read_ipc(file), FRAME)
    with fs.open("bucket/x.ndjson", "wb") as file:
        FRAME.select("n", "text").write_ndjson(file)
    with fs.open("bucket/x.ndjson") as file:
        assert_frame_equal(pl.read_ndjson(file), FRAME.select("n", "text"))
    with pytest.raises(Exception, match="objmeta"):  # of Polars' own: it asks no fsspec about URLs
        pl.scan_parquet("objmeta://bucket/ü #1.parquet").collect()
