"""Where ``sql`` keeps what it reads, and ``catalog export``."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import pyarrow.dataset as ds
import pytest

from tests.cli.conftest import Run, Shell

KEYS = "SELECT key, size FROM objects ORDER BY key"
ODD = "d/ä b #%?*[1] 🙂"


@pytest.fixture
def keys(shell: Shell, bucket: str) -> None:
    shell("put", "-", f"box/{ODD}", data=b"12")
    shell("put", "-", "box/empty", data=b"")


def test_where_it_is_kept(gateway: Run, shell: Shell, keys: None) -> None:
    expected = [{"key": ODD, "size": 2}, {"key": "empty", "size": 0}]
    file = shell.directory / "my catalog's.duckdb"
    for options in (["--catalog", file.name], ["--catalog", str(file)], ["--catalog", ":memory:"], ["--live"]):
        found = gateway("sql", "--json", *options, KEYS)
        assert found.records == expected, options
        assert '"as_of"' in found.err
    assert {each.name for each in shell.directory.iterdir()} <= {file.name, f"{file.name}.lock", f"{file.name}.wal"}
    gateway("rm", "box/empty")
    for options in (["--catalog", file.name], ["--catalog", ":memory:"], ["--live"]):
        assert gateway("sql", "--json", *options, KEYS).records == expected[:1], options


def test_a_catalog_that_cannot_be(gateway: Run, shell: Shell, keys: None) -> None:
    text = shell.directory / "important.txt"
    text.write_text("mine\n" * 5000)
    foreign = shell.directory / "foreign.duckdb"
    with duckdb.connect(str(foreign)) as database:
        database.execute("CREATE TABLE mine AS SELECT 1 AS a")
    for file in (text, foreign):
        before = file.read_bytes()
        found = gateway("sql", "--catalog", file.name, KEYS, code=2)
        assert f"{file.name} is no catalog" in found.err
        assert found.err.count("\n") == 1
        assert file.read_bytes() == before
    assert "cannot be kept" in gateway("sql", "--catalog", "important.txt/below", KEYS, code=1).err
    assert "uses no catalog" in gateway("sql", "--live", "--catalog", "x", KEYS, code=2).err
    assert not (shell.directory / "x").exists()


def test_what_is_asked_of_a_bucket_that_is_not_there(gateway: Run, keys: None) -> None:
    for options in (["--catalog", ":memory:"], ["--live"]):
        assert gateway("sql", "--json", *options, "SELECT * FROM versions WHERE bucket = 'none'").records == []


def test_as_it_was(gateway: Run, shell: Shell, keys: None) -> None:
    then = gateway("stat", "--json", "box/empty").records[0]["last_modified"]
    gateway("rm", f"box/{ODD}")
    shell("put", "-", "box/empty", data=b"more")
    shell("put", "-", "box/later", data=b"123")
    gateway("mb", "younger")
    found = gateway("sql", "--json", "--as-of", then, KEYS)
    assert found.records == [{"key": ODD, "size": 2}, {"key": "empty", "size": 0}]
    assert json.loads(found.err)["as_of"] == then.replace("Z", "+00:00")
    several = "SELECT count(*) FROM versions WHERE is_latest; SELECT count(*) AS n FROM buckets"
    assert gateway("sql", "--json", "--as-of", then, several).records == [{"n": 1}]
    assert gateway("sql", "--json", "--as-of", then, "SELECT count(*) AS n FROM versions").records == [{"n": 2}]
    one = f"SELECT size FROM objects WHERE bucket = 'box' AND key = '{ODD}'"
    assert gateway("sql", "--json", "--as-of", then, one).records == [{"size": 2}]
    assert gateway("sql", "--json", one).records == []
    asked = shell("sql", "--json", "--as-of", then, data=f"{KEYS}; {KEYS};".encode())
    assert asked.records == found.records * 2
    assert "query of the past has no table changes" in gateway("sql", "--as-of", then, "FROM changes", code=2).err
    assert "uses no catalog" in gateway("sql", "--as-of", then, "--catalog", "x", KEYS, code=2).err
    assert not (shell.directory / "x").exists()
    assert "not come yet" in gateway("sql", "--as-of", "2999-01-01", KEYS, code=2).err


def exported(directory: Path) -> list[tuple[str, str, int]]:
    rows = ds.dataset(directory / "versions", partitioning="hive").to_table().to_pylist()
    return sorted((row["bucket"], row["key"], row["size"]) for row in rows)


def test_an_export(gateway: Run, shell: Shell, keys: None) -> None:
    target = shell.directory / "out put"
    (record,) = gateway("--json", "catalog", "export", "out put").records
    assert (record["directory"], record["versions"]) == ("out put", 2)
    assert exported(target) == [("box", ODD, 2), ("box", "empty", 0)]
    shell("put", "-", "box/more", data=b"123")
    refused = gateway("catalog", "export", "out put", code=6)
    assert "not empty" in refused.err
    assert "--overwrite" in refused.err
    assert len(exported(target)) == 2
    (target / "mine").touch()
    assert "'mine', which is of no export" in gateway("catalog", "export", "--overwrite", "out put", code=6).err
    (target / "mine").unlink()
    assert "wrote 3 versions to out put, as of 20" in gateway("catalog", "export", "--overwrite", "out put").out
    assert exported(target) == [("box", ODD, 2), ("box", "empty", 0), ("box", "more", 3)]
    assert [each.name for each in shell.directory.iterdir()] == ["out put"]
    (shell.directory / "file").write_text("mine")
    assert "is a file" in gateway("catalog", "export", "--overwrite", "file", code=6).err
    assert (shell.directory / "file").read_text() == "mine"
    (shell.directory / "empty").mkdir()
    gateway("catalog", "export", "empty")
    assert len(exported(shell.directory / "empty")) == 3
