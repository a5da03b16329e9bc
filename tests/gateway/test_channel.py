"""Long chunks over plain connections: that they go there, and what happens where they cannot."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from blake3 import blake3

from gateway.blobs import channel as channels
from gateway.blobs import listener as listeners
from gateway.blobs.channel import CONTENT, GET, HEAD, HELLO, PUT, REFUSED, SAID, TOKEN_BYTES, Offer
from gateway.blobs.listener import Listener
from gateway.blobs.peer import Peer, Progress
from gateway.blobs.places import ChunkMissing
from gateway.blobs.sending import Payload, Queue, Unreachable, Waiting
from gateway.blobs.service import ARRIVING_BYTES_MAX, GETS_MAX, AskFor, BlobService
from gateway.server import DataNode
from gateway.upkeep.watched import WatchedBlobs
from objmeta import Chunk, errors
from objmeta.node import NodeSettings
from tests.gateway.blobnodes import BlobNode
from tests.node.fakes import until

MIB = 1 << 20


@pytest.fixture
async def peer(node: BlobNode) -> AsyncIterator[Peer]:
    found = Peer(node.address)
    yield found
    await found.close()


def chunk_of(data: bytes) -> Chunk:
    return Chunk(blake3(data).digest(), len(data))


async def put(peer: Peer, data: bytes, chunk: Chunk | None = None, timeout_s: float = 10.0) -> None:
    await peer.put(Payload(chunk or chunk_of(data), data), 1, lambda: None, timeout_s)


async def get(peer: Peer, chunk: Chunk) -> bytes:
    return await peer.get(chunk, Progress(0.0), 10.0)


def without_messages(node: BlobNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC brings and gets no long chunk."""

    async def refuse(self: BlobService, request: object, context: Any) -> bytes:
        raise AssertionError("a chunk was to go over gRPC")

    monkeypatch.setattr(BlobService, "_put", refuse)
    monkeypatch.setattr(BlobService, "_get", refuse)


# -- What goes there --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [65_537, MIB, 4 * MIB, 9 * MIB + 1])
async def test_long_chunks_go_over_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    node = BlobNode(tmp_path / "blobs")
    without_messages(node, monkeypatch)
    await node.start()
    peer = Peer(node.address)
    data = os.urandom(length)
    await put(peer, data)
    assert node.holds(chunk_of(data))
    assert await get(peer, chunk_of(data)) == data
    assert node.listener.connections == 1, "the second call used the connection of the first"
    await peer.close()
    await until(lambda: node.listener.connections == 0)
    await node.stop()
    await node.blobs.close()


async def test_many_at_once(node: BlobNode, peer: Peer) -> None:
    contents = [os.urandom(200_000 + number) for number in range(40)]
    await asyncio.gather(*(put(peer, data) for data in contents))
    assert await asyncio.gather(*(get(peer, chunk_of(data)) for data in contents)) == contents


async def test_what_a_node_says_is_heard_and_the_connection_goes_on(node: BlobNode, peer: Peer) -> None:
    data = os.urandom(MIB)
    with pytest.raises(ChunkMissing):
        await get(peer, chunk_of(data))
    with pytest.raises(errors.IntegrityError):
        await put(peer, data, Chunk(b"x" * 32, MIB))
    node.blobs.full = True
    with pytest.raises(errors.StoreFull, match="no room"):
        await put(peer, data)
    node.blobs.full = False
    await put(peer, data)
    node.spoil(chunk_of(data))
    with pytest.raises(errors.IntegrityError, match="damaged"):
        await get(peer, chunk_of(data))
    await node.blobs.raise_floor(5)
    with pytest.raises(errors.StaleGeneration):
        await put(peer, os.urandom(MIB))
    assert node.listener.connections == 1


async def test_a_node_that_may_not_serve_reads_to_the_end_and_says_so(tmp_path: Path) -> None:
    node = BlobNode(tmp_path / "blobs")
    serves = False

    def check() -> None:
        if not serves:
            raise errors.Unavailable("node 1 does not serve yet")

    await node.start()
    node.service._check = check
    peer = Peer(node.address)
    data = os.urandom(3 * MIB)
    with pytest.raises(Unreachable, match="does not serve yet"):
        await put(peer, data)
    with pytest.raises(Unreachable, match="does not serve yet"):
        await get(peer, chunk_of(data))
    serves = True
    await put(peer, data)
    assert node.listener.connections == 1
    await peer.close()
    await node.stop()
    await node.blobs.close()


# -- Where it cannot be used ------------------------------------------------------------------------------------------


async def test_without_a_channel_chunks_go_over_grpc(tmp_path: Path) -> None:
    node = BlobNode(tmp_path / "blobs", channel=False)
    await node.start()
    peer = Peer(node.address)
    data = os.urandom(5 * MIB)
    await put(peer, data)
    assert await get(peer, chunk_of(data)) == data
    await peer.close()
    await node.stop()
    await node.blobs.close()


async def test_calls_that_end_while_they_are_sent_are_not_cancelled_puts(tmp_path: Path) -> None:
    node = BlobNode(tmp_path / "blobs", channel=False)
    await node.start()
    peer = Peer(node.address)
    data = os.urandom(9 * MIB)  # in three messages
    await put(peer, data)
    outcomes = [await asyncio.gather(put(peer, data, timeout_s=ms / 1e4), return_exceptions=True) for ms in range(100)]
    assert {type(outcome) for (outcome,) in outcomes} <= {Unreachable, type(None)}
    await peer.close()
    await node.stop()
    await node.blobs.close()


async def test_a_put_hears_what_nobody_expected() -> None:
    async def send(batch: Sequence[Waiting]) -> list[Exception | None]:
        raise ValueError("nobody thought of this")

    queue = Queue(send, MIB, 1)
    for _ in range(2):
        with pytest.raises(ValueError, match="nobody thought of this"):
            await queue.put(Payload(Chunk(b"x" * 32, 5), b"bytes"), 1, 1.0)
    await queue.ended()


@pytest.mark.parametrize("whose", ["nobody's", "silent", "another node's", "a web server's", "an echo's"])
async def test_a_port_that_leads_nowhere_or_elsewhere_is_not_used(
    node: BlobNode, tmp_path: Path, whose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "CONNECT_S", 0.2)
    other = BlobNode(tmp_path / "other")
    await other.start()
    asked = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        if whose == "a web server's":
            writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        while said := await reader.read(MIB):
            if whose == "an echo's":  # as a port is that connects to itself
                writer.write(said)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    if whose == "nobody's":
        server.close()
        await server.wait_closed()
    elif whose == "another node's":
        assert other.service.offer is not None
        port = other.service.offer.port
    node.service.offer = Offer(port, bytes(TOKEN_BYTES))
    peer = Peer(node.address)
    data = os.urandom(MIB)
    await put(peer, data)
    assert await get(peer, chunk_of(data)) == data
    assert node.holds(chunk_of(data))
    assert not other.holds(chunk_of(data)), "one node's copy was made at another"
    assert asked <= 1, "it is left alone for a while"
    await peer.close()
    server.close()
    await other.stop()
    await other.blobs.close()


async def test_a_node_that_was_started_anew_is_found_again(node: BlobNode, peer: Peer) -> None:
    data = os.urandom(MIB)
    await put(peer, data)
    await node.stop()
    with pytest.raises(Unreachable):
        await get(peer, chunk_of(data))
    await node.start()
    await peer.turn()
    async with asyncio.timeout(10):
        while True:
            try:
                found = await get(peer, chunk_of(data))
                break
            except Unreachable:
                await peer.turn()
    assert found == data
    assert node.listener.connections == 1


async def test_a_node_that_had_no_channel_while_it_started_is_asked_again(node: BlobNode, peer: Peer) -> None:
    data = os.urandom(MIB)
    offer, node.service.offer = node.service.offer, None
    node.blobs.leaves = True
    with pytest.raises(Unreachable):
        await put(peer, data)
    node.service.offer = offer
    node.blobs.leaves = False
    await put(peer, data)
    assert node.listener.connections == 1


async def test_connections_that_were_closed_meanwhile_cost_nothing(node: BlobNode, peer: Peer) -> None:
    data = os.urandom(MIB)
    await put(peer, data)
    await node.listener.stop(0)
    node.listener = Listener(node.service)
    await node.listener.start("127.0.0.1")
    assert await get(peer, chunk_of(data)) == data
    assert node.listener.connections == 1


async def test_what_is_not_used_is_closed(node: BlobNode, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "IDLE_S", 0.01)
    await put(peer, os.urandom(MIB))
    await until(lambda: node.listener.connections == 0)
    await put(peer, os.urandom(MIB))


async def test_who_gives_up_leaves_nothing_under_way(node: BlobNode, peer: Peer) -> None:
    data = os.urandom(MIB)
    node.blobs.delay_s = 30.0
    sending = asyncio.create_task(put(peer, data))
    await until(lambda: node.listener.connections == 1)
    with pytest.raises(Unreachable, match="no answer in time"):
        await put(peer, os.urandom(MIB), timeout_s=0.1)
    sending.cancel()
    await asyncio.wait((sending,))
    node.blobs.delay_s = 0.0
    await put(peer, data)
    assert await get(peer, chunk_of(data)) == data


async def test_a_put_may_wait_for_room_longer_than_a_machine_may_be_silent(node: BlobNode, peer: Peer) -> None:
    data = os.urandom(20 * MIB)  # more than what is on the way between two sockets
    async with node.service._room.share(ARRIVING_BYTES_MAX):
        sending = asyncio.create_task(put(peer, data, timeout_s=30.0))
        await asyncio.wait((sending,), timeout=6.0)
        assert not sending.done()
    await sending
    assert node.holds(chunk_of(data))


async def test_what_was_under_way_when_a_client_closed_leaves_no_connection(node: BlobNode) -> None:
    peer = Peer(node.address)
    await put(peer, data := os.urandom(MIB))
    node.blobs.delay_s = 0.2
    calls = asyncio.gather(get(peer, chunk_of(data)), put(peer, os.urandom(MIB)))
    await until(lambda: node.listener.connections == 2)
    await peer.close()
    await calls
    await until(lambda: node.listener.connections == 0)


async def test_a_node_that_stops_finishes_what_is_under_way(node: BlobNode, peer: Peer) -> None:
    data = os.urandom(MIB)
    await put(peer, os.urandom(MIB))  # a connection that nobody uses just now ends at once
    begun, go_on = asyncio.Event(), asyncio.Event()
    receive = node.blobs.receive

    async def slowly(chunk: Chunk, parts: Sequence[bytes | memoryview], *, generation: int) -> None:
        begun.set()
        await go_on.wait()
        await receive(chunk, parts, generation=generation)

    node.blobs.receive = slowly  # type: ignore[method-assign]
    sending = asyncio.create_task(put(peer, data))
    await begun.wait()
    stopping = asyncio.create_task(node.listener.stop(10.0))
    await asyncio.sleep(0)
    go_on.set()
    await sending
    await stopping
    assert node.holds(chunk_of(data))
    assert node.listener.connections == 0


async def test_a_client_that_comes_while_a_node_stops_is_let_go(node: BlobNode) -> None:
    offer = node.service.offer
    assert offer is not None
    with socket.create_connection(("127.0.0.1", offer.port)) as client:
        await asyncio.sleep(0)  # the loop knows that it is there
        await node.listener.stop(0)
        client.settimeout(10)
        with suppress(ConnectionResetError):
            assert client.recv(1) == b""


# -- Clients that are wrong -------------------------------------------------------------------------------------------


def asked(*chunks: Chunk) -> bytes:
    return msgspec.msgpack.encode(AskFor(1, chunks))


async def say(node: BlobNode, said: bytes, *, greets: bool = True, hangs_up: bool = True) -> bytes:
    """Everything that a node answers to a client until it closes."""
    offer = node.service.offer
    assert offer is not None
    reader, writer = await asyncio.open_connection("127.0.0.1", offer.port)
    try:
        writer.write((HELLO + offer.token if greets else b"") + said)
        if hangs_up:
            writer.write_eof()
        async with asyncio.timeout(10):
            try:
                return await reader.read()
            except ConnectionError:
                return b""
    finally:
        writer.close()


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        HELLO + bytes(TOKEN_BYTES),
        HELLO[:5],
    ],
)
async def test_strangers_get_no_answer(node: BlobNode, said: bytes) -> None:
    assert await say(node, said, greets=False) == b""


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\x01",
        HEAD.pack(9, 4) + b"\x00" * 4,
        HEAD.pack(PUT, 1 << 30),
        HEAD.pack(PUT, 5) + b"short",
        HEAD.pack(PUT, len(asked())) + asked(),
        HEAD.pack(PUT, len(asked(Chunk(b"x" * 32, 1 << 40)))) + asked(Chunk(b"x" * 32, 1 << 40)),
        HEAD.pack(PUT, len(asked(Chunk(b"x" * 32, -5)))) + asked(Chunk(b"x" * 32, -5)),
        HEAD.pack(PUT, len(asked(Chunk(b"x" * 32, 100)))) + asked(Chunk(b"x" * 32, 100)) + b"not so much",
        HEAD.pack(GET, len(asked())) + asked(),
        HEAD.pack(GET, len(asked(*[Chunk(b"x" * 32, 5)] * 2))) + asked(*[Chunk(b"x" * 32, 5)] * 2),
    ],
)
async def test_what_breaks_the_rules_ends_the_connection(node: BlobNode, peer: Peer, said: bytes) -> None:
    offer = node.service.offer
    assert offer is not None
    assert await say(node, said) == offer.token
    await until(lambda: node.listener.connections == 0)
    assert not await node.blobs.held()
    await put(peer, data := os.urandom(MIB))
    assert node.holds(chunk_of(data))


async def greeted(node: BlobNode, said: bytes) -> socket.socket:
    """A client that said something and then neither sends nor reads."""
    offer = node.service.offer
    assert offer is not None
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", offer.port))
    await asyncio.get_running_loop().sock_sendall(sock, HELLO + offer.token + said)
    return sock


async def test_clients_that_stop_in_the_middle_lose_their_places(
    node: BlobNode, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "STALL_S", 0.5)
    request = asked(Chunk(b"x" * 32, 16 * MIB))
    frozen = [await greeted(node, HEAD.pack(PUT, len(request)) + request + bytes(10)) for _ in range(5)]
    await put(peer, data := os.urandom(9 * MIB), timeout_s=30.0)
    assert node.holds(chunk_of(data))
    request = asked(chunk_of(data))
    frozen += [await greeted(node, HEAD.pack(GET, len(request)) + request) for _ in range(GETS_MAX + 1)]
    await until(node.service._gets.locked)
    assert await get(peer, chunk_of(data)) == data
    for sock in frozen:
        sock.close()


async def test_more_connections_than_a_node_has_descriptors_for_leave_grpc(node: BlobNode, peer: Peer) -> None:
    node.listener._most = 2
    others = [await greeted(node, b"") for _ in range(2)]
    await until(lambda: node.listener.connections == 2)
    await put(peer, data := os.urandom(MIB))
    assert node.holds(chunk_of(data))
    assert node.listener.connections == 2
    for sock in others:
        sock.close()


async def test_a_wrong_content_is_refused_and_the_others_are_stored(node: BlobNode) -> None:
    contents = [os.urandom(100_000) for _ in range(3)]
    chunks = [chunk_of(data) for data in contents]
    chunks[1] = Chunk(b"x" * 32, 100_000)
    request = asked(*chunks)
    answer = await say(node, HEAD.pack(PUT, len(request)) + request + b"".join(contents))
    kind, length = HEAD.unpack_from(answer, TOKEN_BYTES)
    refusals = msgspec.msgpack.decode(answer[TOKEN_BYTES + HEAD.size :])
    assert (kind, length) == (SAID, len(answer) - TOKEN_BYTES - HEAD.size)
    assert [refusal and refusal[0] for refusal in refusals] == [None, "integrity", None]
    assert {held.chunk for held in await node.blobs.held()} == {chunks[0], chunks[2]}


@pytest.mark.parametrize(
    "answer",
    [
        HEAD.pack(CONTENT, MIB + 1) + bytes(MIB + 1),
        HEAD.pack(SAID, 1 << 31),
        HEAD.pack(77, 10) + bytes(10),
        HEAD.pack(CONTENT, 10) + bytes(10),
        HEAD.pack(CONTENT, MIB) + bytes(MIB),
        HEAD.pack(REFUSED, 3) + b"???",
        HEAD.pack(CONTENT, MIB) + b"broken off",
    ],
)
async def test_answers_that_make_no_sense_are_errors(node: BlobNode, answer: bytes) -> None:
    async def lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(HELLO) + TOKEN_BYTES)
        writer.write(bytes(TOKEN_BYTES) + answer)
        writer.write_eof()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(lie, "127.0.0.1", 0)
    node.service.offer = Offer(server.sockets[0].getsockname()[1], bytes(TOKEN_BYTES))
    peer = Peer(node.address)
    with pytest.raises((errors.StoreError, Unreachable)):
        await get(peer, Chunk(b"x" * 32, MIB))
    await peer.close()
    server.close()


async def test_a_listener_says_where_it_cannot_listen() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listener = Listener(BlobService(BlobNode(Path("unused")).blobs))
        with pytest.raises(OSError, match="in use"):
            await listener.start("127.0.0.1", taken.getsockname()[1])
        await listener.stop()


async def test_a_node_that_stops_takes_nothing_new_and_finishes_what_is_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    came, may_go = asyncio.Event(), asyncio.Event()
    receive = WatchedBlobs.receive

    async def slow(self: WatchedBlobs, chunk: Chunk, parts: Sequence[bytes | memoryview], *, generation: int) -> None:
        came.set()
        await may_go.wait()
        await receive(self, chunk, parts, generation=generation)

    monkeypatch.setattr(WatchedBlobs, "receive", slow)
    node = DataNode(NodeSettings(data=tmp_path))
    await node.start()
    await node.ready()
    peer = Peer(node.address)
    putting = asyncio.create_task(put(peer, os.urandom(MIB), timeout_s=60.0))
    await came.wait()
    stopping = asyncio.create_task(node.stop(60.0))
    await until(lambda: not takes(node))
    may_go.set()
    await putting
    await stopping
    await peer.close()


def takes(node: DataNode) -> bool:
    with suppress(errors.Unavailable):
        node.registers()
        return True
    return False
