"""``get`` and ``cat``: objects into files and onto standard output.

A file appears under its name only when it is complete and verified.  A directory's objects keep their names below the
target; a key that would lead out of it is refused (see ``paths``).
"""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from gateway.cli import errors, output
from gateway.cli.options import common, reading
from gateway.cli.paths import STANDARD_STREAM, Remote, file_name, local_path_below, remote_name, require_object
from gateway.cli.putting import LARGE_AT_ONCE, LARGE_BYTES
from gateway.cli.session import Tally, for_each, in_thread, with_store
from gateway.cli.trees import is_tree, look_up_content, object_name, objects_below
from gateway.cli.values import byte_range

if TYPE_CHECKING:
    from gateway.data.transfer import Store
    from objmeta import ObjectSummary, ObjectVersion

HEAD_BYTES: Final = 64 << 10
HEAD_BYTES_MAX: Final = 4 << 20


@click.command()
@common
@reading
@click.argument("source", metavar="OBJECT", type=remote_name)
@click.argument("target", metavar="[FILE]", type=file_name, required=False)
@click.option("-r", "--recursive", is_flag=True, help="Fetch a directory, or a bucket, with all it holds.")
@click.option("-n", "--no-clobber", is_flag=True, help="Never replace a file (else exit code 6).")
@click.option("--version-id", metavar="ID", help="This version instead of the current one.")
def get(source: Remote, target: str | None, recursive: bool, no_clobber: bool, version_id: str | None) -> None:
    """Fetch an object or a directory of objects into files.

    \b
      gateway get bucket/2026/report.csv             to ./report.csv
      gateway get bucket/2026/report.csv old/        to old/report.csv
      gateway get bucket/2026/report.csv - | wc      to standard output
      gateway get -r bucket/2026 photos              what is below 2026/, as photos/...
      gateway get -r bucket/2026                     to ./2026/...

    Missing directories are made. A file that is already there is replaced, all at once, when the new one is complete.
    """
    if recursive:
        if version_id is not None:
            raise click.UsageError("--version-id is for one object, without -r")
        if target == STANDARD_STREAM:
            raise click.UsageError("a directory of objects cannot go to standard output; name a directory")
    elif source.is_directory:
        raise click.UsageError(f"{source} is a directory; -r fetches all it holds")
    with_store(
        partial(_get, source=source, target=target, recursive=recursive, no_clobber=no_clobber, version_id=version_id)
    )


@click.command()
@common
@reading
@click.argument("sources", metavar="OBJECT...", type=remote_name, nargs=-1, required=True)
@click.option("--version-id", metavar="ID", help="This version instead of the current one.")
@click.option("--range", "part", metavar="RANGE", type=byte_range, help="Bytes: 0-99 (the first 100), 100-, -100.")
def cat(sources: tuple[Remote, ...], version_id: str | None, part: tuple[int, int | None] | None) -> None:
    """Write objects to standard output.

    Only verified bytes are written. Several objects are written one after the other.
    """
    if version_id is not None and len(sources) > 1:
        raise click.UsageError("--version-id is for one object")
    for source in sources:
        require_object(source)
    start, stop = part or (0, None)
    show = partial(to_standard_output, start=start, stop=stop)
    with_store(partial(_each_of, sources=sources, version_id=version_id, show=show))


@click.command()
@common
@reading
@click.argument("sources", metavar="OBJECT...", type=remote_name, nargs=-1, required=True)
@click.option("-n", "--lines", type=click.IntRange(0), default=10, show_default=True, help="So many lines.")
@click.option("-c", "--bytes", "count", type=click.IntRange(0), help="So many bytes instead.")
@click.option("--version-id", metavar="ID", help="This version instead of the current one.")
def head(sources: tuple[Remote, ...], lines: int, count: int | None, version_id: str | None) -> None:
    """Write the beginnings of objects to standard output.

    No more is read than is needed. Of several objects each one's name stands before it.
    """
    if version_id is not None and len(sources) > 1:
        raise click.UsageError("--version-id is for one object")
    for source in sources:
        require_object(source)
    show = partial(_first_lines, lines=lines) if count is None else partial(to_standard_output, stop=count)
    with_store(partial(_each_of, sources=sources, version_id=version_id, show=show, titled=len(sources) > 1))


async def _each_of(
    store: Store,
    *,
    sources: Sequence[Remote],
    version_id: str | None,
    show: Callable[[Store, ObjectVersion], Awaitable[None]],
    titled: bool = False,
) -> None:
    tally = Tally()
    for source in sources:
        try:
            version = await look_up_content(store, source, version_id)
            if titled:
                output.line(f"{chr(10) if tally.done else ''}==> {output.shown(str(source))} <==")
            await show(store, version)
            tally.succeeded()
        except Exception as error:
            if len(sources) == 1 or not errors.concerns_one_object(error):
                raise
            tally.failed(str(source), error)
    tally.finish()


async def _get(
    store: Store, *, source: Remote, target: str | None, recursive: bool, no_clobber: bool, version_id: str | None
) -> None:
    if recursive and await is_tree(store, source):
        await _get_tree(store, source, Path(source.name if target is None else target), no_clobber)
        return
    version = await look_up_content(store, source, version_id, hint="-r")
    if target == STANDARD_STREAM:
        await to_standard_output(store, version)
        return
    path = _file_for(source, target)
    if no_clobber:
        _refuse_existing(path)
    _make_directory(path.parent)
    with output.progress(path.name, version.size) as advance, errors.naming(path):
        await store.get_file(source.bucket, source.key, path, version_id=version.version_id, progress=advance)
    text = f"fetched {output.shown(str(path))}, {output.size_text(version.size)}, version {version.version_id}"
    output.emit(await output.version_record(store, version) | {"path": os.fspath(path)}, text)


def _file_for(source: Remote, target: str | None) -> Path:
    if target is None or target.endswith("/") or Path(target).is_dir():
        try:
            path = local_path_below(Path(target or "."), source.name)
        except ValueError as wrong:
            raise click.UsageError(str(wrong)) from None
    else:
        path = Path(target)
    if path.is_dir():
        raise click.UsageError(f"{path} is a directory where a file is due")
    return path


def _refuse_existing(path: Path) -> None:
    from objmeta.errors import AlreadyExists

    if os.path.lexists(path):
        raise AlreadyExists(f"{path} exists and was not replaced")


async def _get_tree(store: Store, source: Remote, root: Path, no_clobber: bool) -> None:
    _make_root(root)
    tally = Tally()
    large = asyncio.Semaphore(LARGE_AT_ONCE)
    prefix = source.as_directory().key
    with output.progress("get", None) as advance:

        async def fetch(item: ObjectSummary, path: Path) -> None:
            _make_directory(path.parent)
            with errors.naming(path):
                await store.get_file(item.bucket, item.key, path, version_id=item.version_id, progress=advance)

        async def work(item: ObjectSummary) -> None:
            relative = item.key.removeprefix(prefix)
            if not relative:
                return
            path = _path_below(root, relative)
            if relative.endswith("/"):
                _make_directory(path)
            else:
                if no_clobber:
                    _refuse_existing(path)
                if item.size > LARGE_BYTES:
                    async with large:
                        await fetch(item, path)
                else:
                    await fetch(item, path)
            tally.succeeded(item.size)
            advance.did()
            output.emit(output.summary_record(item) | {"path": os.fspath(path)})

        items = objects_below(store, source)
        await for_each(items, work, tally, name=object_name, found=lambda item: advance.expect(item.size))
    output.emit_text(f"fetched {output.count_text(tally.done, 'object')}, {output.size_text(tally.bytes)}, into {root}")
    tally.finish()


def _make_root(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise click.UsageError(f"{root} is a file where a directory is due")
    _make_directory(root)


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(path)) from None


def _path_below(root: Path, relative: str) -> Path:
    from objmeta.errors import InvalidArgument

    try:
        return local_path_below(root, relative)
    except ValueError as wrong:
        raise InvalidArgument(str(wrong)) from None


async def to_standard_output(store: Store, version: ObjectVersion, *, start: int = 0, stop: int | None = None) -> None:
    """Write bytes ``start`` to ``stop`` of a version, as they come; a negative start counts from the end."""
    if start < 0:
        start = max(0, version.size + start)
    descriptor = _output_descriptor()
    async with aclosing(store.stream(version, start, stop)) as blocks:
        async for block in blocks:
            await in_thread(_write_all, descriptor, block)


async def _first_lines(store: Store, version: ObjectVersion, *, lines: int) -> None:
    descriptor = _output_descriptor()
    # small steps at first: reading ahead is for those who want all
    start, step = 0, HEAD_BYTES
    while lines and start < version.size:
        block = await store.read(version, start, start + step)
        end = -1
        while lines and (end := block.find(b"\n", end + 1)) >= 0:
            lines -= 1
        await in_thread(_write_all, descriptor, block if lines else block[: end + 1])
        start, step = start + step, min(step * 4, HEAD_BYTES_MAX)


def _output_descriptor() -> int:
    with errors.writing_output():
        sys.stdout.flush()  # what was printed comes first
        return sys.stdout.fileno()


def _write_all(descriptor: int, block: bytes) -> None:
    rest = memoryview(block)
    with errors.writing_output():
        while rest:
            rest = rest[os.write(descriptor, rest) :]
