"""The wiring of a node: acceptor, proposer, and the services that lead to them.

Rules.  A node listens before it is ready and says so to whoever asks.  Its acceptor votes, and it takes operations,
only when the cluster is established.  When it stops it first refuses new operations (clients turn to another node at
once), then finishes those under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any, Final

import msgspec

from objmeta.core.configuration import Configuration
from objmeta.errors import ConfigurationMismatch, ObjmetaError, StoreError, Unavailable
from objmeta.interfaces import NodeStatus, Registers, StoreStatus
from objmeta.node.bootstrap import Bootstrap
from objmeta.node.data import DataDirectory
from objmeta.node.settings import NodeSettings, split_address
from objmeta.register.engine import Engine
from objmeta.register.life import new_ballots
from objmeta.rpc import wire
from objmeta.rpc.options import Handler, new_server
from objmeta.rpc.peer import PeerService, PeerTransport, ask
from objmeta.rpc.service import ClientService
from objmeta.store.lane import Lane

_log = logging.getLogger(__name__)

_STATUS_TIMEOUT_S: Final = 0.5
_UNARY_GRACE_S: Final = 0.5
_NEWEST: Final = 2**62
"""As ``since`` of a question for changes: only the watermark is wanted."""


class Node:
    """One node of a cluster; belongs to one event loop.

    ``extra_handlers`` are further gRPC services on the same port (the gateway's blobs).
    """

    def __init__(self, settings: NodeSettings, extra_handlers: Sequence[Handler] = ()) -> None:
        self.settings = settings
        self.address = settings.listen
        """Where it listens; the real port once started."""
        self._extra_handlers = tuple(extra_handlers)
        self._data: DataDirectory | None = None
        self._bootstrap: Bootstrap | None = None
        self._server: Any = None
        self._lane: Lane | None = None
        self._transport: PeerTransport | None = None
        self._engine: Engine | None = None
        self._starting: asyncio.Task[None] | None = None
        self._failure: asyncio.Future[None] | None = None
        self._ready = asyncio.Event()
        self._stopping = False
        self._started_s = time.monotonic()
        self.client_service = ClientService(self)
        self.peer_service = PeerService(self)

    # -- Life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen, and begin to get ready; :meth:`ready` waits for that.

        Raises StoreError (the directory is in use, or damaged; the port is taken), ConfigurationMismatch (the data is
        another node's, or the members differ), StoreFull.
        """
        if sys.flags.optimize:
            raise StoreError("a node keeps its assertions on: start Python without -O and without PYTHONOPTIMIZE")
        self._data = await asyncio.to_thread(DataDirectory, self.settings.data)
        try:
            self._bootstrap = Bootstrap(self.settings, self._data)
            self._bootstrap.check_identity()
            await self._listen()
        except BaseException:
            await self.stop(0)
            raise
        self._failure = asyncio.get_running_loop().create_future()
        self._starting = asyncio.create_task(self._get_ready(), name=f"objmeta node {self.settings.node_id}")

    async def ready(self) -> None:
        """Return when the node takes operations. Raises what keeps it from ever doing so."""
        await self._until(self._ready.wait())

    async def failed(self) -> None:
        """Never return; raise what keeps the node from serving."""
        await self._until(asyncio.Event().wait())

    async def stop(self, grace_s: float = 2.0) -> None:
        """Refuse new operations, finish the others within ``grace_s``, close everything. Idempotent."""
        self._stopping = True
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
            self._starting = None
        if self._server is not None:
            await self.client_service.drained(grace_s)
            await asyncio.gather(self.client_service.streams.close(), self.peer_service.streams.close())
            await self._server.stop(_UNARY_GRACE_S)
            self._server = None
        if self._transport is not None:
            await self._transport.close()
        if self._lane is not None:
            await self._lane.close()
            self._lane = None
        if self._data is not None:
            data, self._data = self._data, None
            await asyncio.to_thread(data.close)
        if self._failure is not None and not self._failure.done():
            self._failure.cancel()

    async def _until(self, waiting: Any) -> None:
        assert self._failure is not None, "the node has been started"
        task = asyncio.ensure_future(waiting)
        try:
            await asyncio.wait((task, self._failure), return_when=asyncio.FIRST_COMPLETED)
        finally:
            task.cancel()
        if self._failure.done() and not self._failure.cancelled():
            self._failure.result()

    async def _listen(self) -> None:
        host, _ = split_address(self.settings.listen)
        server = new_server()
        server.add_generic_rpc_handlers(
            (self.client_service.handler(), self.peer_service.handler(), *self._extra_handlers)
        )
        try:
            bound = server.add_insecure_port(self.settings.listen)
        except RuntimeError:
            bound = 0
        if not bound:
            raise StoreError(f"cannot listen on {self.settings.listen}: the port is taken or the address is not ours")
        self._server = server
        await server.start()
        self.address = f"{host}:{bound}"

    async def _get_ready(self) -> None:
        assert self._bootstrap is not None
        assert self._data is not None
        assert self._failure is not None
        try:
            await self._bootstrap.run()
            store = self._data.store
            assert store is not None, "an established node has a store"
            loop = asyncio.get_running_loop()
            membership = store.membership
            self._lane = Lane(store, loop)
            self._transport = PeerTransport(
                self.settings.node_id, self._lane, membership.configuration.tag, self.settings.others
            )
            self._engine = Engine(
                membership,
                self._transport,
                new_ballots(),
                random.Random(os.urandom(16)),
                own_acceptor=store.acceptor_id,
            )
            self._ready.set()
        except Exception as problem:
            if not isinstance(problem, ObjmetaError):
                _log.exception("node %d cannot get ready", self.settings.node_id)
            self._failure.set_exception(problem)
            self._failure.exception()  # retrieved, whether or not somebody waits for it

    # -- For clients (rpc.service.Door) -------------------------------------------------------------------------------

    def place(self) -> tuple[int, tuple[int, ...]]:
        """Which node of which."""
        return self.settings.node_id, self.settings.members

    def registers(self) -> Registers:
        """Where operations go. Raises Unavailable."""
        if self._stopping:
            raise Unavailable(f"node {self.settings.node_id} is stopping")
        if self._engine is None:
            raise Unavailable(self._not_ready())
        return self._engine

    def in_touch(self) -> bool:
        """Whether this node reaches a majority."""
        if self._engine is None or self._transport is None or self._stopping:
            return False
        reached = {node_id for node_id, link in self._transport.links.items() if link.connected}
        return self._engine.quorums.is_quorum(reached | {self.settings.node_id})

    async def status(self, timeout_s: float) -> StoreStatus:
        """The store as seen from here."""
        patience_s = min(timeout_s, _STATUS_TIMEOUT_S)
        others = self.settings.others
        asked = (self._status_of(node_id, address, patience_s) for node_id, address in others.items())
        nodes = sorted((await self.node_status(), *await asyncio.gather(*asked)), key=lambda node: node.node_id)
        configuration = self._data.configuration if self._data is not None else None
        if configuration is None:
            return StoreStatus(b"", 0, tuple(nodes), False)
        up = {node.node_id for node in nodes if node.state == "up"}
        quorum = self._engine is not None and configuration.quorums.is_quorum(up)
        return StoreStatus(configuration.store_id, configuration.epoch, tuple(nodes), quorum)

    async def _status_of(self, node_id: int, address: str, timeout_s: float) -> NodeStatus:
        try:
            answer = await ask(address, wire.STATUS, b"", wire.decode_peer_status, timeout_s)
        except Unavailable as gone:
            return NodeStatus(node_id, address, "down", str(gone))
        except ConfigurationMismatch as stranger:
            return NodeStatus(node_id, address, "refused", str(stranger))
        own = self._data.configuration if self._data is not None else None
        theirs = answer.hello.configuration
        if answer.hello.node_id != node_id:
            return NodeStatus(node_id, address, "refused", f"this is node {answer.hello.node_id}")
        if own is not None and theirs is not None and own != theirs:
            return NodeStatus(node_id, address, "refused", "it belongs to another store")
        return msgspec.structs.replace(answer.status, address=address)

    # -- For peers (rpc.peer.Peers) -----------------------------------------------------------------------------------

    def acceptor(self) -> Lane:
        """The acceptor. Raises Unavailable while it may not vote."""
        if self._lane is None:
            raise Unavailable(self._not_ready())
        return self._lane

    def hello(self) -> wire.Hello:
        """Who this node is."""
        data, settings = self._data, self.settings
        phase = data.phase if data is not None else wire.EMPTY
        configuration = data.configuration if data is not None else None
        return wire.Hello(settings.node_id, settings.members, phase, configuration, self._ready.is_set())

    async def init(self, configuration: Configuration) -> wire.Hello:
        """Initialise an empty acceptor."""
        assert self._bootstrap is not None
        await self._bootstrap.init(configuration)
        return self.hello()

    async def establish(self, configuration: Configuration) -> wire.Hello:
        """All members have been initialised."""
        assert self._bootstrap is not None
        await self._bootstrap.establish(configuration)
        return self.hello()

    async def node_status(self) -> NodeStatus:
        """This node as its peers show it."""
        registers = changes = 0
        detail = "" if self._lane is not None else self._not_ready()
        if self._lane is not None:
            with contextlib.suppress(StoreError):
                changes = (await self._lane.changes(_NEWEST, 1)).watermark
                registers = await self._lane.count()
        return NodeStatus(
            self.settings.node_id,
            # As the members know it: what it listens on may be 0.0.0.0, where no client finds it.
            self.settings.peers.get(self.settings.node_id, self.address),
            "up" if self._lane is not None else "down",
            detail,
            metadata.version("objmeta"),
            registers=registers,
            changes=changes,
            disk_free=self._data.disk_free() if self._data is not None else 0,
            uptime_s=time.monotonic() - self._started_s,
        )

    def _not_ready(self) -> str:
        waiting_for = self._bootstrap.waiting_for if self._bootstrap is not None else "its own start"
        return f"node {self.settings.node_id} is not ready: it waits for {waiting_for}"
