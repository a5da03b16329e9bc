"""``find`` and ``tree``: looking for objects, and at how they lie together."""

from __future__ import annotations

import fnmatch
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from gateway.cli import errors, output
from gateway.cli.options import common, current, reading
from gateway.cli.paths import Remote, remote_name
from gateway.cli.session import Tally, with_store
from gateway.cli.trees import PAGE, nothing_there, objects_below, versions_below
from gateway.cli.values import age_us, size

if TYPE_CHECKING:
    from gateway.data.transfer import Store
    from objmeta import ObjectSummary, ObjectVersion

    Test = Callable[[ObjectSummary], bool]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is looked for; None is "any"."""

    names: tuple[str, ...]
    paths: tuple[str, ...]
    larger: int | None
    smaller: int | None
    newer_us: int | None
    older_us: int | None
    metadata: tuple[tuple[str, str], ...]

    def test(self) -> Test:
        """Whether an object is wanted, by what a listing knows of it."""
        names, paths = _any_of(self.names), _any_of(self.paths)

        def wanted(item: ObjectSummary) -> bool:
            return (
                (names is None or names.match(Remote(item.bucket, item.key).name) is not None)
                and (paths is None or paths.match(item.key) is not None)
                and (self.larger is None or item.size > self.larger)
                and (self.smaller is None or item.size < self.smaller)
                and (self.newer_us is None or item.modified_us > self.newer_us)
                and (self.older_us is None or item.modified_us <= self.older_us)
            )

        return wanted

    def has_metadata(self, version: ObjectVersion) -> bool:
        """Whether it has all the metadata."""
        return all(
            name in version.metadata and fnmatch.fnmatchcase(version.metadata[name], glob)
            for name, glob in self.metadata
        )


def _any_of(globs: Sequence[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(map(fnmatch.translate, globs))) if globs else None


def _pairs(context: click.Context, parameter: click.Parameter, values: Sequence[str]) -> tuple[tuple[str, str], ...]:
    pairs = []
    for value in values:
        name, found, glob = value.partition("=")
        if not name:
            raise click.UsageError(f"--meta {value!r} is not NAME=GLOB", context)
        pairs.append((name, glob if found else "*"))
    return tuple(pairs)


@click.command()
@common
@reading
@click.argument("targets", metavar="NAME...", type=remote_name, nargs=-1, required=True)
@click.option("--name", "names", metavar="GLOB", multiple=True, help="The last part of the key matches; repeatable.")
@click.option("--path", "paths", metavar="GLOB", multiple=True, help="The whole key matches (* matches /, too).")
@click.option("--larger", type=size, metavar="SIZE", help="More bytes than this: 1000, 10K, 1.5M.")
@click.option("--smaller", type=size, metavar="SIZE", help="Fewer bytes than this.")
@click.option("--newer-than", "newer_us", type=age_us, metavar="AGE", help="Stored after that: 90m, 2h, 7d, or a time.")
@click.option("--older-than", "older_us", type=age_us, metavar="AGE", help="Stored before that.")
@click.option("--meta", "metadata", metavar="NAME=GLOB", multiple=True, callback=_pairs, help="Has such metadata.")
@click.option("-0", "--print0", "nul", is_flag=True, help="End names with a NUL, for xargs -0.")
def find(targets: tuple[Remote, ...], nul: bool, **wanted: Any) -> None:
    """Find objects by name, size, age or metadata.

    \b
      gateway find bucket --name '*.csv' --larger 10M
      gateway find bucket/logs --older-than 30d -0 | xargs -0 gateway rm

    Prints bucket/key, one a line. All conditions have to be met; of several --name (or --path) one is enough.
    """
    if nul and current().json:
        raise click.UsageError("--print0 and --json exclude each other")
    with_store(partial(_find, targets=targets, nul=nul, wanted=_Wanted(**wanted)))


async def _find(store: Store, *, targets: Sequence[Remote], nul: bool, wanted: _Wanted) -> None:
    tally = Tally()
    test = wanted.test()
    for target in targets:
        try:
            if not await _find_below(store, target, nul, test, wanted):
                raise nothing_there(target)
            tally.succeeded()
        except Exception as error:
            if len(targets) == 1 or not errors.concerns_one_object(error):
                raise
            tally.failed(str(target), error)
    tally.finish()


async def _find_below(store: Store, target: Remote, nul: bool, test: Test, wanted: _Wanted) -> bool:
    from objmeta.errors import NoSuchKey

    found = not target.key
    if not target.is_directory:
        try:
            itself = await store.client.get_object(target.bucket, target.key, with_data=False)
        except NoSuchKey:
            pass
        else:
            found = True
            if test(itself) and wanted.has_metadata(itself):
                _show(itself, nul)
    if wanted.metadata:
        async for version in versions_below(store, target):
            if version.is_latest and not version.is_delete_marker:
                found = True
                if test(version) and wanted.has_metadata(version):
                    _show(version, nul)
    else:
        async for item in objects_below(store, target):
            found = True
            if test(item):
                _show(item, nul)
    return found


def _show(item: ObjectSummary, nul: bool) -> None:
    name = f"{item.bucket}/{item.key}"
    if nul:
        with errors.writing_output():
            sys.stdout.write(name + "\0")
    else:
        output.answer(output.summary_record(item), output.shown(name))


# -- tree -------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Drawing:
    """How a tree is drawn, and what was counted."""

    depth_max: int | None
    directories_only: bool
    sizes: bool
    human: bool
    strokes: tuple[str, str, str, str]
    directories: int = 0
    objects: int = 0
    bytes: int = 0


@click.command()
@common
@reading
@click.argument("target", metavar="NAME", type=remote_name)
@click.option("-L", "--depth", type=click.IntRange(1), help="Only so many levels.")
@click.option("-d", "--directories", is_flag=True, help="Directories only.")
@click.option("-s", "--sizes", is_flag=True, help="With sizes.")
@click.option("-h", "--human-readable", "human", is_flag=True, help="Sizes as 1.5K, 2.0M.")
def tree(target: Remote, depth: int | None, directories: bool, sizes: bool, human: bool) -> None:
    """Draw a directory of objects as a tree.

    Only what is shown is listed: -L 1 of a large bucket is quick.
    """
    plain = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    strokes = ("|-- ", "`-- ", "|   ", "    ") if plain else ("├── ", "└── ", "│   ", "    ")
    drawing = _Drawing(depth, directories, sizes or human, human, strokes)
    with_store(partial(_tree, target=target.as_directory(), drawing=drawing))


async def _tree(store: Store, *, target: Remote, drawing: _Drawing) -> None:
    page = await store.client.list_objects(target.bucket, target.key, limit=1)
    if not page.objects and target.key:
        raise nothing_there(target)
    if not current().json:
        output.line(output.shown(str(target)))
    await _branch(store, target, drawing, "", 1)
    counts = [output.count_text(drawing.directories, "directory", "directories")]
    if not drawing.directories_only:
        counts.append(output.count_text(drawing.objects, "object"))
        if drawing.sizes:
            counts.append(output.size_text(drawing.bytes, drawing.human))
    output.emit_text(", ".join(counts))


async def _branch(store: Store, target: Remote, drawing: _Drawing, indent: str, depth: int) -> None:
    entries: list[ObjectSummary | str] = []
    continuation: str | None = None
    while True:
        page = await store.client.list_objects(
            target.bucket, target.key, delimiter="/", continuation=continuation, limit=PAGE
        )
        entries.extend(page.prefixes)
        if not drawing.directories_only:
            entries.extend(item for item in page.objects if item.key != target.key)
        continuation = page.continuation
        if continuation is None:
            break
    entries.sort(key=lambda entry: entry if isinstance(entry, str) else entry.key)
    for index, entry in enumerate(entries, 1):
        tee, corner, bar, space = drawing.strokes
        last = index == len(entries)
        stroke = indent + (corner if last else tee)
        if isinstance(entry, str):
            drawing.directories += 1
            record = {"bucket": target.bucket, "prefix": entry, "depth": depth}
            output.answer(record, stroke + output.shown(entry.removeprefix(target.key)))
            if drawing.depth_max is None or depth < drawing.depth_max:
                below = Remote(target.bucket, entry)
                await _branch(store, below, drawing, indent + (space if last else bar), depth + 1)
        else:
            drawing.objects += 1
            drawing.bytes += entry.size
            size = f"[{output.size_text(entry.size, drawing.human):>8}]  " if drawing.sizes else ""
            text = f"{stroke}{size}{output.shown(entry.key.removeprefix(target.key))}"
            output.answer(output.summary_record(entry) | {"depth": depth}, text)
