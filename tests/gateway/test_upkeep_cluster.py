"""Real nodes look after their chunks: what is lost, damaged or in the wrong place is put right."""

from __future__ import annotations

import asyncio
import random
import shutil
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from gateway.blobs.placement import Place, Said, homes
from gateway.blobs.places import Held
from gateway.data.transfer import Store, open_store
from gateway.upkeep.asking import Upkeep
from gateway.upkeep.checking import Checker, Finding
from gateway.upkeep.service import REPAIR, SCRUB, Copy, DataStatus
from gateway.upkeep.stores import places_of
from gateway.upkeep.views import register
from objmeta import ObjectVersion
from objmeta.client import StoreStatus
from objmeta.node import LocalCluster
from tests.chaos.disks import LimitedFiles
from tests.gateway.blobfiles import spoil

COMMAND = (sys.executable, "-m", "gateway.server")
BUCKET = "bucket"
MIB = 1 << 20

T = TypeVar("T")


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


class Node:
    """What the tests want to know of one node."""

    def __init__(self, cluster: LocalCluster, node_id: int) -> None:
        self.node_id = node_id
        self.blobs = cluster.directory / f"node-{node_id}" / "data" / "blobs"
        self.upkeep = Upkeep(cluster.endpoint(node_id))

    async def status(self) -> DataStatus:
        return await self.upkeep.status(5.0)

    async def held(self) -> dict[bytes, Held]:
        found = await self.upkeep.held(b"", 1000, 5.0)
        return {held.digest: held for held in found}

    async def run(self, what: str) -> DataStatus:
        """Have it repair or scrub, and wait for the end of that run."""
        number = await self.upkeep.start(what, 5.0)
        return await until(self.status, lambda told: _ended(told, what, number))


def _ended(told: DataStatus, what: str, number: int) -> bool:
    run = told.repair if what == REPAIR else told.scrub
    return run.number >= number and not run.running


async def until(ask: Callable[[], Awaitable[T]], true: Callable[[T], bool], deadline_s: float = 60) -> T:
    """Ask again and again until the answer is what is waited for."""
    deadline = time.monotonic() + deadline_s
    while True:
        found = await ask()
        if true(found):
            return found
        assert time.monotonic() < deadline, f"waited in vain; last: {found}"
        await asyncio.sleep(0.05)


async def findings(store: Store, deep: bool = False, status: StoreStatus | None = None) -> list[Finding]:
    status = status or await store.client.status()
    async with places_of(store.client.location, status, patient=True) as places:
        checker = Checker(store, places, deep=deep)
        return [finding async for finding in checker.run()]


async def put(store: Store, key: str, size: int) -> tuple[ObjectVersion, bytes]:
    data = random.Random(key).randbytes(size)
    return await store.put_stream(BUCKET, key, data), data


# -- Repair -----------------------------------------------------------------------------------------------------------


async def test_a_node_that_was_down_gets_what_was_put_meanwhile(cluster: LocalCluster, store: Store) -> None:
    cluster.kill(3)
    versions = [(await put(store, f"key-{number}", size))[0] for number, size in enumerate((3 * MIB, 100_000, 20_000))]
    wanted = {chunk.digest for version in versions for chunk in version.chunks}
    assert {finding.verdict for finding in await findings(store)} == {"too few copies"}
    cluster.start(3)
    cluster.wait_ready((3,))
    node = Node(cluster, 3)
    await until(node.held, lambda held: held.keys() == wanted)
    told = await until(node.status, lambda told: not told.repair.running)
    assert (told.chunks, told.missing, told.repair.problem) == (len(wanted), 0, "")
    found = await store.client.status()
    hasty = msgspec.structs.replace(
        found, nodes=tuple(msgspec.structs.replace(each, state="down") for each in found.nodes)
    )
    assert await findings(store, deep=True, status=hasty) == []  # nodes that are busy are not taken for lost
    await node.upkeep.close()


async def test_large_objects_survive_the_replacement_of_every_node(cluster: LocalCluster, store: Store) -> None:
    contents = [await put(store, f"key-{number}", size) for number, size in enumerate((9 * MIB, 50_000, 100))]
    reader = await open_store(",".join(cluster.endpoints))  # asks for nothing but chunks, as a long download does
    long = await reader.client.get_object(BUCKET, "key-0")
    assert await reader.blobs.get(long.chunks[0])
    for old, new in ((1, 4), (2, 5), (3, 6)):
        cluster.start(new)
        await asyncio.to_thread(cluster.wait_up, new)
        await replace(cluster, store, old, new)
        shutil.rmtree(cluster.directory / f"node-{old}")
    for version, data in contents:
        assert await store.read(version) == data
    for chunk in long.chunks:
        assert await reader.blobs.get(chunk)
    await reader.close()
    assert await findings(store, deep=True) == []


async def replace(cluster: LocalCluster, store: Store, old: int, new: int) -> None:
    """Replace a node, and wait until it has ended."""
    before = (await store.client.members()).membership.configuration.epoch
    await store.client.change_members({new: cluster.endpoint(new)}, [old], epoch=before)
    await until(store.client.members, lambda found: found.membership.configuration.epoch >= before + 2)
    await until(lambda: asyncio.to_thread(cluster.pid, old), lambda pid: pid is None)


async def test_copies_end_up_at_their_homes_and_nowhere_else(tmp_path: Path) -> None:
    with LocalCluster(tmp_path / "cluster", nodes=5, command=COMMAND) as cluster:
        store = await open_store(",".join(cluster.endpoints))
        await store.client.create_bucket(BUCKET)
        cluster.kill(4)  # others stand in for it
        versions = [(await put(store, f"key-{number}", 300_000))[0] for number in range(12)]
        cluster.start(4)
        cluster.wait_ready((4,))
        nodes = [Node(cluster, node_id) for node_id in cluster.node_ids]
        await only_at_home(nodes, versions, {})
        assert await findings(store) == []
        # a node becomes nobody's home, and another one everybody's in its zone
        said = {5: Said(weight=0.0), 1: Said(zone="far")}
        for node_id, entry in said.items():
            await register(store.client, node_id, entry)
        await only_at_home(nodes, versions, said)
        assert await nodes[4].held() == {}
        assert len(await nodes[0].held()) == len({chunk for version in versions for chunk in version.chunks})
        assert await findings(store, deep=True) == []
        for node in nodes:
            await node.upkeep.close()
        await store.close()


async def only_at_home(nodes: list[Node], versions: list[ObjectVersion], said: dict[int, Said]) -> None:
    """Have the nodes repair until every chunk is at its homes, and nowhere else."""
    places = [place_of(node.node_id, said) for node in nodes]
    wanted: dict[int, set[bytes]] = {node.node_id: set() for node in nodes}
    for version in versions:
        for chunk in version.chunks:
            for place in homes(chunk.digest, places, 0):
                wanted[place.node_id].add(chunk.digest)

    async def wrong() -> list[str]:
        told = await asyncio.gather(*(node.run(REPAIR) for node in nodes))
        held = [set(await node.held()) for node in nodes]
        return [
            f"node {node.node_id} lacks {len(wanted[node.node_id] - has)} and has {len(has - wanted[node.node_id])} "
            f"too many: {status.repair.problem}"
            for node, has, status in zip(nodes, held, told, strict=True)
            if has != wanted[node.node_id]
        ]

    await until(wrong, lambda found: not found)


def place_of(node_id: int, said: dict[int, Said]) -> Place:
    entry = said.get(node_id, Said())
    return Place(node_id, "", entry.weight, entry.zone)


# -- Scrub ------------------------------------------------------------------------------------------------------------


async def test_scrub_finds_a_flipped_bit_and_heals_it(cluster: LocalCluster, store: Store) -> None:
    version, _ = await put(store, "key", 5 * MIB)
    node = Node(cluster, 2)
    await until(node.held, lambda held: held.keys() == {chunk.digest for chunk in version.chunks})
    spoil(node.blobs, version.chunks[0])
    (finding,) = await findings(store, deep=True)
    assert (finding.verdict, finding.damaged, finding.good) == ("damaged", (2,), (1, 3))
    told = await node.run(SCRUB)
    assert (told.scrub.chunks, told.scrub.bytes, told.scrub.fixed, told.scrub.left) == (
        len(version.chunks),
        5 * MIB,
        1,
        0,
    )
    assert told.damaged == 0
    assert await findings(store, deep=True) == []
    await node.upkeep.close()


# -- Disks ------------------------------------------------------------------------------------------------------------


async def test_a_full_disk_is_reported_and_others_take_the_data(tmp_path: Path) -> None:
    disk = LimitedFiles(tmp_path / "cluster" / "node-2")
    with LocalCluster(tmp_path / "cluster", nodes=3, command=COMMAND) as cluster:
        store = await open_store(",".join(cluster.endpoints))
        await store.client.create_bucket(BUCKET)
        node, pid = Node(cluster, 2), cluster.pid(2)
        assert pid is not None
        before, content = await put(store, "before", 300_000)
        await until(node.held, lambda held: len(held) == 1)
        disk.fill(pid)
        version, data = await put(store, "key", 4 * MIB)
        assert await store.read(version, 0, MIB) == data[:MIB]
        told = await until(node.status, lambda told: told.trouble != "")
        assert str(tmp_path) in told.trouble
        assert (await node.held()).keys() == {chunk.digest for chunk in before.chunks}
        assert await node.upkeep.look(before.chunks, True, 5.0) == [Copy.GOOD]
        disk.free(pid)
        await until(node.status, lambda told: told.trouble == "")
        told = await node.run(REPAIR)
        assert told.missing == 0
        assert (await node.held()).keys() >= {chunk.digest for chunk in version.chunks}
        assert await store.read(before) == content
        await node.upkeep.close()
        await store.close()
