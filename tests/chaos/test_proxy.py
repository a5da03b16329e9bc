"""The network of the chaos runs: who is who, and links that are cut in one direction."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from tests.chaos.proxy import Network

US, THEM = "us", "them"
SHORT_S = 0.1
ENDS = (ConnectionError, asyncio.IncompleteReadError)


@dataclass
class Line:
    """A connection through the proxy, and what the other side has received and sends."""

    network: Network
    address: tuple[str, int]
    received: asyncio.Queue[bytes]
    answer: asyncio.StreamWriter
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


@pytest.fixture
async def line() -> AsyncIterator[Line]:
    accepted: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
    received: asyncio.Queue[bytes] = asyncio.Queue()
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        await accepted.put(writer)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(100):
                await received.put(data)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    network = Network(lambda: {1: "somebody", os.getpid(): US})
    host, _, port = (await network.serve(THEM, *server.sockets[0].getsockname())).rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    yield Line(network, (host, int(port)), received, await accepted.get(), reader, writer)
    writer.close()
    await network.close()
    server.close()
    await server.wait_closed()
    await asyncio.gather(*serving)


async def test_bytes_pass_both_ways(line: Line) -> None:
    line.writer.write(b"there")
    assert await line.received.get() == b"there"
    line.answer.write(b"back")
    assert await line.reader.read(100) == b"back"


async def test_a_silent_link_holds_back_one_direction_until_it_is_mended(line: Line) -> None:
    line.network.silence(US, THEM)
    line.writer.write(b"there")
    line.answer.write(b"back")
    assert await line.reader.read(100) == b"back"
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(line.received.get(), SHORT_S)
    line.network.mend(US, THEM)
    assert await line.received.get() == b"there"


async def test_the_other_direction(line: Line) -> None:
    line.network.silence(THEM, US)
    line.writer.write(b"there")
    line.answer.write(b"back")
    assert await line.received.get() == b"there"
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(line.reader.read(100), SHORT_S)
    line.network.mend_all()
    assert await line.reader.read(100) == b"back"


async def test_a_link_of_others_is_not_ours(line: Line) -> None:
    line.network.silence("somebody", THEM)
    line.network.sever("somebody", THEM)
    line.writer.write(b"there")
    assert await line.received.get() == b"there"


async def test_severed_connections_break_and_new_ones_are_refused_until_mended(line: Line) -> None:
    line.network.sever(US, THEM)
    with pytest.raises(ENDS):
        await line.reader.readexactly(1)
    await assert_refused(line)
    line.network.mend_all()
    reader, writer = await asyncio.open_connection(*line.address)
    writer.write(b"again")
    assert await line.received.get() == b"again"
    writer.close()
    assert not reader.at_eof()


async def assert_refused(line: Line) -> None:
    reader, writer = await asyncio.open_connection(*line.address)
    with pytest.raises(ENDS):
        await reader.readexactly(1)
    writer.close()
