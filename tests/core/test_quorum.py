"""Arithmetic of majorities: by table, by a dumb twin, and by exhausting every small case."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from objmeta.core.quorum import Quorums, majority

MEMBERS = st.frozensets(st.integers(1, 9), min_size=1, max_size=7)


@pytest.mark.parametrize(("size", "least"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (6, 4), (7, 4)])
def test_majority(size: int, least: int) -> None:
    assert majority(size) == least


@pytest.mark.parametrize(
    ("sets", "acceptors", "expected"),
    [
        ([{1}], {1}, True),
        ([{1}], {2}, False),
        ([{1, 2}], {1}, False),
        ([{1, 2, 3}], {1, 3}, True),
        ([{1, 2, 3}], {1, 4, 5}, False),
        ([{1, 2, 3, 4}], {1, 2}, False),
        ([{1, 2, 3}, {3, 4, 5}], {1, 3, 4}, True),
        ([{1, 2, 3}, {3, 4, 5}], {1, 2, 3}, False),
        ([{1, 2, 3}, {4, 5, 6}], {1, 2, 4, 5}, True),
    ],
)
def test_is_quorum(sets: list[set[int]], acceptors: set[int], expected: bool) -> None:
    assert Quorums(sets).is_quorum(acceptors) is expected


@pytest.mark.parametrize("sets", [[], [set()], [{1}, set()]])
def test_a_set_without_members_is_refused(sets: list[set[int]]) -> None:
    with pytest.raises(ValueError, match="member set"):
        Quorums(sets)


def dumb_is_quorum(sets: list[frozenset[int]], acceptors: frozenset[int]) -> bool:
    """Count one by one; more than half of every set."""
    for members in sets:
        count = 0
        for member in members:
            if member in acceptors:
                count += 1
        if not count * 2 > len(members):
            return False
    return True


@given(st.lists(MEMBERS, min_size=1, max_size=2), st.frozensets(st.integers(1, 10)))
def test_against_the_dumb_twin(sets: list[frozenset[int]], acceptors: frozenset[int]) -> None:
    quorums = Quorums(sets)
    assert quorums.is_quorum(acceptors) == dumb_is_quorum(sets, acceptors)
    everybody = frozenset().union(*sets)
    assert quorums.members == tuple(sorted(everybody))
    assert quorums.possible_without(acceptors) == dumb_is_quorum(sets, everybody - acceptors)


def subsets(members: tuple[int, ...]) -> list[frozenset[int]]:
    """All of them."""
    return [frozenset(c) for n in range(len(members) + 1) for c in itertools.combinations(members, n)]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6])
def test_any_two_quorums_meet(size: int) -> None:
    members = tuple(range(1, size + 1))
    quorums = Quorums([members])
    good = [subset for subset in subsets(members) if quorums.is_quorum(subset)]
    assert all(a & b for a in good for b in good)
    assert all(
        quorums.is_quorum(subset) == (not quorums.possible_without(subset)) or size % 2 == 0
        for subset in subsets(members)
    )


def test_any_two_quorums_of_a_joint_configuration_meet_in_each_set() -> None:
    for old in subsets((1, 2, 3, 4)):
        for new in subsets((3, 4, 5)):
            if not old or not new:
                continue
            quorums = Quorums([old, new])
            good = [subset for subset in subsets(quorums.members) if quorums.is_quorum(subset)]
            assert good
            for a, b in itertools.combinations(good, 2):
                assert a & b & old
                assert a & b & new
