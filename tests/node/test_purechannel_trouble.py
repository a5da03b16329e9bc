"""What a channel without gRPC's C core makes of servers that end, reset and lie in every way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, StreamEnded

from objmeta.grpcio import EOF, grpc
from objmeta.purechannel import PureChannel

TIMEOUT_S = 10.0
BEGIN = [(":status", "200"), ("content-type", "application/grpc")]
WELL = [("grpc-status", "0")]
FULL = [("grpc-status", "8"), ("grpc-message", "full"), ("objmeta-kind", "store_full")]

Answer = Callable[[H2Connection, int], None]


class Raw(asyncio.Protocol):
    """A server that answers each stream, as soon as it begins or ends, by what ``answer`` sends."""

    def __init__(self, answer: Answer, at_end: bool) -> None:
        self._answer = answer
        self._at_end = at_end
        self._h2 = H2Connection(H2Configuration(client_side=False, validate_outbound_headers=False))

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._h2.initiate_connection()
        transport.write(self._h2.data_to_send())

    def data_received(self, data: bytes) -> None:
        for event in self._h2.receive_data(data):
            if isinstance(event, DataReceived):
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            if isinstance(event, StreamEnded if self._at_end else RequestReceived):
                self._answer(self._h2, event.stream_id)
        self._transport.write(self._h2.data_to_send())


@asynccontextmanager
async def answering(answer: Answer, at_end: bool = True) -> AsyncIterator[PureChannel]:
    """A channel to such a server."""
    server = await asyncio.get_running_loop().create_server(lambda: Raw(answer, at_end), "127.0.0.1", 0)
    try:
        async with PureChannel(f"127.0.0.1:{server.sockets[0].getsockname()[1]}") as channel:
            yield channel
    finally:
        server.close()


def message(data: bytes) -> bytes:
    return b"\0" + len(data).to_bytes(4, "big") + data


def sends(
    data: bytes = b"",
    trailers: Sequence[tuple[str, str]] | None = WELL,
    begin: Sequence[tuple[str, str]] | None = BEGIN,
    reset: bool = False,
) -> Answer:
    """All of it in one segment."""

    def answer(h2: H2Connection, stream: int) -> None:
        if begin is not None:
            h2.send_headers(stream, begin)
        if data:
            h2.send_data(stream, data, end_stream=trailers is None and not reset)
        if trailers is not None:
            h2.send_headers(stream, trailers, end_stream=True)
        if reset:
            h2.reset_stream(stream)

    return answer


async def read_all(call: Any) -> list[bytes]:
    found = []
    while (arrived := await call.read()) is not EOF:
        found.append(arrived)
    return found


async def test_an_answer_a_status_and_a_reset_in_one_segment() -> None:
    async with answering(sends(message(b"one") + message(b"two"), reset=True), at_end=False) as channel:
        assert await read_all(channel.stream_stream("/a/b")(timeout=TIMEOUT_S)) == [b"one", b"two"]
    async with answering(sends(message(b"one"), reset=True), at_end=False) as channel:
        assert await channel.stream_unary("/a/b")(timeout=TIMEOUT_S) == b"one"


async def test_what_has_arrived_by_the_deadline_is_whole() -> None:
    async with answering(sends(message(b"one") + message(b"two"))) as channel:
        call = channel.unary_stream("/a/b")(b"", timeout=0.2)
        await asyncio.sleep(0.4)
        assert await read_all(call) == [b"one", b"two"]


async def test_a_refusal_and_a_reset_while_there_is_no_room_to_write() -> None:
    async with answering(sends(trailers=FULL, reset=True), at_end=False) as channel:
        call = channel.stream_unary("/a/b")(timeout=TIMEOUT_S)
        with pytest.raises(asyncio.InvalidStateError):
            await call.write(bytes(20 << 20))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
    assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
    trailing: Any = refused.value.trailing_metadata()
    assert dict(trailing) == {"objmeta-kind": "store_full"}


CASES = {
    "compressed": (sends(b"\1" + message(b"one")[1:]), "INTERNAL"),
    "cut short": (sends(message(b"one")[:-1]), "INTERNAL"),
    "too long": (sends(b"\0\xff\xff\xff\xff"), "INTERNAL"),
    "two messages": (sends(message(b"one") * 2), "INTERNAL"),
    "no message": (sends(), "INTERNAL"),
    "no status": (sends(message(b"one"), trailers=None), "INTERNAL"),
    "a status unknown": (sends(trailers=[("grpc-status", "99")]), "UNKNOWN"),
    "no base64": (sends(trailers=[*WELL, ("what-bin", "a")]), "INTERNAL"),
    "of HTTP": (sends(b"<html>", trailers=None, begin=[(":status", "404")]), "UNKNOWN"),
    "reset": (sends(trailers=None, reset=True), "UNAVAILABLE"),
    "going away": (lambda h2, _: h2.close_connection(), "UNAVAILABLE"),
}


@pytest.mark.parametrize("case", CASES)
async def test_answers_that_make_no_sense(case: str) -> None:
    answer, code = CASES[case]
    async with answering(answer) as channel:
        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await channel.unary_unary("/a/b")(b"", timeout=TIMEOUT_S)
            assert failed.value.code().name == code
            assert failed.value.details()


async def test_a_provisional_answer_is_none() -> None:
    def answer(h2: H2Connection, stream: int) -> None:
        h2.send_headers(stream, [(":status", "103")])
        sends(message(b"one"))(h2, stream)

    async with answering(answer) as channel:
        assert await channel.unary_unary("/a/b")(b"", timeout=TIMEOUT_S) == b"one"


async def test_who_waits_to_write_hears_that_the_connection_is_lost() -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.5)
        writer.transport.abort()

    server = await asyncio.start_server(deaf, "127.0.0.1", 0, limit=1)
    async with PureChannel(f"127.0.0.1:{server.sockets[0].getsockname()[1]}") as channel:
        calls = [channel.unary_unary("/a/b")(bytes(1 << 20)) for _ in range(3)]  # without a deadline
        async with asyncio.timeout(TIMEOUT_S):
            for call in calls:
                with pytest.raises(grpc.aio.AioRpcError) as failed:
                    await call
                assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    server.close()


@pytest.mark.parametrize("address", ["nobody.invalid:80", "[::1]:1", "localhost:1"])
async def test_where_there_is_nobody(address: str) -> None:
    async with PureChannel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError, match="no connection: ") as failed:
            await channel.unary_unary("/a/b")(b"", timeout=TIMEOUT_S)
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "Unknown error" not in str(failed.value.details())
