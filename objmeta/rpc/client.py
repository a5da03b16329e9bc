"""Registers of a cluster, for a process that is not a node of it.

Theory of operation.  Every name has a home among the nodes (``core.home``), where its changes queue in one place and
first writes take one round trip: a hint for speed, never for safety.  An operation goes to its home; a copy goes to
the next node

* at once, when the connection cannot be made or breaks, or the node says that it takes no operations;
* when the node owes answers and was not heard of for ``failover_s``, or is out of touch with a majority.

Acceptors apply an operation at most once whoever proposes it, so copies of a change do no harm, and the first success
decides.  A refusal, an error or a "no quorum" decides only when no copy is left that may still apply; if the outcome of
a copy can no longer be known (its connection broke), all that is left to say is UnknownOutcome.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Final

from objmeta.core.home import home_of
from objmeta.core.listing import ScanRequest
from objmeta.core.messages import Fence, Record, RecordRef, State
from objmeta.errors import (
    InvalidArgument,
    NoQuorum,
    ObjmetaError,
    Unavailable,
    UnknownOutcome,
)
from objmeta.interfaces import ChangeReply, ChangeRequest, ScanPage, StoreStatus
from objmeta.model.changes import ModelChange
from objmeta.rpc import wire
from objmeta.rpc.link import SILENT_TICKS, Call, Condition, NodeLink
from objmeta.rpc.options import ITEM_BYTES_MAX, check_process

_STRANDED_S_MAX: Final = 1.0
"""How long an operation waits for any node at all to take it: long enough for one that is being restarted."""


class RemoteRegisters:
    """Satisfies :class:`objmeta.interfaces.Registers`; belongs to one event loop of one process.

    ``endpoints`` are ``host:port`` of any of the nodes; ``failover_s`` is how long a silent node is waited for before
    another one is asked as well.  Connects at first use.  Raises ForkedClient in a forked child.
    """

    def __init__(self, endpoints: Sequence[str], failover_s: float = 0.1) -> None:
        if not endpoints:
            raise InvalidArgument("a cluster is named by at least one host:port")
        check_process()
        self._pid = os.getpid()
        self._loop = asyncio.get_running_loop()
        self._links = [NodeLink(endpoint, self) for endpoint in dict.fromkeys(endpoints)]
        self._tick_s = failover_s / SILENT_TICKS
        self._ticking: asyncio.TimerHandle | None = None
        self._calls: dict[int, Call] = {}
        self._stranded: dict[int, Call] = {}
        self._members: tuple[int, ...] = ()
        self._number = 0
        self._closed = False

    @property
    def connections(self) -> int:
        """How many nodes it is connected to."""
        return sum(link.condition is Condition.READY for link in self._links)

    @property
    def messages_sent(self) -> int:
        """How many messages were sent, to all nodes together."""
        return sum(link.messages_sent for link in self._links)

    # -- Registers ----------------------------------------------------------------------------------------------------

    async def read(self, names: Sequence[bytes], timeout_s: float, fence: Fence | None = None) -> list[State | None]:
        """See :class:`objmeta.interfaces.Registers`."""
        if not names:
            return []
        result = await self._perform(wire.ReadNames(tuple(names), fence), names[0], timeout_s)
        assert isinstance(result, wire.States)
        return result.states

    async def change(self, request: ChangeRequest, timeout_s: float) -> ChangeReply:
        """See :class:`objmeta.interfaces.Registers`. Raises InvalidArgument for a change that cannot travel."""
        if not isinstance(request.change, ModelChange):
            kind = type(request.change).__name__
            raise InvalidArgument(f"a change of kind {kind} cannot travel to a node; only those of the model can")
        operation = wire.ChangeName(request.name, request.change, request.fence, request.generation)
        result = await self._perform(operation, request.name, timeout_s, changes=True)
        assert isinstance(result, wire.Changed)
        return result.reply

    async def records(
        self, name: bytes, refs: Sequence[RecordRef], timeout_s: float, with_data: bool = True
    ) -> list[Record]:
        """See :class:`objmeta.interfaces.Registers`."""
        result = await self._perform(wire.FetchRecords(name, tuple(refs), with_data), name, timeout_s)
        assert isinstance(result, wire.Records)
        return result.records

    async def scan(self, request: ScanRequest, timeout_s: float) -> ScanPage:
        """See :class:`objmeta.interfaces.Registers`."""
        result = await self._perform(wire.ScanNames(request), request.start, timeout_s)
        assert isinstance(result, wire.Page)
        return result.page

    async def raise_term(self, scope: bytes, term: int, timeout_s: float) -> None:
        """See :class:`objmeta.interfaces.Registers`."""
        await self._perform(wire.RaiseScope(scope, term), scope, timeout_s, changes=True)

    async def status(self, timeout_s: float) -> StoreStatus:
        """See :class:`objmeta.interfaces.Registers`. Raises NoQuorum only if no node answers at all."""
        result = await self._perform(wire.AskStatus(), b"", timeout_s)
        assert isinstance(result, wire.Health)
        return result.status

    async def close(self) -> None:
        """Close the connections; operations under way fail. In a forked child nothing is touched."""
        if os.getpid() != self._pid:
            return
        self._closed = True
        if self._ticking is not None:
            self._ticking.cancel()
        for call in list(self._calls.values()):
            self._give_up(call, "the client was closed")
        await asyncio.gather(*(link.close() for link in self._links))

    # -- An operation from beginning to end ---------------------------------------------------------------------------

    async def _perform(
        self, operation: wire.Operation, name: bytes, timeout_s: float, changes: bool = False
    ) -> wire.Result:
        check_process()
        if self._closed:
            raise InvalidArgument("this client is closed; open a new one")
        encoded = wire.encode(operation)
        if len(encoded) > ITEM_BYTES_MAX:
            raise InvalidArgument(f"the operation has {len(encoded)} bytes; at most {ITEM_BYTES_MAX} can travel")
        self._number += 1
        loop = self._loop
        call = Call(self._number, encoded, name, changes, loop.time() + timeout_s, loop.create_future())
        self._calls[call.number] = call
        if not self._members:
            for link in self._links:
                link.connect()
        self._dispatch(call)
        if self._ticking is None:
            self._ticking = loop.call_later(self._tick_s, self._tick)
        try:
            result = await call.future
        finally:
            self._forget(call)
        if isinstance(result, wire.Failure):
            raise wire.error(result)
        return result

    def _forget(self, call: Call) -> None:
        self._calls.pop(call.number, None)
        self._stranded.pop(call.number, None)
        for link in call.open:
            link.forget(call)

    def _dispatch(self, call: Call) -> None:
        """Send a copy to the best node that holds none; without any, the call is stranded for the moment."""
        link = self._pick(call, healthy_only=False)
        if link is not None:
            call.open.append(link)
            link.send(call)
        elif not call.open and not call.future.done():
            self._stranded[call.number] = call
            if call.stranded_at is None:
                call.stranded_at = self._loop.time()

    def _pick(self, call: Call, healthy_only: bool) -> NodeLink | None:
        now = self._loop.time()
        usable: NodeLink | None = None
        for link in self._ordered(call.name):
            if link in call.open:
                continue
            if link.condition is Condition.DOWN:
                link.connect()
            if link.is_healthy(now):
                return link
            if usable is None and link.is_usable(now):
                usable = link
        return None if healthy_only else usable

    def _ordered(self, name: bytes) -> list[NodeLink]:
        """The links, the home of ``name`` first and then in a circle; any order will do while the homes are unknown."""
        links = self._links
        if not self._members:
            return links
        home = home_of(name, self._members)
        first = next((at for at, link in enumerate(links) if link.node_id == home), 0)
        return links[first:] + links[:first] if first else links

    # -- What the links report ----------------------------------------------------------------------------------------

    def on_ready(self) -> None:
        """A connection is up: the homes are known now, and those that found no node may go."""
        self._members = next((link.members for link in self._links if link.members), ())
        stranded = list(self._stranded.values())
        self._stranded.clear()
        for call in stranded:
            self._dispatch(call)

    def on_result(self, link: NodeLink, number: int, result: wire.Result) -> None:
        """A node answered one copy."""
        call = self._calls.get(number)
        if call is None or call.future.done():
            return
        call.open.remove(link)
        if not isinstance(result, wire.Failure) and not (isinstance(result, wire.Changed) and result.reply.code):
            call.future.set_result(result)
        elif isinstance(result, wire.Failure) and result.kind == Unavailable.kind:
            link.rest()
            link.problem = result.message
            self._next_copy(call)
        else:
            if call.negative is None or _weight(result) > _weight(call.negative):
                call.negative = result
            if not call.open:
                self._settle(call)

    def on_down(self, link: NodeLink, unsent: list[Call], sent: list[Call]) -> None:
        """A connection is gone: all its calls go elsewhere at once."""
        for call in (*unsent, *sent):
            if link in call.open:
                call.open.remove(link)
        for call in sent:
            call.lost = True
            call.stranded_at = None  # a node had taken it
        for call in (*sent, *unsent):
            self._next_copy(call)

    def _next_copy(self, call: Call) -> None:
        """A copy is gone. Unless a healthy node works on another, send one more: its success would decide."""
        now = self._loop.time()
        if self._closed or call.future.done() or any(link.is_healthy(now) for link in call.open):
            return
        if call.negative is not None and not call.open and not call.lost:
            self._settle(call)
        else:
            self._dispatch(call)

    def _settle(self, call: Call) -> None:
        """Every copy has answered or is lost, and none succeeded."""
        assert call.negative is not None, "a call is settled by an answer"
        if call.lost and call.changes:
            self._fail(call, UnknownOutcome(_MAYBE.format("a node was lost while it worked on the change")))
        else:
            call.future.set_result(call.negative)

    def _give_up(self, call: Call, why: str) -> None:
        """No answer can be waited for any longer."""
        if call.future.done():
            return
        begun = call.lost or any(link.holds(call) for link in call.open) or _weight(call.negative) == _UNKNOWN
        if call.changes and begun:
            self._fail(call, UnknownOutcome(_MAYBE.format(why)))
        else:
            self._fail(call, NoQuorum(f"{why}{self._problems()}"))

    @staticmethod
    def _fail(call: Call, error: ObjmetaError) -> None:
        call.future.set_exception(error)

    def _problems(self) -> str:
        """What is wrong with the endpoints, for people."""
        wrong = [link for link in self._links if link.problem or link.owes]
        found = [f"{link.endpoint}: {link.problem or 'no answer'}" for link in wrong]
        return f" ({'; '.join(found)})" if found else ""

    # -- Time ---------------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._ticking = None
        now = self._loop.time()
        for link in self._links:
            link.tick()
            if link.owes and not link.is_healthy(now):
                for call in link.owed():
                    self._hedge(call, now)
        for call in list(self._calls.values()):
            if now >= call.deadline:
                self._give_up(call, "no node answered in time")
        for call in list(self._stranded.values()):
            self._retry(call, now)
        if self._calls and not self._closed:
            self._ticking = self._loop.call_later(self._tick_s, self._tick)

    def _hedge(self, call: Call, now: float) -> None:
        if call.future.done() or any(link.is_healthy(now) for link in call.open):
            return
        link = self._pick(call, healthy_only=True)
        if link is not None:
            call.open.append(link)
            link.send(call)

    def _retry(self, call: Call, now: float) -> None:
        if call.future.done():
            return
        if call.stranded_at is not None and now - call.stranded_at > _STRANDED_S_MAX:
            endpoints = ", ".join(link.endpoint for link in self._links)
            self._give_up(call, f"none of the nodes at {endpoints} takes operations")
            return
        self._stranded.pop(call.number, None)
        self._dispatch(call)


_MAYBE: Final = "{}; the change may or may not have been applied"
_UNKNOWN: Final = 3


def _weight(result: wire.Result | None) -> int:
    """Of several answers that are no success, the one that says most is passed on; "unknown" overrules all."""
    if result is None:
        return 0
    if isinstance(result, wire.Changed) and result.reply.proposed:
        return _UNKNOWN
    if not isinstance(result, wire.Failure):
        return 2
    if result.kind == UnknownOutcome.kind:
        return _UNKNOWN
    return 1
