"""``watch``: changes as they happen, from the store's change feed.

The feed says which objects changed, and all their versions; which of these are news is told by their numbers, or for an
object that was not seen before by their times: nothing from before the watch began, but the newest if it is so young
that another machine's clock may have been behind.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click

from gateway.cli import errors, output
from gateway.cli.options import common, current
from gateway.cli.paths import Remote, remote_name
from gateway.cli.session import with_store

if TYPE_CHECKING:
    from gateway.data.transfer import Store
    from objmeta import ChangedObject

SEEN_MAX: Final = 100_000
"""Of so many objects it is known how far they have been shown."""
CLOCKS_US: Final = 60_000_000
"""How far behind a clock may be."""


@click.command()
@common
@click.argument("targets", metavar="[NAME...]", type=remote_name, nargs=-1)
@click.option("--interval", type=click.FloatRange(0.01), default=1.0, show_default=True, help="Seconds between looks.")
@click.option("--count", type=click.IntRange(1), help="End after so many changes.")
def watch(targets: tuple[Remote, ...], interval: float, count: int | None) -> None:
    """Show changes as they happen.

    \b
      gateway watch                           everything
      gateway watch bucket/logs other         what is below logs/, and another bucket
      gateway watch --json bucket | while read -r line; do ...

    Columns: time (UTC), what happened, size, version and name. An object is put or deleted, or a version of it removed
    for good. Changes that are seen at one look come in order of time, and those of each object always in their order.
    None that was acknowledged is left out but the first that is seen of an object, if the clock of whoever made it is
    more than a minute behind. Ctrl-C ends it.

    A store that does not answer is asked again.
    """
    with_store(partial(_watch, targets=targets, interval_s=interval, count=count))


async def _watch(store: Store, *, targets: Sequence[Remote], interval_s: float, count: int | None) -> None:
    from gateway.cli.app import say
    from objmeta.errors import Unavailable

    for target in targets:
        await store.client.bucket(target.bucket)
    news = _News(time.time_ns() // 1000)
    cursor = (await store.client.changes()).cursor
    if not current().quiet:
        say(f"watching {', '.join(output.shown(str(target)) for target in targets) or 'everything'}; Ctrl-C ends it")
    answered = True
    while True:
        try:
            page = await store.client.changes(cursor)
        except Unavailable as failure:
            if answered:
                say(f"{errors.sentence(failure)}; it is asked again")
            answered = False
            await asyncio.sleep(interval_s)
            continue
        answered, cursor = True, page.cursor
        if page.reload:
            say("changes were missed: there were too many at once, or members of the cluster have changed")
        found = [
            each
            for changed in page.objects
            if not targets or any(_is_below(changed, target) for target in targets)
            for each in news.of(changed)
        ]
        for _, record in sorted(found, key=lambda each: each[0]):
            _show(record)
            count = None if count is None else count - 1
            if count == 0:
                return
        with errors.writing_output():
            sys.stdout.flush()
        if not page.more:
            await asyncio.sleep(interval_s)


def _is_below(changed: ChangedObject, target: Remote) -> bool:
    if changed.bucket != target.bucket:
        return False
    return changed.key == target.key or changed.key.startswith(target.as_directory().key)


class _News:
    """What of an object has not been shown yet."""

    def __init__(self, began_us: int) -> None:
        self._began_us = began_us
        self._seen: OrderedDict[tuple[str, str], int] = OrderedDict()

    def of(self, changed: ChangedObject) -> Iterator[tuple[tuple[int, str, str], dict[str, Any]]]:
        """Its changes, the oldest first, as records, each with its place among those of other objects.

        The place is by time, but never before an earlier change of the object, whose clock may have been ahead.
        """
        events: list[tuple[int, int, dict[str, Any]]] = []
        for version in changed.versions:
            event = "delete" if version.is_delete_marker else "put"
            record = {"event": event} | output.summary_record(version)
            events.append((version.sequence, version.modified_us, record))
        for removal in changed.removals:
            record = {
                "event": "remove",
                "bucket": changed.bucket,
                "key": changed.key,
                "version_id": removal.version_id,
                "sequence": removal.sequence,
                "last_modified": output.iso_text(removal.removed_us),
            }
            events.append((removal.sequence, removal.removed_us, record))
        events.sort(key=lambda event: event[0])
        name = (changed.bucket, changed.key)
        seen = self._seen.pop(name, None)
        latest_us = 0
        for index, (sequence, at_us, record) in enumerate(events, 1):
            since_us = self._began_us - (CLOCKS_US if index == len(events) else 0)
            latest_us = max(latest_us, at_us)
            if sequence > seen if seen is not None else at_us >= since_us:
                yield (latest_us, *name), record
        if events:
            self._seen[name] = max(events[-1][0], seen or 0)
            while len(self._seen) > SEEN_MAX:
                self._seen.popitem(last=False)


def _show(record: dict[str, Any]) -> None:
    size = record.get("size")
    columns = (
        record["last_modified"][:19] + "Z",
        f"{record['event']:<6}",
        f"{'-' if size is None or record['event'] == 'delete' else size:>12}",
        record["version_id"],
        output.shown(str(Remote(record["bucket"], record["key"]))),
    )
    output.answer(record, "  ".join(columns))
