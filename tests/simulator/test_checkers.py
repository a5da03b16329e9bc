"""The checkers against histories made by hand, good and bad, and against each other."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objmeta.model.changes import EXISTS, MISSING, PRECONDITION
from objmeta.testing.checkers import Violation, check_chain, search
from objmeta.testing.history import Absent, Applied, Attempt, Operation, Rejected, Result, Seen

X, Y, Z = Operation(b"X"), Operation(b"Y"), Operation(b"Z")


def done(operation: Operation | None, called: float, returned: float, result: Result) -> Attempt:
    """An attempt that was answered."""
    return Attempt(operation, called, returned, result)


def left_open(operation: Operation, called: float) -> Attempt:
    """An attempt that was not."""
    return Attempt(operation, called)


GOOD: dict[str, tuple[list[Attempt], list[bytes]]] = {
    "nothing happened": ([], []),
    "a read of nothing": ([done(None, 1, 2, Seen(0, b""))], []),
    "write then read": ([done(X, 1, 2, Applied(1, b"")), done(None, 3, 4, Seen(1, b"X"))], [b"X"]),
    "overlapping writes in either order": (
        [done(X, 1, 4, Applied(2, b"Y")), done(Y, 2, 3, Applied(1, b""))],
        [b"Y", b"X"],
    ),
    "an overlapping read may miss the write": (
        [done(X, 1, 4, Applied(1, b"")), done(None, 2, 3, Seen(0, b""))],
        [b"X"],
    ),
    "an open write may take effect": ([left_open(X, 1), done(None, 5, 6, Seen(1, b"X"))], [b"X"]),
    "an open write may never take effect": ([left_open(X, 1), done(None, 5, 6, Seen(0, b""))], []),
    "an open write may take effect much later": (
        [left_open(X, 1), done(None, 5, 6, Seen(0, b"")), done(None, 7, 8, Seen(1, b"X"))],
        [b"X"],
    ),
    "a second attempt finds the first": (
        [left_open(X, 1), done(Y, 3, 4, Applied(2, b"X")), done(X, 5, 6, Applied(1, b""))],
        [b"X", b"Y"],
    ),
    "a conditional write fails": (
        [
            done(X, 1, 2, Applied(1, b"")),
            done(Operation(b"Y", if_absent=True), 3, 4, Rejected(EXISTS)),
            done(Operation(b"Z", if_version=b"Q"), 5, 6, Rejected(PRECONDITION)),
        ],
        [b"X"],
    ),
    "a delete of nothing fails": (
        [done(Operation(b"X", visible=False, if_present=True), 1, 2, Rejected(MISSING))],
        [],
    ),
    "nothing is seen where a deleted register may be erased": (
        [
            done(X, 1, 2, Applied(1, b"")),
            done(Operation(b"Y", visible=False, if_present=True), 3, 4, Applied(2, b"X")),
            done(None, 5, 6, Absent()),
            done(Z, 7, 8, Applied(3, b"Y")),
        ],
        [b"X", b"Y", b"Z"],
    ),
    "absent again after a delete": (
        [
            done(X, 1, 2, Applied(1, b"")),
            done(Operation(b"Y", visible=False, if_present=True), 3, 4, Applied(2, b"X")),
            done(Operation(b"Z", if_absent=True), 5, 6, Applied(3, b"Y")),
        ],
        [b"X", b"Y", b"Z"],
    ),
}

BAD: dict[str, tuple[list[Attempt], list[bytes]]] = {
    "a stale read": ([done(X, 1, 2, Applied(1, b"")), done(None, 3, 4, Seen(0, b""))], [b"X"]),
    "nothing is seen although nothing was deleted": (
        [done(X, 1, 2, Applied(1, b"")), done(None, 3, 4, Absent())],
        [b"X"],
    ),
    "nothing is seen after a deleted register was written again": (
        [
            done(X, 1, 2, Applied(1, b"")),
            done(Operation(b"Y", visible=False, if_present=True), 3, 4, Applied(2, b"X")),
            done(Z, 5, 6, Applied(3, b"Y")),
            done(None, 7, 8, Absent()),
        ],
        [b"X", b"Y", b"Z"],
    ),
    "reads that go back": (
        [left_open(X, 1), done(None, 2, 3, Seen(1, b"X")), done(None, 4, 5, Seen(0, b""))],
        [b"X"],
    ),
    "a lost write": ([done(X, 1, 2, Applied(1, b"")), done(Y, 3, 4, Applied(1, b""))], [b"Y"]),
    "a double application": (
        [done(X, 1, 2, Applied(1, b"")), done(Y, 3, 4, Applied(2, b"X")), done(X, 5, 6, Applied(3, b"Y"))],
        [b"X", b"Y", b"X"],
    ),
    "a fork": (
        [
            done(X, 1, 2, Applied(1, b"")),
            left_open(Y, 3),
            left_open(Z, 3),
            done(None, 4, 5, Seen(2, b"Y")),
            done(None, 4, 5, Seen(2, b"Z")),
        ],
        [b"X", b"Y"],
    ),
    "a read from the future": ([done(None, 1, 2, Seen(1, b"X")), done(X, 3, 4, Applied(1, b""))], [b"X"]),
    "a write before it was asked for": (
        [done(X, 1, 2, Applied(2, b"Y")), done(Y, 3, 4, Applied(1, b""))],
        [b"Y", b"X"],
    ),
    "a write that nobody asked for": ([done(None, 1, 2, Seen(1, b"X"))], [b"X"]),
    "a failure without a reason": (
        [done(Operation(b"Y", if_absent=True), 1, 2, Rejected(EXISTS)), done(X, 3, 4, Applied(1, b""))],
        [b"X"],
    ),
    "a failure of what had taken effect": (
        [
            left_open(Operation(b"X", if_absent=True), 1),
            done(None, 2, 3, Seen(1, b"X")),
            done(Operation(b"X", if_absent=True), 4, 5, Rejected(EXISTS)),
        ],
        [b"X"],
    ),
    "two winners": (
        [
            done(Operation(b"X", if_absent=True), 1, 4, Applied(1, b"")),
            done(Operation(b"Y", if_absent=True), 2, 3, Applied(2, b"X")),
        ],
        [b"X", b"Y"],
    ),
    "a compare-and-swap on another version": (
        [done(X, 1, 2, Applied(1, b"")), done(Operation(b"Y", if_version=b"Q"), 3, 4, Applied(2, b"X"))],
        [b"X", b"Y"],
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_histories_pass(name: str) -> None:
    attempts, chain = GOOD[name]
    assert search(attempts) is True
    check_chain(attempts, chain)


@pytest.mark.parametrize("name", BAD)
def test_bad_histories_are_found_by_both(name: str) -> None:
    attempts, chain = BAD[name]
    assert search(attempts) is False
    with pytest.raises(Violation):
        check_chain(attempts, chain)


def test_a_search_that_takes_too_long_says_so() -> None:
    attempts = [left_open(Operation(bytes((i,))), 1) for i in range(12)]
    attempts.append(done(None, 20, 21, Seen(4, b"nobody")))
    assert search(attempts, steps_max=50) is None


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[Attempt], list[bytes]]:
    """A history made by really running writes and reads one after the other, with times that overlap."""
    attempts: list[Attempt] = []
    chain: list[bytes] = []
    points = sorted(draw(st.lists(st.floats(1, 100), min_size=1, max_size=8, unique=True)))
    for i, point in enumerate(points):
        called, returned = point - draw(st.floats(0.01, 30)), point + draw(st.floats(0.01, 30))
        kind = draw(st.sampled_from(("write", "open", "read")))
        if kind == "read":
            attempts.append(done(None, called, returned, Seen(len(chain), chain[-1] if chain else b"")))
            continue
        operation = Operation(bytes((i,)))
        result = Applied(len(chain) + 1, chain[-1] if chain else b"")
        chain.append(operation.id)
        attempts.append(left_open(operation, called) if kind == "open" else done(operation, called, returned, result))
    return attempts, chain


@settings(deadline=None)
@given(runs())
def test_what_really_ran_is_linearizable(run: tuple[list[Attempt], list[bytes]]) -> None:
    attempts, chain = run
    assert search(attempts) is True
    check_chain(attempts, chain)


@settings(deadline=None)
@given(runs())
def test_the_two_checkers_agree_on_spoilt_histories(run: tuple[list[Attempt], list[bytes]]) -> None:
    attempts, chain = run
    reads = [attempt for attempt in attempts if attempt.operation is None]
    if not reads or not chain:
        return
    spoilt = reads[0]
    for place in range(len(chain) + 1):
        spoilt.result = Seen(place, chain[place - 1] if place else b"")
        # Open writes may be anywhere in an order that nobody saw; only what the chain says is compared here.
        closed = all(attempt.returned is not None for attempt in attempts)
        try:
            check_chain(attempts, chain)
            agrees = True
        except Violation:
            agrees = False
        found = search(attempts)
        assert found is True or not agrees
        if closed:
            assert found == agrees
