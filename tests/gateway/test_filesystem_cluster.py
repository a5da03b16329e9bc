"""The same file system over three nodes, one of which is killed on the way."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from gateway.fs.filesystem import ObjmetaFileSystem
from objmeta.node.dev import LocalCluster


@pytest.fixture
def cluster(home: Path) -> Iterator[LocalCluster]:
    with LocalCluster(home, 3, command=(sys.executable, "-m", "gateway", "serve")) as found:
        yield found


def test_three_nodes_and_then_two(cluster: LocalCluster, no_settings: None) -> None:
    options = {"endpoints": ",".join(cluster.endpoints)}
    fs = ObjmetaFileSystem(endpoints=options["endpoints"])
    fs.mkdir("bucket")
    content = os.urandom(9 << 20)
    frame = pd.DataFrame({"n": range(50_000), "text": [f"{n:x}" for n in range(50_000)]})
    frame.to_parquet("objmeta://bucket/one.parquet", storage_options=options)
    fs.pipe_file("bucket/big", content)
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
    fs.close()
    ObjmetaFileSystem.clear_instance_cache()
