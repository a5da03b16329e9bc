"""Between nodes: how a proposer reaches the acceptors of other nodes, and how a node's acceptor is reached.

Rules.  A request is sent at most once; what is lost with a connection is never answered (the proposer's timers see to
that).  A peer that is gone costs nothing: soon after its connection broke, nothing is queued for it any more.  While a
connection is being made requests wait, in bounded number, so that a node which has just started loses no round.

Whoever calls names the node it means, and is refused by any other: an address given for two nodes by mistake would
otherwise let one acceptor vote twice.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar, cast

import msgspec

from objmeta.core.configuration import Configuration, ConfigurationTag, Membership
from objmeta.core.inventory import ChangesRequest, DigestRequest, Digests, Inventory, InventoryRequest
from objmeta.core.listing import ScanAnswer, ScanRequest
from objmeta.core.messages import Adopted, Reply, Request
from objmeta.errors import ConfigurationMismatch, ObjmetaError, Unavailable
from objmeta.grpcio import grpc
from objmeta.interfaces import Changes, OnReplies, OnReply
from objmeta.register.local import Acceptor
from objmeta.rpc import wire
from objmeta.rpc.batching import Outbox
from objmeta.rpc.options import CONNECT_S_MAX, RECONNECT_S_MAX, RECONNECT_S_MIN, Handler, open_channel
from objmeta.rpc.streams import ServedStreams, converse

Answer = TypeVar("Answer")
_OnGroup = Callable[[int, list[Reply]], None]

_log = logging.getLogger(__name__)

_QUEUE_ITEMS_MAX: Final = 8192
_QUEUE_BYTES_MAX: Final = 32 << 20
"""What may wait for one peer; beyond it the oldest request is dropped, as a network would."""
_QUEUE_WHILE_DOWN_S: Final = 0.5
"""After this long without a connection nothing is queued any more."""
_UNANSWERED_MAX: Final = 16_384
"""A stream whose acceptor owes this many answers is not read any further (a disk that hangs)."""
_HELD_UP_S_MAX: Final = 5.0
_NOTHING: Final = msgspec.Raw(wire.encode(None))


# -- The proposer's side ----------------------------------------------------------------------------------------------


class PeerLink:
    """The stream to one peer. Belongs to one event loop; :meth:`close` must be awaited."""

    def __init__(self, node_id: int, address: str, tag: ConfigurationTag, memory: wire.Memory | None = None) -> None:
        self._memory = memory
        self._loop = asyncio.get_running_loop()
        self.node_id = node_id
        self._address = address
        self._tag = tag
        self._tag_bytes = msgspec.Raw(wire.encode(tag))
        self._outbox: Outbox[tuple[int, bytes]] = Outbox(self._loop)
        self._pending: dict[int, _OnGroup] = {}
        self._channel: Any = None
        self._down_since: float | None = self._loop.time()
        self.problem = "no connection yet"
        """Why there is no connection, for people."""
        self.connections = 0
        """How many there were so far."""
        self._task = self._loop.create_task(self._run(), name=f"objmeta link to node {node_id}")
        self.messages_sent = 0

    @property
    def connected(self) -> bool:
        """Whether the stream is up."""
        return self._down_since is None

    def send(self, number: int, item: bytes, on_group: _OnGroup) -> None:
        """Queue an encoded group, ``(number, requests)``."""
        down_since = self._down_since
        if down_since is not None and self._loop.time() - down_since > _QUEUE_WHILE_DOWN_S:
            return
        outbox = self._outbox
        self._pending[number] = on_group
        outbox.put((number, item), len(item))
        while outbox.size > _QUEUE_BYTES_MAX or len(outbox) > _QUEUE_ITEMS_MAX:
            dropped, _ = outbox.drop_oldest()
            self._pending.pop(dropped, None)

    def adopt(self, tag: ConfigurationTag) -> None:
        """Speak under another configuration; what waits to be sent was meant for the last one and is lost."""
        self._tag = tag
        self._tag_bytes = msgspec.Raw(wire.encode(tag))
        for number, _ in self._outbox.clear():
            self._pending.pop(number, None)

    async def scan(self, request: ScanRequest) -> ScanAnswer:
        """Ask for a page. Raises Unavailable, and what the acceptor raised."""
        message = wire.encode(wire.PeerScan(self._tag, request, self.node_id))
        answer = wire.decode_peer_scanned(await self._call(wire.SCAN, message))
        if answer.answer is not None:
            return answer.answer
        assert answer.failure is not None, "a scan is answered by a page or a failure"
        raise wire.error(answer.failure)

    async def ask(self, method: str, request: object, decode: Callable[[msgspec.Raw], Answer]) -> Answer:
        """Ask about what the acceptor holds. Raises Unavailable, and what the acceptor raised."""
        question = wire.PeerQuestion(self._tag, self.node_id, msgspec.Raw(wire.encode(request)))
        answer = wire.decode_peer_answer(await self._call(method, wire.encode(question)))
        if answer.failure is not None:
            raise wire.error(answer.failure)
        return decode(answer.answer)

    async def _call(self, method: str, message: bytes) -> bytes:
        channel = self._channel
        if channel is None:
            raise Unavailable(f"node {self.node_id} at {self._address} cannot be reached")
        try:
            return cast(bytes, await channel.unary_unary(wire.path(wire.PEER_SERVICE, method))(message))
        except grpc.aio.AioRpcError as broken:
            raise Unavailable(f"node {self.node_id} at {self._address} did not answer: {broken.details()}") from None
        except asyncio.CancelledError:
            # Closing a channel cancels its calls, and whoever awaits one sees a cancellation that is not its own.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise Unavailable(f"the connection to node {self.node_id} at {self._address} was lost") from None

    async def close(self) -> None:
        """Give the connection up."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        wait_s = RECONNECT_S_MIN
        while True:
            if await self._connection():
                wait_s = RECONNECT_S_MIN
            self._pending.clear()
            self._outbox.clear()
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, RECONNECT_S_MAX)

    async def _connection(self) -> bool:
        """One connection, from attempt to end; whether it was ever up."""
        channel = open_channel(self._address)
        up = False
        try:
            method = channel.stream_stream(wire.path(wire.PEER_SERVICE, wire.STREAM))
            call = method(metadata=((wire.NODE, str(self.node_id)),))
            async with asyncio.timeout(CONNECT_S_MAX):
                await call.wait_for_connection()
                life = dict(await call.initial_metadata()).get(wire.LIFE)
            if self._memory is not None and isinstance(life, bytes):
                self.problem = self._memory.met(self.node_id, wire.decode_life(life))
                if self.problem:
                    return False
            up = True
            self._channel = channel
            self._down_since = None
            self.connections += 1
            self.problem = ""
            await converse(call, self._outbox, self._frame, self._on_message)
            self.problem = "it closed the connection"
        except TimeoutError:
            self.problem = f"no connection within {CONNECT_S_MAX:g} s"
        except grpc.aio.AioRpcError as broken:
            self.problem = str(broken.details())
        except (asyncio.InvalidStateError, msgspec.MsgspecError) as broken:
            self.problem = str(broken)
        finally:
            self._channel = None
            if self._down_since is None:
                self._down_since = self._loop.time()
            await channel.close()
        return up

    def _frame(self, items: list[tuple[int, bytes]]) -> bytes:
        self.messages_sent += 1
        return wire.encode((self._tag_bytes, [msgspec.Raw(item) for _, item in items]))

    async def _on_message(self, message: bytes) -> None:
        take = self._pending.pop
        node_id = self.node_id
        replies = wire.decode_peer_replies(message)
        if self._memory is not None:
            self._memory.heard(node_id, replies.position)
        for number, group in replies.items:
            on_group = take(number, None)
            if on_group is None:
                continue
            try:
                on_group(node_id, group)
            except Exception:  # one operation's defect must not cost all others the connection
                _log.exception("a reply of node %d could not be taken", node_id)


class PeerTransport:
    """Satisfies :class:`objmeta.interfaces.Transport` for a node: its own acceptor directly, the others by streams.

    ``addresses`` are what the node was told; they count more than those that come with a membership, so that a node
    whose machine has moved can be found.
    """

    def __init__(
        self,
        node_id: int,
        acceptor: Acceptor,
        membership: Membership,
        addresses: Mapping[int, str] | None = None,
        memory: wire.Memory | None = None,
    ) -> None:
        self._memory = memory
        tag = membership.configuration.tag
        self._node_id = node_id
        self._told = dict(addresses or {})
        self._acceptor = acceptor
        self._tag = tag
        self._number = 0
        self._last: Request | Sequence[Request] | None = None
        self._item = b""
        self.links: dict[int, PeerLink] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self.adopt(membership)

    def send(self, acceptor: int, request: Request, on_reply: OnReply) -> None:
        """Queue a request. The proposer sends one request to everybody, so it is encoded once."""
        if acceptor == self._node_id:
            self._acceptor.submit(self._tag, request, functools.partial(on_reply, acceptor))
            return
        self._send_on(acceptor, request, (request,), functools.partial(_take_one, on_reply))

    def send_all(self, acceptor: int, requests: Sequence[Request], on_replies: OnReplies) -> None:
        """Queue a group of requests, which everybody gets who is asked: it is encoded once as well."""
        on_group = functools.partial(_take_group, on_replies)
        if acceptor == self._node_id:
            self._acceptor.submit_all(self._tag, requests, functools.partial(on_group, acceptor))
            return
        self._send_on(acceptor, requests, requests, on_group)

    def _send_on(
        self, acceptor: int, sent: Request | Sequence[Request], group: Sequence[Request], on_group: _OnGroup
    ) -> None:
        if sent is not self._last:
            self._number += 1
            self._last = sent
            self._item = wire.encode((self._number, group))
        link = self.links.get(acceptor)
        if link is not None:  # else its address is not known yet: a message to nowhere is lost
            link.send(self._number, self._item, on_group)

    def adopt(self, membership: Membership) -> None:
        """See :class:`objmeta.interfaces.Transport`."""
        configuration, addresses = membership.configuration, membership.address_of | self._told
        self._tag = configuration.tag
        for peer in [peer for peer in self.links if peer not in configuration.quorums.members]:
            self._close_link(peer)
        for link in self.links.values():
            link.adopt(self._tag)
        for peer in configuration.quorums.members:
            if peer != self._node_id and peer not in self.links and peer in addresses:
                self.links[peer] = PeerLink(peer, addresses[peer], self._tag, self._memory)

    def _close_link(self, peer: int) -> None:
        closing = asyncio.ensure_future(self.links.pop(peer).close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def scan(self, acceptor: int, request: ScanRequest) -> ScanAnswer:
        """Ask one acceptor for a page. Raises Unavailable, ConfigurationMismatch."""
        if acceptor == self._node_id:
            return await self._acceptor.scan(self._tag, request)
        return await self._link(acceptor).scan(request)

    async def inventory(self, acceptor: int, request: InventoryRequest) -> Inventory:
        """Ask one acceptor what it holds. Raises Unavailable, ConfigurationMismatch."""
        if acceptor == self._node_id:
            return await self._acceptor.inventory(self._tag, request)
        return await self._link(acceptor).ask(wire.INVENTORY, request, wire.decode_inventory)

    async def digests(self, acceptor: int, request: DigestRequest) -> Digests:
        """Ask one acceptor for digests of ranges. Raises Unavailable, ConfigurationMismatch."""
        if acceptor == self._node_id:
            return await self._acceptor.digests(self._tag, request)
        return await self._link(acceptor).ask(wire.DIGESTS, request, wire.decode_digests)

    async def changes(self, acceptor: int, request: ChangesRequest) -> Changes:
        """Ask one acceptor what changed there. Raises Unavailable, ConfigurationMismatch."""
        if acceptor == self._node_id:
            return await self._acceptor.changes(request.since, request.limit)
        return await self._link(acceptor).ask(wire.CHANGES, request, wire.decode_changes)

    def _link(self, acceptor: int) -> PeerLink:
        link = self.links.get(acceptor)
        if link is None:
            raise Unavailable(f"the address of node {acceptor} is not known yet")
        return link

    async def close(self) -> None:
        """Close all streams."""
        await asyncio.gather(*(link.close() for link in self.links.values()), *self._closing)


async def ask(address: str, method: str, message: bytes, decode: Callable[[bytes], Answer], timeout_s: float) -> Answer:
    """One call of a peer's service on a connection of its own. Raises Unavailable, ConfigurationMismatch."""
    async with open_channel(address) as channel:
        call = channel.unary_unary(wire.path(wire.PEER_SERVICE, method))
        try:
            return decode(await call(message, timeout=timeout_s))
        except grpc.aio.AioRpcError as broken:
            raise Unavailable(f"{address} did not answer: {broken.details()}") from None
        except msgspec.MsgspecError as damage:
            raise ConfigurationMismatch(f"{address} speaks another version of the protocol: {damage}") from None


def _take_one(on_reply: OnReply, acceptor: int, group: list[Reply]) -> None:
    on_reply(acceptor, group[0])


def _take_group(on_replies: OnReplies, acceptor: int, group: list[Reply]) -> None:
    on_replies(acceptor, list(enumerate(group)))


# -- The acceptor's side ----------------------------------------------------------------------------------------------


class Peers(Protocol):
    """What the service needs of its node."""

    def acceptor(self) -> Acceptor:
        """The acceptor. Raises Unavailable while it may not vote."""
        ...

    def hello(self) -> wire.Hello:
        """Who this node is."""
        ...

    async def init(self, configuration: Configuration) -> wire.Hello:
        """Initialise an empty acceptor. Raises ConfigurationMismatch."""
        ...

    async def establish(self, configuration: Configuration) -> wire.Hello:
        """All members have been initialised. Raises ConfigurationMismatch."""
        ...

    async def join(self, configuration: Configuration) -> wire.Hello:
        """Make the store of an acceptor that is to join. Raises ConfigurationMismatch, StoreError."""
        ...

    def adopted(self, membership: Membership) -> None:
        """The acceptor has this membership now."""
        ...

    async def peer_status(self) -> wire.PeerStatus:
        """This node as its peers show it."""
        ...

    def life(self) -> wire.Life:
        """This run of the node. Raises Unavailable while its acceptor may not vote."""
        ...

    def position(self) -> int:
        """The number of the acceptor's last durable batch."""
        ...

    def remembered(self, node_id: int) -> wire.Remembered:
        """What this node remembers of another one."""
        ...


class PeerService:
    """Serves other nodes."""

    def __init__(self, node: Peers) -> None:
        self._node = node
        self.streams = ServedStreams()
        self.messages_sent = 0

    def handler(self) -> Handler:
        """For ``server.add_generic_rpc_handlers``."""
        unary = grpc.unary_unary_rpc_method_handler
        return grpc.method_handlers_generic_handler(
            wire.PEER_SERVICE,
            {
                wire.STREAM: grpc.stream_stream_rpc_method_handler(cast(Any, self._stream)),
                wire.SCAN: unary(cast(Any, self._scan)),
                wire.INVENTORY: unary(cast(Any, self._inventory)),
                wire.DIGESTS: unary(cast(Any, self._digests)),
                wire.CHANGES: unary(cast(Any, self._changes)),
                wire.HELLO: unary(cast(Any, self._hello)),
                wire.INIT: unary(cast(Any, self._init)),
                wire.ESTABLISH: unary(cast(Any, self._establish)),
                wire.JOIN: unary(cast(Any, self._join)),
                wire.STATUS: unary(cast(Any, self._status)),
                wire.POSITION: unary(cast(Any, self._position)),
            },
        )

    async def _stream(self, _: object, context: Any) -> None:
        try:
            self._check_meant(dict(context.invocation_metadata()).get(wire.NODE, ""))
            acceptor = self._node.acceptor()
            life = self._node.life()
        except ObjmetaError as problem:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(problem))
            return
        await context.send_initial_metadata(((wire.LIFE, wire.encode(life)),))
        answers = _Answers(acceptor, self._node.adopted)
        await self.streams.serve(context, answers.outbox, self._frame, answers.take)

    def _check_meant(self, meant: str) -> None:
        own = self._node.hello().node_id
        if meant != str(own):
            raise ConfigurationMismatch(f"this is node {own}, not node {meant}: the peers' addresses are mixed up")

    def _frame(self, items: list[bytes]) -> bytes:
        self.messages_sent += 1
        return wire.encode((wire.raw(items), self._node.position()))

    async def _scan(self, message: bytes, context: Any) -> bytes:
        try:
            asked = wire.decode_peer_scan(message)
            self._check_meant(str(asked.node_id))
            return wire.encode(wire.PeerScanned(await self._node.acceptor().scan(asked.tag, asked.request)))
        except ObjmetaError as problem:
            return wire.encode(wire.PeerScanned(None, wire.failure(problem)))

    async def _inventory(self, message: bytes, context: Any) -> bytes:
        async def answer(asked: wire.PeerQuestion) -> Inventory:
            return await self._node.acceptor().inventory(asked.tag, wire.decode_inventory_request(asked.request))

        return await self._answered(message, answer)

    async def _digests(self, message: bytes, context: Any) -> bytes:
        async def answer(asked: wire.PeerQuestion) -> Digests:
            return await self._node.acceptor().digests(asked.tag, wire.decode_digest_request(asked.request))

        return await self._answered(message, answer)

    async def _changes(self, message: bytes, context: Any) -> bytes:
        async def answer(asked: wire.PeerQuestion) -> Changes:
            request = wire.decode_changes_request(asked.request)
            return await self._node.acceptor().changes(request.since, request.limit)

        return await self._answered(message, answer)

    async def _answered(self, message: bytes, answer: Callable[[wire.PeerQuestion], Awaitable[object]]) -> bytes:
        try:
            asked = wire.decode_peer_question(message)
            self._check_meant(str(asked.node_id))
            return wire.encode(wire.PeerAnswer(msgspec.Raw(wire.encode(await answer(asked)))))
        except ObjmetaError as problem:
            return wire.encode(wire.PeerAnswer(_NOTHING, wire.failure(problem)))

    async def _hello(self, message: bytes, context: Any) -> bytes:
        return wire.encode(self._node.hello())

    async def _init(self, message: bytes, context: Any) -> bytes:
        return await self._configured(self._node.init, message)

    async def _establish(self, message: bytes, context: Any) -> bytes:
        return await self._configured(self._node.establish, message)

    async def _join(self, message: bytes, context: Any) -> bytes:
        return await self._configured(self._node.join, message)

    async def _configured(self, act: Callable[[Configuration], Awaitable[wire.Hello]], message: bytes) -> bytes:
        try:
            return wire.encode(await act(wire.decode_configuration(message)))
        except ObjmetaError as problem:
            return wire.encode(msgspec.structs.replace(self._node.hello(), problem=str(problem)))

    async def _status(self, message: bytes, context: Any) -> bytes:
        return wire.encode(await self._node.peer_status())

    async def _position(self, message: bytes, context: Any) -> bytes:
        return wire.encode(self._node.remembered(wire.decode_node_id(message)))


class _Answers:
    """Requests of one stream on their way through the acceptor; answers of one commit leave in one message."""

    def __init__(self, acceptor: Acceptor, on_adopted: Callable[[Membership], None]) -> None:
        self._on_adopted = on_adopted
        self.outbox: Outbox[bytes] = Outbox(asyncio.get_running_loop())
        self._acceptor = acceptor
        self._unanswered = 0
        self._room = asyncio.Event()

    async def take(self, message: bytes) -> None:
        batch = wire.decode_peer_batch(message)
        for number, requests in batch.items:
            self._unanswered += len(requests)
            self._acceptor.submit_all(batch.tag, requests, functools.partial(self._answer, number))
        if self._unanswered > _UNANSWERED_MAX:
            await self._room_again()

    async def _room_again(self) -> None:
        while self._unanswered > _UNANSWERED_MAX:
            self._room.clear()
            try:
                async with asyncio.timeout(_HELD_UP_S_MAX):
                    await self._room.wait()
            except TimeoutError:
                self._unanswered = 0  # a commit whose outcome is unknown is never answered

    def _answer(self, number: int, replies: list[Reply]) -> None:
        for reply in replies:
            if isinstance(reply, Adopted):
                self._on_adopted(reply.membership)
        item = wire.encode((number, replies))
        self.outbox.put(item, len(item))
        self._unanswered -= len(replies)
        if not self._room.is_set():
            self._room.set()
