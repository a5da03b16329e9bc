"""What a change function is: from the state a round found to the state it proposes, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from objmeta.core.messages import Record, State


class Write(msgspec.Struct, frozen=True, gc=False):
    """Propose this state; ``records`` are those that ``state.refs`` names and that are new."""

    state: State
    records: tuple[Record, ...]


class Keep(msgspec.Struct, frozen=True, gc=False):
    """Leave the register as it is; ``code`` says why, empty when that is simply the answer (a read).

    ``anew``: have the state accepted again, under the round's own ballot, also where a quorum agrees on it already.
    """

    code: str = ""
    anew: bool = False


Decision = Write | Keep


class Change(Protocol):
    """A deterministic function of the state; it may be called several times before one call takes effect."""

    @property
    def operations(self) -> tuple[bytes, ...]:
        """The operation ids, 16 bytes each; none for a change that writes no record."""
        ...

    def apply(self, name: bytes, state: State | None, sequence_floor: int) -> Decision:
        """Decide on ``state``; a register created anew takes sequences above ``sequence_floor``."""
        ...


class Identity:
    """The change that changes nothing: a linearizable read (paper section 2.2)."""

    operations = ()

    def apply(self, name: bytes, state: State | None, sequence_floor: int) -> Decision:
        return Keep()


class Renewal:
    """The change that changes nothing and reaches everybody: it mends who lacks the state or has promised too much."""

    operations = ()

    def apply(self, name: bytes, state: State | None, sequence_floor: int) -> Decision:
        return Keep(anew=state is not None)


class Result(msgspec.Struct, frozen=True, gc=False):
    """What one change of a :class:`Batch` came to: its code, the state after it, and the record it wrote."""

    code: str
    state: State | None
    record: Record | None


class Batch:
    """Several changes of one register as one: each is applied to what the one before left, all records go along.

    ``results`` are those of the last :meth:`apply`, in order; where the records would become too long for one message,
    the changes that no longer fit are left out and have none.
    """

    def __init__(self, changes: Sequence[Change], record_bytes_max: int) -> None:
        self._changes = changes
        self._record_bytes_max = record_bytes_max
        self.results: list[Result] = []

    @property
    def operations(self) -> tuple[bytes, ...]:
        """The ids of all."""
        return tuple(operation for change in self._changes for operation in change.operations)

    @property
    def all_written(self) -> bool:
        """Whether each change that was applied wrote something."""
        return all(result.record is not None for result in self.results)

    def apply(self, name: bytes, state: State | None, sequence_floor: int) -> Decision:
        """Apply them one after the other; Keep only if none writes."""
        self.results = []
        records: list[Record] = []
        size = 0
        code = ""
        anew = False
        for change in self._changes:
            decision = change.apply(name, state, sequence_floor)
            if isinstance(decision, Keep):
                code = decision.code
                anew = anew or decision.anew
                self.results.append(Result(code, state, None))
                continue
            size += sum(len(record.body) + len(record.data) for record in decision.records)
            if records and size > self._record_bytes_max:
                break
            records += decision.records
            state = decision.state
            self.results.append(Result("", state, decision.records[-1]))
        if not records:
            return Keep(code, anew)
        assert state is not None, "a write leaves a state"
        refs = tuple(record.ref for record in records)
        return Write(msgspec.structs.replace(state, refs=refs), tuple(records))
