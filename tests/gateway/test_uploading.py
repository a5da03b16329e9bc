"""Uploads: what is there is not sent again, generations that move on, digests that are expected, long lists, parts."""

from __future__ import annotations

import asyncio
import gc
import random
import weakref
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from gateway.blobs.local import LocalBlobs
from gateway.blobs.places import Sweep
from gateway.data import commits, parts, uploading
from gateway.data.transfer import Store, open_store
from objmeta import Chunk, errors
from tests.gateway import blobfiles

BUCKET = "bucket"
MIB = 1 << 20


class Watched(LocalBlobs):
    """A place that counts what is sent to it."""

    sent = 0

    async def put(
        self, data: bytes | memoryview, *, generation: int, replicas: int = 0, chunk: Chunk | None = None
    ) -> Chunk:
        self.sent += len(data)
        return await super().put(data, generation=generation, replicas=replicas, chunk=chunk)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await open_watched(tmp_path)
    await opened.client.create_bucket(BUCKET)
    yield opened
    await opened.close()


async def open_watched(tmp_path: Path) -> Store:
    opened = await open_store(tmp_path / "store")
    return Store(opened.client, Watched(tmp_path / "store" / "blobs"))


def place(store: Store) -> Watched:
    assert isinstance(store.blobs, Watched)
    return store.blobs


def content(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


async def next_cycle(store: Store, sweep: bool = False) -> None:
    """A cycle of the collector that finds nothing named, as far as it goes."""
    cycle = await store.client.begin_cycle()
    await place(store).raise_floor(cycle.floor)
    if sweep:
        await place(store).sweep(Sweep(cycle.generation, cycle.floor, b"", b"", ()))


# -- What is there is not sent ----------------------------------------------------------------------------------------


async def test_content_that_is_there_is_not_sent_again(store: Store) -> None:
    data = content(20 * MIB)
    await store.put_stream(BUCKET, "first", data)
    assert place(store).sent == len(data)
    await store.put_stream(BUCKET, "second", data)
    assert place(store).sent == len(data)
    middle = 9 * MIB
    version = await store.put_stream(BUCKET, "third", data[:middle] + content(MIB, 2) + data[middle:])
    assert place(store).sent < len(data) + 8 * MIB
    assert await store.read(version, 0, middle) == data[:middle]


async def test_an_interrupted_upload_goes_on_where_it_was(store: Store, tmp_path: Path) -> None:
    data = content(40 * MIB)
    upload = store.upload(BUCKET, "key")
    await upload.write(data[: 30 * MIB])
    before = 0
    async with asyncio.timeout(60):
        while before < 10 * MIB:
            await asyncio.sleep(0.01)
            before = sum(held.length for held in await place(store).held())
    await upload.discard()
    with pytest.raises(errors.NoSuchKey):
        await store.client.head_object(BUCKET, "key")
    another = await open_watched(tmp_path)
    version = await another.put_stream(BUCKET, "key", data)
    assert place(another).sent <= len(data) - before
    assert (await another.read(version)) == data
    await another.close()


# -- Digests ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [100, 3 * MIB])
async def test_content_that_is_not_what_was_expected_is_refused(store: Store, length: int) -> None:
    data = content(length)
    etag = blake3(data).hexdigest()
    with pytest.raises(errors.IntegrityError, match="expected"):
        await store.put_stream(BUCKET, "key", data + b"?", expected_etag=etag)
    with pytest.raises(errors.NoSuchKey):
        await store.client.head_object(BUCKET, "key")
    assert (await store.put_stream(BUCKET, "key", data, expected_etag=etag.upper())).etag == etag


# -- Generations ------------------------------------------------------------------------------------------------------


async def test_an_upload_that_takes_two_cycles_touches_again_what_it_stored(store: Store) -> None:
    data = content(30 * MIB)
    upload = store.upload(BUCKET, "key")
    await upload.write(data[: 20 * MIB])
    for _ in range(3):
        await next_cycle(store)
    await upload.write(data[20 * MIB :])
    version = await upload.commit()
    assert await store.read(version) == data
    floor = await store.client.generation() - 1  # it may have looked before the last cycle began
    assert all(held.touched >= floor for held in await place(store).held() if held.chunk in version.chunks)


async def test_an_upload_that_waits_is_kept_through_any_number_of_cycles(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploading, "LOOK_S", 0.01)
    data = content(20 * MIB)
    upload = store.upload(BUCKET, "key")
    await upload.write(data)
    for _ in range(5):
        await next_cycle(store, sweep=True)
        newest = await store.client.generation()
        async with asyncio.timeout(60):
            while {held.touched for held in await place(store).held()} != {newest}:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    version = await upload.commit()
    assert await store.read(version) == data
    assert place(store).sent == len(data)


async def test_an_upload_that_was_dropped_is_not_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploading, "LOOK_S", 0.01)
    upload = store.upload(BUCKET, "key")
    await upload.write(content(20 * MIB))
    dropped = weakref.ref(upload)
    del upload
    async with asyncio.timeout(60):
        while dropped() is not None:
            gc.collect()
            await asyncio.sleep(0.01)


async def test_an_upload_whose_chunks_were_collected_is_not_committed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploading, "LOOK_S", 3600.0)  # as of a process that sleeps
    upload = store.upload(BUCKET, "key")
    await upload.write(content(20 * MIB))
    for _ in range(4):
        await next_cycle(store, sweep=True)
    with pytest.raises(errors.Unavailable, match="begin anew"):
        await upload.commit()
    with pytest.raises(errors.NoSuchKey):
        await store.client.head_object(BUCKET, "key")
    assert (await store.put_stream(BUCKET, "key", content(20 * MIB))).size == 20 * MIB


class Counted(commits.Commits):
    """Of a cluster whose members change."""

    members = 1

    @property
    def epoch(self) -> int:
        return self.members


@pytest.fixture
def counted(store: Store) -> Counted:
    store.commits = Counted(store.client, store.blobs)
    return store.commits


async def test_what_is_left_when_members_have_changed_is_touched_before_the_commit(
    store: Store, counted: Counted
) -> None:
    data = content(20 * MIB)
    upload = store.upload(BUCKET, "key")
    await upload.write(data)
    async with asyncio.timeout(60):
        while not (held := await place(store).held()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    counted.members += 1
    blobfiles.lose(place(store).path, held[0].chunk)  # with a node that left
    with pytest.raises(errors.Unavailable, match="begin anew"):
        await upload.commit()
    with pytest.raises(errors.NoSuchKey):
        await store.client.head_object(BUCKET, "key")
    async with store.upload(BUCKET, "key") as upload:
        await upload.write(data)
        counted.members += 1
    assert await store.read(await store.client.get_object(BUCKET, "key")) == data


async def test_a_copy_is_touched_again_when_members_change_meanwhile(
    store: Store, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.put_stream(BUCKET, "key", content(100_000))
    kept = []
    keep = counted.keep

    async def keep_and_change(chunks: Sequence[Chunk], replicas: int) -> int:
        kept.append(chunks)
        counted.members += len(kept) == 1
        return await keep(chunks, replicas)

    monkeypatch.setattr(counted, "keep", keep_and_change)
    await store.copy(BUCKET, "key", BUCKET, "copy")
    assert len(kept) == 2


async def test_several_at_once_are_touched_again_after_cycles_and_changes_of_members(
    store: Store, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "LIST_CHUNKS_MAX", 4)
    contents = {"large": content(20 * MIB), "medium": content(100_000, seed=1), "small": b"inline"}

    async def prepared(suffix: str) -> list[commits.Prepared]:
        uploads = [store.upload(BUCKET, key + suffix, metadata={"for": key}) for key in contents]
        for upload, data in zip(uploads, contents.values(), strict=True):
            await upload.write(data)
        return [await upload.prepare() for upload in uploads]

    aged = await prepared("-aged")
    for _ in range(3):
        await next_cycle(store)
    moved = await prepared("-moved")
    counted.members += 1
    for suffix, ready in (("-aged", aged), ("-moved", moved)):
        made = await counted.commit_together(ready)
        assert [version.key for version in made] == [key + suffix for key in contents]
        assert len({version.modified_us for version in made}) == 1
        for version, (key, data) in zip(made, contents.items(), strict=True):
            assert await store.read(version) == data
            assert version.metadata == {"for": key}
    newest = await store.client.generation()
    assert {held.touched for held in await place(store).held() if held.chunk.length > MIB} == {newest}
    lost = await prepared("-lost")
    counted.members += 1
    blobfiles.lose(place(store).path, next(each.content.chunks[0] for each in lost if each.content is not None))
    with pytest.raises(errors.Unavailable, match="begin anew"):
        await counted.commit_together(lost)
    for key in contents:
        with pytest.raises(errors.NoSuchKey):
            await store.client.head_object(BUCKET, f"{key}-lost")


async def test_copies_and_restored_versions_touch_their_chunks(store: Store) -> None:
    version = await store.put_stream(BUCKET, "key", content(100_000))
    for _ in range(3):
        await next_cycle(store)
    copied = await store.copy(BUCKET, "key", BUCKET, "copy")
    newest = await store.client.generation()
    assert copied.chunks == version.chunks
    touched = {held.chunk: held.touched for held in await place(store).held()}
    assert touched[version.chunks[0]] == newest
    for _ in range(3):
        await next_cycle(store)
    await store.restore(BUCKET, "key", version.version_id)
    touched = {held.chunk: held.touched for held in await place(store).held()}
    assert touched[version.chunks[0]] == await store.client.generation()
    small = await store.put_stream(BUCKET, "small", b"inline")
    assert (await store.copy(BUCKET, "small", BUCKET, "tiny", version_id=small.version_id)).data == b"inline"
    with pytest.raises(errors.AlreadyExists):
        await store.copy(BUCKET, "key", BUCKET, "copy", if_absent=True)


# -- Long lists -------------------------------------------------------------------------------------------------------


async def test_the_list_of_very_many_chunks_is_stored_in_chunks(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "LIST_CHUNKS_MAX", 4)
    monkeypatch.setattr(commits, "LIST_ENTRIES", 3)
    data = content(20 * MIB)
    version = await store.put_stream(BUCKET, "key", data)
    assert version.chunks == ()
    assert len(version.lists) > 2
    assert await store.read(version) == data
    assert await store.read(version, 7 * MIB, 7 * MIB + 10) == data[7 * MIB : 7 * MIB + 10]
    copied = await store.copy(BUCKET, "key", BUCKET, "copy")
    assert copied.lists == version.lists
    resolved = await store.resolved(copied)
    assert sum(chunk.length for chunk in resolved.chunks) == len(data)
    assert await store.read(resolved) == data
    [piece async for piece in store.stream(resolved)]


# -- Parts ------------------------------------------------------------------------------------------------------------


async def test_parts_by_several_workers_become_one_object(store: Store, tmp_path: Path) -> None:
    pieces = [content(3 * MIB, seed=number) for number in range(4)]
    upload_id = await parts.begin(store, BUCKET, "key", content_type="text/plain", metadata={"a": "b"})
    workers = [await open_watched(tmp_path) for _ in range(2)]
    await asyncio.gather(
        *(parts.put_part(workers[number % 2], upload_id, number + 1, pieces[number]) for number in (3, 0, 2, 1))
    )
    await parts.put_part(workers[0], upload_id, 2, b"replaced")
    with pytest.raises(errors.NoSuchKey):
        await store.client.head_object(BUCKET, "key")
    whole = pieces[0] + b"replaced" + pieces[2] + pieces[3]
    with pytest.raises(errors.IntegrityError):
        await parts.complete(store, upload_id, expected_etag="00" * 32)
    version = await parts.complete(store, upload_id, expected_etag=blake3(whole).hexdigest())
    assert (version.content_type, version.metadata, version.etag) == (
        "text/plain",
        {"a": "b"},
        blake3(whole).hexdigest(),
    )
    assert await store.read(version) == whole
    for refused in (parts.put_part(store, upload_id, 5, b"late"), parts.complete(store, upload_id)):
        with pytest.raises(parts.NoSuchUpload, match="no upload"):
            await refused
    assert await store.client.scan(parts.UPLOADS) == []
    for worker in workers:
        await worker.blobs.close()


async def test_parts_are_checked_touched_and_forgotten(store: Store) -> None:
    upload_id = await parts.begin(store, BUCKET, "key")
    wrong: list[Any] = [(0, b"x", None), (parts.PARTS_MAX + 1, b"x", None)]
    for number, data, etag in wrong:
        with pytest.raises(errors.InvalidArgument):
            await parts.put_part(store, upload_id, number, data, expected_etag=etag)
    with pytest.raises(errors.IntegrityError):
        await parts.put_part(store, upload_id, 1, b"x", expected_etag="00" * 32)
    with pytest.raises(errors.InvalidArgument, match="no parts"):
        await parts.complete(store, upload_id)
    for number in range(1, 5):  # parts keep coming, so the first ones stay
        await parts.put_part(store, upload_id, number, content(100_000, seed=number))
        await next_cycle(store, sweep=True)
    version = await parts.complete(store, upload_id)
    assert version.size == 400_000
    upload_id = await parts.begin(store, BUCKET, "key")
    await parts.put_part(store, upload_id, 1, content(100_000, seed=9))
    for _ in range(4):
        await next_cycle(store, sweep=True)
    with pytest.raises(errors.Unavailable, match="part 1"):
        await parts.complete(store, upload_id)
    assert await parts.forget_old(store.client) == 0
    assert await parts.forget_old(store.client, age_s=0) == 1
    assert await store.client.scan(parts.UPLOADS) == []
