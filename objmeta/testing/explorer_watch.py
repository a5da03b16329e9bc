"""What the explorer's observer knows, and what it checks.

A ballot is chosen under a configuration once a quorum of it has held that ballot while at its epoch: whether it was
accepted then or carried along from an earlier epoch makes no difference to who reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from objmeta.core.ballot import Ballot
from objmeta.core.messages import TOMBSTONE, State
from objmeta.testing.checkers import Violation
from objmeta.testing.disk import Table
from objmeta.testing.telling import tell_ballot


@dataclass(slots=True)
class Told:
    """One call of a client: ``operation`` 0 for a read; ``returned`` 0 while there is no answer."""

    operation: int
    called: int
    returned: int = 0
    seen: bytes = b""
    code: str = ""


def visible(state: State | None) -> bytes:
    """What a client sees: a tombstone is nothing."""
    return b"" if state is None or state.flag == TOMBSTONE else state.value


class Observer:
    """Sees every acceptor and knows what is chosen. Raises Violation."""

    def __init__(self, name: bytes, tables: Mapping[int, Table], note: Callable[[str], None]) -> None:
        self._name = name
        self._tables = tables
        self._note = note
        self._values: dict[Ballot, State] = {}
        self._votes: dict[tuple[Ballot, int], set[int]] = {}
        self._chosen: dict[Ballot, State] = {}

    def on_step(self, acceptor: int) -> None:
        """After a step in which the acceptor accepted something or adopted a configuration."""
        table = self._tables[acceptor]
        row = table.row(self._name)
        if row is None or row.state is None:
            return
        if self._values.setdefault(row.accepted, row.state) != row.state:
            raise Violation(f"two values under ballot {tell_ballot(row.accepted)}")
        configuration = table.membership.configuration
        votes = self._votes.setdefault((row.accepted, configuration.epoch), set())
        votes.add(acceptor)
        if row.accepted not in self._chosen and configuration.quorums.is_quorum(votes):
            self._note(f"chosen under {tell_ballot(row.accepted)}: {row.state.value!r}")
            self._chosen[row.accepted] = row.state
            self.chain()

    def chain(self) -> list[int]:
        """The ids that took effect, in order, over all lives of the register."""
        chain: list[int] = []
        before: State | None = None
        for ballot in sorted(self._chosen):
            state = self._chosen[ballot]
            if before is not None and state.value.startswith(before.value):
                chain.extend(state.value[len(before.value) :])
            elif before is None or before.flag == TOMBSTONE:
                chain.extend(state.value)
            else:
                raise Violation(
                    f"{state.value!r}, chosen under {tell_ballot(ballot)}, is not built on {before.value!r}"
                )
            before = state
        if len(set(chain)) != len(chain):
            raise Violation(f"an operation took effect twice: {chain}")
        return chain

    def check(self, told: Sequence[Told], deletes: Collection[int]) -> None:
        """Compare what clients were told with the chain: every answer must fit one place of it that fits the times."""
        _Comparison(told, self.chain(), deletes).check()


class _Comparison:
    def __init__(self, told: Sequence[Told], chain: Sequence[int], deletes: Collection[int]) -> None:
        self._told = told
        self._chain = chain
        self._place = {operation: i for i, operation in enumerate(chain, 1)}
        self._absent = [0, *(self._place[operation] for operation in chain if operation in deletes)]
        """Where in the chain nothing is to be seen."""
        self._called: dict[int, int] = {}
        for call in told:
            if call.operation:
                self._called[call.operation] = min(call.called, self._called.get(call.operation, call.called))

    def check(self) -> None:
        reached: list[tuple[int, int]] = []
        """(time, place that was certainly reached then)"""
        for call in sorted((call for call in self._told if call.returned), key=lambda call: call.returned):
            floor = max((place for when, place in reached if when < call.called), default=0)
            reached.append((call.returned, self._answered(call, floor)))
        for operation, called in self._called.items():
            at = self._place.get(operation)
            if at is not None and any(when < called and place >= at for when, place in reached):
                raise Violation(f"operation {operation} took effect before it was asked for")

    def _answered(self, call: Told, floor: int) -> int:
        if call.operation and not call.code:
            at = self._place.get(call.operation)
            if at is None:
                raise Violation(f"operation {call.operation} was acknowledged and is not chosen")
            return at
        # A copy of the operation may take effect after another was answered that there was nothing to delete.
        before = self._place.get(call.operation, len(self._chain) + 1)
        candidates = [at for at in self._absent if at < before]
        if not call.code and call.seen:
            candidates = [self._place.get(call.seen[-1], -1)]
        for at in candidates:
            if at >= floor and all(self._called[operation] < call.returned for operation in self._chain[:at]):
                return at
        raise Violation(f"nothing in the chain {list(self._chain)} from {floor} on explains {call}")
