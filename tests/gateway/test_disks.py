"""Files on a store over several disks: a minority of them may be lost, bytes and all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from gateway import ObjmetaFileSystem
from gateway.blobs.disks import BLOBS, DiskBlobs
from gateway.blobs.places import Sweep, digest_now
from gateway.data.transfer import open_store
from gateway.upkeep import directories
from gateway.upkeep.runs import Progress
from objmeta import Chunk
from tests.gateway import blobfiles

BIG = os.urandom(3 << 20)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return [tmp_path / name for name in "abc"]


def open_files(paths: list[Path]) -> ObjmetaFileSystem:
    return ObjmetaFileSystem(disks=[str(path) for path in paths], timeout_s=10, skip_instance_cache=True)


def chunks(path: Path) -> list[str]:
    return blobfiles.chunks(path / BLOBS)


def test_bytes_are_on_every_disk_and_any_one_may_be_lost(paths: list[Path]) -> None:
    files = open_files(paths)
    files.mkdir("bucket")
    files.pipe_file("bucket/big", BIG)
    assert chunks(paths[0]) == chunks(paths[1]) == chunks(paths[2]) != []
    files.close()
    shutil.rmtree(paths[0])
    paths[0].mkdir()
    files = open_files(paths)
    assert files.cat_file("bucket/big") == BIG
    files.pipe_file("bucket/more", BIG[::-1])
    assert files.cat_file("bucket/more") == BIG[::-1]
    assert not any(paths[0].iterdir()), "something was written where a disk is to be mounted"
    files.close()


def test_a_damaged_chunk_is_read_elsewhere_and_mended(paths: list[Path]) -> None:
    files = open_files(paths)
    files.mkdir("bucket")
    files.pipe_file("bucket/big", BIG)
    for name in chunks(paths[0]):
        blobfiles.spoil_named(paths[0] / BLOBS, name)
    assert files.cat_file("bucket/big") == BIG
    shutil.rmtree(paths[1] / BLOBS)
    shutil.rmtree(paths[2] / BLOBS)
    assert files.cat_file("bucket/big") == BIG, "what was damaged was not mended"
    files.close()


def test_the_command_replaces_a_disk(paths: list[Path], tmp_path: Path) -> None:
    files = open_files(paths)
    files.mkdir("bucket")
    files.pipe_file("bucket/big", BIG)
    files.close()
    shutil.rmtree(paths[1])
    new = tmp_path / "d"
    environ = {**os.environ, "OBJMETA_DISKS": os.pathsep.join(map(str, paths)), "OBJMETA_CONFIG": ""}
    command = [sys.executable, "-m", "gateway", "disks", "replace", str(paths[1]), str(new), "--json"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["chunks"] == len(chunks(new)) == len(chunks(paths[0])) > 0
    shutil.rmtree(paths[0])
    files = open_files([paths[0], new, paths[2]])
    assert files.cat_file("bucket/big") == BIG
    files.close()


Generation = Callable[[], Awaitable[int]]


async def read(blobs: DiskBlobs, chunk: Chunk, generation: Generation) -> None:
    await blobs.get(chunk)


async def fill(blobs: DiskBlobs, chunk: Chunk, generation: Generation) -> None:
    await blobs.fill((await blobs.places())[0].path.parent)


async def repair(blobs: DiskBlobs, chunk: Chunk, generation: Generation) -> None:
    place, *others = await blobs.places()
    await directories.repair(place, others, generation, Progress())


async def scrub(blobs: DiskBlobs, chunk: Chunk, generation: Generation) -> None:
    place, *others = await blobs.places()
    await place.put(b"!" * chunk.length, generation=1, chunk=chunk)  # a copy that is there, and is bad
    await directories.scrub(place, others, generation, Progress())


@pytest.mark.parametrize("mend", [read, fill, repair, scrub])
async def test_a_copy_that_is_made_counts_as_touched_now(
    paths: list[Path], mend: Callable[[DiskBlobs, Chunk, Generation], Awaitable[None]]
) -> None:
    """A writer touched the others and has not committed: sweeps that do not know its record keep the new copy too.

    Afterwards, if it never commits, the copy goes like the others.
    """
    store = await open_store(disks=paths)
    assert isinstance(store.blobs, DiskBlobs)
    first, *others = await store.blobs.places()
    await first.put(b"something of long ago", generation=1)
    while (begun := await store.client.begin_cycle()).generation < 6:
        pass
    chunk = Chunk(digest_now(b"touched"), 7)
    for place in others:
        await place.put(b"touched", generation=begun.generation)
    await mend(store.blobs, chunk, store.client.generation)
    every = [first, *others]
    for number, there in ((6, True), (7, True), (8, True), (9, False)):
        for place in every:
            await place.sweep(Sweep(number, number - 1, b"", b"", ()))
        held = [await place.has([chunk]) for place in every]
        assert held == [[there]] * 3, f"after the sweep of cycle {number}"
    await store.close()


async def test_a_disk_that_joined_just_now_is_waited_for(tmp_path: Path) -> None:
    one, other, new = (tmp_path / name for name in "acd")
    asked = 0

    async def disks() -> list[tuple[Path, bool]]:
        nonlocal asked
        asked += 1
        return [(one, True), (other, True), (new, asked > 3)]

    async def generation() -> int:
        return 1

    blobs = DiskBlobs(disks, generation)
    chunk = await blobs.put(BIG, generation=1)
    assert await blobs.fill(new) == 1
    assert [await place.has([chunk]) for place in await blobs.places()] == [[True]] * 3
    await blobs.close()
