"""The one table from objmeta's errors to the OSError family.

Users of files know OSError: ``FileNotFoundError``, ``FileExistsError``, ``TimeoutError``, or an ``errno``.  Python
itself picks the subclass that belongs to an errno, so the table holds errnos only.  The message stays, the path becomes
``filename``, and the original error stays as ``__cause__``, for programs that need its ``kind``.

An unknown outcome is EIO and not TimeoutError, on purpose: who retries on TimeoutError must be able to believe that
nothing was changed.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from gateway.data.past import ReadOnly
from objmeta import errors

ERRNO: Final[tuple[tuple[type[errors.ObjmetaError], int], ...]] = (
    (ReadOnly, errno.EROFS),
    (errors.InvalidArgument, errno.EINVAL),
    (errors.NotFound, errno.ENOENT),
    (errors.AlreadyExists, errno.EEXIST),
    (errors.PreconditionFailed, errno.ESTALE),
    (errors.BucketNotEmpty, errno.ENOTEMPTY),
    (errors.LockHeld, errno.EAGAIN),
    (errors.Conflict, errno.ESTALE),
    (errors.LockLost, errno.ESTALE),
    (errors.NoQuorum, errno.ETIMEDOUT),
    (errors.UnknownOutcome, errno.EIO),
    (errors.Unavailable, errno.ETIMEDOUT),
    (errors.StoreFull, errno.ENOSPC),
    (errors.ForkedClient, errno.ENOTCONN),
    (errors.IntegrityError, errno.EIO),
    (errors.StoreError, errno.EIO),
    (errors.ObjmetaError, errno.EIO),
)
"""The first class that matches counts."""


def os_error(error: errors.ObjmetaError, path: str | None = None, target: str | None = None) -> OSError:
    """The OSError to raise for ``error``; ``path`` becomes its ``filename``, and ``target`` its ``filename2``."""
    number = next(number for kind, number in ERRNO if isinstance(error, kind))
    if type(error) is errors.StoreError and isinstance(error.__cause__, OSError) and error.__cause__.errno:
        number = error.__cause__.errno  # the disk's own reason (EACCES, EROFS, ...) says more than EIO
    names = (path, None, target) if target else (path,) if path else ()
    found = OSError(number, str(error), *names)
    found.__cause__ = error
    return found


@contextmanager
def oserrors(path: str | None = None, target: str | None = None) -> Iterator[None]:
    """Turn objmeta's errors that leave the block into OSErrors; of a copy or a move, both names are in them."""
    try:
        yield
    except errors.ObjmetaError as error:
        raise os_error(error, path, target) from error
