"""A network whose links can be cut, one way or both: a TCP proxy before every node.

Every node is known to all others by the address of its proxy only, however they come to know it.  Who a connection
comes from, the proxy looks up in ``/proc``: the process that has the other end.  So every directed pair of parties is a
link of its own, and no party needs to be told about it.

A link carries bytes from its source to its target, whichever of the two made the connection.  It is either open, or
*silent* (bytes wait, as when packets are lost: they arrive when the link is mended, unless somebody gave up before), or
*broken* (connections are closed, new ones at once).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

_READ_BYTES: Final = 1 << 18
_ESTABLISHED: Final = "01"

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
        source = _owner(writer.get_extra_info("peername")[1], self._parties()) or "somebody else"
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


def _owner(port: int, parties: Mapping[int, str]) -> str | None:
    """Which party has the connection that comes from this local port; None if none of them has."""
    wanted = f":{port:04X}"
    sockets = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(wanted) and fields[3] == _ESTABLISHED:
            sockets.add(f"socket:[{fields[9]}]")
    for pid, party in parties.items():
        with contextlib.suppress(OSError):
            for descriptor in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{pid}/fd/{descriptor}") in sockets:
                        return party
    return None
