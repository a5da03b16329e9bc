"""``gc``: take away what nothing needs any more."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import click

from gateway.cli import errors, output
from gateway.cli.app import say
from gateway.cli.options import common
from gateway.cli.session import following, with_store

if TYPE_CHECKING:
    from gateway.collection.cycles import Cycled
    from gateway.collection.retention import Retained
    from gateway.data.transfer import Store
    from objmeta.client import Collected

_ANSWER_S: Final = 1.0
_GRACE_S: Final = 5.0


@click.command()
@common
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option(
    "--grace",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=_GRACE_S,
    show_default=True,
    help="The time that programs at work have between two steps.",
)
def gc(dry_run: bool, grace: float) -> None:
    """Erase for good what was deleted, and free its space, now.

    First, versions that the rules of their bucket let go are removed (see 'gateway bucket set').

    Removed objects and buckets leave traces, so that nothing that was on its way can bring them back, and their data
    stays for a while, for whoever is reading it. Nodes take both away in the background, some hours later; a store in
    directories has nobody who does, so they stay until this command is run. All nodes, or disks, must be up. The exit
    code is 5 if one is not, or if something else kept it from finishing.

    Uploads in parts that were begun more than a week ago and never completed are forgotten, too.

    Whatever is written meanwhile is safe. A read of something that is removed while this runs may fail.
    """
    if dry_run:
        _end((), with_store(_plan).problem)
        return
    retained, found, cycled = with_store(lambda store: _collect(store, grace))
    if retained.removed:
        what = f"{output.count_text(retained.removed, 'version')}, {output.size_text(retained.removed_bytes)}"
        output.emit_text(f"removed {what}, by the rules of their buckets")
    unreachable = tuple(found.unreachable) or (cycled.unreachable if cycled else ())
    problem = found.problem or retained.problem or (cycled.problem if cycled else "")
    record = {
        "versions_removed": retained.removed,
        "versions_removed_bytes": retained.removed_bytes,
        "versions_left": retained.failed,
        "registers_erased": found.erased,
        "registers_left": found.left,
        "copies_deleted": cycled.deleted if cycled else 0,
        "copies_deleted_bytes": cycled.deleted_bytes if cycled else 0,
        "copies_left": cycled.waiting if cycled else 0,
        "waiting_for": list(unreachable),
        "problem": problem,
    }
    text = f"erased {output.count_text(found.erased, 'register')}"
    output.emit(record, f"{text}, {found.left} could not be erased yet" if found.left else text)
    if cycled is not None:
        left = f", {cycled.waiting} are in use still" if cycled.waiting else ""
        output.emit_text(f"deleted {_copies(cycled)}{left}")
    _end(unreachable, problem)


def _copies(cycled: Cycled) -> str:
    copies = output.count_text(cycled.deleted, "copy of a chunk", "copies of chunks")
    return f"{copies}, {output.size_text(cycled.deleted_bytes)}"


def _end(unreachable: tuple[int, ...], problem: str) -> None:
    if unreachable:
        nodes = f"node{'s' * (len(unreachable) > 1)} {', '.join(map(str, unreachable))}"
        say(f"waiting for {nodes}: nothing can be erased while a node is away")
    elif problem:
        say(f"stopped early: {problem}")
    else:
        return
    raise click.exceptions.Exit(errors.UNAVAILABLE)


async def _plan(store: Store) -> Cycled:
    from gateway.collection.collectors import workers_of
    from gateway.collection.cycles import run_cycle
    from gateway.collection.retention import Retention

    count = size = 0
    async for version in Retention(store.client).plan():
        output.emit(output.summary_record(version))
        output.emit_text(f"{output.shown(f'{version.bucket}/{version.key}')}  {version.version_id}")
        count, size = count + 1, size + version.size
    output.emit_text(f"{output.count_text(count, 'version')}, {output.size_text(size)}, would be removed")
    async with workers_of(store) as meet:
        cycled = await run_cycle(store.client, meet, trial=True)
    record = {"copies_unused": cycled.deleted, "copies_unused_bytes": cycled.deleted_bytes}
    output.emit(record, f"{_copies(cycled)}, that nothing uses any more, would be deleted")
    return cycled


async def _collect(store: Store, grace_s: float) -> tuple[Retained, Collected, Cycled | None]:
    from gateway.collection.collectors import workers_of
    from gateway.collection.cycles import run_cycles
    from gateway.collection.retention import Retained, Retention

    retained = Retained()
    found: Collected | None = None
    cycles: list[Cycled] = []

    def copies() -> int:
        return sum(cycle.deleted for cycle in cycles)

    try:
        with output.counting("gc: rules of buckets", "versions") as progress:
            async with following(progress, lambda: retained.removed):
                await Retention(store.client).apply(retained)
        await store.client.conclude_transactions()
        with output.counting("gc: what was deleted", "registers") as progress:
            found = await store.client.collect(timeout_s=_ANSWER_S)
            while not found.done:
                progress.reached(found.erased)
                found = await store.client.collect(found.run, _ANSWER_S)
        if found.unreachable:
            return retained, found, None
        with output.counting("gc: chunks", "copies") as progress:
            async with workers_of(store) as meet, following(progress, copies):
                cycled = await run_cycles(store.client, meet, grace_s=grace_s, on_cycle=cycles.append)
        return retained, found, cycled
    except asyncio.CancelledError:
        erased = found.erased if found is not None else 0
        _say_so_far(retained.removed, erased, copies())
        raise


def _say_so_far(versions: int, registers: int, copies: int) -> None:
    counts = (
        f"{output.count_text(versions, 'version')} removed, {output.count_text(registers, 'register')} erased and "
        f"{output.count_text(copies, 'copy of a chunk', 'copies of chunks')} deleted by then"
    )
    text = f"{counts}; the same command, given again, does the rest"
    record = {"versions_removed": versions, "registers_erased": registers, "copies_deleted": copies}
    say(text, {"message": text} | record)
