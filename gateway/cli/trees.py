"""Objects and directories of objects: what a remote name stands for in the store as it is now."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from gateway.cli.options import current
from gateway.cli.paths import Remote

if TYPE_CHECKING:
    from gateway.data.transfer import Store
    from objmeta import ObjectSummary, ObjectVersion

LOOK: Final = "'gateway ls' to see what is in it"
"""For commands that have no option for a directory."""


async def is_tree(store: Store, remote: Remote) -> bool:
    """Whether ``remote`` is a directory: a bucket, or something is below it. Raises NoSuchBucket, NoSuchKey."""
    page = await store.client.list_objects(remote.bucket, remote.as_directory().key, limit=1)
    if page.objects or not remote.key:
        return True
    if remote.is_directory:
        from objmeta.errors import NoSuchKey

        raise NoSuchKey(f"there is no object below {remote}")
    return False


async def look_up(store: Store, remote: Remote, version_id: str | None = None, hint: str = LOOK) -> ObjectVersion:
    """The object's manifest. Raises NoSuchKey, which says so if the name is that of a directory."""
    from objmeta.errors import NoSuchKey

    try:
        return await store.client.get_object(remote.bucket, remote.key, version_id=version_id)
    except NoSuchKey as missing:
        raise await explained(store, remote, missing, hint) from None


async def look_up_content(store: Store, remote: Remote, version_id: str | None, hint: str = LOOK) -> ObjectVersion:
    """The same for something that can be read: raises NoSuchKey for a delete marker."""
    from objmeta.errors import NoSuchKey

    version = await look_up(store, remote, version_id, hint)
    if version.is_delete_marker:
        raise NoSuchKey(f"version {version.version_id} of {remote} is a delete marker; it has no content")
    return version


async def explained(store: Store, remote: Remote, missing: Exception, hint: str = LOOK) -> Exception:
    """A better reason for ``missing`` if ``remote`` is a directory of objects, or was deleted; else itself.

    ``hint`` is what to use then: an option of the command, or another command.
    """
    from objmeta.errors import NoSuchKey, NoSuchVersion

    if not isinstance(missing, NoSuchKey) or isinstance(missing, NoSuchVersion):
        return missing
    page = await store.client.list_objects(remote.bucket, remote.as_directory().key, limit=1)
    if page.objects:
        return NoSuchKey(f"{remote} is not an object but a directory of objects (use {hint})")
    if current().as_of is None:
        with suppress(NoSuchKey):
            if (await store.client.versions(remote.bucket, remote.key))[0].is_delete_marker:
                return NoSuchKey(f"{missing}; it was deleted, and 'gateway undo' brings it back")
    return missing


def nothing_there(remote: Remote) -> Exception:
    """The error that there is neither an object nor a directory of this name."""
    from objmeta.errors import NoSuchKey

    return NoSuchKey(f"there is no object {remote} and none below it")


def object_name(item: ObjectSummary) -> str:
    """An object's name, for messages."""
    return f"{item.bucket}/{item.key}"


async def objects_below(store: Store, remote: Remote) -> AsyncIterator[ObjectSummary]:
    """All objects of a directory, by name, its own marker included."""
    continuation: str | None = None
    while True:
        page = await store.client.list_objects(
            remote.bucket, remote.as_directory().key, continuation=continuation, limit=PAGE
        )
        for item in page.objects:
            yield item
        continuation = page.continuation
        if continuation is None:
            return


async def versions_below(store: Store, remote: Remote) -> AsyncIterator[ObjectVersion]:
    """All versions of all objects of a directory, by name, newest first."""
    continuation: str | None = None
    while True:
        page = await store.client.list_versions(
            remote.bucket, remote.as_directory().key, continuation=continuation, limit=PAGE
        )
        for version in page.versions:
            yield version
        continuation = page.continuation
        if continuation is None:
            return


PAGE = 5000
