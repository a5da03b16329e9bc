"""Dask on objmeta:// paths: threads, processes, and workers of its distributed scheduler."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import dask.bag
import dask.dataframe as dd
import distributed
import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from gateway.fs.filesystem import ObjmetaFileSystem

pytestmark = pytest.mark.filterwarnings("ignore:The inplace keyword:DeprecationWarning")  # Dask's calls of pandas

FRAME = pd.DataFrame({"n": range(3000), "part": [f"ö {i % 3}" for i in range(3000)], "x": [i / 3 for i in range(3000)]})


@pytest.fixture
def options(home: Path, fs: ObjmetaFileSystem) -> dict[str, Any]:
    return {"storage_options": {"path": str(home)}}


@pytest.fixture
def workers() -> Iterator[distributed.Client]:
    """A client of two worker processes."""
    local = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=2, processes=True, **local) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def rows(frame: Any) -> pd.DataFrame:
    """All rows, in the order of ``n``, with plain types."""
    found = frame.compute().sort_values("n", ignore_index=True)[["n", "part", "x"]]
    return found.astype({"n": "int64", "part": FRAME["part"].dtype})  # type: ignore[no-any-return]


def round_trips(fs: ObjmetaFileSystem, options: dict[str, Any]) -> None:
    """Write and read in every form; each partition is written by a task of its own."""
    frame = dd.from_pandas(FRAME, npartitions=4)
    frame.to_parquet("objmeta://bucket/plain", **options)
    assert len(fs.glob("bucket/plain/*.parquet")) == 4
    assert_frame_equal(rows(dd.read_parquet("objmeta://bucket/plain", **options)), FRAME)

    frame.to_parquet("objmeta://bucket/parts", partition_on=["part"], write_index=False, **options)
    assert len(fs.glob("bucket/parts/part=*")) == 3
    found = dd.read_parquet("objmeta://bucket/parts", **options)
    assert_frame_equal(rows(found), FRAME)
    assert found["x"].sum().compute() == pytest.approx(FRAME["x"].sum())
    some = dd.read_parquet("objmeta://bucket/parts", filters=[("part", "==", "ö 1")], **options)
    assert len(some) == 1000

    frame.to_csv("objmeta://bucket/csv/*.csv", index=False, **options)
    assert len(fs.ls("bucket/csv")) == 4
    again = dd.read_csv("objmeta://bucket/csv/*.csv", blocksize=4_000, **options)
    assert again.npartitions > 4  # files are read in parts, cut at the ends of lines
    assert_frame_equal(rows(again), FRAME)


def test_dataframes_in_threads(fs: ObjmetaFileSystem, options: dict[str, Any]) -> None:
    with dask.config.set(scheduler="threads", num_workers=4):
        round_trips(fs, options)


@pytest.mark.slow
def test_dataframes_in_processes(fs: ObjmetaFileSystem, options: dict[str, Any]) -> None:
    with dask.config.set(scheduler="processes", num_workers=2):
        dd.from_pandas(FRAME, npartitions=2).to_parquet("objmeta://bucket/table", **options)
        assert_frame_equal(rows(dd.read_parquet("objmeta://bucket/table", **options)), FRAME)


def test_writing_again_replaces(fs: ObjmetaFileSystem, options: dict[str, Any]) -> None:
    dd.from_pandas(FRAME, npartitions=4).to_parquet("objmeta://bucket/table", **options)
    dd.from_pandas(FRAME.head(10), npartitions=1).to_parquet("objmeta://bucket/table", overwrite=True, **options)
    assert fs.find("bucket") == ["bucket/table/part.0.parquet"]
    assert len(dd.read_parquet("objmeta://bucket/table", **options)) == 10


def test_lines_of_text(fs: ObjmetaFileSystem, options: dict[str, Any]) -> None:
    lines = [f"zeile ü {number}" for number in range(100)]
    with dask.config.set(scheduler="threads"):
        bag = dask.bag.from_sequence(lines, npartitions=3)
        bag.to_textfiles("objmeta://bucket/text/*.txt.gz", **options)
        found = dask.bag.read_text("objmeta://bucket/text/*.txt.gz", **options).compute()
    assert sorted(line.rstrip("\n") for line in found) == sorted(lines)


def test_a_task_is_named_by_the_version_it_reads(fs: ObjmetaFileSystem, options: dict[str, Any]) -> None:
    def name() -> str:
        return str(dd.read_csv("objmeta://bucket/x.csv", **options)._name)

    fs.pipe_file("bucket/x.csv", b"a\n1\n")
    first = name()
    assert name() == first
    fs.pipe_file("bucket/x.csv", b"a\n2\n")  # as long, and within the same second
    assert name() != first


def where_and_what(path: str, options: dict[str, Any]) -> tuple[int, bytes]:
    """What a worker reads, and which process it is."""
    import os

    return os.getpid(), ObjmetaFileSystem(**options).cat_file(path)


@pytest.mark.slow
def test_workers_of_the_distributed_scheduler(
    fs: ObjmetaFileSystem, options: dict[str, Any], workers: distributed.Client
) -> None:
    round_trips(fs, options)
    content = np.arange(300_000, dtype="int64").tobytes()
    fs.pipe_file("bucket/a ü #1.bin", content)
    futures = [
        workers.submit(where_and_what, "bucket/a ü #1.bin", options["storage_options"], pure=False, workers=[address])
        for address in workers.scheduler_info()["workers"]
    ]
    found = workers.gather(futures)
    assert len({process for process, _ in found}) == 2
    assert {data for _, data in found} == {content}
    assert workers.submit(fs.cat_file, "bucket/a ü #1.bin").result() == content  # the instance travels
