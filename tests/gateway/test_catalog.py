"""SQL over the store (gateway/catalog/query.py)."""

from __future__ import annotations

import asyncio
import datetime
import random
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import objmeta
from gateway.catalog.query import sql, sql_async
from gateway.catalog.results import Result
from gateway.catalog.schema import TABLES
from gateway.cli import output
from gateway.data import commits
from gateway.data.transfer import open_store
from objmeta.client import NodeStatus
from objmeta.errors import IntegrityError, InvalidArgument, NoQuorum

DIGESTS = (b"\x01" * 32, b"\x02" * 32)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[objmeta.Client]:
    with objmeta.connect(tmp_path / "store") as client:
        yield client


@pytest.fixture
def filled(client: objmeta.Client) -> objmeta.Client:
    """Two buckets: ``first`` with an overwritten, a deleted and a chunked object; ``second`` empty."""
    client.create_bucket("first")
    client.create_bucket("second")
    client.put_object("first", "a.txt", data=b"one", content_type="text/plain", metadata={"by": "me", "for": "you"})
    client.put_object("first", "a.txt", data=b"three")
    client.put_object("first", "gone", data=b"soon")
    client.delete_object("first", "gone")
    chunks = (objmeta.Chunk(DIGESTS[0], 70), objmeta.Chunk(DIGESTS[1], 30))
    client.put_object("first", "large", chunks=chunks, size=100, etag="ab" * 32)
    return client


def test_objects_are_the_current_visible_versions(filled: objmeta.Client) -> None:
    result = sql(filled, "SELECT bucket, key, size, is_inline, chunk_count FROM objects ORDER BY key")
    assert result.columns == ["bucket", "key", "size", "is_inline", "chunk_count"]
    assert result.rows() == [("first", "a.txt", 5, True, 0), ("first", "large", 100, False, 2)]


def test_lists_of_very_many_chunks_are_read(
    client: objmeta.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "LIST_CHUNKS_MAX", 2)
    monkeypatch.setattr(commits, "LIST_ENTRIES", 2)
    data = random.Random(1).randbytes(16 << 20)

    async def put() -> tuple[objmeta.ObjectVersion, objmeta.ObjectVersion]:
        store = await open_store(tmp_path / "store")
        await store.client.create_bucket("bucket")
        version = await store.put_stream("bucket", "k", data)
        resolved = await store.resolved(version)
        await store.close()
        return version, resolved

    version, resolved = asyncio.run(put())
    assert len(version.lists) > 1
    assert version.chunks == ()
    assert sql(client, "SELECT chunk_count FROM objects").rows() == [(len(resolved.chunks),)]
    chunks = sql(client, "SELECT digest, length FROM chunks ORDER BY index").rows()
    assert chunks == [(chunk.digest.hex(), chunk.length) for chunk in resolved.chunks]
    assert asyncio.run(record_of(tmp_path / "store", version))["chunk_count"] == len(resolved.chunks)
    # one that is lost
    lost = objmeta.Chunk(DIGESTS[0], 70)
    client.put_object("bucket", "lost", lists=[lost], size=100, etag="ab" * 32)
    rows = sql(client, "SELECT key, chunk_count FROM objects ORDER BY key").rows()
    assert rows == [("k", len(resolved.chunks)), ("lost", None)]
    with pytest.raises(IntegrityError, match=DIGESTS[0].hex()):
        sql(client, "SELECT count(*) FROM chunks")
    record = asyncio.run(record_of(tmp_path / "store", client.get_object("bucket", "lost")))
    assert record["chunk_count"] is None


async def record_of(home: Path, version: objmeta.ObjectVersion) -> dict[str, object]:
    """What commands print of a version."""
    store = await open_store(home)
    try:
        return await output.version_record(store, version)
    finally:
        await store.close()


def test_versions_hold_everything_delete_markers_included(filled: objmeta.Client) -> None:
    query = "SELECT key, is_latest, is_delete_marker, size, etag IS NULL FROM versions ORDER BY key, sequence"
    assert sql(filled, query).rows() == [
        ("a.txt", False, False, 3, False),
        ("a.txt", True, False, 5, False),
        ("gone", False, False, 4, False),
        ("gone", True, True, None, True),
        ("large", True, False, 100, False),
    ]


def test_a_row_says_all_of_a_version(filled: objmeta.Client) -> None:
    newest, oldest = filled.versions("first", "a.txt")
    row = dict(zip((r := sql(filled, "FROM versions WHERE key = 'a.txt' AND NOT is_latest")).columns, *r, strict=True))
    assert row == {
        "bucket": "first",
        "key": "a.txt",
        "directory": "",
        "version_id": oldest.version_id,
        "is_latest": False,
        "is_delete_marker": False,
        "size": 3,
        "etag": oldest.etag,
        "content_type": "text/plain",
        "last_modified": oldest.modified,
        "metadata": {"by": "me", "for": "you"},
        "sequence": oldest.sequence,
        "parent_version_id": None,
        "is_inline": True,
        "chunk_count": 0,
    }
    (parent,) = sql(filled, "SELECT parent_version_id FROM objects WHERE key = 'a.txt'").rows()
    assert parent == (oldest.version_id,)
    assert newest.parent_version_id == oldest.version_id


def test_chunks_are_in_order(filled: objmeta.Client) -> None:
    query = "SELECT key, index, digest, length FROM chunks JOIN objects USING (bucket, key, version_id) ORDER BY index"
    assert sql(filled, query).rows() == [("large", 0, DIGESTS[0].hex(), 70), ("large", 1, DIGESTS[1].hex(), 30)]


def test_buckets_and_nodes(filled: objmeta.Client) -> None:
    rows = sql(filled, "SELECT bucket, bucket_id, creation_date FROM buckets").rows()
    assert rows == [(b.name, b.bucket_id.hex(), b.created) for b in filled.buckets()]
    filled.configure_bucket("first", replicas=2, keep_versions=3, keep_days=0.5, expire_delete_markers=True)
    rows = sql(filled, "SELECT bucket, replicas, keep_versions, keep_days, expire_delete_markers FROM buckets").rows()
    assert rows == [("first", 2, 3, 0.5, True), ("second", 0, 0, 0.0, False)]
    assert sql(filled, "SELECT count(*), bool_and(state = 'up') FROM nodes").rows() == [(1, True)]


def test_a_query_sees_every_change_before_it(client: objmeta.Client) -> None:
    client.create_bucket("counted")
    for number in range(5):
        client.put_object("counted", f"{number}", data=b"")
        assert sql(client, "SELECT count(*) FROM objects").rows() == [(number + 1,)]


def test_more_rows_than_a_page_and_a_batch(client: objmeta.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.catalog.query._PAGE_OBJECTS", 7)
    client.create_bucket("many")
    for number in range(60):
        client.put_object("many", f"{number % 30:03d}", data=bytes(number))
    assert sql(client, "SELECT count(*), count(DISTINCT key), sum(size) FROM versions").rows() == [(60, 30, 1770)]
    assert sql(client, "SELECT count(*), min(size) FROM objects").rows() == [(30, 30)]


async def test_the_asynchronous_door(tmp_path: Path) -> None:
    async with objmeta.connect_async(tmp_path) as client:
        await client.create_bucket("bucket")
        await client.put_object("bucket", "key", data=b"value")
        assert (await sql_async(client, "SELECT key, size FROM objects")).rows() == [("key", 5)]
        with pytest.raises(InvalidArgument, match="cannot be run"):
            await sql_async(client, "SELECT nothing FROM objects")


class _Recorder:
    """A client of an empty store that remembers what it was asked."""

    location = objmeta.Embedded(Path("/nonexistent"))

    def __init__(self) -> None:
        self.asked: list[str] = []

    def buckets(self) -> list[objmeta.Bucket]:
        self.asked.append("buckets")
        return []

    def changed_versions(self, cursor: str | None, *, limit: int) -> objmeta.ChangedVersions:
        self.asked.append("changes")
        return objmeta.ChangedVersions((), (), "cursor", reload=cursor is None)

    def status(self) -> SimpleNamespace:
        self.asked.append("status")
        return SimpleNamespace(nodes=())


class _Unreachable:
    """A client whose nodes are down."""

    def status(self) -> None:
        raise NoQuorum("no majority of the nodes answered in time; nothing was changed, try again")


@pytest.mark.parametrize(
    ("query", "asked"),
    [
        ("SELECT 1", []),
        ("SELECT 'nothing of ours'", []),
        ("FROM buckets", ["changes", "buckets"]),
        ('SELECT count(*) FROM "Objects"', ["changes", "buckets"]),
        ("FROM query_table('ver' || 'sions')", ["status", "changes", "buckets"]),
        ("WITH n AS (FROM nodes) FROM n", ["status"]),
    ],
)
def test_only_what_a_query_names_is_read(query: str, asked: list[str]) -> None:
    recorder = _Recorder()
    sql(recorder, query, catalog=":memory:")  # type: ignore[arg-type]
    assert recorder.asked == asked


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "empty"),
        ("SELEC 1", 'syntax error at or near "SELEC"'),
        ("SELECT nope FROM objects", '"nope" not found'),
        ("FROM objecs", "objecs does not exist! Did you mean"),
        ("SELECT 'a'::INT FROM objects, (SELECT 1)", "Could not convert string 'a' to INT32"),
        ("FROM read_csv('/etc/passwd')", "disabled by configuration"),
        ("COPY (SELECT 1) TO 'out.csv'", "disabled by configuration"),
        ("SET enable_external_access = true", "disabled|locked|while database is running"),
    ],
)
def test_a_wrong_query_is_refused_in_one_line(
    filled: objmeta.Client, query: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidArgument, match=message) as refusal:
        sql(filled, query)
    assert "\n" not in str(refusal.value)
    assert not Path("out.csv").exists()


def test_a_wrong_column_is_found_before_anything_is_read() -> None:
    recorder = _Recorder()
    with pytest.raises(InvalidArgument):
        sql(recorder, "SELECT nope FROM versions")  # type: ignore[arg-type]
    assert recorder.asked == []


def test_no_quorum_comes_through() -> None:
    with pytest.raises(NoQuorum):
        sql(_Unreachable(), "FROM nodes", catalog=":memory:")  # type: ignore[arg-type]


def test_a_node_that_is_down_has_no_figures() -> None:
    up = NodeStatus(1, "h:1", "up", version="1", changes=2, uptime_s=3.0)
    client: Any = SimpleNamespace(
        status=lambda: SimpleNamespace(nodes=(up, NodeStatus(2, "h:2", "down", "it did not")))
    )
    query = "SELECT node_id, detail, version, registers, changes, uptime_s FROM nodes ORDER BY 1"
    client.changed_versions = lambda cursor, limit: objmeta.ChangedVersions((), (), "cursor", reload=cursor is None)
    client.buckets = list
    found = sql(client, query, catalog=":memory:")
    assert found.rows() == [(1, "", "1", 0, 2, 3.0), (2, "it did not", None, None, None, None)]


def test_external_access_when_asked_for(filled: objmeta.Client, tmp_path: Path) -> None:
    target = tmp_path / "out.csv"
    sql(filled, f"COPY (SELECT key FROM objects ORDER BY key) TO '{target}'", external_access=True)
    assert target.read_text().split() == ["key", "a.txt", "large"]


def test_temporary_tables_within_one_query(filled: objmeta.Client) -> None:
    query = "CREATE TEMP TABLE big AS FROM objects WHERE size > 50; SELECT key FROM big"
    assert sql(filled, query).rows() == [("large",)]
    assert len(sql(filled, "CREATE TEMP TABLE big AS FROM objects")) <= 1


def test_what_duckdb_says_of_the_tables(client: objmeta.Client) -> None:
    shown = {name for (name,) in sql(client, "SELECT table_name FROM information_schema.tables").rows()}
    assert shown == set(TABLES) | {"about", "removals", "version_rows"}
    described = {row[0]: row[1] for row in sql(client, "DESCRIBE versions").rows()}
    assert described["last_modified"] == "TIMESTAMP WITH TIME ZONE"
    assert described["metadata"] == "MAP(VARCHAR, VARCHAR)"


def test_values_and_forms_of_a_result(client: objmeta.Client) -> None:
    query = """
        SELECT TIMESTAMPTZ '2026-01-02 03:04:05.000006+00' AS moment, sum(n) AS total, 2::HUGEINT ** 100 AS huge,
               1.50::DECIMAL(5, 2) AS price, true AS yes, NULL AS nothing, 'tab' || chr(9) AS text, [1, 2] AS list
        FROM range(4) AS r(n)
    """
    result = sql(client, query)
    moment = datetime.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=datetime.UTC)
    assert result.rows() == [(moment, 6, 2.0**100, Decimal("1.50"), True, None, "tab\t", [1, 2])]
    assert result.arrow().num_rows == len(result) == len(result.df()) == 1
    assert repr(result).startswith("<1 rows of moment, total")
    assert r"tab\x09" in str(result)


def test_a_result_prints_as_a_table(client: objmeta.Client) -> None:
    query = "SELECT * FROM (VALUES ('a', 1, NULL), ('longer', 200, true)) AS t(name, number, flag)"
    assert str(sql(client, query)) == (
        "name    number  flag\n"
        "------  ------  ----\n"
        "a            1  NULL\n"
        "longer     200  true"
    )  # fmt: skip


def test_no_rows(client: objmeta.Client) -> None:
    result = sql(client, "SELECT key, size FROM objects")
    assert isinstance(result, Result)
    assert (len(result), result.rows(), str(result)) == (0, [], "key  size\n---  ----")
