"""Erasure by real nodes: on demand, in the background, with one of them away."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest

from objmeta.core.messages import TOMBSTONE
from objmeta.errors import StaleGeneration, StoreError
from objmeta.interfaces import ChangeReply, ChangeRequest, Collected, NodeStatus
from objmeta.model.changes import SetValue
from objmeta.node import LocalCluster, Node, NodeSettings
from objmeta.node.background import Background
from objmeta.rpc.client import RemoteRegisters
from tests.node.fakes import until

TIMEOUT_S = 10.0
NAMES = [b"k/%03d" % number for number in range(200)]
OF_THE_STORE = 1
"""Registers that are left: the generation's."""


async def change(registers: RemoteRegisters, name: bytes, value: bytes | None) -> ChangeReply:
    reply = await registers.change(ChangeRequest(name, SetValue(os.urandom(16), value)), TIMEOUT_S)
    assert reply.code == ""
    return reply


async def collect(registers: RemoteRegisters) -> Collected:
    found = await registers.collect(0, 1.0)
    while not found.done:
        found = await registers.collect(found.run, 1.0)
    return found


async def nodes(registers: RemoteRegisters) -> dict[int, NodeStatus]:
    return {node.node_id: node for node in (await registers.status(TIMEOUT_S)).nodes}


async def test_deleted_names_go_when_all_nodes_are_up(tmp_path: Path) -> None:
    with LocalCluster(tmp_path) as cluster:
        registers = RemoteRegisters(cluster.endpoints)
        puts = await asyncio.gather(*(change(registers, name, b"x") for name in NAMES))
        await asyncio.gather(*(change(registers, name, None) for name in NAMES))
        cluster.kill(2)
        found = await collect(registers)
        assert (found.erased, found.unreachable) == (0, (2,))
        cluster.start(2)
        await asyncio.to_thread(cluster.wait_ready)
        found = await collect(registers)
        assert (found.erased, found.left, found.unreachable, found.problem) == (len(NAMES), 0, (), "")
        by_id = await nodes(registers)
        assert {node.registers for node in by_id.values()} == {OF_THE_STORE}
        again = await change(registers, NAMES[0], b"y")
        assert again.record is not None
        first = puts[0].record
        assert first is not None
        assert again.record.ref.sequence > first.ref.sequence + 1
        await change(registers, NAMES[0], None)
        old = ChangeRequest(NAMES[0], SetValue(first.ref.version_id, b"x"), generation=1)
        with pytest.raises(StaleGeneration):
            await registers.change(old, TIMEOUT_S)
        (state,) = await registers.read(NAMES[:1], TIMEOUT_S)
        assert state is not None
        assert state.flag == TOMBSTONE
        newcomer = RemoteRegisters(cluster.endpoints)
        await change(newcomer, b"k/new", b"first thing it does")
        await asyncio.gather(registers.close(), newcomer.close())


async def test_a_node_erases_by_itself(tmp_path: Path) -> None:
    node = Node(NodeSettings(data=tmp_path, erase_interval_s=0.1))
    await node.start()
    try:
        await node.ready()
        registers = RemoteRegisters([node.address])
        for name in NAMES[:20]:
            await change(registers, name, b"x")
            await change(registers, name, None)
        async with asyncio.timeout(TIMEOUT_S):
            while (await nodes(registers))[1].registers != OF_THE_STORE:
                pass
        await registers.close()
    finally:
        await node.stop()


async def test_background_work_is_done_again_whatever_becomes_of_it() -> None:
    background = Background(random.Random(1))
    outcomes = [StoreError("the disk"), ValueError("a bug"), None, None]
    done: list[Exception | None] = []

    async def work() -> None:
        done.append(outcomes[len(done) % len(outcomes)])
        if (outcome := done[-1]) is not None:
            raise outcome

    background.every(0.001, "working", work)
    await until(lambda: len(done) > len(outcomes))
    await background.close()
    count = len(done)
    await asyncio.sleep(0)
    assert len(done) == count
