"""What every operation needs: registers, a clock for people, ids, and how long to try."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from objmeta.interfaces import Registers, WallClock


@dataclass(frozen=True, slots=True)
class Context:
    """The surroundings of an operation."""

    registers: Registers
    """Where the proposer is reached."""
    wall_clock: WallClock
    """Microseconds since the epoch, for modification times."""
    new_id: Callable[[], bytes]
    """A fresh operation id: 16 bytes, UUIDv7, so that ids of one client sort by time."""
    timeout_s: float
    """How long one operation may take."""
    proposer_in_process: bool
    """Whether changes may be arbitrary functions, not only data that travels."""
