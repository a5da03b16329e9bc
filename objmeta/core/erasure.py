"""What lets anything be forgotten: the generation, and the confirmation of a tombstone by everybody (rules 8 and 9).

The generation is a counter in a register of its own (``~g/generation``) that only grows; an empty register stands for
the first one.  An operation states the generation in which its client began it, and acceptors refuse new values below
their generation floor.

A tombstone may be erased under the ballot under which *all* acceptors of the configuration have accepted it.  Where an
inventory does not show that already, :class:`Confirm` brings it about: one prepare and one accept of the unchanged
tombstone under one ballot (rule 1), whose quorum is everybody.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from objmeta.core.ballot import Ballot
from objmeta.core.change import Decision, Keep, Write
from objmeta.core.messages import (
    TOMBSTONE,
    Accept,
    Accepted,
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
from objmeta.core.proposer import Send
from objmeta.core.records import is_intact, record_digest
from objmeta.errors import IntegrityError

# -- The generation ---------------------------------------------------------------------------------------------------

GENERATION_REGISTER: Final = b"~g/generation"
FIRST_GENERATION: Final = 1
"""What an empty register stands for; 0 is no generation, so it can stand for "not stated"."""
MOVED: Final = "moved"
"""Code of a move that found another generation than it expected."""


class _Kept(msgspec.Struct, frozen=True, array_like=True, tag="generation1"):
    """The value of the generation register."""

    generation: int


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(_Kept)


def generation_in(state: State | None) -> int:
    """The generation a state of the register holds. Raises IntegrityError."""
    if state is None:
        return FIRST_GENERATION
    try:
        return _DECODER.decode(state.value).generation
    except msgspec.MsgspecError as damage:
        raise IntegrityError(f"the generation register holds bytes that cannot be read: {damage}") from damage


class MoveGeneration(msgspec.Struct, frozen=True):
    """The change of the register: from ``expected`` to the next; else code MOVED."""

    version_id: bytes
    expected: int

    @property
    def operations(self) -> tuple[bytes, ...]:
        """The one operation id."""
        return (self.version_id,)

    def apply(self, name: bytes, state: State | None, sequence_floor: int) -> Decision:
        """See :class:`objmeta.core.change.Change`."""
        if generation_in(state) != self.expected:
            return Keep(MOVED)
        parent = state.refs[-1] if state is not None and state.refs else None
        sequence = (parent.sequence if parent else sequence_floor) + 1
        ref = RecordRef(sequence, self.version_id, record_digest(sequence, self.version_id, parent, b""))
        value = _ENCODER.encode(_Kept(self.expected + 1))
        return Write(State(value, (ref,)), (Record(ref, parent, b""),))


# -- The confirmation -------------------------------------------------------------------------------------------------


class Confirmed(msgspec.Struct, frozen=True, gc=False):
    """Every acceptor has accepted the tombstone under ``ballot``."""

    ballot: Ballot


class NotConfirmed(msgspec.Struct, frozen=True, gc=False):
    """Somebody did not answer, or stood in the way with the ballot ``greatest``."""

    greatest: Ballot


class InUse(msgspec.Struct, frozen=True, gc=False):
    """The register holds something newer than the tombstone that was expected."""


Confirmation = Confirmed | NotConfirmed | InUse


class Confirm:
    """One attempt to have all of ``members`` accept the tombstone that was accepted under ``expected``.

    Driven by replies like :class:`~objmeta.core.proposer.Round`; ``outcome`` is set when it is over.  Where nobody
    reports anything newer than ``expected``, the tombstone is what every round finds from now on, chosen or not, so
    writing it again under a higher ballot changes nothing (rule 7).
    """

    __slots__ = ("_accept", "_expected", "_fetching", "_members", "_promises", "_votes", "ballot", "name", "outcome")

    def __init__(self, members: tuple[int, ...], name: bytes, ballot: Ballot, expected: Ballot) -> None:
        self._members = members
        self._expected = expected
        self._promises: dict[int, Promise] = {}
        self._votes: set[int] = set()
        self._fetching = False
        self._accept: Accept | None = None
        self.name = name
        self.ballot = ballot
        self.outcome: Confirmation | None = None

    def start(self) -> Sequence[Send]:
        """Phase one, to everybody."""
        return (self._to_all(Prepare(self.name, self.ballot)),)

    def on_reply(self, acceptor: int, reply: Reply) -> Sequence[Send]:
        """Take one reply."""
        if self.outcome is not None:
            return ()
        if isinstance(reply, Fetched):
            return self._on_fetched(reply)
        if not isinstance(reply, Promise | Accepted | Refused) or reply.ballot != self.ballot:
            return ()
        if isinstance(reply, Promise):
            self._promises[acceptor] = reply
            return self._promised() if self._accept is None and not self._fetching else ()
        if isinstance(reply, Accepted):
            self._votes.add(acceptor)
            if self._votes.issuperset(self._members):
                self.outcome = Confirmed(self.ballot)
            return ()
        return self._refused(acceptor, reply)

    def on_timeout(self) -> None:
        """Somebody does not answer."""
        if self.outcome is None:
            self.outcome = NotConfirmed(self.ballot)

    def _promised(self) -> Sequence[Send]:
        if len(self._promises) < len(self._members):
            return ()
        newest = max(self._promises.values(), key=lambda promise: promise.accepted)
        if newest.accepted != self._expected or newest.state is None or newest.state.flag != TOMBSTONE:
            self.outcome = InUse()
            return ()
        reporters = tuple(a for a, promise in self._promises.items() if promise.accepted == newest.accepted)
        if len(reporters) == len(self._members) or not newest.state.refs:
            return self._propose(newest.state, ())
        self._fetching = True
        return (Send(reporters, Fetch(self.name, newest.state.refs)),)

    def _on_fetched(self, reply: Fetched) -> Sequence[Send]:
        if not self._fetching:
            return ()
        state = max(self._promises.values(), key=lambda promise: promise.accepted).state
        assert state is not None, "records are fetched for a state"
        found = {record.ref: record for record in reply.records if is_intact(record)}
        if not all(ref in found for ref in state.refs):
            return ()  # another reporter, or the timeout, goes on from here
        self._fetching = False
        return self._propose(state, tuple(found[ref] for ref in state.refs))

    def _propose(self, state: State, records: tuple[Record, ...]) -> Sequence[Send]:
        self._accept = Accept(self.name, self.ballot, state, records)
        return (self._to_all(self._accept),)

    def _refused(self, acceptor: int, reply: Refused) -> Sequence[Send]:
        if acceptor in self._votes:
            return ()
        if reply.reason is Refusal.HELD_ELSEWHERE and self._accept is not None:
            # The operation's record lies on this chain, and once only, so one with a lower sequence is dead for good.
            return (Send((acceptor,), msgspec.structs.replace(self._accept, dead=reply.held)),)
        self.outcome = NotConfirmed(max(self.ballot, reply.greatest))
        return ()

    def _to_all(self, request: Request) -> Send:
        return Send(self._members, request)
