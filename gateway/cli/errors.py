"""Exit codes, and one clear sentence for every error.

The codes are a promise to scripts: they are in ``gateway --help`` and never change.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
NO_BUCKET: Final = 3
NO_KEY: Final = 4
UNAVAILABLE: Final = 5
CONFLICT: Final = 6
LOCK_LOST: Final = 7
INTEGRITY: Final = 8
BUG: Final = 70
INTERRUPTED: Final = 130
OUTPUT_CLOSED: Final = 141
TERMINATED: Final = 143

EXIT_CODES: Final = {
    DONE: "done",
    FAILED: "done partly, or a disk or a file of this machine failed",
    USAGE: "the command is wrong: an option, a name, a path",
    NO_BUCKET: "no such bucket",
    NO_KEY: "no such key, version or upload",
    UNAVAILABLE: "no quorum, or the outcome is unknown: try again",
    CONFLICT: "a precondition failed, it exists already, the bucket is not empty, or the lock is held",
    LOCK_LOST: "a lock was lost, and the command run under it was stopped",
    INTEGRITY: "bytes that were read are not the bytes that were written",
    BUG: "a bug in gateway; OBJMETA_DEBUG=1 shows where",
    INTERRUPTED: "interrupted by Ctrl-C",
    OUTPUT_CLOSED: "whoever read the output stopped reading",
    TERMINATED: "terminated (SIGTERM)",
}

_DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class OutputClosed(Exception):
    """Nobody reads standard output any more: end quietly."""


class OutputFailed(OSError):
    """Standard output cannot be written, for another reason."""


class Terminated(Exception):
    """SIGTERM arrived; what was begun has been undone."""


def exit_code(error: BaseException) -> int:
    """What a shell gets to see of an error."""
    from objmeta import errors

    table: tuple[tuple[type[BaseException], int], ...] = (
        (errors.InvalidArgument, USAGE),
        (errors.NoSuchBucket, NO_BUCKET),
        (errors.NotFound, NO_KEY),
        (errors.Unavailable, UNAVAILABLE),
        (errors.Conflict, CONFLICT),
        (errors.LockLost, LOCK_LOST),
        (errors.IntegrityError, INTEGRITY),
        (errors.ObjmetaError, FAILED),
        (OSError, FAILED),
        (OutputClosed, OUTPUT_CLOSED),
        (Terminated, TERMINATED),
        (KeyboardInterrupt, INTERRUPTED),
    )
    return next((code for kind, code in table if isinstance(error, kind)), BUG)


def sentence(error: BaseException) -> str:
    """The error in one line for people."""
    if isinstance(error, OSError) and error.strerror:
        path = error.filename2 or error.filename
        where = os.fsdecode(path) + ": " if isinstance(path, str | bytes | os.PathLike) else ""
        return f"{where}{error.strerror}"
    if exit_code(error) == BUG:
        return f"this is a bug: {type(error).__name__}: {error} (set OBJMETA_DEBUG=1 to see where)"
    return (" ".join(str(error).split()) or type(error).__name__) + _hint(error)


def record(error: BaseException) -> dict[str, Any]:
    """The error for programs: what it is, and which kind of error (``objmeta.errors``; else "os", "usage", "bug")."""
    from objmeta.errors import ObjmetaError

    code = exit_code(error)
    kind = "bug" if code == BUG else "os" if isinstance(error, OSError) else "error"
    return {"error": sentence(error), "kind": error.kind if isinstance(error, ObjmetaError) else kind}


def _hint(error: BaseException) -> str:
    """What to do next, where that is the same whatever was tried."""
    from objmeta import errors

    if isinstance(error, errors.NoSuchBucket):
        return " ('gateway ls' lists buckets, 'gateway mb' makes one)"
    if isinstance(error, errors.NoQuorum):
        return " ('gateway status' shows which nodes answer)"
    return ""


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Give an OSError that names no file this one."""
    try:
        yield
    except OSError as failure:
        if failure.filename is None:
            failure.filename = os.fspath(path)
        raise


@contextmanager
def writing_output() -> Iterator[None]:
    """Around whatever is written to standard output: if that fails the command ends, also one on many objects.

    Raises OutputClosed or OutputFailed.
    """
    try:
        yield
    except BrokenPipeError:
        raise OutputClosed from None
    except OSError as failure:
        raise OutputFailed(failure.errno, failure.strerror, "standard output") from None


def concerns_one_object(error: Exception) -> bool:
    """Whether a command on many objects can go on with the others after this error.

    Not when the store does not answer, its bucket is gone, a disk is full or nobody reads what is printed: each of the
    others would meet the same, perhaps after a time-out of its own.
    """
    from objmeta import errors

    if isinstance(error, OSError):
        return error.errno not in _DISK_FULL and not isinstance(error, OutputFailed)
    if isinstance(error, errors.Unavailable | errors.NoSuchBucket):
        return False
    if isinstance(error, errors.StoreError):
        return isinstance(error, errors.IntegrityError)
    return isinstance(error, errors.ObjmetaError)
