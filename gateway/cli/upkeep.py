"""``repair``, ``scrub`` and ``fsck``: look after the data that is stored.

A cluster's nodes do the first two by themselves, each for its own share; these commands have them do it now and watch.
In a store of one directory or several disks they do the work.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click

from gateway.cli import errors, output
from gateway.cli.options import common, current
from gateway.cli.session import LOOK_S, following, with_store

if TYPE_CHECKING:
    from gateway.data.transfer import Store
    from gateway.upkeep.checking import Checker, Counts, Finding
    from gateway.upkeep.runs import Run
    from gateway.upkeep.stores import NodePlace, Places

_PATIENCE_S: Final = 10.0
_no_wait: Final = click.option("--no-wait", is_flag=True, help="Return when the nodes have begun.")


@click.command()
@common
@_no_wait
def repair(no_wait: bool) -> None:
    """Have every node fetch what it should have and lacks, now.

    Nodes do so by themselves when members come, go or come back, and once an hour. Copies that a node holds in another
    one's stead go when that one has taken over. With several disks, each is given what the others have.

    The exit code is 1 if something is still missing, 5 if no node answers.
    """
    with_store(lambda store: _run(store, "repair", no_wait))


@click.command()
@common
@_no_wait
def scrub(no_wait: bool) -> None:
    """Read and verify every copy of every chunk, now, and heal what is damaged.

    It is fetched anew from another copy. Nodes do so by themselves every two weeks, at a bounded rate; then and here an
    interrupted pass goes on where it was. In a store of one directory damage is only reported.

    The exit code is 8 if damage is left, 1 if a node did not answer, 5 if none does.
    """
    with_store(lambda store: _run(store, "scrub", no_wait))


# -- Runs -------------------------------------------------------------------------------------------------------------


async def _run(store: Store, what: str, no_wait: bool) -> None:
    from gateway.upkeep.stores import LocalPlace, NodePlace, places_of

    status = await store.client.status()
    async with places_of(store.client.location, status, store.client.timeout_s) as places:
        local = [place for place in places.places if isinstance(place, LocalPlace)]
        nodes = [place for place in places.places if isinstance(place, NodePlace)]
        ended: dict[int, Run | str] = dict(places.absent)
        if local:
            if no_wait:
                raise click.UsageError("--no-wait is for a cluster: nothing works on this store but this command")
            ended |= await _here(store, what, local)
        else:
            ended |= await _on_nodes(what, nodes, no_wait)
    _tell(what, ended, no_wait)


async def _here(store: Store, what: str, places: Sequence[Any]) -> dict[int, Run | str]:
    """Do it in this process."""
    from gateway.upkeep import directories
    from gateway.upkeep.runs import Runner

    ended: dict[int, Run | str] = {}
    work = directories.scrub if what == "scrub" else directories.repair
    for place in places:
        others = [other.blobs for other in places if other is not place]
        runner = Runner(what, partial(work, place.blobs, others, store.client.generation), retries_left=False)
        running = asyncio.create_task(runner.once())
        try:
            with output.progress(f"{what} of {place.name}", (await place.status()).chunk_bytes) as advance:
                shown = 0
                while not running.done():
                    await asyncio.wait((running,), timeout=LOOK_S)
                    advance(runner.told().bytes - shown)
                    shown = runner.told().bytes
            await running
        finally:
            running.cancel()
        ended[place.node_id] = runner.told()
    return ended


async def _on_nodes(what: str, nodes: Sequence[NodePlace], no_wait: bool) -> dict[int, Run | str]:
    """Have the nodes do it, and watch."""
    from objmeta import errors as store_errors

    async def one(node: NodePlace) -> Run | str:
        try:
            number = await node.upkeep.start(what, node.timeout_s)
            if no_wait:
                return getattr((await node.status()), what)  # type: ignore[no-any-return]
            return await _watched(node, what, number)
        except store_errors.ObjmetaError as problem:
            return str(problem)

    answers = await asyncio.gather(*(one(node) for node in nodes))
    return {node.node_id: answer for node, answer in zip(nodes, answers, strict=True)}


async def _watched(node: NodePlace, what: str, number: int) -> Run:
    """The run of this number, when it has ended. Raises Unavailable when the node is gone for long."""
    from gateway.cli.app import say
    from objmeta import errors as store_errors

    loop = asyncio.get_running_loop()
    heard_at = told_at = loop.time()
    seen = number - 1
    while True:
        try:
            run: Run = getattr(await node.status(), what)
            heard_at = loop.time()
        except store_errors.Unavailable:
            if loop.time() > heard_at + _PATIENCE_S:
                raise
        else:
            if run.number < seen:
                raise store_errors.Unavailable("the node was started anew meanwhile")
            seen = run.number
            if seen > number or (seen == number and not run.running):
                return run
            if loop.time() > told_at + 1 and sys.stderr.isatty() and not current().quiet and not current().json:
                told_at = loop.time()
                say(f"{node.node_id}: {what}: {text_of(run)}")
        await asyncio.sleep(LOOK_S)


def _tell(what: str, ended: dict[int, Run | str], no_wait: bool) -> None:
    from gateway.cli.app import say

    left = silent = 0
    for number, run in sorted(ended.items()):
        if isinstance(run, str):
            silent += 1
            say(f"{number}: {run}")
            continue
        record = {"node_id": number, "work": what, **run_record(run)}
        output.emit(record, f"{number}: {what} {'begun' if no_wait else text_of(run)}")
        left += 0 if no_wait else run.left + bool(run.problem)
    if silent == len(ended):
        raise click.exceptions.Exit(errors.UNAVAILABLE)
    if left:
        say(f"not everything is well after this {what}; 'gateway fsck' says what is concerned")
        raise click.exceptions.Exit(errors.INTEGRITY if what == "scrub" else errors.FAILED)
    if silent:
        raise click.exceptions.Exit(errors.FAILED)


def run_record(run: Run) -> dict[str, Any]:
    """A run as programs see it."""
    return {
        "run": run.number,
        "running": run.running,
        "chunks": run.chunks,
        "total": run.total,
        "bytes": run.bytes,
        "fixed": run.fixed,
        "left": run.left,
        "dropped": run.dropped,
        "running_s": round(run.running_s, 1),
        "ended_s": None if run.ended_s is None else round(run.ended_s, 1),
        "problem": run.problem,
    }


def text_of(run: Run) -> str:
    """A run for people."""
    if not run.number:
        return "-"
    of = f" of {run.total:,}" if run.total else ""
    parts = [f"{run.chunks:,}{of} chunks", output.size_text(run.bytes)]
    parts += [f"{count:,} {word}" for count, word in ((run.fixed, "fixed"), (run.dropped, "dropped")) if count]
    parts += [f"{run.left:,} left"] if run.left else []
    parts += [output.shown(run.problem)] if run.problem else []
    return ", ".join(parts)


# -- fsck -------------------------------------------------------------------------------------------------------------


@click.command()
@common
@click.option("--deep", is_flag=True, help="Have every copy read and verified, and everything inline.")
def fsck(deep: bool) -> None:
    """Check the whole store: every version of every object, its chunks, and their copies.

    Prints what is wrong, one line for each chunk of each version. Nothing is changed.

    The exit code is 8 if data is lost or damaged, 5 if a node without which it cannot be told does not answer, 1 if
    there are too few copies.
    """
    with_store(lambda store: _fsck(store, deep), of_now=True)


async def _fsck(store: Store, deep: bool) -> None:
    from gateway.cli.app import say
    from gateway.upkeep.checking import Checker
    from gateway.upkeep.stores import places_of

    status = await store.client.status()
    async with places_of(store.client.location, status, store.client.timeout_s, patient=True) as places:
        checker = Checker(store, places, deep=deep)
        try:
            async with _shown(checker, places, deep), aclosing(checker.run()) as findings:
                async for finding in findings:
                    output.answer(_finding_record(finding), _finding_line(finding, places))
        except asyncio.CancelledError:
            text = f"{_summary(checker.counts)}, by then; the rest was not looked at"
            say(text, {"message": text} | _counts_record(checker.counts))
            raise
        for number, why in sorted(checker.silent.items()):
            say(f"{number} does not answer, and its copies were not counted: {why}")
    _finish(checker.counts)


@asynccontextmanager
async def _shown(checker: Checker, places: Places, deep: bool) -> AsyncIterator[None]:
    """A bar: of the bytes of all copies, which are known before, if they are read; else of versions."""
    from gateway.upkeep.stores import statuses

    counts = checker.counts
    said = (await statuses(places)).values() if deep else ()
    total = sum(each.chunk_bytes for each in said if not isinstance(each, str))
    if total >= output.BAR_FROM_BYTES:
        with output.progress("fsck", total) as progress:
            async with following(progress, lambda: counts.copy_bytes):
                yield
    else:
        with output.counting("fsck", "versions") as progress:
            async with following(progress, lambda: counts.versions):
                yield


def _finish(counts: Counts) -> None:
    from gateway.cli.app import say
    from gateway.upkeep.checking import Verdict

    found = counts.found
    output.emit(_counts_record(counts), _summary(counts))
    if found[Verdict.LOST] or found[Verdict.DAMAGED]:
        code, text = errors.INTEGRITY, "data is lost or damaged"
    elif found[Verdict.UNREACHABLE]:
        code, text = errors.UNAVAILABLE, "some data is where nobody answers"
    elif found[Verdict.TOO_FEW_COPIES]:
        code, text = errors.FAILED, "some data has too few copies; 'gateway repair' makes them"
    else:
        return
    say(text)
    raise click.exceptions.Exit(code)


def _counts_record(counts: Counts) -> dict[str, Any]:
    return {
        "versions": counts.versions,
        "chunks": counts.chunks,
        "bytes": counts.bytes,
        **{verdict.name.lower(): count for verdict, count in counts.found.items()},
    }


def _summary(counts: Counts) -> str:
    bad = ", ".join(f"{count:,} {verdict}" for verdict, count in counts.found.items() if count) or "all well"
    looked = f"{output.count_text(counts.versions, 'version')}, {output.count_text(counts.chunks, 'chunk')}"
    return f"checked {looked}, {output.size_text(counts.bytes)}: {bad}"


def _finding_record(finding: Finding) -> dict[str, Any]:
    return {
        "verdict": finding.verdict.value,
        "bucket": finding.bucket,
        "key": finding.key,
        "version_id": finding.version_id,
        "digest": finding.digest,
        "wanted": finding.wanted,
        "good": list(finding.good),
        "damaged": list(finding.damaged),
        "missing": list(finding.missing),
        "detail": finding.detail,
    }


def _finding_line(finding: Finding, places: Places) -> str:
    name = output.shown(f"objmeta://{finding.bucket}/{finding.key}")
    version = f" version {finding.version_id}" if finding.version_id else ""
    if not finding.digest:
        return f"{finding.verdict}: {name}{version}: {finding.detail}"
    told = [f"good at {_numbers(finding.good)}" if finding.good else "good nowhere"]
    told += [f"damaged at {_numbers(finding.damaged)}"] if finding.damaged else []
    told += [f"missing at {_numbers(finding.missing)}"] if finding.missing else []
    return f"{finding.verdict}: {name}{version} chunk {finding.digest}: {', '.join(told)}"


def _numbers(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
