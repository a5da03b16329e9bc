"""A network whose links can be cut, one way or both: a TCP proxy before every node.

Every node is known to all others by the address of its proxy only, however they come to know it.  Who a connection
comes from, the proxy asks the kernel: the process that has the other end.  So every directed pair of parties is a link
of its own, and no party needs to be told about it.

A link carries bytes from its source to its target, whichever of the two made the connection.  It is either open, or
*silent* (bytes wait, as when packets are lost: they arrive when the link is mended, unless somebody gave up before), or
*broken* (connections are closed, new ones at once).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Final

_READ_BYTES: Final = 1 << 18

# <linux/netlink.h>, <linux/sock_diag.h>, <linux/inet_diag.h>
_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLM_F_REQUEST: Final = 1
_ALL_STATES: Final = 0xFFFFFFFF
_NO_COOKIE: Final = (0xFFFFFFFF, 0xFFFFFFFF)
_HEADER_BYTES: Final = 16
_INODE_AT: Final = _HEADER_BYTES + 4 + 48 + 16
"""After family, state, timer and retries; the ends; and four numbers."""

_Address = tuple[str, int]
Parties = Callable[[], Mapping[int, str]]
"""Names of the parties by process id, now."""


class _Link:
    """Bytes from one party to another."""

    def __init__(self) -> None:
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.broken = False
        self.connections: set[asyncio.Task[None]] = set()


class Network:
    """All proxies and all links. Belongs to one event loop; :meth:`close` must be awaited."""

    def __init__(self, parties: Parties) -> None:
        self._parties = parties
        self._links: defaultdict[tuple[str, str], _Link] = defaultdict(_Link)
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.Task[None]] = set()

    async def serve(self, party: str, host: str, port: int) -> str:
        """Put a proxy before a party that listens there; the proxy's ``host:port``."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._connections.add(task)
            try:
                await self._connection(party, (host, port), reader, writer)
            except asyncio.CancelledError:
                pass  # the link was broken, or the network closed: the connection ends, and nobody waits for this task
            finally:
                self._connections.discard(task)
                writer.transport.abort()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        self._servers.append(server)
        return f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

    def silence(self, source: str, target: str) -> None:
        """Let nothing pass from ``source`` to ``target``, and tell nobody."""
        self._links[source, target].flowing.clear()

    def sever(self, source: str, target: str) -> None:
        """Close the connections between two parties, and all new ones at once."""
        for link in (self._links[source, target], self._links[target, source]):
            link.broken = True
            for connection in list(link.connections):
                connection.cancel()

    def mend(self, source: str, target: str) -> None:
        """Let everything pass from ``source`` to ``target``."""
        link = self._links[source, target]
        link.broken = False
        link.flowing.set()

    def mend_all(self) -> None:
        """Let everything pass everywhere."""
        for source, target in list(self._links):
            self.mend(source, target)

    async def close(self) -> None:
        """Close all proxies and connections."""
        for server in self._servers:
            server.close()
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await asyncio.sleep(0)  # transports close in the turn after they were aborted

    async def _connection(
        self, party: str, upstream: tuple[str, int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        source = _owner(writer.get_extra_info("peername"), writer.get_extra_info("sockname"), self._parties())
        there, back = self._links[source, party], self._links[party, source]
        if there.broken or back.broken:
            return
        task = asyncio.current_task()
        assert task is not None
        there.connections.add(task)
        back.connections.add(task)
        try:
            await there.flowing.wait()  # a connection is made by messages both ways
            await back.flowing.wait()
            with contextlib.suppress(OSError):
                up_reader, up_writer = await asyncio.open_connection(*upstream)
                try:
                    async with asyncio.TaskGroup() as both:
                        both.create_task(_pump(reader, up_writer, there))
                        both.create_task(_pump(up_reader, writer, back))
                except* (_Over, OSError):
                    pass
                finally:
                    up_writer.transport.abort()
        finally:
            there.connections.discard(task)
            back.connections.discard(task)


class _Over(Exception):
    """One end has closed the connection."""


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: _Link) -> None:
    while data := await reader.read(_READ_BYTES):
        await link.flowing.wait()
        writer.write(data)
        await writer.drain()
    await link.flowing.wait()
    raise _Over


def _owner(local: _Address, remote: _Address, parties: Mapping[int, str]) -> str:
    """Which party has the connection that goes from ``local`` to ``remote``."""
    wanted = f"socket:[{_inode(local, remote)}]"
    for pid, party in parties.items():
        with contextlib.suppress(OSError):
            for descriptor in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{pid}/fd/{descriptor}") == wanted:
                        return party
    return "somebody else"


def _inode(local: _Address, remote: _Address) -> int:
    """Of the socket that has this connection; 0 if there is none (any more).

    By ``sock_diag(7)``: reading ``/proc/net/tcp`` took this process 25 ms for each connection.
    """
    ends = struct.pack("!HH", local[1], remote[1])
    ends += socket.inet_aton(local[0]).ljust(16, b"\0") + socket.inet_aton(remote[0]).ljust(16, b"\0")
    question = struct.pack("=BBxxI", socket.AF_INET, socket.IPPROTO_TCP, _ALL_STATES)
    question += ends + struct.pack("=III", 0, *_NO_COOKIE)
    header = struct.pack("=IHHII", _HEADER_BYTES + len(question), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG) as kernel:
        kernel.send(header + question)
        answer = kernel.recv(_READ_BYTES)
    (kind,) = struct.unpack_from("=H", answer, 4)
    return int(struct.unpack_from("=I", answer, _INODE_AT)[0]) if kind == _SOCK_DIAG_BY_FAMILY else 0
