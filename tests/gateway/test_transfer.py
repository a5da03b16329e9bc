"""Objects in and out, embedded: streaming, ranges, files, and what failures leave behind (nothing)."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import stat
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from blake3 import blake3

from gateway.blobs.local import LocalBlobs
from gateway.data.chunking import CHUNK_BYTES_MAX, WINDOW_BYTES
from gateway.data.transfer import Store, open_store
from gateway.data.uploading import IN_FLIGHT_BYTES, INLINE_BYTES_MAX
from objmeta import ObjectVersion, errors
from tests.gateway.blobfiles import spoil

MIB = 1 << 20
BUCKET = "bücher".encode("idna").decode()
KEY = "Größe/übung ✓.txt"
SIZES = [0, 1, INLINE_BYTES_MAX, INLINE_BYTES_MAX + 1, 3 * MIB, WINDOW_BYTES, WINDOW_BYTES + 1, 45 * MIB + 17]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await open_store(tmp_path / "store")
    await opened.client.create_bucket(BUCKET)
    yield opened
    await opened.close()


def content(length: int) -> bytes:
    return random.Random(length).randbytes(length)


async def in_pieces(data: bytes, length: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), length):
        yield data[start : start + length]


def place_of(store: Store) -> Path:
    assert isinstance(store.blobs, LocalBlobs)
    return store.blobs.path


async def is_absent(store: Store, key: str = KEY) -> bool:
    try:
        await store.client.head_object(BUCKET, key)
    except errors.NoSuchKey:
        return True
    return False


# -- In and out -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
async def test_files_come_back_as_they_were(store: Store, tmp_path: Path, size: int) -> None:
    data = content(size)
    source, target = tmp_path / "Straße", tmp_path / "zurück"
    source.write_bytes(data)
    put: list[int] = []
    got: list[int] = []
    version = await store.put_file(
        BUCKET, KEY, source, content_type="text/plain", metadata={"ä": "ö"}, progress=put.append
    )
    assert (version.size, version.etag) == (size, blake3(data).hexdigest())
    assert version.is_inline == (size <= INLINE_BYTES_MAX)
    assert all(chunk.length <= CHUNK_BYTES_MAX for chunk in version.chunks)
    assert (version.content_type, version.metadata) == ("text/plain", {"ä": "ö"})
    read = await store.get_file(BUCKET, KEY, target, progress=got.append)
    assert target.read_bytes() == data
    assert read.version_id == version.version_id
    assert sum(put) == sum(got) == size
    assert sorted(os.listdir(tmp_path)) == ["Straße", "store", "zurück"]


@pytest.mark.parametrize("length", [5000, 3 * MIB, WINDOW_BYTES, 2 * WINDOW_BYTES])
async def test_the_source_may_come_in_any_pieces(store: Store, length: int) -> None:
    data = content(20 * MIB + 12_345)
    version = await store.put_stream(BUCKET, KEY, in_pieces(data, length))
    assert version.chunks == (await store.put_stream(BUCKET, "again", data)).chunks
    assert await store.read(version) == data
    assert b"".join([piece async for piece in store.stream(version)]) == data


async def test_ranges(store: Store) -> None:
    data = content(5 * MIB + 1000)
    version = await store.put_stream(BUCKET, KEY, data)
    first = version.chunks[0].length
    small = await store.put_stream(BUCKET, "small", b"0123456789")
    edges = [0, 1, first - 1, first, first + 1, 4 * MIB, len(data) - 1, len(data), 2**40]
    for start in edges:
        for stop in [*edges, None]:
            wanted = data[start:stop]
            assert await store.read(version, start, stop) == wanted
            assert b"".join([piece async for piece in store.stream(version, start, stop)]) == wanted
    assert await store.read(small, 2, 4) == b"23"
    assert await store.read(small, 8, 99) == b"89"
    with pytest.raises(errors.InvalidArgument):
        await store.read(version, -1)


async def test_a_range_touches_only_its_chunks(store: Store) -> None:
    data = content(12 * MIB)
    version = await store.put_stream(BUCKET, KEY, data)
    kept = version.chunks[2]
    for chunk in version.chunks:
        if chunk != kept:
            spoil(place_of(store), chunk)
    start = sum(chunk.length for chunk in version.chunks[:2])
    stop = start + kept.length
    assert await store.read(version, start, start + 10) == data[start : start + 10]
    assert b"".join([piece async for piece in store.stream(version, start, stop)]) == data[start:stop]
    with pytest.raises(errors.IntegrityError, match="damaged"):
        await store.read(version, start, stop + 1)


async def test_an_inline_version_without_its_data(store: Store) -> None:
    await store.put_stream(BUCKET, KEY, b"inline")
    version = await store.client.get_object(BUCKET, KEY, with_data=False)
    assert version.data is None
    assert await store.read(version) == b"inline"


async def test_old_versions(store: Store, tmp_path: Path) -> None:
    first = await store.put_stream(BUCKET, KEY, content(50_000))
    await store.put_stream(BUCKET, KEY, b"new")
    await store.get_file(BUCKET, KEY, tmp_path / "old", version_id=first.version_id)
    assert (tmp_path / "old").read_bytes() == content(50_000)
    marker = await store.client.delete_object(BUCKET, KEY)
    for version_id in (None, marker.version_id):
        with pytest.raises(errors.NoSuchKey):
            await store.get_file(BUCKET, KEY, tmp_path / "gone", version_id=version_id)


# -- Uploads ----------------------------------------------------------------------------------------------------------


async def test_an_upload_shows_nothing_before_its_commit(store: Store) -> None:
    upload = store.upload(BUCKET, KEY)
    await upload.write(content(14 * MIB + 5))
    await upload.write(bytearray(b"tail"))
    assert await is_absent(store)
    version = await upload.commit()
    assert await store.read(version, 14 * MIB + 5) == b"tail"
    with pytest.raises(errors.InvalidArgument):
        await upload.write(b"more")


async def test_a_discarded_upload_leaves_nothing(store: Store) -> None:
    before = len(asyncio.all_tasks())
    upload = store.upload(BUCKET, KEY)
    await upload.write(content(14 * MIB))
    await upload.discard()
    await upload.discard()
    assert await is_absent(store)
    assert len(asyncio.all_tasks()) == before

    async def failing() -> None:
        async with store.upload(BUCKET, KEY) as another:
            await another.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await failing()
    assert await is_absent(store)
    async with store.upload(BUCKET, KEY) as another:
        await another.write(b"whole")
    assert not await is_absent(store)


async def test_a_source_that_fails_commits_nothing(store: Store) -> None:
    async def source() -> AsyncIterator[bytes]:
        yield content(14 * MIB)
        raise OSError(5, "the source broke")

    with pytest.raises(OSError, match="the source broke"):
        await store.put_stream(BUCKET, KEY, source())
    assert await is_absent(store)


async def test_what_the_commit_would_refuse_is_refused_early(store: Store) -> None:
    asked = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal asked
        while asked < 100:
            asked += 1
            yield os.urandom(4 * MIB)

    async def refused(error: type[errors.ObjmetaError], bucket: str, key: str, **options: str | bool) -> None:
        nonlocal asked
        asked = 0
        with pytest.raises(error):
            await store.put_stream(bucket, key, endless(), **options)  # type: ignore[arg-type]
        assert asked * 4 * MIB <= IN_FLIGHT_BYTES + 3 * WINDOW_BYTES

    await store.put_stream(BUCKET, KEY, b"there")
    await refused(errors.NoSuchBucket, "no-such-bucket", KEY)
    await refused(errors.InvalidArgument, "BAD", KEY)
    await refused(errors.InvalidArgument, BUCKET, "k" * 1025)
    await refused(errors.AlreadyExists, BUCKET, KEY, if_absent=True)
    await refused(errors.PreconditionFailed, BUCKET, KEY, if_version="0" * 32)


async def test_preconditions(store: Store) -> None:
    first = await store.put_stream(BUCKET, KEY, content(20_000), if_absent=True)
    with pytest.raises(errors.AlreadyExists):
        await store.put_stream(BUCKET, KEY, content(20_000), if_absent=True)
    await store.put_stream(BUCKET, KEY, content(30_000), if_version=first.version_id)
    with pytest.raises(errors.PreconditionFailed):
        await store.put_stream(BUCKET, KEY, content(30_000), if_version=first.version_id)


# -- Damage and failures ----------------------------------------------------------------------------------------------


async def damaged(store: Store) -> ObjectVersion:
    version = await store.put_stream(BUCKET, KEY, content(5 * MIB))
    spoil(place_of(store), version.chunks[1])
    return version


async def test_damage_is_never_returned(store: Store, tmp_path: Path) -> None:
    version = await damaged(store)
    target = tmp_path / "target"
    target.write_text("as before")
    with pytest.raises(errors.IntegrityError, match=version.chunks[1].digest.hex()):
        await store.get_file(BUCKET, KEY, target)
    assert target.read_text() == "as before"
    assert sorted(os.listdir(tmp_path)) == ["store", "target"]
    with pytest.raises(errors.IntegrityError):
        await store.read(version, version.chunks[0].length, version.chunks[0].length + 1)
    received: list[bytes] = []

    async def receive() -> None:
        async for piece in store.stream(version):
            received.append(piece)

    with pytest.raises(errors.IntegrityError):
        await receive()
    assert received == [content(5 * MIB)[: version.chunks[0].length]]


async def test_an_etag_that_is_not_the_contents(store: Store, tmp_path: Path) -> None:
    chunk = await store.blobs.put(b"x" * 10_000, generation=0)
    version = await store.client.put_object(BUCKET, KEY, chunks=[chunk], size=10_000, etag="00" * 32)
    with pytest.raises(errors.IntegrityError, match="BLAKE3"):
        await store.get_file(BUCKET, KEY, tmp_path / "target")
    assert not (tmp_path / "target").exists()
    with pytest.raises(errors.IntegrityError):
        [piece async for piece in store.stream(version)]


async def test_a_target_that_cannot_be_written(store: Store, tmp_path: Path) -> None:
    await store.put_stream(BUCKET, KEY, content(14 * MIB))
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            await store.get_file(BUCKET, KEY, tmp_path / "target")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert os.listdir(tmp_path) == ["store"]


@pytest.mark.parametrize("steps", [1, 10, 50, 200, 1000])
async def test_cancelled_transfers_leave_nothing(store: Store, tmp_path: Path, steps: int) -> None:
    await store.put_stream(BUCKET, "other", content(20 * MIB))
    before = len(asyncio.all_tasks())
    putting = asyncio.create_task(store.put_stream(BUCKET, KEY, in_pieces(content(100 * MIB), MIB)))
    getting = asyncio.create_task(store.get_file(BUCKET, "other", tmp_path / "target"))
    for _ in range(steps):
        await asyncio.sleep(0)
    putting.cancel()
    getting.cancel()
    await asyncio.gather(putting, getting, return_exceptions=True)
    assert putting.cancelled()
    assert await is_absent(store)
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".objmeta-")]
    if getting.cancelled():
        assert not (tmp_path / "target").exists()
    await store.blobs.close()  # a sync that a thread has begun ends by itself
    assert len(asyncio.all_tasks()) <= before


# -- Targets ----------------------------------------------------------------------------------------------------------


async def test_targets(store: Store, tmp_path: Path) -> None:
    await store.put_stream(BUCKET, KEY, b"content")
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    await store.get_file(BUCKET, KEY, link)
    assert real.read_text() == "content"
    assert link.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    with pytest.raises(IsADirectoryError):
        await store.get_file(BUCKET, KEY, tmp_path)
    with pytest.raises(FileNotFoundError):
        await store.get_file(BUCKET, KEY, tmp_path / "nowhere" / "file")
    with pytest.raises(IsADirectoryError):
        await store.put_file(BUCKET, KEY, tmp_path)
    with pytest.raises(FileNotFoundError):
        await store.put_file(BUCKET, KEY, tmp_path / "nowhere")


async def test_pipes(store: Store, tmp_path: Path) -> None:
    data = content(4 * MIB + 99)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received: list[bytes] = []

    def beside(work: Callable[[], object]) -> threading.Thread:
        thread = threading.Thread(target=work)
        thread.start()
        return thread

    writer = beside(lambda: pipe.write_bytes(data))
    await store.put_file(BUCKET, KEY, pipe)
    writer.join()
    reader = beside(lambda: received.append(pipe.read_bytes()))
    await store.get_file(BUCKET, KEY, pipe)
    reader.join()
    assert received == [data]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


async def test_a_manifest_of_20000_chunks(store: Store) -> None:
    chunk = await store.blobs.put(b"z" * 100, generation=0)
    count = 20_000
    etag = blake3(b"z" * 100 * count).hexdigest()
    await store.client.put_object(BUCKET, KEY, chunks=[chunk] * count, size=100 * count, etag=etag)
    version = await store.client.get_object(BUCKET, KEY)
    assert len(version.chunks) == count
    assert await store.read(version, 100 * count - 5) == b"zzzzz"
