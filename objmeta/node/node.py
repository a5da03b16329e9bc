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
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final

import uuid_utils

from objmeta.config import version
from objmeta.core.configuration import OUTSIDE, Configuration, Membership
from objmeta.core.erasure import FIRST_GENERATION, GENERATION_REGISTER
from objmeta.core.home import home_of
from objmeta.errors import IntegrityError, InvalidArgument, ObjmetaError, StoreError, Unavailable
from objmeta.interfaces import AcceptorStore, MembersStatus, NodeStatus, RepairStatus, StoreStatus
from objmeta.node.background import Background
from objmeta.node.bootstrap import Bootstrap, removed
from objmeta.node.data import DataDirectory
from objmeta.node.forwarding import HomeBound
from objmeta.node.kept import KeptMarks
from objmeta.node.members import Members
from objmeta.node.others import Others
from objmeta.node.positions import Confirmation, Positions
from objmeta.node.settings import NodeSettings, split_address
from objmeta.objects.context import Context
from objmeta.objects.fences import BucketFences
from objmeta.objects.marks import Marked, marks
from objmeta.register.engine import Engine
from objmeta.register.life import new_ballots
from objmeta.register.membership import MayLeave
from objmeta.register.repairing import Repairer
from objmeta.rpc import wire
from objmeta.rpc.options import Handler, new_server
from objmeta.rpc.peer import PeerService, PeerTransport
from objmeta.rpc.service import ClientService
from objmeta.store.lane import Lane
from objmeta.store.rocks import RocksStore

_log = logging.getLogger(__name__)

_STATUS_TIMEOUT_S: Final = 0.5
_BACKGROUND_STATUS_TIMEOUT_S: Final = 2.0
"""Nobody waits for it, and who is taken for down on a busy machine is given more work."""
_UNARY_GRACE_S: Final = 0.5
_OPERATION_TIMEOUT_S: Final = 10.0
_RETIRE_S_MAX: Final = 5.0
_TIDY_S: Final = 60.0
_MEND_S: Final = 1.0
_CONFIRM_S: Final = 2.0
_NEWEST: Final = 2**62
"""As ``since`` of a question for changes: only the watermark is wanted."""


class Node:
    """One node of a cluster; belongs to one event loop. ``extra_handlers`` are further gRPC services on the same port
    (the gateway's blobs); ``may_leave``, set before the start, says when members that leave are not needed for those.
    """

    may_leave: MayLeave | None = None

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
        self._context: Context | None = None
        self._home_bound: HomeBound | None = None
        self._members: Members | None = None
        self._background: Background | None = None
        self._repairer: Repairer | None = None
        self._positions: Positions | None = None
        self._confirmation: Confirmation | None = None
        self._joined = asyncio.Event()
        self._retiring: asyncio.Task[None] | None = None
        self._starting: asyncio.Task[None] | None = None
        self._failure: asyncio.Future[None] | None = None
        self._ready = asyncio.Event()
        self._stopping = False
        self._started_s = time.monotonic()
        self._others = Others(self._addresses, self._configuration, self._lost_by)
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
            self._positions = Positions(self._data.path)
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
        for task in (self._retiring,) if self._retiring is not None else ():
            task.cancel()
        if self._members is not None:
            await self._members.close()
        if self._background is not None:
            await self._background.close()
        if self._server is not None:
            await self.finish(grace_s)
            if self._home_bound is not None:
                await self._home_bound.close()
            await asyncio.gather(self.client_service.streams.close(), self.peer_service.streams.close())
            await self._server.stop(_UNARY_GRACE_S)
            self._server = None
        if self._engine is not None:
            await self._engine.close()
        if self._transport is not None:
            await self._transport.close()
        if self._positions is not None:
            await self._positions.keep_now()
        if self._lane is not None:
            await self._lane.close()
            self._lane = None
        if self._data is not None:
            data, self._data = self._data, None
            await asyncio.to_thread(data.close)
        if self._failure is not None and not self._failure.done():
            self._failure.cancel()

    async def finish(self, grace_s: float) -> None:
        """Finish what clients have under way, within ``grace_s``; nothing new is begun by now."""
        await self.client_service.drained(grace_s)

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
            await self._confirm(store)
            self._lane = Lane(store, loop)
            if store.configuration.epoch == OUTSIDE:
                self._bootstrap.waiting_for = "the members to let it in"
                await self._joined.wait()
            membership = await self._bootstrap.newest(store.membership)
            rng = random.Random(os.urandom(16))
            self._transport = PeerTransport(
                self.settings.node_id, self._lane, membership, self.settings.others, self._positions
            )
            self._engine = Engine(
                membership,
                self._transport,
                new_ballots(),
                rng,
                own_acceptor=store.acceptor_id,
                on_adopt=self._on_adopt,
            )
            context = self._context = Context(
                self._engine,
                lambda: time.time_ns() // 1000,
                lambda: uuid_utils.uuid7().bytes,
                _OPERATION_TIMEOUT_S,
                True,
            )
            self._home_bound = HomeBound(self.settings.node_id, self._engine, self._is_in_touch)
            own_id, may_leave, fence_of = self.settings.node_id, self.may_leave, BucketFences(context).fence_of
            self._members = Members(own_id, self._engine, rng, fence_of, self._statuses, may_leave)
            self._repairer = Repairer(
                self._engine, own_id, fence_of=fence_of, connections=self._connections, marks=KeptMarks(self._data.path)
            )
            self._background = self._begin_background(store, rng)
            self._background.forever("repair", self._repairer.run_forever())
            self._ready.set()
            self._on_adopt(membership)
        except Exception as problem:
            if not isinstance(problem, ObjmetaError):
                _log.exception("node %d cannot get ready", self.settings.node_id)
            self._failure.set_exception(problem)
            self._failure.exception()  # retrieved, whether or not somebody waits for it

    def _begin_background(self, store: AcceptorStore, rng: random.Random) -> Background:
        engine, node_id = self._engine, self.settings.node_id
        assert engine is not None, "a node works in the background when it is ready"

        async def erase() -> None:
            # All acceptors must take part, so the home is up whenever anything can be erased.
            if home_of(GENERATION_REGISTER, engine.quorums.members) == node_id:
                await engine.eraser.run_pass(resting=True)

        background = Background(rng)
        background.every(self.settings.erase_interval_s, "erasing", erase)
        background.every(_MEND_S, "mending", self._mend)
        background.every(_CONFIRM_S, "asking what the others remember", self._confirm_by_the_rest)
        assert self._positions is not None, "a node that is ready has been started"
        background.forever("remembering positions", self._positions.keep())
        background.every(_TIDY_S, "giving space back", lambda: asyncio.to_thread(store.tidy))
        return background

    async def _confirm(self, store: RocksStore) -> None:
        """Return when the others have said that this node has lost nothing. Raises IntegrityError."""
        assert self._bootstrap is not None
        self._confirmation = Confirmation(
            self.settings.data, self.settings.node_id, store.configuration.store_id, store.position
        )
        membership = await self._bootstrap.newest(store.membership)
        self._bootstrap.waiting_for = "a majority of the nodes, to learn that it has lost nothing it had promised"
        addresses = {**membership.address_of, **self._addresses()}
        addresses.pop(self.settings.node_id, None)
        await self._confirmation.by_majority(
            membership.configuration.quorums, [*addresses.values(), *self.settings.join]
        )

    async def _confirm_by_the_rest(self) -> None:
        assert self._confirmation is not None
        assert self._failure is not None
        try:
            await self._confirmation.by_the_rest(self._addresses())
        except IntegrityError as lost:
            if not self._failure.done():
                self._failure.set_exception(lost)
                self._failure.exception()  # retrieved, whether or not somebody waits for it

    async def _mend(self) -> None:
        assert self._lane is not None, "what works in the background is stopped before the lane"
        assert self._repairer is not None, "the repairer is made before the background work"
        if names := self._lane.damage.take():
            self._lane.damage.mended += await self._repairer.mend_damaged(names)

    def _is_in_touch(self, node_id: int) -> bool:
        link = self._transport.links.get(node_id) if self._transport is not None else None
        return link is not None and link.connected

    def _connections(self) -> dict[int, int]:
        assert self._transport is not None, "a node that repairs has connections"
        return {peer: link.connections for peer, link in self._transport.links.items() if link.connected}

    # -- Changes of members -------------------------------------------------------------------------------------------

    def _on_adopt(self, membership: Membership) -> None:
        if self.settings.node_id not in membership.configuration.quorums.members and self._retiring is None:
            self._retiring = asyncio.create_task(self._retire())

    async def _retire(self) -> None:
        """Stop serving, when what this node itself coordinates is done."""
        assert self._failure is not None
        if self._members is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RETIRE_S_MAX):
                    await self._members.done()
        if not self._failure.done():
            self._failure.set_exception(removed(self.settings.node_id))
            self._failure.exception()  # retrieved, whether or not somebody waits for it

    def membership(self) -> Membership | None:
        """The members and where they are, as far as this node knows."""
        if self._engine is not None:
            known = self._engine.membership
        else:
            stored = self._data.membership if self._data is not None else None
            if stored is None or stored.configuration.epoch == OUTSIDE:
                return None
            known = stored
        members = known.configuration.quorums.members
        addresses = known.address_of | dict(self.settings.peers)
        addresses.setdefault(self.settings.node_id, self.address)
        return Membership(known.configuration, tuple((m, addresses[m]) for m in members if m in addresses))

    def _addresses(self) -> dict[int, str]:
        """Where the other members are."""
        membership = self.membership()
        addresses = dict(self.settings.others) if membership is None else membership.address_of
        return {node_id: address for node_id, address in addresses.items() if node_id != self.settings.node_id}

    def _configuration(self) -> Configuration | None:
        return self._data.configuration if self._data is not None else None

    def _lost_by(self, node_id: int) -> str:
        return self._positions.problem(node_id) if self._positions is not None else ""

    async def members_status(self, brief: bool, timeout_s: float) -> MembersStatus:
        """Who the members are, and how. Raises Unavailable before the node belongs to a store."""
        membership = self.membership()
        if membership is None:
            raise Unavailable(self._not_ready())
        if brief:
            return MembersStatus(membership, ())
        found = await self._others.look(min(timeout_s, _STATUS_TIMEOUT_S))
        own = await self.peer_status()
        changes = [status.change for status in (own, *found.values()) if isinstance(status, wire.PeerStatus)]
        nodes = [status if isinstance(status, NodeStatus) else status.status for status in (own, *found.values())]
        return MembersStatus(
            membership,
            tuple(sorted(nodes, key=lambda node: node.node_id)),
            next((change for change in changes if change is not None), None),
        )

    async def change_members(self, request: wire.ChangeMembers, timeout_s: float) -> Membership:
        """Begin a change. Raises Conflict, InvalidArgument, Unavailable, StoreError."""
        self.registers()
        membership = self.membership()
        assert self._members is not None, "a node that takes operations has a part in changes"
        assert membership is not None, "a node that takes operations belongs to a store"
        own, _ = split_address(self._own_address())
        if own in ("0.0.0.0", "[::]"):
            raise InvalidArgument(
                f"node {self.settings.node_id} does not know where others find it; start it with "
                f"--peers {self.settings.node_id}=HOST:PORT"
            )
        return await self._members.change(request, membership.address_of, timeout_s)

    def adopted(self, membership: Membership) -> None:
        """The acceptor has this membership now."""
        if membership.configuration.epoch != OUTSIDE:
            self._joined.set()
        if self._engine is not None:
            self._engine.adopt(membership)

    async def join(self, configuration: Configuration) -> wire.Hello:
        """Make the store of a node that is to join."""
        assert self._bootstrap is not None
        await self._bootstrap.join(configuration)
        return self.hello()

    # -- For clients (rpc.service.Door) -------------------------------------------------------------------------------

    def place(self) -> tuple[int, tuple[int, ...]]:
        """Which node of which."""
        members = self._engine.quorums.members if self._engine is not None else self.settings.members
        return self.settings.node_id, members

    def registers(self) -> Engine:
        """Where operations go. Raises Unavailable."""
        if self._stopping:
            raise Unavailable(f"node {self.settings.node_id} is stopping")
        if self._engine is None:
            raise Unavailable(self._not_ready())
        return self._engine

    def proposer(self, sent_on: bool) -> Engine | HomeBound:
        """Where changes go. Raises Unavailable."""
        registers = self.registers()
        return self._home_bound if self._home_bound is not None and not sent_on else registers

    def generation(self) -> int:
        """The newest generation known to have begun."""
        return self._engine.generations.known() if self._engine is not None else FIRST_GENERATION

    def in_touch(self) -> bool:
        """Whether this node reaches a majority."""
        if self._engine is None or self._transport is None or self._stopping:
            return False
        reached = {node_id for node_id, link in self._transport.links.items() if link.connected}
        return self._engine.quorums.is_quorum(reached | {self.settings.node_id})

    async def status(self, timeout_s: float) -> StoreStatus:
        """The store as seen from here."""
        found = await self._others.look(min(timeout_s, _STATUS_TIMEOUT_S))
        others = [status if isinstance(status, NodeStatus) else status.status for status in found.values()]
        nodes = sorted((await self.node_status(), *others), key=lambda node: node.node_id)
        membership = self.membership()
        if membership is None:
            return StoreStatus(b"", 0, tuple(nodes), False)
        configuration = membership.configuration
        up = {node.node_id for node in nodes if node.state == "up"}
        quorum = self._engine is not None and configuration.quorums.is_quorum(up)
        return StoreStatus(configuration.store_id, configuration.epoch, tuple(nodes), quorum)

    async def _statuses(self) -> dict[int, wire.PeerStatus]:
        return await self._others.statuses(_BACKGROUND_STATUS_TIMEOUT_S)

    # -- For the collector of chunks ----------------------------------------------------------------------------------

    def marks(self, epoch: int, *, joint: bool = False) -> AsyncGenerator[Marked, None]:
        """Every chunk that this node's acceptor names, page by page; see :mod:`objmeta.objects.marks`.

        All pages are of the configuration of ``epoch``; for the collector it is none that is joint.  Raises Unavailable
        if another is in force or the node not ready, and its generator ConfigurationMismatch, NoQuorum, IntegrityError.
        """
        configuration = self.registers().configuration
        if configuration.epoch != epoch or (configuration.is_joint and not joint):
            raise Unavailable(f"the members have changed: the epoch is {configuration.epoch} now")
        assert self._context is not None, "a node that takes operations has its surroundings"
        alone = len(configuration.quorums.members) == 1
        return marks(self._context, self.acceptor(), configuration.tag, alone)

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
        ready = self._ready.is_set() and not self._stopping
        return wire.Hello(settings.node_id, settings.members, phase, configuration, ready, membership=self.membership())

    def life(self) -> wire.Life:
        """This run of the node. Raises Unavailable."""
        if self._confirmation is None:
            raise Unavailable(self._not_ready())
        return self._confirmation.life._replace(position=self.position())

    def position(self) -> int:
        """The number of the acceptor's last durable batch."""
        store = self._data.store if self._data is not None else None
        return store.position if store is not None else 0

    def remembered(self, node_id: int) -> wire.Remembered:
        """What this node remembers of another one."""
        configuration = self._configuration()
        life, position = self._positions.remembered(node_id) if self._positions is not None else (b"", 0)
        store_id = configuration.store_id if configuration is not None else b""
        return wire.Remembered(self.settings.node_id, store_id, life, position)

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

    async def peer_status(self) -> wire.PeerStatus:
        """This node as its peers see it."""
        change = self._members.progress() if self._members is not None else None
        return wire.PeerStatus(self.hello(), await self.node_status(), change)

    async def node_status(self) -> NodeStatus:
        """This node as its peers show it."""
        registers = changes = 0
        detail = "" if self._engine is not None else self._not_ready()
        if self._lane is not None:
            detail = detail or str(self._lane.damage)
            with contextlib.suppress(StoreError):
                changes = (await self._lane.changes(_NEWEST, 1)).watermark
                registers = await self._lane.count()
        return NodeStatus(
            self.settings.node_id,
            # As the members know it: what it listens on may be 0.0.0.0, where no client finds it.
            self._own_address(),
            "up" if self._engine is not None else "down",
            detail,
            version(),
            registers=registers,
            changes=changes,
            disk_free=self._data.disk_free() if self._data is not None else 0,
            uptime_s=time.monotonic() - self._started_s,
            repair=self.repair_status(),
        )

    def repair_status(self) -> RepairStatus | None:
        """How far the acceptor has caught up with the others; None before the node is ready."""
        return self._repairer.status() if self._repairer is not None else None

    def _own_address(self) -> str:
        membership = self.membership()
        known = membership.address_of if membership is not None else self.settings.peers
        return known.get(self.settings.node_id, self.address)

    def _not_ready(self) -> str:
        waiting_for = self._bootstrap.waiting_for if self._bootstrap is not None else "its own start"
        return f"node {self.settings.node_id} is not ready: it waits for {waiting_for}"
