"""A client's connection to one node, and the operations that node owes.

::

    IDLE -> CONNECTING -> READY -> DOWN -> CONNECTING …      (connections are made on demand only)

An operation counts as sent from the moment a message is put together with it: from then on its outcome is unknown until
it is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from typing import Any, Final, Protocol

import msgspec

from objmeta.core.configuration import Membership
from objmeta.grpcio import grpc
from objmeta.rpc import wire
from objmeta.rpc.batching import Outbox
from objmeta.rpc.options import CONNECT_S_MAX, RECONNECT_S_MAX, RECONNECT_S_MIN, open_channel
from objmeta.rpc.streams import converse

PING_AFTER_TICKS: Final = 2
SILENT_TICKS: Final = 4
"""A node that owes answers and was not heard of for this many ticks is passed over. Counted in ticks, not in time, so
that an event loop which was blocked blames itself and not the nodes."""
_PATIENCE_TICKS_MAX: Final = 80
_PATIENCE_KEPT: Final = 0.98
"""A node that was passed over and answers after all is only slow, and asking others as well makes all of them slower
yet: from then on twice as much silence is borne, up to a bound, and less again with each tick in time."""
_BREAK_AFTER_TICKS: Final = 400
"""After this many the connection is broken off: its operations have long been sent elsewhere."""
_RESTING_S: Final = 0.05
"""A node that takes no operations is asked again after this long."""


class Condition(enum.Enum):
    """Where a connection stands."""

    IDLE = enum.auto()
    CONNECTING = enum.auto()
    READY = enum.auto()
    DOWN = enum.auto()


class Call(msgspec.Struct, eq=False):
    """One operation on its way to an answer."""

    number: int
    operation: bytes
    name: bytes
    changes: bool
    deadline: float
    future: asyncio.Future[wire.Result]
    hedged: bool = True
    """Whether another node is asked as well when the one at work is silent."""
    at: int = 0
    """The node to ask first, 0: the home of the name."""
    open: list[NodeLink] = []
    """Nodes that hold a copy and have not answered."""
    lost: bool = False
    """Whether a copy was sent whose outcome can no longer be known."""
    negative: wire.Result | None = None
    """The weightiest answer that is no success."""
    stranded_at: float | None = None
    """Since when there is no node to send it to."""


class Owner(Protocol):
    """What a link tells its client."""

    def on_ready(self, link: NodeLink) -> None:
        """A connection is up."""
        ...

    def on_generation(self, generation: int) -> None:
        """A node told the newest generation it knows."""
        ...

    def on_result(self, link: NodeLink, number: int, result: wire.Result) -> None:
        """A node answered."""
        ...

    def on_down(self, link: NodeLink, unsent: list[Call], sent: list[Call]) -> None:
        """A connection could not be made, or broke."""
        ...

    def on_lost(self, link: NodeLink) -> None:
        """A connection that was up is gone."""
        ...

    def on_epoch(self, link: NodeLink, epoch: int) -> None:
        """The node knows a membership of this epoch."""
        ...


class NodeLink:
    """The stream to one node. Belongs to one event loop; :meth:`close` must be awaited."""

    def __init__(self, endpoint: str, owner: Owner) -> None:
        self._loop = asyncio.get_running_loop()
        self._owner = owner
        self._outbox: Outbox[Call] = Outbox(self._loop)
        self._sent: dict[int, Call] = {}
        self._task: asyncio.Task[None] | None = None
        self._silent_ticks = 0
        self._patience = float(SILENT_TICKS)
        self._isolated = False
        self._rest_until = 0.0
        self._failed_last = False
        self._is_broken_off = False
        self._retry_at = 0.0
        self._wait_s = RECONNECT_S_MIN
        self.endpoint = endpoint
        self.node_id = 0
        """Which node answers there, 0 until it was heard of."""
        self.members: tuple[int, ...] = ()
        """All node ids, as that node knows them."""
        self.membership: Membership | None = None
        """The same with addresses, when the connection was made."""
        self.condition = Condition.IDLE
        self.problem = ""
        """Why the last connection ended, for people."""
        self.messages_sent = 0

    # -- What the client wants to know --------------------------------------------------------------------------------

    def is_healthy(self, now: float) -> bool:
        """Whether an operation should be sent here first. One that was never tried counts as healthy."""
        return (
            self.condition is not Condition.DOWN
            and not (self._failed_last and self.condition is Condition.CONNECTING)
            and self._silent_ticks < self._patience
            and not self._isolated
            and now >= self._rest_until
        )

    def is_usable(self, now: float) -> bool:
        """Whether an operation may be sent here when no node is healthy."""
        return self.condition is not Condition.DOWN and now >= self._rest_until

    @property
    def owes(self) -> bool:
        """Whether it was given operations that it has not answered."""
        return bool(self._sent) or len(self._outbox) > 0

    def holds(self, call: Call) -> bool:
        """Whether the operation was sent here and is not answered."""
        return call.number in self._sent

    def owed(self) -> list[Call]:
        """Operations this node was given and has not answered."""
        return [*self._sent.values(), *self._outbox]

    # -- What the client does -----------------------------------------------------------------------------------------

    def send(self, call: Call) -> None:
        """Queue an operation."""
        self._outbox.put(call, len(call.operation))
        if self.condition is Condition.IDLE:
            self.connect()

    def connect(self) -> None:
        """Make a connection unless there is one, one is being made, or it is too early to try again."""
        if self.condition is Condition.IDLE or (
            self.condition is Condition.DOWN and self._loop.time() >= self._retry_at
        ):
            self.condition = Condition.CONNECTING
            self._silent_ticks = 0
            self._task = self._loop.create_task(self._connection(), name=f"objmeta link to {self.endpoint}")

    def forget(self, call: Call) -> None:
        """Its answer is not wanted any more."""
        self._sent.pop(call.number, None)

    def rest(self) -> None:
        """The node takes no operations at the moment."""
        self._rest_until = self._loop.time() + _RESTING_S

    def tick(self) -> None:
        """Count the silence of a node that owes answers, and ask whether it is alive."""
        if not self.owes:
            return
        if self._silent_ticks < PING_AFTER_TICKS:
            self._patience = max(SILENT_TICKS, self._patience * _PATIENCE_KEPT)
        self._silent_ticks += 1
        if self._silent_ticks % SILENT_TICKS == PING_AFTER_TICKS:
            self._outbox.nudge()
        if self._silent_ticks > _BREAK_AFTER_TICKS and self._task is not None:
            self.problem = "it does not answer"
            self._is_broken_off = True
            self._task.cancel()

    async def close(self) -> None:
        """Close the connection; what is owed stays unanswered."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # -- The connection -----------------------------------------------------------------------------------------------

    async def _connection(self) -> None:
        is_ending = False
        self._is_broken_off = False
        channel = open_channel(self.endpoint)
        try:
            call = channel.stream_stream(wire.path(wire.CLIENT_SERVICE, wire.STREAM))()
            async with asyncio.timeout(CONNECT_S_MAX):
                told = dict(await call.initial_metadata())
                if wire.NODE not in told:
                    # gRPC has none either where no connection could be made: only reading says why
                    await call.read()
                    raise asyncio.InvalidStateError("this is no node")
            self._read_place(told)
            self._on_connected()
            await converse(call, self._outbox, self._frame, self._on_message)
            self.problem = "it closed the connection"
        except TimeoutError:
            self.problem = f"no connection within {CONNECT_S_MAX:g} s"
        except grpc.aio.AioRpcError as broken:
            self.problem = str(broken.details())
        except (asyncio.InvalidStateError, msgspec.MsgspecError) as broken:
            self.problem = str(broken)
        except asyncio.CancelledError:
            is_ending = not self._is_broken_off  # somebody closes it, or ends the event loop
            raise
        finally:
            self._on_disconnected(is_ending)
            with contextlib.suppress(asyncio.CancelledError):
                await channel.close()

    def _read_place(self, told: dict[str, Any]) -> None:
        with contextlib.suppress(ValueError):
            self.node_id = int(told[wire.NODE])
            self.members = tuple(int(member) for member in told.get(wire.MEMBERS, "").split(",") if member)
        encoded = told.get(wire.MEMBERSHIP)
        self.membership = wire.decode_membership(encoded) if isinstance(encoded, bytes) else None

    def _on_connected(self) -> None:
        self.condition = Condition.READY
        self.problem = ""
        self._failed_last = False
        self._isolated = False
        self._silent_ticks = 0
        self._wait_s = RECONNECT_S_MIN
        self._owner.on_ready(self)

    def _on_disconnected(self, is_ending: bool) -> None:
        was_lost = self.condition is Condition.READY and not is_ending
        self.condition = Condition.DOWN
        self._failed_last = True
        self._retry_at = self._loop.time() + self._wait_s
        self._wait_s = min(self._wait_s * 2, RECONNECT_S_MAX)
        unsent = self._outbox.clear()
        sent = list(self._sent.values())
        self._sent.clear()
        self._owner.on_down(self, unsent, sent)
        if was_lost:
            self._owner.on_lost(self)

    def _frame(self, calls: list[Call]) -> bytes:
        self.messages_sent += 1
        now = self._loop.time()
        items: list[tuple[int, float, msgspec.Raw]] = []
        for call in calls:
            if not call.future.done():
                self._sent[call.number] = call
                items.append((call.number, time_left(call, now), msgspec.Raw(call.operation)))
        return wire.encode((items,))

    async def _on_message(self, message: bytes) -> None:
        if self._silent_ticks >= self._patience:
            self._patience = min(2 * self._silent_ticks, _PATIENCE_TICKS_MAX)
        self._silent_ticks = 0
        replies = wire.decode_client_replies(message)
        self._isolated = not replies.connected
        self._owner.on_generation(replies.generation)
        if replies.epoch:
            self._owner.on_epoch(self, replies.epoch)
        sent, on_result = self._sent, self._owner.on_result
        for number, result in replies.items:
            if sent.pop(number, None) is not None:
                on_result(self, number, result)


def time_left(call: Call, now: float) -> float:
    """Seconds the node may take: a little less than the client waits, so that its definite answer still arrives."""
    left_s = call.deadline - now
    return max(0.0, left_s - min(0.2, left_s / 10))
