"""Changes of registers: rounds under ever higher ballots until each operation has its answer or its time is up.

Theory of operation.  The leader of a register's queue (``queueing``) runs rounds for all the changes it took along,
backing off at random after a conflict.  What an error means is exact: :class:`~objmeta.errors.NoQuorum` is raised only
if no accept of the operation was ever sent, or the acceptors said so; otherwise
:class:`~objmeta.errors.UnknownOutcome` (rule 5).

At most once.  Acceptors report where records of an operation are held.  Such a record, unless it is newer than the
chosen state, either lies on that state's chain, and the operation has taken effect, or it is dead for good: its place
in the chain is taken.  Dead records are named in the next accept, and the operation goes on under its own id
(docs/decisions/0003).

One round trip.  A register that was changed from here before has its next ballot promised along with each accept
(rule 10).  The promise is kept with the state it belongs to, taken out before an accept that uses it is sent, and
dropped with the configuration.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final

from objmeta.core.ballot import ZERO
from objmeta.core.change import Batch, Change
from objmeta.core.firstwrite import FirstWrite
from objmeta.core.home import home_of
from objmeta.core.messages import Record, RecordRef, Refusal, Refused, Reply, State
from objmeta.core.proposer import (
    AwaitStragglers,
    Denied,
    Done,
    Effect,
    HeldElsewhere,
    KeptPromise,
    Lost,
    NotFirst,
    Outcome,
    Round,
    Send,
    Settled,
)
from objmeta.errors import (
    IntegrityError,
    NoQuorum,
)
from objmeta.interfaces import ChangeReply, ChangeRequest
from objmeta.register import replies
from objmeta.register.queueing import Queues, Waiting
from objmeta.register.together import Answered, FirstWrites, Tried

if TYPE_CHECKING:
    from objmeta.register.engine import Engine

_ROUND_RECORD_BYTES_MAX: Final = 1 << 20
"""Of all records of one round together, so that an accept fits a message with room to spare."""

RoundFactory = Callable[..., Round]


class Run:
    """One round in flight: feeds replies to the round and its effects to the transport; ``limit`` is for its owner."""

    __slots__ = ("_engine", "_round", "_straggling", "ballot", "limit", "moved", "outcome")

    def __init__(self, engine: Engine, round_: Round | FirstWrite, deadline: float) -> None:
        loop = engine.loop
        self._engine = engine
        self._round = round_
        self._straggling: asyncio.TimerHandle | None = None
        self.ballot = round_.ballot
        self.moved = False
        """Whether an acceptor was found to be in another configuration, and the two were brought together."""
        self.outcome: asyncio.Future[Outcome] = loop.create_future()
        self.limit = min(deadline, loop.time() + engine.settings.round_timeout_s)
        """When to :meth:`time_out`."""
        self._perform(round_.start())

    def _perform(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                send, request, on_reply = self._engine.transport.send, effect.request, self._on_reply
                for acceptor in effect.to:
                    send(acceptor, request, on_reply)
            elif isinstance(effect, AwaitStragglers):
                settings = self._engine.settings
                wait_s = settings.conflict_wait_s if effect.conflict else settings.straggler_wait_s
                self.stop()
                self._straggling = self._engine.loop.call_later(wait_s, self._on_stragglers_late)
            else:
                self.stop()
                if not self.outcome.done():
                    self.outcome.set_result(effect.outcome)

    def _on_reply(self, acceptor: int, reply: Reply) -> None:
        if self.outcome.done():
            return  # cancelled, or over: a late reply must not carry the round on
        if isinstance(reply, Refused):
            self.moved = self._engine.learn(acceptor, reply) or self.moved
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

    def time_out(self) -> None:
        """No quorum in time."""
        if not self.outcome.done():
            self._perform(self._round.on_timeout())

    def abort(self) -> None:
        """End the round now: the configuration it was begun in is no more."""
        self.moved = True
        self.time_out()

    def stop(self) -> None:
        """Wait for nobody any more."""
        if self._straggling is not None:
            self._straggling.cancel()


class Changer:
    """The changes of one engine."""

    def __init__(
        self,
        engine: Engine,
        own_acceptor: int | None,
        round_factory: RoundFactory,
        first_write_factory: Callable[..., FirstWrite],
    ) -> None:
        self._engine = engine
        self._own_acceptor = own_acceptor
        self._round_factory = round_factory
        self._first_write_factory = first_write_factory
        self._queues = Queues(engine.loop)
        self._runs: dict[Run | FirstWrites, None] = {}
        self._alarm: asyncio.Handle | None = None
        """One for all rounds, at the limit of the first of them or before: nearly all are over long before theirs."""
        self._alarm_at = math.inf
        """Kept here: what uvloop gives for a time that is now or past cannot tell when it is due."""
        self._touched: dict[bytes, None] = {}
        self._kept: dict[bytes, KeptPromise] = {}

    def on_adopt(self) -> None:
        """Another configuration is in force: what belonged to the last one is void."""
        self._touched.clear()
        self._kept.clear()
        for run in list(self._runs):
            run.abort()

    def close(self) -> None:
        """Let the timer go; nobody waits for a round any more."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm, self._alarm_at = None, math.inf

    async def change(self, request: ChangeRequest, deadline: float, tried: Tried | None = None) -> ChangeReply:
        """Apply a change exactly once; see :meth:`objmeta.register.engine.Engine.change`.

        ``tried``: its first write, if that was tried already and has the lead (:meth:`first_writes`).
        """
        own = Waiting(request, deadline)
        if tried is None and not self._queues.lead(request.name):
            reply = await self._queues.wait(own)
            if reply is not None:
                return reply
        taken = self._queues.take_along(own) if tried is None else [own]
        own.answer = None
        first = None if tried is None else tried.outcome
        try:
            if (
                first is None
                and len(taken) == 1
                and self._may_be_first(request)
                and deadline > self._engine.loop.time()
            ):
                first = await self._first_write(request, deadline)
                if isinstance(first, Done):
                    return replies.reply_of(replies.result_of(first))
            return await _Lead(self, self._engine, request.name, taken).until_answered(own, first)
        finally:
            self._queues.give_back(request.name, [each for each in taken if each is not own])
            if tried is None:
                self._queues.hand_on(request.name)
            else:
                self.let_go(tried)

    def first_writes(
        self,
        requests: Sequence[ChangeRequest],
        deadlines: Sequence[float],
        answered: Answered,
        others: Callable[[int, Tried | None], None],
    ) -> None:
        """Begin those of some changes that may be first writes, together, and see them to their outcome.

        ``answered`` is called for each that took effect so.  ``others`` is called for each of the rest, with its first
        write if one was tried; that has the lead of its register, until :meth:`change` or :meth:`let_go`.
        """
        now = self._engine.loop.time()
        writes: dict[int, FirstWrite] = {}
        rest: list[int] = []
        for place, request in enumerate(requests):
            free = deadlines[place] > now and self._queues.is_free(request.name)
            if free and request.generation and self._may_be_first(request):
                try:
                    writes[place] = self._new_first_write(request)
                except Exception as error:  # of the change function: it belongs to the operation
                    answered(place, error)
                    continue
                self._queues.lead(request.name)
            else:
                rest.append(place)

        def ended(place: int, outcome: Outcome) -> None:
            if isinstance(outcome, Done):
                self._queues.hand_on(requests[place].name)
                answered(place, replies.reply_of(replies.result_of(outcome)))
            else:
                others(place, Tried(requests[place].name, outcome))

        if writes:
            together = FirstWrites(self._engine, writes, deadlines, ended)
            together.outcome.add_done_callback(lambda _: self._runs.pop(together, None))
            self._watch(together)
            together.start()
        for place in rest:
            others(place, None)

    def let_go(self, tried: Tried) -> None:
        """Hand the lead on that a first write has, unless that was done already."""
        if tried.leads:
            tried.leads = False
            self._queues.hand_on(tried.name)

    # -- One attempt --------------------------------------------------------------------------------------------------

    def _first_write(self, request: ChangeRequest, deadline: float) -> Awaitable[Outcome]:
        """The short way for a register that may be new."""
        return self._outcome(Run(self._engine, self._new_first_write(request), deadline))

    def _new_first_write(self, request: ChangeRequest) -> FirstWrite:
        engine = self._engine
        return self._first_write_factory(
            engine.quorums,
            engine.configuration.epoch,
            self._own_acceptor or 0,
            request.name,
            request.change,
            fence=request.fence,
            generation=request.generation,
        )

    async def attempt(
        self, taken: list[Waiting], change: Change, dead: tuple[RecordRef, ...], deadline: float
    ) -> Outcome:
        """One round for all of them."""
        engine = self._engine
        request = taken[0].request
        name = request.name
        kept = self._kept.pop(name, None)
        if kept is not None and request.generation < engine.generations.known():
            kept = None  # begun some time ago: phase one tells whether it is too long, before anything is proposed
        again = name in self._touched or self._queues.is_awaited(name)
        self._remember(name)
        round_ = self._round_factory(
            engine.quorums,
            name,
            kept.ballot if kept else engine.ballots.next(),
            change,
            fence=request.fence,
            generation=request.generation,
            dead=dead,
            following=engine.ballots.next() if again and change.operations else ZERO,
            kept=kept,
            earlier=any(each.proposed for each in taken),
        )
        run = Run(engine, round_, deadline)
        outcome = await self._outcome(run)
        if isinstance(outcome, Done) and outcome.following > outcome.ballot and not run.moved:
            assert outcome.state is not None, "a promise goes along with a write"
            self._keep(name, KeptPromise(outcome.following, outcome.ballot, outcome.state))
        return outcome

    async def _outcome(self, run: Run) -> Outcome:
        """See a round that was begun to its end."""
        self._watch(run)
        try:
            outcome = await run.outcome
        finally:
            self._runs.pop(run, None)
            run.stop()
        if isinstance(outcome, Denied) and outcome.reason is Refusal.CONFIGURATION and run.moved:
            return Lost(run.ballot, outcome.proposed)
        return outcome

    def _watch(self, run: Run | FirstWrites) -> None:
        """Have it end when its time is up."""
        self._runs[run] = None
        if run.limit < self._alarm_at:
            self._set_alarm(run.limit)

    def _set_alarm(self, at: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm, self._alarm_at = self._engine.loop.call_at(at, self._on_alarm), at

    def _on_alarm(self) -> None:
        self._alarm, self._alarm_at = None, math.inf
        now = self._engine.loop.time()
        for run in [run for run in self._runs if run.limit <= now]:
            run.time_out()
        limits = [run.limit for run in self._runs if not run.outcome.done()]
        if limits:
            self._set_alarm(min(limits))

    def _keep(self, name: bytes, kept: KeptPromise) -> None:
        if len(self._kept) >= self._engine.settings.promises_kept_max:
            del self._kept[next(iter(self._kept))]  # the one that was kept longest
        self._kept[name] = kept

    def _may_be_first(self, request: ChangeRequest) -> bool:
        """Whether this register is at home here and was not seen lately: a hint, the acceptor decides."""
        engine, name = self._engine, request.name
        if self._own_acceptor is None or engine.configuration.is_joint or name in self._touched or name in self._kept:
            return False
        if home_of(name, engine.quorums.members) != self._own_acceptor or not request.change.operations:
            return False
        self._remember(name)
        return True

    def _remember(self, name: bytes) -> None:
        """That this register was seen."""
        if len(self._touched) >= self._engine.settings.names_remembered_max:
            self._touched.clear()
        self._touched[name] = None


class _Lead:
    """One leader's work on the changes it took along, in the order they came."""

    def __init__(self, changer: Changer, engine: Engine, name: bytes, taken: list[Waiting]) -> None:
        self._changer = changer
        self._engine = engine
        self._name = name
        self._open = taken
        """Those without an answer; the list is the caller's and shrinks."""
        self._dead: set[RecordRef] = set()

    async def until_answered(self, own: Waiting, first: Outcome | None) -> ChangeReply:
        """Run rounds until the leader's own change has its answer; others get theirs on the way.

        ``first``: what came of the first attempt, if there was one.
        """
        engine, settings = self._engine, self._engine.settings
        cap = settings.backoff_s_min
        while True:
            if first is None:
                self._expire(own)
            change, deadline = self._changes(), min(each.deadline for each in self._open)
            try:
                if first is None:
                    outcome = await self._changer.attempt(self._open, change, tuple(sorted(self._dead)), deadline)
                else:
                    outcome, first = first, None
            except asyncio.CancelledError:
                self._proposed(True)  # what was sent for the others may be with some acceptor
                raise
            if isinstance(outcome, Done):
                answered = self._done(outcome, change)
            elif isinstance(outcome, HeldElsewhere):
                self._proposed_held(outcome)
                try:
                    answered = await self._look_at_chain(outcome, deadline)
                except IntegrityError:
                    # The state may be one that is just being written back, and its record dropped as dead meanwhile.
                    if engine.loop.time() + cap >= deadline:
                        raise
                    cap = await self._back_off(cap, deadline)
                    continue
                except NoQuorum:
                    cap = await self._back_off(cap, deadline)
                    continue
            elif isinstance(outcome, Denied):
                self._proposed(outcome.proposed)
                answered = self._denied(outcome)
            elif isinstance(outcome, Lost):
                self._proposed(outcome.proposed)
                engine.ballots.saw(outcome.greatest)
                if outcome.failure:
                    answered = [(each, replies.failure(outcome.failure, each.proposed)) for each in self._open]
                else:
                    self._expire(own)
                    cap = await self._back_off(cap, deadline)
                    continue
            else:
                assert isinstance(outcome, Settled | NotFirst)
                continue
            for each, answer in answered:
                self._open.remove(each)
                if each is not own:
                    each.fail(answer) if isinstance(answer, Exception) else each.give(answer)
            for each, answer in answered:
                if each is own:
                    if isinstance(answer, Exception):
                        raise answer
                    return answer

    def _changes(self) -> Change:
        changes = [each.request.change for each in self._open]
        return changes[0] if len(changes) == 1 else Batch(changes, _ROUND_RECORD_BYTES_MAX)

    def _done(self, outcome: Done, change: Change) -> list[tuple[Waiting, ChangeReply | Exception]]:
        results = change.results if isinstance(change, Batch) else [replies.result_of(outcome)]
        return [(each, replies.reply_of(result)) for each, result in zip(list(self._open), results, strict=False)]

    def _denied(self, outcome: Denied) -> list[tuple[Waiting, ChangeReply | Exception]]:
        if outcome.reason is Refusal.STALE_TERM:
            return [(each, replies.stale_term(each)) for each in self._open]
        return [(each, replies.denial(outcome, each.proposed)) for each in self._open]

    def _proposed(self, proposed: bool) -> None:
        if proposed:
            for each in self._open:
                each.proposed = bool(each.request.change.operations)  # a read proposes nothing of its own

    def _proposed_held(self, outcome: HeldElsewhere) -> None:
        self._proposed(outcome.proposed)
        held = {ref.version_id for ref in outcome.held}
        for each in self._open:
            if not held.isdisjoint(each.request.change.operations):
                each.proposed = True

    def _expire(self, own: Waiting) -> None:
        """Answer those whose time is up; raises if the leader's is."""
        now = self._engine.loop.time()
        for each in [each for each in self._open if each.deadline <= now]:
            if each is own:
                raise replies.late(own.proposed)
            self._open.remove(each)
            each.fail(replies.late(each.proposed))

    async def _back_off(self, cap: float, deadline: float) -> float:
        """Wait at random up to ``cap`` seconds; the next cap."""
        engine = self._engine
        await asyncio.sleep(min(engine.rng.uniform(0, cap), max(0.0, deadline - engine.loop.time())))
        return min(cap * 2, engine.settings.backoff_s_max)

    # -- Operations that may have applied -----------------------------------------------------------------------------

    async def _look_at_chain(
        self, outcome: HeldElsewhere, deadline: float
    ) -> list[tuple[Waiting, ChangeReply | Exception]]:
        """Which operations took effect earlier; records that did not are dead from now on."""
        by_operation = {operation: each for each in self._open for operation in each.request.change.operations}
        applied: dict[bytes, tuple[Waiting, ChangeReply | Exception]] = {}
        for ref in outcome.held:
            record = await self._on_chain(outcome.state, ref, deadline)
            if record is None:
                self._dead.add(ref)
            elif ref.version_id in by_operation:
                tip = outcome.state.refs[-1] if outcome.state and outcome.state.refs else None
                reply = ChangeReply("", outcome.state if tip == ref else None, record)
                applied[ref.version_id] = (by_operation[ref.version_id], reply)
        return list(applied.values())

    async def _on_chain(self, state: State | None, ref: RecordRef, deadline: float) -> Record | None:
        engine = self._engine
        cursor = state.refs[-1] if state is not None and state.refs else None
        while cursor is not None and cursor.sequence >= ref.sequence:
            (record,) = await engine.records(self._name, (cursor,), deadline - engine.loop.time(), with_data=False)
            if cursor == ref:
                return record
            cursor = record.parent
        return None
