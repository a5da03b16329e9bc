"""``undo`` and ``restore``: what was becomes current again. Nothing that has content is ever removed for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import click

from gateway.cli import errors, output
from gateway.cli.options import common
from gateway.cli.paths import Remote, deleted_name, require_object
from gateway.cli.session import Tally, for_each_counted, with_store
from gateway.cli.trees import LOOK, explained, versions_below

if TYPE_CHECKING:
    from gateway.data.transfer import Store
    from objmeta import ObjectVersion


@click.command()
@common
@click.argument("target", metavar="OBJECT", type=deleted_name)
@click.option("--version-id", metavar="ID", help="The version to restore; default: the one before the deletion.")
@click.option("-r", "--recursive", is_flag=True, help="All objects below that are deleted.")
def restore(target: Remote, version_id: str | None, recursive: bool) -> None:
    """Make an old version current again.

    Its content becomes a new version; nothing is lost. Without --version-id a deleted object is undeleted, and with -r
    all that are deleted below a directory.
    """
    if recursive:
        if version_id is not None:
            raise click.UsageError("--version-id is for one object, without -r")
        with_store(partial(_restore_tree, target=target))
    else:
        require_object(target, "; -r restores all that is deleted below it")
        with_store(partial(_restore, target=target, version_id=version_id))


@click.command()
@common
@click.argument("targets", metavar="OBJECT...", type=deleted_name, nargs=-1, required=True)
def undo(targets: tuple[Remote, ...]) -> None:
    """Undo the last change of objects.

    \b
      it was replaced      the version before becomes current again, as a new version
      it was deleted       the delete marker is taken away
      it was made          it is deleted; its version stays

    No content is removed, so a second undo takes the first one back, except that of a deletion: what it undoes then is
    the change before. If somebody else changes the object just then, nothing happens (exit code 6).
    """
    for target in targets:
        require_object(target)
    with_store(partial(_undo_all, targets=targets))


async def _undo_all(store: Store, *, targets: Sequence[Remote]) -> None:
    tally = Tally()
    for target in targets:
        try:
            await _undo(store, target)
            tally.succeeded()
        except Exception as error:
            if len(targets) == 1 or not errors.concerns_one_object(error):
                raise
            tally.failed(str(target), error)
    tally.finish()


async def _undo(store: Store, target: Remote) -> None:
    newest, *older = await _history(store, target)
    name = output.shown(str(target))
    before = older[0] if older else None
    if newest.parent_version_id != (None if before is None else before.version_id):
        from objmeta.errors import NoSuchVersion

        raise NoSuchVersion(
            f"the version of {target} before the current one, {newest.parent_version_id}, was removed for good; "
            "'gateway versions' lists those that are left, and 'gateway restore --version-id' makes one current"
        )
    record = {"bucket": target.bucket, "key": target.key, "undone_version_id": newest.version_id}
    if newest.is_delete_marker:

        def is_newest(versions: Sequence[ObjectVersion]) -> bool:
            return versions[0].version_id == newest.version_id

        await store.client.remove_version(target.bucket, target.key, newest.version_id, only_if=is_newest)
        current = None if before is None or before.is_delete_marker else before.version_id
        text = f"undid the deletion of {name}" + (f", version {current} is current" if current else "")
        output.emit(record | {"action": "undelete", "version_id": current}, text)
    elif before is None or before.is_delete_marker:
        marker = await store.client.delete_object(target.bucket, target.key, if_version=newest.version_id)
        text = f"undid the making of {name}: deleted, delete marker {marker.version_id}"
        output.emit(record | {"action": "delete", "version_id": marker.version_id}, text)
    else:
        again = await store.copy(
            target.bucket,
            target.key,
            target.bucket,
            target.key,
            version_id=before.version_id,
            if_version=newest.version_id,
        )
        text = f"undid the last change of {name}: {before.version_id} is back, as version {again.version_id}"
        output.emit(
            record | {"action": "restore", "version_id": again.version_id, "restored_version_id": before.version_id},
            text,
        )


async def _history(store: Store, target: Remote, hint: str = LOOK) -> list[ObjectVersion]:
    from objmeta.errors import NoSuchKey

    try:
        return await store.client.versions(target.bucket, target.key)
    except NoSuchKey as missing:
        raise await explained(store, target, missing, hint) from None


async def _restore(store: Store, *, target: Remote, version_id: str | None) -> None:
    if version_id is None:
        history = await _history(store, target, "-r")
        if not history[0].is_delete_marker:
            raise click.UsageError(f"{target} is not deleted; name the version to restore with --version-id")
        version_id = _last_content(history)
        if version_id is None:
            from objmeta.errors import NoSuchVersion

            raise NoSuchVersion(f"{target} has only delete markers left; there is no version to restore")
    version = await store.restore(target.bucket, target.key, version_id)
    text = f"restored {output.shown(str(target))} from {version_id}, version {version.version_id}"
    output.emit(await output.version_record(store, version) | {"restored_version_id": version_id}, text)


def _last_content(history: Sequence[ObjectVersion]) -> str | None:
    return next((version.version_id for version in history if not version.is_delete_marker), None)


async def _restore_tree(store: Store, *, target: Remote) -> None:
    tally = Tally()

    async def work(history: list[ObjectVersion]) -> None:
        found = _last_content(history)
        if not history[0].is_delete_marker or found is None:
            return
        deleted = Remote(history[0].bucket, history[0].key)
        version = await store.restore(deleted.bucket, deleted.key, found)
        tally.succeeded(version.size)
        output.emit(await output.version_record(store, version) | {"restored_version_id": found})

    await for_each_counted(
        "restore", histories(store, target), work, tally, name=lambda history: f"{target.bucket}/{history[0].key}"
    )
    count = output.count_text(tally.done, "object")
    output.emit_text(f"restored {count}, {output.size_text(tally.bytes)}, below {output.shown(str(target))}")
    tally.finish()


async def histories(store: Store, target: Remote) -> AsyncIterator[list[ObjectVersion]]:
    """All versions of each object of a directory, newest first."""
    history: list[ObjectVersion] = []
    async for version in versions_below(store, target):
        if history and history[0].key != version.key:
            yield history
            history = []
        history.append(version)
    if history:
        yield history
