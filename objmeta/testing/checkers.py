"""Is what the clients saw linearizable? Two answers, for one register each.

:func:`search` tries every order that the times allow (Wing and Gong's search with Lowe's memory of states seen), needs
nothing but the history, and is for short ones.  :func:`check_chain` is for long runs: every write names its operation
and the one before it, so the writes form one chain, whose order is the only order possible; what is left is to compare
it with the times.
"""

from __future__ import annotations

from collections.abc import Sequence

from objmeta.testing.history import NOTHING, Absent, Applied, Attempt, Operation, Rejected, Result, Seen, Tip, decide


class Violation(Exception):
    """A promise of the store was broken."""


# -- Full search ------------------------------------------------------------------------------------------------------

Chain = tuple[Tip, ...]


def search(attempts: Sequence[Attempt], steps_max: int = 20_000) -> bool | None:
    """Whether some order explains every answer; None if that was not found out within ``steps_max`` steps.

    Open attempts may take effect at any point after their call, or never.
    """
    places = _told_places(attempts)
    if places is None:
        return False
    calls = sorted(attempts, key=lambda attempt: attempt.called)
    answered = sum(1 << i for i, attempt in enumerate(calls) if attempt.returned is not None)
    start: tuple[int, Chain] = (0, ())
    stack = [start]
    seen = {start}
    while stack:
        done, chain = stack.pop()
        if done & answered == answered:
            return True
        steps_max -= 1
        if steps_max < 0:
            return None
        # Nothing may be put after an attempt that returned before it was called.
        horizon = min(a.returned for i, a in enumerate(calls) if a.returned is not None and not done >> i & 1)
        for i, attempt in enumerate(calls):
            if attempt.called > horizon:
                break
            if done >> i & 1:
                continue
            following = _follow(chain, attempt)
            if following is None or (following and places.get(len(following), following[-1].id) != following[-1].id):
                continue
            node = (done | 1 << i, following)
            if node not in seen:
                seen.add(node)
                stack.append(node)
    return False


def _told_places(attempts: Sequence[Attempt]) -> dict[int, bytes] | None:
    """Which operation is where on the chain, as far as answers tell; None if they contradict each other."""
    places: dict[int, bytes] = {0: b""}
    for attempt in attempts:
        told: list[tuple[int, bytes]] = []
        if isinstance(attempt.result, Seen):
            told.append((attempt.result.sequence, attempt.result.id))
        elif isinstance(attempt.result, Applied) and attempt.operation is not None:
            told.append((attempt.result.sequence, attempt.operation.id))
            told.append((attempt.result.sequence - 1, attempt.result.parent))
        for place, operation in told:
            if places.setdefault(place, operation) != operation:
                return None
    return places


def _follow(chain: Chain, attempt: Attempt) -> Chain | None:
    """The chain after an attempt, or None if its answer contradicts the chain (or it is open and does nothing)."""
    tip = chain[-1] if chain else NOTHING
    operation = attempt.operation
    if operation is None and attempt.result == Absent():
        return None if tip.visible else chain
    if operation is None:
        return chain if attempt.result == Seen(tip.sequence, tip.id) else None
    earlier = next((i for i, link in enumerate(chain) if link.id == operation.id), None)
    if earlier is not None:
        before = chain[earlier - 1].id if earlier else b""
        return chain if attempt.result == Applied(earlier + 1, before) else None
    code = decide(operation, tip)
    expected: Result = Rejected(code) if code else Applied(tip.sequence + 1, tip.id)
    if attempt.result is None:
        return None if code else (*chain, Tip(operation.id, tip.sequence + 1, operation.visible))
    if attempt.result != expected:
        return None
    return chain if code else (*chain, Tip(operation.id, tip.sequence + 1, operation.visible))


# -- Linear check -----------------------------------------------------------------------------------------------------


def check_chain(attempts: Sequence[Attempt], chain: Sequence[bytes]) -> None:
    """Compare a history with the register's final chain of operation ids, oldest first. Raises Violation."""
    _Comparison(attempts, chain).check()


class _Comparison:
    def __init__(self, attempts: Sequence[Attempt], chain: Sequence[bytes]) -> None:
        self._attempts = attempts
        self._place = {operation: i for i, operation in enumerate(chain, 1)}
        if len(self._place) != len(chain):
            raise Violation("an operation is on the chain twice")
        self._operations: dict[bytes, Operation] = {}
        first_calls: dict[bytes, float] = {}
        for attempt in attempts:
            if attempt.operation is not None:
                self._operations.setdefault(attempt.operation.id, attempt.operation)
                first_calls[attempt.operation.id] = min(
                    attempt.called, first_calls.get(attempt.operation.id, attempt.called)
                )
        unasked = [operation for operation in chain if operation not in first_calls]
        if unasked:
            raise Violation(f"nobody asked for operation {unasked[0].hex()}, yet it is on the chain")
        # From when on each place of the chain could have been there at the earliest.
        self._possible: list[float] = [float("-inf")]
        for operation in chain:
            self._possible.append(max(self._possible[-1], first_calls[operation]))
        self._tips = [NOTHING]
        for i, operation in enumerate(chain, 1):
            self._tips.append(Tip(operation, i, self._operations[operation].visible))

    def check(self) -> None:
        for place, tip in enumerate(self._tips[1:], 1):
            code = decide(self._operations[tip.id], self._tips[place - 1])
            if code:
                raise Violation(f"operation {tip.id.hex()} took effect where it should have failed: {code}")
        events: list[tuple[float, int, Attempt]] = []
        for attempt in self._attempts:
            events.append((attempt.called, 1, attempt))
            if attempt.returned is not None:
                events.append((attempt.returned, 0, attempt))
        events.sort(key=lambda event: event[:2])
        floor = 0
        floors: dict[int, int] = {}
        for now, is_call, attempt in events:
            if is_call:
                floors[id(attempt)] = floor
                continue
            place = self._answered(attempt, floors[id(attempt)], now)
            floor = max(floor, place)
        self._never_too_early(floors)

    def _answered(self, attempt: Attempt, floor: int, now: float) -> int:
        """Check an answer; returns the place in the chain that is known to be reached now."""
        result, operation = attempt.result, attempt.operation
        if isinstance(result, Seen):
            if result.sequence >= len(self._tips) or self._tips[result.sequence].id != result.id:
                raise Violation(f"a read saw operation {result.id.hex()}, which is not at that place of the chain")
            if result.sequence < floor:
                raise Violation(f"a stale read: it saw change {result.sequence} when change {floor} was known")
            if self._possible[result.sequence] > now:
                raise Violation("a read saw a change that nobody had asked for yet")
            return result.sequence
        if isinstance(result, Absent):
            for candidate in range(floor, len(self._tips)):
                if not self._tips[candidate].visible and self._possible[candidate] <= now:
                    return candidate
            raise Violation(f"a read saw nothing although change {floor} was known and nothing deleted it")
        assert operation is not None
        place = self._place.get(operation.id)
        if isinstance(result, Applied):
            if place is None:
                raise Violation(
                    f"a lost write: operation {operation.id.hex()} was acknowledged and is not on the chain"
                )
            if place != result.sequence or self._tips[place - 1].id != result.parent:
                raise Violation(f"operation {operation.id.hex()} is not where its acknowledgement said")
            if self._possible[place] > now:
                raise Violation("a write was acknowledged before the one it builds on was asked for")
            return place
        assert isinstance(result, Rejected)
        for candidate in range(floor, len(self._tips)):
            if self._possible[candidate] > now or (place is not None and place <= candidate):
                break
            if decide(operation, self._tips[candidate]) == result.code:
                return floor
        raise Violation(f"operation {operation.id.hex()} was rejected ({result.code}) although it could not be")

    def _never_too_early(self, floors: dict[int, int]) -> None:
        """A write takes effect after its first call, so above all that was known then."""
        first: dict[bytes, int] = {}
        for attempt in self._attempts:
            if attempt.operation is not None:
                known = first.get(attempt.operation.id, floors[id(attempt)])
                first[attempt.operation.id] = min(known, floors[id(attempt)])
        for operation, floor in first.items():
            place = self._place.get(operation)
            if place is not None and place <= floor:
                raise Violation(f"operation {operation.hex()} took effect before it was asked for")
