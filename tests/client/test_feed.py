"""The change feed as users see it: embedded, over several processes, and through three nodes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

import objmeta
from objmeta import AsyncClient, ChangedObject
from objmeta.errors import InvalidArgument, NoSuchBucket


async def _since(client: AsyncClient, cursor: str, limit: int = 1000) -> tuple[dict[str, ChangedObject], str]:
    found: dict[str, ChangedObject] = {}
    while True:
        page = await client.changes(cursor, limit=limit)
        assert not page.reload
        found.update((changed.key, changed) for changed in page.objects)
        cursor = page.cursor
        if not page.more:
            return found, cursor


async def _start(client: AsyncClient) -> str:
    page = await client.changes()
    assert page.reload
    assert page.objects == ()
    return page.cursor


async def test_what_happened_is_listed_with_all_versions(client: AsyncClient, bucket: str) -> None:
    await client.put_object(bucket, "before", data=b"1")
    cursor = await _start(client)
    found, cursor = await _since(client, cursor)
    assert found.keys() <= {"before"}, "what the last node takes late is listed without need"
    key = "ä b/?#%*[ 🙂"
    first = await client.put_object(bucket, key, data=b"1", metadata={"by": "me"})
    second = await client.put_object(bucket, key, data=b"22")
    marker = await client.delete_object(bucket, key)
    found, cursor = await _since(client, cursor)
    assert found.keys() - {"before"} == {key}
    assert found[key].bucket == bucket
    assert [version.version_id for version in found[key].versions] == [
        marker.version_id,
        second.version_id,
        first.version_id,
    ]
    assert found[key].versions == tuple(await client.versions(bucket, key))
    assert found[key].removals == ()
    assert (await _since(client, cursor))[0].keys() <= {key}


async def test_removals_are_listed_and_so_is_what_is_gone(client: AsyncClient, bucket: str) -> None:
    first = await client.put_object(bucket, "key", data=b"1")
    second = await client.put_object(bucket, "key", data=b"22")
    cursor = await _start(client)
    await client.remove_version(bucket, "key", second.version_id)
    found, cursor = await _since(client, cursor)
    (removal,) = found["key"].removals
    assert (removal.version_id, removal.sequence) == (second.version_id, 3)
    assert abs(removal.removed_us - second.modified_us) < 60_000_000
    assert removal.version is not None
    assert (removal.version.size, removal.version.is_latest) == (2, False)
    assert [version.version_id for version in found["key"].versions] == [first.version_id]
    await client.remove_version(bucket, "key", first.version_id)
    found, cursor = await _since(client, cursor)
    assert found["key"].versions == ()
    assert [each.version_id for each in found["key"].removals] == [first.version_id]
    collected = await client.collect()
    while not collected.done:
        collected = await client.collect(collected.run)
    found, cursor = await _since(client, cursor)
    assert not found or found["key"] == ChangedObject(bucket, "key", ())


async def test_pages_lead_on(client: AsyncClient, bucket: str) -> None:
    cursor = await _start(client)
    await asyncio.gather(*(client.put_object(bucket, f"{number:03}", data=b"x") for number in range(120)))
    page = await client.changes(cursor, limit=7)
    assert page.more
    found, _ = await _since(client, cursor, limit=7)
    assert sorted(found) == [f"{number:03}" for number in range(120)]


async def test_other_registers_and_buckets_that_are_gone_are_not_listed(client: AsyncClient, fresh: str) -> None:
    cursor = await _start(client)
    await client.put(fresh, b"value")
    made = await client.create_bucket(fresh)
    version = await client.put_object(fresh, "key", data=b"x")
    await client.remove_version(fresh, "key", version.version_id)
    await client.remove_bucket(fresh)
    assert (await _since(client, cursor))[0] == {}
    with pytest.raises(NoSuchBucket):
        await client.load_versions(made, cursor)


async def test_loading_and_then_following(client: AsyncClient, fresh: str) -> None:
    made = await client.create_bucket(fresh)
    for number in range(30):
        await client.put_object(fresh, f"{number:03}", data=b"x" * number)
    await client.put_object(fresh, "003", data=b"again", content_type="text/plain", metadata={"by": "me"})
    gone = await client.put_object(fresh, "004", data=b"gone")
    await client.remove_version(fresh, "004", gone.version_id)
    cursor = await _start(client)
    keys: list[str] = []
    continuation: bytes | None = None
    while True:
        page = await client.load_versions(made, cursor, continuation=continuation, limit=7)
        columns = page.columns()
        for at, key in enumerate(columns.key):
            keys.append(key)
            found = await client.get_object(fresh, key, version_id=columns.version_id[at].hex(), with_data=False)
            assert (found.size, found.etag, found.sequence) == (
                columns.size[at],
                columns.etag[at].hex(),
                columns.sequence[at],
            )
            assert (found.is_latest, found.content_type) == (columns.is_latest[at], columns.content_type[at])
            assert (found.metadata, found.modified_us) == (columns.metadata[at], columns.modified_us[at])
        if columns.removals:
            assert [(key, removal.version_id) for key, removal in columns.removals] == [("004", gone.version_id)]
        cursor, continuation = page.cursor, page.continuation
        if continuation is None:
            break
    assert sorted(keys) == sorted([*(f"{number:03}" for number in range(30)), "003"])
    await client.put_object(fresh, "new", data=b"x")
    assert "new" in (await _since(client, cursor))[0]


async def test_what_is_no_cursor_is_refused(client: AsyncClient) -> None:
    for wrong in ("", "x", "ä", "AAAA"):
        with pytest.raises(InvalidArgument, match="cursor"):
            await client.changes(wrong)
    with pytest.raises(InvalidArgument, match="limit"):
        await client.changes(limit=0)


async def test_the_cursor_of_another_store_says_reload(client: AsyncClient, tmp_path: Path) -> None:
    with objmeta.connect(tmp_path / "other") as other:
        cursor = other.changes().cursor
    page = await client.changes(cursor)
    assert page.reload
    assert not (await client.changes(page.cursor)).reload


PUT = """
import sys, objmeta
with objmeta.connect(sys.argv[1]) as client:
    client.put_object("demo", sys.argv[2], data=b"x")
"""


def test_other_processes_and_the_synchronous_client(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with objmeta.connect(store) as client:
        bucket = client.create_bucket("demo")
        cursor = client.changes().cursor
        for name in ("one", "two"):
            subprocess.run([sys.executable, "-c", PUT, str(store), name], check=True, timeout=60)
            page = client.changes(cursor)
            assert [changed.key for changed in page.objects] == [name]
            cursor = page.cursor
        assert client.load_versions(bucket, cursor).columns().key == ["one", "two"]
