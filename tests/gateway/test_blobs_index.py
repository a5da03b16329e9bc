"""The index and the packs of a local place: taken over, lost, damaged, shared, compacted."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from blake3 import blake3

from gateway.blobs.index import INDEX
from gateway.blobs.local import LocalBlobs
from gateway.blobs.packs import PACKED_BYTES_MAX
from gateway.blobs.places import Mark, Sweep
from objmeta import Chunk, errors
from tests.gateway.blobfiles import spoil, whereabouts


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


# -- The index --------------------------------------------------------------------------------------------------------


def as_before_there_was_an_index(path: Path, contents: list[bytes]) -> list[Chunk]:
    """A directory as the first version of this program wrote it."""
    chunks = [Chunk(blake3(data).digest(), len(data)) for data in contents]
    for chunk, data in zip(chunks, contents, strict=True):
        name = chunk.digest.hex()
        (path / name[:2]).mkdir(parents=True, exist_ok=True)
        (path / name[:2] / name).write_bytes(data)
    (path / "tmp").mkdir(exist_ok=True)
    return chunks


async def test_a_directory_without_an_index_is_taken_over(tmp_path: Path) -> None:
    contents = [b"%d" % number for number in range(50)] + [os.urandom(400_000)]
    chunks = as_before_there_was_an_index(tmp_path / "blobs", contents)
    blobs = LocalBlobs(tmp_path / "blobs")
    assert [await blobs.get(chunk) for chunk in chunks] == contents
    assert all(await blobs.has(chunks))
    assert len(await blobs.held()) == len(chunks)
    assert all(await blobs.touch(chunks[:10], generation=4))
    assert await blobs.put(contents[0], generation=4) == chunks[0]
    marks = tuple(sorted(Mark(chunk.digest, 0) for chunk in chunks[10:20]))
    for cycle in (5, 6, 7):
        assert (await blobs.sweep(Sweep(cycle, cycle - 1, b"", b"", marks))).deleted == 0  # dated by the first
    assert (await blobs.sweep(Sweep(8, 7, b"", b"", marks))).deleted == len(chunks) - 10
    assert {row.chunk for row in await blobs.held()} == set(chunks[10:20])
    await blobs.close()


async def test_an_index_that_is_lost_is_made_anew(blobs: LocalBlobs) -> None:
    contents = [b"%d" % number * 100 for number in range(300)] + [os.urandom(400_000)]
    chunks = await asyncio.gather(*(blobs.put(data, generation=3) for data in contents))
    await blobs.close()
    pack, _ = whereabouts(blobs.path, chunks[0])
    pack.write_bytes(pack.read_bytes() + b"\x8fOC1\0\0\1\0half of an append whose process was killed")
    (blobs.path / INDEX).unlink()
    again = LocalBlobs(blobs.path)
    assert all(await again.has(chunks))
    assert [await again.get(chunk) for chunk in chunks] == contents
    more = await again.put(b"more", generation=3)
    assert await again.get(more) == b"more"
    await again.close()


async def test_an_index_that_is_damaged_is_named(blobs: LocalBlobs) -> None:
    short = await blobs.put(b"short", generation=1)
    long = await blobs.put(bytes(PACKED_BYTES_MAX + 1), generation=1)
    await blobs.close()
    index = blobs.path / INDEX
    index.write_bytes(b"\0" * index.stat().st_size)
    again = LocalBlobs(blobs.path)
    assert await again.get(long) == bytes(PACKED_BYTES_MAX + 1)
    for attempt in (again.get(short), again.put(b"more", generation=1), again.has((short,))):
        with pytest.raises(errors.StoreError, match="index"):
            await attempt
    index.unlink()
    assert await again.get(short) == b"short"
    await again.close()


async def test_a_directory_that_is_removed_under_us_is_noticed(blobs: LocalBlobs) -> None:
    chunk = await blobs.put(b"short", generation=1)
    shutil.rmtree(blobs.path)
    assert await blobs.has((chunk,)) == [False]
    with pytest.raises(errors.StoreError):
        await blobs.put(b"short", generation=1)
    assert await blobs.touch((chunk,), generation=1) == [False]


def test_another_process_that_stands_still_is_waited_for_only_so_long(tmp_path: Path) -> None:
    path = tmp_path / "blobs"
    blobs = LocalBlobs(path, timeout_s=0.2)
    chunk = asyncio.run(blobs.put(b"first", generation=1))
    holder = f"""
import sqlite3, sys
connection = sqlite3.connect({str(path / INDEX)!r}, isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.readline()
"""
    command = [sys.executable, "-c", holder]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(errors.StoreError, match="another process"):
            asyncio.run(blobs.put(b"second", generation=1))
        assert asyncio.run(blobs.get(chunk)) == b"first"
        process.stdin.write("\n")
    second = asyncio.run(blobs.put(b"second", generation=1))
    assert asyncio.run(blobs.get(second)) == b"second"
    asyncio.run(blobs.close())


# -- Packs ------------------------------------------------------------------------------------------------------------


async def test_packs_with_much_dead_space_are_compacted(blobs: LocalBlobs) -> None:
    contents = [os.urandom(20_000) for _ in range(200)]
    chunks = await asyncio.gather(*(blobs.put(data, generation=1) for data in contents))
    before = whereabouts(blobs.path, chunks[0])[0]
    assert (await blobs.usage()).stored_bytes > 200 * 20_000
    marks = tuple(sorted(Mark(chunk.digest, 0) for chunk in chunks[::4]))
    reading = asyncio.create_task(all_read(blobs, chunks[::4] * 20))
    for cycle in (4, 5):
        await blobs.sweep(Sweep(cycle, cycle - 1, b"", b"", marks))
    await reading
    usage = await blobs.usage()
    assert (usage.chunks, usage.packs) == (50, 1)
    assert 50 * 20_000 < usage.stored_bytes < 51 * 20_100
    assert not before.exists()
    assert [await blobs.get(chunk) for chunk in chunks[::4]] == contents[::4]


async def all_read(blobs: LocalBlobs, chunks: list[Chunk]) -> None:
    for chunk in chunks:
        await blobs.get(chunk)


async def test_a_pack_with_a_damaged_chunk_is_left_alone(blobs: LocalBlobs) -> None:
    contents = [os.urandom(20_000) for _ in range(20)]
    chunks = [await blobs.put(data, generation=1) for data in contents]
    spoil(blobs.path, chunks[3])
    marks = (Mark(chunks[3].digest, 0),)
    for cycle in (4, 5):
        await blobs.sweep(Sweep(cycle, cycle - 1, b"", b"", marks))
    assert (await blobs.usage()).stored_bytes > 20 * 20_000
    await blobs.put(contents[3], generation=5)
    await blobs.sweep(Sweep(6, 5, b"", b"", marks))
    assert (await blobs.usage()).stored_bytes < 2 * 20_000
    assert await blobs.get(chunks[3]) == contents[3]


async def test_processes_one_after_the_other_go_on_with_the_same_pack(tmp_path: Path) -> None:
    for number in range(5):
        blobs = LocalBlobs(tmp_path / "blobs")
        await blobs.put(b"%d" % number, generation=1)
        await blobs.close()
    assert (await blobs.usage()).packs == 1
    await blobs.close()


async def test_files_whose_commit_never_came_are_swept(blobs: LocalBlobs) -> None:
    await blobs.put(b"first", generation=3)
    (orphan,) = as_before_there_was_an_index(blobs.path, [os.urandom(400_000)])
    for cycle in (4, 5):
        assert (await blobs.sweep(Sweep(cycle, cycle - 1, b"", b"", ()))).deleted == 0
    assert await blobs.has((orphan,)) == [True]
    for cycle in (6, 7):
        await blobs.sweep(Sweep(cycle, cycle - 1, b"", b"", ()))
    assert (await blobs.usage()).chunks == 0
    assert not list(blobs.path.glob("??/*"))
