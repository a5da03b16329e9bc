"""What operations state, so that the chunks they name are still there when they commit."""

from __future__ import annotations

from pathlib import Path

import pytest
from blake3 import blake3

from objmeta import AsyncClient, Chunk, connect_async, errors
from objmeta.node.dev import LocalCluster

CONTENT = b"some content"
CHUNK = Chunk(blake3(CONTENT).digest(), len(CONTENT))
ETAG = blake3(CONTENT).hexdigest()


async def test_the_generation_is_stated_until_it_is_over(client: AsyncClient, bucket: str) -> None:
    begun = await client.generation()
    put = await client.put_object(bucket, "k", chunks=[CHUNK], size=12, etag=ETAG, generation=begun)
    copied = await client.copy_object(bucket, "k", bucket, "copy", generation=begun)
    restored = await client.restore_version(bucket, "k", put.version_id, generation=begun)
    assert put.chunks == copied.chunks == restored.chunks == (CHUNK,)

    cycle = await client.begin_cycle()
    assert cycle.floor >= begun
    assert cycle.generation > cycle.floor
    assert await client.generation() == cycle.generation
    if cycle.floor == begun:  # so what began before the cycle has until the next one
        await client.put_object(bucket, "k", chunks=[CHUNK], size=12, etag=ETAG, generation=begun)
        assert (await client.begin_cycle()).floor == cycle.generation
    versions = await client.versions(bucket, "k")

    with pytest.raises(errors.StaleGeneration):
        await client.put_object(bucket, "k", chunks=[CHUNK], size=12, etag=ETAG, generation=begun)
    with pytest.raises(errors.StaleGeneration):
        await client.copy_object(bucket, "k", bucket, "copy", generation=begun)
    with pytest.raises(errors.StaleGeneration):
        await client.restore_version(bucket, "k", put.version_id, generation=begun)
    assert await client.versions(bucket, "k") == versions
    assert len(await client.versions(bucket, "copy")) == 1
    again = await client.put_object(
        bucket, "k", chunks=[CHUNK], size=12, etag=ETAG, generation=await client.generation()
    )
    assert (await client.head_object(bucket, "k")).version_id == again.version_id
    await client.put_object(bucket, "k", data=b"without any")


async def test_a_generation_that_cannot_be(client: AsyncClient, bucket: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="generation"):
        await client.put_object(bucket, "k", data=b"", generation=-1)


async def test_content_in_lists_of_chunks(client: AsyncClient, bucket: str) -> None:
    lists = (Chunk(bytes(32), 400), Chunk(b"\x01" * 32, 300))
    put = await client.put_object(bucket, "k", lists=lists, size=1 << 40, etag=ETAG)
    got = await client.get_object(bucket, "k")
    assert got == put
    assert (got.lists, got.chunks, got.data, got.is_inline) == (lists, (), None, False)
    assert (await client.get_object(bucket, "k", version_id=put.version_id)) == put
    assert (await client.versions(bucket, "k")) == [put]
    assert (await client.list_versions(bucket)).versions == (put,)
    copied = await client.copy_object(bucket, "k", bucket, "copy")
    assert (copied.lists, copied.size, copied.etag) == (lists, 1 << 40, ETAG)
    with pytest.raises(errors.InvalidArgument, match="not two"):
        await client.put_object(bucket, "k", lists=lists, chunks=[CHUNK], size=12, etag=ETAG)


async def test_no_cycle_begins_while_an_acceptor_is_away(tmp_path: Path) -> None:
    with LocalCluster(tmp_path / "cluster") as cluster:
        async with connect_async(",".join(cluster.endpoints), timeout_s=5) as client:
            first = await client.begin_cycle()
            assert (first.generation, first.floor) == (2, 1)
            cluster.kill(3)
            with pytest.raises(errors.NoQuorum, match="node 3"):
                await client.begin_cycle()
            assert await client.generation() == 3
            await client.create_bucket("bucket")
            await client.put_object("bucket", "k", data=b"", generation=2)


async def test_no_cycle_begins_while_a_disk_is_away(tmp_path: Path) -> None:
    disks = [tmp_path / name for name in "abc"]
    async with connect_async(disks=disks) as client:
        assert (await client.begin_cycle()).floor == 1
    (tmp_path / "b").rename(tmp_path / "away")
    async with connect_async(disks=disks) as client:
        with pytest.raises(errors.NoQuorum, match="node 2"):
            await client.begin_cycle(2.0)
