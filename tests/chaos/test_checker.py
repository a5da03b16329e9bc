"""The checker of histories: what it accepts, what it rejects, and that a dumber one says the same."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

import pytest

from tests.chaos.checker import check, contradictions, linearizable
from tests.chaos.history import (
    CHANGE,
    DELETE,
    DELETE_IF,
    FAIL,
    GET,
    OK,
    PUT,
    PUT_IF,
    PUT_IF_ABSENT,
    UNKNOWN,
    Operation,
)

_ids = itertools.count(1)


def op(kind: str, called: float, returned: float | None, outcome: str = OK, **told: Any) -> Operation:
    argument: dict[str, Any] = {name: told.pop(name) for name in ("value", "expected") if name in told and kind != GET}
    return Operation(
        id=str(next(_ids)),
        client=1,
        key="k",
        kind=kind,
        argument=argument,
        called=called,
        returned=returned,
        outcome=outcome,
        result=told,
    )


LINEARIZABLE = {
    "nothing": [],
    "one after the other": [
        op(PUT, 1, 2, value="a"),
        op(GET, 3, 4, value="a"),
        op(DELETE, 5, 6, done=True),
        op(GET, 7, 8, value=None),
        op(PUT_IF_ABSENT, 9, 10, value="b", done=True),
        op(CHANGE, 11, 12, value="c", previous="b"),
        op(PUT_IF, 13, 14, value="d", expected="b", done=False),
        op(DELETE_IF, 15, 16, expected="c", done=True),
    ],
    "at the same time, either first": [
        op(PUT, 1, 4, value="a"),
        op(PUT, 1, 4, value="b"),
        op(GET, 5, 6, value="a"),
    ],
    "unknown, and had its effect": [op(PUT, 1, None, UNKNOWN, value="a"), op(GET, 5, 6, value="a")],
    "unknown, and had it late": [
        op(PUT, 1, 2, UNKNOWN, value="a"),
        op(GET, 3, 4, value=None),
        op(GET, 5, 6, value="a"),
    ],
    "nobody saw it, but it must have been": [
        op(PUT, 1, 2, value="a"),
        op(PUT, 3, None, UNKNOWN, value="b"),
        op(PUT_IF, 4, 5, value="c", expected="a", done=False),
    ],
}

WRONG = {
    "a lost write": [op(PUT, 1, 2, value="a"), op(GET, 3, 4, value=None)],
    "a stale read": [op(PUT, 1, 2, value="a"), op(PUT, 3, 4, value="b"), op(GET, 5, 6, value="a")],
    "reads that go back": [
        op(PUT, 1, 9, value="a"),
        op(GET, 2, 3, value="a"),
        op(GET, 4, 5, value=None),
    ],
    "two winners": [
        op(PUT, 1, 2, value="a"),
        op(PUT_IF, 3, 5, value="b", expected="a", done=True),
        op(PUT_IF, 3, 5, value="c", expected="a", done=True),
    ],
    "a failed write was seen": [op(PUT, 1, 2, FAIL, value="a"), op(GET, 3, 4, value="a")],
    "an effect twice": [
        op(CHANGE, 1, 2, value="a", previous=None),
        op(CHANGE, 3, None, UNKNOWN, value="b"),
        op(GET, 4, 5, value="b"),
        op(PUT, 6, 7, value="c"),
        op(GET, 8, 9, value="b"),
    ],
    "an effect before its call": [op(GET, 1, 2, value="a"), op(PUT, 3, 4, value="a")],
    "it was there": [op(PUT, 1, 2, value="a"), op(PUT_IF_ABSENT, 3, 4, value="b", done=True)],
    "it was not there": [op(PUT_IF_ABSENT, 3, 4, value="b", done=False)],
    "nothing to delete": [op(DELETE, 3, 4, done=True)],
    "the wrong predecessor": [op(PUT, 1, 2, value="a"), op(CHANGE, 3, 4, value="b", previous=None)],
}


@pytest.mark.parametrize("history", LINEARIZABLE.values(), ids=LINEARIZABLE)
def test_what_is_linearizable(history: Sequence[Operation]) -> None:
    assert linearizable(history) is True
    assert check(history).violations == []


@pytest.mark.parametrize("history", WRONG.values(), ids=WRONG)
def test_what_is_not(history: Sequence[Operation]) -> None:
    assert linearizable(history) is False
    assert check(history).violations


@pytest.mark.parametrize(
    "history",
    [
        [op(PUT, 1, 2, value="a", sequence=1), op(PUT, 3, 4, value="b", sequence=1)],
        [op(PUT, 1, 2, value="a", sequence=2), op(GET, 3, 4, value="a", sequence=3)],
        [
            op(PUT, 1, 9, value="a", sequence=2),
            op(PUT, 1, 2, value="b", sequence=5),
            op(GET, 3, 4, value="a", sequence=2),
        ],
        [op(GET, 1, 2, value="a", sequence=1)],
    ],
    ids=["one place, two values", "one value, two places", "an older place later", "from nowhere"],
)
def test_sequence_numbers_that_contradict_each_other(history: Sequence[Operation]) -> None:
    assert contradictions(history)


def test_a_search_that_takes_too_long_says_so() -> None:
    history = [op(PUT, 1, 99, value=f"{i}") for i in range(8)]
    history += [op(GET, 100 + i, 100 + i + 0.5, value=f"{i % 2}") for i in range(2)]
    assert linearizable(history, steps_max=50) is None
    assert check(history, steps_max=50).undecided == ["k"]


def test_long_histories_with_many_open_writes_are_decided() -> None:
    history = [op(PUT, i, None, UNKNOWN, value=f"open {i}") for i in range(40)]
    history += [op(DELETE, i, None, UNKNOWN) for i in range(10)]
    for i in range(120):
        history += [op(PUT, 50 + i, 50.5 + i, value=f"{i}"), op(GET, 50.6 + i, 50.7 + i, value=f"{i}")]
    assert linearizable(history) is True
    lost = op(GET, 500, 501, value="17")
    assert linearizable([*history, lost]) is False


# -- A dumb twin ------------------------------------------------------------------------------------------------------


def by_brute_force(history: Sequence[Operation]) -> bool:
    """Try every order of the answered operations with every choice of the open ones."""
    answered = [o for o in history if o.outcome == OK]
    opened = [o for o in history if o.outcome == UNKNOWN]
    for count in range(len(opened) + 1):
        for chosen in itertools.combinations(opened, count):
            for order in itertools.permutations([*answered, *chosen]):
                if fits_times(order) and fits_answers(order):
                    return True
    return False


def fits_times(order: Sequence[Operation]) -> bool:
    return not any(
        later.outcome == OK and later.returned is not None and later.returned < earlier.called
        for earlier, later in itertools.combinations(order, 2)
    )


def fits_answers(order: Sequence[Operation]) -> bool:
    state: str | None = None
    for o in order:
        told: dict[str, Any] = {}
        before = state
        if o.kind == GET:
            told = {"value": state}
        elif o.kind == CHANGE:
            told, state = {"previous": state}, o.value
        elif o.kind == PUT:
            state = o.value
        elif o.kind == DELETE:
            told, state = {"done": state is not None}, None
        else:
            done = state is None if o.kind == PUT_IF_ABSENT else state == o.expected
            told = {"done": done}
            state = (None if o.kind == DELETE_IF else o.value) if done else before
        if o.outcome == OK and told != o.result:
            return False
    return True


def drawn(rng: random.Random) -> list[Operation]:
    history = []
    values = [f"v{i}" for i in range(5)]
    for i in range(rng.randint(2, 5)):
        called = rng.randint(0, 6)
        kind = rng.choice((GET, PUT, CHANGE, PUT_IF_ABSENT, PUT_IF, DELETE, DELETE_IF))
        argument = {"value": values[i]} if kind in (PUT, CHANGE, PUT_IF_ABSENT, PUT_IF) else {}
        if kind in (PUT_IF, DELETE_IF):
            argument["expected"] = rng.choice(values)
        result: dict[str, Any] = {"done": rng.random() < 0.5}
        if kind in (GET, CHANGE):
            result = {"value" if kind == GET else "previous": rng.choice([None, *values])}
        outcome = UNKNOWN if kind != GET and rng.random() < 0.3 else OK
        made = Operation(id=str(i), client=i, key="k", kind=kind, argument=argument, called=called)
        made.outcome, made.returned = outcome, called + rng.random() * 4
        made.result = result if outcome == OK and kind != PUT else {}
        history.append(made)
    return history


def test_brute_force_says_the_same() -> None:
    rng = random.Random(7)
    answers = []
    for _ in range(4000):
        history = drawn(rng)
        answers.append(by_brute_force(history))
        assert linearizable(history) is answers[-1], "\n".join(map(str, history))
    assert 400 < sum(answers) < 3600
