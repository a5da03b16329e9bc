"""Live queries: what they give, and that no more is asked of the store than they need."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import objmeta
from gateway.catalog.query import sql, sql_async
from gateway.data.transfer import open_store
from objmeta.errors import InvalidArgument, NoQuorum


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two buckets with 60 objects each; of every third there are two versions, every fifth is deleted."""
    path = tmp_path_factory.mktemp("live") / "store"
    with objmeta.connect(path) as client:
        for bucket in ("first", "second"):
            client.create_bucket(bucket)
            for number in range(60):
                key = f"{'ab'[number % 2]}/{number:02}"
                client.put_object(bucket, key, data=bytes(number), metadata={"number": str(number)})
                if number % 3 == 0:
                    client.put_object(bucket, key, data=bytes(100))
                if number % 5 == 0:
                    client.delete_object(bucket, key)
    return path


@pytest.fixture
def client(store: Path) -> Iterator[objmeta.Client]:
    with objmeta.connect(store) as client:
        yield client


class Counting:
    """A client that remembers what it was asked."""

    def __init__(self, client: objmeta.Client) -> None:
        self._client = client
        self.location = client.location
        self.asked: list[tuple[str, str, str, str]] = []
        self.objects = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def list_versions(self, bucket: str, prefix: str, *, start: str, **given: Any) -> objmeta.VersionPage:
        page = self._client.list_versions(bucket, prefix, start=start, **given)
        self.asked.append(("versions", bucket, prefix, start))
        self.objects += len({version.key for version in page.versions})
        return page

    def list_objects(self, bucket: str, prefix: str, *, start: str, **given: Any) -> objmeta.ObjectPage:
        page = self._client.list_objects(bucket, prefix, start=start, **given)
        self.asked.append(("heads", bucket, prefix, start))
        self.objects += len(page.objects)
        return page


@pytest.mark.parametrize(
    "query",
    [
        "FROM versions",
        "FROM objects",
        "FROM chunks",
        "FROM buckets",
        "SELECT bucket, count(*), sum(size) FROM objects GROUP BY ALL",
        "FROM versions WHERE key >= 'a/30' AND key < 'b/07'",
        "FROM versions WHERE key LIKE 'a/1%' AND NOT is_latest",
        "FROM versions WHERE key IN ('a/02', 'b/03', 'none')",
        "SELECT key FROM objects WHERE key = 'a/02' OR key = 'b/59'",
        "SELECT count(*) FROM versions WHERE is_delete_marker",
        "SELECT key, metadata['number'] FROM objects WHERE bucket = 'second' AND size > 50",
        "SELECT key FROM versions WHERE key > 'b/5' ORDER BY key DESC LIMIT 3",
        "FROM versions WHERE etag IS NULL OR content_type = 'x\"y'",
        "FROM largest_prefixes()",
        "SELECT directory, count(*) FROM objects GROUP BY ALL",
        "SELECT key, size FROM objects WHERE directory = 'b/' AND size > 10",
        "SELECT a.key FROM objects a JOIN versions b ON a.key = b.key WHERE b.size = 7 AND a.bucket = b.bucket",
    ],
)
def test_it_says_what_the_catalog_says(client: objmeta.Client, query: str) -> None:
    live, catalog = sql(client, query, live=True), sql(client, query)
    assert live.columns == catalog.columns
    assert sorted(map(str, live.rows())) == sorted(map(str, catalog.rows()))
    assert live.as_of is not None


@pytest.mark.parametrize(
    ("query", "asked", "objects"),
    [
        ("SELECT key FROM versions WHERE bucket = 'first'", [("versions", "first", "", "")], 60),
        ("SELECT key FROM objects WHERE bucket = 'first' AND key = 'a/02'", [("heads", "first", "a/02", "a/02")], 1),
        ("SELECT key, size FROM objects WHERE bucket = 'second'", [("heads", "second", "", "")], 48),
        ("SELECT metadata FROM objects WHERE bucket = 'second'", [("versions", "second", "", "")], 60),
        ("SELECT key FROM versions WHERE bucket = 'first' AND key > 'b/'", [("versions", "first", "", "b/")], 30),
        ("SELECT key FROM versions WHERE bucket = 'none'", [], 0),
        (
            "SELECT key FROM versions WHERE bucket = 'first' AND key >= 'a/50' AND key <= 'a/56'",
            [("versions", "first", "a/5", "a/50")],
            5,
        ),
        ("SELECT count(*) FROM buckets", [], 0),
    ],
)
def test_only_what_it_needs_is_asked_for(
    client: objmeta.Client, query: str, asked: list[tuple[str, str, str, str]], objects: int
) -> None:
    counting = Counting(client)
    sql(counting, query, live=True)  # type: ignore[arg-type]
    assert (counting.asked, counting.objects) == (asked, objects)


def test_pages_end_where_nothing_can_match(client: objmeta.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.catalog.live._LIMITS", (4, 4))
    counting = Counting(client)
    query = "SELECT count(*) FROM versions WHERE bucket = 'first' AND key >= 'a/10' AND key < 'b'"
    assert sql(counting, query, live=True).rows() == sql(client, query).rows()  # type: ignore[arg-type]
    assert counting.objects < 35
    assert sql(client, "SELECT count(*) FROM versions", live=True).rows() == [(184,)]


def test_the_asynchronous_door_and_failures(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask() -> None:
        async with objmeta.connect_async(store) as client:
            assert (await sql_async(client, "SELECT count(*) FROM objects", live=True)).rows() == [(96,)]

            async def fails(*_: object, **__: object) -> None:
                raise NoQuorum("no majority of the nodes answered in time; nothing was changed, try again")

            monkeypatch.setattr(client, "list_versions", fails)
            with pytest.raises(NoQuorum):
                await sql_async(client, "FROM versions", live=True)

    asyncio.run(ask())


def test_as_it_was(store: Path) -> None:
    async def ask() -> None:
        opened = await open_store(store)
        try:
            then = (await opened.client.head_object("first", "a/02")).modified
            past = opened.as_of(then)
            result = await sql_async(past.client, "SELECT key FROM versions WHERE bucket = 'first' ORDER BY key")
            assert result.rows() == [("a/00",), ("a/00",), ("a/00",), ("a/02",), ("b/01",)]
            assert result.as_of == then
        finally:
            await opened.close()

    asyncio.run(ask())


def test_what_cannot_be_live_is_refused(client: objmeta.Client) -> None:
    for query in ("FROM changes", "SELECT 1; SELECT * FROM Changes"):
        with pytest.raises(InvalidArgument, match="a live query has no table changes"):
            sql(client, query, live=True)
    assert sql(client, "SELECT 'changes' AS changes", live=True).rows() == [("changes",)]
    with pytest.raises(InvalidArgument, match="leave one"):
        sql(client, "FROM objects", live=True, catalog=":memory:")
