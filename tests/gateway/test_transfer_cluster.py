"""Objects in and out of three real nodes, some of which are killed, and the memory that big ones take."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gateway.blobs.peer import Peer, Progress
from gateway.data.transfer import Store, open_store
from objmeta import Chunk, ObjectVersion, errors
from objmeta.node import LocalCluster
from tests.gateway import blobfiles

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "gateway.server")
BUCKET = "bucket"
MIB = 1 << 20
MEMORY_KIB_MAX = 256 << 10


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path / "cluster", nodes=3, command=COMMAND) as running:
        yield running


@pytest.fixture
async def store(cluster: LocalCluster) -> AsyncIterator[Store]:
    opened = await open_store(",".join(cluster.endpoints))
    await opened.client.create_bucket(BUCKET)
    yield opened
    await opened.close()


def blobs_of(cluster: LocalCluster, node_id: int) -> Path:
    return cluster.directory / f"node-{node_id}" / "data" / "blobs"


def count_copies(cluster: LocalCluster, chunk: Chunk) -> int:
    return sum(blobfiles.is_held(blobs_of(cluster, node_id), chunk) for node_id in cluster.node_ids)


async def test_objects_come_back_and_every_node_has_them(cluster: LocalCluster, store: Store, tmp_path: Path) -> None:
    for size in (0, 100, 100_000, 13 * MIB):
        data = random.Random(size).randbytes(size)
        (tmp_path / "Quelle").write_bytes(data)
        await store.put_file(BUCKET, f"größe/{size}", tmp_path / "Quelle")
        version = await store.get_file(BUCKET, f"größe/{size}", tmp_path / "Ziel")
        assert (tmp_path / "Ziel").read_bytes() == data
        assert await store.read(version, 50, 60) == data[50:60]
        assert all(count_copies(cluster, chunk) >= 2 for chunk in version.chunks)
    blobfiles.spoil(blobs_of(cluster, 1), version.chunks[0])
    blobfiles.lose(blobs_of(cluster, 2), version.chunks[0])
    await store.get_file(BUCKET, version.key, tmp_path / "Ziel")
    assert (tmp_path / "Ziel").read_bytes() == data


async def test_a_majority_is_one_of_all_nodes_however_few_are_named(cluster: LocalCluster) -> None:
    store = await open_store(cluster.endpoints[0])
    await store.client.create_bucket(BUCKET)
    version = await store.put_stream(BUCKET, "key", os.urandom(3 * MIB))
    assert count_copies(cluster, version.chunks[0]) >= 2
    await store.close()


async def test_a_node_killed_in_the_middle_loses_nothing(cluster: LocalCluster, store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(random.Random(1).randbytes(64 * MIB))
    done = 0

    def progress(count: int) -> None:
        nonlocal done
        if done == 0:
            cluster.kill(2)
        done += count

    version = await store.put_file(BUCKET, "key", source, progress=progress)
    assert done == version.size
    await store.get_file(BUCKET, "key", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == source.read_bytes()
    cluster.kill(3)
    impatient = await open_store(cluster.endpoints[0], timeout_s=1.5)
    with pytest.raises(errors.NoQuorum):
        async with asyncio.timeout(60):  # what takes longer hangs
            await impatient.put_file(BUCKET, "another", source)
    await impatient.close()
    cluster.start(2)
    cluster.wait_ready((2,))
    with pytest.raises(errors.NoSuchKey):
        await store.client.head_object(BUCKET, "another")


async def test_a_node_stops_cleanly_and_comes_back(cluster: LocalCluster, store: Store) -> None:
    version = await store.put_stream(BUCKET, "key", os.urandom(100_000))
    assert await asyncio.to_thread(cluster.stop, 1) == 0
    assert "Traceback" not in cluster.log(1)
    cluster.start(1)
    cluster.wait_ready((1,))
    assert len(await store.read(version)) == 100_000


async def test_a_node_that_is_down_from_the_start_costs_a_put_nothing(cluster: LocalCluster, store: Store) -> None:
    await asyncio.to_thread(cluster.stop, 3)
    data = random.Random(2).randbytes(20 * MIB)
    version = await store.put_stream(BUCKET, "key", data)
    assert all(count_copies(cluster, chunk) == 2 for chunk in version.chunks)
    assert await store.read(version) == data
    assert sent(cluster, version) == {1, 2}


def sent(cluster: LocalCluster, version: ObjectVersion) -> set[int]:
    """The nodes that hold something of a version."""
    return {
        node_id
        for node_id in cluster.node_ids
        if any(blobfiles.is_held(blobs_of(cluster, node_id), chunk) for chunk in version.chunks)
    }


async def test_damaged_and_missing_copies_are_healed_when_they_are_read(cluster: LocalCluster, store: Store) -> None:
    data = random.Random(3).randbytes(3 * MIB)
    version = await store.put_stream(BUCKET, "key", data)
    async with asyncio.timeout(20):
        while any(count_copies(cluster, chunk) < 3 for chunk in version.chunks):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    chunk = version.chunks[0]
    for node_id in (1, 2):
        blobfiles.spoil(blobs_of(cluster, node_id), chunk)
    peers = {node_id: Peer(cluster.endpoint(node_id)) for node_id in (1, 2)}
    async with asyncio.timeout(30):
        healed: set[int] = set()
        while healed != {1, 2}:
            assert await store.blobs.get(chunk) == data[: chunk.length]
            healed = {node_id for node_id, peer in peers.items() if await is_good(peer, chunk)}
    for peer in peers.values():
        await peer.close()


async def is_good(peer: Peer, chunk: Chunk) -> bool:
    try:
        await peer.get(chunk, Progress(0), 5)
    except errors.IntegrityError:
        return False
    return True


async def test_what_the_nodes_have_is_not_sent_again(cluster: LocalCluster, store: Store) -> None:
    data = random.Random(4).randbytes(24 * MIB)
    upload = store.upload(BUCKET, "broken off")
    await upload.write(data[: 20 * MIB])
    async with asyncio.timeout(30):
        while await stored_bytes(cluster) < 2 * 6 * MIB:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await upload.discard()
    another = await open_store(",".join(cluster.endpoints))
    version = await another.put_stream(BUCKET, "key", data)
    middle = 11 * MIB
    changed = data[:middle] + random.Random(5).randbytes(MIB) + data[middle:]
    before = await stored_bytes(cluster)
    assert before <= 3 * len(data) + 3 * 8 * MIB
    newer = await another.put_stream(BUCKET, "key", changed)
    await another.close()
    assert len(set(newer.chunks) - set(version.chunks)) < 12
    assert await stored_bytes(cluster) - before < 3 * 16 * MIB
    assert await store.read(newer) == changed


async def stored_bytes(cluster: LocalCluster) -> int:
    total = 0
    for node_id in cluster.node_ids:
        peer = Peer(cluster.endpoint(node_id))
        total += (await peer.usage(5)).chunk_bytes
        await peer.close()
    return total


# -- Memory -----------------------------------------------------------------------------------------------------------

MOVE = """
import asyncio, os, sys
from contextlib import suppress
from gateway.data.transfer import open_store
from objmeta import errors

async def main():
    target, size, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    store = await open_store(target)
    with suppress(errors.AlreadyExists):
        await store.client.create_bucket("big")

    async def source():
        block = bytearray(os.urandom(1 << 20))
        for number in range(size >> 20):
            block[:8] = number.to_bytes(8, "big")
            yield bytes(block)

    version = await store.put_stream("big", "key", source())
    assert version.size == size
    read = await store.get_file("big", "key", path)
    assert read.etag == version.etag
    await store.close()
    # Not ru_maxrss: that of a new process begins with what its parent had.
    with open("/proc/self/status") as status:
        print(status.read().split("VmHWM:")[1].split()[0])

asyncio.run(main())
"""
SIZE = 2 << 30


def moved(target: str, path: Path, size: int = SIZE) -> int:
    """Put and get an object in a process of its own; the most memory it took, in KiB."""
    answer = subprocess.run(
        [sys.executable, "-c", MOVE, target, str(size), str(path)],
        cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert path.stat().st_size == size
    path.unlink()
    return int(answer.stdout)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_memory_of_2_gib_embedded(tmp_path: Path) -> None:
    taken = moved(str(tmp_path / "store"), tmp_path / "target")
    assert taken < MEMORY_KIB_MAX, taken


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_of_2_gib_in_client_and_nodes(cluster: LocalCluster, tmp_path: Path) -> None:
    taken = {"client": moved(",".join(cluster.endpoints), tmp_path / "target")}
    for node_id in cluster.node_ids:
        status = Path(f"/proc/{cluster.pid(node_id)}/status").read_text()
        taken[f"node {node_id}"] = int(status.split("VmHWM:")[1].split()[0])
    cluster.kill(3)
    taken["client without node 3"] = moved(",".join(cluster.endpoints), tmp_path / "target", SIZE // 4)
    assert max(taken.values()) < MEMORY_KIB_MAX, taken
