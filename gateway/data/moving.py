"""Moving an object to another name without moving its bytes.

There is no transaction over two objects, so a move is two changes, each of them atomic: the target gets the version,
then the source gets a delete marker, on condition that this version is still its current one.  What that promises:

* Who looks sees the source, or both, or the target: never neither, and never a part.
* A version that somebody writes to the source in between is not lost: it is moved too.
* Of any number of moves of one source exactly one succeeds, wherever they go.  What the others put at their targets is
  taken back: those are as they were before.
* A process that dies in between leaves both, and so may an unknown outcome; moving again finishes it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from objmeta import ObjectVersion, errors

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

    Raises what Store.copy raises; NoSuchKey also if the object was moved or deleted meanwhile, and PreconditionFailed
    also if it was written to all the time.  Unless that is UnknownOutcome nothing was changed.
    """
    made: list[ObjectVersion] = []
    is_conditional = if_absent or if_version is not None
    try:
        for _ in range(ATTEMPTS_MAX):
            current = await store.client.get_object(source_bucket, source_key)
            if made and is_conditional:  # the target is ours by now, and has to be still
                if_absent, if_version = False, made[-1].version_id
            made.append(await store.copy_version(current, bucket, key, if_absent=if_absent, if_version=if_version))
            with suppress(errors.PreconditionFailed):
                await store.client.delete_object(source_bucket, source_key, if_version=current.version_id)
                return made[-1]
        raise errors.PreconditionFailed(f"{source_bucket}/{source_key} was written to all the time; it was not moved")
    except errors.UnknownOutcome:
        raise
    except errors.ObjmetaError:
        for version in reversed(made):
            with suppress(errors.NotFound):
                await store.client.remove_version(bucket, key, version.version_id)
        raise
