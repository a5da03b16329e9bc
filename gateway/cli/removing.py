"""``rm``: what is deleted stays as old versions until a version itself is removed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import click

from gateway.cli import errors, output
from gateway.cli.options import common
from gateway.cli.paths import Remote, remote_name, require_object
from gateway.cli.session import Tally, for_each_counted, with_store
from gateway.cli.trees import explained, is_tree, object_name, objects_below
from gateway.cli.undoing import histories

if TYPE_CHECKING:
    from gateway.data.transfer import Store
    from objmeta import ObjectSummary, ObjectVersion


@click.command()
@common
@click.argument("targets", metavar="OBJECT...", type=remote_name, nargs=-1, required=True)
@click.option("-r", "--recursive", is_flag=True, help="Delete directories, or a bucket's objects, with all they hold.")
@click.option("--version-id", metavar="ID", help="Remove this one version for good.")
@click.option("--versions", "all_versions", is_flag=True, help="Remove all versions for good.")
@click.option("--if-version", metavar="ID", help="Delete only this current version (else exit code 6).")
def rm(
    targets: tuple[Remote, ...], recursive: bool, version_id: str | None, all_versions: bool, if_version: str | None
) -> None:
    """Delete objects, or one version for good.

    A deleted object is hidden behind a delete marker and can be restored (gateway restore). What --version-id and
    --versions remove is gone.
    """
    if (version_id is not None or if_version is not None) and (recursive or len(targets) > 1 or all_versions):
        raise click.UsageError("--version-id and --if-version are for one object, without -r and --versions")
    if version_id is not None and if_version is not None:
        raise click.UsageError("--version-id and --if-version exclude each other")
    for target in targets:
        if not recursive:
            require_object(target, "; -r deletes all it holds, 'gateway rb' removes an empty bucket")
    with_store(
        partial(
            _rm,
            targets=targets,
            recursive=recursive,
            version_id=version_id,
            all_versions=all_versions,
            if_version=if_version,
        )
    )


async def _rm(
    store: Store,
    *,
    targets: Sequence[Remote],
    recursive: bool,
    version_id: str | None,
    all_versions: bool,
    if_version: str | None,
) -> None:
    from objmeta.errors import NoSuchKey

    tally = Tally()
    for target in targets:
        try:
            if version_id is not None:
                await store.client.remove_version(target.bucket, target.key, version_id)
                record = {"bucket": target.bucket, "key": target.key, "version_id": version_id}
                output.emit(record, f"removed version {version_id} of {output.shown(str(target))} for good")
                tally.succeeded()
            elif all_versions:
                await remove_versions(store, target, recursive, tally)
            elif recursive and await is_tree(store, target):
                await _rm_tree(store, target, tally)
            else:
                marker = await store.client.delete_object(target.bucket, target.key, if_version=if_version)
                text = f"deleted {output.shown(str(target))}, delete marker {marker.version_id}"
                output.emit(await output.version_record(store, marker), text)
                tally.succeeded()
        except Exception as error:
            if isinstance(error, NoSuchKey):
                error = await explained(store, target, error, "-r")
            if len(targets) == 1 or not errors.concerns_one_object(error):
                raise error from None
            tally.failed(str(target), error)
    tally.finish()


async def _rm_tree(store: Store, target: Remote, total: Tally) -> None:
    before = total.done

    async def work(item: ObjectSummary) -> None:
        marker = await store.client.delete_object(item.bucket, item.key)
        total.succeeded()
        output.emit(await output.version_record(store, marker))

    await for_each_counted("rm", objects_below(store, target), work, total, name=object_name)
    output.emit_text(f"deleted {output.count_text(total.done - before, 'object')} below {output.shown(str(target))}")


async def remove_versions(store: Store, target: Remote, recursive: bool, total: Tally) -> None:
    """Remove every version of an object, or of all objects of a directory, for good."""
    before = total.done

    async def work(history: list[ObjectVersion]) -> None:
        # the oldest first: removing the current version would show the one before it again, if only for a moment
        for version in reversed(history):
            await store.client.remove_version(version.bucket, version.key, version.version_id)
            total.succeeded()
            record = {"bucket": version.bucket, "key": version.key, "version_id": version.version_id}
            output.emit(record)

    if recursive and (target.is_directory or await _has_versions_below(store, target)):
        items = histories(store, target)
        await for_each_counted("rm", items, work, total, name=lambda history: f"{history[0].bucket}/{history[0].key}")
    else:
        await work(await store.client.versions(target.bucket, target.key))
    output.emit_text(
        f"removed {output.count_text(total.done - before, 'version')} of {output.shown(str(target))} for good"
    )


async def _has_versions_below(store: Store, target: Remote) -> bool:
    page = await store.client.list_versions(target.bucket, target.as_directory().key, limit=1)
    return bool(page.versions)
