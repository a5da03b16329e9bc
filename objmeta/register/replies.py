"""What a change is answered with: its reply, or the error that says exactly what is known of it (rule 5)."""

from __future__ import annotations

from typing import Final

from objmeta.core.change import Result
from objmeta.core.messages import Record, Refusal
from objmeta.core.proposer import Denied, Done
from objmeta.errors import (
    ConfigurationMismatch,
    IntegrityError,
    NoQuorum,
    ObjmetaError,
    RowDamaged,
    StaleGeneration,
    StoreError,
    StoreFull,
    UnknownOutcome,
)
from objmeta.interfaces import ChangeReply
from objmeta.register.queueing import Waiting

STALE_TERM: Final = "stale_term"
"""Code of a change refused because its scope's term has moved on."""


def result_of(outcome: Done) -> Result:
    """What a round of one change came to."""
    return Result(outcome.code, outcome.state, outcome.record)


def reply_of(result: Result) -> ChangeReply:
    """The answer to a change that is decided; its record goes without data, which whoever asked has."""
    record = result.record
    if record is not None and record.data:
        record = Record(record.ref, record.parent, record.body)
    return ChangeReply(result.code, result.state, record)


def stale_term(waiting: Waiting) -> ChangeReply:
    """The answer to a change whose scope has another term now."""
    return ChangeReply(STALE_TERM, None, proposed=waiting.proposed, generation=waiting.request.generation)


def late(proposed: bool) -> ObjmetaError:
    """Of a change whose time is up."""
    if proposed:
        return UnknownOutcome("no majority of the nodes confirmed the change in time; it may or may not apply")
    return NoQuorum("no majority of the nodes answered in time; nothing was changed, try again")


def denial(outcome: Denied, proposed: bool) -> ObjmetaError:
    """Of a change that a floor or the configuration refuses."""
    if outcome.reason is Refusal.CONFIGURATION and not proposed:
        why = outcome.detail or "another identity"
        return ConfigurationMismatch(f"the nodes do not belong to this store: {why}")
    if proposed:
        return UnknownOutcome("the nodes refuse the operation now, and an earlier attempt may have applied")
    return StaleGeneration("the operation was begun too long ago; begin it anew")


def failure(told: str, proposed: bool) -> ObjmetaError:
    """Of a change that every acceptor's store failed, as the last of them ``told``."""
    if proposed:
        return UnknownOutcome(f"the change may have been applied, and then the store failed: {told}")
    kind, _, text = told.partition(": ")
    if kind == StoreFull.kind:
        return StoreFull(text)
    if kind in (IntegrityError.kind, RowDamaged.kind):
        return IntegrityError(text)
    return StoreError(text if kind == StoreError.kind else told)
