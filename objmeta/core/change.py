"""What a change function is: from the state a round found to the state it proposes, and nothing else."""

from __future__ import annotations

from typing import Protocol

import msgspec

from objmeta.core.messages import Record, State


class Write(msgspec.Struct, frozen=True, gc=False):
    """Propose this state; ``records`` are those that ``state.refs`` names and that are new."""

    state: State
    records: tuple[Record, ...]


class Keep(msgspec.Struct, frozen=True, gc=False):
    """Leave the register as it is; ``code`` says why, empty when that is simply the answer (a read)."""

    code: str = ""


Decision = Write | Keep


class Change(Protocol):
    """A deterministic function of the state; it may be called several times before one call takes effect."""

    @property
    def version_id(self) -> bytes:
        """The operation id, 16 bytes, or empty for a change that writes no record."""
        ...

    def apply(self, name: bytes, state: State | None, sequence_floor: int) -> Decision:
        """Decide on ``state``; a register created anew takes sequences above ``sequence_floor``."""
        ...


class Identity:
    """The change that changes nothing: a linearizable read (paper section 2.2)."""

    version_id = b""

    def apply(self, name: bytes, state: State | None, sequence_floor: int) -> Decision:
        return Keep()
