"""The members of a cluster of node processes are changed while clients write."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from objmeta import ObjectSummary, connect_async
from objmeta.errors import ConfigurationMismatch, Conflict, InvalidArgument, NoQuorum, ObjmetaError, StoreError
from objmeta.interfaces import MembersStatus
from objmeta.node import LocalCluster
from objmeta.rpc.client import RemoteRegisters
from tests.node.test_cluster import Load, put, value_of

TIMEOUT_S = 20.0
CHANGE_S = 60.0


class Changing:
    """A cluster whose members change."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster
        self.clients: list[RemoteRegisters] = []

    def client(self, *node_ids: int) -> RemoteRegisters:
        made = RemoteRegisters([self.cluster.endpoint(node_id) for node_id in node_ids])
        self.clients.append(made)
        return made

    async def begin(self, client: RemoteRegisters, add: Sequence[int] = (), remove: Sequence[int] = ()) -> int:
        """Start new nodes and begin the change; the epoch in which it will be done."""
        for node_id in add:
            self.cluster.start(node_id)
            await asyncio.to_thread(self.cluster.wait_up, node_id)
        before = (await client.members(TIMEOUT_S)).membership.configuration.epoch
        places = {node_id: self.cluster.endpoint(node_id) for node_id in add}
        begun = await client.change_members(places, remove, before, TIMEOUT_S)
        assert begun.configuration.epoch == before + 1
        assert begun.configuration.is_joint
        return before + 2

    async def done(self, client: RemoteRegisters, epoch: int) -> MembersStatus:
        """Wait until a change is done."""
        deadline = time.monotonic() + CHANGE_S
        while True:
            try:
                found = await client.members(TIMEOUT_S)
            except NoQuorum:
                continue
            if found.membership.configuration.epoch >= epoch:
                return found
            assert time.monotonic() < deadline, f"the change does not end: {found}"
            await asyncio.sleep(0.02)

    async def change(
        self, client: RemoteRegisters, add: Sequence[int] = (), remove: Sequence[int] = ()
    ) -> MembersStatus:
        return await self.done(client, await self.begin(client, add, remove))

    async def ended(self, node_id: int) -> str:
        """Wait until a node process has ended; its last words."""
        deadline = time.monotonic() + TIMEOUT_S
        while self.cluster.pid(node_id) is not None:
            assert time.monotonic() < deadline, f"node {node_id} still runs"
            await asyncio.sleep(0.02)
        return self.cluster.log(node_id)


async def open_cluster(path: Path, nodes: int) -> Changing:
    cluster = LocalCluster(path, nodes)
    await asyncio.to_thread(cluster.open)
    return Changing(cluster)


async def close(changing: Changing) -> None:
    for client in changing.clients:
        await client.close()
    await asyncio.to_thread(changing.cluster.close)


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[Changing]:
    made = await open_cluster(tmp_path, 1)
    yield made
    await close(made)


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Changing]:
    made = await open_cluster(tmp_path, 3)
    yield made
    await close(made)


def ids(status: MembersStatus) -> tuple[tuple[int, ...], ...]:
    return status.membership.configuration.member_sets


@pytest.mark.slow
async def test_one_to_three_to_five_to_three_while_clients_write(one: Changing) -> None:
    client = one.client(1)
    load = Load(client, writers=2)
    await load.reach(50)
    assert ids(await one.change(client, add=(2, 3))) == ((1, 2, 3),)
    await load.reach(50)
    assert ids(await one.change(client, add=(4, 5))) == ((1, 2, 3, 4, 5),)
    await load.reach(50)
    found = await one.change(client, remove=(1, 2))
    assert ids(found) == ((3, 4, 5),)
    assert found.membership.configuration.retired == (1, 2)
    await load.reach(50)
    await load.stop()  # raises what any write raised
    for removed in (1, 2):
        assert "removed from the cluster" in await one.ended(removed)
    for staying in (3, 4, 5):
        assert one.cluster.pid(staying) is not None, one.cluster.log(staying)
    await load.check(client)
    await load.check(one.client(3))  # any two of the three that are left
    one.cluster.kill(4)
    await load.check(one.client(5))


async def test_a_wiped_node_comes_back_under_a_new_id_only(three: Changing) -> None:
    client = three.client(1, 3)
    for number in range(30):
        await client.change(put(b"%d" % number, b"x"), TIMEOUT_S)
        await client.change(put(b"often", b"%d" % number), TIMEOUT_S)
    three.cluster.kill(2)
    shutil.rmtree(three.cluster.directory / "node-2" / "data")
    three.cluster.start(2)
    assert "data is gone" in await three.ended(2)
    with pytest.raises(InvalidArgument, match="member already"):
        await client.change_members({2: three.cluster.endpoint(2)}, (), 1, TIMEOUT_S)
    assert ids(await three.change(client, add=(4,), remove=(2,))) == ((1, 3, 4),)
    with pytest.raises(InvalidArgument, match="never used again"):
        await client.change_members({2: three.cluster.endpoint(2)}, (), 3, TIMEOUT_S)
    three.cluster.start(2)
    assert "removed from the cluster" in await three.ended(2)
    three.cluster.kill(1)  # what is left has a majority only with the new node
    for number in range(30):
        assert await value_of(client, b"%d" % number) == b"x"
    assert await value_of(client, b"often") == b"29"


async def test_listings_and_buckets_stay_whole_meanwhile(one: Changing) -> None:
    keys = sorted(f"d{number % 3}/{number:03}" for number in range(150))
    async with connect_async(one.cluster.endpoint(1), timeout_s=TIMEOUT_S) as store:
        for bucket in ("kept", "left"):
            await store.create_bucket(bucket)
        await asyncio.gather(*(store.put_object("kept", key, data=b"old") for key in keys))
        await asyncio.gather(*(store.put_object("kept", key, data=b"new") for key in keys[:50]))
        version = await store.put_object("left", "k", data=b"x")
        await store.remove_version("left", "k", version.version_id)
        await store.remove_bucket("left")  # its tombstone stays under an id that is dead
        client = one.client(1)
        done = asyncio.ensure_future(one.change(client, add=(2, 3)))
        listings = 0
        while not done.done() or not listings:
            assert [item.key async for item in store.iter_objects("kept") if isinstance(item, ObjectSummary)] == keys
            assert (await store.list_objects("kept", delimiter="/")).prefixes == ("d0/", "d1/", "d2/")
            listings += 1
        assert ids(await done) == ((1, 2, 3),)
        one.cluster.kill(1)
        assert [item.key async for item in store.iter_objects("kept") if isinstance(item, ObjectSummary)] == keys
        for key in keys[::10]:
            versions = [version.is_inline for version in await store.versions("kept", key)]
            assert versions == [True] * (2 if key in keys[:50] else 1)
        assert (await store.get_object("kept", keys[0])).data == b"new"
        await store.create_bucket("left")


async def test_a_client_outlives_every_node_it_was_given(one: Changing) -> None:
    client = one.client(1)
    await client.change(put(b"a", b"1"), TIMEOUT_S)
    await one.change(client, add=(2,), remove=(1,))
    await one.ended(1)
    assert await value_of(client, b"a") == b"1"
    await one.change(client, add=(3,), remove=(2,))
    await one.ended(2)
    await client.change(put(b"a", b"2"), TIMEOUT_S)
    assert await value_of(client, b"a") == b"2"
    # A node that slept through the changes finds the members by --join, whatever its store says.
    three_alone = await one.change(client, add=(4, 5))
    assert ids(three_alone) == ((3, 4, 5),)
    assert one.cluster.stop(5) == 0
    one.cluster.start(5)
    await asyncio.to_thread(one.cluster.wait_ready, [5])


@pytest.mark.slow
async def test_a_change_survives_its_coordinator(three: Changing) -> None:
    client = three.client(1, 2, 3)
    load = Load(client, writers=2)
    await load.reach(600)
    epoch = await three.begin(client, add=(4, 5))
    coordinator = 0
    while not coordinator:
        change = (await client.members(TIMEOUT_S)).change
        if change is not None and change.phase == "copying":
            coordinator = change.coordinator
    three.cluster.kill(coordinator)
    found = await three.done(client, epoch)
    assert ids(found) == ((1, 2, 3, 4, 5),)
    await load.reach(50)
    await load.stop()
    await load.check(client)
    three.cluster.start(coordinator)
    await asyncio.to_thread(three.cluster.wait_ready, [coordinator])
    assert ids(await three.change(client, remove=(2, 3))) == ((1, 4, 5),)
    await load.check(client)


async def test_what_is_refused(three: Changing) -> None:
    client = three.client(1)
    cases: list[tuple[dict[int, str], Sequence[int], int, type[ObjmetaError], str]] = [
        ({}, (7,), 1, InvalidArgument, "no member"),
        ({}, (1, 2, 3), 1, InvalidArgument, "last member"),
        ({4: "127.0.0.1:1"}, (), 1, NoQuorum, "start it first"),
        ({4: three.cluster.endpoint(2)}, (), 1, InvalidArgument, "another node"),
        ({}, (3,), 7, Conflict, "meanwhile"),
    ]
    for add, remove, epoch, error, says in cases:
        with pytest.raises(error, match=says):
            await client.change_members(add, remove, epoch, TIMEOUT_S)
    found = await client.members(TIMEOUT_S)
    assert ids(found) == ((1, 2, 3),)
    assert found.membership.configuration.epoch == 1


async def test_who_was_not_started_to_join_does_not(three: Changing, tmp_path: Path) -> None:
    stranger = await open_cluster(tmp_path / "other", 1)
    try:
        client = three.client(1)
        with pytest.raises(ConfigurationMismatch, match="not node 4"):
            await client.change_members({4: stranger.cluster.endpoint(1)}, (), 1, TIMEOUT_S)
    finally:
        await close(stranger)


async def test_a_node_starts_with_the_members_of_old(three: Changing) -> None:
    client = three.client(1, 2, 3)
    await three.change(client, add=(4,), remove=(3,))
    assert three.cluster.stop(1) == 0
    three.cluster.start(1)  # told of 1, 2 and 3
    await asyncio.to_thread(three.cluster.wait_ready, [1])
    assert ids(await three.client(1).members(TIMEOUT_S)) == ((1, 2, 4),)
    assert "removed" in await three.ended(3)
    three.cluster.start(3)
    with pytest.raises(StoreError, match="removed"):
        await asyncio.to_thread(three.cluster.wait_ready, [3])
