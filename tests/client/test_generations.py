"""What operations state, so that the chunks they name are still there when they commit."""

from __future__ import annotations

import pytest
from blake3 import blake3

from objmeta import AsyncClient, Chunk, errors

CONTENT = b"some content"
CHUNK = Chunk(blake3(CONTENT).digest(), len(CONTENT))
ETAG = blake3(CONTENT).hexdigest()


async def close_the_generation(client: AsyncClient, bucket: str) -> None:
    """Have the floor raised above the generation of now: erasing something, elsewhere, does that."""
    bucket += "-erased"
    await client.create_bucket(bucket)
    version = await client.put_object(bucket, "erased", data=b"")
    await client.remove_version(bucket, "erased", version.version_id)
    found = await client.collect()
    while not found.done:
        found = await client.collect(found.run)
    assert not found.problem


async def test_the_generation_is_stated_until_it_is_over(client: AsyncClient, bucket: str) -> None:
    begun = await client.generation()
    put = await client.put_object(bucket, "k", chunks=[CHUNK], size=12, etag=ETAG, generation=begun)
    copied = await client.copy_object(bucket, "k", bucket, "copy", generation=begun)
    restored = await client.restore_version(bucket, "k", put.version_id, generation=begun)
    assert put.chunks == copied.chunks == restored.chunks == (CHUNK,)

    await close_the_generation(client, bucket)

    assert await client.generation() > begun
    with pytest.raises(errors.StaleGeneration):
        await client.put_object(bucket, "k", chunks=[CHUNK], size=12, etag=ETAG, generation=begun)
    with pytest.raises(errors.StaleGeneration):
        await client.copy_object(bucket, "k", bucket, "copy", generation=begun)
    with pytest.raises(errors.StaleGeneration):
        await client.restore_version(bucket, "k", put.version_id, generation=begun)
    assert [v.version_id for v in await client.versions(bucket, "k")] == [restored.version_id, put.version_id]
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
