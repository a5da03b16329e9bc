"""The command line of the data's simulator: ``python -m gateway.testing.sim --seed N`` or ``--seeds N --start S``.

Prints one line for each failure, with the command that replays it; exit code 0 if there was none, else 1.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence

import msgspec

from gateway.testing.mutations import DATA_MUTATIONS, DATA_NONE, DataMutation
from gateway.testing.world import DataWorld
from objmeta.errors import IntegrityError
from objmeta.testing import loop
from objmeta.testing.checkers import Violation
from objmeta.testing.network import Trace
from objmeta.testing.sim import CRASH, LIVENESS, SAFETY
from objmeta.testing.upkeep import Stuck
from objmeta.testing.workload import NoProgress

LONGEST_S = 1000.0
"""Of a run, in virtual time: twenty times what most take."""


class Report(msgspec.Struct, frozen=True):
    """What became of one seed. ``failure`` is empty, or "safety", "liveness" or "crash"."""

    seed: int
    failure: str = ""
    message: str = ""
    attempts: int = 0
    answered: int = 0
    cycles: int = 0
    deleted: int = 0
    changes: int = 0
    virtual_s: float = 0.0


async def _main(seed: int, mutation: DataMutation, trace: Trace | None) -> Report:
    with DataWorld(seed, mutation, trace) as data:
        try:
            async with asyncio.timeout(LONGEST_S):
                await data.run()
        except TimeoutError:
            raise NoProgress(f"it has not come to its end after {LONGEST_S:g} s") from None
    return Report(
        seed,
        attempts=data.attempts,
        answered=data.answered,
        cycles=data.cycles,
        deleted=data.named.deleted,
        changes=data.upkeep.completed,
        virtual_s=data.world.loop.time(),
    )


def run_seed(seed: int, mutation: DataMutation = DATA_NONE, trace: Trace | None = None) -> Report:
    """Run one seed; never raises."""
    try:
        return loop.run(_main(seed, mutation, trace))
    except (Violation, IntegrityError) as error:
        return Report(seed, SAFETY, str(error))
    except (NoProgress, Stuck, loop.Deadlock) as error:
        return Report(seed, LIVENESS, str(error))
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return Report(seed, CRASH, f"{error!r} at {os.path.basename(where.filename)}:{where.lineno}")


def run_many(seeds: Sequence[int], mutation: DataMutation = DATA_NONE, jobs: int = 1) -> Iterator[Report]:
    """Run seeds, in order, in ``jobs`` processes."""
    if jobs <= 1:
        yield from (run_seed(seed, mutation) for seed in seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(_run_named, [(seed, mutation.name) for seed in seeds], chunksize=8)


def _run_named(job: tuple[int, str]) -> Report:
    seed, name = job
    return run_seed(seed, DATA_MUTATIONS.get(name, DATA_NONE))


def replay_command(seed: int, mutation: DataMutation = DATA_NONE) -> str:
    """The one command that replays a seed."""
    extra = f" --mutation {mutation.name}" if mutation is not DATA_NONE else ""
    return f"python -m gateway.testing.sim --seed {seed}{extra} --trace"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m gateway.testing.sim", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this seed alone")
    parser.add_argument("--seeds", type=int, default=100, help="run this many seeds")
    parser.add_argument("--start", type=int, default=0, help="the first of them")
    parser.add_argument("--mutation", choices=sorted(DATA_MUTATIONS), help="run a broken variant, which should fail")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--trace", action="store_true", help="print everything that happens (with --seed)")
    parser.add_argument("--first", action="store_true", help="stop at the first failure")
    options = parser.parse_args(arguments)
    mutation = DATA_MUTATIONS[options.mutation] if options.mutation else DATA_NONE
    if options.seed is not None:
        reports: Iterator[Report] = iter((run_seed(options.seed, mutation, print if options.trace else None),))
    else:
        reports = run_many(range(options.start, options.start + options.seeds), mutation, options.jobs)
    return _summarise(reports, mutation, options.first)


def _summarise(reports: Iterator[Report], mutation: DataMutation, first_only: bool) -> int:
    started = time.monotonic()
    done: list[Report] = []
    failed = 0
    for report in reports:
        done.append(report)
        if report.failure:
            failed += 1
            print(f"seed {report.seed}: {report.failure}: {report.message}")
            print(f"  replay: {replay_command(report.seed, mutation)}", flush=True)
            if first_only:
                break
    print(
        f"{len(done)} seeds, {failed} failed; {sum(r.attempts for r in done)} attempts, "
        f"{sum(r.answered for r in done)} answered, {sum(r.cycles for r in done)} complete cycles, "
        f"{sum(r.deleted for r in done)} copies deleted, {sum(r.changes for r in done)} changes of members, "
        f"{sum(r.virtual_s for r in done):.0f} s of virtual time in {time.monotonic() - started:.1f} s"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
