"""Buckets: names, removal, and removal racing puts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from objmeta import AsyncClient, BucketSettings, connect_async, errors


async def test_create_list_remove(client: AsyncClient, fresh: str) -> None:
    made = await client.create_bucket(fresh)
    assert await client.bucket(fresh) == made
    assert fresh in [bucket.name for bucket in await client.buckets()]
    with pytest.raises(errors.AlreadyExists):
        await client.create_bucket(fresh)
    await client.remove_bucket(fresh)
    with pytest.raises(errors.NoSuchBucket):
        await client.bucket(fresh)
    assert fresh not in [bucket.name for bucket in await client.buckets()]
    with pytest.raises(errors.NoSuchBucket):
        await client.remove_bucket(fresh)
    again = await client.create_bucket(fresh)
    assert again.bucket_id != made.bucket_id


@pytest.mark.parametrize(
    "name", ["ab", "x" * 64, "Upper", "under_score", "-begins", "ends-", "two..dots", "192.168.0.1", "sp ace", ""]
)
async def test_bad_names_are_refused(client: AsyncClient, name: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="bucket name"):
        await client.create_bucket(name)


async def test_a_bucket_with_anything_in_it_stays(client: AsyncClient, bucket: str) -> None:
    put = await client.put_object(bucket, "k", data=b"")
    with pytest.raises(errors.BucketNotEmpty):
        await client.remove_bucket(bucket)
    marker = await client.delete_object(bucket, "k")
    with pytest.raises(errors.BucketNotEmpty):
        await client.remove_bucket(bucket)
    await client.remove_version(bucket, "k", put.version_id)
    await client.remove_version(bucket, "k", marker.version_id)
    await client.remove_bucket(bucket)


async def test_a_new_bucket_of_an_old_name_is_empty(target: str, client: AsyncClient, bucket: str) -> None:
    async with connect_async(target) as other:
        put = await other.put_object(bucket, "k", data=b"")
        await other.remove_version(bucket, "k", put.version_id)
        await client.remove_bucket(bucket)
        await client.create_bucket(bucket)
        await client.put_object(bucket, "k2", data=b"")
        # the other client still remembers the removed bucket's id and term
        with pytest.raises(errors.NoSuchKey):
            await other.get_object(bucket, "k")
        await other.put_object(bucket, "k3", data=b"")
        assert [s.key for s in (await other.list_objects(bucket)).objects] == ["k2", "k3"]


async def test_removal_racing_puts_loses_none(target: str, client: AsyncClient, fresh: str) -> None:
    async with connect_async(target) as other:
        for _ in range(10):
            await client.create_bucket(fresh)

            async def put() -> bool:
                try:
                    await other.put_object(fresh, "k", data=b"x")
                except errors.NoSuchBucket:
                    return False
                return True

            async def remove() -> bool:
                try:
                    await client.remove_bucket(fresh)
                except errors.BucketNotEmpty:
                    return False
                return True

            stored, removed = await asyncio.gather(put(), remove())
            assert stored != removed
            if stored:
                got = await client.get_object(fresh, "k")
                assert got.data == b"x"
                await client.remove_version(fresh, "k", got.version_id)
                await client.remove_bucket(fresh)


async def test_settings_are_changed_one_by_one(target: str, client: AsyncClient, bucket: str) -> None:
    made = await client.bucket(bucket)
    assert made.settings == BucketSettings()
    async with connect_async(target) as other:
        await asyncio.gather(
            client.configure_bucket(bucket, replicas=2),
            other.configure_bucket(bucket, keep_days=1.5),
            client.configure_bucket(bucket, keep_versions=3),
            other.configure_bucket(bucket, expire_delete_markers=True),
        )
        found = await other.bucket(bucket)
        assert found.settings == BucketSettings(2, 3, 1.5, True)
        assert (found.bucket_id, found.term, found.created_us) == (made.bucket_id, made.term, made.created_us)
        assert await client.configure_bucket(bucket, replicas=2) == found
        changed = await client.configure_bucket(bucket, replicas=0, expire_delete_markers=False)
        assert changed.settings == BucketSettings(0, 3, 1.5, False)
        assert [found for found in await other.buckets() if found.name == bucket] == [changed]
        await client.put_object(bucket, "k", data=b"")
        with pytest.raises(errors.BucketNotEmpty):
            await other.remove_bucket(bucket)
        assert (await client.bucket(bucket)).settings == changed.settings


async def test_a_bucket_made_anew_has_no_settings_of_the_old_one(client: AsyncClient, bucket: str) -> None:
    await client.configure_bucket(bucket, replicas=1)
    await client.remove_bucket(bucket)
    with pytest.raises(errors.NoSuchBucket):
        await client.configure_bucket(bucket, replicas=1)
    assert (await client.create_bucket(bucket)).settings == BucketSettings()
    assert (await client.bucket(bucket)).settings == BucketSettings()


@pytest.mark.parametrize(
    "wrong",
    [
        {"replicas": -1},
        {"replicas": 65},
        {"replicas": True},
        {"keep_versions": 1.5},
        {"keep_days": float("nan")},
        {"keep_days": float("inf")},
        {"keep_days": "7"},
        {"expire_delete_markers": 2},
    ],
)
async def test_settings_that_cannot_be(client: AsyncClient, bucket: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(errors.InvalidArgument, match=next(iter(wrong))):
        await client.configure_bucket(bucket, **wrong)
    assert (await client.bucket(bucket)).settings == BucketSettings()
