"""Objects through a client: what S3 and git users expect."""

from __future__ import annotations

import asyncio

import pytest
from blake3 import blake3

from objmeta import AsyncClient, Chunk, ObjectSummary, connect_async, errors

CONTENT = b"some content"


async def test_put_then_get(client: AsyncClient, bucket: str) -> None:
    put = await client.put_object(bucket, "a key", data=CONTENT, content_type="text/plain", metadata={"who": "ä"})
    got = await client.get_object(bucket, "a key")
    assert got == put
    assert got.data == CONTENT
    assert got.size == len(CONTENT)
    assert got.etag == blake3(CONTENT).hexdigest()
    assert (got.content_type, got.metadata) == ("text/plain", {"who": "ä"})
    assert got.is_latest
    assert got.is_inline
    assert got.parent_version_id is None


async def test_content_in_chunks(client: AsyncClient, bucket: str) -> None:
    chunk = Chunk(blake3(CONTENT).digest(), len(CONTENT))
    etag = blake3(CONTENT).hexdigest()
    await client.put_object(bucket, "k", chunks=[chunk], size=len(CONTENT), etag=etag)
    got = await client.get_object(bucket, "k")
    assert got.chunks == (chunk,)
    assert got.data is None
    assert not got.is_inline


async def test_chunks_must_add_up(client: AsyncClient, bucket: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="add up"):
        await client.put_object(bucket, "k", chunks=[Chunk(bytes(32), 3)], size=4, etag="00" * 32)


async def test_an_empty_object(client: AsyncClient, bucket: str) -> None:
    await client.put_object(bucket, "empty", data=b"")
    assert (await client.get_object(bucket, "empty")).data == b""


@pytest.mark.parametrize("key", ["a b", "ümläut/ß", "📦/🗝", "a//b", "./..", "%41?x=1#y", "x" * 1024, "k/"])
async def test_any_key_comes_back_as_it_was(client: AsyncClient, bucket: str, key: str) -> None:
    await client.put_object(bucket, key, data=key.encode())
    assert (await client.get_object(bucket, key)).data == key.encode()
    page = await client.list_objects(bucket)
    assert [summary.key for summary in page.objects] == [key]


@pytest.mark.parametrize("key", ["", "x" * 1025, "ü" * 513, "a\x00b", "\udc80"])
async def test_bad_keys_are_refused(client: AsyncClient, bucket: str, key: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="key"):
        await client.put_object(bucket, key, data=b"")


async def test_what_is_not_there(client: AsyncClient, bucket: str) -> None:
    with pytest.raises(errors.NoSuchKey):
        await client.get_object(bucket, "k")
    with pytest.raises(errors.NoSuchKey):
        await client.head_object(bucket, "k")
    with pytest.raises(errors.NoSuchKey):
        await client.delete_object(bucket, "k")
    with pytest.raises(errors.NoSuchKey):
        await client.versions(bucket, "k")
    with pytest.raises(errors.NoSuchVersion):
        await client.get_object(bucket, "k", version_id="0" * 32)
    with pytest.raises(errors.NoSuchBucket):
        await client.get_object("no-such-bucket", "k")
    with pytest.raises(errors.NoSuchBucket):
        await client.put_object("no-such-bucket", "k", data=b"")
    with pytest.raises(errors.NoSuchBucket):
        await client.list_objects("no-such-bucket")
    with pytest.raises(errors.InvalidArgument, match="32 hexadecimal"):
        await client.get_object(bucket, "k", version_id="latest")


async def test_overwriting_makes_versions(client: AsyncClient, bucket: str) -> None:
    first = await client.put_object(bucket, "k", data=b"1")
    second = await client.put_object(bucket, "k", data=b"2")
    assert second.parent_version_id == first.version_id
    assert second.sequence > first.sequence
    assert second.modified_us > first.modified_us
    versions = await client.versions(bucket, "k")
    assert [(v.version_id, v.is_latest) for v in versions] == [(second.version_id, True), (first.version_id, False)]
    assert (await client.get_object(bucket, "k", version_id=first.version_id)).data == b"1"


async def test_a_delete_marker_hides_and_keeps(client: AsyncClient, bucket: str) -> None:
    put = await client.put_object(bucket, "k", data=b"1")
    marker = await client.delete_object(bucket, "k")
    assert marker.is_delete_marker
    with pytest.raises(errors.NoSuchKey):
        await client.get_object(bucket, "k")
    assert (await client.list_objects(bucket)).objects == ()
    assert [v.is_delete_marker for v in await client.versions(bucket, "k")] == [True, False]
    assert (await client.get_object(bucket, "k", version_id=put.version_id)).data == b"1"
    await client.remove_version(bucket, "k", marker.version_id)
    assert (await client.get_object(bucket, "k")).data == b"1"


async def test_restore_an_old_version(client: AsyncClient, bucket: str) -> None:
    old = await client.put_object(bucket, "k", data=b"old", content_type="text/plain")
    await client.put_object(bucket, "k", data=b"new")
    restored = await client.restore_version(bucket, "k", old.version_id)
    assert restored.version_id != old.version_id
    got = await client.get_object(bucket, "k")
    assert (got.data, got.content_type) == (b"old", "text/plain")
    assert len(await client.versions(bucket, "k")) == 3


async def test_a_delete_marker_cannot_be_restored(client: AsyncClient, bucket: str) -> None:
    await client.put_object(bucket, "k", data=b"")
    marker = await client.delete_object(bucket, "k")
    with pytest.raises(errors.InvalidArgument, match="delete marker"):
        await client.restore_version(bucket, "k", marker.version_id)


async def test_removing_versions(client: AsyncClient, bucket: str) -> None:
    one, two, three = [await client.put_object(bucket, "k", data=b"%d" % i) for i in range(3)]
    await client.remove_version(bucket, "k", two.version_id)
    assert [v.version_id for v in await client.versions(bucket, "k")] == [three.version_id, one.version_id]
    await client.remove_version(bucket, "k", three.version_id)
    assert (await client.get_object(bucket, "k")).data == b"0"
    with pytest.raises(errors.NoSuchVersion):
        await client.remove_version(bucket, "k", three.version_id)
    await client.remove_version(bucket, "k", one.version_id)
    with pytest.raises(errors.NoSuchKey):
        await client.versions(bucket, "k")
    again = await client.put_object(bucket, "k", data=b"again")
    assert again.sequence > three.sequence
    assert [v.version_id for v in await client.versions(bucket, "k")] == [again.version_id]


async def test_put_if_absent(client: AsyncClient, bucket: str) -> None:
    await client.put_object(bucket, "k", data=b"1", if_absent=True)
    with pytest.raises(errors.AlreadyExists):
        await client.put_object(bucket, "k", data=b"2", if_absent=True)
    await client.delete_object(bucket, "k")
    await client.put_object(bucket, "k", data=b"3", if_absent=True)
    assert (await client.get_object(bucket, "k")).data == b"3"


async def test_put_and_delete_if_version(client: AsyncClient, bucket: str) -> None:
    first = await client.put_object(bucket, "k", data=b"1")
    second = await client.put_object(bucket, "k", data=b"2", if_version=first.version_id)
    with pytest.raises(errors.PreconditionFailed):
        await client.put_object(bucket, "k", data=b"3", if_version=first.version_id)
    with pytest.raises(errors.PreconditionFailed):
        await client.delete_object(bucket, "k", if_version=first.version_id)
    await client.delete_object(bucket, "k", if_version=second.version_id)


async def test_of_racing_writers_exactly_one_wins(client: AsyncClient, bucket: str) -> None:
    async def race(data: bytes) -> bool:
        try:
            await client.put_object(bucket, "k", data=data, if_absent=True)
        except errors.AlreadyExists:
            return False
        return True

    won = await asyncio.gather(*(race(b"%d" % i) for i in range(30)))
    assert sum(won) == 1
    assert (await client.get_object(bucket, "k")).data == b"%d" % won.index(True)
    assert len(await client.versions(bucket, "k")) == 1


async def test_racing_writers_of_two_clients(target: str, client: AsyncClient, bucket: str) -> None:
    async with connect_async(target) as other:
        await asyncio.gather(*(c.put_object(bucket, "k", data=b"x") for c in (client, other) for _ in range(20)))
        versions = await other.versions(bucket, "k")
    assert len(versions) == 40
    parents = [version.parent_version_id for version in versions]
    assert parents == [version.version_id for version in versions[1:]] + [None]


async def test_copy(client: AsyncClient, bucket: str, fresh: str) -> None:
    put = await client.put_object(bucket, "from", data=b"1", metadata={"a": "b"})
    await client.put_object(bucket, "from", data=b"2")
    await client.copy_object(bucket, "from", bucket, "to", version_id=put.version_id)
    copied = await client.get_object(bucket, "to")
    assert (copied.data, copied.metadata, copied.etag) == (b"1", {"a": "b"}, put.etag)
    with pytest.raises(errors.AlreadyExists):
        await client.copy_object(bucket, "from", bucket, "to", if_absent=True)


async def test_listing_by_pages(client: AsyncClient, bucket: str) -> None:
    keys = [f"k{i:03}" for i in range(25)]
    await asyncio.gather(*(client.put_object(bucket, key, data=b"") for key in keys))
    found: list[str] = []
    continuation = None
    pages = 0
    while True:
        page = await client.list_objects(bucket, continuation=continuation, limit=10)
        found += [summary.key for summary in page.objects]
        pages += 1
        if (continuation := page.continuation) is None:
            break
    assert found == keys
    assert pages == 3


async def test_listing_with_a_delimiter(client: AsyncClient, bucket: str) -> None:
    for key in ["a", "a/1", "a/2/x", "b/", "b/1", "c"]:
        await client.put_object(bucket, key, data=b"")
    page = await client.list_objects(bucket, delimiter="/")
    assert ([s.key for s in page.objects], page.prefixes) == (["a", "c"], ("a/", "b/"))
    page = await client.list_objects(bucket, "a/", delimiter="/")
    assert ([s.key for s in page.objects], page.prefixes) == (["a/1"], ("a/2/",))
    page = await client.list_objects(bucket, "b/", delimiter="/")
    assert ([s.key for s in page.objects], page.prefixes) == (["b/", "b/1"], ())
    entries = [e async for e in client.iter_objects(bucket, delimiter="/")]
    assert sorted(e.key if isinstance(e, ObjectSummary) else e for e in entries) == ["a", "a/", "b/", "c"]


async def test_a_prefix_of_deleted_objects_is_not_listed(client: AsyncClient, bucket: str) -> None:
    for i in range(80):
        await client.put_object(bucket, f"gone/{i:02}", data=b"")
        await client.delete_object(bucket, f"gone/{i:02}")
        await client.put_object(bucket, f"late/{i:02}", data=b"")
        if i < 79:
            await client.delete_object(bucket, f"late/{i:02}")
    page = await client.list_objects(bucket, delimiter="/")
    assert page.prefixes == ("late/",)


async def test_version_listing(client: AsyncClient, bucket: str) -> None:
    await client.put_object(bucket, "a", data=b"1")
    await client.put_object(bucket, "a", data=b"22", metadata={"x": "y"})
    await client.put_object(bucket, "b", data=b"333")
    await client.delete_object(bucket, "b")
    page = await client.list_versions(bucket)
    assert [(v.key, v.size, v.is_delete_marker, v.is_latest) for v in page.versions] == [
        ("a", 2, False, True),
        ("a", 1, False, False),
        ("b", 0, True, True),
        ("b", 3, False, False),
    ]
    assert page.versions[0].metadata == {"x": "y"}
    assert page.continuation is None
    for start, keys in [("", "aabb"), ("a", "aabb"), ("a\0", "bb"), ("b", "bb"), ("c", "")]:
        assert "".join(v.key for v in (await client.list_versions(bucket, start=start)).versions) == keys
    first = await client.list_versions(bucket, limit=1)
    for start, keys in [("", "bb"), ("a", "bb"), ("c", "")]:
        rest = await client.list_versions(bucket, start=start, continuation=first.continuation)
        assert "".join(v.key for v in rest.versions) == keys
    for prefix, start, keys in [("a", "b", ""), ("b", "a", "bb")]:
        assert "".join(v.key for v in (await client.list_versions(bucket, prefix, start=start)).versions) == keys
