"""Chunks on three nodes, over real connections: some of them dead, silent, slow, full, or with damaged copies."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from blake3 import blake3

from gateway.blobs.client import ClusterBlobs
from gateway.blobs.packs import PACKED_BYTES_MAX
from gateway.blobs.peer import LAG_WAIT_S, PENDING_MAX, Peer
from gateway.blobs.placement import homes, order
from gateway.blobs.places import ChunkMissing
from gateway.blobs.sending import Payload, Unreachable
from gateway.blobs.service import SERVICE
from objmeta import Chunk, errors
from objmeta.grpcio import grpc
from tests.gateway.blobnodes import BlobNode, placed, places


@pytest.fixture
async def blobs(nodes: list[BlobNode]) -> AsyncIterator[ClusterBlobs]:
    store = ClusterBlobs(placed(*nodes), timeout_s=5)
    yield store
    await store.close()


@pytest.fixture
async def silent() -> AsyncIterator[str]:
    """The address of somebody who takes connections and never says anything."""
    writers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda reader, writer: writers.append(writer), "127.0.0.1", 0)
    yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    for writer in writers:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


HANGS_S = 60.0
"""What waits so long hangs; a busy machine takes its time, and that is no failure."""


async def until(condition: Any, timeout_s: float = HANGS_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


async def served_again(blobs: ClusterBlobs, node: BlobNode) -> None:
    """Put until a new chunk arrives at the node."""
    deadline = time.monotonic() + HANGS_S
    chunks: list[Chunk] = []
    while not any(node.holds(chunk) for chunk in chunks):
        chunks.append(await blobs.put(os.urandom(10), generation=0))
        assert time.monotonic() < deadline, "the node was not found again"
        await asyncio.sleep(0.05)


# -- All is well ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 1 << 20, (4 << 20) + 3])
async def test_every_node_gets_a_copy(blobs: ClusterBlobs, nodes: list[BlobNode], length: int) -> None:
    data = os.urandom(length)
    chunk = await blobs.put(data, generation=0)
    assert sum(node.holds(chunk) for node in nodes) >= 2
    await until(lambda: all(node.holds(chunk) for node in nodes))
    assert await blobs.get(chunk) == data
    assert await blobs.get(chunk, 5, 9) == data[5:9]
    assert await blobs.put(data, generation=0) == chunk


async def test_many_at_once(blobs: ClusterBlobs, nodes: list[BlobNode]) -> None:
    contents = [os.urandom(50_000 + number) for number in range(100)]
    chunks = await asyncio.gather(*(blobs.put(data, generation=0) for data in contents))
    assert await asyncio.gather(*(blobs.get(chunk) for chunk in chunks)) == contents
    await until(lambda: all(node.holds(chunk) for node in nodes for chunk in chunks))


async def test_close_lets_copies_finish(nodes: list[BlobNode]) -> None:
    store = ClusterBlobs(placed(*nodes))
    await stored(store, nodes, b"everything is in place")
    nodes[2].blobs.delay_s = 0.8
    chunk = await store.put(b"late", generation=0)
    assert not nodes[2].holds(chunk)
    await store.close()
    assert nodes[2].holds(chunk)


async def test_status_names_who_is_down(blobs: ClusterBlobs, nodes: list[BlobNode]) -> None:
    await nodes[1].stop()
    states = {status.address: status.state for status in await blobs.status()}
    assert states == {nodes[0].address: "up", nodes[1].address: "down", nodes[2].address: "up"}


# -- Nodes in trouble, while writing ----------------------------------------------------------------------------------


async def test_a_dead_node_costs_nothing_and_gets_new_chunks_when_it_is_back(
    blobs: ClusterBlobs, nodes: list[BlobNode]
) -> None:
    """Were each put to wait for it as little as ``LAG_WAIT_S``, these would take too long."""
    await nodes[0].stop()
    async with asyncio.timeout(HANGS_S):
        for number in range(int(HANGS_S / LAG_WAIT_S)):
            await blobs.put(b"without %d" % number, generation=0)
    await nodes[0].start()

    await served_again(blobs, nodes[0])


async def test_a_silent_node_slows_nobody(nodes: list[BlobNode], silent: str) -> None:
    """Were each put to wait for it as little as ``LAG_WAIT_S``, these would take too long."""
    store = ClusterBlobs(placed(nodes[0], silent, nodes[1]), timeout_s=2)
    async with asyncio.timeout(HANGS_S):
        for _ in range(max(2 * PENDING_MAX, int(HANGS_S / LAG_WAIT_S))):
            await store.put(os.urandom(1000), generation=0)
    async with asyncio.timeout(HANGS_S):
        await store.close()


async def test_a_slow_node_is_left_out_and_comes_back(blobs: ClusterBlobs, nodes: list[BlobNode]) -> None:
    nodes[2].blobs.delay_s = 2
    chunks = [await blobs.put(os.urandom(1 << 20), generation=0) for _ in range(40)]
    assert not all(nodes[2].holds(chunk) for chunk in chunks)
    nodes[2].blobs.delay_s = 0
    await served_again(blobs, nodes[2])


async def test_no_majority_is_said_in_time(nodes: list[BlobNode], silent: str) -> None:
    await nodes[0].stop()
    store = ClusterBlobs(placed(nodes[0], silent, nodes[1]), timeout_s=0.7)
    begun = time.monotonic()
    with pytest.raises(errors.NoQuorum, match=r"3 nodes.*cannot be reached"):
        async with asyncio.timeout(HANGS_S):
            await store.put(b"alone", generation=0)
    assert time.monotonic() - begun > 0.6, "it does not wait as long as it may"
    await store.close()


async def test_a_put_waits_for_a_node_to_come_back(blobs: ClusterBlobs, nodes: list[BlobNode]) -> None:
    await nodes[0].stop()
    await nodes[1].stop()
    putting = asyncio.create_task(blobs.put(b"patient", generation=0))
    await until(lambda: nodes[2].holds(Chunk(blake3(b"patient").digest(), 7)))
    assert not putting.done()
    await nodes[1].start()
    assert nodes[1].holds(await putting)


async def test_one_full_disk_is_no_matter_and_two_are(nodes: list[BlobNode]) -> None:
    blobs = ClusterBlobs(placed(*nodes), timeout_s=2 * HANGS_S)
    nodes[0].blobs.full = True
    chunk = await blobs.put(os.urandom(3 << 20), generation=0)
    assert nodes[1].holds(chunk)
    assert nodes[2].holds(chunk)
    nodes[1].blobs.full = True
    with pytest.raises(errors.StoreFull, match="no room"):
        async with asyncio.timeout(HANGS_S):  # it does not use up its time
            await blobs.put(b"too much", generation=0)
    await blobs.close()


async def test_a_node_that_keeps_no_chunks_is_named(nodes: list[BlobNode]) -> None:
    server = cast(Any, grpc.aio).server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    store = ClusterBlobs(placed(f"127.0.0.1:{port}"))
    with pytest.raises(errors.StoreError, match="not a node"):
        await store.put(b"data", generation=0)
    await store.close()
    await server.stop(None)


@pytest.mark.parametrize("steps", [1, 5, 20, 60])
async def test_cancelled_puts_leave_nothing_under_way(blobs: ClusterBlobs, nodes: list[BlobNode], steps: int) -> None:
    before = len(asyncio.all_tasks())
    task = asyncio.create_task(blobs.put(os.urandom(2 << 20), generation=0))
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: len(asyncio.all_tasks()) <= before)
    for node in nodes:
        await until(lambda node=node: not any((node.blobs.path / "tmp").glob("*")))


# -- Nodes in trouble, while reading ----------------------------------------------------------------------------------


async def stored(blobs: ClusterBlobs, nodes: list[BlobNode], data: bytes, generation: int = 0) -> Chunk:
    chunk = await blobs.put(data, generation=generation)
    await until(lambda: all(node.holds(chunk) for node in nodes))
    return chunk


async def test_a_read_goes_on_to_a_good_copy(blobs: ClusterBlobs, nodes: list[BlobNode]) -> None:
    chunk = await stored(blobs, nodes, b"precious")
    nodes[0].spoil(chunk)
    nodes[1].lose(chunk)
    await nodes[0].stop()
    assert await blobs.get(chunk) == b"precious"
    await until(lambda: nodes[1].holds(chunk) or order(chunk.digest, places(*nodes))[0].node_id == 3)
    nodes[2].spoil(chunk)
    if nodes[1].holds(chunk):
        nodes[1].spoil(chunk)
    await nodes[0].start()
    with pytest.raises(errors.IntegrityError, match=chunk.digest.hex()):
        await blobs.get(chunk)
    for node in nodes:
        if node.holds(chunk):
            node.lose(chunk)
    with pytest.raises(ChunkMissing, match=chunk.digest.hex()):
        await blobs.get(chunk)


async def test_reads_survive_two_dead_nodes_and_say_so_when_all_are(blobs: ClusterBlobs, nodes: list[BlobNode]) -> None:
    chunk = await stored(blobs, nodes, os.urandom(3 << 20))
    store = ClusterBlobs(placed(*nodes), timeout_s=1)
    await nodes[0].stop()
    await nodes[1].stop()
    for _ in range(6):
        assert len(await store.get(chunk)) == 3 << 20
    await nodes[2].stop()
    with pytest.raises(errors.Unavailable, match=chunk.digest.hex()):
        async with asyncio.timeout(HANGS_S):
            await store.get(chunk)
    await store.close()


async def test_a_read_does_not_wait_for_a_slow_or_silent_node(nodes: list[BlobNode], silent: str) -> None:
    nodes[1].blobs.delay_s = 2 * HANGS_S
    store = ClusterBlobs(placed(nodes[0], nodes[1], silent), timeout_s=2 * HANGS_S)
    chunk = Chunk(blake3(b"hedged").digest(), 6)
    await nodes[0].blobs.put(b"hedged", generation=0)
    async with asyncio.timeout(HANGS_S):
        for _ in range(6):
            assert await store.get(chunk) == b"hedged"
    await store.close()


async def test_bytes_that_arrive_damaged_are_not_returned(nodes: list[BlobNode]) -> None:
    async def lie(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"wrong bytes"

    server = cast(Any, grpc.aio).server()

    async def lie_much(request: bytes, context: Any) -> bytes:
        return msgspec.msgpack.encode([b"wrong bytes", b"right bytes"])

    handlers = {
        "Get": grpc.unary_stream_rpc_method_handler(lie),
        "GetMany": grpc.unary_unary_rpc_method_handler(lie_much),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    chunk = await nodes[0].blobs.put(b"right bytes", generation=0)
    alone = ClusterBlobs(placed(f"127.0.0.1:{port}"))
    with pytest.raises(errors.IntegrityError, match="damaged"):
        await alone.get(chunk)
    peer = Peer(f"127.0.0.1:{port}")
    wrong, right = await peer.get_many([chunk, chunk], 5)
    assert isinstance(wrong, errors.IntegrityError)
    assert right == b"right bytes"
    with pytest.raises(errors.StoreError, match="answered about 2 chunks"):
        await peer.get_many([chunk], 5)
    await peer.close()
    both = ClusterBlobs(placed(f"127.0.0.1:{port}", nodes[0]))
    for _ in range(4):
        assert await both.get(chunk) == b"right bytes"
    await alone.close()
    await both.close()
    await server.stop(None)


async def test_a_damaged_or_missing_copy_is_healed_by_a_read(blobs: ClusterBlobs, nodes: list[BlobNode]) -> None:
    data = os.urandom(3 << 20)
    chunk = await stored(blobs, nodes, data)
    first, second, third = (nodes[place.node_id - 1] for place in order(chunk.digest, places(*nodes)))
    first.spoil(chunk)
    second.lose(chunk)
    third.blobs.delay_s = 0.05  # so that it is not the one that is asked first
    for _ in range(20):
        assert await blobs.get(chunk) == data
        if second.holds(chunk) and await good(first, chunk):
            break
        await asyncio.sleep(0.05)
    third.lose(chunk)
    for node in (first, second):
        assert await node.blobs.get(chunk) == data


async def test_a_copy_that_is_healed_states_the_newest_generation(nodes: list[BlobNode]) -> None:
    """What its node knows may be too old: a writer who touched the others counts on this copy, too."""

    async def newest() -> int:
        return 9

    blobs = ClusterBlobs(placed(*nodes), timeout_s=5, generation=newest)
    chunk = await stored(blobs, nodes, os.urandom(100), 5)
    first = nodes[order(chunk.digest, places(*nodes))[0].node_id - 1]
    first.lose(chunk)
    for _ in range(100):
        await blobs.get(chunk)
        if first.holds(chunk):
            break
        await asyncio.sleep(0.05)
    assert [held.touched for held in await first.blobs.held() if held.chunk == chunk] == [9]
    await blobs.close()


async def good(node: BlobNode, chunk: Chunk) -> bool:
    try:
        await node.blobs.get(chunk)
    except errors.StoreError:
        return False
    return True


# -- Placement --------------------------------------------------------------------------------------------------------


@pytest.fixture
async def five(tmp_path: Path) -> AsyncIterator[list[BlobNode]]:
    found = [BlobNode(tmp_path / str(number)) for number in range(5)]
    for node in found:
        await node.start()
        await node.blobs.put(b"everything is in place", generation=0)
    yield found
    for node in found:
        await node.stop()
        await node.blobs.close()


def who_holds(nodes: list[BlobNode], chunk: Chunk) -> set[int]:
    return {number for number, node in enumerate(nodes, start=1) if node.holds(chunk)}


@pytest.mark.parametrize("replicas", [0, 1, 2, 5])
async def test_chunks_are_at_their_homes_and_nowhere_else(five: list[BlobNode], replicas: int) -> None:
    store = ClusterBlobs(placed(*five), timeout_s=5)
    contents = [os.urandom(100_000) for _ in range(10)]
    chunks = [await store.put(data, generation=0, replicas=replicas) for data in contents]
    for chunk, data in zip(chunks, contents, strict=True):
        wanted = {place.node_id for place in homes(chunk.digest, places(*five), replicas)}
        assert len(who_holds(five, chunk)) >= min(replicas or 3, 3)
        await until(lambda chunk=chunk, wanted=wanted: who_holds(five, chunk) >= wanted)
        assert who_holds(five, chunk) == wanted
        assert await store.get(chunk) == data
    await store.close()


@pytest.mark.parametrize("trouble", ["dead", "full", "slow"])
async def test_the_next_in_order_stands_in(five: list[BlobNode], trouble: str) -> None:
    store = ClusterBlobs(placed(*five), timeout_s=5)
    broken = five[1]
    if trouble == "dead":
        await broken.stop()
    broken.blobs.full = trouble == "full"
    broken.blobs.delay_s = 30 if trouble == "slow" else 0
    hit = 0
    while hit < 2:
        chunk = await store.put(os.urandom(100_000), generation=0)
        ranked = [place.node_id for place in order(chunk.digest, places(*five))]
        if 2 in ranked[:3]:
            hit += 1
            wanted = {node_id for node_id in ranked[:4] if node_id != 2}
            await until(lambda chunk=chunk, wanted=wanted: who_holds(five, chunk) >= wanted)
            assert who_holds(five, chunk) - {2} == wanted
            assert len(await store.get(chunk)) == 100_000
    await store.close()


# -- Touching ---------------------------------------------------------------------------------------------------------


async def test_what_is_there_is_touched_and_what_is_not_is_told(blobs: ClusterBlobs, nodes: list[BlobNode]) -> None:
    await stored(blobs, nodes, b"an index of its own")
    there = [await stored(blobs, nodes, os.urandom(size), generation=6) for size in (10, PACKED_BYTES_MAX + 1)]
    absent = Chunk(b"x" * 32, 10)
    assert await blobs.touch([*there, absent], generation=7) == [True, True, False]
    for node in nodes:
        async with asyncio.timeout(10):
            while {held.touched for held in await node.blobs.held() if held.chunk in there} != {7}:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    nodes[0].lose(there[1])
    assert await blobs.touch(there, generation=8) == [True, True]
    nodes[1].lose(there[1])
    assert await blobs.touch(there, generation=8) == [True, False]
    await nodes[2].stop()
    assert await blobs.touch(there, generation=8) == [True, False]


async def test_a_silent_node_is_not_waited_for_where_the_others_have_decided(
    nodes: list[BlobNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent(Peer):
        async def touch(self, chunks: Sequence[Chunk], generation: int, timeout_s: float) -> list[bool]:
            if self.address == nodes[0].address:
                await asyncio.Event().wait()
            return await super().touch(chunks, generation, timeout_s)

    monkeypatch.setattr("gateway.blobs.client.STAND_IN_S", 1000.0)
    store = ClusterBlobs(placed(*nodes), connect=Silent)
    there = await stored(store, nodes, b"there")
    async with asyncio.timeout(HANGS_S):
        assert await store.touch([Chunk(b"x" * 32, 10), there], generation=1) == [False, True]
    monkeypatch.setattr("gateway.blobs.client.STAND_IN_S", 0.1)
    nodes[1].lose(there)  # one of two has it: the third may be what is missing
    assert await store.touch([there], generation=1) == [False]
    monkeypatch.setattr("gateway.blobs.client.CLOSE_S_MAX", 0.0)
    await store.close()


@pytest.mark.parametrize("length", [10, 100_000])
async def test_an_old_generation_is_refused(blobs: ClusterBlobs, nodes: list[BlobNode], length: int) -> None:
    chunk = await stored(blobs, nodes, os.urandom(length))
    for node in nodes:
        await node.blobs.raise_floor(5)
    with pytest.raises(errors.StaleGeneration):
        await blobs.put(os.urandom(length), generation=4)
    with pytest.raises(errors.StaleGeneration):
        await blobs.touch([chunk], generation=4)
    await blobs.put(os.urandom(length), generation=5)
    assert await blobs.touch([chunk], generation=5) == [True]


async def test_nodes_that_refuse_a_touch_together_are_all_heard(nodes: list[BlobNode]) -> None:
    class Refusing(Peer):
        async def touch(self, chunks: Sequence[Chunk], generation: int, timeout_s: float) -> list[bool]:
            raise errors.StaleGeneration("too old")

    unheard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: unheard.append(context))
    store = ClusterBlobs(placed(*nodes), connect=Refusing)
    with pytest.raises(errors.StaleGeneration):
        await store.touch([Chunk(b"x" * 32, 10)], generation=4)
    await store.close()
    gc.collect()
    assert unheard == []


async def test_what_a_peer_is_asked(blobs: ClusterBlobs, nodes: list[BlobNode]) -> None:
    chunk = await stored(blobs, nodes, os.urandom(100_000))
    peer = Peer(nodes[0].address)
    assert await peer.has([chunk, Chunk(b"x" * 32, 10)], 5) == [True, False]
    assert [held.chunk for held in await peer.held(b"", 10, 5)] == [chunk]
    assert (await peer.usage(5)).chunk_bytes == chunk.length
    await nodes[0].stop()
    with pytest.raises(Unreachable):
        await peer.usage(5)
    await peer.close()


@pytest.mark.parametrize("length", [10, 300_000])
async def test_a_node_that_takes_nothing_more_counts_as_away(
    blobs: ClusterBlobs, nodes: list[BlobNode], length: int
) -> None:
    nodes[0].blobs.leaves = True
    chunk = await blobs.put(os.urandom(length), generation=1)
    assert [node.holds(chunk) for node in nodes] == [False, True, True]
    peer = Peer(nodes[0].address)
    with pytest.raises(Unreachable, match="leaves"):
        await peer.put(Payload(chunk, bytes(length)), 1, lambda: None, 5)
    assert peer.down
    await peer.close()


async def test_a_fork_is_told(blobs: ClusterBlobs, monkeypatch: pytest.MonkeyPatch) -> None:
    await blobs.put(b"parent", generation=0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: 1)
        with pytest.raises(errors.ForkedClient):
            await blobs.put(b"child", generation=0)
