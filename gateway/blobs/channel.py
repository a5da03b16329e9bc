"""Long chunks over a plain connection: what it looks like on the wire, and the client's end.

gRPC copies each byte several times at both ends; a plain connection is read straight into the memory that is hashed
and written (decision 18).  Where it leads is asked over gRPC: the method ``Channel`` answers ``[port, token]``, the
port being one of the same host.  Where there is none, or it cannot be reached, chunks go over gRPC.

* A client begins with ``HELLO`` and the token; the node answers with the token alone.  A port may have got another
  owner since it was asked for: a node that does not know the token closes the connection, so that nobody takes one
  node's copy for another's, and what only echoes (a port may even get connected to itself) does not answer that.
* A request is a kind (1 byte), the length of what follows (4 bytes, big-endian), and ``[generation, [[digest,
  length], ...]]`` in MessagePack.  ``PUT``: the contents follow, one after the other, without the frames that gRPC
  would have.  ``GET``: of one chunk.
* An answer is a kind, a length, and so many bytes: what the method of gRPC answers (``SAID``), ``[kind, message]`` of
  an error (``REFUSED``), or the content (``CONTENT``).
* One request at a time; the next after the answer.  Who gives up closes the connection, which the other end takes for
  the end of the request.  A refused ``PUT`` is read to its end, so that its answer is heard.
"""

from __future__ import annotations

import asyncio
import io
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

import msgspec

from objmeta import errors

HELLO: Final = b"objmeta chunks 1"
TOKEN_BYTES: Final = 16
HEAD: Final = struct.Struct(">BI")
PUT: Final = 1
GET: Final = 2
SAID: Final = 1
REFUSED: Final = 2
CONTENT: Final = 3
ANSWER_BYTES_MAX: Final = 1 << 20
"""The longest answer that is no content."""
IDLE_S: Final = 20.0
"""So long a client keeps a connection that it does not use."""
CONNECT_S: Final = 1.0
REST_S: Final = 60.0
"""So long a client uses gRPC when a port that was offered cannot be reached."""
_PROBE_S: Final = 2
"""A machine that vanished closes no connection: after so much silence it is asked whether it is there,"""
_PROBES: Final = 2
"""and so often again.  What is sent is bounded by the time that the call has: a node may read nothing for a while,
since it has no room yet, and TCP_USER_TIMEOUT would take that for silence."""

Heard = Callable[[], None]
"""Called when bytes arrive."""


class Offer(msgspec.Struct, frozen=True, array_like=True):
    """Where a node takes plain connections, and what to say there."""

    port: int
    token: bytes


class NoChannel(Exception):
    """A node has no channel, or it cannot be reached: gRPC is left."""


class Channel:
    """Connections to one node. ``ask`` asks it for its offer; None: it has none.

    Calls raise NoChannel, what ``ask`` raises, OSError and EOFError (broken on the way), TimeoutError, and StoreError
    where the answer makes no sense.
    """

    def __init__(self, address: str, ask: Callable[[], Awaitable[Offer | None]]) -> None:
        self._host = address.rpartition(":")[0].strip("[]")
        self._ask = ask
        self._asking = asyncio.Lock()
        self._offer: Offer | None = None
        self._rests_until = 0.0
        self._idle: list[_Connection] = []
        self._is_closed = False

    async def put(self, asked: bytes, frames: Sequence[bytes], timeout_s: float) -> tuple[int, bytes]:
        """Send contents; the kind of answer, and what it says."""
        return await self._call(PUT, asked, frames, 0, _unheard, timeout_s)

    async def get(self, asked: bytes, length: int, heard: Heard, timeout_s: float) -> tuple[int, bytes]:
        """Fetch a content of so many bytes; the kind of answer, and what it says."""
        return await self._call(GET, asked, (), length, heard, timeout_s)

    async def _call(
        self, kind: int, asked: bytes, frames: Sequence[bytes], length: int, heard: Heard, timeout_s: float
    ) -> tuple[int, bytes]:
        async with asyncio.timeout(timeout_s):
            while True:
                connection = self._idle.pop() if self._idle else await self._open()
                try:
                    answer = await connection.call(kind, asked, frames, length, heard)
                except (OSError, EOFError):
                    connection.close()
                    if connection.calls:  # closed while nobody used it, most likely: the node was started anew
                        self._close_idle()
                        continue
                    self._offer = None
                    raise
                except BaseException:
                    connection.close()
                    raise
                connection.calls += 1
                if self._is_closed:
                    connection.close()
                else:
                    connection.rest(self._idle)
                return answer

    async def _open(self) -> _Connection:
        loop = asyncio.get_running_loop()
        async with self._asking:
            is_known = self._offer is not None
            while loop.time() >= self._rests_until:
                self._offer = self._offer or await self._ask()
                if self._offer is not None:
                    with suppress(OSError):
                        return await _Connection.to(self._host, self._offer)
                    self._offer = None
                if not is_known:
                    self._rests_until = loop.time() + REST_S
                is_known = False  # the node was started anew, most likely, and offers another port
        raise NoChannel

    def ask_again(self) -> None:
        """Do not rest any longer: a node that starts or stops, or is another one by now, offers something else."""
        self._rests_until = 0.0

    def close(self) -> None:
        """Close what nobody uses, and the others as soon as that is so."""
        self._is_closed = True
        self._close_idle()

    def _close_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()


class _Connection:
    """One connection, used by one call at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._loop = asyncio.get_running_loop()
        self._resting: asyncio.TimerHandle | None = None
        self.calls = 0

    @classmethod
    async def to(cls, host: str, offer: Offer) -> _Connection:
        """Connect. Raises OSError."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, offer.port, type=socket.SOCK_STREAM)
        failure = OSError(f"{host} has no address")
        for family, kind, protocol, _, address in found:
            sock = socket.socket(family, kind, protocol)
            try:
                sock.setblocking(False)
                tune(sock)
                async with asyncio.timeout(CONNECT_S):
                    await loop.sock_connect(sock, address)
                    await loop.sock_sendall(sock, HELLO + offer.token)
                    if await receive(sock, len(offer.token)) != offer.token:
                        raise OSError(f"port {offer.port} of {host} is somebody else's")
            except (OSError, EOFError) as error:  # TimeoutError is an OSError
                sock.close()
                failure = OSError(str(error))
            except BaseException:
                sock.close()
                raise
            else:
                return cls(sock)
        raise failure

    async def call(
        self, kind: int, asked: bytes, frames: Sequence[bytes], length: int, heard: Heard
    ) -> tuple[int, bytes]:
        """Ask, and hear the answer."""
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None
        await self._loop.sock_sendall(self._socket, HEAD.pack(kind, len(asked)) + asked)
        for frame in frames:
            await self._loop.sock_sendall(self._socket, frame)
        kind, said = HEAD.unpack(await receive(self._socket, HEAD.size))
        if kind not in (SAID, REFUSED, CONTENT) or said > (length if kind == CONTENT else ANSWER_BYTES_MAX):
            raise errors.StoreError(f"an answer of kind {kind} and {said} bytes cannot be read")
        return kind, await receive(self._socket, said, heard)

    def rest(self, idle: list[_Connection]) -> None:
        """Wait in a list for the next call, for a while."""

        def expire() -> None:
            if self in idle:
                idle.remove(self)
            self.close()

        idle.append(self)
        self._resting = self._loop.call_later(IDLE_S, expire)

    def close(self) -> None:
        """Close it."""
        if self._resting is not None:
            self._resting.cancel()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # a child of this process may hold it, too
        self._socket.close()


def tune(sock: socket.socket) -> None:
    """Set a socket for this: nothing waits for more to send, and who vanished is noticed."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)


async def receive(sock: socket.socket, length: int, heard: Heard = lambda: None) -> bytes:
    """Exactly so many bytes. Raises EOFError if the connection ends before, OSError."""
    buffer = io.BytesIO(bytes(length))  # its memory becomes that of the answer, without a copy
    with buffer.getbuffer() as view:
        await receive_into(sock, view, heard)
    return buffer.getvalue()


async def receive_into(sock: socket.socket, view: memoryview, heard: Heard = lambda: None) -> None:
    """Fill a buffer. Raises EOFError if the connection ends before, OSError."""
    loop = asyncio.get_running_loop()
    while view:
        count = await loop.sock_recv_into(sock, view)
        if not count:
            raise EOFError("the connection was closed")
        heard()
        view = view[count:]


def _unheard() -> None:
    return None
