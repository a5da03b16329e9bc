"""Collection in stores of directories: what nothing names goes, all else stays."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from blake3 import blake3

from gateway.collection.collectors import workers_of
from gateway.collection.cycles import LOCK, Cycled, last_cycle, run_cycle, run_cycles, run_if_due
from gateway.data import moving, parts
from gateway.data.transfer import Store, open_store
from objmeta import Chunk, PutObject, errors
from objmeta.core.messages import State
from objmeta.model.values import holds_intent

BUCKET = "bucket"
SIZE = 100_000


@pytest.fixture(params=["directory", "disks"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    if request.param == "directory":
        opened = await open_store(tmp_path / "home")
    else:
        opened = await open_store(disks=[tmp_path / name for name in "abc"])
    await opened.client.create_bucket(BUCKET)
    yield opened
    await opened.close()


def places(store: Store) -> int:
    return 1 if hasattr(store.blobs, "path") else 3


async def put(store: Store, key: str, content: bytes) -> str:
    return (await store.put_stream(BUCKET, key, content)).version_id


async def collect(store: Store) -> Cycled:
    async with workers_of(store) as meet:
        return await run_cycles(store.client, meet, grace_s=0.0)


async def content_of(store: Store, key: str) -> bytes:
    return await store.read(await store.client.get_object(BUCKET, key))


async def test_what_nothing_names_goes_and_all_else_stays(store: Store) -> None:
    contents = {key: os.urandom(SIZE) for key in "abcd"}
    for key, content in contents.items():
        await put(store, key, content)
    twin = await put(store, "twin", contents["a"])
    await store.client.copy_object(BUCKET, "b", BUCKET, "copy")
    await store.client.delete_object(BUCKET, "d")
    for key in "abc":
        (version,) = await store.client.versions(BUCKET, key)
        await store.client.remove_version(BUCKET, key, version.version_id)
    done = await collect(store)
    assert done.complete, done
    assert (done.deleted, done.deleted_bytes) == (places(store), places(store) * SIZE)
    assert await content_of(store, "twin") == contents["a"]
    assert await content_of(store, "copy") == contents["b"]
    hidden = (await store.client.versions(BUCKET, "d"))[-1]
    assert await store.read(hidden) == contents["d"]
    await store.client.remove_version(BUCKET, "twin", twin)
    assert (await collect(store)).deleted == places(store)
    assert (await collect(store)).deleted == 0
    last = await last_cycle(store.client)
    assert last is not None
    assert last.waiting == 0


async def test_one_cycle_alone_deletes_nothing_that_was_just_removed(store: Store) -> None:
    version = await put(store, "k", os.urandom(SIZE))
    async with workers_of(store) as meet:
        for _ in range(2):
            assert (await run_cycle(store.client, meet)).complete
        await store.client.remove_version(BUCKET, "k", version)
        first = await run_cycle(store.client, meet)
        assert (first.deleted, first.waiting) == (0, places(store))
        assert (await run_cycle(store.client, meet)).deleted == places(store)


async def test_what_is_reused_in_between_stays(store: Store) -> None:
    content = os.urandom(SIZE)
    version = await put(store, "k", content)
    async with workers_of(store) as meet:
        for _ in range(2):
            await run_cycle(store.client, meet)
        await store.client.remove_version(BUCKET, "k", version)
        assert (await run_cycle(store.client, meet)).waiting == places(store)
        await put(store, "again", content)
        for _ in range(3):
            assert (await run_cycle(store.client, meet)).deleted == 0
    assert await content_of(store, "again") == content


async def test_a_trial_says_what_would_go_and_leaves_it(store: Store) -> None:
    await store.client.remove_version(BUCKET, "k", await put(store, "k", os.urandom(SIZE)))
    await put(store, "kept", os.urandom(SIZE))
    before = await store.client.generation()
    async with workers_of(store) as meet:
        for _ in range(3):
            trial = await run_cycle(store.client, meet, trial=True)
            assert trial.complete, trial
            assert (trial.deleted, trial.deleted_bytes) == (places(store), places(store) * SIZE)
    assert await store.client.generation() == before


async def test_chunks_that_only_a_list_names_stay(store: Store) -> None:
    generation = await store.client.generation()
    contents = [os.urandom(SIZE) for _ in range(3)]
    chunks = [await store.blobs.put(content, generation=generation) for content in contents]
    listed = await store.blobs.put(msgspec.msgpack.encode(chunks), generation=generation)
    await store.client.put_object(
        BUCKET, "long", lists=[listed], size=3 * SIZE, etag=blake3(b"".join(contents)).hexdigest()
    )
    done = await collect(store)
    assert (done.complete, done.deleted) == (True, 0)
    for chunk, content in zip(chunks, contents, strict=True):
        assert await store.blobs.get(chunk) == content
    (version,) = await store.client.versions(BUCKET, "long")
    await store.client.remove_version(BUCKET, "long", version.version_id)
    assert (await collect(store)).deleted == 4 * places(store)


async def test_a_list_that_is_lost_keeps_everything(store: Store) -> None:
    await store.client.remove_version(BUCKET, "k", await put(store, "k", os.urandom(SIZE)))
    lost = Chunk(blake3(b"lost").digest(), 4)
    await store.client.put_object(BUCKET, "long", lists=[lost], size=3, etag=blake3(b"").hexdigest())
    done = await collect(store)
    assert not done.complete
    assert lost.digest.hex() in done.problem
    assert done.deleted == 0


async def test_parts_of_an_open_upload_stay_until_they_are_too_old(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = [os.urandom(SIZE) for _ in range(3)]
    upload_id = await parts.begin(store, BUCKET, "k")
    for number, content in enumerate(contents[:2]):
        await parts.put_part(store, upload_id, number + 1, content)
    for _ in range(2):
        done = await collect(store)
        assert (done.complete, done.deleted, done.waiting) == (True, 0, 0)
    await parts.put_part(store, upload_id, 3, contents[2])
    await parts.complete(store, upload_id)
    assert await content_of(store, "k") == b"".join(contents)
    upload_id = await parts.begin(store, BUCKET, "left")
    await parts.put_part(store, upload_id, 1, os.urandom(SIZE))
    assert (await collect(store)).deleted == 0
    monkeypatch.setattr(parts, "UPLOAD_AGE_S", 0.0)
    assert (await collect(store)).deleted == places(store)
    assert await store.client.scan(parts.UPLOADS) == []
    assert await content_of(store, "k") == b"".join(contents)


async def test_a_part_that_comes_after_the_end_of_its_upload_is_forgotten(store: Store) -> None:
    upload_id = await parts.begin(store, BUCKET, "k")
    await parts.put_part(store, upload_id, 1, os.urandom(SIZE))
    await store.client.delete(parts.UPLOADS + upload_id)
    assert (await collect(store)).deleted == places(store)
    assert await store.client.scan(parts.UPLOADS) == []


async def test_chunks_of_an_intent_stay_until_its_transaction_is_aborted(store: Store) -> None:
    content, transaction = os.urandom(SIZE), os.urandom(16)
    chunk = await store.blobs.put(content, generation=await store.client.generation())
    wanted = PutObject(BUCKET, "intended", chunks=[chunk], size=SIZE, etag=blake3(content).hexdigest())
    await (await store.client._open()).transactions._leave(transaction, wanted, await store.client.generation())
    assert (await collect(store)).deleted == 0
    with pytest.raises(errors.NoSuchKey):
        await store.client.get_object(BUCKET, "intended")
    assert (await collect(store)).deleted == places(store)


async def test_what_was_moved_is_kept_and_what_owners_left_is_concluded(store: Store) -> None:
    content = os.urandom(SIZE)
    await put(store, "old", content)
    await moving.move(store, BUCKET, "old", BUCKET, "new")
    services = await store.client._open()
    transaction, generation = os.urandom(16), await store.client.generation()
    placed = [
        await services.transactions._leave(transaction, PutObject(BUCKET, key, data=b"x"), generation) for key in "ab"
    ]
    assert await services.transactions._decide(transaction, [each.register for each in placed], generation)
    async with workers_of(store) as meet:
        assert await run_if_due(store.client, meet, 3600.0) is not None
    assert await store.client.conclude_transactions() == 0
    (state,) = await services.registers.read((placed[0].register,), 10)
    assert not holds_intent(state)
    assert (await store.client.get_object(BUCKET, "b")).data == b"x"
    assert (await collect(store)).deleted == 0
    assert await content_of(store, "new") == content


async def test_who_collects_is_alone(store: Store) -> None:
    async with store.client.lock(LOCK), workers_of(store) as meet:
        assert await run_if_due(store.client, meet, 3600.0) is None
        with pytest.raises(errors.LockHeld):
            await run_cycles(store.client, meet, lock_wait_s=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("store", ["directory"], indirect=True)
async def test_what_a_runner_that_was_killed_left_locked_does_not_keep_the_next_one_from_collecting(
    store: Store, tmp_path: Path
) -> None:
    killed = await open_store(tmp_path / "home")
    await killed.client.lock(LOCK).acquire()
    await killed.close()  # gives nothing back, as there may be work under way
    assert (await collect(store)).complete


@pytest.mark.parametrize("store", ["directory"], indirect=True)
async def test_who_loses_the_lock_says_how_far_it_came(store: Store) -> None:
    await put(store, "k", os.urandom(SIZE))
    await store.client.delete_object(BUCKET, "k")
    for version in await store.client.versions(BUCKET, "k"):
        await store.client.remove_version(BUCKET, "k", version.version_id)
    services = await store.client._open()

    def lose(cycle: Cycled) -> None:
        (lease,) = [lease for lease in services.locks._leases if lease.name == LOCK]
        asyncio.get_running_loop().call_soon(lease.lose, "no node answered")

    async with workers_of(store) as meet:
        done = await run_cycles(store.client, meet, grace_s=60.0, on_cycle=lose)
    assert (done.waiting, done.complete) == (1, False)
    assert "no node answered" in done.problem
    assert (await collect(store)).deleted == 1


async def test_a_cycle_runs_when_it_is_due(store: Store) -> None:
    async with workers_of(store) as meet:
        done = await run_if_due(store.client, meet, 3600.0)
        assert done is not None
        assert done.complete
        assert await run_if_due(store.client, meet, 3600.0) is None
        assert await run_if_due(store.client, meet, 0.0) is not None


async def test_the_rules_of_buckets_are_applied_before_a_cycle(store: Store) -> None:
    versions = [await put(store, "k", os.urandom(SIZE)) for _ in range(3)]
    await store.client.configure_bucket(BUCKET, keep_versions=1)
    async with workers_of(store) as meet:
        assert (await run_cycle(store.client, meet)).complete
        assert len(await store.client.versions(BUCKET, "k")) == 3
        done = await run_if_due(store.client, meet, 3600.0)
        assert done is not None
        assert (done.complete, done.waiting) == (True, places(store))
        assert [each.version_id for each in await store.client.versions(BUCKET, "k")] == versions[:0:-1]
        done = await run_if_due(store.client, meet, 0.0)
        assert done is not None
        assert done.deleted == places(store)


async def test_a_transaction_that_cannot_be_concluded_keeps_no_other_version(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One damaged object would otherwise end the rules of all buckets."""
    await store.client.configure_bucket(BUCKET, keep_versions=1)
    for _ in range(4):
        await put(store, "a", os.urandom(SIZE))
    other = BUCKET + "-2"
    await store.client.create_bucket(other)
    services = await store.client._open()
    transactions = services.transactions
    damaged = b""
    for key in "xyz":
        transaction, generation = os.urandom(16), await store.client.generation()
        placed = await transactions._leave(transaction, PutObject(other, key, data=b"x"), generation)
        assert await transactions._decide(transaction, [placed.register], generation)
        damaged = damaged or placed.register
    resolve = services.buckets.intents.resolve

    async def failing(name: bytes, *more) -> State | None:  # type: ignore[no-untyped-def]
        if name == damaged:
            raise errors.IntegrityError("it is damaged")
        return await resolve(name, *more)

    monkeypatch.setattr(services.buckets.intents, "resolve", failing)
    async with workers_of(store) as meet:
        assert await run_if_due(store.client, meet, 3600.0) is not None
    assert len(await store.client.versions(BUCKET, "a")) == 2
    monkeypatch.undo()
    assert await store.client.conclude_transactions() == 1


async def test_nothing_is_deleted_while_a_disk_is_away(tmp_path: Path) -> None:
    disks = [tmp_path / name for name in "abc"]
    store = await open_store(disks=disks)
    await store.client.create_bucket(BUCKET)
    await store.client.remove_version(BUCKET, "k", await put(store, "k", os.urandom(SIZE)))
    await store.close()
    shutil.move(disks[2], tmp_path / "away")
    store = await open_store(disks=disks, timeout_s=2.0)
    done = await collect(store)
    assert not done.complete
    assert done.deleted == 0
    await store.close()
    shutil.move(tmp_path / "away", disks[2])
    store = await open_store(disks=disks)
    assert (await collect(store)).deleted == 3
    await store.close()
