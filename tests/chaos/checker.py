"""Is a history of ``tests/chaos/history.py`` linearizable, register by register?

The checker of the simulator (``objmeta.testing.checkers``) knows operation ids, places in the chain and parents, which
users are not told in full.  This one asks nothing but what users see.

* :func:`linearizable` looks for an order of the operations that explains every answer and puts none before one that
  returned before it was called: Wing and Gong's search with Lowe's memory of states seen.  What only looks is taken as
  soon as it fits, and what nobody answered only where something else needs it: that loses no solution and leaves few
  branches.
* :func:`contradictions` compares the sequence numbers and versions told with each other and with the times. It takes
  linear time, and so also decides histories that are too long for the search.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

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

STEPS_MAX: Final = 200_000
_UNSEEN: Final = "(a value that nobody saw)"

State = str | None


@dataclass
class Verdict:
    """What is wrong with a history."""

    registers: int = 0
    operations: int = 0
    violations: list[str] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)
    """Keys whose search was given up; their sequence numbers were compared all the same."""


def check(operations: Iterable[Operation], steps_max: int = STEPS_MAX) -> Verdict:
    """Check every register of a history."""
    by_key: dict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        by_key[operation.key].append(operation)
    verdict = Verdict(registers=len(by_key))
    for key, found in sorted(by_key.items()):
        verdict.operations += len(found)
        problems = contradictions(found)
        search = Search(found)
        answer = search.run(steps_max)
        if answer is False:
            problems.append(f"no order explains its history. {search.explanation()}")
        elif answer is None:
            verdict.undecided.append(key)
        verdict.violations += [f"{key}: {problem}" for problem in problems]
    return verdict


def linearizable(operations: Sequence[Operation], steps_max: int = STEPS_MAX) -> bool | None:
    """Whether some order explains every answer about one register; None if that was not found out."""
    return Search(operations).run(steps_max)


# -- The register -----------------------------------------------------------------------------------------------------


def _after(operation: Operation, state: State) -> State:
    """The state after an operation that may do what it wants."""
    kind = operation.kind
    if kind in (PUT, CHANGE):
        return operation.value
    if kind == PUT_IF_ABSENT:
        return operation.value if state is None else state
    if kind == PUT_IF:
        return operation.value if state == operation.expected else state
    if kind == DELETE:
        return None
    if kind == DELETE_IF:
        return None if state == operation.expected else state
    assert kind == GET, f"unknown operation {kind}"
    return state


def _explains(operation: Operation, state: State) -> bool:
    """Whether an operation that was answered may have met this state."""
    kind, result = operation.kind, operation.result
    if kind == GET:
        return bool(result["value"] == state)
    if kind == CHANGE:
        return bool(result["previous"] == state)
    if kind == PUT:
        return True
    if kind in (PUT_IF, DELETE_IF):
        return bool(result["done"] == (state == operation.expected))
    return bool(result["done"] == ((state is None) == (kind == PUT_IF_ABSENT)))


# -- The search -------------------------------------------------------------------------------------------------------


class Search:
    """One search over the operations of one register."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        answered = sorted((o for o in operations if o.outcome == OK), key=lambda o: o.called)
        unknown = sorted((o for o in operations if o.outcome == UNKNOWN and o.kind != GET), key=lambda o: o.called)
        self._calls = [*answered, *unknown]
        self._count = len(answered)
        self._answered = (1 << self._count) - 1
        self._ends = [o.returned if o.outcome == OK and o.returned is not None else float("inf") for o in self._calls]
        self._looks = [o.outcome == OK and (o.kind == GET or o.result.get("done") is False) for o in self._calls]
        self._twins = self._find_twins()
        self._best = 0

    def run(self, steps_max: int) -> bool | None:
        """See :func:`linearizable`."""
        stack: list[tuple[int, State]] = [(0, None)]
        seen = set(stack)
        while stack:
            done, state = stack.pop()
            steps_max -= 1
            if steps_max < 0:
                return None
            done = self._look(done, state)
            if (done & self._answered).bit_count() >= (self._best & self._answered).bit_count():
                self._best = done
            if done & self._answered == self._answered:
                return True
            for node in self._branches(done, state):
                if node not in seen:
                    seen.add(node)
                    stack.append(node)
        return False

    def explanation(self) -> str:
        """Where the search came no further, for people."""
        first = [i for i in self._open(self._best) if i < self._count]
        told = "\n    ".join(str(self._calls[i]) for i in first[:6])
        return f"It gets as far as {self._best.bit_count()} of {len(self._calls)} operations, then one of\n    {told}"

    def _open(self, done: int) -> list[int]:
        """Operations that may come next: those called before the first of the missing ones returned."""
        undone, horizon = [], float("inf")
        rest = ~done
        for i in range((rest & -rest).bit_length() - 1, self._count):
            if self._calls[i].called > horizon:
                break
            if not done >> i & 1:
                undone.append(i)
                horizon = min(horizon, self._ends[i])
        for i in range(self._count, len(self._calls)):
            if self._calls[i].called > horizon:
                break
            if not done >> i & 1:
                undone.append(i)
        return undone

    def _look(self, done: int, state: State) -> int:
        """Take what changes nothing and fits."""
        while True:
            before = done
            for i in self._open(done):
                if self._looks[i] and _explains(self._calls[i], state):
                    done |= 1 << i
            if done == before:
                return done

    def _branches(self, done: int, state: State) -> list[tuple[int, State]]:
        maybe: list[tuple[int, State]] = []
        surely: list[tuple[int, State]] = []
        twins: set[str] = set()
        candidates = self._open(done)
        for i in candidates:
            operation = self._calls[i]
            if i < self._count:
                if not self._looks[i] and _explains(operation, state):
                    surely.append((done | 1 << i, _after(operation, state)))
                continue
            twin = self._twins.get(i, "")
            following = _UNSEEN if twin == PUT else _after(operation, state)
            if twin not in twins and any(self._enables(state, following, j) for j in candidates if j != i):
                maybe.append((done | 1 << i, following))
                if twin:
                    twins.add(twin)
        return maybe + surely[::-1]  # the last is tried first

    def _enables(self, before: State, after: State, i: int) -> bool:
        """Whether an operation needs that the state changed so.

        An open one is worth taking only if what comes next does: else it may as well be taken later, or never.
        """
        operation = self._calls[i]
        if i < self._count:
            return _explains(operation, after) and not _explains(operation, before)
        return _after(operation, before) == before and _after(operation, after) != after

    def _find_twins(self) -> dict[int, str]:
        """Open operations of which any is as good as the one called first: deletes, and writes nobody saw."""
        seen: set[State] = set()
        for operation in self._calls:
            if operation.outcome == OK:
                seen |= {operation.result.get("value"), operation.result.get("previous")}
            seen.add(operation.expected)
        twins: dict[int, str] = {}
        for i, operation in enumerate(self._calls):
            if operation.outcome == UNKNOWN and operation.kind == DELETE:
                twins[i] = DELETE
            elif operation.outcome == UNKNOWN and operation.kind in (PUT, CHANGE) and operation.value not in seen:
                twins[i] = PUT
        return twins


# -- Sequence numbers -------------------------------------------------------------------------------------------------


def contradictions(operations: Sequence[Operation]) -> list[str]:
    """What the sequence numbers and versions told about one register say against each other, or against the times."""
    problems: list[str] = []
    writers: dict[State, Operation] = {o.value: o for o in operations if o.value is not None}
    places: dict[int, tuple[object, State]] = {}
    values: dict[State, tuple[int, object]] = {}
    events: list[tuple[float, int, Operation]] = []
    for operation in operations:
        value: State = operation.result.get("value", operation.value)
        writer = writers.get(value)
        if operation.outcome != OK or value is None:
            continue
        if writer is None:
            problems.append(f"a value that nobody wrote: {operation}")
        elif writer.outcome == FAIL:
            problems.append(f"a write that had failed was seen: {writer} by {operation}")
        elif operation.returned is not None and operation.returned < writer.called:
            problems.append(f"a value was seen before it was written: {writer} by {operation}")
        sequence, version = operation.result.get("sequence"), operation.result.get("version")
        if sequence is None:
            continue
        if places.setdefault(sequence, (version, value)) != (version, value):
            problems.append(f"change {sequence} is {places[sequence]} to one client and not to another: {operation}")
        if values.setdefault(value, (sequence, version)) != (sequence, version):
            problems.append(f"{value} was written as {values[value]}, and again: {operation}")
        assert operation.returned is not None, "what has an outcome has returned"
        events += [(operation.called, 1, operation), (operation.returned, 0, operation)]
    events.sort(key=lambda event: event[:2])
    floor = 0
    floors: dict[str, int] = {}
    for _, is_call, operation in events:
        sequence = operation.result["sequence"]
        if is_call:
            floors[operation.id] = floor
        elif sequence < floors[operation.id] + (operation.kind != GET):
            problems.append(f"change {floors[operation.id]} was known before this began: {operation}")
        else:
            floor = max(floor, sequence)
    return problems
