"""Listings, versions, deletion and restoration, buckets, SQL, and the shape of what is printed."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest

from tests.cli.conftest import Run


def store(gateway: Run, name: str, data: bytes = b"12345") -> str:
    """Put an object; its version id."""
    Path("source").write_bytes(data)
    (record,) = gateway("put", "--json", "source", name).records
    return str(record["version_id"])


@pytest.fixture
def tree(gateway: Run, bucket: str) -> list[str]:
    names = ["a", "d/x", "d/y/z", "e/", "ä b"]
    for name in names:
        if name.endswith("/"):
            Path("hollow").mkdir()
            gateway("put", "-r", "hollow", f"{bucket}/{name}")
        else:
            store(gateway, f"{bucket}/{name}")
    return names


# -- ls ---------------------------------------------------------------------------------------------------------------


def test_ls(gateway: Run, tree: list[str]) -> None:
    assert gateway("ls").lines == ["box/"]
    assert gateway("ls", "box").lines == ["a", "d/", "e/", "ä b"]
    assert gateway("ls", "objmeta://box/").lines == ["a", "d/", "e/", "ä b"]
    assert gateway("ls", "box/d").lines == ["x", "y/"]
    assert gateway("ls", "box/d/").lines == ["x", "y/"]
    assert gateway("ls", "box/d/x").lines == ["x"]
    assert gateway("ls", "box/e").lines == []
    assert gateway("ls", "-r", "box").lines == tree
    assert gateway("ls", "-r", "box/d").lines == ["x", "y/z"]
    assert gateway("ls", "box/a", "box/d").lines == ["objmeta://box/a:", "a", "objmeta://box/d:", "x", "y/"]
    gateway("ls", "box/none", code=4)
    gateway("ls", "-r", "box/none", code=4)
    gateway("ls", "box/d/x/", code=4)
    gateway("ls", "none-such", code=3)
    gateway("ls", "box/a", "box/none", code=1)


def test_ls_long(gateway: Run, tree: list[str]) -> None:
    version = store(gateway, "box/big", b"x" * 2000)
    line = next(line for line in gateway("ls", "-l", "box").lines if line.endswith("big"))
    size, time, listed, name = line.split()
    assert (size, listed, name) == ("2000", version, "big")
    assert time.startswith("20")
    assert time.endswith("Z")
    assert any(line.split()[0] == "2.0K" for line in gateway("ls", "-l", "-h", "box").lines)
    assert gateway("ls", "-l").lines[0].endswith("  box/")


def test_ls_json(gateway: Run, tree: list[str]) -> None:
    records = gateway("ls", "--json", "box").records
    assert [record.get("key") or record["prefix"] for record in records] == ["a", "d/", "e/", "ä b"]
    first = records[0]
    assert (first["bucket"], first["size"], first["is_delete_marker"]) == ("box", 5, False)
    assert set(first) >= {"version_id", "sequence", "etag", "last_modified"}


def test_names_that_would_move_the_cursor_are_written_out_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from gateway.cli import output
    from gateway.cli.app import say

    assert output.shown("a\x1b[2Jb\n") == "a\x1b[2Jb\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert output.shown("a\x1b[2Jb\n") == "a\\x1b[2Jb\\x0a"
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    say("there is no \x1b[2J")
    assert capsys.readouterr().err == "gateway: there is no \\x1b[2J\n"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0"),
        (1023, "1023"),
        (1024, "1.0K"),
        (1536, "1.5K"),
        (102400, "100K"),
        (1023 * 1024, "1.0M"),
        (1 << 40, "1.0T"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    from gateway.cli.output import size_text

    assert size_text(size) == text
    assert size_text(size, human=False) == str(size)


# -- Versions ---------------------------------------------------------------------------------------------------------


def test_versions_deletion_and_restoration(gateway: Run, bucket: str) -> None:
    first = store(gateway, "box/k", b"one")
    second = store(gateway, "box/k", b"second")
    assert gateway("cat", "--version-id", first, "box/k").raw == b"one"
    records = gateway("versions", "--json", "box/k").records
    assert [record["version_id"] for record in records] == [second, first]
    assert [record["is_latest"] for record in records] == [True, False]
    lines = gateway("versions", "box/k").lines
    assert lines[0].split()[0] == "6"
    assert lines[0].endswith(f"{second}  (latest)")
    assert gateway("ls", "--versions", "box").lines[1].endswith(f"{first}  k")

    gateway("rm", "box/k")
    gateway("cat", "box/k", code=4)
    gateway("rm", "box/k", code=4)
    assert gateway("versions", "box/k").lines[0].endswith("(latest, delete marker)")
    gateway("restore", "box/k")
    assert gateway("cat", "box/k").raw == b"second"
    assert "--version-id" in gateway("restore", "box/k", code=2).err
    gateway("restore", "box/k", "--version-id", first)
    assert gateway("cat", "box/k").raw == b"one"
    gateway("restore", "box/k", "--version-id", "0" * 32, code=4)
    gateway("restore", "box/k", "--version-id", "nonsense", code=2)


def test_a_version_is_removed_for_good(gateway: Run, bucket: str) -> None:
    first = store(gateway, "box/k", b"one")
    second = store(gateway, "box/k", b"two")
    gateway("rm", "--version-id", second, "box/k")
    assert gateway("cat", "box/k").raw == b"one"
    gateway("cat", "--version-id", second, "box/k", code=4)
    gateway("rm", "--version-id", second, "box/k", code=4)
    gateway("rm", "--version-id", first, "box/k")
    gateway("versions", "box/k", code=4)
    gateway("rb", "box")


def test_all_versions_are_removed_for_good(gateway: Run, tree: list[str]) -> None:
    for data in (b"1", b"2"):
        store(gateway, "box/d/x", data)
    gateway("rm", "-r", "box/d")
    assert gateway("ls", "-r", "box").lines == ["a", "e/", "ä b"]
    assert "removed 6 versions" in gateway("rm", "-r", "--versions", "box/d").out
    gateway("ls", "--versions", "box/d", code=4)
    gateway("rm", "--versions", "box/a")
    gateway("versions", "box/a", code=4)


def test_rm_of_several(gateway: Run, tree: list[str]) -> None:
    found = gateway("rm", "box/a", "box/none", "box/ä b", code=1)
    assert "none" in found.err
    assert gateway("ls", "box").lines == ["d/", "e/"]
    gateway("rm", "-r", "box")
    assert gateway("ls", "box").lines == []


# -- Buckets ----------------------------------------------------------------------------------------------------------


def test_buckets(gateway: Run) -> None:
    gateway("mb", "one", "two")
    assert gateway("ls").lines == ["one/", "two/"]
    gateway("mb", "one", code=6)
    gateway("mb", "-p", "one")
    store(gateway, "one/k")
    assert "--force" in gateway("rb", "one", code=6).err
    gateway("rm", "one/k")
    assert "versions first; --force" in gateway("rb", "one", code=6).err
    gateway("rb", "--force", "one")
    gateway("rb", "one", code=3)
    gateway("rb", "two", "one", code=1)
    assert gateway("ls").lines == []


@pytest.mark.parametrize("name", ["ab", "UPPER", "under_score", "a..b", "10.0.0.1", "x" * 64, "-ab", "ümlaut"])
def test_bad_bucket_names(gateway: Run, name: str) -> None:
    for arguments in (["mb", "--", name], ["ls", "--", name], ["put", "-q", "--", "/dev/null", f"{name}/k"]):
        assert "bucket name" in gateway(*arguments, code=2).err


def test_bad_keys(gateway: Run, bucket: str) -> None:
    Path("f").write_bytes(b"1")
    assert "1024" in gateway("put", "f", f"box/{'x' * 1025}", code=2).err
    gateway("put", "f", f"box/{'ü' * 512}")
    assert "1024" in gateway("cat", f"box/{'ü' * 513}", code=2).err


def test_a_missing_bucket(gateway: Run) -> None:
    Path("f").write_bytes(b"1")
    for arguments in (
        ["put", "f", "none/k"],
        ["put", "-r", ".", "none"],
        ["get", "none/k"],
        ["get", "-r", "none", "out"],
        ["cat", "none/k"],
        ["ls", "none"],
        ["stat", "none"],
        ["stat", "none/k"],
        ["rm", "none/k"],
        ["rm", "-r", "none"],
        ["du", "none"],
        ["versions", "none/k"],
        ["restore", "none/k"],
        ["mv", "none/k", "none/l"],
        ["rb", "none"],
    ):
        assert "'none'" in gateway(*arguments, code=3).err or "none" in gateway(*arguments, code=3).err
    assert not Path("out").exists()


def test_a_missing_key(gateway: Run, bucket: str) -> None:
    for arguments in (
        ["get", "box/k", "out"],
        ["get", "-r", "box/k", "out"],
        ["cat", "box/k"],
        ["stat", "box/k"],
        ["rm", "box/k"],
        ["rm", "-r", "box/k"],
        ["du", "box/k"],
        ["versions", "box/k"],
        ["restore", "box/k"],
        ["mv", "box/k", "box/l"],
    ):
        gateway(*arguments, code=4)
    assert not Path("out").exists()


# -- stat, du, quiet --------------------------------------------------------------------------------------------------


def test_stat(gateway: Run, bucket: str) -> None:
    version = store(gateway, "box/k")
    lines = dict(line.split(maxsplit=1) for line in gateway("stat", "box/k").lines)
    assert lines["version_id"] == version
    assert lines["is_latest"] == "yes"
    assert lines["metadata"] == "-"
    assert gateway("stat", "--json", "box").records[0]["bucket"] == "box"


def test_du(gateway: Run, tree: list[str]) -> None:
    store(gateway, "box/a", b"x" * 2000)
    assert gateway("du", "box").out == "2015\t5\tobjmeta://box\n"
    assert gateway("du", "-h", "box").out == "2.0K\t5\tobjmeta://box\n"
    assert gateway("du", "box/a", "box/d").lines == ["2000\t1\tobjmeta://box/a", "10\t2\tobjmeta://box/d"]
    assert gateway("du", "--versions", "box/a").out == "2005\t2\tobjmeta://box/a\n"
    assert gateway("du", "--json", "box/d").records == [{"bucket": "box", "key": "d", "size": 10, "count": 2}]


def test_quiet_says_nothing_but_answers(gateway: Run, bucket: str) -> None:
    Path("f").write_bytes(b"1")
    for arguments in (["put", "f", "box/f"], ["put", "-r", ".", "box/d"], ["cp", "box/f", "box/g"], ["rm", "box/f"]):
        found = gateway("-q", *arguments)
        assert (found.out, found.err) == ("", "")
    assert gateway("-q", "ls", "box").lines == ["d/", "g"]


# -- SQL --------------------------------------------------------------------------------------------------------------


def test_sql(gateway: Run, tree: list[str]) -> None:
    query = "SELECT key, size FROM objects WHERE key LIKE 'd/%' ORDER BY key"
    assert "d/y/z" in gateway("sql", query).out
    assert gateway("sql", "--json", query).records == [{"key": "d/x", "size": 5}, {"key": "d/y/z", "size": 5}]
    rows = list(csv.reader(io.StringIO(gateway("sql", "--csv", query).out)))
    assert rows == [["key", "size"], ["d/x", "5"], ["d/y/z", "5"]]
    (record,) = gateway("sql", "--json", "SELECT metadata, last_modified FROM versions LIMIT 1").records
    assert record["metadata"] == {}
    assert record["last_modified"].endswith("+00:00")
    values = "SELECT true AS b, INTERVAL '1 month 2 days 1.5 seconds' AS i, [true] AS l, NULL AS n"
    (record,) = gateway("sql", "--json", values).records
    assert record == {"b": True, "i": "P1M2DT1.5S", "l": [True], "n": None}
    assert gateway("sql", "--csv", values).lines == ["b,i,l,n", "true,P1M2DT1.5S,[true],"]


@pytest.mark.parametrize("ending", ["parquet", "csv", "json"])
def test_sql_into_a_file(gateway: Run, tree: list[str], ending: str) -> None:
    import duckdb

    assert f"wrote 5 rows to out.{ending}" in gateway("sql", "SELECT key FROM objects", "-o", f"out.{ending}").out
    assert duckdb.execute(f"SELECT count(*) FROM 'out.{ending}'").fetchall() == [(5,)]
    assert sorted(path.suffix for path in Path().glob("*out*")) == [f".{ending}"]


def test_wrong_sql(gateway: Run) -> None:
    assert gateway("sql", "SELECT nonsense FROM nothing", code=2).err.count("\n") == 1
    gateway("sql", "", code=2)
    for name in ("missing/dir/x.csv", "missing/dir/x.parquet"):
        assert gateway("sql", "SELECT 1", "-o", name, code=1).err == f"gateway: {name}: No such file or directory\n"
    for beyond in ("'infinity'::TIMESTAMPTZ", "'12000-01-01'::DATE"):  # of what Python has values for
        assert "cast it to VARCHAR" in gateway("sql", f"SELECT {beyond}", code=2).err
        assert gateway("sql", "--csv", f"SELECT {beyond}::VARCHAR AS then").lines[0] == "then"


def test_a_plan_is_drawn(gateway: Run) -> None:
    assert len(gateway("sql", "EXPLAIN SELECT 1").lines) > 3


# -- As it was --------------------------------------------------------------------------------------------------------


def test_commands_that_read_show_all_as_it_was(gateway: Run, bucket: str) -> None:
    store(gateway, f"{bucket}/a", b"old")
    store(gateway, f"{bucket}/gone", b"1")
    time = datetime.now(UTC).isoformat()
    store(gateway, f"{bucket}/a", b"newer")
    store(gateway, f"{bucket}/later", b"1")
    gateway("rm", f"{bucket}/gone")
    assert gateway("ls", bucket, "--as-of", time).lines == ["a", "gone"]
    assert gateway("ls", bucket, "--as-of", "0s ago").lines == gateway("ls", bucket).lines == ["a", "later"]
    assert gateway("cat", f"{bucket}/a", "--as-of", time).raw == b"old"
    assert gateway("get", f"{bucket}/gone", "here", "--as-of", time).code == 0
    assert Path("here").read_bytes() == b"1"
    assert gateway("get", "-r", bucket, "tree", "--as-of", time).code == 0
    assert sorted(path.name for path in Path("tree").iterdir()) == ["a", "gone"]
    assert gateway("stat", "--json", f"{bucket}/a", "--as-of", time).records[0]["size"] == 3
    assert gateway("du", bucket, "--as-of", time).lines[0].split()[:2] == ["4", "2"]
    assert len(gateway("versions", f"{bucket}/a", "--as-of", time).lines) == 1
    assert "as of" in gateway("cat", f"{bucket}/later", "--as-of", time, code=4).err
    assert "made later" in gateway("ls", bucket, "--as-of", "1w ago", code=3).err
    for wrong, reason in [("yesterday", "not a time"), ("2199-01-01", "not come yet"), ("", "not a time")]:
        assert reason in gateway("ls", bucket, "--as-of", wrong, code=2).err
    gateway("rm", f"{bucket}/a", "--as-of", time, code=2)
    store(gateway, f"{bucket}/a", b"newest")
    assert gateway("diff", f"{bucket}/a", "--as-of", time).lines[-1] == "\\ No newline at end of file"
    assert "+old" in gateway("diff", f"{bucket}/a", "--as-of", time).lines
    gateway("catalog", "export", "then", "--as-of", time)
    keys = pd.read_parquet("then/versions")["key"]
    assert sorted(keys) == ["a", "gone"]


def test_a_time_that_is_set_holds_for_every_command(gateway: Run, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store(gateway, "box/a", b"old")
    then = datetime.now(UTC).isoformat()
    store(gateway, "box/a", b"newer")
    monkeypatch.setenv("OBJMETA_AS_OF", then)
    assert gateway("cat", "box/a").raw == b"old"
    assert gateway("cat", "box/a", "--as-of", "0s ago").raw == b"newer"
    for arguments in (["rm", "box/a"], ["put", "source", "box/a"], ["cp", "box/a", "box/b"], ["mb", "other"], ["gc"]):
        assert "OBJMETA_AS_OF; unset it" in gateway(*arguments, code=2).err
    assert "OBJMETA_AS_OF is for what is fetched" in gateway("sync", "./", "box/d", code=2).err
    gateway("status")
    gateway("fsck")
    shown = {each["name"]: each for each in gateway("config", "--json").records}
    assert shown["as_of"] == {"name": "as_of", "value": then, "source": "environment variable OBJMETA_AS_OF"}
    monkeypatch.setenv("OBJMETA_AS_OF", "2h ago")
    assert "environment variable OBJMETA_AS_OF" in gateway("cat", "box/a", code=2).err
    monkeypatch.delenv("OBJMETA_AS_OF")
    assert gateway("ls", "box").lines == ["a"]
