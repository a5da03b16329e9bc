"""Versions that the rules of their bucket let go: which, and that nobody who races loses anything."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from gateway.collection.retention import Retention, due
from objmeta import AsyncClient, BucketSettings, ObjectVersion, connect_async, errors
from objmeta.node.dev import LocalCluster

DAY_US = 86_400_000_000


def version(day: float, *, marker: bool = False, latest: bool = False) -> ObjectVersion:
    return ObjectVersion(
        "b", "k", f"{int(day * 100):032x}", 1, 0, "", int(day * DAY_US), is_delete_marker=marker, is_latest=latest
    )


def days(versions: Sequence[ObjectVersion]) -> list[float]:
    return [each.modified_us / DAY_US for each in versions]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (BucketSettings(), []),
        (BucketSettings(replicas=2), []),
        (BucketSettings(keep_versions=1), [1, 2, 3]),
        (BucketSettings(keep_versions=3), [1]),
        (BucketSettings(keep_versions=4), []),
        (BucketSettings(keep_days=6), [1, 2, 3]),  # the one of day 3 was replaced on day 4, more than 6 days ago
        (BucketSettings(keep_days=7), [1, 2]),
        (BucketSettings(keep_days=0.5), [1, 2, 3, 4]),
        (BucketSettings(keep_versions=3, keep_days=0.5), [1]),
        (BucketSettings(keep_versions=1, keep_days=7), [1, 2]),
        (BucketSettings(keep_versions=1, expire_delete_markers=True), [1, 2, 3]),
    ],
)
def test_what_may_go(settings: BucketSettings, expected: list[float]) -> None:
    versions = [version(9, latest=True), version(4), version(3), version(2), version(1)]
    assert days(due(settings, versions, int(10.5 * DAY_US))) == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (BucketSettings(expire_delete_markers=True), []),
        (BucketSettings(keep_days=3), [1]),
        (BucketSettings(keep_days=3, expire_delete_markers=True), [1, 2]),
        (BucketSettings(keep_days=30, expire_delete_markers=True), []),
    ],
)
def test_a_delete_marker_goes_when_it_is_all_that_is_left(settings: BucketSettings, expected: list[float]) -> None:
    versions = [version(2, marker=True, latest=True), version(1)]
    assert days(due(settings, versions, 10 * DAY_US)) == expected
    lone = days(due(settings, versions[:1], 10 * DAY_US))
    assert lone == ([2] if settings.expire_delete_markers else [])


# -- In a store -------------------------------------------------------------------------------------------------------


_names = itertools.count(1)


@pytest.fixture(scope="module")
def endpoints(tmp_path_factory: pytest.TempPathFactory) -> object:
    with LocalCluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield ",".join(cluster.endpoints)


@pytest.fixture(params=["embedded", "cluster"])
async def client(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AsyncClient]:
    target = str(tmp_path) if request.param == "embedded" else request.getfixturevalue("endpoints")
    async with connect_async(target) as client:
        yield client
        for bucket in await client.buckets():  # other tests of the cluster have rules of their own
            await client.configure_bucket(bucket.name, keep_versions=0, keep_days=0, expire_delete_markers=False)


@pytest.fixture
async def bucket(client: AsyncClient) -> str:
    return (await client.create_bucket(f"bucket-{next(_names)}")).name


async def contents(client: AsyncClient, bucket: str, key: str) -> list[bytes | None]:
    return [
        None if each.is_delete_marker else (await client.get_object(bucket, key, version_id=each.version_id)).data
        for each in await client.versions(bucket, key)
    ]


async def test_versions_are_removed_as_the_rules_say(client: AsyncClient, bucket: str) -> None:
    for key in ("a", "b"):
        for number in range(4):
            await client.put_object(bucket, key, data=b"%d" % number)
    await client.delete_object(bucket, "b")
    retention = Retention(client)
    assert [each async for each in retention.plan()] == []
    await client.configure_bucket(bucket, keep_versions=2)
    planned = [(each.key, each.version_id) async for each in retention.plan()]
    assert planned == [
        (key, each.version_id) for key in ("a", "b") for each in reversed((await client.versions(bucket, key))[3:])
    ]
    retained = await retention.apply()
    assert (retained.removed, retained.removed_bytes, retained.failed) == (3, 3, 0)
    assert await contents(client, bucket, "a") == [b"3", b"2", b"1"]
    assert await contents(client, bucket, "b") == [None, b"3", b"2"]
    assert (await retention.apply()).removed == 0


async def test_an_object_that_was_deleted_long_ago_leaves_nothing(client: AsyncClient, bucket: str) -> None:
    await client.put_object(bucket, "k", data=b"1")
    await client.put_object(bucket, "kept", data=b"2")
    marker = await client.delete_object(bucket, "k")
    await client.configure_bucket(bucket, keep_days=1, expire_delete_markers=True)
    now_us = marker.modified_us + 1000
    early = Retention(client, now_us=lambda: now_us)
    assert (await early.apply()).removed == 0
    late = Retention(client, now_us=lambda: now_us + DAY_US)
    assert (await late.apply()).removed == 2
    with pytest.raises(errors.NoSuchKey):
        await client.versions(bucket, "k")
    assert await contents(client, bucket, "kept") == [b"2"]


async def test_what_became_current_meanwhile_stays(client: AsyncClient, bucket: str) -> None:
    old = await client.put_object(bucket, "k", data=b"old")
    new = await client.put_object(bucket, "k", data=b"new")
    newest = await client.put_object(bucket, "k", data=b"newest")
    await client.configure_bucket(bucket, keep_versions=1)

    class Slow(Retention):
        async def _remove(self, version: ObjectVersion) -> None:
            assert version.version_id == old.version_id
            await client.remove_version(bucket, "k", newest.version_id)
            await client.remove_version(bucket, "k", new.version_id)
            await super()._remove(version)

    assert (await Slow(client).apply()).removed == 0
    assert (await client.get_object(bucket, "k")).data == b"old"


async def test_the_condition_is_asked_about_what_is_removed(client: AsyncClient, bucket: str) -> None:
    first = await client.put_object(bucket, "k", data=b"1")
    seen: list[int] = []

    def condition(versions: Sequence[ObjectVersion]) -> bool:
        seen.append(len(versions))
        return len(versions) == 2

    with pytest.raises(errors.PreconditionFailed):
        await client.remove_version(bucket, "k", first.version_id, only_if=condition)
    await client.put_object(bucket, "k", data=b"2")
    await client.remove_version(bucket, "k", first.version_id, only_if=condition)
    assert seen[0] == 1
    assert seen[-1] == 2
    assert await contents(client, bucket, "k") == [b"2"]


async def test_racing_writers_lose_nothing(client: AsyncClient, bucket: str) -> None:
    await client.configure_bucket(bucket, keep_versions=1, expire_delete_markers=True)
    retention = Retention(client, removed_per_s_max=1e6)
    over = asyncio.Event()

    async def retain() -> int:
        removed = 0
        while not over.is_set():
            removed += (await retention.apply()).removed
        return removed + (await retention.apply()).removed

    async def write(key: str) -> None:
        """Each write is current when it is acknowledged, and the version before it may be made current again."""
        for number in range(12):
            content = b"%d" % number
            put = await client.put_object(bucket, key, data=content)
            current = await client.get_object(bucket, key)
            assert (current.version_id, current.data) == (put.version_id, content)
            if number % 3 == 1:
                await client.remove_version(bucket, key, put.version_id)
                assert (await client.get_object(bucket, key)).data == b"%d" % (number - 1)
            if number % 6 == 5:
                await client.delete_object(bucket, key)

    retaining = asyncio.create_task(retain())
    await asyncio.gather(*(write(key) for key in "abc"))
    over.set()
    assert await retaining > 0
    for key in "abc":
        with pytest.raises(errors.NoSuchKey):
            await client.head_object(bucket, key)
        assert len(await client.versions(bucket, key)) == 2
