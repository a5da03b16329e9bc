"""gRPC without its C core, for forked children: there, that hangs or crashes.

:class:`PureChannel` is what is used here of ``grpc.aio.Channel``, over grpclib, which is Python from end to end and
keeps nothing outside of its event loop.  Errors are ``grpc.aio.AioRpcError`` as well, a class of Python like the codes.

grpclib wakes whoever waits in a call that ended by cancelling the task, which would count as a cancellation from
outside in everything around it.  So each step of a call has a task of its own.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable
from typing import Any, Final, Self, TypeVar, cast

import grpclib.client
from grpclib.config import Configuration
from grpclib.const import Cardinality, Status
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError
from grpclib.metadata import decode_metadata
from h2.exceptions import H2Error

from objmeta.grpcio import grpc

EOF: Final = cast(Any, grpc.aio).EOF
"""What a stream reads at its end."""

_WINDOW_BYTES: Final = 4 << 20
"""So much may be on its way in a call and in a connection: a message of chunks, mostly."""
_BROKEN: Final = (GRPCError, ProtocolError, StreamTerminatedError, H2Error, OSError)
"""What a call may end with; a deadline is a TimeoutError, which is an OSError."""
_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}

_T = TypeVar("_T")
_Metadata = Iterable[tuple[str, str | bytes]]
_Stream = grpclib.client.Stream[bytes, bytes]


class PureChannel:
    """Calls to ``host:port``; belongs to one event loop. Nothing is connected before the first call."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        windows = Configuration(http2_connection_window_size=_WINDOW_BYTES, http2_stream_window_size=_WINDOW_BYTES)
        self._channel = _Channel(host.strip("[]"), int(port), codec=_Bytes(), config=windows)
        self._loop = asyncio.get_running_loop()
        self._heard_at = 0.0
        self._tasks: set[asyncio.Task[Any]] = set()

    def unary_unary(self, path: str) -> Callable[..., asyncio.Task[bytes]]:
        """A message for a message; what it returns is awaited, or cancelled."""

        def ask(request: bytes, *, timeout: float | None = None, metadata: _Metadata = ()) -> asyncio.Task[bytes]:
            return self.start(self._answer(self._request(path, Cardinality.UNARY_UNARY, timeout, metadata), request))

        return ask

    def unary_stream(self, path: str) -> Callable[..., PureCall]:
        """A message for messages."""
        return functools.partial(self._begin, path, Cardinality.UNARY_STREAM)

    def stream_unary(self, path: str) -> Callable[..., PureCall]:
        """Messages for a message."""
        return functools.partial(self._begin, path, Cardinality.STREAM_UNARY)

    def stream_stream(self, path: str) -> Callable[..., PureCall]:
        """Messages for messages."""
        return functools.partial(self._begin, path, Cardinality.STREAM_STREAM)

    def _begin(
        self,
        path: str,
        cardinality: Cardinality,
        request: bytes | None = None,
        *,
        timeout: float | None = None,
        metadata: _Metadata = (),
    ) -> PureCall:
        return PureCall(self, self._request(path, cardinality, timeout, metadata), request)

    def _request(self, path: str, cardinality: Cardinality, timeout: float | None, metadata: _Metadata) -> _Stream:
        return self._channel.request(path, cardinality, bytes, bytes, timeout=timeout, metadata=tuple(metadata))

    async def _answer(self, stream: _Stream, request: bytes) -> bytes:
        begun = self._loop.time()
        try:
            async with stream:
                await stream.send_message(request, end=True)
                answer = await stream.recv_message()
                self.heard()
                await stream.recv_trailing_metadata()
        except _BROKEN as broken:
            raise self.translated(broken, stream, begun) from None
        return _one(answer)

    def start(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Begin a step of a call, which ends with the channel at the latest."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def heard(self) -> None:
        """Note that the node sent something."""
        self._heard_at = self._loop.time()

    def translated(self, broken: Exception, stream: _Stream, begun: float) -> grpc.aio.AioRpcError:
        """What gRPC would raise where grpclib raised that, of a call that began at such a time of the loop's clock."""
        code, details, trailing = grpc.StatusCode.UNAVAILABLE, str(broken), _NOTHING
        if isinstance(broken, GRPCError):
            code = _CODES.get(broken.status.value, grpc.StatusCode.UNKNOWN)
            details = broken.message or code.name
            trailing = grpc.aio.Metadata(*decode_metadata(_trailers(stream)).items())
            self.heard()
        elif isinstance(broken, TimeoutError) and broken.errno is None:
            code, details = grpc.StatusCode.DEADLINE_EXCEEDED, "no answer in time"
            if self._heard_at < begun:  # a machine that vanished closes no connection: the next call makes a new one
                self._channel.close()
        elif isinstance(broken, OSError):
            details = f"no connection: {os.strerror(broken.errno) if broken.errno else broken}"
        return grpc.aio.AioRpcError(code, _NOTHING, trailing, details, None)

    async def close(self) -> None:
        """End all calls and the connection."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class PureCall:
    """A call with a stream of messages in it, begun at once. ``request`` is its only one, or None: they are written."""

    def __init__(self, channel: PureChannel, stream: _Stream, request: bytes | None) -> None:
        self._channel = channel
        self._stream = stream
        self._is_begun = asyncio.Event()
        self._is_told = asyncio.Event()
        self._takes_more = request is None
        self._arrived: asyncio.Queue[Any] = asyncio.Queue()
        self._failure: grpc.aio.AioRpcError | None = None
        self._sending: asyncio.Task[None] | None = None
        self._life = channel.start(self._live(request))

    async def _live(self, request: bytes | None) -> None:
        begun = asyncio.get_running_loop().time()
        try:
            async with self._stream as stream:
                await stream.send_request()
                if request is not None:
                    await stream.send_message(request, end=True)
                self._is_begun.set()
                await stream.recv_initial_metadata()
                self._channel.heard()
                self._is_told.set()
                async for message in stream:
                    self._channel.heard()
                    self._arrived.put_nowait(message)
                if self._takes_more:  # the node ended it before we did
                    self._takes_more = False
                    await stream.end()
        except _BROKEN as broken:
            if not _ended_well(self._stream):
                self._failure = self._channel.translated(broken, self._stream, begun)
        finally:
            self._takes_more = False
            if self._sending is not None:
                self._sending.cancel()
            self._is_begun.set()
            self._is_told.set()
            self._arrived.put_nowait(EOF)

    async def initial_metadata(self) -> Any:
        """What the node says first. Raises AioRpcError."""
        await self._is_told.wait()
        if self._stream.initial_metadata is None:
            raise self._failure or asyncio.InvalidStateError("the call was cancelled")
        return self._stream.initial_metadata

    async def read(self) -> Any:
        """The next message, or EOF. Raises AioRpcError."""
        message = await self._arrived.get()
        if message is EOF:
            self._arrived.put_nowait(EOF)
            if self._failure is not None:
                raise self._failure
        return message

    async def write(self, message: bytes) -> None:
        """Send a message; one at a time. Raises InvalidStateError if the call has ended."""
        await self._send(self._stream.send_message, message)

    async def done_writing(self) -> None:
        """Send no more. Raises InvalidStateError if the call has ended."""
        await self._send(self._stream.end)
        self._takes_more = False

    async def _send(self, send: Callable[..., Coroutine[Any, Any, None]], *message: bytes) -> None:
        await self._is_begun.wait()
        if not self._takes_more:
            raise asyncio.InvalidStateError("the call has ended")
        self._sending = task = self._channel.start(send(*message))
        try:
            await asyncio.wait((task,))
        finally:
            task.cancel()
            self._sending = None
        if task.cancelled() or task.exception() is not None:
            raise asyncio.InvalidStateError("the call has ended")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (message := await self.read()) is not EOF:
            yield message

    def __await__(self) -> Generator[Any, None, bytes]:
        return self._only().__await__()

    async def _only(self) -> bytes:
        answer = await self.read()
        if answer is not EOF and await self.read() is not EOF:
            answer = EOF
        return _one(None if answer is EOF else answer)

    def cancel(self) -> None:
        """End it."""
        self._life.cancel()


def _trailers(stream: _Stream) -> list[tuple[str, str]]:
    """What came with the status; a server that did not wait for our end resets the stream right behind it."""
    sent = getattr(stream, "_stream", None)  # there is none before it is sent
    return [] if sent is None else sent.trailers or sent.headers or []


def _ended_well(stream: _Stream) -> bool:
    return ("grpc-status", str(Status.OK.value)) in _trailers(stream)


def _one(answer: bytes | None) -> bytes:
    if answer is None:
        raise grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, _NOTHING, _NOTHING, "not one message, as announced", None)
    return answer


class _Bytes(CodecBase):
    """Messages are bytes already."""

    __content_subtype__ = "proto"  # what every server of gRPC takes

    def encode(self, message: Any, message_type: Any) -> bytes:
        return cast(bytes, message)

    def decode(self, data: bytes, message_type: Any) -> Any:
        return data


class _Channel(grpclib.client.Channel):
    def __del__(self) -> None:
        """Leave it: a child of this process may collect it, and would take it out of the epoll that both share."""


_NOTHING: Final = grpc.aio.Metadata()
