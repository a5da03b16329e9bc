"""Every error a caller can meet, sorted by what the caller does next.

Each class has a stable ``kind`` (lower-case, never renamed) for programs, and a message for people that says what is
wrong and what would be right.  The gateway maps the classes to the OSError family in one table of its own.
"""

from __future__ import annotations

from typing import ClassVar


class ObjmetaError(Exception):
    """Base of all errors raised by objmeta."""

    kind: ClassVar[str] = "error"


# -- Fix the call -----------------------------------------------------------------------------------------------------


class InvalidArgument(ObjmetaError, ValueError):
    """A name, a key, an option or a setting breaks a rule; the message names the rule."""

    kind = "invalid"


# -- The thing is not there -------------------------------------------------------------------------------------------


class NotFound(ObjmetaError, LookupError):
    """Base: what was asked for does not exist."""

    kind = "not_found"


class NoSuchBucket(NotFound):
    """The bucket does not exist (or is being removed)."""

    kind = "no_such_bucket"


class NoSuchKey(NotFound):
    """The object does not exist, or its current version is a delete marker."""

    kind = "no_such_key"


class NoSuchVersion(NotFound):
    """The object has no version with that id."""

    kind = "no_such_version"


# -- Somebody else was first: look again, then decide -----------------------------------------------------------------


class Conflict(ObjmetaError):
    """Base: the state is not what the caller required. Nothing was changed."""

    kind = "conflict"


class PreconditionFailed(Conflict):
    """The current version is not the one the caller required. Nothing was changed."""

    kind = "precondition_failed"


class AlreadyExists(PreconditionFailed):
    """Something exists where the caller required that nothing does. Nothing was changed."""

    kind = "already_exists"


class BucketNotEmpty(Conflict):
    """A bucket that still holds versions cannot be removed. Nothing was changed."""

    kind = "bucket_not_empty"


class LockHeld(Conflict):
    """Somebody else holds the lock, and the time to wait for it is over. Nothing was changed."""

    kind = "lock_held"


# -- Stop: it is no longer yours --------------------------------------------------------------------------------------


class LockLost(ObjmetaError):
    """The lease on a lock ran out, was taken over or was given back: somebody else may hold the lock by now."""

    kind = "lock_lost"


# -- Try again later --------------------------------------------------------------------------------------------------


class Unavailable(ObjmetaError):
    """Base: the store cannot answer now; trying again may help."""

    kind = "unavailable"


class NoQuorum(Unavailable):
    """Definite: no majority of the nodes answered in time, and the change was not and never will be applied."""

    kind = "no_quorum"


class StaleGeneration(NoQuorum):
    """Definite: the operation was begun too long ago, and what would tell it from an older copy may be forgotten."""

    kind = "stale_generation"


class Fenced(Unavailable):
    """Definite: the bucket moved on (its term was raised) while the operation ran; look it up and begin anew."""

    kind = "fenced"


class UnknownOutcome(Unavailable):
    """Indefinite: the change may have been applied, or may still be (PROTOCOL rule 5). Read before trying again."""

    kind = "unknown_outcome"


# -- Look at the store itself -----------------------------------------------------------------------------------------


class StoreError(ObjmetaError):
    """Base: the store on this machine, or the way it is configured, needs attention."""

    kind = "store"


class StoreFull(StoreError):
    """The disk under the store is full (ENOSPC, EDQUOT). The operation was not applied."""

    kind = "store_full"


class ConfigurationMismatch(StoreError):
    """Two parties do not belong to the same store or the same configuration of it."""

    kind = "configuration_mismatch"


class IntegrityError(StoreError):
    """Bytes that were read are not the bytes that were written (digest or structure wrong). They are never returned."""

    kind = "integrity"


class RowDamaged(IntegrityError):
    """What an acceptor stores of one register cannot be read; it has no vote on it until a write-back mends it."""

    kind = "row_damaged"


class ForkedClient(StoreError):
    """A client was used in a forked child although it belongs to the parent; open a new one in the child."""

    kind = "forked_client"
