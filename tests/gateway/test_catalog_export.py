"""Parquet for others (gateway/catalog/export.py)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import duckdb
import pyarrow.dataset as ds
import pytest

import objmeta
from gateway.catalog.export import export
from gateway.catalog.results import Result
from objmeta.errors import AlreadyExists, StoreError


def test_it_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out put" / "export"

    async def write(overwrite: bool = False) -> Result:
        async with objmeta.connect_async(tmp_path / "store") as client:
            return await export(client, target, overwrite=overwrite)

    with objmeta.connect(tmp_path / "store") as client:
        for bucket in ("first", "second.b", "empty"):
            client.create_bucket(bucket)
        client.put_object("first", "ä b/?#%*[ 🙂", data=b"1", metadata={"by": "me"})
        client.put_object("second.b", "key", data=b"22")
        client.delete_object("second.b", "key")
    assert len(asyncio.run(write())) == 3
    read = ds.dataset(target / "versions", partitioning="hive").to_table().to_pylist()
    assert sorted((row["bucket"], row["key"], row["size"]) for row in read if row["size"]) == [
        ("first", "ä b/?#%*[ 🙂", 1),
        ("second.b", "key", 2),
    ]
    assert sorted(ds.dataset(target / "buckets.parquet").to_table()["bucket"].to_pylist()) == [
        "empty",
        "first",
        "second.b",
    ]
    with pytest.raises(AlreadyExists, match="not empty"):
        asyncio.run(write())
    with objmeta.connect(tmp_path / "store") as client:
        client.put_object("first", "more", data=b"333")
    with monkeypatch.context() as broken:
        broken.setattr("pyarrow.parquet.write_table", _full)
        with pytest.raises(StoreError, match="No space left"):
            asyncio.run(write(overwrite=True))
    assert ds.dataset(target / "versions", partitioning="hive").count_rows() == 3, "the old one is whole"
    assert len(asyncio.run(write(overwrite=True))) == 4
    assert ds.dataset(target / "versions", partitioning="hive").count_rows() == 4
    assert [each.name for each in target.parent.iterdir()] == ["export"]
    (target / "thesis.txt").touch()
    with pytest.raises(AlreadyExists, match=r"holds 'thesis\.txt', which is of no export"):
        asyncio.run(write(overwrite=True))
    assert (target / "thesis.txt").exists()
    (tmp_path / "file").touch()
    target = tmp_path / "file"
    with pytest.raises(AlreadyExists, match="is a file"):
        asyncio.run(write(overwrite=True))


def test_a_store_without_versions_says_what_the_columns_are(tmp_path: Path) -> None:
    async def write() -> None:
        async with objmeta.connect_async(tmp_path / "store") as client:
            await export(client, tmp_path / "out")

    asyncio.run(write())
    found = ds.dataset(tmp_path / "out" / "versions", partitioning="hive").to_table()
    assert {"bucket", "key", "size"} <= set(found.column_names)
    files = f"'{tmp_path}/out/versions/**/*.parquet'"
    assert duckdb.execute(f"SELECT count(*) FROM read_parquet({files}, hive_partitioning = true)").fetchall() == [(0,)]


def _full(*_: object) -> None:
    raise OSError(28, "No space left on device")
