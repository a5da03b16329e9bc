"""``gc``: take away what nothing needs any more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from gateway.cli import errors, output
from gateway.cli.app import say
from gateway.cli.options import common
from gateway.cli.session import with_store

if TYPE_CHECKING:
    from gateway.retention import Retained
    from gateway.transfer import Store
    from objmeta.client import Collected

_ANSWER_S: Final = 5.0


@click.command()
@common
@click.option("--dry-run", is_flag=True, help="Only say which versions the rules of their buckets let go.")
def gc(dry_run: bool) -> None:
    """Erase for good what was deleted, now.

    First, versions that the rules of their bucket let go are removed (see 'gateway bucket set').

    Removed objects and buckets leave traces, so that nothing that was on its way can bring them back. Nodes erase these
    in the background, an hour or two later; a store in a directory does so with this command alone. All nodes must be
    up. The exit code is 5 if one is not, or if something else kept it from finishing.
    """
    if dry_run:
        with_store(_plan)
        return
    retained, found = with_store(_collect)
    if retained.removed:
        what = f"{output.count_text(retained.removed, 'version')}, {output.size_text(retained.removed_bytes)}"
        output.emit_text(f"removed {what}, by the rules of their buckets")
    record = {
        "versions_removed": retained.removed,
        "versions_removed_bytes": retained.removed_bytes,
        "versions_left": retained.failed,
        "registers_erased": found.erased,
        "registers_left": found.left,
        "waiting_for": list(found.unreachable),
        "problem": found.problem or retained.problem,
    }
    text = f"erased {output.count_text(found.erased, 'register')}"
    output.emit(record, f"{text}, {found.left} could not be erased yet" if found.left else text)
    if found.unreachable:
        nodes = f"node{'s' * (len(found.unreachable) > 1)} {', '.join(map(str, found.unreachable))}"
        say(f"waiting for {nodes}: nothing can be erased while a node is away")
    elif found.problem or retained.problem:
        say(f"stopped early: {found.problem or retained.problem}")
    else:
        return
    raise click.exceptions.Exit(errors.UNAVAILABLE)


async def _plan(store: Store) -> None:
    from gateway.retention import Retention

    count = size = 0
    async for version in Retention(store.client).plan():
        output.emit(output.summary_record(version))
        output.emit_text(f"{output.shown(f'{version.bucket}/{version.key}')}  {version.version_id}")
        count, size = count + 1, size + version.size
    output.emit_text(f"{output.count_text(count, 'version')}, {output.size_text(size)}, would be removed")


async def _collect(store: Store) -> tuple[Retained, Collected]:
    from gateway.retention import Retention

    retained = await Retention(store.client).apply()
    found = await store.client.collect(timeout_s=_ANSWER_S)
    while not found.done:
        found = await store.client.collect(found.run, _ANSWER_S)
    return retained, found
