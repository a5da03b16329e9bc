"""What clients asked of one register, when, and what they were told.

An *attempt* is one request to one proposer.  A client that does not know what became of an attempt may make another
under the same operation id, also while the first still runs; all attempts of one operation together take effect at most
once.  An attempt without an answer stays open forever: it may take effect at any later time, or never.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from objmeta.model.changes import EXISTS, MISSING, PRECONDITION


@dataclass(frozen=True, slots=True)
class Operation:
    """A write, told by what it requires of the current version; ``visible`` false for a delete."""

    id: bytes
    visible: bool = True
    if_absent: bool = False
    if_present: bool = False
    if_version: bytes = b""
    version_must_be_visible: bool = False


@dataclass(frozen=True, slots=True)
class Tip:
    """The newest change of a register: its operation, its place in the chain (from 1), and whether it shows."""

    id: bytes = b""
    sequence: int = 0
    visible: bool = False


NOTHING = Tip()


@dataclass(frozen=True, slots=True)
class Applied:
    """The write took effect as this link of the chain (now or earlier)."""

    sequence: int
    parent: bytes


@dataclass(frozen=True, slots=True)
class Rejected:
    """The write did not take effect because of what it required."""

    code: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What a read returned: the newest change, ``(0, b"")`` if there was none."""

    sequence: int
    id: bytes


@dataclass(frozen=True, slots=True)
class Absent:
    """A read returned nothing, where a register may be erased: either never written, or deleted, whenever that was."""


Result = Applied | Rejected | Seen | Absent


@dataclass(slots=True)
class Attempt:
    """One request: ``operation`` is None for a read; ``returned`` and ``result`` are None while it is open."""

    operation: Operation | None
    called: float
    returned: float | None = None
    result: Result | None = None


@dataclass(slots=True)
class History:
    """All attempts on one register, by time of call."""

    attempts: list[Attempt] = field(default_factory=list)

    def call(self, operation: Operation | None, now: float) -> Attempt:
        """An attempt begins."""
        attempt = Attempt(operation, now)
        self.attempts.append(attempt)
        return attempt

    def settle(self, attempt: Attempt, result: Result, now: float) -> None:
        """An attempt is answered."""
        attempt.returned, attempt.result = now, result

    def forget(self, attempt: Attempt) -> None:
        """An attempt certainly had no effect, or was a read without an answer."""
        self.attempts.remove(attempt)


def decide(operation: Operation, tip: Tip) -> str:
    """Why a write may not follow ``tip``; empty if it may. (A second telling of the rules in model.changes.)"""
    if operation.if_absent and tip.visible:
        return EXISTS
    if operation.if_version and (
        tip.id != operation.if_version or (operation.version_must_be_visible and not tip.visible)
    ):
        return PRECONDITION
    if operation.if_present and not tip.visible:
        return MISSING
    return ""
