"""Three node processes: killed, paused, restarted, stopped."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from objmeta.errors import InvalidArgument, NoQuorum, StoreError, UnknownOutcome
from objmeta.interfaces import ChangeRequest
from objmeta.model.changes import SetValue
from objmeta.model.values import Value, decode_value
from objmeta.node import LocalCluster
from objmeta.rpc.client import RemoteRegisters

TIMEOUT_S = 10.0


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    made = LocalCluster(tmp_path)
    await asyncio.to_thread(made.open)
    yield made
    await asyncio.to_thread(made.close)


@pytest.fixture
async def registers(cluster: LocalCluster) -> AsyncIterator[RemoteRegisters]:
    client = RemoteRegisters(cluster.endpoints)
    yield client
    await client.close()


def put(name: bytes, value: bytes) -> ChangeRequest:
    return ChangeRequest(b"k/" + name, SetValue(os.urandom(16), value))


async def value_of(registers: RemoteRegisters, name: bytes) -> bytes | None:
    (state,) = await registers.read([b"k/" + name], TIMEOUT_S)
    if state is None:
        return None
    value = decode_value(state.value)
    assert isinstance(value, Value)
    return value.value


class Load:
    """Writers that put, each to new names and to one name of its own, and count what was acknowledged."""

    def __init__(self, registers: RemoteRegisters, writers: int = 16) -> None:
        self._registers = registers
        self._stopped = False
        self.acknowledged: dict[bytes, bytes] = {}
        self.slowest_s = 0.0
        self._tasks = [asyncio.ensure_future(self._write(writer)) for writer in range(writers)]

    async def _write(self, writer: int) -> None:
        for number in itertools.count():
            if self._stopped:
                return
            for name in (b"%d/%d" % (writer, number), b"%d/last" % writer):
                begin = time.monotonic()
                reply = await self._registers.change(put(name, b"%d" % number), TIMEOUT_S)
                self.slowest_s = max(self.slowest_s, time.monotonic() - begin)
                assert reply.code == ""
                self.acknowledged[name] = b"%d" % number

    async def reach(self, count: int) -> None:
        """Wait until this many more puts were acknowledged (names put again not counted)."""
        goal = len(self.acknowledged) + count
        while len(self.acknowledged) < goal:
            done, _ = await asyncio.wait(self._tasks, timeout=0.01)
            for task in done:
                task.result()

    async def stop(self) -> None:
        """Let the writers finish; raises what any of them met."""
        self._stopped = True
        await asyncio.gather(*self._tasks)

    async def check(self, registers: RemoteRegisters) -> None:
        """Whether everything acknowledged is there."""
        names = list(self.acknowledged)
        found = await asyncio.gather(*(value_of(registers, name) for name in names))
        assert dict(zip(names, found, strict=True)) == self.acknowledged


async def test_a_node_killed_under_load_fails_no_put(cluster: LocalCluster, registers: RemoteRegisters) -> None:
    load = Load(registers)
    await load.reach(300)
    cluster.kill(2)
    await load.reach(300)
    cluster.start(2)
    await asyncio.to_thread(cluster.wait_ready)
    await load.reach(300)
    cluster.kill(3)  # a majority now needs the node that came back
    await load.reach(300)
    await load.stop()
    await load.check(registers)
    assert load.slowest_s < 5.0


@pytest.mark.parametrize("fault", ["kill", "pause"])
async def test_nobody_waits_for_a_dead_node_where_another_one_has_missed_changes(
    cluster: LocalCluster, registers: RemoteRegisters, fault: str
) -> None:
    load = Load(registers, writers=4)
    await load.reach(50)
    cluster.kill(2)
    await load.reach(100)
    cluster.start(2)
    await asyncio.to_thread(cluster.wait_ready)
    await asyncio.sleep(1.0)  # the others have found it again
    load.slowest_s = 0.0
    getattr(cluster, fault)(1)  # all votes needed now, of one that lacks history of the names that are put all the time
    await load.reach(300)
    await load.stop()
    if fault == "pause":
        cluster.resume(1)
    assert load.slowest_s < 1.5, "a round was waited for until its time was up"


async def test_a_paused_node_is_passed_over(cluster: LocalCluster, registers: RemoteRegisters) -> None:
    load = Load(registers)
    await load.reach(100)
    cluster.pause(1)
    await load.reach(300)
    cluster.resume(1)
    await load.reach(300)
    await load.stop()
    await load.check(registers)
    assert load.slowest_s < 5.0


async def test_a_client_knows_all_nodes_after_each_was_restarted(
    cluster: LocalCluster, registers: RemoteRegisters
) -> None:
    async def puts() -> None:
        await asyncio.gather(*(registers.change(put(b"%d" % number, b""), TIMEOUT_S) for number in range(30)))

    for node_id in (1, 2, 3):
        cluster.kill(node_id)
        for _ in range(5):  # they try to connect again meanwhile, in vain
            await puts()
            await asyncio.sleep(0.05)
        cluster.start(node_id)
        await asyncio.to_thread(cluster.wait_ready)
    deadline = time.monotonic() + TIMEOUT_S
    while registers.connections < 3:
        assert time.monotonic() < deadline, f"only {registers.connections} nodes are known"
        await puts()
    for node_id in (1, 2, 3):  # so each may be silent
        cluster.pause(node_id)
        await puts()
        cluster.resume(node_id)


async def test_a_gracefully_stopped_node_fails_no_put(cluster: LocalCluster, registers: RemoteRegisters) -> None:
    load = Load(registers)
    await load.reach(100)
    assert await asyncio.to_thread(cluster.stop, 1) == 0
    await load.reach(100)
    await load.stop()
    await load.check(registers)
    assert "Traceback" not in cluster.log(1)


async def test_two_of_three_down(cluster: LocalCluster, registers: RemoteRegisters) -> None:
    await registers.change(put(b"a", b"1"), TIMEOUT_S)
    cluster.kill(2)
    cluster.kill(3)
    begin = time.monotonic()
    with pytest.raises(NoQuorum):
        await registers.read([b"k/a"], 1.5)
    with pytest.raises((NoQuorum, UnknownOutcome)):
        await registers.change(put(b"a", b"2"), 1.5)
    assert time.monotonic() - begin < 3 * TIMEOUT_S
    status = await registers.status(TIMEOUT_S)
    assert not status.quorum
    assert [node.state for node in status.nodes] == ["up", "down", "down"]
    cluster.start(2)
    await asyncio.to_thread(cluster.wait_ready, [2])
    await registers.change(put(b"a", b"3"), TIMEOUT_S)
    assert await value_of(registers, b"a") == b"3"


async def test_all_nodes_killed_and_started_again(cluster: LocalCluster, registers: RemoteRegisters) -> None:
    load = Load(registers)
    await load.reach(200)
    await load.stop()
    for node_id in cluster.node_ids:
        cluster.kill(node_id)
    for node_id in cluster.node_ids:
        cluster.start(node_id)
    await asyncio.to_thread(cluster.wait_ready)
    await load.check(registers)


async def test_two_clients_race_for_one_register(cluster: LocalCluster, registers: RemoteRegisters) -> None:
    other = RemoteRegisters(tuple(reversed(cluster.endpoints)))
    for number in range(20):
        name = b"race/%d" % number
        attempts = [
            client.change(ChangeRequest(b"k/" + name, SetValue(os.urandom(16), b"x", if_version=bytes(16))), TIMEOUT_S)
            for client in (registers, other)
            for _ in range(3)
        ]
        codes = [reply.code for reply in await asyncio.gather(*attempts)]
        assert sorted(codes) == [""] + ["already_exists"] * 5
    await other.close()


def test_close_leaves_no_process(tmp_path: Path) -> None:
    with LocalCluster(tmp_path, nodes=3) as cluster:
        pids = [cluster.pid(node_id) for node_id in cluster.node_ids]
        cluster.pause(3)
    assert all(pid is not None and not Path(f"/proc/{pid}").exists() for pid in pids)
    for node_id in (1, 2):
        assert len(cluster.log(node_id).splitlines()) == 1, cluster.log(node_id)


def test_a_node_that_ends_says_why(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path, nodes=1)
    (tmp_path / "node-1").mkdir()
    (tmp_path / "node-1" / "data").write_text("a file where a directory is due")
    with pytest.raises(StoreError, match="cannot be used"):
        cluster.open()
    with pytest.raises(InvalidArgument):
        LocalCluster(tmp_path, nodes=0)


def test_a_node_may_open_as_many_files_as_the_system_allows() -> None:
    program = (
        "import asyncio, resource\n"
        "from objmeta.node import run\n"
        "_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 256), hard))\n"
        "run(asyncio.sleep(0))\n"
        "assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)\n"
    )
    subprocess.run((sys.executable, "-c", program), check=True)
