"""Several queries in one session, as a prompt has them (gateway/catalog/query.py)."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import objmeta
from gateway.catalog.query import Session
from objmeta.errors import InvalidArgument, NoQuorum

FOREVER = "SELECT sum(a.range * b.range) FROM range(10_000_000) a, range(10_000_000) b"


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[objmeta.AsyncClient]:
    async with objmeta.connect_async(tmp_path / "store") as client:
        await client.create_bucket("demo")
        await client.put_object("demo", "key", data=b"x")
        yield client


@pytest.mark.parametrize("catalog", ["kept.duckdb", ":memory:", "live"])
async def test_what_a_query_makes_is_there_for_the_next(
    client: objmeta.AsyncClient, catalog: str, tmp_path: Path
) -> None:
    file = catalog if catalog == ":memory:" else tmp_path / catalog
    async with Session(client, catalog=None if catalog == "live" else file, live=catalog == "live") as session:

        async def rows(query: str) -> list[tuple[Any, ...]]:
            return (await session.sql(query)).rows()

        await session.sql("CREATE TABLE mine AS SELECT key FROM objects")
        await session.sql("CREATE VIEW seen AS SELECT key, chunk_count FROM objects")
        await session.sql("PREPARE many AS SELECT count(*) FROM versions")
        await session.sql("CREATE MACRO sizes() AS TABLE SELECT sum(size) FROM objects")
        assert await rows("FROM seen ORDER BY key") == [("key", 0)]
        await client.put_object("demo", "more", data=b"xx")
        assert await rows("FROM mine") == [("key",)]
        assert await rows("FROM seen ORDER BY key") == [("key", 0), ("more", 0)], "a view reads what is there now"
        assert await rows("EXECUTE many") == [(2,)]
        assert await rows("FROM sizes()") == [(3,)]
        for _ in range(2):
            assert await rows("SELECT count(*) FROM nodes") == [(1,)]
        names = await session.names()
        assert names.tables["mine"] == [("key", "VARCHAR")]
        assert ("chunk_count", "BIGINT") in names.tables["versions"]
        assert names.macros["largest_prefixes"] == ["depth"]
        assert {"sizes", "duplicates"} <= names.macros.keys()


@pytest.mark.parametrize("catalog", ["kept.duckdb", ":memory:"])
async def test_a_query_costs_what_has_changed(client: objmeta.AsyncClient, catalog: str, tmp_path: Path) -> None:
    file = catalog if catalog == ":memory:" else tmp_path / catalog
    async with Session(client, catalog=file) as session:
        assert (await session.sql("FROM objects")).looked_at == 1
        assert (await session.sql("FROM objects")).looked_at == 0
        await client.put_object("demo", "more", data=b"xx")
        found = await session.sql("SELECT key FROM objects ORDER BY key")
        assert (found.rows(), found.looked_at) == ([("key",), ("more",)], 1)
        with pytest.raises(InvalidArgument, match="nonsense"):
            await session.sql("FROM nonsense")
        assert (await session.sql("FROM objects")).looked_at == 0
        with contextlib.suppress(InvalidArgument):  # a file is read-only
            await session.sql("DELETE FROM kept.version_rows; FROM objects")
        assert len(await session.sql("FROM objects")) == 2


async def test_what_breaks_off_is_made_up_for(client: objmeta.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unreachable(*_: object, **__: object) -> None:
        raise NoQuorum("no majority")

    async with Session(client, catalog=":memory:") as session:
        for method in ("load_versions", "buckets", "changed_versions"):
            await client.put_object("demo", method, data=b"xx")
            with monkeypatch.context() as broken:
                broken.setattr(client, method, unreachable)
                with pytest.raises(NoQuorum):
                    await session.sql("FROM objects")
            assert len(await session.sql("FROM objects")) == len([each async for each in client.iter_objects("demo")])


async def test_changes_are_taken_in_though_the_cursor_stays(
    client: objmeta.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does where the acceptor that listed them was gone before the objects were read."""
    asked = client.changed_versions

    async def stays(cursor: str | None = None, *, limit: int = 1000) -> objmeta.ChangedVersions:
        found = await asked(cursor, limit=limit)
        return msgspec.structs.replace(found, cursor=cursor or found.cursor)

    async with Session(client, catalog=":memory:") as session:
        assert len(await session.sql("FROM objects")) == 1
        monkeypatch.setattr(client, "changed_versions", stays)
        await client.put_object("demo", "more", data=b"xx")
        assert len(await session.sql("FROM objects")) == 2


async def test_buckets_are_seen_to_come_and_go(client: objmeta.AsyncClient) -> None:
    async with Session(client, catalog=":memory:") as session:
        assert len(await session.sql("FROM buckets")) == 1
        await client.create_bucket("second")
        assert len(await session.sql("FROM buckets")) == 2
        await client.remove_bucket("second")
        assert len(await session.sql("FROM buckets")) == 1


async def test_a_query_that_is_cancelled_stops(client: objmeta.AsyncClient, tmp_path: Path) -> None:
    file = tmp_path / "kept.duckdb"
    async with Session(client, catalog=file) as session:
        assert len(await session.sql("FROM objects")) == 1
        for query in (FOREVER, f"{FOREVER}, objects"):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(session.sql(query), 0.3)
        with file.with_name(f"{file.name}.lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # somebody is loading
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(session.sql("FROM objects"), 0.6)
        await client.put_object("demo", "more", data=b"xx")
        assert len(await session.sql("FROM objects")) == 2


async def test_between_two_queries_nobody_is_held_up(client: objmeta.AsyncClient, tmp_path: Path) -> None:
    file = tmp_path / "kept.duckdb"
    async with Session(client, catalog=file) as session, Session(client, catalog=file) as other:
        for number in range(3):
            await client.put_object("demo", f"{number}", data=b"xx")
            assert len(await session.sql("FROM objects")) == 2 + number
            found = await other.sql("FROM objects")
            assert (len(found), found.looked_at) == (2 + number, 0), "it goes on from what the first has kept"


async def test_damage_is_made_good(client: objmeta.AsyncClient) -> None:
    from gateway.catalog import kept

    async with Session(client) as session:
        assert len(await session.sql("FROM objects")) == 1
        path = kept.default_path(client.location)
        content = path.read_bytes()
        path.write_bytes(content[:12288] + bytes(byte ^ 0x5A for byte in content[12288:]))
        assert len(await session.sql("FROM objects")) == 1


async def test_what_a_session_refuses(client: objmeta.AsyncClient) -> None:
    with pytest.raises(InvalidArgument, match="uses no catalog"):
        Session(client, catalog="x", live=True)
    async with Session(client) as session:
        for statement in ("BEGIN", "SELECT 1; COMMIT", "ROLLBACK"):
            with pytest.raises(InvalidArgument, match="each statement is one"):
                await session.sql(statement)
        with pytest.raises(InvalidArgument, match="empty"):
            await session.sql(" ")


async def _halted(client: objmeta.AsyncClient, monkeypatch: pytest.MonkeyPatch, method: str, catalog: Path) -> Any:
    """A query that waits for an answer of the store for ever."""
    asked = asyncio.Event()

    async def never(*_: object, **__: object) -> None:
        asked.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(client, method, never)
    query = asyncio.create_task(Session(client, catalog=catalog).sql("FROM objects"))
    await asked.wait()
    return query


async def test_a_load_that_is_cancelled_leaves_no_file(
    client: objmeta.AsyncClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    query = await _halted(client, monkeypatch, "load_versions", tmp_path / "kept.duckdb")
    assert (tmp_path / "kept.duckdb.building").exists()
    query.cancel()
    with pytest.raises(asyncio.CancelledError):
        await query
    assert not (tmp_path / "kept.duckdb.building").exists()


@pytest.mark.parametrize("method", ["changed_versions", "load_versions"])
async def test_python_looks_for_cycles_as_before(
    client: objmeta.AsyncClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, method: str
) -> None:
    before = gc.get_threshold()
    query = await _halted(client, monkeypatch, method, tmp_path / "kept.duckdb")
    assert gc.get_threshold() > before
    assert gc.isenabled(), "who never goes on with the query, or has forked, is not without it for good"
    query.cancel()
    with pytest.raises(asyncio.CancelledError):
        await query
    assert gc.get_threshold() == before


async def test_two_queries_at_once_leave_the_search_for_cycles_as_it_was(
    client: objmeta.AsyncClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = gc.get_threshold()
    queries = [await _halted(client, monkeypatch, "changed_versions", tmp_path / f"{at}.duckdb") for at in range(2)]
    for query in queries:
        query.cancel()
        with pytest.raises(asyncio.CancelledError):
            await query
    assert gc.get_threshold() == before
