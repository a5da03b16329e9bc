"""The proposer of a process: runs rounds until an operation has its answer or its time is up.

Theory of operation.  An operation takes its turn on its register (one round at a time per register and process, so that
a process never competes with itself), then tries rounds under ever higher ballots, backing off at random after a
conflict.  What an error means is exact: :class:`~objmeta.errors.NoQuorum` is raised only if no accept of the operation
was ever sent, or the acceptors said so; otherwise :class:`~objmeta.errors.UnknownOutcome` (rule 5).

At most once.  Acceptors report where records of the operation are held.  Such a record, unless it is newer than the
chosen state, either lies on that state's chain, and the operation has taken effect, or it is dead for good: its place
in the chain is taken.  Dead records are named in the next accept, and the operation goes on under its own id
(docs/decisions/0003).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from objmeta.core.ballot import BallotSource
from objmeta.core.change import Identity
from objmeta.core.configuration import Configuration, Membership
from objmeta.core.fastread import FastRead, Reading
from objmeta.core.firstwrite import FirstWrite
from objmeta.core.home import home_of
from objmeta.core.listing import ScanRequest
from objmeta.core.messages import (
    Adopt,
    Fence,
    Fetch,
    Fetched,
    Found,
    Raised,
    RaiseTerm,
    Read,
    Record,
    RecordRef,
    Refusal,
    Refused,
    Reply,
    Request,
    State,
)
from objmeta.core.proposer import (
    AwaitStragglers,
    Denied,
    Done,
    Effect,
    HeldElsewhere,
    Lost,
    NotFirst,
    Outcome,
    Round,
    Send,
    Settled,
)
from objmeta.core.records import is_intact
from objmeta.errors import (
    ConfigurationMismatch,
    Fenced,
    IntegrityError,
    NoQuorum,
    StoreError,
    StoreFull,
    UnknownOutcome,
)
from objmeta.interfaces import (
    ChangeReply,
    ChangeRequest,
    NodeStatus,
    ScanPage,
    StoreStatus,
    Transport,
)
from objmeta.register.scanning import Scanner
from objmeta.register.turns import Turns

STALE_TERM = "stale_term"
"""Code of a change refused because its scope's term has moved on."""

_PROBE = b"~probe"
_PROBE_TIMEOUT_S_MAX = 1.0


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How patient a proposer is. None of these numbers matters for safety."""

    round_timeout_s: float = 2.0
    """Give up a round after this long and try a higher ballot."""
    straggler_wait_s: float = 0.005
    """Wait this long for the answers still out before an unsettled base is written back."""
    backoff_s_min: float = 0.002
    """First cap of the random wait after a conflict."""
    backoff_s_max: float = 0.1
    """Last cap of the random wait after a conflict."""
    fast_reads_max: int = 3
    """Fast reads tried before a read takes a full round."""
    names_remembered_max: int = 100_000
    """Registers remembered as not new, so that only the first change of one tries the first write's short way."""


RoundFactory = Callable[..., Round]


class _Run:
    """One round in flight: feeds replies and timers to the round and its effects to the transport."""

    __slots__ = ("_engine", "_round", "_timers", "moved", "outcome")

    def __init__(self, engine: Engine, round_: Round | FirstWrite, deadline: float) -> None:
        loop = engine.loop
        self._engine = engine
        self._round = round_
        self.moved = False
        """Whether an acceptor was found to be in another configuration, and the two were brought together."""
        self.outcome: asyncio.Future[Outcome] = loop.create_future()
        limit = min(deadline, loop.time() + engine.settings.round_timeout_s)
        self._timers = [loop.call_at(limit, self._on_timeout)]
        self._perform(round_.start())

    def _perform(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                send = self._engine.transport.send
                for acceptor in effect.to:
                    send(acceptor, effect.request, self._on_reply)
            elif isinstance(effect, AwaitStragglers):
                loop = self._engine.loop
                self._timers.append(loop.call_later(self._engine.settings.straggler_wait_s, self._on_stragglers_late))
            else:
                self.stop()
                if not self.outcome.done():
                    self.outcome.set_result(effect.outcome)

    def _on_reply(self, acceptor: int, reply: Reply) -> None:
        if self.outcome.done():
            return  # cancelled, or over: a late reply must not carry the round on
        if isinstance(reply, Refused) and reply.reason is Refusal.CONFIGURATION:
            self.moved = self._engine.bring_together(acceptor, reply) or self.moved
            if self.outcome.done():
                return
        try:
            self._perform(self._round.on_reply(acceptor, reply))
        except Exception as error:  # of the change function, mostly: it belongs to the operation, not to the transport
            self.stop()
            self.outcome.set_exception(error)

    def _on_stragglers_late(self) -> None:
        if not self.outcome.done():
            self._perform(self._round.on_stragglers_late())

    def _on_timeout(self) -> None:
        self._perform(self._round.on_timeout())

    def abort(self) -> None:
        """End the round now: the configuration it was begun in is no more."""
        self.moved = True
        if not self.outcome.done():
            self._on_timeout()

    def stop(self) -> None:
        """Let the timers go."""
        for timer in self._timers:
            timer.cancel()


class Engine:
    """Linearizable registers with the proposer in this process; satisfies :class:`objmeta.interfaces.Registers`.

    Belongs to one event loop.  ``rng`` only spreads retries; ``ballots`` must be drawn from a proposer id and an
    incarnation that no other life of any proposer has.  ``own_acceptor`` is the acceptor of this process's own store,
    if it has one: for the registers it is home to, first writes take one round trip.  The factories exist for the
    simulator's broken variants.

    When a change of members comes to light (an acceptor says so), the engine adopts the new membership and
    ``on_adopt`` is called with it; rounds under way are given up, and their operations go on with new ones.
    """

    def __init__(
        self,
        membership: Membership,
        transport: Transport,
        ballots: BallotSource,
        rng: random.Random,
        settings: EngineSettings | None = None,
        *,
        own_acceptor: int | None = None,
        round_factory: RoundFactory = Round,
        first_write_factory: Callable[..., FirstWrite] = FirstWrite,
        on_adopt: Callable[[Membership], None] | None = None,
    ) -> None:
        self.membership = membership
        self.quorums = membership.configuration.quorums
        self.transport = transport
        self.settings = settings or EngineSettings()
        self.loop = asyncio.get_running_loop()
        self._ballots = ballots
        self._rng = rng
        self._round_factory = round_factory
        self._first_write_factory = first_write_factory
        self._acceptor_here = own_acceptor
        self._on_adopt = on_adopt
        self._runs: set[_Run] = set()
        self._touched: dict[bytes, None] = {}
        self._turns = Turns(self.loop)
        self._scanner = Scanner(self)

    # -- Membership ---------------------------------------------------------------------------------------------------

    @property
    def configuration(self) -> Configuration:
        """The configuration in force, as far as is known here."""
        return self.membership.configuration

    def adopt(self, membership: Membership) -> bool:
        """Go on in this configuration, which was chosen, if its epoch is higher; whether it was."""
        if membership.configuration.epoch <= self.configuration.epoch:
            return False
        self.membership = membership
        self.quorums = membership.configuration.quorums
        self._touched.clear()
        self.transport.adopt(membership)
        for run in list(self._runs):
            run.abort()
        if self._on_adopt is not None:
            self._on_adopt(membership)
        return True

    def bring_together(self, acceptor: int, refused: Refused) -> bool:
        """Learn the acceptor's newer configuration, or tell it ours; False if it is another store's."""
        if refused.membership is not None:
            self.adopt(refused.membership)
            return True
        if refused.behind:
            self.transport.send(acceptor, Adopt(self.membership), lambda acceptor, reply: None)
        return refused.behind

    # -- Changes ------------------------------------------------------------------------------------------------------

    async def change(self, request: ChangeRequest, timeout_s: float) -> ChangeReply:
        """Apply a change exactly once; see :class:`objmeta.interfaces.Registers`.

        Raises NoQuorum (nothing changed), UnknownOutcome, StoreFull or StoreError (the store refused, nothing changed),
        ConfigurationMismatch.
        """
        deadline = self.loop.time() + timeout_s
        await self._turns.take(request.name, deadline)
        try:
            return await self._change(request, deadline)
        finally:
            self._turns.hand_on(request.name)

    async def _change(self, request: ChangeRequest, deadline: float) -> ChangeReply:
        dead: set[RecordRef] = set()
        proposed = False
        cap = self.settings.backoff_s_min
        first = self._may_be_first(request)
        while True:
            outcome = await self._attempt(request, tuple(sorted(dead)), deadline, proposed, first)
            first = False
            if isinstance(outcome, Done):
                record = outcome.record
                return ChangeReply(outcome.code, outcome.state, _without_data(record) if record else None)
            if isinstance(outcome, HeldElsewhere):
                operation = request.change.version_id
                proposed = proposed or outcome.proposed or any(ref.version_id == operation for ref in outcome.held)
                try:
                    applied = await self._applied(request.name, operation, outcome, dead, deadline)
                except NoQuorum:
                    self._raise_late(request.name, proposed)
                except IntegrityError:
                    # The state may be one that is just being written back, and its record dropped as dead meanwhile.
                    if self.loop.time() + cap >= deadline:
                        raise
                    await asyncio.sleep(self._rng.uniform(0, cap))
                    cap = min(cap * 2, self.settings.backoff_s_max)
                    continue
                if applied is not None:
                    return applied
            elif isinstance(outcome, Denied):
                proposed = proposed or outcome.proposed
                if outcome.reason is Refusal.STALE_TERM:
                    return ChangeReply(STALE_TERM, None, proposed=proposed)
                self._raise_denied(outcome, proposed)
            elif isinstance(outcome, Lost):
                proposed = proposed or outcome.proposed
                self._ballots.saw(outcome.greatest)
                if outcome.failure:
                    _raise_failure(outcome.failure, proposed)
                if self.loop.time() >= deadline:
                    self._raise_late(request.name, proposed)
                cap = await self._back_off(cap, deadline)
            else:
                assert isinstance(outcome, Settled | NotFirst)

    async def _back_off(self, cap: float, deadline: float) -> float:
        """Wait at random up to ``cap`` seconds; the next cap."""
        await asyncio.sleep(min(self._rng.uniform(0, cap), max(0.0, deadline - self.loop.time())))
        return min(cap * 2, self.settings.backoff_s_max)

    def _may_be_first(self, request: ChangeRequest) -> bool:
        """Whether this register is at home here and was not seen lately: a hint, the acceptor decides."""
        name = request.name
        if self._acceptor_here is None or self.configuration.is_joint:
            return False
        if home_of(name, self.quorums.members) != self._acceptor_here:
            return False
        if name in self._touched or not request.change.version_id:
            return False
        if len(self._touched) >= self.settings.names_remembered_max:
            self._touched.clear()
        self._touched[name] = None
        return True

    async def _attempt(
        self, request: ChangeRequest, dead: tuple[RecordRef, ...], deadline: float, proposed: bool, first: bool
    ) -> Outcome:
        if self.loop.time() >= deadline:
            self._raise_late(request.name, proposed)
        round_: Round | FirstWrite
        if first:
            round_ = self._first_write_factory(
                self.quorums,
                self.configuration.epoch,
                self._acceptor_here or 0,
                request.name,
                request.change,
                fence=request.fence,
                generation=request.generation,
            )
        else:
            round_ = self._round_factory(
                self.quorums,
                request.name,
                self._ballots.next(),
                request.change,
                fence=request.fence,
                generation=request.generation,
                dead=dead,
            )
        run = _Run(self, round_, deadline)
        self._runs.add(run)
        try:
            outcome = await run.outcome
        finally:
            self._runs.discard(run)
            run.stop()
        if isinstance(outcome, Denied) and outcome.reason is Refusal.CONFIGURATION and run.moved:
            return Lost(round_.ballot, outcome.proposed)
        return outcome

    async def _applied(
        self, name: bytes, operation: bytes, outcome: HeldElsewhere, dead: set[RecordRef], deadline: float
    ) -> ChangeReply | None:
        """Whether the operation took effect earlier; records of it that did not are added to ``dead``."""
        for ref in outcome.held:
            record = await self._on_chain(name, outcome.state, ref, deadline)
            if record is None:
                dead.add(ref)
            elif ref.version_id == operation:
                tip = outcome.state.refs[-1] if outcome.state and outcome.state.refs else None
                return ChangeReply("", outcome.state if tip == ref else None, record)
        return None

    async def _on_chain(self, name: bytes, state: State | None, ref: RecordRef, deadline: float) -> Record | None:
        cursor = state.refs[-1] if state is not None and state.refs else None
        while cursor is not None and cursor.sequence >= ref.sequence:
            (record,) = await self.records(name, (cursor,), deadline - self.loop.time(), with_data=False)
            if cursor == ref:
                return record
            cursor = record.parent
        return None

    # -- Reads --------------------------------------------------------------------------------------------------------

    async def read(self, names: Sequence[bytes], timeout_s: float, fence: Fence | None = None) -> list[State | None]:
        """The chosen states, each linearizable by itself. Raises NoQuorum, Fenced, ConfigurationMismatch."""
        deadline = self.loop.time() + timeout_s
        if len(names) == 1:
            return [await self._read(names[0], deadline, fence)]
        return list(await asyncio.gather(*(self._read(name, deadline, fence) for name in names)))

    async def settle(self, names: Sequence[bytes], timeout_s: float, fence: Fence | None) -> list[State | None]:
        """The same by full rounds only: no change that was under way below their ballots can be chosen afterwards."""
        deadline = self.loop.time() + timeout_s
        return list(await asyncio.gather(*(self._settle(name, deadline, fence) for name in names)))

    async def _read(self, name: bytes, deadline: float, fence: Fence | None) -> State | None:
        cap = self.settings.backoff_s_min
        for _ in range(self.settings.fast_reads_max):
            decided, state = await self._fast_read(name, deadline)
            if decided:
                return state
            await asyncio.sleep(self._rng.uniform(0, cap))
            cap *= 2
        return await self._settle(name, deadline, fence)

    async def _settle(self, name: bytes, deadline: float, fence: Fence | None) -> State | None:
        await self._turns.take(name, deadline)
        try:
            reply = await self._change(ChangeRequest(name, Identity(), fence), deadline)
        finally:
            self._turns.hand_on(name)
        if reply.code == STALE_TERM:
            raise Fenced("the bucket moved on while this was read; look it up and begin anew")
        return reply.state

    async def _fast_read(self, name: bytes, deadline: float) -> tuple[bool, State | None]:
        reading = FastRead(self.quorums)
        answer: asyncio.Future[bool] = self.loop.create_future()
        timers: list[asyncio.TimerHandle] = []

        def give_up() -> None:
            if not answer.done():
                answer.set_result(False)

        def on_reply(acceptor: int, reply: Reply) -> None:
            if answer.done() or not isinstance(reply, Found | Refused):
                return
            if isinstance(reply, Refused) and reply.reason is Refusal.CONFIGURATION:
                self.bring_together(acceptor, reply)
            match reading.on_reply(acceptor, reply):
                case Reading.DECIDED:
                    answer.set_result(True)
                case Reading.DIVIDED:
                    answer.set_result(False)
                case Reading.SPLIT:
                    timers.append(self.loop.call_later(self.settings.straggler_wait_s, give_up))
                case Reading.OPEN:
                    pass

        timers.append(self.loop.call_at(min(deadline, self.loop.time() + self.settings.round_timeout_s), give_up))
        request = Read(name)
        for acceptor in self.quorums.members:
            self.transport.send(acceptor, request, on_reply)
        try:
            decided = await answer
        finally:
            for timer in timers:
                timer.cancel()
        return decided, reading.state if decided else None

    async def records(
        self, name: bytes, refs: Sequence[RecordRef], timeout_s: float, with_data: bool = True
    ) -> list[Record]:
        """Fetch records by name from whoever holds them.

        Raises IntegrityError if every acceptor answered and one is nowhere (or damaged everywhere), else NoQuorum.
        """
        wanted = tuple(refs)
        found: dict[RecordRef, Record] = {}
        answered: set[int] = set()

        def take(acceptor: int, reply: Reply) -> bool:
            if isinstance(reply, Fetched):
                answered.add(acceptor)
                found.update((record.ref, record) for record in reply.records if is_intact(record))
            return all(ref in found for ref in wanted) or len(answered) == len(self.quorums.members)

        await self._ask(Fetch(name, wanted, with_data), take, timeout_s)
        if all(ref in found for ref in wanted):
            return [found[ref] for ref in wanted]
        if len(answered) == len(self.quorums.members):
            raise IntegrityError(f"a record of register {name!r} is missing or damaged on every node")
        raise NoQuorum(f"records of register {name!r} could not be fetched within {timeout_s:g} s; try again")

    async def scan(self, request: ScanRequest, timeout_s: float) -> ScanPage:
        """A decided page of registers. Raises NoQuorum, ConfigurationMismatch."""
        return await self._scanner.page(request, self.loop.time() + timeout_s)

    # -- Floors and health --------------------------------------------------------------------------------------------

    async def raise_term(self, scope: bytes, term: int, timeout_s: float) -> None:
        """Raise a scope's floor on a majority. Raises UnknownOutcome if no majority confirmed it in time."""
        confirmed: set[int] = set()

        def take(acceptor: int, reply: Reply) -> bool:
            if isinstance(reply, Raised) and reply.term >= term:
                confirmed.add(acceptor)
            return self.quorums.is_quorum(confirmed)

        if not await self._ask(RaiseTerm(scope, term), take, timeout_s):
            raise UnknownOutcome(f"no majority of the nodes confirmed the new term within {timeout_s:g} s; try again")

    async def status(self, timeout_s: float) -> StoreStatus:
        """Which acceptors answer."""
        up: set[int] = set()

        def take(acceptor: int, reply: Reply) -> bool:
            if isinstance(reply, Found):
                up.add(acceptor)
            return len(up) == len(self.quorums.members)

        await self._ask(Read(_PROBE), take, min(timeout_s, _PROBE_TIMEOUT_S_MAX))
        nodes = tuple(NodeStatus(a, "", "up" if a in up else "down") for a in self.quorums.members)
        configuration = self.configuration
        return StoreStatus(configuration.store_id, configuration.epoch, nodes, self.quorums.is_quorum(up))

    async def _ask(self, request: Request, take: Callable[[int, Reply], bool], timeout_s: float) -> bool:
        """Ask everybody, again and again (the request is idempotent), until ``take`` is satisfied; False: never."""
        satisfied: asyncio.Future[None] = self.loop.create_future()

        def on_reply(acceptor: int, reply: Reply) -> None:
            if not satisfied.done() and take(acceptor, reply):
                satisfied.set_result(None)

        deadline = self.loop.time() + timeout_s
        while not satisfied.done() and self.loop.time() < deadline:
            for acceptor in self.quorums.members:
                self.transport.send(acceptor, request, on_reply)
            patience_s = min(self.settings.round_timeout_s, deadline - self.loop.time())
            await asyncio.wait((satisfied,), timeout=patience_s)
        return satisfied.done()

    async def close(self) -> None:
        """Nothing is held here; whoever made the transport closes it."""

    # -- Failures -----------------------------------------------------------------------------------------------------

    def _raise_late(self, name: bytes, proposed: bool) -> NoReturn:
        if proposed:
            raise UnknownOutcome("no majority of the nodes confirmed the change in time; it may or may not apply")
        raise NoQuorum("no majority of the nodes answered in time; nothing was changed, try again")

    def _raise_denied(self, outcome: Denied, proposed: bool) -> NoReturn:
        if outcome.reason is Refusal.CONFIGURATION and not proposed:
            why = outcome.detail or "another identity"
            raise ConfigurationMismatch(f"the nodes do not belong to this store: {why}")
        if proposed:
            raise UnknownOutcome("the nodes refuse the operation now, and an earlier attempt may have applied")
        raise NoQuorum("the operation was begun too long ago; begin it anew")


def _without_data(record: Record) -> Record:
    return Record(record.ref, record.parent, record.body) if record.data else record


def _raise_failure(failure: str, proposed: bool) -> None:
    if proposed:
        raise UnknownOutcome(f"the change may have been applied, and then the store failed: {failure}")
    kind, _, text = failure.partition(": ")
    if kind == StoreFull.kind:
        raise StoreFull(text)
    raise StoreError(text if kind == StoreError.kind else failure)
