"""``cp`` and ``mv``: inside the store, by reference; no bytes are moved.

``mv`` gives each object its new name and takes the old one away in one transaction (``gateway.data.moving``).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import click

from gateway.cli import errors, output
from gateway.cli.options import common, if_absent_option
from gateway.cli.paths import Remote, remote_name, require_object
from gateway.cli.session import Tally, for_each_counted, with_store
from gateway.cli.trees import explained, is_tree, object_name, objects_below

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.data.transfer import Store
    from objmeta import ObjectSummary, ObjectVersion

    _Copy = Callable[[Store, Remote, Remote, ObjectSummary | None], Awaitable[ObjectVersion]]


@click.command()
@common
@click.argument("sources", metavar="OBJECT...", type=remote_name, nargs=-1)
@click.argument("destination", metavar="OBJECT", type=remote_name)
@click.option("-r", "--recursive", is_flag=True, help="Copy directories with all they hold.")
@if_absent_option
@click.option("--if-version", metavar="ID", help="Replace only this current version (else exit code 6).")
@click.option("--version-id", metavar="ID", help="Copy this version instead of the current one.")
def cp(
    sources: tuple[Remote, ...],
    destination: Remote,
    recursive: bool,
    if_absent: bool,
    if_version: str | None,
    version_id: str | None,
) -> None:
    """Copy objects inside the store, without moving their bytes.

    \b
      gateway cp bucket/a.csv bucket/b.csv
      gateway cp bucket/a.csv other/archive/         keeps the name
      gateway cp -r bucket/2026 archive/2026         what is below 2026/
    """
    if (version_id is not None or if_version is not None) and (recursive or len(sources) > 1):
        raise click.UsageError("--version-id and --if-version are for one object, without -r")
    if if_version is not None and if_absent:
        raise click.UsageError("--if-version and --if-absent exclude each other")
    _check(sources, destination, recursive, itself_allowed=version_id is not None)
    with_store(
        partial(
            _transfer,
            sources=sources,
            destination=destination,
            recursive=recursive,
            copy=partial(_copy, if_absent=if_absent, if_version=if_version, version_id=version_id),
            verb="copied",
            title="cp",
        )
    )


@click.command()
@common
@click.argument("sources", metavar="OBJECT...", type=remote_name, nargs=-1)
@click.argument("destination", metavar="OBJECT", type=remote_name)
@click.option("-r", "--recursive", is_flag=True, help="Move directories with all they hold.")
@if_absent_option
def mv(sources: tuple[Remote, ...], destination: Remote, recursive: bool, if_absent: bool) -> None:
    """Rename objects inside the store.

    Each object gets its new name and loses the old one at one instant, whatever happens meanwhile; no bytes are moved.
    Its versions stay under the old name. Several objects move one after the other.
    """
    _check(sources, destination, recursive, itself_allowed=False)
    with_store(
        partial(
            _transfer,
            sources=sources,
            destination=destination,
            recursive=recursive,
            copy=partial(_move, if_absent=if_absent),
            verb="moved",
            title="mv",
        )
    )


def _check(sources: Sequence[Remote], destination: Remote, recursive: bool, itself_allowed: bool) -> None:
    if not sources:
        raise click.UsageError(f"two names are needed: where is {destination} to go?")
    if len(sources) > 1 and not destination.is_directory:
        raise click.UsageError(f"several sources need a directory to go to, such as {destination}/")
    for source in sources:
        if not recursive:
            require_object(source, "; -r takes all it holds")
        if _target_of(source, destination) == source and not itself_allowed:
            raise click.UsageError(f"{source} would become itself")
        if recursive:
            tree = destination.as_directory() if len(sources) == 1 else (destination / source.name).as_directory()
            if tree.bucket == source.bucket and tree.key.startswith(source.as_directory().key):
                raise click.UsageError(f"{tree} is inside {source}")


def _target_of(source: Remote, destination: Remote) -> Remote:
    if not destination.is_directory:
        return destination
    return destination / (source.name + "/" if source.key.endswith("/") else source.name)


async def _copy(
    store: Store,
    source: Remote,
    target: Remote,
    listed: ObjectSummary | None,
    *,
    if_absent: bool,
    if_version: str | None,
    version_id: str | None,
) -> ObjectVersion:
    return await store.copy(
        source.bucket,
        source.key,
        target.bucket,
        target.key,
        version_id=version_id if listed is None else listed.version_id,
        if_absent=if_absent,
        if_version=if_version,
    )


async def _move(
    store: Store, source: Remote, target: Remote, listed: ObjectSummary | None, *, if_absent: bool
) -> ObjectVersion:
    from gateway.data.moving import move

    return await move(store, source.bucket, source.key, target.bucket, target.key, if_absent=if_absent)


async def _transfer(
    store: Store,
    *,
    sources: Sequence[Remote],
    destination: Remote,
    recursive: bool,
    copy: _Copy,
    verb: str,
    title: str,
) -> None:
    await store.client.bucket(destination.bucket)
    tally = Tally()
    for source in sources:
        try:
            if recursive and await is_tree(store, source):
                tree = destination if len(sources) == 1 else destination / source.name
                await _tree(store, source, tree, copy, verb, title, tally)
            else:
                target = _target_of(source, destination)
                await _one(store, require_object(source), target, copy, verb)
                tally.succeeded()
        except Exception as error:
            if len(sources) == 1 or not errors.concerns_one_object(error):
                raise
            tally.failed(str(source), error)
    tally.finish()


async def _one(store: Store, source: Remote, target: Remote, copy: _Copy, verb: str) -> None:
    from objmeta.errors import NoSuchKey

    try:
        version = await copy(store, source, target, None)
    except NoSuchKey as missing:
        raise await explained(store, source, missing, "-r") from None
    text = f"{verb} {output.shown(str(source))} to {output.shown(str(target))}, version {version.version_id}"
    output.emit(await output.version_record(store, version) | {"source": str(source)}, text)


async def _tree(store: Store, source: Remote, target: Remote, copy: _Copy, verb: str, title: str, total: Tally) -> None:
    prefix = source.as_directory().key
    before = total.done

    async def work(item: ObjectSummary) -> None:
        origin = Remote(item.bucket, item.key)
        below = target / item.key.removeprefix(prefix)
        if not below.key:
            return
        version = await copy(store, origin, below, item)
        total.succeeded(item.size)
        output.emit(await output.version_record(store, version) | {"source": str(origin)})

    await for_each_counted(title, objects_below(store, source), work, total, name=object_name)
    count = output.count_text(total.done - before, "object")
    output.emit_text(f"{verb} {count} from {output.shown(str(source))} to {output.shown(str(target))}")
