"""Ballots: their order, their bytes, and that no source draws one twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from objmeta.core.ballot import ZERO, Ballot, BallotSource

U64 = st.integers(0, 2**64 - 1)
BALLOTS = st.builds(Ballot, U64, U64, U64)


@given(BALLOTS, BALLOTS)
def test_packed_ballots_sort_as_ballots_do(a: Ballot, b: Ballot) -> None:
    assert (a.pack() < b.pack()) == (a < b)
    assert Ballot.unpack(a.pack()) == a
    assert len(a.pack()) == 24


@given(BALLOTS)
def test_zero_is_below_everything(ballot: Ballot) -> None:
    assert ballot >= ZERO


@given(st.lists(st.one_of(st.none(), st.builds(Ballot, st.integers(0, 2**40), U64, U64)), max_size=30))
def test_each_ballot_is_above_all_drawn_and_seen_before(events: list[Ballot | None]) -> None:
    source = BallotSource(7, 99)
    greatest = ZERO
    for seen in events:
        if seen is not None:
            source.saw(seen)
            greatest = max(greatest, seen)
            continue
        drawn = source.next()
        assert drawn.counter > greatest.counter
        assert (drawn.proposer, drawn.incarnation) == (7, 99)
        greatest = drawn


def test_two_lives_never_draw_the_same() -> None:
    first, second = BallotSource(1, 10), BallotSource(1, 11)
    assert not {first.next() for _ in range(50)} & {second.next() for _ in range(50)}
    assert Ballot(1, 1, 10) > Ballot(0, 9, 99), "zero ballots lie below every drawn one"
