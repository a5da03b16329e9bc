"""What must hold of transactions, from the chosen chains, the changes that were asked for, and what clients saw."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from objmeta.core.messages import RecordRef
from objmeta.model.changes import Conclude, Decide, Intend, PutVersion, Resolve
from objmeta.model.names import OBJECTS, TRANSACTIONS
from objmeta.testing.checkers import Violation

Asked = PutVersion | Resolve | Decide | Conclude


class Saw(NamedTuple):
    """Between two ticks somebody saw this version of an object as its current one (empty: nothing to see).

    What somebody has committed, he has seen; a delete marker is seen as itself by who made it.
    """

    began: float
    ended: float
    name: bytes
    version_id: bytes


class Visible(NamedTuple):
    """One version on a chain that was there to see."""

    version_id: bytes
    sequence: int
    is_marker: bool


class _Replayed:
    """All chains, change by change."""

    def __init__(self) -> None:
        self.visible: dict[bytes, list[Visible]] = {}
        self.outcomes: dict[bytes, dict[bytes, bool]] = {}
        """Of each transaction, what became of its intent in each register."""
        self.sequences: dict[bytes, dict[bytes, int]] = {}
        """Of each transaction, the sequence of its version in each register."""

    def object_(self, name: bytes, chain: Sequence[RecordRef], asked: Mapping[bytes, Asked]) -> None:
        """Replay the chain of one object. Raises Violation."""
        visible = self.visible.setdefault(name, [])
        intent: tuple[Intend, RecordRef] | None = None
        for ref in chain:
            change = asked.get(ref.version_id)
            current = visible[-1] if visible else None
            if isinstance(change, Resolve):
                if intent is None or intent[0].transaction != change.transaction:
                    raise Violation(f"{change} replaced an intent of another transaction in {name!r}, or none")
                intended, place = intent
                self.outcomes.setdefault(change.transaction, {})[name] = change.committed
                if change.committed:
                    marker = intended.manifest.delete_marker
                    visible.append(Visible(place.version_id, place.sequence, marker))
                    self.sequences.setdefault(change.transaction, {})[name] = place.sequence
                intent = None
                continue
            if not isinstance(change, PutVersion):
                raise Violation(f"{ref} in {name!r} is of a change that nobody asked for: {change}")
            if intent is not None:
                raise Violation(f"{change.version_id.hex()[:8]} was built on an intent in {name!r}")
            _check_conditions(name, change, current)
            if isinstance(change, Intend):
                intent = (change, ref)
            else:
                visible.append(Visible(ref.version_id, ref.sequence, change.manifest.delete_marker))
        if intent is not None:
            raise Violation(f"an intent is left in {name!r}: {intent[0].transaction.hex()[:8]}")


def _check_conditions(name: bytes, change: PutVersion, current: Visible | None) -> None:
    there = current is not None and not current.is_marker
    held = (
        not (change.if_absent and there)
        and not (change.if_present and not there)
        and (not change.if_version or (current is not None and current.version_id == change.if_version))
    )
    if not held:
        raise Violation(f"{change.version_id.hex()[:8]} was written to {name!r} against its conditions, on {current}")


def check_all(
    chains: Mapping[bytes, Sequence[RecordRef]],
    asked: Mapping[bytes, Asked],
    saw: Sequence[Saw],
    told: Mapping[bytes, str],
) -> None:
    """Everything. ``told`` says of transactions what their owners were told. Raises Violation."""
    replayed = _Replayed()
    for name, chain in chains.items():
        if name.startswith(OBJECTS):
            replayed.object_(name, chain, asked)
    decided = {
        name[len(TRANSACTIONS) :]: [change for ref in chain if isinstance(change := asked.get(ref.version_id), Decide)]
        for name, chain in chains.items()
        if name.startswith(TRANSACTIONS)
    }
    intended: dict[bytes, int] = {}
    for change in asked.values():
        if isinstance(change, Intend):
            intended[change.transaction] = intended.get(change.transaction, 0) + 1
    for transaction, outcomes in replayed.outcomes.items():
        _check_whole(transaction, outcomes, decided.get(transaction, []), told.get(transaction, "unknown"))
    for transaction, what in told.items():
        outcomes = replayed.outcomes.get(transaction, {})
        if what == "committed" and not (len(outcomes) == intended[transaction] and all(outcomes.values())):
            raise Violation(f"transaction {transaction.hex()[:8]} was acknowledged, and came to {outcomes}")
    for transaction, decisions in decided.items():
        # The other way round is in order: whoever was about to abort one may come after all of it was forgotten.
        if any(not before.committed and after.committed for before, after in itertools.pairwise(decisions)):
            raise Violation(f"transaction {transaction.hex()[:8]} was committed after it was aborted")
    _check_seen(replayed, saw)


def _check_whole(transaction: bytes, outcomes: Mapping[bytes, bool], decisions: Sequence[Decide], told: str) -> None:
    what = f"transaction {transaction.hex()[:8]}"
    if len(set(outcomes.values())) > 1:
        raise Violation(f"{what} was applied to some of its objects: {outcomes}")
    committed = any(outcomes.values())
    if committed and not any(decision.committed for decision in decisions):
        raise Violation(f"{what} was applied, and its register does not say so")
    if committed and set(outcomes) != {name for decision in decisions for name in decision.participants}:
        raise Violation(f"{what} was applied to other objects than it names: {sorted(outcomes)}")
    if not committed and any(decision.committed for decision in decisions):
        raise Violation(f"{what} was taken back, and its register says that it committed")
    if committed and told == "failed":
        raise Violation(f"{what} was applied, and its owner was told that it failed")


def _check_seen(replayed: _Replayed, saw: Sequence[Saw]) -> None:
    """No step back: not for one object, and not from one version of a transaction to before another of its."""
    sequences = {
        name: {each.version_id: each.sequence for each in visible} for name, visible in replayed.visible.items()
    }
    by_end = sorted(saw, key=lambda each: each.ended)
    for each in saw:
        if each.version_id and each.version_id not in sequences.get(each.name, {}):
            raise Violation(f"{each.version_id.hex()[:8]} was seen in {each.name!r}, and never was there to see")
    for each in saw:
        least: dict[bytes, int] = {}
        for earlier in by_end:
            if earlier.ended >= each.began:
                break
            known = sequences.get(earlier.name, {}).get(earlier.version_id, 0)
            least[earlier.name] = max(least.get(earlier.name, 0), known)
        _close(least, replayed.sequences)
        floor = least.get(each.name, 0)
        if each.version_id:
            if sequences[each.name][each.version_id] < floor:
                raise Violation(f"{each} is older than what was known when it began: sequence {floor}")
        elif floor and not any(v.is_marker and v.sequence >= floor for v in replayed.visible[each.name]):
            raise Violation(f"{each} sees nothing, and sequence {floor} was known when it began")


def _close(least: dict[bytes, int], transactions: Mapping[bytes, Mapping[bytes, int]]) -> None:
    """Whoever knows of one version of a transaction knows of all of them."""
    grows = True
    while grows:
        grows = False
        for versions in transactions.values():
            if any(least.get(name, 0) >= sequence for name, sequence in versions.items()):
                for name, sequence in versions.items():
                    if least.get(name, 0) < sequence:
                        least[name] = sequence
                        grows = True
