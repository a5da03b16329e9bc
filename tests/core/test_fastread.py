"""The fast read (rule 4) against a dumb model."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from objmeta.core.ballot import ZERO, Ballot
from objmeta.core.fastread import FastRead, Reading
from objmeta.core.messages import Found, Refusal, Refused, State
from objmeta.core.quorum import Quorums

ANSWERS = st.lists(st.one_of(st.none(), st.integers(0, 3)), min_size=1, max_size=5)


def found(counter: int) -> Found:
    """What an acceptor with this accepted ballot answers."""
    return Found(Ballot(counter, 1, 1), State(bytes((counter,)), ())) if counter else Found(ZERO, None)


@given(ANSWERS)
def test_decided_exactly_when_a_quorum_shows_one_ballot(answers: list[int | None]) -> None:
    size = len(answers)
    reading = FastRead(Quorums([range(size)]))
    so_far: list[int] = []
    for acceptor, answer in enumerate(answers):
        refusal = Refused(ZERO, Refusal.CONFIGURATION)
        known = reading.on_reply(acceptor, refusal if answer is None else found(answer))
        if answer is not None:
            so_far.append(answer)
        most = max((so_far.count(counter) for counter in so_far), default=0)
        out = size - acceptor - 1
        if most * 2 > size:
            assert known is Reading.DECIDED
            assert answer is not None
            assert reading.state == found(answer).state
            return
        if (most + out) * 2 <= size:
            assert known is Reading.DIVIDED
            return
        assert known is (Reading.SPLIT if len(so_far) * 2 > size else Reading.OPEN)


def test_an_acceptor_counts_once() -> None:
    reading = FastRead(Quorums([(1, 2, 3)]))
    assert reading.on_reply(1, found(1)) is Reading.OPEN
    assert reading.on_reply(1, found(1)) is Reading.OPEN
    assert reading.on_reply(2, found(1)) is Reading.DECIDED


def test_under_a_joint_configuration_both_majorities_must_agree() -> None:
    reading = FastRead(Quorums([(1, 2, 3), (3, 4, 5)]))
    assert reading.on_reply(1, found(2)) is Reading.OPEN
    assert reading.on_reply(2, found(2)) is Reading.OPEN
    assert reading.on_reply(3, found(2)) is Reading.OPEN
    assert reading.on_reply(4, found(2)) is Reading.DECIDED
