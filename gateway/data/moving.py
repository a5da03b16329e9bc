"""Moving an object to another name without moving its bytes.

A move is one transaction over both names: the target gets the version, and the source a delete marker, on condition
that this version is still its current one.  What that promises:

* Both happen at one instant or neither.  Who has found nothing under the old name finds it under the new one from then
  on, and the other way round.  (Several reads, or a page of a listing, are not of one instant.)
* A version that somebody writes to the source meanwhile is not lost: the move goes on with it.
* Of any number of moves of one source exactly one succeeds, wherever they go; the others change nothing.
* A process that dies in between has moved the object or not; whoever meets what it left behind finishes that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gateway.data.commits import put_of
from objmeta import DeleteObject, ObjectVersion, errors

if TYPE_CHECKING:
    from gateway.data.transfer import Store

ATTEMPTS_MAX: Final = 20
"""How often a move goes on because somebody wrote to its source meanwhile."""


async def move(
    store: Store,
    source_bucket: str,
    source_key: str,
    bucket: str,
    key: str,
    *,
    if_absent: bool = False,
    if_version: str | None = None,
) -> ObjectVersion:
    """Give an object another name; the new version there. The conditions are about the target, as in put_object.

    Raises what Store.copy raises; NoSuchKey also if the object was moved or deleted meanwhile, PreconditionFailed also
    if it was written to all the time, and InvalidArgument if both names are one.  Unless that is UnknownOutcome nothing
    was changed.
    """
    current = await store.client.get_object(source_bucket, source_key)
    for _ in range(ATTEMPTS_MAX):
        put = put_of(current, bucket, key, if_absent=if_absent, if_version=if_version)
        delete = DeleteObject(source_bucket, source_key, current.version_id)
        try:
            return (await store.commit_kept(current, [put, delete]))[0]
        except errors.PreconditionFailed:
            seen, current = current, await store.client.get_object(source_bucket, source_key)
            if seen.version_id == current.version_id:
                raise  # so it was the target's condition
    raise errors.PreconditionFailed(f"{source_bucket}/{source_key} was written to all the time; it was not moved")
