"""A round that a floor refuses in its second phase: whether something of it may have applied."""

from __future__ import annotations

import pytest

from objmeta.core.ballot import Ballot
from objmeta.core.change import Decision, Write
from objmeta.core.messages import Accepted, Record, RecordRef, Refusal, Refused, Reply, State
from objmeta.core.proposer import AwaitStragglers, Denied, Finish, KeptPromise, Round
from objmeta.core.quorum import Quorums
from objmeta.core.records import record_digest

BALLOT = Ballot(7, 1, 1)
BASE = State(b"base", (RecordRef(1, bytes(16), bytes(32)),))


class Append:
    version_id = b"\x01" * 16
    operations = (version_id,)

    def apply(self, name: bytes, state: State | None, sequence_floor: int) -> Decision:
        assert state is not None
        parent = state.refs[-1]
        ref = RecordRef(2, self.version_id, record_digest(2, self.version_id, parent, b""))
        return Write(State(b"next", (ref,)), (Record(ref, parent, b""),))


def proposing() -> Round:
    quorums = Quorums(((1, 2, 3),))
    round_ = Round(quorums, b"k/x", BALLOT, Append(), generation=1, kept=KeptPromise(BALLOT, Ballot(6, 1, 1), BASE))
    round_.start()
    return round_


def stale(reason: Refusal = Refusal.STALE_GENERATION) -> Refused:
    return Refused(BALLOT, reason)


def test_refused_by_all_it_was_not_applied() -> None:
    round_ = proposing()
    assert not round_.on_reply(1, stale())
    assert round_.on_reply(2, stale()) == (AwaitStragglers(),)
    assert not round_.on_reply(2, stale())
    assert round_.on_reply(3, stale()) == (Finish(Denied(Refusal.STALE_GENERATION, False)),)


def test_the_one_that_is_silent_may_have_accepted() -> None:
    round_ = proposing()
    round_.on_reply(1, stale())
    round_.on_reply(2, stale())
    assert round_.on_stragglers_late() == (Finish(Denied(Refusal.STALE_GENERATION, True)),)


@pytest.mark.parametrize(
    "replies",
    [
        (Accepted(BALLOT), stale(), stale()),
        (stale(), stale(Refusal.CONFLICT)),
        (stale(), stale(), stale(Refusal.CONFLICT)),
    ],
    ids=["accepted", "moved-on", "moved-on-late"],
)
def test_who_accepted_or_has_moved_on_may_have_it(replies: tuple[Reply, ...]) -> None:
    round_ = proposing()
    *before, last = enumerate(replies, 1)
    for acceptor, reply in before:
        round_.on_reply(acceptor, reply)
    assert round_.on_reply(*last) == (Finish(Denied(Refusal.STALE_GENERATION, True)),)
