# ruff: noqa: PT012 - what happens in a block that an exception leaves is what is tested
"""pandas and pyarrow on objmeta:// paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from pandas.testing import assert_frame_equal

from gateway.fs.filesystem import ObjmetaFileSystem


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {"n": range(1000), "name": [f"ö{i % 7}" for i in range(1000)], "x": [i / 3 for i in range(1000)]}
    )


@pytest.fixture(params=["storage_options", "OBJMETA_HOME"])
def options(
    fs: ObjmetaFileSystem, home: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """How pandas is told where the store is."""
    if request.param == "storage_options":
        return {"storage_options": {"path": str(home)}}
    monkeypatch.setenv("OBJMETA_HOME", str(home))
    return {}


@pytest.mark.parametrize("name", ["data.csv", "data.csv.gz", "da ta#1.csv", "deep/er/däta.csv.zip"])
def test_csv(frame: pd.DataFrame, options: dict[str, Any], fs: ObjmetaFileSystem, name: str) -> None:
    frame.to_csv(f"objmeta://bucket/{name}", index=False, **options)
    assert_frame_equal(pd.read_csv(f"objmeta://bucket/{name}", **options), frame)
    assert fs.find("bucket") == [f"bucket/{name}"]
    if name.endswith(".csv"):
        frame.to_csv(f"objmeta://bucket/{name}", index=False, mode="a", header=False, **options)
        assert len(pd.read_csv(f"objmeta://bucket/{name}", **options)) == 2000


def test_csv_in_pieces(frame: pd.DataFrame, options: dict[str, Any]) -> None:
    big = pd.concat([frame] * 400, ignore_index=True)
    big.to_csv("objmeta://bucket/big.csv", index=False, **options)
    with pd.read_csv("objmeta://bucket/big.csv", chunksize=100_000, **options) as pieces:
        assert_frame_equal(pd.concat(pieces), big)


def test_parquet(frame: pd.DataFrame, options: dict[str, Any]) -> None:
    frame.to_parquet("objmeta://bucket/data.parquet", **options)
    assert_frame_equal(pd.read_parquet("objmeta://bucket/data.parquet", **options), frame)
    columns = pd.read_parquet("objmeta://bucket/data.parquet", columns=["x"], **options)
    assert_frame_equal(columns, frame[["x"]])


def test_partitioned_parquet(frame: pd.DataFrame, options: dict[str, Any], fs: ObjmetaFileSystem) -> None:
    frame.to_parquet("objmeta://bucket/parts", partition_cols=["name"], **options)
    assert len(fs.ls("bucket/parts")) == 7
    found = pd.read_parquet("objmeta://bucket/parts", **options).sort_values("n", ignore_index=True)
    assert found["n"].tolist() == frame["n"].tolist()
    some = pd.read_parquet("objmeta://bucket/parts", filters=[("name", "==", "ö3")], **options)
    assert set(some["n"] % 7) == {3}


def test_json_and_pickle(frame: pd.DataFrame, options: dict[str, Any]) -> None:
    frame.to_json("objmeta://bucket/data.json", orient="records", lines=True, **options)
    assert_frame_equal(pd.read_json("objmeta://bucket/data.json", lines=True, **options), frame)
    frame.to_pickle("objmeta://bucket/data.pkl", **options)
    assert_frame_equal(pd.read_pickle("objmeta://bucket/data.pkl", **options), frame)


def test_feather_and_excel(frame: pd.DataFrame, options: dict[str, Any]) -> None:
    frame.to_feather("objmeta://bucket/data.feather", **options)
    assert_frame_equal(
        pd.read_feather("objmeta://bucket/data.feather", columns=["n", "x"], **options), frame[["n", "x"]]
    )
    frame.head(20).to_excel("objmeta://bucket/ta ble.xlsx", index=False, **options)
    assert_frame_equal(pd.read_excel("objmeta://bucket/ta ble.xlsx", **options), frame.head(20))


def test_an_old_version(frame: pd.DataFrame, options: dict[str, Any], fs: ObjmetaFileSystem) -> None:
    frame.to_parquet("objmeta://bucket/data.parquet", **options)
    version = fs.info("bucket/data.parquet")["version_id"]
    frame.head(5).to_parquet("objmeta://bucket/data.parquet", **options)
    found = pd.read_parquet(f"objmeta://bucket/data.parquet?versionId={version}", **options)
    assert_frame_equal(found, frame)
    assert len(pd.read_parquet("objmeta://bucket/data.parquet", **options)) == 5


def test_errors_are_those_of_files(frame: pd.DataFrame, options: dict[str, Any]) -> None:
    with pytest.raises(FileNotFoundError):
        pd.read_csv("objmeta://bucket/none.csv", **options)
    with pytest.raises(FileNotFoundError):
        pd.read_parquet("objmeta://bucket/none.parquet", **options)
    with pytest.raises(OSError, match="3 to 63"):
        frame.to_csv("objmeta://x/data.csv", **options)


def test_what_a_path_needs_is_made(frame: pd.DataFrame, options: dict[str, Any], fs: ObjmetaFileSystem) -> None:
    frame.to_csv("objmeta://newer/deep/er/data.csv", **options)  # fsspec.open makes directories, and so buckets
    assert fs.find("newer") == ["newer/deep/er/data.csv"]


class Broken:
    """A value that cannot be written."""

    def __str__(self) -> str:
        raise ZeroDivisionError


def test_a_table_that_cannot_be_written_leaves_nothing(options: dict[str, Any], fs: ObjmetaFileSystem) -> None:
    rows = [*range(200_000), Broken()]
    with pytest.raises(ZeroDivisionError):
        pd.DataFrame({"x": pd.Series(rows, dtype=object)}).to_csv(
            "objmeta://bucket/data.csv", chunksize=1000, **options
        )
    schema = pa.schema([("x", pa.int64())])
    with (
        pytest.raises(ValueError, match="schema"),
        pq.ParquetWriter("bucket/a.parquet", schema, filesystem=fs) as writer,
    ):
        writer.write_table(pa.table({"x": [1]}))
        writer.write_table(pa.table({"y": ["other"]}))
    assert fs.find("bucket") == []


def test_pyarrow_datasets(fs: ObjmetaFileSystem) -> None:
    table = pa.table({"k": [1, 2, 3, 4], "v": ["a", "b", "c", "d"]})
    pyarrow.dataset.write_dataset(
        table, "bucket/set", filesystem=fs, format="parquet", partitioning=["k"], partitioning_flavor="hive"
    )
    found = pyarrow.dataset.dataset("bucket/set", filesystem=fs, partitioning="hive")
    assert found.to_table(filter=pyarrow.dataset.field("k") > 2).column("v").to_pylist() == ["c", "d"]


def test_pyarrow_sees_times_and_types(fs: ObjmetaFileSystem) -> None:
    fs.pipe_file("bucket/d/file", b"12345")
    arrow = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs))
    file, directory, none = arrow.get_file_info(["bucket/d/file", "bucket/d", "bucket/none"])
    assert (file.type, file.size) == (pyarrow.fs.FileType.File, 5)
    assert abs(file.mtime.timestamp() - fs.modified("bucket/d/file").timestamp()) < 1e-3
    assert directory.type == pyarrow.fs.FileType.Directory
    assert none.type == pyarrow.fs.FileType.NotFound
    arrow.create_dir("bucket/new/er")
    arrow.move("bucket/d/file", "bucket/new/file")
    arrow.copy_file("bucket/new/file", "bucket/copy")
    with arrow.open_append_stream("bucket/copy") as stream:
        stream.write(b"6")
    with arrow.open_input_file("bucket/copy") as stream:
        stream.seek(3)
        assert stream.read() == b"456"
    arrow.delete_dir("bucket/new")
    assert fs.find("bucket") == ["bucket/copy"]
