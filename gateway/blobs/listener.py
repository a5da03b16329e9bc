"""The node's end of plain connections for long chunks.

``channel`` says what goes over them, ``service`` what is done.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import msgspec

from gateway.blobs.channel import (
    CONTENT,
    GET,
    HEAD,
    HELLO,
    PUT,
    REFUSED,
    SAID,
    TOKEN_BYTES,
    Offer,
    receive,
    receive_into,
    tune,
)
from gateway.blobs.service import FRAME_TIMEOUT_S, AskFor, BlobService, Refusal, decoded, refusal, total
from objmeta import Chunk, errors

ASKED_BYTES_MAX: Final = 64 << 10
IDLE_S: Final = 60.0
"""Clients close what they do not use for 20 s; who does not is gone."""
STALL_S: Final = 5.0
"""A client that sends nothing for so long in the middle of a chunk, or takes nothing, is cut off: others want its
place.  (Over gRPC the deadline of the call, which the node knows there, sees to that.)"""
_BACKLOG: Final = 128
_SCRAP: Final = 256 << 10


class Listener:
    """Takes connections for a node's chunks, and offers them through its service."""

    def __init__(self, service: BlobService) -> None:
        self._service = service
        self._socket: socket.socket | None = None
        self._token = b""
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = sys.maxsize if limit == resource.RLIM_INFINITY else limit // 2
        self._serving: dict[asyncio.Task[None], _Connection] = {}

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._serving)

    async def start(self, host: str, port: int = 0) -> None:
        """Listen, on a free port if it is 0. Raises OSError."""
        loop = asyncio.get_running_loop()
        (family, kind, protocol, _, (address, *_)), *_ = await loop.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address, port))
            sock.listen(_BACKLOG)
            sock.setblocking(False)
        except BaseException:
            sock.close()
            raise
        self._socket = sock
        offer = Offer(sock.getsockname()[1], os.urandom(TOKEN_BYTES))
        self._token = offer.token
        self._listen()
        self._service.offer = offer

    async def stop(self, grace_s: float = 2.0) -> None:
        """Take no more requests, and let those under way finish for a while."""
        self._service.offer = None
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        for task, connection in self._serving.items():
            connection.ends = True
            if not connection.is_busy:
                task.cancel()
        if self._serving:
            await asyncio.wait(self._serving, timeout=grace_s)
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def _listen(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().add_reader(self._socket, self._accept, self._socket)

    def _accept(self, listening: socket.socket) -> None:
        """Take a connection. (asyncio's sock_accept forgets one that came when it was cancelled.)"""
        loop = asyncio.get_running_loop()
        try:
            sock, _ = listening.accept()
        except BlockingIOError:
            return
        except OSError:  # too many files are open, say: what is under way closes some
            loop.remove_reader(listening)
            loop.call_later(0.1, self._listen)
            return
        if len(self._serving) >= self._most:  # descriptors are left for files and for gRPC, which the client then uses
            sock.close()
            return
        connection = _Connection(sock, self._service, self._token)
        task = loop.create_task(connection.serve())
        self._serving[task] = connection
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._serving.pop(task).close()


class _Connection:
    """A client's connection."""

    def __init__(self, sock: socket.socket, service: BlobService, token: bytes) -> None:
        self._socket = sock
        self._service = service
        self._token = token
        self.is_busy = False
        self.ends = False

    async def serve(self) -> None:
        """Answer requests until the client closes, or breaks the rules."""
        # A client that breaks off, or goes away, is not told anything.
        with suppress(OSError, EOFError, errors.InvalidArgument):
            self._socket.setblocking(False)
            tune(self._socket)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(STALL_S * 1000))
            async with asyncio.timeout(FRAME_TIMEOUT_S):
                if await receive(self._socket, len(HELLO) + TOKEN_BYTES) != HELLO + self._token:
                    return
                await asyncio.get_running_loop().sock_sendall(self._socket, self._token)
            while not self.ends:
                async with asyncio.timeout(IDLE_S):
                    kind, length = HEAD.unpack(await receive(self._socket, HEAD.size))
                self.is_busy = True
                if length > ASKED_BYTES_MAX:
                    return
                async with asyncio.timeout(FRAME_TIMEOUT_S):
                    asked = decoded(await receive(self._socket, length), AskFor)
                if kind == PUT:
                    await self._put(asked)
                elif kind == GET and len(asked.chunks) == 1:
                    await self._get(asked.chunks[0])
                else:
                    return
                self.is_busy = False

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    async def _put(self, asked: AskFor) -> None:
        unread = total(asked)

        async def content(chunk: Chunk) -> Sequence[memoryview]:
            nonlocal unread
            view = memoryview(bytearray(chunk.length))
            await self._receive_into(view)
            unread -= chunk.length
            return (view,)

        try:
            refusals = await self._service.take_in(asked, content)
        except errors.ObjmetaError as error:
            await self._skip(unread)
            await self._answer(REFUSED, refusal(error))
        else:
            await self._answer(SAID, refusals)

    async def _get(self, chunk: Chunk) -> None:
        try:
            async with self._service.giving(chunk) as data:
                await self._send(CONTENT, data)
        except errors.ObjmetaError as error:
            await self._answer(REFUSED, refusal(error))

    async def _answer(self, kind: int, said: Refusal | list[Refusal | None]) -> None:
        await self._send(kind, msgspec.msgpack.encode(said))

    async def _send(self, kind: int, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(FRAME_TIMEOUT_S):
            await loop.sock_sendall(self._socket, HEAD.pack(kind, len(data)))
            await loop.sock_sendall(self._socket, data)

    async def _skip(self, length: int) -> None:
        scrap = memoryview(bytearray(min(length, _SCRAP)))
        while length:
            part = scrap[: min(length, len(scrap))]
            await self._receive_into(part)
            length -= len(part)

    async def _receive_into(self, view: memoryview) -> None:
        now = asyncio.get_running_loop().time
        async with asyncio.timeout(STALL_S) as limit:
            await receive_into(self._socket, view, lambda: limit.reschedule(now() + STALL_S))
