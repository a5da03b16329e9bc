"""One round of a proposer: one register, one ballot, one value.

Theory of operation.  A :class:`Round` is driven by replies and by the caller's timers and answers with effects; it
never waits by itself.  It takes exactly one ballot and proposes at most one value under it, so rule 1 (one ballot,
one value) holds by construction: whoever wants to try again makes another round with a higher ballot.

::

    PREPARE --quorum of promises--> is the base settled?
        yes -> the operation's record is held somewhere? -> finish HeldElsewhere (the caller looks at the chain)
               else apply the change: Write -> ACCEPT --quorum--> finish Done
                                      Keep -> finish Done (rule 3), unless a value of the operation may be with some
                                      acceptor: then the base is written back first, as below
        no  -> wait a little for the answers still out, then FETCH its records --> WRITE_BACK --quorum-->
               Keep -> finish Done; anything else -> finish Settled (the caller goes on under a new ballot, rule 1)

A base is *settled* when an accept quorum reported it under one ballot (rule 7); nothing is built on any other.

Who is silent may be down.  Where a quorum has answered, and for a conflict not all of it grants, the answers still out
are waited for a little and not until the round's time is up: under the next ballot those that answered may be enough.

"Not done" is an answer too.  Where an earlier round proposed a value of the operation (alone, or behind others that
went along), some acceptor may hold it, and whoever hears of that acceptor would write it back.  So such an operation is
refused only after the base was accepted anew by a quorum under this round's higher ballot.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Sequence

import msgspec

from objmeta.core.ballot import ZERO, Ballot
from objmeta.core.change import Batch, Change, Keep, Write
from objmeta.core.messages import (
    TOMBSTONE,
    Accept,
    Accepted,
    Fence,
    Fetch,
    Fetched,
    Prepare,
    Promise,
    Record,
    RecordRef,
    Refusal,
    Refused,
    Reply,
    Request,
    State,
)
from objmeta.core.quorum import Quorums

# -- Outcomes ---------------------------------------------------------------------------------------------------------


class Done(msgspec.Struct, frozen=True, gc=False):
    """The answer is known and durable: ``state`` is chosen. ``record`` is the new tip if this round wrote one.

    ``following`` is the ballot that a quorum promised along with its votes, for the next round (rule 10); else zero.
    """

    ballot: Ballot
    state: State | None
    wrote: bool
    code: str = ""
    record: Record | None = None
    following: Ballot = ZERO


class Lost(msgspec.Struct, frozen=True, gc=False):
    """No quorum under this ballot. With ``proposed`` the operation may have applied or may still apply (rule 5).

    ``failure`` is set when every acceptor that answered said that its disk failed it, and what the last of them said.
    """

    greatest: Ballot
    proposed: bool
    failure: str = ""


class Settled(msgspec.Struct, frozen=True, gc=False):
    """The change itself needs a new ballot: the base was written back and is chosen now, or a kept promise of this
    round allows no more than a write, and the change does not write."""


class HeldElsewhere(msgspec.Struct, frozen=True, gc=False):
    """Records of this operation (or of the one written back) are held, none newer than what is chosen for certain.

    On the chain of ``state`` the operation has applied; elsewhere they are dead for good (docs/decisions/0003).  With
    ``proposed`` this round's own value may still be chosen by somebody else.
    """

    held: tuple[RecordRef, ...]
    state: State | None
    proposed: bool


class Denied(msgspec.Struct, frozen=True, gc=False):
    """A floor or the configuration refuses this operation itself; another ballot would not help."""

    reason: Refusal
    proposed: bool
    detail: str = ""


class NotFirst(msgspec.Struct, frozen=True, gc=False):
    """A first write (``firstwrite``) met a register that is not new, or had nothing to write; nothing was proposed."""

    greatest: Ballot


Outcome = Done | Lost | Settled | HeldElsewhere | Denied | NotFirst


# -- Effects ----------------------------------------------------------------------------------------------------------


class Send(msgspec.Struct, frozen=True, gc=False):
    """Send this request to these acceptors."""

    to: tuple[int, ...]
    request: Request


class AwaitStragglers(msgspec.Struct, frozen=True, gc=False):
    """A quorum has answered but does not agree; call :meth:`Round.on_stragglers_late` after a short while.

    ``conflict``: the round is over then, unless one of the answers still out is a vote; so the while is a longer one.
    """

    conflict: bool = False


class Finish(msgspec.Struct, frozen=True, gc=False):
    """The round is over; later replies to it mean nothing."""

    outcome: Outcome


Effect = Send | AwaitStragglers | Finish


class Phase(enum.Enum):
    """Where a round stands."""

    PREPARE = enum.auto()
    FETCH = enum.auto()
    WRITE_BACK = enum.auto()
    ACCEPT = enum.auto()
    OVER = enum.auto()


WHOLE_OPERATION = frozenset({Refusal.STALE_TERM, Refusal.STALE_GENERATION})
"""Refusals of the operation itself, under whatever ballot."""


CANNOT = frozenset({Refusal.FAILED, Refusal.DAMAGED})
"""Refusals for what the acceptor's disk is like."""


class KeptPromise(msgspec.Struct, frozen=True, gc=False):
    """``ballot`` was promised by a quorum along with its votes for ``state`` under ``accepted`` (rule 10)."""

    ballot: Ballot
    accepted: Ballot
    state: State


class Round:
    """One attempt to change (or read) one register under one ballot."""

    __slots__ = (
        "_base",
        "_based_on",
        "_change",
        "_dead",
        "_earlier",
        "_fence",
        "_following",
        "_generation",
        "_greatest",
        "_promised_next",
        "_promises",
        "_proposal",
        "_quorums",
        "_record",
        "_refusals",
        "_votes",
        "_waiting",
        "ballot",
        "name",
        "phase",
    )

    def __init__(
        self,
        quorums: Quorums,
        name: bytes,
        ballot: Ballot,
        change: Change,
        *,
        fence: Fence | None = None,
        generation: int = 0,
        dead: tuple[RecordRef, ...] = (),
        following: Ballot = ZERO,
        kept: KeptPromise | None = None,
        earlier: bool = False,
    ) -> None:
        """``following`` is a ballot to have promised along with the votes; with ``kept`` phase one is done already.

        ``earlier``: a value of one of the change's operations may be with some acceptor, from an earlier round.
        """
        self._quorums = quorums
        self._change = change
        self._fence = fence
        self._generation = generation
        self._dead = dead
        self._following = following
        self._earlier = earlier
        self._promised_next: set[int] = set()
        self._promises: dict[int, Promise] = {}
        self._refusals: dict[int, Refused] = {}
        self._votes: set[int] = set()
        self._greatest = ballot
        self._base = kept.state if kept else None
        self._based_on = kept.accepted if kept else ZERO
        self._proposal: State | None = None
        self._record: Record | None = None
        self._waiting = False
        self.name = name
        self.ballot = ballot
        self.phase = Phase.PREPARE

    # -- Events -------------------------------------------------------------------------------------------------------

    def start(self) -> Sequence[Effect]:
        """Phase one, to everybody; phase two at once where the promise was kept."""
        if self._based_on != ZERO:
            return self._propose_on_kept_promise()
        return (self._to_all(Prepare(self.name, self.ballot, self._change.operations)),)

    def on_reply(self, acceptor: int, reply: Reply) -> Sequence[Effect]:
        """Take one reply; replies to other ballots or phases change nothing."""
        if self.phase is Phase.OVER:
            return ()
        if isinstance(reply, Fetched):
            return self._on_fetched(reply) if self.phase is Phase.FETCH else ()
        if isinstance(reply, Promise | Accepted | Refused) and reply.ballot != self.ballot:
            return ()
        if isinstance(reply, Promise):
            if self.phase is not Phase.PREPARE:
                return ()
            self._promises[acceptor] = reply
            return self._promised()
        if isinstance(reply, Accepted):
            if self.phase not in (Phase.WRITE_BACK, Phase.ACCEPT):
                return ()
            self._votes.add(acceptor)
            if reply.promised == self._following:
                self._promised_next.add(acceptor)
            return self._voted()
        if isinstance(reply, Refused):
            return self._refused(acceptor, reply)
        return ()

    def on_stragglers_late(self) -> Sequence[Effect]:
        """The answers still out took too long: settle the base by writing it back (rule 7), or end the round."""
        if not self._waiting or self.phase in (Phase.FETCH, Phase.OVER):
            return ()
        if self.phase is Phase.PREPARE and self._quorums.is_quorum(self._promises):
            return self._write_back()
        if self.phase is Phase.ACCEPT and not self._quorums.possible_without(self._refusals):
            return self._denied(proposed=True)
        return self._lost()

    def on_timeout(self) -> Sequence[Effect]:
        """No quorum in time."""
        return () if self.phase is Phase.OVER else self._lost()

    # -- Phase one ----------------------------------------------------------------------------------------------------

    def _promised(self) -> Sequence[Effect]:
        if not self._quorums.is_quorum(self._promises):
            return self._await_silent(self._promises)
        newest = max(promise.accepted for promise in self._promises.values())
        reporters = [acceptor for acceptor, promise in self._promises.items() if promise.accepted == newest]
        self._base = self._promises[reporters[0]].state
        # While members change, what was written first and never since is accepted anew, under an ordinary ballot: in
        # the next epoch another home's zero ballot is the greater one.
        first_writes = self._quorums.is_joint and newest.counter == 0 and self._base is not None
        if self._quorums.is_quorum(reporters) and not first_writes:
            return self._settled()
        if len(self._promises) + len(self._refusals) < len(self._quorums.members):
            if self._waiting:
                return ()
            self._waiting = True
            return (AwaitStragglers(),)
        return self._write_back()

    def _settled(self) -> Sequence[Effect]:
        """The base is chosen: decide."""
        floor = max(promise.sequence_floor for promise in self._promises.values())
        held = self._held_undead()
        decided = self._decided(held, floor)
        if decided:
            return self._finish(HeldElsewhere(decided, self._base, False))
        if self._is_forgotten():
            return self._finish(Denied(Refusal.STALE_GENERATION, self._proposed()))
        decision = self._change.apply(self.name, self._base, floor)
        if not isinstance(decision, Keep):
            return self._propose(decision)
        if not decision.anew and not self._earlier and not held:
            return self._finish(Done(self.ballot, self._base, False, decision.code))
        # Of a register without a state there is nothing to write back: another round may find who holds the value.
        return self._lost() if self._base is None else self._write_back()

    def _decided(self, held: set[RecordRef], floor: int) -> tuple[RecordRef, ...]:
        """Those of the records held that are on the chain of the base, or dead.

        One above its tip is neither: an accept that reached a minority, which this round repeats (the same change of
        the same base gives the same record), fences off by writing the base back, or somebody else may write back.
        """
        tip = self._base.refs[-1].sequence if self._base and self._base.refs else floor
        return tuple(sorted(ref for ref in held if ref.sequence <= tip))

    def _propose_on_kept_promise(self) -> Sequence[Effect]:
        """The base is chosen, and nothing above it can be unless a quorum has broken the promise, which the votes show.

        What writes nothing would be answered without asking anybody, so it needs an ordinary round.  Operations that
        applied earlier are found by the acceptors, which refuse their records.
        """
        decision = self._change.apply(self.name, self._base, 0)
        if isinstance(decision, Keep) or not self._writes_all():
            return self._finish(Settled())
        return self._propose(decision)

    def _writes_all(self) -> bool:
        return not isinstance(self._change, Batch) or self._change.all_written

    def _propose(self, decision: Write) -> Sequence[Effect]:
        self.phase = Phase.ACCEPT
        self._waiting = False
        self._proposal = decision.state
        self._record = decision.records[-1] if decision.records else None
        self._refusals.clear()
        if decision.state.flag == TOMBSTONE:
            self._following = ZERO  # a promise beyond it would stand in the way of its erasure
        return (
            self._to_all(
                Accept(
                    self.name,
                    self.ballot,
                    decision.state,
                    decision.records,
                    self._fence,
                    self._generation,
                    self._dead,
                    self._following,
                    self._based_on,
                )
            ),
        )

    # -- Writing back an unsettled base -------------------------------------------------------------------------------

    def _write_back(self) -> Sequence[Effect]:
        assert self._base is not None, "an unsettled base was accepted by somebody, so it is a state"
        self._waiting = False
        if not self._base.refs:
            return self._send_write_back(())
        self.phase = Phase.FETCH
        newest = max(promise.accepted for promise in self._promises.values())
        reporters = tuple(a for a, promise in self._promises.items() if promise.accepted == newest)
        return (Send(reporters, Fetch(self.name, self._base.refs)),)

    def _on_fetched(self, reply: Fetched) -> Sequence[Effect]:
        assert self._base is not None
        found = {record.ref: record for record in reply.records}
        if not all(ref in found for ref in self._base.refs):
            return ()  # another reporter, or the timeout, goes on from here
        return self._send_write_back(tuple(found[ref] for ref in self._base.refs))

    def _send_write_back(self, records: tuple[Record, ...]) -> Sequence[Effect]:
        assert self._base is not None
        self.phase = Phase.WRITE_BACK
        self._refusals.clear()
        return (self._to_all(Accept(self.name, self.ballot, self._base, records, self._fence, dead=self._dead)),)

    # -- Phase two ----------------------------------------------------------------------------------------------------

    def _voted(self) -> Sequence[Effect]:
        if not self._quorums.is_quorum(self._votes):
            return self._await_silent(self._votes)
        if self.phase is Phase.ACCEPT:
            following = self._following if self._quorums.is_quorum(self._promised_next) else ZERO
            return self._finish(Done(self.ballot, self._proposal, True, "", self._record, following))
        if not self._decided(self._held_undead(), 0) and not self._is_forgotten():
            decision = self._change.apply(self.name, self._base, 0)
            if isinstance(decision, Keep):
                return self._finish(Done(self.ballot, self._base, False, decision.code))
        return self._finish(Settled())

    def _refused(self, acceptor: int, reply: Refused) -> Sequence[Effect]:
        if self.phase is Phase.FETCH or acceptor in self._votes:
            return ()
        if self.phase is Phase.PREPARE and acceptor in self._promises:
            return ()
        self._refusals[acceptor] = reply
        self._greatest = max(self._greatest, reply.greatest)
        if reply.reason is Refusal.HELD_ELSEWHERE and self.phase is not Phase.PREPARE:
            # Without its vote a quorum may be out of reach, so prove the record dead at once.
            below = (self._proposal if self.phase is Phase.ACCEPT else self._base) or State(b"", ())
            held = tuple(ref for ref in reply.held if ref not in self._dead and ref.sequence < below.refs[0].sequence)
            if held:
                return self._finish(HeldElsewhere(held, self._base, self.phase is Phase.ACCEPT))
        if self._quorums.possible_without(self._refusals):
            if self.phase is not Phase.PREPARE:
                return self._await_silent(self._votes)
            # A refusal may complete the answers that an unsettled base was waiting for.
            return self._promised() if self._waiting else self._await_silent(self._promises)
        whole = [r for r in self._refusals.values() if r.reason in WHOLE_OPERATION]
        if whole and self.phase is Phase.ACCEPT and not self._votes and len(whole) == len(self._refusals):
            # Who refuses so has never accepted anything under this ballot or above, and never will take this value.
            # Mostly a floor stands at all acceptors, and then nothing was proposed to anybody.
            if len(whole) == len(self._quorums.members):
                return self._denied(proposed=bool(self._held_undead()))
            if not self._waiting:
                self._waiting = True
                return (AwaitStragglers(),)
            return ()
        if whole and self.phase is not Phase.PREPARE:
            return self._denied(self._proposed())
        strangers = {a: r for a, r in self._refusals.items() if r.reason is Refusal.CONFIGURATION}
        if strangers and not self._quorums.possible_without(strangers):
            return self._finish(Denied(Refusal.CONFIGURATION, self._proposed(), reply.detail))
        if all(r.reason in CANNOT for r in self._refusals.values()):
            failure = reply.detail or "the step could not be stored"
            if self.phase is Phase.PREPARE:
                return self._finish(Lost(self._greatest, self._proposed(), failure))
            if len(self._refusals) == len(self._quorums.members):
                return self._finish(Lost(self._greatest, False, failure))
        return self._lost()

    def _await_silent(self, granted: Collection[int]) -> Sequence[Effect]:
        """Another ballot is no help against other refusals than conflicts: then the silent are needed."""
        refusals = self._refusals
        if self._waiting or not refusals or not self._quorums.is_quorum({*granted, *refusals}):
            return ()
        if any(refused.reason is not Refusal.CONFLICT for refused in refusals.values()):
            return ()
        self._waiting = True
        return (AwaitStragglers(conflict=True),)

    def _denied(self, proposed: bool) -> Sequence[Effect]:
        why = next(refused for refused in self._refusals.values() if refused.reason in WHOLE_OPERATION)
        return self._finish(Denied(why.reason, proposed, why.detail))

    # -- Helpers ------------------------------------------------------------------------------------------------------

    def _to_all(self, request: Request) -> Send:
        return Send(self._quorums.members, request)

    def _is_forgotten(self) -> bool:
        """Whether the operation is so old that its record may have been erased: then not finding it proves nothing."""
        floor = max((promise.generation_floor for promise in self._promises.values()), default=0)
        return bool(self._change.operations) and self._generation < floor

    def _held_undead(self) -> set[RecordRef]:
        """Records of this operation that may be on the chain, or get there."""
        return {ref for promise in self._promises.values() for ref in promise.held} - set(self._dead)

    def _lost(self) -> Sequence[Effect]:
        return self._finish(Lost(self._greatest, self._proposed()))

    def _proposed(self) -> bool:
        """Whether a value of this operation may be with some acceptor, from this round or an earlier one."""
        return self.phase is Phase.ACCEPT or bool(self._held_undead())

    def _finish(self, outcome: Outcome) -> Sequence[Effect]:
        self.phase = Phase.OVER
        return (Finish(outcome),)
