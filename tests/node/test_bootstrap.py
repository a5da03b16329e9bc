"""How nodes become a cluster, and when they refuse to. All nodes are in this process, each with its own server."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

import objmeta
from objmeta.core.configuration import single_set
from objmeta.core.home import home_of
from objmeta.errors import ConfigurationMismatch, InvalidArgument, NoQuorum, StoreError, Unavailable
from objmeta.node import Node, NodeSettings, parse_peers
from objmeta.node.data import DataDirectory
from objmeta.rpc.client import RemoteRegisters
from objmeta.rpc.wire import BOOTSTRAPPING, EMPTY, ESTABLISHED
from tests.node.fakes import change, free_endpoints, until

TIMEOUT_S = 10.0
HANGS_S = 60.0


class Machines:
    """Nodes in directories below ``root``; whatever is started is stopped at the end of the test."""

    def __init__(self, root: Path, members: tuple[int, ...] = (1, 2, 3)) -> None:
        self.root = root
        self.addresses = dict(zip(members, free_endpoints(len(members)), strict=True))
        self.nodes: dict[int, Node] = {}

    def home(self, node_id: int) -> Path:
        return self.root / str(node_id)

    async def start(self, node_id: int, peers: Mapping[int, str] | None = None) -> Node:
        settings = NodeSettings(
            data=self.home(node_id),
            listen=self.addresses[node_id],
            node_id=node_id,
            peers=self.addresses if peers is None else peers,
        )
        node = Node(settings)
        await node.start()
        self.nodes[node_id] = node
        return node

    async def start_all(self) -> None:
        for node_id in self.addresses:
            await self.start(node_id)
        await self.ready()

    async def ready(self) -> None:
        await asyncio.wait_for(asyncio.gather(*(node.ready() for node in self.nodes.values())), TIMEOUT_S)

    async def stop(self, *node_ids: int) -> None:
        for node_id in node_ids or tuple(self.nodes):
            await self.nodes.pop(node_id).stop(0)

    def client(self, *node_ids: int) -> RemoteRegisters:
        return RemoteRegisters([self.addresses[node_id] for node_id in node_ids or self.addresses])


@pytest.fixture
async def machines(tmp_path: Path) -> AsyncIterator[Machines]:
    made = Machines(tmp_path)
    yield made
    await made.stop()


async def test_a_node_alone_is_a_cluster(tmp_path: Path) -> None:
    node = Node(NodeSettings(data=tmp_path))
    await node.start()
    await asyncio.wait_for(node.ready(), TIMEOUT_S)
    assert not node.address.endswith(":0")
    client = RemoteRegisters([node.address])
    assert (await client.change(change(), TIMEOUT_S)).code == ""
    await client.close()
    await node.stop()


async def test_three_nodes_become_a_cluster(machines: Machines) -> None:
    await machines.start_all()
    client = machines.client()
    assert (await client.change(change(), TIMEOUT_S)).code == ""
    status = await client.status(TIMEOUT_S)
    assert status.quorum
    assert [(node.node_id, node.state) for node in status.nodes] == [(1, "up"), (2, "up"), (3, "up")]
    assert all(node.version and node.uptime_s > 0 and node.disk_free > 0 for node in status.nodes)
    assert {node.address for node in status.nodes} == set(machines.addresses.values())
    await client.close()


async def test_the_list_of_peers_may_leave_the_node_itself_out(machines: Machines) -> None:
    for node_id in machines.addresses:
        others = {other: address for other, address in machines.addresses.items() if other != node_id}
        await machines.start(node_id, others)
    await machines.ready()


async def test_not_before_all_members_are_there(machines: Machines) -> None:
    await machines.start(1)
    await machines.start(2)
    client = machines.client(1, 2)
    with pytest.raises(NoQuorum, match="waits for node 3"):
        await client.change(change(), TIMEOUT_S)
    status = await client.status(TIMEOUT_S)
    assert not status.quorum
    await machines.start(3)
    await machines.ready()
    assert (await client.change(change(), TIMEOUT_S)).code == ""
    await client.close()


async def test_a_restarted_cluster_keeps_its_data_under_other_ports(machines: Machines) -> None:
    await machines.start_all()
    client = machines.client()
    await client.change(change(), TIMEOUT_S)
    await client.close()
    await machines.stop()
    machines.addresses = dict(zip(machines.addresses, free_endpoints(3), strict=True))
    await machines.start_all()
    client = machines.client()
    (state,) = await client.read([b"k/a"], TIMEOUT_S)
    assert state is not None
    await client.close()


@pytest.mark.parametrize("initialised", [(1,), (1, 2), (1, 2, 3), (2,), (2, 3), (3,)], ids=str)
async def test_a_crash_in_the_middle_is_resumed(machines: Machines, initialised: tuple[int, ...]) -> None:
    configuration = single_set(b"s" * 16, (1, 2, 3))
    for node_id in initialised:
        data = DataDirectory(machines.home(node_id))
        data.initialise(node_id, configuration)
        data.close()
    await machines.start_all()
    for node in machines.nodes.values():
        assert node.hello().configuration == configuration
        assert node.hello().phase == ESTABLISHED


@pytest.mark.parametrize("established", [(1,), (1, 2), (2, 3)], ids=str)
async def test_a_crash_before_everybody_was_told_is_resumed(machines: Machines, established: tuple[int, ...]) -> None:
    configuration = single_set(b"s" * 16, (1, 2, 3))
    for node_id in machines.addresses:
        data = DataDirectory(machines.home(node_id))
        data.initialise(node_id, configuration)
        if node_id in established:
            data.establish()
        data.close()
    await machines.start_all()


@pytest.mark.parametrize("victim", [1, 3])
async def test_an_empty_directory_beside_an_established_node_is_refused(machines: Machines, victim: int) -> None:
    await machines.start_all()
    await machines.stop(victim)
    shutil.rmtree(machines.home(victim))
    node = await machines.start(victim)
    with pytest.raises(StoreError, match="data is gone"):
        await asyncio.wait_for(node.ready(), TIMEOUT_S)
    assert node.hello().phase == EMPTY
    client = machines.client()
    assert (await client.change(change(), TIMEOUT_S)).code == ""
    await client.close()


async def test_a_store_that_vanished_below_its_mark_is_refused(machines: Machines) -> None:
    await machines.start_all()
    await machines.stop()
    shutil.rmtree(machines.home(2) / "acceptor")
    with pytest.raises(StoreError, match="its store is gone"):
        await machines.start(2)


async def test_nodes_of_different_stores_refuse_each_other(machines: Machines) -> None:
    for node_id in machines.addresses:
        data = DataDirectory(machines.home(node_id))
        data.initialise(node_id, single_set(bytes([node_id]) * 16, (1, 2, 3)))
        assert data.phase == BOOTSTRAPPING
        data.close()
        await machines.start(node_id)
    for node in machines.nodes.values():
        with pytest.raises(ConfigurationMismatch, match="different stores"):
            await asyncio.wait_for(node.ready(), TIMEOUT_S)


async def test_established_nodes_of_different_stores_do_not_vote_together(machines: Machines) -> None:
    for node_id in machines.addresses:
        data = DataDirectory(machines.home(node_id))
        data.initialise(node_id, single_set(bytes([node_id]) * 16, (1, 2, 3)))
        data.establish()
        data.close()
        await machines.start(node_id)
    for node in machines.nodes.values():
        with pytest.raises(ConfigurationMismatch, match="different stores"):
            await asyncio.wait_for(node.ready(), TIMEOUT_S)


async def test_members_must_be_the_same_everywhere(machines: Machines) -> None:
    first = await machines.start(1)
    await machines.start(2, {1: machines.addresses[1], 2: machines.addresses[2]})
    await machines.start(3)
    with pytest.raises(ConfigurationMismatch, match="the same members"):
        await asyncio.wait_for(first.ready(), TIMEOUT_S)


async def test_one_acceptor_cannot_vote_twice(machines: Machines) -> None:
    await machines.start_all()
    await machines.stop()
    mixed_up = {1: machines.addresses[1], 2: machines.addresses[3], 3: free_endpoints(1)[0]}
    first = await machines.start(1, mixed_up)
    await machines.start(3)
    await asyncio.wait_for(first.ready(), TIMEOUT_S)
    with pytest.raises((NoQuorum, StoreError)):
        await first.registers().read([b"k/a"], 1.5)
    assert [node.state for node in (await first.status(TIMEOUT_S)).nodes] == ["up", "refused", "down"]


async def test_the_data_belongs_to_one_node_of_one_cluster(machines: Machines) -> None:
    await machines.start_all()
    await machines.stop()
    machines.home(2).rename(machines.root / "spare")
    machines.home(1).rename(machines.home(2))
    with pytest.raises(ConfigurationMismatch, match="belongs to node 1"):
        await machines.start(2)
    with pytest.raises(ConfigurationMismatch, match="told of members 3, 4"):
        await machines.start(3, {4: machines.addresses[1]})


async def test_a_node_is_not_harmed_by_who_takes_its_directory_for_a_store(machines: Machines) -> None:
    await machines.start_all()
    async with objmeta.connect_async(machines.home(1)) as client:
        with pytest.raises(StoreError, match="name the node by host:port"):
            await client.buckets()
    await machines.stop(1)
    await machines.start(1)
    await machines.ready()


async def test_a_directory_serves_one_node_at_a_time(tmp_path: Path) -> None:
    node = Node(NodeSettings(data=tmp_path))
    await node.start()
    with pytest.raises(StoreError, match="another node process"):
        await Node(NodeSettings(data=tmp_path)).start()
    await node.stop()


async def test_a_port_serves_one_node_at_a_time(tmp_path: Path) -> None:
    node = Node(NodeSettings(data=tmp_path / "1"))
    await node.start()
    with pytest.raises(StoreError, match="cannot listen"):
        await Node(NodeSettings(data=tmp_path / "2", listen=node.address)).start()
    await node.stop()


async def test_a_stop_leaves_nothing_running(tmp_path: Path) -> None:
    before = set(threading.enumerate())  # other tests' clients may still be open
    node = Node(NodeSettings(data=tmp_path))
    await node.start()
    await asyncio.wait_for(node.ready(), TIMEOUT_S)
    client = RemoteRegisters([node.address])
    await client.change(change(), TIMEOUT_S)
    await node.stop()
    await node.stop()
    with pytest.raises(NoQuorum):
        await client.read([b"k/a"], TIMEOUT_S)
    await client.close()
    await until(lambda: len(asyncio.all_tasks()) == 1)
    started = set(threading.enumerate()) - before
    assert not [thread for thread in started if thread.name.startswith("objmeta")]


async def test_a_stop_finishes_what_is_under_way(machines: Machines) -> None:
    await machines.start_all()
    client = machines.client()
    putting = [asyncio.ensure_future(client.change(change(b"k/%d" % i), TIMEOUT_S)) for i in range(200)]
    await asyncio.wait(putting, return_when=asyncio.FIRST_COMPLETED)
    await machines.nodes.pop(2).stop()
    assert all(reply.code == "" for reply in await asyncio.gather(*putting))
    await client.close()


async def test_a_stop_waits_for_what_fails_in_time_and_no_longer(machines: Machines) -> None:
    await machines.start_all()
    elsewhere = next(name for name in (b"k/%d" % i for i in range(100)) if home_of(name, (1, 2, 3)) == 1)
    await machines.stop(1, 3)
    client, node = machines.client(2), machines.nodes.pop(2)
    changing = asyncio.ensure_future(client.change(change(elsewhere), 1.0))
    await until(lambda: node.client_service.in_flight == 1)
    async with asyncio.timeout(HANGS_S):  # nobody answers: the change has an end of its own
        await node.stop(2 * HANGS_S)
    with pytest.raises(Unavailable):
        await changing
    await client.close()


def test_assertions_stay_on(tmp_path: Path) -> None:
    command = [sys.executable, "-O", "-m", "objmeta.node", "--data", str(tmp_path / "data")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "assertions" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("listen", ["0.0.0.0:7400", "[::]:7400", "example.org:7400"])
def test_only_this_machine_unless_told_otherwise(tmp_path: Path, listen: str) -> None:
    with pytest.raises(InvalidArgument, match="insecure"):
        NodeSettings(data=tmp_path, listen=listen)
    assert NodeSettings(data=tmp_path, listen=listen, insecure=True).listen == listen


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "localhost:80", "[::1]:0", "127.5.5.5:1"])
def test_loopback_is_fine(tmp_path: Path, listen: str) -> None:
    assert NodeSettings(data=tmp_path, listen=listen).members == (1,)


@pytest.mark.parametrize("text", ["1", "1=", "x=127.0.0.1:1", "1=nowhere", "1=127.0.0.1:1,1=127.0.0.1:2"])
def test_peers_are_read_with_care(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_peers(text)


def test_settings_are_checked(tmp_path: Path) -> None:
    assert parse_peers("1=127.0.0.1:1, 2=[::1]:2") == {1: "127.0.0.1:1", 2: "[::1]:2"}
    with pytest.raises(InvalidArgument, match="node id"):
        NodeSettings(data=tmp_path, node_id=0)
    with pytest.raises(InvalidArgument, match="host:port"):
        NodeSettings(data=tmp_path, listen="7400")
    with pytest.raises(InvalidArgument, match="same address"):
        NodeSettings(data=tmp_path, peers={2: "127.0.0.1:1", 3: "127.0.0.1:1"})
