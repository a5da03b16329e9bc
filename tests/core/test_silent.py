"""Rounds where one acceptor is silent and another one refuses: the silent one may be down, so the round ends early."""

from __future__ import annotations

import pytest

from objmeta.core.ballot import ZERO, Ballot
from objmeta.core.messages import Accepted, Promise, Refusal, Refused, Reply
from objmeta.core.proposer import AwaitStragglers, Done, Finish, Lost, Round
from objmeta.core.quorum import Quorums
from tests.core.test_denied import BALLOT, BASE, Append, proposing

GREATER = Ballot(9, 1, 2)


def conflict() -> Refused:
    return Refused(BALLOT, Refusal.CONFLICT, GREATER)


def preparing(members: tuple[int, ...] = (1, 2, 3)) -> Round:
    round_ = Round(Quorums((members,)), b"k/x", BALLOT, Append(), generation=1)
    round_.start()
    return round_


@pytest.mark.parametrize("refused_first", [True, False])
def test_a_vote_and_a_conflict(refused_first: bool) -> None:
    round_ = proposing()
    replies: list[tuple[int, Reply]] = [(2, conflict()), (3, Accepted(BALLOT))]
    one, two = replies if refused_first else replies[::-1]
    assert not round_.on_reply(*one)
    assert round_.on_reply(*two) == (AwaitStragglers(conflict=True),)
    assert round_.on_stragglers_late() == (Finish(Lost(GREATER, True)),)


def test_who_was_only_slow_decides() -> None:
    round_ = proposing()
    round_.on_reply(2, conflict())
    round_.on_reply(3, Accepted(BALLOT))
    (finish,) = round_.on_reply(1, Accepted(BALLOT))
    assert isinstance(finish, Finish)
    assert isinstance(finish.outcome, Done)
    assert not round_.on_stragglers_late()


def test_a_promise_and_a_conflict() -> None:
    round_ = preparing()
    assert not round_.on_reply(2, conflict())
    assert round_.on_reply(3, Promise(BALLOT, ZERO, None)) == (AwaitStragglers(conflict=True),)
    assert round_.on_stragglers_late() == (Finish(Lost(GREATER, False)),)


def test_of_five_two_may_be_silent() -> None:
    round_ = preparing((1, 2, 3, 4, 5))
    assert not round_.on_reply(1, conflict())
    assert not round_.on_reply(2, conflict())
    assert round_.on_reply(3, Promise(BALLOT, ZERO, None)) == (AwaitStragglers(conflict=True),)


def test_a_base_that_is_not_settled_is_written_back_then() -> None:
    round_ = preparing((1, 2, 3, 4, 5))
    round_.on_reply(1, conflict())
    round_.on_reply(2, Promise(BALLOT, ZERO, None))
    assert round_.on_reply(3, Promise(BALLOT, Ballot(6, 1, 1), BASE)) == (AwaitStragglers(conflict=True),)
    assert not round_.on_reply(4, Promise(BALLOT, ZERO, None))
    (fetch,) = round_.on_stragglers_late()
    assert not isinstance(fetch, Finish)
    assert not round_.on_stragglers_late()  # the timer of before means nothing to this phase


@pytest.mark.parametrize("reason", [Refusal.FAILED, Refusal.DAMAGED, Refusal.STALE_GENERATION])
def test_another_ballot_is_no_help_against_other_refusals(reason: Refusal) -> None:
    round_ = proposing()
    assert not round_.on_reply(2, Refused(BALLOT, reason))
    assert not round_.on_reply(3, Accepted(BALLOT))
