"""Chunks on a disk that is full, read-only, or fails."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from blake3 import blake3

from gateway.blobs.local import LocalBlobs
from gateway.blobs.places import ChunkMissing, Mark, Sweep
from objmeta import Chunk, errors


@pytest.fixture
async def blobs(tmp_path: Path) -> AsyncIterator[LocalBlobs]:
    store = LocalBlobs(tmp_path / "Büro" / "blobs")
    yield store
    await store.close()


def temporaries(blobs: LocalBlobs) -> list[Path]:
    return list(blobs.path.glob("tmp/*"))


async def frames(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def mount(path: Path, options: str) -> None:
    subprocess.run(["mount", "-o", options, path], check=True)


@pytest.mark.parametrize("length", [30_000, 400_000])
async def test_a_full_disk(tiny_disk: Path, length: int) -> None:
    blobs = LocalBlobs(tiny_disk / "blobs")
    kept: dict[Chunk, bytes] = {}

    async def fill() -> None:
        while True:
            data = os.urandom(length)
            kept[await blobs.put(data, generation=1)] = data

    with pytest.raises(errors.StoreFull, match=str(tiny_disk)):
        await fill()
    assert len(kept) > 3
    assert not temporaries(blobs)
    assert (await blobs.status())[0].detail
    assert [await blobs.get(chunk) for chunk in kept] == list(kept.values())
    assert {row.chunk for row in await blobs.held()} == set(kept)
    for cycle in (4, 5):  # deleting needs no room
        await blobs.sweep(Sweep(cycle, cycle - 1, b"", b"", (Mark(next(iter(kept)).digest, 0),)))
    assert (await blobs.usage()).chunks == 1
    assert await blobs.put(os.urandom(length), generation=5)
    await blobs.close()


async def test_a_full_disk_in_a_batch(tiny_disk: Path) -> None:
    blobs = LocalBlobs(tiny_disk / "blobs")
    contents = [os.urandom(30_000) for _ in range(200)]
    done = await asyncio.gather(*(blobs.put(data, generation=1) for data in contents), return_exceptions=True)
    stored = {each: data for each, data in zip(done, contents, strict=True) if isinstance(each, Chunk)}
    assert all(isinstance(each, Chunk | errors.StoreFull) for each in done)
    assert [await blobs.get(chunk) for chunk in stored] == list(stored.values())
    assert {row.chunk for row in await blobs.held()} == set(stored)
    await blobs.close()


@pytest.mark.parametrize("closed", [True, False])
async def test_a_disk_that_turns_read_only(tiny_disk: Path, closed: bool) -> None:
    blobs = LocalBlobs(tiny_disk / "blobs")
    contents = [b"short", os.urandom(400_000)]
    chunks = [await blobs.put(data, generation=1) for data in contents]
    if closed:
        await blobs.close()
    else:  # as a process that was killed leaves it, with a log
        copy = tiny_disk / "copy"
        shutil.copytree(blobs.path, copy)
        await blobs.close()
        blobs = LocalBlobs(copy)
    mount(tiny_disk, "remount,ro")
    try:
        blobs = LocalBlobs(blobs.path)
        assert [await blobs.get(chunk) for chunk in chunks] == contents
        assert await blobs.has(chunks) == [True, True]
        assert len(await blobs.held()) == 2
        assert (await blobs.usage()).chunks == 2
        for data in (b"more", os.urandom(400_000)):
            with pytest.raises(errors.StoreError, match=str(tiny_disk)):
                await blobs.put(data, generation=1)
        with pytest.raises(errors.StoreError):
            await blobs.touch(chunks, generation=2)
        assert (await blobs.status())[0].detail
        await blobs.close()
    finally:
        mount(tiny_disk, "remount,rw")


async def test_a_limit_of_file_size(blobs: LocalBlobs) -> None:
    await blobs.put(b"first", generation=0)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(errors.StoreFull):
            await blobs.put(os.urandom(2 << 20), generation=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert not temporaries(blobs)


@pytest.mark.parametrize("length", [6, 400_000])
async def test_a_sync_that_fails_fails_the_put(blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    kept = await blobs.put(b"first", generation=0)
    data = os.urandom(length)

    def failing(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        patch.setattr(os, "fdatasync", failing)
        with pytest.raises(errors.StoreError, match="Input/output"):
            await blobs.put(data, generation=0)
        assert "Input/output" in (await blobs.status())[0].detail
        assert await blobs.get(kept) == b"first"
    assert not temporaries(blobs)
    with pytest.raises(ChunkMissing):
        await blobs.get(Chunk(blake3(data).digest(), length))
    assert await blobs.get(await blobs.put(data, generation=0)) == data
    assert (await blobs.status())[0].detail == ""


async def test_a_path_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "blobs").write_text("not a directory")
    with pytest.raises(errors.StoreError, match="blobs"):
        await LocalBlobs(tmp_path / "blobs").put(b"data", generation=0)
