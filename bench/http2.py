"""Unary gRPC calls on one HTTP/2 connection, as cheaply as Python can make them.

A load generator that needs as much processor as the server measures itself.  Where client and servers share two cores,
``grpc.aio`` holds etcd back by a third; this client, which knows only what the benchmark needs, does not.
What it leaves out: header compression (it sends literals and does not read the answer's), flow control (requests in
flight stay far below the initial window), and error details (a call that ends without a message is an error).

RFC 9113 (frames), RFC 7541 (literal header fields), and gRPC's "PROTOCOL-HTTP2".
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Final

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 0x1, 0x1, 0x4
_GREATEST_WINDOW: Final = 2**31 - 1 - 65535


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _literal(name: bytes, value: bytes) -> bytes:
    return b"\x00" + bytes((len(name),)) + name + bytes((len(value),)) + value


class Connection(asyncio.Protocol):
    """Calls one method; ``call(message, done)`` runs ``done(ok)`` when the answer is complete."""

    def __init__(self, method: str) -> None:
        fields = {
            b":method": b"POST",
            b":scheme": b"http",
            b":path": method.encode(),
            b":authority": b"localhost",
            b"content-type": b"application/grpc",
            b"te": b"trailers",
        }
        self._headers = b"".join(_literal(name, value) for name, value in fields.items())
        self._transport: asyncio.Transport | None = None
        self._stream = -1
        self._calls: dict[int, Callable[[bool], None]] = {}
        self._answered: set[int] = set()
        self._unread = b""
        self._out: list[bytes] = []
        self._reading = False
        self.failure = ""

    def call(self, message: bytes, done: Callable[[bool], None]) -> None:
        """Send a request; those made while answers are being read leave together."""
        self._stream += 2
        self._calls[self._stream] = done
        body = b"\x00" + struct.pack(">I", len(message)) + message
        self._out.append(
            _frame(_HEADERS, _END_HEADERS, self._stream, self._headers) + _frame(_DATA, _END_STREAM, self._stream, body)
        )
        if not self._reading:
            self._flush()

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        window = _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _GREATEST_WINDOW))
        transport.write(_PREFACE + _frame(_SETTINGS, 0, 0, b"") + window)

    def connection_lost(self, exc: Exception | None) -> None:
        self.failure = self.failure or f"connection lost: {exc or 'closed'}"
        for done in list(self._calls.values()):
            done(False)
        self._calls.clear()

    def data_received(self, data: bytes) -> None:
        unread = self._unread + data
        at, end = 0, len(unread)
        self._reading = True
        while end - at >= 9:
            length = int.from_bytes(unread[at : at + 3])
            if end - at - 9 < length:
                break
            kind, flags = unread[at + 3], unread[at + 4]
            stream = int.from_bytes(unread[at + 5 : at + 9])
            if kind == _DATA:
                self._answered.add(stream)
            elif kind in (_SETTINGS, _PING) and not flags & _ACK:
                payload = unread[at + 9 : at + 9 + length] if kind == _PING else b""
                self._out.append(_frame(kind, _ACK, 0, payload))
            elif kind == _GOAWAY:
                self.failure = f"the server went away: {unread[at + 17 : at + 9 + length]!r}"
            if kind == _RESET or (kind in (_DATA, _HEADERS) and flags & _END_STREAM):
                self._finish(stream)
            at += 9 + length
        self._unread = unread[at:]
        self._reading = False
        self._flush()

    def _finish(self, stream: int) -> None:
        answered = stream in self._answered
        self._answered.discard(stream)
        self._calls.pop(stream)(answered)

    def _flush(self) -> None:
        if self._out and self._transport is not None:
            self._transport.write(b"".join(self._out))
            self._out.clear()


async def connect(endpoint: str, method: str) -> Connection:
    """A connection to ``host:port``."""
    host, _, port = endpoint.rpartition(":")
    _, connection = await asyncio.get_running_loop().create_connection(lambda: Connection(method), host, int(port))
    return connection
