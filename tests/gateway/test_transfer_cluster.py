"""Objects in and out of three real nodes, some of which are killed, and the memory that big ones take."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gateway.transfer import Store, open_store
from objmeta import Chunk, errors
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
    begun = time.monotonic()
    impatient = await open_store(cluster.endpoints[0], timeout_s=1.5)
    with pytest.raises(errors.NoQuorum):
        await impatient.put_file(BUCKET, "another", source)
    assert time.monotonic() - begun < 6
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


# -- Memory -----------------------------------------------------------------------------------------------------------

MOVE = """
import asyncio, os, sys
from contextlib import suppress
from gateway.transfer import open_store
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
