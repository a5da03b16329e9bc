"""Channels with gRPC's C core and without it: what is used of them does the same, against a real server."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest

from objmeta import channels, purechannel
from objmeta.grpcio import EOF, grpc
from objmeta.purechannel import PureChannel
from objmeta.rpc.options import CHANNEL, new_server
from tests.node.fakes import free_endpoints, silent_endpoint, until

SAID = (("said", "größer as 100 % 📦".encode().hex()), ("bytes-bin", bytes(range(256))))
WHY = "kein Platz: 100 % voll 📦"
LONG = 20 << 20
TIMEOUT_S = 10.0

HAS_ENDED = (asyncio.InvalidStateError, grpc.aio.InternalError, grpc.aio.AioRpcError)
"""What writing to a call raises that has ended."""

Open = Callable[[str], Any]


class Echo:
    """A server whose every method shows something."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.told: dict[str, Any] = {}
        self.address = ""
        self._server: Any = None

    async def start(self, port: int = 0) -> None:
        self._server = new_server()
        calls = {
            "Unary": grpc.unary_unary_rpc_method_handler(self._unary),
            "Waits": grpc.unary_unary_rpc_method_handler(self._waits),
            "Gathers": grpc.stream_unary_rpc_method_handler(self._gathers),
            "Spreads": grpc.unary_stream_rpc_method_handler(self._spreads),
            "Talks": grpc.stream_stream_rpc_method_handler(self._talks),
        }
        handler = grpc.method_handlers_generic_handler("test.Echo", cast(Any, calls))
        self._server.add_generic_rpc_handlers((handler,))
        self.address = f"127.0.0.1:{self._server.add_insecure_port(f'127.0.0.1:{port}')}"
        await self._server.start()

    async def crash(self) -> None:
        await self._server.stop(None)

    async def _unary(self, request: bytes, context: Any) -> bytes:
        self.told = dict(context.invocation_metadata())
        if request == b"refuse":
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, WHY, trailing_metadata=SAID)
        return request[::-1]

    async def _waits(self, request: bytes, context: Any) -> bytes:
        try:
            await asyncio.sleep(60)
        finally:
            self.ended.set()
        return b""

    async def _gathers(self, _: object, context: Any) -> bytes:
        found = b""
        while (message := await context.read()) is not EOF:
            if message == b"refuse":
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, WHY, trailing_metadata=SAID)
            found += message
        return found

    async def _spreads(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        for start in range(0, len(request), 1 << 20):
            yield request[start : start + (1 << 20)]
        if request.endswith(b"refuse"):
            await context.abort(grpc.StatusCode.DATA_LOSS, WHY, trailing_metadata=SAID)

    async def _talks(self, _: object, context: Any) -> None:
        await context.send_initial_metadata(SAID)
        while (message := await context.read()) is not EOF:
            if message == b"end":
                return
            if message == b"refuse":
                await context.abort(grpc.StatusCode.UNAVAILABLE, WHY)
            await context.write(message[::-1])


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    server = Echo()
    await server.start()
    yield server
    await server.crash()


@pytest.fixture(params=["grpc", "pure"])
def open_channel(request: pytest.FixtureRequest) -> Open:
    """Opens a channel of either kind."""
    return PureChannel if request.param == "pure" else lambda address: channels.open_channel(address, CHANNEL)


@pytest.fixture
async def channel(echo: Echo, open_channel: Open) -> AsyncIterator[Any]:
    async with open_channel(echo.address) as made:
        yield made


def path(method: str) -> str:
    return f"/test.Echo/{method}"


async def fails(work: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await work
    return caught.value


async def write_all(call: Any, messages: list[bytes]) -> None:
    for message in messages:
        await call.write(message)
        await asyncio.sleep(0)


@pytest.mark.parametrize("message", [b"", b"abc", os.urandom(100_000), bytes(LONG)], ids=["0", "3", "100k", "20M"])
async def test_a_message_for_a_message(channel: Any, message: bytes) -> None:
    assert await channel.unary_unary(path("Unary"))(message, timeout=TIMEOUT_S) == message[::-1]


async def test_many_calls_at_once(channel: Any) -> None:
    call = channel.unary_unary(path("Unary"))
    messages = [os.urandom(50_000) for _ in range(200)]
    assert await asyncio.gather(*map(call, messages)) == [message[::-1] for message in messages]


async def test_what_is_said_beside_a_message(channel: Any, echo: Echo) -> None:
    await channel.unary_unary(path("Unary"))(b"", timeout=TIMEOUT_S, metadata=SAID)
    assert SAID[0] in echo.told.items()
    assert SAID[1] in echo.told.items()


async def test_a_refusal_says_why(channel: Any) -> None:
    error = await fails(channel.unary_unary(path("Unary"))(b"refuse", timeout=TIMEOUT_S))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.details() == WHY
    assert dict(error.trailing_metadata()) == dict(SAID)


async def test_a_method_that_is_not_there(channel: Any) -> None:
    for call in (
        channel.unary_unary(path("Nothing"))(b"abc", timeout=TIMEOUT_S),
        channel.stream_stream("/a/b")().read(),
    ):
        assert (await fails(call)).code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("count", [0, 1, 40])
async def test_messages_for_a_message(channel: Any, count: int) -> None:
    call = channel.stream_unary(path("Gathers"))(timeout=TIMEOUT_S)
    messages = [os.urandom(300_000) for _ in range(count)]
    for message in messages:
        await call.write(message)
    await call.done_writing()
    assert await call == b"".join(messages)
    call.cancel()


async def test_messages_that_are_refused_before_all_are_sent(channel: Any) -> None:
    call = channel.stream_unary(path("Gathers"))(timeout=TIMEOUT_S)
    with pytest.raises(HAS_ENDED):
        await write_all(call, [b"refuse"] * 1000)
    error = await fails(call)
    if isinstance(channel, PureChannel) or error.code() is not grpc.StatusCode.INTERNAL:  # see the next test
        assert (error.code(), error.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, WHY)
        assert dict(error.trailing_metadata()) == dict(SAID)


async def test_who_is_refused_while_writing_does_not_wait_for_room(channel: Any) -> None:
    call = channel.stream_unary(path("Gathers"))(timeout=TIMEOUT_S)
    with pytest.raises(HAS_ENDED):
        await write_all(call, [b"refuse", bytes(LONG), bytes(LONG)])
    # the C core has forgotten why by then
    assert (await fails(call)).code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL)


async def test_a_message_for_messages(channel: Any) -> None:
    message = os.urandom(LONG)
    call = channel.unary_stream(path("Spreads"))(message, timeout=TIMEOUT_S)
    assert b"".join([part async for part in call]) == message
    call.cancel()


async def test_messages_that_end_with_a_refusal(channel: Any) -> None:
    found: list[bytes] = []

    async def read() -> None:
        async for part in channel.unary_stream(path("Spreads"))(b"refuse", timeout=TIMEOUT_S):
            found.append(part)

    error = await fails(read())
    assert (error.code(), error.details(), found) == (grpc.StatusCode.DATA_LOSS, WHY, [b"refuse"])
    assert dict(error.trailing_metadata()) == dict(SAID)


async def test_a_conversation(channel: Any) -> None:
    call = channel.stream_stream(path("Talks"))()
    told = dict(await call.initial_metadata())
    assert SAID[0] in told.items()
    assert SAID[1] in told.items()
    for length in (0, 1, 100_000, LONG):
        message = os.urandom(length)
        await call.write(message)
        assert await call.read() == message[::-1]
    await call.write(b"end")
    assert await call.read() is EOF
    assert await call.read() is EOF
    call.cancel()


async def test_a_conversation_that_breaks_off(channel: Any) -> None:
    call = channel.stream_stream(path("Talks"))()
    await call.write(b"refuse")
    error = await fails(call.read())
    assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, WHY)
    with pytest.raises(HAS_ENDED):
        await call.write(b"more")


async def test_nobody_listens(open_channel: Open) -> None:
    (address,) = free_endpoints(1)
    async with open_channel(address) as channel:
        error = await fails(channel.unary_unary(path("Unary"))(b"", timeout=TIMEOUT_S))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "refused" in error.details()
        assert (await fails(channel.stream_stream(path("Talks"))().read())).code() is grpc.StatusCode.UNAVAILABLE


async def test_a_server_that_vanishes_and_comes_back(echo: Echo, channel: Any) -> None:
    call, talk = channel.unary_unary(path("Waits"))(b""), channel.stream_stream(path("Talks"))()
    await talk.initial_metadata()
    await asyncio.sleep(0.05)
    await echo.crash()
    assert (await fails(call)).code() is grpc.StatusCode.UNAVAILABLE
    assert (await fails(talk.read())).code() is grpc.StatusCode.UNAVAILABLE
    assert (await fails(channel.unary_unary(path("Unary"))(b"", timeout=0.05))).code() in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    )
    await echo.start(int(echo.address.rpartition(":")[2]))
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            try:
                assert await channel.unary_unary(path("Unary"))(b"back") == b"kcab"
                break
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)


async def test_an_answer_that_is_late(echo: Echo, channel: Any) -> None:
    error = await fails(channel.unary_unary(path("Waits"))(b"", timeout=0.1))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(echo.ended.wait(), TIMEOUT_S)
    assert await channel.unary_unary(path("Unary"))(b"abc") == b"cba"


async def test_nobody_says_anything(open_channel: Open) -> None:
    with silent_endpoint() as address:
        async with open_channel(address) as channel:
            for _ in range(3):
                error = await fails(channel.unary_unary(path("Unary"))(b"", timeout=0.1))
                assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_node_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purechannel, "KEEPALIVE_S", 0.1)
    with silent_endpoint() as address:
        async with PureChannel(address) as channel:
            for _ in range(2):
                error = await fails(channel.unary_unary(path("Unary"))(b""))
                assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "the node says nothing")


async def test_a_node_that_is_only_slow_is_waited_for(
    echo: Echo, channel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purechannel, "KEEPALIVE_S", 0.1)
    error = await fails(channel.unary_unary(path("Waits"))(b"", timeout=1))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert await channel.unary_unary(path("Unary"))(b"abc") == b"cba"


async def test_a_call_that_is_late_disturbs_no_other(echo: Echo, channel: Any) -> None:
    talk = channel.stream_stream(path("Talks"))()
    other = channel.unary_unary(path("Waits"))(b"", timeout=1)
    await fails(channel.unary_unary(path("Waits"))(b"", timeout=0.1))
    await talk.write(b"abc")
    assert await talk.read() == b"cba"
    assert (await fails(other)).code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_who_is_cancelled_when_time_is_up_is_cancelled(channel: Any) -> None:
    loop = asyncio.get_running_loop()

    async def stubborn() -> None:
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await channel.unary_unary(path("Waits"))(b"", timeout=0.05)

    for late_s in (0.0, 0.0005, 0.001, 0.002):
        task = loop.create_task(stubborn())
        loop.call_later(0.05 + late_s, task.cancel)
        done, _ = await asyncio.wait((task,), timeout=TIMEOUT_S)
        assert done
        assert task.cancelled()


async def test_who_gives_up_ends_the_call(echo: Echo, channel: Any) -> None:
    asking = asyncio.ensure_future(channel.unary_unary(path("Waits"))(b""))
    await asyncio.sleep(0.1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await asyncio.wait_for(echo.ended.wait(), TIMEOUT_S)
    assert await channel.unary_unary(path("Unary"))(b"abc") == b"cba"


async def test_closing_ends_what_is_under_way(echo: Echo, open_channel: Open) -> None:
    channel = open_channel(echo.address)
    asking = asyncio.ensure_future(channel.unary_unary(path("Waits"))(b""))
    talk = channel.stream_stream(path("Talks"))()
    await talk.initial_metadata()
    reading = asyncio.ensure_future(talk.read())
    await asyncio.sleep(0.1)
    await channel.close()
    for work in (asking, reading):
        await asyncio.wait((work,), timeout=TIMEOUT_S)
        assert work.cancelled() or work.exception() is not None or work.result() is EOF


async def test_an_error_leaves_no_cancellation_behind(echo: Echo, channel: Any) -> None:
    # whoever asked may be within a timeout of its own, which would take it for somebody's wish to end
    talk = channel.stream_stream(path("Talks"))()
    await talk.initial_metadata()
    async with asyncio.timeout(TIMEOUT_S):
        stopping = asyncio.ensure_future(echo.crash())
        await fails(talk.read())
        await stopping
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await until(lambda: True)
