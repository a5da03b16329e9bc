"""Broken variants of the protocol that the simulator must catch: they test the tests.

Each replaces a round, an acceptor's step, or what its disk keeps, by injection; production code knows nothing of them.
The numbers are the rules of PROTOCOL.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from objmeta.core.acceptor import AcceptorView, step
from objmeta.core.ballot import ZERO
from objmeta.core.change import Keep
from objmeta.core.firstwrite import FirstWrite
from objmeta.core.messages import Accept, Accepted, Prepare, Promise, RecordRef, Reply, Request, Row
from objmeta.core.proposer import Done, Effect, HeldElsewhere, Lost, Phase, Round, Send
from objmeta.core.quorum import majority
from objmeta.register.changing import RoundFactory
from objmeta.register.engine import Engine
from objmeta.register.erasing import Eraser, ErasureSettings
from objmeta.register.membership import Coordinator
from objmeta.register.repairing import Repairer
from objmeta.testing.disk import AcceptorHooks, Entry, Table


@dataclass(frozen=True, slots=True)
class Mutation:
    """What one variant changes. ``rounds`` makes one factory for each life of a proposer."""

    name: str
    breaks: str
    rounds: Callable[[], RoundFactory] = lambda: Round
    first_write: Callable[..., FirstWrite] = FirstWrite
    acceptor: Callable[[], AcceptorHooks] = AcceptorHooks
    incarnations_repeat: bool = False
    eraser: Callable[[Engine, ErasureSettings], Eraser] = Eraser
    keeps_promises: bool = False
    coordinator: Callable[..., Coordinator] = Coordinator
    repairer: Callable[..., Repairer] = Repairer
    fails_as: str = "safety"
    """What else than a broken promise to clients may show it."""


# -- Proposers --------------------------------------------------------------------------------------------------------


class ShortAccepts(Round):
    """2 of 3 prepares with 1 of 3 accepts: the quorums of the phases need not meet."""

    __slots__ = ()

    def _voted(self) -> Sequence[Effect]:
        short = max(1, majority(len(self._quorums.members)) - 1)
        if len(self._votes) < short:
            return ()
        everybody = set(self._quorums.members)
        self._votes, votes = everybody, self._votes
        effects = super()._voted()
        self._votes = votes
        return effects


class _AnswersUnsettledReads(Round):
    """A read is answered with the greatest value seen, without writing it back."""

    __slots__ = ()

    def _answers(self, code: str) -> bool:
        return code == ""

    def _promised(self) -> Sequence[Effect]:
        if self._quorums.is_quorum(self._promises) and not any(p.held for p in self._promises.values()):
            newest = max(self._promises.values(), key=lambda promise: promise.accepted)
            decision = self._change.apply(self.name, newest.state, 0)
            if isinstance(decision, Keep) and self._answers(decision.code):
                return self._finish(Done(self.ballot, newest.state, False, decision.code))
        return super()._promised()


class _AnswersUnsettledFailures(_AnswersUnsettledReads):
    """The same for a compare-and-swap that fails."""

    __slots__ = ()

    def _answers(self, code: str) -> bool:
        return code != ""


class _BuildsOnUnsettled(Round):
    """Builds on whatever was accepted last, settled or not, without its record (rule 7)."""

    __slots__ = ()

    def _promised(self) -> Sequence[Effect]:
        if not self._quorums.is_quorum(self._promises):
            return ()
        self._base = max(self._promises.values(), key=lambda promise: promise.accepted).state
        return self._settled()


class _BuriesTheLiving(Round):
    """Gives records newer than the chosen state out as decided, so that they are called dead too early."""

    __slots__ = ()

    def _settled(self) -> Sequence[Effect]:
        held = tuple(sorted(self._held_undead()))
        return self._finish(HeldElsewhere(held, self._base, False)) if held else super()._settled()


class _SaysNothingChanged(Round):
    """An accept without a quorum is reported as if nothing could come of it (rule 5)."""

    __slots__ = ()

    def _lost(self) -> Sequence[Effect]:
        return self._finish(Lost(self._greatest, False))


class _RefusesAtOnce(Round):
    """An operation is refused although a value of it may be with some acceptor, who is not fenced off first."""

    __slots__ = ()

    def __init__(self, *args: Any, earlier: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


class _SpreadsAtOnce(FirstWrite):
    """A first write goes to everybody at once instead of to the home's own acceptor first."""

    __slots__ = ()

    def start(self) -> Sequence[Effect]:
        effects = super().start()
        if self._accept is None:
            return effects
        self._spread = True
        return (Send(self._quorums.members, self._accept),)


class KeepingRounds:
    """After an accept that timed out the promise is kept, and the next round goes on under its ballot (rule 1)."""

    def __init__(self) -> None:
        self._kept: dict[bytes, Round] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Round:
        fresh = _KeptRound(*args, **kwargs)
        fresh.lost = self._kept
        kept = self._kept.pop(fresh.name, None)
        if kept is not None:
            fresh.adopt(kept)
        return fresh


class _KeptRound(Round):
    __slots__ = ("_adopted", "lost")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lost: dict[bytes, Round] = {}
        self._adopted = False

    def adopt(self, other: Round) -> None:
        self.ballot = other.ballot
        self._promises = dict(other._promises)
        self._base, self._based_on = other._base, other._based_on
        self._adopted = True

    def start(self) -> Sequence[Effect]:
        if not self._adopted:
            return super().start()
        return self._settled() if self._promises else self._propose_on_kept_promise()

    def on_timeout(self) -> Sequence[Effect]:
        if self.phase is Phase.ACCEPT:
            self.lost[self.name] = self
            return self._finish(Lost(self.ballot, True))
        return super().on_timeout()


def keep_promises(engine: Engine) -> None:
    """Have an engine keep its promises when the configuration changes (rule 10)."""
    changer: Any = engine._changer
    on_adopt = changer.on_adopt

    def adopt() -> None:
        kept = dict(changer._kept)
        on_adopt()
        changer._kept.update(kept)

    changer.on_adopt = adopt


# -- Acceptors --------------------------------------------------------------------------------------------------------


class _ForgetsPromises(AcceptorHooks):
    """A promise is not made durable; an accepted value is."""

    def durable(self, log: list[Entry]) -> list[Entry]:
        return [entry for entry in log if not (entry[0] is Table.put_row and not entry[3])]


class _RepliesEarly(AcceptorHooks):
    """The reply leaves before the sync."""

    replies_before_sync = True


class _BlindView:
    """A view that never tells where records of an operation are held, except that a named record is there."""

    def __init__(self, view: AcceptorView, named: Sequence[RecordRef]) -> None:
        self._view = view
        self._named = named

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._view, attribute)

    def held(self, name: bytes, version_id: bytes) -> tuple[RecordRef, ...]:
        return tuple(ref for ref in self._view.held(name, version_id) if ref in self._named)


class _NoVersionCheck(AcceptorHooks):
    """Operation ids are not compared with the records held (at most once)."""

    def step(self, view: AcceptorView, request: Request) -> Reply:
        named = request.state.refs if isinstance(request, Accept) else ()
        blind: Any = _BlindView(view, named)
        return step(blind, request)


class _TakesKeptPromisesBlindly(AcceptorHooks):
    """What is proposed on a kept promise is taken also where operations that applied earlier are not known."""

    def step(self, view: AcceptorView, request: Request) -> Reply:
        if isinstance(request, Accept):
            request = msgspec.structs.replace(request, based_on=ZERO)
        return step(view, request)


class _LaxPrepare(AcceptorHooks):
    """Prepare succeeds for an equal ballot, and so does an accept (rules 2 and 6)."""

    def step(self, view: AcceptorView, request: Request) -> Reply:
        row = (view.row(request.name) if isinstance(request, Prepare | Accept) else None) or Row()
        if isinstance(request, Prepare) and request.ballot == max(row.promised, row.accepted):
            held = tuple(ref for operation in request.operations for ref in view.held(request.name, operation))
            return Promise(request.ballot, row.accepted, row.state, held)
        if isinstance(request, Accept) and request.ballot == row.accepted == row.promised:
            view.put_records(request.name, request.records)
            view.put_row(request.name, Row(request.ballot, request.ballot, request.state), True)
            return Accepted(request.ballot)
        return step(view, request)


NONE = Mutation("none", "nothing")

MUTATIONS: dict[str, Mutation] = {
    mutation.name: mutation
    for mutation in (
        Mutation("short-quorum", "2 of 3 prepares with 1 of 3 accepts", lambda: ShortAccepts),
        Mutation("ballot-reused", "rule 1: a ballot is used again after a timeout", KeepingRounds),
        Mutation(
            "read-not-written-back",
            "rule 3: a read answers an unsettled value",
            lambda: _AnswersUnsettledReads,
            fails_as="liveness",
        ),
        Mutation(
            "failure-not-written-back",
            "rule 3: a failed compare-and-swap answers on an unsettled value",
            lambda: _AnswersUnsettledFailures,
        ),
        Mutation(
            "dead-too-early", "at most once: a record that may yet be chosen is dropped", lambda: _BuriesTheLiving
        ),
        Mutation(
            "unknown-as-failed", "rule 5: an accept without a quorum is called undone", lambda: _SaysNothingChanged
        ),
        Mutation(
            "refused-at-once",
            "rule 5: an operation is refused while a value of it may still be chosen",
            lambda: _RefusesAtOnce,
        ),
        Mutation("first-write-at-once", "a zero ballot leaves before the home has it", first_write=_SpreadsAtOnce),
        Mutation("promise-not-durable", "rule 2: a promise is lost by a restart", acceptor=_ForgetsPromises),
        Mutation("reply-before-sync", "rule 2: the reply leaves before the sync", acceptor=_RepliesEarly),
        Mutation(
            "base-not-settled", "rule 7: builds on an unsettled base without its record", lambda: _BuildsOnUnsettled
        ),
        Mutation(
            "no-version-check", "at most once: acceptors do not look for the operation id", acceptor=_NoVersionCheck
        ),
        Mutation(
            "kept-promise-taken-blindly",
            "rule 10: an acceptor that lacks part of the chain takes what comes without phase one",
            acceptor=_TakesKeptPromisesBlindly,
            fails_as="liveness",
        ),
        Mutation(
            "lax-prepare",
            "rules 2 and 6: prepare is not strict, counters go back and no incarnation tells lives apart",
            acceptor=_LaxPrepare,
            incarnations_repeat=True,
        ),
    )
}
