"""A node's side of the client stream: takes batches of operations, answers each as soon as it is done.

Rules.  An empty batch is answered by an empty one at once, by the event loop itself: a busy node is not a dead one.  A
client that is gone has its operations cancelled: it sends them to another node, and two nodes at one register are in
each other's way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, Protocol, cast

from objmeta.core.configuration import Membership
from objmeta.core.erasure import FIRST_GENERATION
from objmeta.errors import ObjmetaError, StoreError, UnknownOutcome
from objmeta.grpcio import grpc
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

_NumberedChange = tuple[int, float, wire.ChangeName]

_log = logging.getLogger(__name__)


class Proposer(Protocol):
    """Where a change may be sent."""

    def change(self, request: ChangeRequest, timeout_s: float) -> Awaitable[ChangeReply]:
        """See :class:`objmeta.interfaces.Registers`."""
        ...

    async def change_all(
        self,
        requests: Sequence[ChangeRequest],
        timeouts_s: Sequence[float],
        answered: Callable[[int, ChangeReply | Exception], None],
    ) -> None:
        """Some that came together; ``answered`` is called for each, with its place. Returns when all have answers."""
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
        return sum(client.in_flight for client in self._clients)

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
        client = _Client(self)
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
        result: wire.Result
        try:
            if isinstance(operation, wire.ChangeName):
                proposer = self._door.proposer(operation.sent_on)
                result = wire.Changed(await proposer.change(_request(operation), _allowed(timeout_s)))
            else:
                result = await self._perform(operation, _allowed(timeout_s))
        except Exception as problem:
            result = _failure(operation, problem)
        return _item(number, result)

    async def answer_changes(self, changes: Sequence[_NumberedChange], put: Callable[[bytes], None]) -> None:
        """Perform changes that came together, nearly all there is to do; ``put`` takes the items that answer them."""
        open_places = dict.fromkeys(range(len(changes)))

        def answered(place: int, answer: ChangeReply | Exception) -> None:
            del open_places[place]
            number, _, operation = changes[place]
            if isinstance(answer, Exception):
                put(_item(number, _failure(operation, answer)))
            else:
                put(_item(number, wire.Changed(answer)))

        requests = [_request(operation) for _, _, operation in changes]
        allowed_s = [_allowed(timeout_s) for _, timeout_s, _ in changes]
        try:
            await self._door.proposer(changes[0][2].sent_on).change_all(requests, allowed_s, answered)
        except Exception as problem:
            for place in list(open_places):
                answered(place, problem)

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
    """The operations of one stream, and their answers on the way out.

    Changes that come in one message are worked on together, each other operation in a task of its own.
    """

    def __init__(self, service: ClientService) -> None:
        self._service = service
        self._loop = asyncio.get_running_loop()
        self._taken = 0
        self._room: asyncio.Future[None] | None = None
        self.in_flight = 0
        self.outbox: Outbox[bytes] = Outbox(self._loop, _ANSWERS_A_MESSAGE_MAX)
        self.tasks: dict[int, asyncio.Task[None]] = {}
        """Those under way; each takes itself out (a callback at its end would cost more)."""

    async def take(self, message: bytes) -> None:
        batch = wire.decode_client_batch(message)
        if not batch.items:
            self.outbox.nudge()
        self.in_flight += len(batch.items)
        together: list[_NumberedChange] = []
        for number, timeout_s, operation in batch.items:
            if isinstance(operation, wire.ChangeName) and (not together or together[0][2].sent_on is operation.sent_on):
                together.append((number, timeout_s, operation))
            else:
                self._begin(self._work(self._taken + 1, number, timeout_s, operation))
        if together:
            self._begin(self._work_together(self._taken + 1, together))
        while self.in_flight > _IN_FLIGHT_MAX and self.tasks:
            self._room = self._loop.create_future()
            await self._room

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        self._taken += 1
        self.tasks[self._taken] = self._loop.create_task(work)

    async def _work(self, place: int, number: int, timeout_s: float, operation: wire.Operation) -> None:
        try:
            self._put(await self._service.answer(number, timeout_s, operation))
        finally:
            self._end(place)

    async def _work_together(self, place: int, changes: list[_NumberedChange]) -> None:
        try:
            await self._service.answer_changes(changes, self._put)
        finally:
            self._end(place)

    def _put(self, item: bytes) -> None:
        self.in_flight -= 1
        self.outbox.put(item, len(item))
        if self._room is not None and self.in_flight <= _IN_FLIGHT_MAX:
            self._make_room(self._room)

    def _end(self, place: int) -> None:
        del self.tasks[place]
        if self._room is not None and not self.tasks:
            self._make_room(self._room)

    def _make_room(self, room: asyncio.Future[None]) -> None:
        self._room = None
        if not room.done():
            room.set_result(None)

    async def cancel(self) -> None:
        """Give up what is under way."""
        tasks = tuple(self.tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _request(operation: wire.ChangeName) -> ChangeRequest:
    generation = max(operation.generation, FIRST_GENERATION)
    return ChangeRequest(operation.name, operation.change, operation.fence, generation)


def _allowed(timeout_s: float) -> float:
    return min(timeout_s, _TIMEOUT_S_MAX) if timeout_s > 0 else 0.0


def _item(number: int, result: wire.Result) -> bytes:
    item = wire.encode((number, result))
    if len(item) > ITEM_BYTES_MAX:
        too_long = f"the answer has {len(item)} bytes, at most {ITEM_BYTES_MAX} can travel; ask for less at a time"
        item = wire.encode((number, wire.failure(StoreError(too_long))))
    return item


def _failure(operation: wire.Operation, problem: Exception) -> wire.Failure:
    if isinstance(problem, ObjmetaError):
        return wire.failure(problem)
    _log.error("an operation failed in an unforeseen way", exc_info=problem)
    return wire.failure(_unforeseen(operation, problem))


def _unforeseen(operation: wire.Operation, defect: Exception) -> ObjmetaError:
    """Nothing is known about what was done, so a change may have been."""
    text = f"the node failed in an unforeseen way ({type(defect).__name__}: {defect}); its log says where"
    if isinstance(operation, wire.ChangeName | wire.RaiseScope | wire.ChangeMembers):
        return UnknownOutcome(text)
    return StoreError(text)
