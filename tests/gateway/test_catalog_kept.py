"""The catalog between queries (gateway/catalog/kept.py), what happened to objects, and the usual questions."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

import objmeta
from gateway.catalog import checkpoints, kept, schema
from gateway.catalog.query import sql
from objmeta.errors import InvalidArgument, StoreError, StoreFull

ALL = "SELECT bucket, key, size FROM versions ORDER BY ALL"


@pytest.fixture
def client(tmp_path: Path) -> Iterator[objmeta.Client]:
    with objmeta.connect(tmp_path / "store") as client:
        client.create_bucket("demo")
        yield client


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kept" / "it's.duckdb"


def names_beside(path: Path) -> set[str]:
    return {each.name for each in path.parent.iterdir()}


def test_a_query_costs_what_has_changed(client: objmeta.Client, path: Path) -> None:
    for number in range(20):
        client.put_object("demo", f"{number:02}", data=bytes(number))
    before = datetime.datetime.now(datetime.UTC)
    result = sql(client, "SELECT count(*), sum(size) FROM objects", catalog=path)
    assert result.rows() == [(20, 190)]
    assert result.looked_at == 20
    assert result.as_of is not None
    assert before <= result.as_of <= datetime.datetime.now(datetime.UTC)
    assert sql(client, ALL, catalog=path).looked_at == 0
    client.put_object("demo", "07", data=bytes(100))
    client.delete_object("demo", "08")
    version = client.put_object("demo", "09", data=bytes(100))
    client.remove_version("demo", "09", version.version_id)
    result = sql(client, "SELECT count(*), sum(size) FROM objects", catalog=path)
    assert result.rows() == [(19, 190 - 7 + 100 - 8)]
    assert result.looked_at == 3
    for table in ("buckets", "versions", "objects", "chunks", "changes"):
        query = f"SELECT * FROM {table} ORDER BY ALL"
        assert sql(client, query, catalog=path).rows() == sql(client, query, catalog=":memory:").rows(), table
    assert names_beside(path) <= {path.name, f"{path.name}.lock", f"{path.name}.wal"}
    assert sql(client, "SELECT 1", catalog=path).as_of is None


def test_without_a_name_it_is_in_the_cache_of_the_user(client: objmeta.Client) -> None:
    client.put_object("demo", "key", data=b"x")
    assert sql(client, ALL).looked_at == 1
    assert sql(client, ALL).looked_at == 0
    place = kept.default_path(client.location)
    assert place.is_relative_to(os.environ["XDG_CACHE_HOME"])
    assert place.exists()
    assert kept.default_path(objmeta.connect("h:1,h:2").location) != kept.default_path(client.location)


def test_buckets_that_go_and_come_again(client: objmeta.Client, path: Path) -> None:
    version = client.put_object("demo", "old", data=b"x")
    client.create_bucket("other")
    assert sql(client, ALL, catalog=path).rows() == [("demo", "old", 1)]
    client.remove_version("demo", "old", version.version_id)
    client.remove_bucket("demo")
    client.create_bucket("demo")
    client.put_object("demo", "new", data=b"xx")
    assert sql(client, ALL, catalog=path).rows() == [("demo", "new", 2)]
    assert sql(client, "SELECT bucket FROM buckets ORDER BY 1", catalog=path).rows() == [("demo",), ("other",)]
    client.remove_bucket("other")
    assert sql(client, "SELECT bucket FROM buckets", catalog=path).rows() == [("demo",)]


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "text", "older", "other duckdb"])
def test_what_is_no_good_is_built_anew(client: objmeta.Client, damage: str) -> None:
    for number in range(3):
        client.put_object("demo", f"{number}", data=bytes(number))
    expected = sql(client, ALL).rows()
    path = kept.default_path(client.location)
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 3])
    elif damage == "flipped":
        path.write_bytes(content[:12288] + bytes(byte ^ 0x5A for byte in content[12288:]))
    elif damage == "text":
        path.write_text("key,size\n")
    else:
        with duckdb.connect(str(path)) as database:
            changes = {
                "foreign": "DROP TABLE about",
                "older": "UPDATE about SET format = 0",
                "other duckdb": "UPDATE about SET duckdb = '0.1'",
            }
            database.execute(changes[damage])
    result = sql(client, ALL)
    assert result.rows() == expected
    assert result.looked_at == 3
    assert sql(client, ALL).looked_at == 0


@pytest.mark.parametrize("damage", ["none", "cut", "torn", "flipped", "gone"])
def test_small_changes_wait_in_a_log(client: objmeta.Client, damage: str) -> None:
    """It is part of the catalog; what is damaged there leads to an older catalog or none, never to a wrong answer."""
    path = kept.default_path(client.location)
    client.put_object("demo", "first", data=b"x")
    sql(client, ALL)
    before = path.read_bytes()
    for number in range(3):
        client.put_object("demo", f"{number}", data=bytes(number))
        assert sql(client, ALL).looked_at == 1
    assert path.read_bytes() == before
    log = path.with_name(f"{path.name}.wal")
    content = log.read_bytes()
    if damage == "gone":
        log.unlink()
    elif damage != "none":
        half = len(content) // 2
        kept_part = {"cut": content[:half], "torn": content[:-1], "flipped": content[:half]}[damage]
        rest = bytes(byte ^ 0x5A for byte in content[half:]) if damage == "flipped" else b""
        log.write_bytes(kept_part + rest)
    client.delete_object("demo", "first")
    found = sql(client, ALL)
    assert found.rows() == sql(client, ALL, catalog=":memory:").rows()
    assert (found.looked_at == 1) is (damage == "none")
    assert sql(client, ALL).looked_at == 0


def test_the_log_does_not_grow_for_ever(client: objmeta.Client, path: Path) -> None:
    sql(client, ALL, catalog=path)
    before = path.read_bytes()
    for number in range(10):
        client.put_object("demo", f"{number}", data=b"", metadata={"text": f"{number}" * 60_000})
    sql(client, ALL, catalog=path)
    checkpoints.wait()
    assert path.read_bytes() != before
    assert not path.with_name(f"{path.name}.wal").exists()
    assert sql(client, ALL, catalog=path).rows() == sql(client, ALL, catalog=":memory:").rows()


def test_a_query_finds_nothing_that_another_one_left(client: objmeta.Client, path: Path) -> None:
    client.put_object("demo", "key", data=b"x")
    for _ in range(2):
        assert sql(client, ALL, catalog=path).rows() == [("demo", "key", 1)]
        sql(client, "CREATE TABLE mine AS SELECT 1 AS a", catalog=path)
        with pytest.raises(InvalidArgument, match="mine"):
            sql(client, "FROM mine", catalog=path)
        sql(client, "SET VARIABLE mine = 2", catalog=path)
        assert sql(client, "SELECT getvariable('mine')", catalog=path).rows() == [(None,)]


def test_a_query_after_a_fork(client: objmeta.Client, path: Path, tmp_path: Path) -> None:
    client.put_object("demo", "key", data=b"x")
    expected = sql(client, ALL, catalog=path).rows()
    child = os.fork()
    if not child:
        found = 1
        try:
            with objmeta.connect(tmp_path / "store") as own:
                found = int(sql(own, ALL, catalog=path).rows() != expected)
        finally:
            os._exit(found)
    assert sql(client, ALL, catalog=path).rows() == expected
    assert os.waitpid(child, 0)[1] == 0
    assert sql(client, ALL, catalog=path).looked_at == 0


def test_a_file_that_somebody_names_is_not_written_over(client: objmeta.Client, tmp_path: Path) -> None:
    text = tmp_path / "important.csv"
    text.write_text("a,b\n1,2\n" * 1000)
    foreign = tmp_path / "foreign.duckdb"
    with duckdb.connect(str(foreign)) as database:
        database.execute("CREATE TABLE mine AS SELECT 1 AS a")
    for named in (text, foreign):
        before = named.read_bytes()
        with pytest.raises(InvalidArgument, match="is no catalog"):
            sql(client, ALL, catalog=named)
        assert named.read_bytes() == before
    with pytest.raises(StoreError, match="cannot be kept"):
        sql(client, ALL, catalog=text / "below")


def test_a_catalog_of_another_store_is_built_anew(client: objmeta.Client, path: Path, tmp_path: Path) -> None:
    client.put_object("demo", "key", data=b"x")
    sql(client, ALL, catalog=path)
    with objmeta.connect(tmp_path / "other") as other:
        other.create_bucket("another")
        other.put_object("another", "thing", data=b"xx")
        assert sql(other, ALL, catalog=path).rows() == [("another", "thing", 2)]
    assert sql(client, ALL, catalog=path).rows() == [("demo", "key", 1)]


def test_while_another_query_reads_it_a_copy_is_used(client: objmeta.Client, path: Path) -> None:
    client.put_object("demo", "key", data=b"x")
    sql(client, ALL, catalog=path)
    before = path.read_bytes()
    with path.with_name(f"{path.name}.lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        client.put_object("demo", "more", data=b"xx")
        result = sql(client, ALL, catalog=path)
        assert result.rows() == [("demo", "key", 1), ("demo", "more", 2)]
        assert result.looked_at == 1, "it goes on from the copy"
    assert path.read_bytes() == before
    assert names_beside(path) <= {path.name, f"{path.name}.lock", f"{path.name}.wal"}
    assert sql(client, ALL, catalog=path).looked_at == 1


def test_where_nothing_has_changed_nothing_is_written(
    client: objmeta.Client, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queries read side by side, then; a bucket that comes or goes is a change."""
    client.put_object("demo", "key", data=b"x")
    sql(client, ALL, catalog=path)
    taken = kept._taken
    taken_for_writing = []

    def counted(*given: Any) -> Any:
        taken_for_writing.append(given)
        return taken(*given)

    monkeypatch.setattr(kept, "_taken", counted)
    with path.with_name(f"{path.name}.lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # as a query that reads
        assert sql(client, ALL, catalog=path).rows() == [("demo", "key", 1)]
    assert not taken_for_writing
    client.create_bucket("other")
    assert sql(client, "SELECT bucket FROM buckets ORDER BY 1", catalog=path).rows() == [("demo",), ("other",)]
    assert taken_for_writing


@pytest.mark.parametrize("other", ["up to date", "gone", "damaged"])
def test_another_process_comes_in_between_reading_and_writing(
    client: objmeta.Client, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    path = kept.default_path(client.location)
    client.put_object("demo", "key", data=b"x")
    sql(client, ALL)
    client.put_object("demo", "more", data=b"xx")
    taken = kept._taken

    def late(*given: Any) -> Any:
        monkeypatch.setattr(kept, "_taken", taken)
        if other == "up to date":
            assert sql(client, ALL).looked_at == 1
        elif other == "gone":
            kept.remove(path)
        else:
            path.write_bytes(b"no database")
        return taken(*given)

    monkeypatch.setattr(kept, "_taken", late)
    found = sql(client, ALL)
    assert found.rows() == [("demo", "key", 1), ("demo", "more", 2)]
    assert found.looked_at == (0 if other == "up to date" else 2)
    assert sql(client, ALL).rows() == found.rows()


def test_what_breaks_off_leaves_an_older_catalog(
    client: objmeta.Client, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.put_object("demo", "key", data=b"x")
    sql(client, ALL, catalog=path)
    client.put_object("demo", "more", data=b"xx")

    def fails(*_: object) -> None:
        raise StoreError("the disk is gone")

    with monkeypatch.context() as broken:
        broken.setattr(kept.Catalog, "end_change", fails)
        with pytest.raises(StoreError, match="the disk is gone"):
            sql(client, ALL, catalog=path)
    assert sql(client, ALL, catalog=path).rows() == [("demo", "key", 1), ("demo", "more", 2)]
    path.unlink()
    with monkeypatch.context() as broken:
        broken.setattr(kept.Catalog, "end_load", fails)
        with pytest.raises(StoreError, match="the disk is gone"):
            sql(client, ALL, catalog=path)
    assert not path.exists()
    assert sql(client, ALL, catalog=path).looked_at == 2


def test_a_query_cannot_change_what_is_kept(client: objmeta.Client, path: Path) -> None:
    client.put_object("demo", "key", data=b"x")
    with pytest.raises(InvalidArgument, match="read-only"):
        sql(client, "DELETE FROM kept.version_rows; FROM versions", catalog=path)
    with pytest.raises(InvalidArgument, match="disabled by configuration"):
        sql(client, f"ATTACH '{path.with_name('x')}' AS other; FROM versions", catalog=path)
    assert len(sql(client, ALL, catalog=path)) == 1


# -- What happened ----------------------------------------------------------------------------------------------------


def test_what_happened_to_an_object(client: objmeta.Client, path: Path) -> None:
    first = client.put_object("demo", "key", data=b"1")
    second = client.put_object("demo", "key", data=b"22")
    marker = client.delete_object("demo", "key")
    back = client.restore_version("demo", "key", first.version_id)
    last = client.put_object("demo", "key", data=b"333")
    client.remove_version("demo", "key", second.version_id)
    found = sql(
        client,
        "SELECT action, version_id, size, sequence FROM changes WHERE key = 'key' ORDER BY sequence",
        catalog=path,
    )
    assert found.rows() == [
        ("put", first.version_id, 1, 1),
        ("overwrite", second.version_id, 2, 2),
        ("delete marker", marker.version_id, None, 3),
        ("restore", back.version_id, 1, 4),
        ("overwrite", last.version_id, 3, 5),
        ("version removed", second.version_id, 2, 6),
    ]
    times = [time for (time,) in sql(client, "SELECT time FROM changes ORDER BY sequence", catalog=path)]
    assert all(abs((time - datetime.datetime.now(datetime.UTC)).total_seconds()) < 600 for time in times)


def test_the_usual_questions(client: objmeta.Client, path: Path) -> None:
    for key, size in (("logs/a/1", 10), ("logs/a/2", 20), ("logs/b/1", 5), ("data/x", 1), ("top", 7)):
        client.put_object("demo", key, data=bytes(size))
    client.put_object("demo", "copy", data=bytes(20))
    client.put_object("demo", "top", data=bytes(8))
    client.delete_object("demo", "data/x")

    def rows(query: str) -> list[tuple[Any, ...]]:
        return sql(client, query, catalog=path).rows()

    assert rows("FROM largest_prefixes()") == [("demo", "logs/", 3, 35)]
    assert rows("FROM largest_prefixes(depth := 2)") == [("demo", "logs/a/", 2, 30), ("demo", "logs/b/", 1, 5)]
    ((bucket, _, versions, size, so_far),) = rows("FROM growth_per_day()")
    assert (bucket, versions, size, so_far) == ("demo", 8, 71, 71)
    ((_, size, objects, more, examples),) = rows("FROM duplicates()")
    assert (size, objects, more, examples) == (20, 2, 20, ["demo/copy", "demo/logs/a/2"])
    assert rows("SELECT * FROM versions_per_key() LIMIT 2") == [
        ("demo", "data/x", 2, 1, 1, 1),
        ("demo", "top", 2, 0, 15, 7),
    ]
    assert rows("FROM under_replicated()") == []


def test_directories(client: objmeta.Client, path: Path) -> None:
    expected = {
        "top": "",
        "a/b": "a/",
        "a/b/c": "a/b/",
        "/x": "/",
        "a//x": "a//",
        "a/": "a/",
        "ä b/%?#*[/🙂": "ä b/%?#*[/",
        "'; --/x": "'; --/",
    }
    for key in expected:
        client.put_object("demo", key, data=b"")
        client.put_object("demo", key, data=b"x")
    for given in ({"catalog": path}, {"live": True}):
        found = sql(client, "SELECT key, directory FROM versions", **given).rows()
        assert sorted(found) == sorted(2 * list(expected.items()))


def test_rows_of_current_versions_lie_together(client: objmeta.Client, path: Path) -> None:
    """And none is lost or doubled for that, in a load and in a change."""
    for number in range(5):
        for size in range(3):
            client.put_object("demo", f"{number}", data=bytes(size))
    query = "SELECT key, size, is_latest FROM versions"
    every = [(f"{number}", size, size == 2) for number in range(5) for size in range(3)]
    found = sql(client, query, catalog=path).rows()
    assert sorted(found) == every
    assert [latest for _, _, latest in found] == [True] * 5 + [False] * 10
    client.put_object("demo", "3", data=bytes(9))
    changed = [(key, size, latest and key != "3") for key, size, latest in every]
    assert sorted(sql(client, query, catalog=path).rows()) == sorted([*changed, ("3", 9, True)])


def test_the_columns_that_are_told(client: objmeta.Client) -> None:
    assert [row[0] for row in sql(client, "DESCRIBE versions").rows()] == schema.VERSIONS.names


def test_a_full_disk(client: objmeta.Client, tiny_disk: Path) -> None:
    """Whether a catalog is made or brought up to date: the error says so, and the next query what is right."""
    path, filler = tiny_disk / "kept.duckdb", tiny_disk / "filler"
    for number in range(2):
        for key in range(500):
            client.put_object("demo", f"{key}", data=b"x" * number)
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        with pytest.raises(StoreFull, match=f"No space left.*{path.name}|{path.name}.*No space left"):
            sql(client, "FROM versions", catalog=path)
        filler.unlink()
        assert sql(client, "SELECT count(*), sum(size) FROM versions", catalog=path).rows() == [
            (500 * (number + 1), 500 * number)
        ]
    assert names_beside(path) <= {path.name, f"{path.name}.lock", f"{path.name}.wal"}
