"""``diff``: what differs between two versions of an object, or two objects: line by line for text, else in figures."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click

from gateway.cli import errors, output
from gateway.cli.options import common, current, reading
from gateway.cli.paths import Remote, remote_name, require_object
from gateway.cli.session import with_store
from gateway.cli.trees import explained, look_up

if TYPE_CHECKING:
    from gateway.data.transfer import Store
    from objmeta import ObjectVersion

TEXT_BYTES_MAX: Final = 4 << 20
"""Comparing lines takes memory and time that grow faster than the texts; longer ones are compared as bytes."""
_BLOCK_BYTES: Final = 4 << 20
_COLORS: Final = {"-": "red", "+": "green", "@": "cyan"}


@dataclass(frozen=True, slots=True)
class _Side:
    """One of the two: ``version`` None, or a delete marker, is nothing."""

    remote: Remote
    version: ObjectVersion | None

    @property
    def is_nothing(self) -> bool:
        return self.version is None or self.version.is_delete_marker

    @property
    def size(self) -> int:
        return 0 if self.version is None else self.version.size

    @property
    def title(self) -> str:
        if self.version is None:
            return "/dev/null"
        what = f"{self.remote} {self.version.version_id} {output.time_text(self.version.modified)}"
        return f"{what} (delete marker)" if self.version.is_delete_marker else what


@click.command()
@common
@reading
@click.argument("target", metavar="OBJECT", type=remote_name)
@click.argument("other", metavar="[OBJECT]", type=remote_name, required=False)
@click.option("--from", "old", metavar="ID", help="The first version; default: the one before the second.")
@click.option("--to", "new", metavar="ID", help="The second version; default: the current one.")
@click.option("-U", "--unified", "context", type=click.IntRange(0), default=3, show_default=True, help="Lines around.")
def diff(target: Remote, other: Remote | None, old: str | None, new: str | None, context: int) -> None:
    """Show what differs between two versions, or two objects.

    \b
      gateway diff bucket/notes.txt                    the last change
      gateway diff bucket/notes.txt --from ID --to ID
      gateway diff bucket/notes.txt bucket/other.txt
      gateway diff bucket/notes.txt --as-of 2d         the last change by then

    Text in UTF-8 of up to 4 MiB is compared line by line, in a form that patch understands. Of anything else it says
    the sizes, where the first difference is, and how much of the content the two have in common in storage.
    """
    require_object(target)
    if other is not None:
        require_object(other)
    with_store(partial(_diff, target=target, other=other, old=old, new=new, context=context))


async def _diff(
    store: Store, *, target: Remote, other: Remote | None, old: str | None, new: str | None, context: int
) -> None:
    left, right = await _sides(store, target, other, old, new)
    same = left.is_nothing == right.is_nothing and (left.is_nothing or _etag(left) == _etag(right))
    record: dict[str, Any] = {"same": same}
    for name, side in (("from", left), ("to", right)):
        record |= {
            f"{name}_key": side.remote.key,
            f"{name}_version_id": None if side.version is None else side.version.version_id,
            f"{name}_size": None if side.is_nothing else side.size,
        }
    texts = None if same else await _texts(store, left, right)
    if texts is not None:
        lines = list(_unified(left, right, *texts, context))
        record |= {
            "is_text": True,
            "lines_added": sum(line.startswith("+") for line in lines[2:]),
            "lines_removed": sum(line.startswith("-") for line in lines[2:]),
        }
        if current().json:
            output.emit(record)
        else:
            _print(lines)
        return
    record["is_text"] = False
    if same:
        output.answer(record, f"{left.title} and {right.title} have the same content")
        return
    position = await _first_difference(store, left, right)
    shared = await _shared_bytes(store, left, right)
    record |= {"first_difference": position, "shared_bytes": shared}
    text = (
        f"{output.shown(left.title)}: {output.count_text(left.size, 'byte')}\n"
        f"{output.shown(right.title)}: {output.count_text(right.size, 'byte')}\n"
        f"the contents differ from byte {position} on; {output.count_text(shared, 'byte')} are stored once for both"
    )
    output.answer(record, text)


async def _sides(
    store: Store, target: Remote, other: Remote | None, old: str | None, new: str | None
) -> tuple[_Side, _Side]:
    if other is not None:
        left = _Side(target, await look_up(store, target, old))
        return left, _Side(other, await look_up(store, other, new))
    from objmeta.errors import NoSuchKey, NoSuchVersion

    try:
        history = await store.client.versions(target.bucket, target.key)
    except NoSuchKey as missing:
        raise await explained(store, target, missing) from None

    def index(version_id: str) -> int:
        for number, version in enumerate(history):
            if version.version_id == version_id:
                return number
        raise NoSuchVersion(f"{target} has no version {version_id}; 'gateway versions' lists them")

    second = 0 if new is None else index(new)
    first = second + 1 if old is None else index(old)
    return _Side(target, history[first] if first < len(history) else None), _Side(target, history[second])


def _etag(side: _Side) -> str:
    assert side.version is not None, "there is something"
    return side.version.etag


async def _texts(store: Store, left: _Side, right: _Side) -> tuple[str, str] | None:
    """Both contents if they are text that may be compared line by line."""
    if max(left.size, right.size) > TEXT_BYTES_MAX:
        return None
    found = []
    for side in (left, right):
        data = b"" if side.is_nothing or side.version is None else await store.read(side.version)
        if b"\0" in data:
            return None
        try:
            found.append(data.decode())
        except UnicodeDecodeError:
            return None
    return found[0], found[1]


def _unified(left: _Side, right: _Side, old: str, new: str, context: int) -> Iterator[str]:
    old_title, new_title = ("/dev/null" if side.is_nothing else side.title for side in (left, right))
    lines = difflib.unified_diff(_lines(old), _lines(new), old_title, new_title, n=context)
    for line in lines:
        yield line.removesuffix("\n")
        if not line.endswith("\n"):
            yield "\\ No newline at end of file"


def _lines(text: str) -> list[str]:
    # not splitlines(): that breaks lines at form feeds and at characters far from ASCII as well
    parts = text.split("\n")
    return [part + "\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def _print(lines: list[str]) -> None:
    colored = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    with errors.writing_output():
        for line in lines:
            text = output.shown(line.replace("\t", "    ") if sys.stdout.isatty() else line)
            color = _COLORS.get(line[:1]) if colored else None
            sys.stdout.write((click.style(text, fg=color) if color else text) + "\n")


async def _first_difference(store: Store, left: _Side, right: _Side) -> int:
    """Where the first byte differs, or one of the two ends."""
    common = min(left.size, right.size)
    position = await _shared_start(store, left, right)
    while position < common:
        blocks = []
        for side in (left, right):
            assert side.version is not None, "it has content"
            blocks.append(await store.read(side.version, position, min(position + _BLOCK_BYTES, common)))
        if blocks[0] != blocks[1]:
            return position + next(at for at, (a, b) in enumerate(zip(*blocks, strict=True)) if a != b)
        position += len(blocks[0])
    return common


async def _shared_start(store: Store, left: _Side, right: _Side) -> int:
    """How long the chunks are that both begin with: these need not be read."""
    position = 0
    for ours, theirs in zip(await _chunks(store, left), await _chunks(store, right), strict=False):
        if ours != theirs:
            break
        position += ours.length
    return position


async def _shared_bytes(store: Store, left: _Side, right: _Side) -> int:
    theirs = set(await _chunks(store, right))
    return sum(chunk.length for chunk in await _chunks(store, left) if chunk in theirs)


async def _chunks(store: Store, side: _Side) -> Any:
    return () if side.is_nothing or side.version is None else await store.chunks_of(side.version)
