"""Chunks on a local disk: durable, verified, shared by processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from blake3 import blake3

from gateway.blobs import local as bloblocal
from gateway.blobs.local import APPENDS_AT_ONCE, LocalBlobs
from gateway.blobs.packs import PACKED_BYTES_MAX
from gateway.blobs.places import ChunkMissing
from objmeta import Chunk, errors
from tests.gateway.blobfiles import whereabouts

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
async def blobs(tmp_path: Path) -> AsyncIterator[LocalBlobs]:
    store = LocalBlobs(tmp_path / "Büro" / "blobs")
    yield store
    await store.close()


def temporaries(blobs: LocalBlobs) -> list[Path]:
    return list(blobs.path.glob("tmp/*"))


@pytest.mark.parametrize("length", [0, 1, 4096, (64 << 10) + 1, 4 << 20])
async def test_what_was_put_is_got(blobs: LocalBlobs, length: int) -> None:
    data = os.urandom(length)
    chunk = await blobs.put(data, generation=0)
    assert chunk == Chunk(blake3(data).digest(), length)
    path, offset = whereabouts(blobs.path, chunk)
    assert path.read_bytes()[offset:] == data
    assert await blobs.get(chunk) == data
    assert await blobs.get(chunk, 10, 20) == data[10:20]
    assert not temporaries(blobs)


async def test_many_puts_at_once(blobs: LocalBlobs) -> None:
    contents = [os.urandom(100 + number) for number in range(600)]
    chunks = await asyncio.gather(*(blobs.put(data, generation=0) for data in contents))
    assert [await blobs.get(chunk) for chunk in chunks] == contents


async def test_puts_that_wait_share_syncs(blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch) -> None:
    await blobs.put(b"first", generation=0)
    directories: list[str] = []
    sync = os.fsync

    def counting(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if os.path.isdir(path):
            directories.append(path)
            time.sleep(0.05)  # where a sync takes no time, nobody waits for one
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", counting)
    beginning = bytes(PACKED_BYTES_MAX)
    hashed = blake3(beginning)
    endings = (b"%d" % number for number in range(10_000))
    same_directory = [beginning + ending for ending in endings if hashed.copy().update(ending).hexdigest()[:2] == "ab"]
    assert len(same_directory) > 20
    await asyncio.gather(*(blobs.put(data, generation=0) for data in same_directory))
    assert len(directories) <= len(same_directory) / 2


async def test_short_ones_share_a_file_and_its_syncs(blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch) -> None:
    await blobs.put(b"first", generation=0)
    syncs: list[int] = []
    sync = os.fdatasync

    def counting(descriptor: int) -> None:
        syncs.append(descriptor)
        sync(descriptor)

    monkeypatch.setattr(os, "fdatasync", counting)
    chunks = await asyncio.gather(*(blobs.put(b"%d" % number, generation=0) for number in range(500)))
    assert len(syncs) < 10
    assert len({whereabouts(blobs.path, chunk)[0] for chunk in chunks}) <= APPENDS_AT_ONCE
    assert (await blobs.usage()).packs <= APPENDS_AT_ONCE


@pytest.mark.parametrize("length", [4, 400_000])
async def test_a_chunk_that_is_there_is_kept(blobs: LocalBlobs, length: int) -> None:
    data = os.urandom(length)
    chunk = await blobs.put(data, generation=0)
    path, offset = whereabouts(blobs.path, chunk)
    before = path.stat().st_ino
    assert await blobs.put(data, generation=0) == chunk
    await blobs.receive(chunk, (data[:2], data[2:]), generation=0)
    assert whereabouts(blobs.path, chunk) == (path, offset)
    assert path.stat().st_ino == before


@pytest.mark.parametrize("damage", [b"", b"damagec", b"damage, longer"])
@pytest.mark.parametrize("data", [b"damaged", b"damaged" * 50_000])
async def test_damage_is_found_never_returned_and_mended_by_a_put(
    blobs: LocalBlobs, data: bytes, damage: bytes
) -> None:
    chunk = await blobs.put(data, generation=0)
    whereabouts(blobs.path, chunk)[0].write_bytes(damage)
    with pytest.raises(errors.IntegrityError, match=chunk.digest.hex()):
        await blobs.get(chunk, 0, 1)
    await blobs.put(data, generation=0)
    assert await blobs.get(chunk) == data


async def test_a_missing_chunk_is_named(blobs: LocalBlobs) -> None:
    chunk = Chunk(blake3(b"never").digest(), 5)
    with pytest.raises(ChunkMissing, match=chunk.digest.hex()):
        await blobs.get(chunk)
    await blobs.put(b"other", generation=0)
    with pytest.raises(ChunkMissing):
        await blobs.get(chunk)


@pytest.mark.parametrize("parts", [(b"pie",), (b"pie", b"ces", b"!"), (b"pie", b"cez"), ()])
async def test_what_arrives_wrong_is_not_stored(blobs: LocalBlobs, parts: tuple[bytes, ...]) -> None:
    chunk = Chunk(blake3(b"pieces").digest(), 6)
    with pytest.raises(errors.IntegrityError):
        await blobs.receive(chunk, parts, generation=0)
    with pytest.raises(ChunkMissing):
        await blobs.get(chunk)
    assert not temporaries(blobs)
    await blobs.receive(chunk, (b"pie", b"", b"ces"), generation=0)
    assert await blobs.get(chunk) == b"pieces"


@pytest.mark.parametrize("steps", range(1, 40, 3))
async def test_a_put_may_be_cancelled_at_any_time(blobs: LocalBlobs, steps: int) -> None:
    await blobs.put(b"first", generation=0)
    data = os.urandom(400_000)
    task = asyncio.create_task(blobs.put(data, generation=0))
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await blobs.close()
    assert not temporaries(blobs)
    chunk = Chunk(blake3(data).digest(), len(data))
    if (await blobs.has((chunk,)))[0]:
        assert await blobs.get(chunk) == data
    assert await blobs.put(data, generation=0) == chunk


async def test_cancelled_reads_leave_nothing_open(blobs: LocalBlobs) -> None:
    chunk = await blobs.put(os.urandom(1 << 20), generation=0)
    before = len(os.listdir("/proc/self/fd")) + 2 * 4  # the index keeps four connections
    for steps in range(30):
        task = asyncio.create_task(blobs.get(chunk))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    deadline = time.monotonic() + 5
    while len(os.listdir("/proc/self/fd")) > before and time.monotonic() < deadline:
        await asyncio.get_running_loop().run_in_executor(None, os.sched_yield)
    assert len(os.listdir("/proc/self/fd")) <= before


# -- Several processes ------------------------------------------------------------------------------------------------

WRITER = """
import asyncio, os, sys
from pathlib import Path
from gateway.blobs.local import LocalBlobs

async def main():
    blobs = LocalBlobs(Path(sys.argv[1]))
    print("ready", flush=True)
    while True:
        for chunk in await asyncio.gather(*(blobs.put(os.urandom(400_000), generation=0) for _ in range(8))):
            print(chunk.digest.hex(), flush=True)

asyncio.run(main())
"""


def test_a_killed_writer_leaves_nothing_broken(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path / "blobs")
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(blobs.path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        lines = [writer.stdout.readline().strip() for _ in range(30)]
        writer.send_signal(signal.SIGKILL)
        lines += [line.strip() for line in writer.stdout if len(line) == 65]
    for digest in lines[1:]:
        assert len(asyncio.run(blobs.get(Chunk(bytes.fromhex(digest), 400_000)))) == 400_000
    for directory in blobs.path.glob("??"):
        for path in directory.iterdir():
            assert blake3(path.read_bytes()).hexdigest() == path.name


def test_leftovers_are_swept_when_their_process_is_gone(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path / "blobs")
    asyncio.run(blobs.put(b"first", generation=0))
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    busy, ancient = f"{os.getpid()}-busy", f"{os.getpid()}-ancient"
    for name, age_s in {f"{gone.pid}-old": 3600, f"{gone.pid}-new": 0, busy: 3600, ancient: 10**6}.items():
        path = blobs.path / "tmp" / name
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age_s,) * 2)
    asyncio.run(LocalBlobs(blobs.path).put(b"second", generation=0))
    assert {path.name for path in temporaries(blobs)} == {f"{gone.pid}-new", busy}


def test_a_fork_may_use_it(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path / "blobs")
    mine = asyncio.run(blobs.put(b"parent", generation=0))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            asyncio.run(blobs.put(b"child", generation=0))
            status = 0 if asyncio.run(blobs.get(mine)) == b"parent" else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert asyncio.run(blobs.get(Chunk(blake3(b"child").digest(), 5))) == b"child"


async def test_status_shows_the_room(blobs: LocalBlobs) -> None:
    (status,) = await blobs.status()
    assert status.state == "up"
    assert 0 < status.disk_free <= status.disk_total


async def test_closing_waits_for_what_a_cancelled_caller_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()
    prepare = bloblocal._prepare

    def slow(directory: Path) -> None:
        begun.set()
        assert go_on.wait(10)
        prepare(directory)

    monkeypatch.setattr(bloblocal, "_prepare", slow)
    path = tmp_path / "blobs"
    blobs = LocalBlobs(path)
    putting = asyncio.create_task(blobs.put(b"data", generation=0))
    await asyncio.to_thread(begun.wait)
    putting.cancel()
    closing = asyncio.create_task(blobs.close())
    await asyncio.sleep(0)
    assert not path.exists()
    go_on.set()
    await closing
    assert (path / "ff").is_dir()
