"""The same file system over three nodes, one of which is killed on the way."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pytest
from pandas.testing import assert_frame_equal

from gateway.fs.filesystem import ObjmetaFileSystem
from gateway.polars import scan_parquet
from objmeta.node.dev import LocalCluster


@pytest.fixture
def cluster(home: Path) -> Iterator[LocalCluster]:
    with LocalCluster(home, 3, command=(sys.executable, "-m", "gateway", "serve")) as found:
        yield found


def test_three_nodes_then_two_then_one(cluster: LocalCluster, home: Path, no_settings: None) -> None:
    options: dict[str, Any] = {"endpoints": ",".join(cluster.endpoints)}
    fs = ObjmetaFileSystem(endpoints=options["endpoints"])
    fs.mkdir("bucket")
    content = os.urandom(9 << 20)
    frame = pd.DataFrame({"n": range(50_000), "text": [f"{n:x}" for n in range(50_000)]})
    frame.to_parquet("objmeta://bucket/one.parquet", storage_options=options)
    fs.pipe_file("bucket/big", content)
    then = datetime.now(UTC)
    with fs.open("bucket/big") as reading, fs.open("bucket/written", "wb") as writing:
        assert reading.read(100) == content[:100]
        writing.write(content)
        process = cluster.pid(1)
        assert process is not None
        os.kill(process, signal.SIGKILL)
        assert reading.read() == content[100:]
        writing.write(content)
    assert fs.cat_file("bucket/written") == content * 2
    frame.to_parquet("objmeta://bucket/two.parquet", storage_options=options)
    assert_frame_equal(pd.read_parquet("objmeta://bucket/two.parquet", storage_options=options), frame)
    assert fs.find("bucket") == ["bucket/big", "bucket/one.parquet", "bucket/two.parquet", "bucket/written"]
    with duckdb.connect() as con:
        con.register_filesystem(fs)
        query = "SELECT sum(n), count(*) FROM read_parquet('objmeta://bucket/*.parquet')"
        assert con.sql(query).fetchall() == [(2 * sum(range(50_000)), 100_000)]
    local = {"local_dir": str(home / "local"), **options}
    with ObjmetaFileSystem(as_of=then, **local).local_path("bucket/big") as path:
        assert Path(path).read_bytes() == content
    past = ObjmetaFileSystem(as_of=then, **local)
    assert past.find("bucket") == ["bucket/big", "bucket/one.parquet"]
    fs.mv("bucket/two.parquet", "bucket/three.parquet", if_none_match="*")
    assert scan_parquet("bucket/t*.parquet", fs=fs).select(pl.col("n").sum()).collect().item() == sum(range(50_000))
    process = cluster.pid(2)
    assert process is not None
    os.kill(process, signal.SIGKILL)
    lonely = ObjmetaFileSystem(timeout_s=1, **options)
    for call in (lonely.exists, lonely.isfile, lonely.local_path, lonely.metadata):
        with pytest.raises(TimeoutError):
            call("bucket/big")
    for each in (fs, past, lonely):
        each.close()
    ObjmetaFileSystem.clear_instance_cache()
