"""What commands print: one JSON object a line for programs, short lines for people.

Names in JSON are S3's, the same as the columns of ``gateway sql``.  Times are UTC.
"""

from __future__ import annotations

import datetime
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TextIO

from gateway.cli.errors import writing_output
from gateway.cli.options import current

if TYPE_CHECKING:
    from gateway.data.transfer import Store
    from objmeta import Bucket, ObjectSummary, ObjectVersion
    from objmeta.client import NodeStatus

Advance = Callable[[int], None]
"""Told how many bytes more have been moved."""

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
BAR_FROM_BYTES: Final = 8 * 1024 * 1024
_BAR_AFTER_S: Final = 0.5


def emit(record: Mapping[str, Any], text: str | None = None) -> None:
    """Print ``record`` with ``--json``, else ``text`` unless ``--quiet`` or None. For what a command did."""
    options = current()
    if options.json:
        line(json_text(record))
    elif text is not None and not options.quiet:
        line(text)


def emit_text(text: str) -> None:
    """Print a line for people only, such as a total."""
    options = current()
    if not options.json and not options.quiet:
        line(text)


def answer(record: Mapping[str, Any], text: str) -> None:
    """The same for what a command was asked: ``--quiet`` does not silence it."""
    line(json_text(record) if current().json else text)


def line(text: str) -> None:
    """Print a line."""
    with writing_output():
        sys.stdout.write(text + "\n")


def json_text(record: Mapping[str, Any], stream: TextIO | None = None) -> str:
    """One line of JSON, in a form the stream (default: standard output) can carry."""
    plain = ((stream or sys.stdout).encoding or "").lower().replace("-", "") != "utf8"
    return json.dumps(record, ensure_ascii=plain, default=str)


def rows(cells: Sequence[Sequence[str]], right: Sequence[int] = ()) -> Iterator[str]:
    """Lines with aligned columns; ``right`` are the columns aligned to the right."""
    if not cells:
        return
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        padded = (
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(padded).rstrip()


def shown(name: str, stream: TextIO | None = None) -> str:
    """A name as a terminal may see it: control characters are written out, so that no key can move the cursor.

    ``stream`` is where it goes (default: standard output); what is no terminal gets the name as it is.
    """
    is_terminal = (stream or sys.stdout).isatty()
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", name) if is_terminal else name


def size_text(size: int, human: bool = True) -> str:
    """``1536`` as ``1.5K`` for people, or as it is."""
    if not human or size < 1024:
        return str(size)
    amount = float(size)
    for unit in "KMGTPE":
        amount /= 1024
        if amount < 999.5 or unit == "E":
            break
    return f"{amount:.1f}{unit}" if amount < 99.95 else f"{amount:.0f}{unit}"


def time_text(modified: datetime.datetime) -> str:
    """A time in UTC, to the second."""
    return modified.strftime("%Y-%m-%dT%H:%M:%SZ")


def iso_text(moment_us: int) -> str:
    """Microseconds since the epoch as JSON has them: ISO 8601, in UTC."""
    return (datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(microseconds=moment_us)).isoformat()


def count_text(number: int, noun: str, plural: str = "") -> str:
    """``1 file``, ``2 files``; ``plural`` where that is not the noun with an s."""
    return f"{number} {noun}" if number == 1 else f"{number} {plural or noun + 's'}"


def quorum_text(quorum: bool, nodes: Sequence[NodeStatus]) -> str:
    """``quorum: yes (2 of 3 nodes up)``."""
    up = sum(node.state == "up" for node in nodes)
    return f"quorum: {'yes' if quorum else 'no'} ({up} of {count_text(len(nodes), 'node')} up)"


def bucket_record(bucket: Bucket) -> dict[str, Any]:
    """What is known of a bucket."""
    return {
        "bucket": bucket.name,
        "bucket_id": bucket.bucket_id.hex(),
        "term": bucket.term,
        "creation_date": bucket.created.isoformat(),
        "replicas": bucket.settings.replicas,
        "keep_versions": bucket.settings.keep_versions,
        "keep_days": bucket.settings.keep_days,
        "expire_delete_markers": bucket.settings.expire_delete_markers,
    }


def summary_record(item: ObjectSummary) -> dict[str, Any]:
    """What a listing knows of a version."""
    return {
        "bucket": item.bucket,
        "key": item.key,
        "version_id": item.version_id,
        "sequence": item.sequence,
        "size": item.size,
        "etag": item.etag,
        "last_modified": item.modified.isoformat(),
        "is_delete_marker": item.is_delete_marker,
    }


async def version_record(store: Store, item: ObjectVersion) -> dict[str, Any]:
    """All that is known of a version, but its chunks' digests.

    ``chunk_count`` is None if there are so many that they are listed in chunks, and these cannot be read now.
    """
    from objmeta.errors import IntegrityError, Unavailable

    try:
        chunk_count = len(await store.chunks_of(item))
    except (Unavailable, IntegrityError):
        chunk_count = None
    return summary_record(item) | {
        "is_latest": item.is_latest,
        "content_type": item.content_type,
        "metadata": item.metadata,
        "parent_version_id": item.parent_version_id,
        "is_inline": item.is_inline,
        "chunk_count": chunk_count,
    }


class Progress:
    """What a command says of how far it is: bytes that were moved, things that were done, and how much there will be.

    Calling it says how many bytes more have been moved.  This one shows nothing.
    """

    def __call__(self, count: int) -> None:
        """So many bytes more have been moved."""

    def expect(self, size: int) -> None:
        """One thing more is to be done, of ``size`` bytes."""

    def did(self) -> None:
        """One thing more is done."""

    def reached(self, done: int) -> None:
        """So much is done by now, of what the bar shows. May be called from any thread."""


class _Bar(Progress):
    def __init__(self, bar: Any, title: str, total: int | None) -> None:
        self._bar = bar
        self._title = shown(title)
        self._total = total
        self._things = self._done = 0
        self._task = bar.add_task(self._title, total=total)

    def __call__(self, count: int) -> None:
        self._bar.advance(self._task, count)

    def expect(self, size: int) -> None:
        self._things += 1
        self._total = (self._total or 0) + size
        self._bar.update(self._task, total=self._total)

    def did(self) -> None:
        self._done += 1
        self._bar.update(self._task, description=f"{self._title} {self._done:,} of {self._things:,}")

    def reached(self, done: int) -> None:
        self._bar.update(self._task, completed=done)


class _CountBar(Progress):
    """Counts things, not bytes."""

    def __init__(self, bar: Any, title: str, noun: str) -> None:
        self._bar = bar
        self._noun = noun
        self._began_s = time.monotonic()
        self._things = self._done = 0
        self._task = bar.add_task(shown(title), total=None, counts=self._counts(), rate="")

    def expect(self, size: int) -> None:
        self._things += 1
        self._bar.update(self._task, total=self._things, counts=self._counts())

    def did(self) -> None:
        self.reached(self._done + 1)

    def reached(self, done: int) -> None:
        self._done = done
        rate = f"{done / max(time.monotonic() - self._began_s, 0.001):,.0f}/s"
        self._bar.update(self._task, completed=done, counts=self._counts(), rate=rate)

    def _counts(self) -> str:
        of = f" of {self._things:,}" if self._things else ""
        return f"{self._done:,}{of} {self._noun}"


@contextmanager
def progress(title: str, total: int | None) -> Iterator[Progress]:
    """A bar on standard error, if that is a terminal and there is much to move.

    ``total`` is in bytes; None: it is not known, or :meth:`Progress.expect` says it bit by bit.
    """
    if _is_silent() or (total is not None and total < BAR_FROM_BYTES):
        yield Progress()
        return
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with _bars(columns, 0 if total is not None else _BAR_AFTER_S) as bars:
        yield _Bar(bars, title, total)


@contextmanager
def counting(title: str, noun: str = "objects") -> Iterator[Progress]:
    """The same for work that is counted in things, and takes long."""
    if _is_silent():
        yield Progress()
        return
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[counts]}", markup=False),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeRemainingColumn(),
    )
    with _bars(columns, _BAR_AFTER_S) as bars:
        yield _CountBar(bars, title, noun)


def _is_silent() -> bool:
    options = current()
    return options.json or options.quiet or options.no_progress or not sys.stderr.isatty()


@contextmanager
def _bars(columns: Sequence[Any], after_s: float) -> Iterator[Any]:
    """Bars that show themselves if this takes longer than ``after_s``."""
    from rich.console import Console
    from rich.progress import Progress as Bars

    # what is printed meanwhile goes above the bar, but never to another place than without one
    bars = Bars(*columns, console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty())
    timer = threading.Timer(after_s, bars.start)
    timer.daemon = True
    timer.start() if after_s else bars.start()
    try:
        yield bars
    finally:
        timer.cancel()
        if after_s:
            timer.join()
        bars.stop()
