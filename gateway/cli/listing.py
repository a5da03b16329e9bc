"""``ls``, ``stat``, ``du`` and ``versions``: looking, without changing anything.

Names are printed as seen from what was listed, as the shell's ``ls`` does; with ``--json`` in full.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import click

from gateway.cli import errors, output
from gateway.cli.options import common, current, reading
from gateway.cli.paths import Remote, remote_name, require_object
from gateway.cli.session import Tally, with_store
from gateway.cli.trees import PAGE, explained, is_tree, look_up, nothing_there, objects_below, versions_below

if TYPE_CHECKING:
    from gateway.data.transfer import Store
    from objmeta import Bucket, ObjectSummary, ObjectVersion

_DIRECTORY = "-"


@click.command()
@common
@reading
@click.argument("targets", metavar="[NAME...]", type=remote_name, nargs=-1)
@click.option("-l", "--long", "detailed", is_flag=True, help="With size, time (UTC) and version.")
@click.option("-r", "-R", "--recursive", is_flag=True, help="With everything below.")
@click.option("-h", "--human-readable", "human", is_flag=True, help="Sizes as 1.5K, 2.0M; with -l.")
@click.option("--versions", "all_versions", is_flag=True, help="All versions of everything below, newest first.")
def ls(targets: tuple[Remote, ...], detailed: bool, recursive: bool, human: bool, all_versions: bool) -> None:
    """List buckets, objects or versions.

    Without a name: the buckets. Directories end with a slash.
    """
    with_store(
        partial(_ls, targets=targets, detailed=detailed, recursive=recursive, human=human, all_versions=all_versions)
    )


@click.command()
@common
@reading
@click.argument("target", metavar="NAME", type=remote_name)
@click.option("--version-id", metavar="ID", help="This version instead of the current one.")
def stat(target: Remote, version_id: str | None) -> None:
    """Show all that is known of an object or a bucket."""
    with_store(partial(_stat, target=target, version_id=version_id))


@click.command()
@common
@reading
@click.argument("targets", metavar="NAME...", type=remote_name, nargs=-1, required=True)
@click.option("-h", "--human-readable", "human", is_flag=True, help="Sizes as 1.5K, 2.0M.")
@click.option("--versions", "all_versions", is_flag=True, help="Count old versions as well.")
@click.option("--physical", is_flag=True, help="Also what is stored: parts that are shared once, then all copies.")
def du(targets: tuple[Remote, ...], human: bool, all_versions: bool, physical: bool) -> None:
    """Count objects and add up their sizes.

    Prints bytes, the number of objects (or versions) and the name. Sizes are those of the contents, shared or not.

    With --physical two more columns follow the first: the bytes when what these objects share is counted once, and the
    bytes of all copies on all nodes or disks.
    """
    with_store(partial(_du, targets=targets, human=human, all_versions=all_versions, physical=physical))


@click.command()
@common
@reading
@click.argument("target", metavar="OBJECT", type=remote_name)
@click.option("-h", "--human-readable", "human", is_flag=True, help="Sizes as 1.5K, 2.0M.")
def versions(target: Remote, human: bool) -> None:
    """List the versions of one object, newest first.

    Columns: size, time (UTC), version, and what is special: the latest, or a delete marker.
    """
    with_store(partial(_versions, target=require_object(target), human=human))


# -- ls ---------------------------------------------------------------------------------------------------------------


async def _ls(
    store: Store, *, targets: Sequence[Remote], detailed: bool, recursive: bool, human: bool, all_versions: bool
) -> None:
    if not targets:
        for line in output.rows([_bucket_cells(made, detailed) for made in await _all_buckets(store)]):
            output.line(line)
        return
    tally = Tally()
    for target in targets:
        try:
            if len(targets) > 1 and not current().json:
                output.line(f"{output.shown(str(target))}:")
            if all_versions:
                await _ls_versions(store, target, human)
            elif recursive:
                await _ls_tree(store, target, detailed, human)
            else:
                await _ls_directory(store, target, detailed, human)
            tally.succeeded()
        except Exception as error:
            if len(targets) == 1 or not errors.concerns_one_object(error):
                raise
            tally.failed(str(target), error)
    tally.finish()


async def _all_buckets(store: Store) -> list[Bucket]:
    found = await store.client.buckets()
    if not current().json:
        return found
    for made in found:
        output.answer(output.bucket_record(made), "")
    return []


def _bucket_cells(made: Bucket, detailed: bool) -> list[str]:
    name = f"{made.name}/"
    return [output.time_text(made.created), name] if detailed else [name]


def _show_object(item: ObjectSummary, name: str, detailed: bool, human: bool) -> None:
    text = output.shown(name)
    if detailed:
        size = output.size_text(item.size, human)
        text = f"{size:>{_size_width(human)}}  {output.time_text(item.modified)}  {item.version_id}  {text}"
    output.answer(output.summary_record(item), text)


def _show_prefix(bucket: str, prefix: str, name: str, detailed: bool, human: bool) -> None:
    text = output.shown(name)
    if detailed:
        text = f"{_DIRECTORY:>{_size_width(human)}}  {_DIRECTORY:<20}  {_DIRECTORY:<32}  {text}"
    output.answer({"bucket": bucket, "prefix": prefix}, text)


def _size_width(human: bool) -> int:
    return 6 if human else 12


async def _ls_directory(store: Store, target: Remote, detailed: bool, human: bool) -> None:
    prefix = target.as_directory().key
    continuation: str | None = None
    found = False
    if not target.is_directory:
        found = await _ls_itself(store, target, detailed, human)
    while True:
        page = await store.client.list_objects(
            target.bucket, prefix, delimiter="/", continuation=continuation, limit=PAGE
        )
        found = found or bool(page.objects or page.prefixes)
        entries: list[ObjectSummary | str] = sorted(
            (*page.objects, *page.prefixes), key=lambda entry: entry if isinstance(entry, str) else entry.key
        )
        for entry in entries:
            if isinstance(entry, str):
                _show_prefix(target.bucket, entry, entry.removeprefix(prefix), detailed, human)
            elif entry.key != prefix:
                _show_object(entry, entry.key.removeprefix(prefix), detailed, human)
        continuation = page.continuation
        if continuation is None:
            break
    if not found and prefix:
        raise nothing_there(target)


async def _ls_itself(store: Store, target: Remote, detailed: bool, human: bool) -> bool:
    from objmeta.errors import NoSuchKey

    try:
        item = await store.client.head_object(target.bucket, target.key)
    except NoSuchKey:
        return False
    _show_object(item, target.name, detailed, human)
    return True


async def _ls_tree(store: Store, target: Remote, detailed: bool, human: bool) -> None:
    prefix = target.as_directory().key
    found = not prefix or (not target.is_directory and await _ls_itself(store, target, detailed, human))
    async for item in objects_below(store, target):
        found = True
        if item.key != prefix:
            _show_object(item, item.key.removeprefix(prefix), detailed, human)
    if not found:
        raise nothing_there(target)


async def _ls_versions(store: Store, target: Remote, human: bool) -> None:
    from objmeta.errors import NoSuchKey

    prefix = target.as_directory().key
    found = not prefix
    if not target.is_directory:
        try:
            for version in await store.client.versions(target.bucket, target.key):
                found = True
                await _show_version(store, version, target.name, human)
        except NoSuchKey:
            pass
    async for version in versions_below(store, target):
        found = True
        await _show_version(store, version, version.key.removeprefix(prefix) or "./", human)
    if not found:
        raise nothing_there(target)


async def _show_version(store: Store, version: ObjectVersion, name: str | None, human: bool) -> None:
    notes = []
    if version.is_latest:
        notes.append("latest")
    if version.is_delete_marker:
        notes.append("delete marker")
    size = _DIRECTORY if version.is_delete_marker else output.size_text(version.size, human)
    text = f"{size:>{_size_width(human)}}  {output.time_text(version.modified)}  {version.version_id}"
    if name is not None:
        text += f"  {output.shown(name)}"
    if notes:
        text += f"  ({', '.join(notes)})"
    output.answer(await output.version_record(store, version), text)


# -- versions, stat, du -----------------------------------------------------------------------------------------------


async def _versions(store: Store, *, target: Remote, human: bool) -> None:
    from objmeta.errors import NoSuchKey

    try:
        found = await store.client.versions(target.bucket, target.key)
    except NoSuchKey as missing:
        raise await explained(store, target, missing, "ls --versions") from None
    for version in found:
        await _show_version(store, version, None, human)


async def _stat(store: Store, *, target: Remote, version_id: str | None) -> None:
    if not target.key:
        if version_id is not None:
            raise click.UsageError("--version-id is for objects")
        made = await store.client.bucket(target.bucket)
        _show_fields(output.bucket_record(made))
        return
    version = await look_up(store, target, version_id, "ls")
    _show_fields(await output.version_record(store, version))


def _show_fields(record: dict[str, object]) -> None:
    cells = [[name, output.shown(_field_text(value))] for name, value in record.items()]
    output.answer(record, "\n".join(output.rows(cells)))


def _field_text(value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case dict():
            return ", ".join(f"{name}={text}" for name, text in value.items()) or "-"
        case _:
            return str(value)


async def _du(store: Store, *, targets: Sequence[Remote], human: bool, all_versions: bool, physical: bool) -> None:
    tally = Tally()
    for target in targets:
        try:
            size, count = await _usage(store, target, all_versions)
            record = {"bucket": target.bucket, "key": target.key, "size": size, "count": count}
            sizes = [size]
            if physical:
                unique, stored = await _physical(store, target, all_versions)
                record |= {"unique_bytes": unique, "stored_bytes": stored}
                sizes += [unique, stored]
            shown = "\t".join(output.size_text(each, human) for each in sizes)
            output.answer(record, f"{shown}\t{count}\t{output.shown(str(target))}")
            tally.succeeded()
        except Exception as error:
            if len(targets) == 1 or not errors.concerns_one_object(error):
                raise
            tally.failed(str(target), error)
    tally.finish()


async def _physical(store: Store, target: Remote, all_versions: bool) -> tuple[int, int]:
    from gateway.upkeep.usage import physical

    async def versions() -> AsyncIterator[ObjectVersion]:
        found = False
        async for version in versions_below(store, target):
            found = True
            if all_versions or version.is_latest:
                yield version
        if not found and target.key:
            for version in await store.client.versions(target.bucket, target.key):
                if all_versions or version.is_latest:
                    yield version

    return await physical(store, versions())


async def _usage(store: Store, target: Remote, all_versions: bool) -> tuple[int, int]:
    if not all_versions:
        if await is_tree(store, target):
            return await _sum(objects_below(store, target))
        return (await store.client.head_object(target.bucket, target.key)).size, 1
    size, count = await _sum(versions_below(store, target))
    if count == 0 and target.key:
        history = await store.client.versions(target.bucket, target.key)
        return sum(version.size for version in history), len(history)
    return size, count


async def _sum(items: AsyncIterable[ObjectSummary]) -> tuple[int, int]:
    size = count = 0
    async for item in items:
        size += item.size
        count += 1
    return size, count
