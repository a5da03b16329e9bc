"""Registers of a cluster, for a process that is not a node of it.

Theory of operation.  Every name has a home among the nodes (``core.home``), where its changes queue in one place and
first writes take one round trip: a hint for speed, never for safety.  An operation goes to its home; a copy goes to
the next node

* at once, when the connection cannot be made or breaks, or the node says that it takes no operations;
* when the node owes answers and was not heard of for ``failover_s`` (longer if it proved to be only slow: copies would
  make a crowded machine slower yet, until all it does is to answer copies), or is out of touch with a majority.

Acceptors apply an operation at most once whoever proposes it, so copies of a change do no harm, and the first success
decides.  A refusal, an error or a "no quorum" decides only when no copy is left that may still apply; if the outcome of
a copy can no longer be known (its connection broke), all that is left to say is UnknownOutcome.

Nodes say who the members are and where (when a connection is made, when their epoch turns out to be higher than the one
known here, and when one of them is gone).  The connections follow: to each member one.  A node that is no member any
more may finish what it was given.  When no member can be reached, the endpoints that were given at first are tried
again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from objmeta.core.configuration import Membership
from objmeta.core.erasure import FIRST_GENERATION, GENERATION_REGISTER, generation_in
from objmeta.core.home import home_of
from objmeta.core.listing import ScanRequest
from objmeta.core.messages import Fence, Record, RecordRef, State
from objmeta.errors import (
    ForkedClient,
    InvalidArgument,
    NoQuorum,
    ObjmetaError,
    StaleGeneration,
    Unavailable,
    UnknownOutcome,
)
from objmeta.interfaces import (
    ChangedNames,
    ChangeReply,
    ChangeRequest,
    Collected,
    Cycle,
    MembersStatus,
    ScanPage,
    StoreStatus,
    Watermarks,
)
from objmeta.model.changes import ModelChange
from objmeta.rpc import wire
from objmeta.rpc.link import SILENT_TICKS, Call, Condition, NodeLink
from objmeta.rpc.options import ITEM_BYTES_MAX

_COLLECT_LATE_S: Final = 10.0
"""How much later than asked for a node may say how far it is: it is busy then."""
_HEARD_IN_TIME: Final = 0.8
"""Which part of its time a node may use, so that it can still say who did not answer."""
_STRANDED_S_MAX: Final = 1.0
"""How long an operation waits for any node at all to take it: long enough for one that is being restarted."""


class RemoteRegisters:
    """Satisfies :class:`objmeta.interfaces.Registers`; belongs to one event loop of one process.

    ``endpoints`` are ``host:port`` of any of the nodes; ``failover_s`` is how long a silent node is waited for before
    another one is asked as well.  ``sent_on``: changes come from a node that sends them on.  Connects at first use.
    Raises ForkedClient in a forked child, which opens its own.
    """

    def __init__(self, endpoints: Sequence[str], failover_s: float = 0.1, *, sent_on: bool = False) -> None:
        if not endpoints:
            raise InvalidArgument("a cluster is named by at least one host:port")
        self._pid = os.getpid()
        self._loop = asyncio.get_running_loop()
        self._sent_on = sent_on
        self._given = tuple(dict.fromkeys(endpoints))
        self._links = [NodeLink(endpoint, self) for endpoint in self._given]
        self._leaving: list[NodeLink] = []
        self._parting: set[asyncio.Task[None]] = set()
        self._asking: asyncio.Task[None] | None = None
        self.epoch = 0
        """Of the highest membership heard of."""
        self._tick_s = failover_s / SILENT_TICKS
        self._ticking: asyncio.TimerHandle | None = None
        self._calls: dict[int, Call] = {}
        self._stranded: dict[int, Call] = {}
        self._members: tuple[int, ...] = ()
        self._number = 0
        self._generation = FIRST_GENERATION
        self._collector = 0
        self._closed = False

    @property
    def connections(self) -> int:
        """How many nodes it is connected to."""
        return sum(link.condition is Condition.READY for link in self._links)

    @property
    def messages_sent(self) -> int:
        """How many messages were sent, to all nodes together."""
        return sum(link.messages_sent for link in (*self._links, *self._leaving))

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
        deadline = self._loop.time() + timeout_s
        begun = self._generation
        operation = wire.ChangeName(
            request.name, request.change, request.fence, request.generation or begun, self._sent_on
        )
        try:
            result = await self._perform(operation, request.name, timeout_s, changes=True)
        except StaleGeneration:
            if request.generation:
                raise
            # Nothing was proposed anywhere, so it may begin anew, in the newest generation: the node has told it along
            # with that, or had not heard of it itself.
            left_s = deadline - self._loop.time()
            if self._generation <= begun:
                self.on_generation(generation_in((await self.read((GENERATION_REGISTER,), left_s))[0]))
            if self._generation <= begun:
                raise
            operation = msgspec.structs.replace(operation, generation=self._generation)
            result = await self._perform(operation, request.name, deadline - self._loop.time(), changes=True)
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

    async def changes(self, since: Watermarks | None, limit: int, timeout_s: float) -> ChangedNames:
        """See :class:`objmeta.interfaces.Registers`."""
        result = await self._perform(wire.AskChanges(since, limit), b"", timeout_s)
        assert isinstance(result, wire.Followed)
        return result.changed

    async def raise_term(self, scope: bytes, term: int, timeout_s: float) -> None:
        """See :class:`objmeta.interfaces.Registers`."""
        await self._perform(wire.RaiseScope(scope, term), scope, timeout_s, changes=True)

    async def status(self, timeout_s: float) -> StoreStatus:
        """See :class:`objmeta.interfaces.Registers`. Raises NoQuorum only if no node answers at all."""
        result = await self._perform(wire.AskStatus(), b"", timeout_s)
        assert isinstance(result, wire.Health)
        return result.status

    async def members(self, timeout_s: float) -> MembersStatus:
        """Who the members are, and how. Raises NoQuorum if no node answers at all."""
        result = await self._perform(wire.AskMembers(), b"", timeout_s)
        assert isinstance(result, wire.Members)
        return result.status

    async def change_members(
        self, add: Mapping[int, str], remove: Sequence[int], epoch: int, timeout_s: float
    ) -> Membership:
        """Begin to change the members as they are in ``epoch``; if the membership given back is joint, it goes on.

        Raises Conflict (they were changed meanwhile, or are being changed), InvalidArgument, NoQuorum, UnknownOutcome.
        """
        operation = wire.ChangeMembers(tuple(sorted(add.items())), tuple(remove), epoch)
        result = await self._perform(operation, b"", timeout_s, changes=True)
        assert isinstance(result, wire.MembersChanging)
        return result.membership

    async def collect(self, run: int, timeout_s: float) -> Collected:
        """See :class:`objmeta.interfaces.Registers`. The home of the generation begins it if it is up, else another.

        Who began it is asked how it goes, also when the home comes back.
        """
        if not self._members:
            await self.status(timeout_s)  # or the first call and the next ones would not go to the same node
        operation = wire.Collect(run, timeout_s)
        at = self._collector if run else 0
        result = await self._perform(operation, GENERATION_REGISTER, timeout_s + _COLLECT_LATE_S, hedged=False, at=at)
        assert isinstance(result, wire.Collection)
        return result.collected

    async def begin_cycle(self, timeout_s: float) -> Cycle:
        """See :class:`objmeta.interfaces.Registers`. The home of the generation does it, if it is up."""
        operation = wire.BeginCycle(timeout_s * _HEARD_IN_TIME)
        result = await self._perform(operation, GENERATION_REGISTER, timeout_s, hedged=False)
        assert isinstance(result, wire.CycleBegun)
        return result.cycle

    async def close(self) -> None:
        """Close the connections; operations under way fail. In a forked child nothing is touched."""
        if os.getpid() != self._pid:
            return
        self._closed = True
        if self._ticking is not None:
            self._ticking.cancel()
        for call in list(self._calls.values()):
            self._give_up(call, "the client was closed")
        if self._asking is not None:
            self._asking.cancel()
        await asyncio.gather(*(link.close() for link in (*self._links, *self._leaving)), *self._parting)

    # -- An operation from beginning to end ---------------------------------------------------------------------------

    async def _perform(
        self,
        operation: wire.Operation,
        name: bytes,
        timeout_s: float,
        changes: bool = False,
        hedged: bool = True,
        at: int = 0,
    ) -> wire.Result:
        """``at``: the node to ask first, instead of the home of ``name``."""
        if os.getpid() != self._pid:
            raise ForkedClient("these connections belong to the parent process; open new ones in the child")
        if self._closed:
            raise InvalidArgument("this client is closed; open a new one")
        encoded = wire.encode(operation)
        if len(encoded) > ITEM_BYTES_MAX:
            raise InvalidArgument(f"the operation has {len(encoded)} bytes; at most {ITEM_BYTES_MAX} can travel")
        self._number += 1
        loop = self._loop
        call = Call(self._number, encoded, name, changes, loop.time() + timeout_s, loop.create_future(), hedged, at)
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
            self._fall_back()
            self._stranded[call.number] = call
            if call.stranded_at is None:
                call.stranded_at = self._loop.time()

    def _pick(self, call: Call, healthy_only: bool) -> NodeLink | None:
        now = self._loop.time()
        usable: NodeLink | None = None
        for link in self._ordered(call):
            if link in call.open:
                continue
            if link.condition is Condition.DOWN:
                link.connect()
            if link.is_healthy(now):
                return link
            if usable is None and link.is_usable(now):
                usable = link
        return None if healthy_only else usable

    def _ordered(self, call: Call) -> list[NodeLink]:
        """The links, the home of its name first and then in a circle; any order will do while the homes are unknown."""
        links = self._links
        if not self._members:
            return links
        home = call.at or home_of(call.name, self._members)
        for first, link in enumerate(links):
            if link.node_id == home:
                return links[first:] + links[:first] if first else links
        return links

    # -- What the links report ----------------------------------------------------------------------------------------

    def on_ready(self, link: NodeLink) -> None:
        """A connection is up: the homes are known now, and those that found no node may go."""
        if link.membership is not None:
            self._learn(link.membership)
        elif not self.epoch:
            self._members = next((known.members for known in self._links if known.members), ())
        self._arrange()
        stranded = list(self._stranded.values())
        self._stranded.clear()
        for call in stranded:
            self._dispatch(call)

    def on_epoch(self, link: NodeLink, epoch: int) -> None:
        """A node knows a membership; ask for it if it is a newer one."""
        if epoch > self.epoch:
            self._begin_asking()

    def on_lost(self, link: NodeLink) -> None:
        """A node is gone: perhaps it is no member any more, and whoever is idle would hear of that too late."""
        if link in self._links and any(other.condition is Condition.READY for other in self._links):
            self._begin_asking()

    def _begin_asking(self) -> None:
        if self._asking is None and not self._closed:
            self._asking = self._loop.create_task(self._ask_members())

    async def _ask_members(self) -> None:
        try:
            result = await self._perform(wire.AskMembers(brief=True), b"", _ASK_MEMBERS_S)
            assert isinstance(result, wire.Members)
            self._learn(result.status.membership)
            self._arrange()
        except ObjmetaError:
            return  # the next answer says it again
        finally:
            self._asking = None

    def _learn(self, membership: Membership) -> None:
        """Have a link for each member, if this membership is news."""
        if membership.configuration.epoch <= self.epoch:
            return
        self.epoch = membership.configuration.epoch
        self._members = membership.configuration.quorums.members
        ids = {address: node_id for node_id, address in membership.addresses}
        for link in self._links:
            link.node_id = link.node_id or ids.get(link.endpoint, 0)
        known = {link.node_id for link in self._links}
        for node_id, address in membership.addresses:
            if node_id not in known:
                link = NodeLink(address, self)
                link.node_id = node_id
                self._links.append(link)

    def _arrange(self) -> None:
        """Let go of links to nodes that are no members, and of second links to one, while there are others."""
        if not self.epoch or not any(link.node_id in self._members for link in self._links):
            return
        best: dict[int, NodeLink] = {}
        for link in self._links:
            other = best.get(link.node_id)
            if other is None or _rank(link, self._given) > _rank(other, self._given):
                best[link.node_id] = link
        for link in list(self._links):
            if link.node_id == 0 and link.condition in (Condition.IDLE, Condition.CONNECTING):
                continue  # who answers there is still to be seen
            if link.node_id not in self._members or best[link.node_id] is not link:
                self._links.remove(link)
                self._leaving.append(link)
        self._part()

    def _part(self) -> None:
        """Close the connections to nodes that have finished what they were given."""
        for link in [link for link in self._leaving if not link.owes]:
            self._leaving.remove(link)
            closing = self._loop.create_task(link.close())
            self._parting.add(closing)
            closing.add_done_callback(self._parting.discard)

    def _fall_back(self) -> None:
        """No node takes the operation: if none can be reached at all, try those that were given at first."""
        if any(link.condition is not Condition.DOWN for link in self._links):
            return
        tried = {link.endpoint for link in self._links}
        self._links += [NodeLink(endpoint, self) for endpoint in self._given if endpoint not in tried]

    def on_generation(self, generation: int) -> None:
        """A generation has begun."""
        self._generation = max(self._generation, generation)

    def on_result(self, link: NodeLink, number: int, result: wire.Result) -> None:
        """A node answered one copy."""
        call = self._calls.get(number)
        if call is None or call.future.done():
            return
        call.open.remove(link)
        if isinstance(result, wire.Collection):
            self._collector = link.node_id
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
        self._part()
        for link in (*self._links, *self._leaving):
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
        if call.future.done() or not call.hedged or any(link.is_healthy(now) for link in call.open):
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
_ASK_MEMBERS_S: Final = 2.0


def _rank(link: NodeLink, given: Sequence[str]) -> tuple[bool, bool]:
    """Of several links to one node the one that works is kept, and the one the user named."""
    return link.condition is Condition.READY, link.endpoint in given


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
