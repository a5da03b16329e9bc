"""A node's side of the client stream: takes batches of operations, answers each as soon as it is done.

Rules.  An empty batch is answered by an empty one at once, by the event loop itself: a busy node is not a dead one.  A
client that is gone has its operations cancelled: it sends them to another node, and two nodes at one register are in
each other's way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, cast

import grpc

from objmeta.core.configuration import Membership
from objmeta.core.erasure import FIRST_GENERATION
from objmeta.errors import ObjmetaError, StoreError, UnknownOutcome
from objmeta.interfaces import ChangeReply, ChangeRequest, MembersStatus, Registers, StoreStatus
from objmeta.rpc import wire
from objmeta.rpc.batching import Outbox
from objmeta.rpc.options import ITEM_BYTES_MAX, Handler
from objmeta.rpc.streams import ServedStreams

_IN_FLIGHT_MAX: Final = 4096
"""Operations of one client at a time; beyond it its stream is not read, and the client waits."""
_ANSWERS_A_MESSAGE_MAX: Final = 32
"""A client's next operations follow on these answers. In shorter messages they set off while the rest is unpacked, so
that client, proposer and disk work at the same time and not in turn (64 writers: an eighth more puts/s)."""
_TIMEOUT_S_MAX: Final = 3600.0

_log = logging.getLogger(__name__)


class Proposer(Protocol):
    """Where a change may be sent."""

    def change(self, request: ChangeRequest, timeout_s: float) -> Awaitable[ChangeReply]:
        """See :class:`objmeta.interfaces.Registers`."""
        ...


class Door(Protocol):
    """What the service needs of its node."""

    def place(self) -> tuple[int, tuple[int, ...]]:
        """The node's id and those of all members, so that clients find the homes of registers."""
        ...

    def membership(self) -> Membership | None:
        """The members and where they are, as far as this node knows; None before it belongs to a store."""
        ...

    async def members_status(self, brief: bool, timeout_s: float) -> MembersStatus:
        """The same, with how they are unless ``brief``. Raises Unavailable."""
        ...

    async def change_members(self, request: wire.ChangeMembers, timeout_s: float) -> Membership:
        """Begin a change of the members; what stands now. Raises Conflict, InvalidArgument, Unavailable."""
        ...

    def registers(self) -> Registers:
        """Where operations go. Raises Unavailable while the node takes none."""
        ...

    def proposer(self, sent_on: bool) -> Proposer:
        """Where changes go: to the home of their register, or with ``sent_on`` no further. Raises Unavailable."""
        ...

    async def status(self, timeout_s: float) -> StoreStatus:
        """Answers also when the node takes no operations."""
        ...

    def generation(self) -> int:
        """The newest generation known to have begun, at once."""
        ...

    def in_touch(self) -> bool:
        """Whether the node has connections to a majority, itself included."""
        ...


class ClientService:
    """Serves clients."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._clients: set[_Client] = set()
        self.streams = ServedStreams()
        self.messages_sent = 0

    def handler(self) -> Handler:
        """For ``server.add_generic_rpc_handlers``."""
        stream = grpc.stream_stream_rpc_method_handler(cast(Any, self._stream))
        return grpc.method_handlers_generic_handler(wire.CLIENT_SERVICE, {wire.STREAM: stream})

    @property
    def in_flight(self) -> int:
        """How many operations are being worked on."""
        return sum(len(client.tasks) for client in self._clients)

    async def drained(self, timeout_s: float) -> None:
        """Wait until no operation is in flight, or for ``timeout_s``."""
        tasks = [task for client in self._clients for task in client.tasks.values()]
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)

    async def _stream(self, _: object, context: Any) -> None:
        node_id, members = self._door.place()
        metadata: list[tuple[str, str | bytes]] = [
            (wire.NODE, str(node_id)),
            (wire.MEMBERS, ",".join(map(str, members))),
        ]
        membership = self._door.membership()
        if membership is not None:
            metadata.append((wire.MEMBERSHIP, wire.encode(membership)))
        await context.send_initial_metadata(tuple(metadata))
        client = _Client(self.answer)
        self._clients.add(client)
        try:
            await self.streams.serve(context, client.outbox, self._frame, client.take)
        finally:
            await client.cancel()
            self._clients.remove(client)

    def _frame(self, items: list[bytes]) -> bytes:
        self.messages_sent += 1
        membership = self._door.membership()
        epoch = membership.configuration.epoch if membership is not None else 0
        return wire.encode((wire.raw(items), self._door.in_touch(), epoch, self._door.generation()))

    async def answer(self, number: int, timeout_s: float, operation: wire.Operation) -> bytes:
        """Perform an operation; the item that answers it, also when it failed."""
        allowed_s = min(timeout_s, _TIMEOUT_S_MAX) if timeout_s > 0 else 0.0
        result: wire.Result
        try:
            if isinstance(operation, wire.ChangeName):  # nearly all are
                result = wire.Changed(await self._change(operation, allowed_s))
            else:
                result = await self._perform(operation, allowed_s)
        except ObjmetaError as problem:
            result = wire.failure(problem)
        except Exception as defect:
            _log.exception("an operation failed in an unforeseen way")
            result = wire.failure(_unforeseen(operation, defect))
        item = wire.encode((number, result))
        if len(item) > ITEM_BYTES_MAX:
            too_long = f"the answer has {len(item)} bytes, at most {ITEM_BYTES_MAX} can travel; ask for less at a time"
            item = wire.encode((number, wire.failure(StoreError(too_long))))
        return item

    def _change(self, operation: wire.ChangeName, timeout_s: float) -> Awaitable[ChangeReply]:
        generation = max(operation.generation, FIRST_GENERATION)
        request = ChangeRequest(operation.name, operation.change, operation.fence, generation)
        return self._door.proposer(operation.sent_on).change(request, timeout_s)

    async def _perform(self, operation: wire.OtherOperation, timeout_s: float) -> wire.Result:
        match operation:
            case wire.ReadNames(names, fence):
                return wire.States(await self._door.registers().read(names, timeout_s, fence))
            case wire.FetchRecords(name, refs, with_data):
                return wire.Records(await self._door.registers().records(name, refs, timeout_s, with_data))
            case wire.ScanNames(request=scan):
                return wire.Page(await self._door.registers().scan(scan, timeout_s))
            case wire.AskChanges(since, limit):
                return wire.Followed(await self._door.registers().changes(since, limit, timeout_s))
            case wire.RaiseScope(scope, term):
                await self._door.registers().raise_term(scope, term, timeout_s)
                return wire.Raised()
            case wire.AskStatus():
                return wire.Health(await self._door.status(timeout_s))
            case wire.AskMembers(brief):
                return wire.Members(await self._door.members_status(brief, timeout_s))
            case wire.ChangeMembers():
                return wire.MembersChanging(await self._door.change_members(operation, timeout_s))
            case wire.Collect(run, wait_s):
                return wire.Collection(await self._door.registers().collect(run, min(wait_s, timeout_s)))
            case wire.BeginCycle(wait_s):
                return wire.CycleBegun(await self._door.registers().begin_cycle(min(wait_s, timeout_s)))


class _Client:
    """The operations of one stream, each in a task of its own, and their answers on the way out."""

    def __init__(self, answer: Callable[[int, float, wire.Operation], Awaitable[bytes]]) -> None:
        self._answer = answer
        self._loop = asyncio.get_running_loop()
        self._taken = 0
        self.outbox: Outbox[bytes] = Outbox(self._loop, _ANSWERS_A_MESSAGE_MAX)
        self.tasks: dict[int, asyncio.Task[None]] = {}
        """Those under way; each takes itself out (a callback at its end would cost more)."""

    async def take(self, message: bytes) -> None:
        batch = wire.decode_client_batch(message)
        if not batch.items:
            self.outbox.nudge()
        for number, timeout_s, operation in batch.items:
            self._taken += 1
            self.tasks[self._taken] = self._loop.create_task(self._work(self._taken, number, timeout_s, operation))
        while len(self.tasks) > _IN_FLIGHT_MAX:
            await asyncio.wait(tuple(self.tasks.values()), return_when=asyncio.FIRST_COMPLETED)

    async def _work(self, place: int, number: int, timeout_s: float, operation: wire.Operation) -> None:
        try:
            item = await self._answer(number, timeout_s, operation)
            self.outbox.put(item, len(item))
        finally:
            del self.tasks[place]

    async def cancel(self) -> None:
        """Give up what is under way."""
        tasks = tuple(self.tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _unforeseen(operation: wire.Operation, defect: Exception) -> ObjmetaError:
    """Nothing is known about what was done, so a change may have been."""
    text = f"the node failed in an unforeseen way ({type(defect).__name__}: {defect}); its log says where"
    if isinstance(operation, wire.ChangeName | wire.RaiseScope | wire.ChangeMembers):
        return UnknownOutcome(text)
    return StoreError(text)
