"""gRPC without its C core, for forked children: there, that hangs or crashes.

:class:`PureChannel` is what is used here of ``grpc.aio.Channel``, over h2, which is Python from end to end and keeps
nothing outside of its event loop (decision 22 says why not grpclib).  Errors are ``grpc.aio.AioRpcError`` as well, a
class of Python like the codes.
What is on the wire is gRPC over HTTP/2 (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md).

A connection takes what arrives and hands it to the calls; a call sends by itself, and waits for room to do so.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import os
import socket
import urllib.parse
from collections.abc import AsyncIterator, Callable, Generator, Iterable
from contextlib import suppress
from typing import Any, Final, Self, cast

import h2.events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import H2Error
from h2.settings import SettingCodes

from objmeta.grpcio import EOF, grpc

MESSAGE_BYTES_MAX: Final = 64 << 20
KEEPALIVE_S: Final = 2.0
"""A machine that vanished closes no connection. So long a node may say nothing, then it is asked whether it is there;
if nothing came in as long again, the connection is given up."""
_WINDOW_BYTES: Final = 4 << 20
"""So much may be on its way from the node: a message of chunks, mostly."""
_HEAD_BYTES: Final = 5
"""Before each message: whether it is compressed, and its length."""
_CODES: Final = {str(code.value[0]): code for code in grpc.StatusCode}
_NOTHING: Final = grpc.aio.Metadata()

_Metadata = Iterable[tuple[str, str | bytes]]


class PureChannel:
    """Calls to ``host:port``; belongs to one event loop. Nothing is connected before the first call."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.address = address
        self._host, self._port = host.strip("[]"), int(port)
        self._loop = asyncio.get_running_loop()
        self._connecting = asyncio.Lock()
        self._connection: Connection | None = None
        self._lives: set[asyncio.Task[None]] = set()

    def unary_unary(self, path: str) -> Callable[..., PureCall]:
        """A message for a message."""
        return functools.partial(PureCall, self, path)

    unary_stream = stream_unary = stream_stream = unary_unary

    def start(self, call: PureCall) -> asyncio.Task[None]:
        """Begin the life of a call, which ends with the channel at the latest."""
        task = self._loop.create_task(call.live())
        self._lives.add(task)
        task.add_done_callback(self._lives.discard)
        return task

    async def connected(self) -> Connection:
        """The connection; a new one where it is gone. Raises OSError."""
        async with self._connecting:
            if self._connection is None or self._connection.is_lost:
                _, self._connection = await self._loop.create_connection(Connection, self._host, self._port)
            return self._connection

    async def close(self) -> None:
        """End all calls and the connection."""
        lives = tuple(self._lives)
        for life in lives:
            life.cancel()
        await asyncio.gather(*lives, return_exceptions=True)
        if self._connection is not None:
            self._connection.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class PureCall:
    """A call, begun at once: awaited for its only answer, or read from to the end.

    ``request`` is its only message, or None: they are written.  ``timeout`` is in seconds, for all of it.  What arrives
    waits in memory until it is read, however much it is: whoever asks for a chunk wants all of it.
    """

    def __init__(
        self,
        channel: PureChannel,
        path: str,
        request: bytes | None = None,
        *,
        timeout: float | None = None,
        metadata: _Metadata = (),
    ) -> None:
        self._channel = channel
        self._path = path
        self._request = request
        self._timeout_s = timeout
        self._metadata = metadata
        self._connection: Connection | None = None
        self._stream = 0
        self._may_write = asyncio.Event()
        self._is_told = asyncio.Event()
        self._has_ended = asyncio.Event()
        self._told: dict[str, str | bytes] = {}
        self._buffer = bytearray()
        self._arrived: asyncio.Queue[Any] = asyncio.Queue()
        self._status: tuple[grpc.StatusCode, str, grpc.aio.Metadata] | None = None
        self._life = channel.start(self)

    # -- For who made it ----------------------------------------------------------------------------------------------

    async def initial_metadata(self) -> dict[str, str | bytes]:
        """What the node says first. Raises AioRpcError."""
        await self._is_told.wait()
        if not self._told:
            self._raise()
        return self._told

    async def read(self) -> Any:
        """The next message, or EOF. Raises AioRpcError."""
        message = await self._arrived.get()
        if message is EOF:
            self._arrived.put_nowait(EOF)
            self._raise()
        return message

    async def write(self, message: bytes) -> None:
        """Send a message; one at a time. Raises InvalidStateError if the call has ended."""
        await self._may_write.wait()
        try:
            await self._send(message)
        except (H2Error, asyncio.InvalidStateError):
            raise asyncio.InvalidStateError("the call has ended") from None
        except asyncio.CancelledError:
            self.cancel()  # a part of a message makes no sense to the node
            raise

    async def done_writing(self) -> None:
        """Send no more. Raises InvalidStateError if the call has ended."""
        await self._may_write.wait()
        if self._connection is None or self._has_ended.is_set():
            raise asyncio.InvalidStateError("the call has ended")
        self._connection.end(self._stream)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (message := await self.read()) is not EOF:
            yield message

    def __await__(self) -> Generator[Any, None, bytes]:
        return self._only().__await__()

    async def _only(self) -> bytes:
        try:
            answer = await self.read()
            if answer is EOF or await self.read() is not EOF:
                raise _error(grpc.StatusCode.INTERNAL, "not one message, as announced")
        except asyncio.CancelledError:
            self.cancel()
            raise
        return cast(bytes, answer)

    def cancel(self) -> None:
        """End it."""
        self._life.cancel()

    # -- Its life -----------------------------------------------------------------------------------------------------

    async def live(self) -> None:
        """From the connection to the status."""
        try:
            async with asyncio.timeout(self._timeout_s):
                connection = self._connection = await self._channel.connected()
                self._stream = connection.begin(self, self._headers())
                if self._request is not None:
                    await self._send(self._request)
                    connection.end(self._stream)
                self._may_write.set()
                await self._has_ended.wait()
        except TimeoutError as late:
            if late.errno is None:
                self._finish(grpc.StatusCode.DEADLINE_EXCEEDED, "no answer in time")
            else:
                self._finish(grpc.StatusCode.UNAVAILABLE, _no_connection(late))
        except OSError as problem:
            self._finish(grpc.StatusCode.UNAVAILABLE, _no_connection(problem))
        except H2Error as problem:
            self._finish(grpc.StatusCode.UNAVAILABLE, f"the connection broke: {problem}")
        except asyncio.InvalidStateError:  # it ended before all was sent: with a status
            pass
        finally:
            self._finish(grpc.StatusCode.CANCELLED, "the call was cancelled")
            if self._connection is not None and self._stream:
                self._connection.leave(self._stream)

    def _headers(self) -> list[tuple[str, str]]:
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", self._path),
            (":authority", self._channel.address),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", "objmeta"),
        ]
        if self._timeout_s is not None:
            headers.append(("grpc-timeout", f"{min(max(1, int(self._timeout_s * 1000)), 99_999_999)}m"))
        for name, value in self._metadata:
            text = value if isinstance(value, str) else base64.b64encode(value).rstrip(b"=").decode()
            headers.append((name, text))
        return headers

    async def _send(self, message: bytes) -> None:
        """Raises InvalidStateError if the call has ended, H2Error."""
        rest = memoryview(bytes(1) + len(message).to_bytes(4, "big") + message)
        while rest:
            if self._connection is None or self._has_ended.is_set():
                raise asyncio.InvalidStateError("the call has ended")
            room = self._connection.room(self._stream)
            if room:
                self._connection.send(self._stream, bytes(rest[:room]))
                rest = rest[room:]
            else:
                await self._connection.moved()

    def _finish(self, code: grpc.StatusCode, details: str = "", trailing: grpc.aio.Metadata = _NOTHING) -> None:
        """It ends now, with this status, unless it has one already."""
        if self._status is None:
            self._status = (code, details, trailing)
            for event in (self._may_write, self._is_told, self._has_ended):
                event.set()
            if self._connection is not None:
                self._connection.wake()
            self._arrived.put_nowait(EOF)

    def _raise(self) -> None:
        if self._status is not None and self._status[0] is not grpc.StatusCode.OK:
            raise _error(*self._status)

    # -- What the connection brings -----------------------------------------------------------------------------------

    def on_headers(self, headers: dict[str, str]) -> None:
        """The node begins to answer, or has nothing but a status."""
        if headers.get(":status") != "200" or not headers.get("content-type", "").startswith("application/grpc"):
            self._finish(
                grpc.StatusCode.UNKNOWN, f"this is no answer of gRPC (status {headers.get(':status')} of HTTP)"
            )
        elif "grpc-status" in headers:
            self.on_trailers(headers)
        else:
            self._told = _metadata(headers)
            self._is_told.set()

    def on_data(self, data: bytes) -> None:
        """A part of a message, or more than one."""
        buffer = self._buffer
        buffer += data
        while len(buffer) >= _HEAD_BYTES:
            length = int.from_bytes(buffer[1:_HEAD_BYTES], "big")
            if buffer[0] or length > MESSAGE_BYTES_MAX:
                self._finish(grpc.StatusCode.INTERNAL, "a message is compressed, or too long")
                return
            if len(buffer) < _HEAD_BYTES + length:
                return
            if self._status is None:
                self._arrived.put_nowait(bytes(memoryview(buffer)[_HEAD_BYTES : _HEAD_BYTES + length]))
            del buffer[: _HEAD_BYTES + length]

    def on_trailers(self, trailers: dict[str, str]) -> None:
        """The status."""
        code = _CODES.get(trailers.get("grpc-status", ""), grpc.StatusCode.UNKNOWN)
        if code is grpc.StatusCode.OK and self._buffer:
            self._finish(grpc.StatusCode.INTERNAL, "a message was cut short")
            return
        details = urllib.parse.unquote(trailers.get("grpc-message", ""), errors="replace") or code.name
        self._finish(code, details, grpc.aio.Metadata(*_metadata(trailers).items()))

    def on_end(self) -> None:
        """The node sends no more."""
        self._finish(grpc.StatusCode.INTERNAL, "the answer ended without a status")

    def on_lost(self, why: str) -> None:
        """The node broke the call off, or the connection is gone."""
        self._finish(grpc.StatusCode.UNAVAILABLE, why)

    def on_nonsense(self, problem: Exception) -> None:
        """What came cannot be read."""
        self._finish(grpc.StatusCode.INTERNAL, f"the answer cannot be read: {problem}")


class Connection(asyncio.Protocol):
    """A connection, and the calls that use it."""

    def __init__(self) -> None:
        config = H2Configuration(client_side=True, header_encoding=None)
        self._h2 = H2Connection(config)
        self._calls: dict[int, PureCall] = {}
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._moved = asyncio.Event()
        self._is_paused = False
        self._is_asked = False
        self._ticking: asyncio.TimerHandle | None = None
        self.is_lost = False

    # -- For calls ----------------------------------------------------------------------------------------------------

    def begin(self, call: PureCall, headers: list[tuple[str, str]]) -> int:
        """Begin a stream; its number. Raises H2Error."""
        stream = self._h2.get_next_available_stream_id()
        self._h2.send_headers(stream, headers)
        self._calls[stream] = call
        self._flush()
        return stream

    def room(self, stream: int) -> int:
        """How many bytes may be sent now. Raises H2Error."""
        if self._is_paused:
            return 0
        return max(0, min(self._h2.local_flow_control_window(stream), self._h2.max_outbound_frame_size))

    def send(self, stream: int, data: bytes) -> None:
        """Send a part of a message, for which there is room. Raises H2Error."""
        self._h2.send_data(stream, data)
        self._flush()

    def end(self, stream: int) -> None:
        """Send no more in a stream that may have ended."""
        with suppress(H2Error):
            self._h2.end_stream(stream)
            self._flush()

    def leave(self, stream: int) -> None:
        """Forget a call, and tell the node if it has not ended there."""
        if self._calls.pop(stream, None) is not None and not self.is_lost:
            with suppress(H2Error):
                self._h2.reset_stream(stream, ErrorCodes.CANCEL)
                self._flush()

    async def moved(self) -> None:
        """Wait until there may be more room, or a call has ended."""
        self._moved.clear()
        await self._moved.wait()

    def wake(self) -> None:
        """Have everybody look who waits."""
        self._moved.set()

    def abort(self) -> None:
        """Break it off."""
        if self._transport is not None:
            self._transport.abort()

    # -- For asyncio --------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._h2.initiate_connection()
        self._h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: _WINDOW_BYTES})
        self._h2.increment_flow_control_window(_WINDOW_BYTES)
        self._flush()
        self._ticking = self._loop.call_later(KEEPALIVE_S, self._tick)

    def data_received(self, data: bytes) -> None:
        self._is_asked = False
        try:
            events = self._h2.receive_data(data)
        except H2Error as problem:
            self._lose(f"the connection broke: {problem}")
            return
        for event in events:
            self._take(event)
        self._flush()
        self.wake()

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        self.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose("the connection was lost")

    # -- The rest -----------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data and self._transport is not None and not self.is_lost:
            self._transport.write(data)

    def _tick(self) -> None:
        if self._is_asked:
            self._lose("the node says nothing")
            return
        if self._calls:
            self._is_asked = True
            self._h2.ping(b"objmeta?")
            self._flush()
        self._ticking = self._loop.call_later(KEEPALIVE_S, self._tick)

    def _lose(self, why: str) -> None:
        self.is_lost = True
        if self._ticking is not None:
            self._ticking.cancel()
        self.abort()
        calls = list(self._calls.values())
        self._calls.clear()
        for call in calls:
            call.on_lost(why)

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ConnectionTerminated):
            self._lose("the node closes the connection")  # h2 takes nothing more from it, not even what is under way
            return
        stream = getattr(event, "stream_id", None)
        if isinstance(event, h2.events.DataReceived):
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        call = self._calls.get(stream) if stream else None
        if call is None:
            return
        try:
            match event:
                case h2.events.ResponseReceived(headers=headers):
                    call.on_headers(_decoded(headers))
                case h2.events.DataReceived(data=data):
                    call.on_data(data)
                case h2.events.TrailersReceived(headers=headers):
                    call.on_trailers(_decoded(headers))
                case h2.events.StreamEnded():
                    call.on_end()
                case h2.events.StreamReset(error_code=code):
                    self._calls.pop(event.stream_id, None)
                    call.on_lost(f"the node broke the call off (error {code} of HTTP/2)")
        except ValueError as problem:
            call.on_nonsense(problem)


def _error(code: grpc.StatusCode, details: str, trailing: grpc.aio.Metadata = _NOTHING) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, _NOTHING, trailing, details, None)


def _decoded(headers: Any) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}


def _metadata(headers: dict[str, str]) -> dict[str, str | bytes]:
    """What is not gRPC's own. Raises ValueError."""
    found: dict[str, str | bytes] = {}
    for name, value in headers.items():
        if name.endswith("-bin"):
            found[name] = base64.b64decode(value + "=" * (-len(value) % 4))
        elif not name.startswith((":", "grpc-")) and name != "content-type":
            found[name] = value
    return found


def _no_connection(problem: OSError) -> str:
    if problem.errno is None or isinstance(problem, socket.gaierror):
        return f"no connection: {problem.strerror or problem}"
    return f"no connection: {os.strerror(problem.errno)}"
