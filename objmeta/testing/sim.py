"""The simulator's command line: ``python -m objmeta.testing.sim --seed N`` or ``--seeds N``.

Prints one line for each failure, with the command that replays it; exit code 0 if there was none, else 1.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence

import msgspec

from objmeta.errors import IntegrityError
from objmeta.testing import loop
from objmeta.testing.bucketwork import BucketWork
from objmeta.testing.checkers import Violation
from objmeta.testing.mutations import MUTATIONS, NONE, Mutation
from objmeta.testing.mutations_upkeep import UPKEEP_MUTATIONS
from objmeta.testing.network import Trace
from objmeta.testing.upkeep import Stuck, Upkeep
from objmeta.testing.workload import NoProgress, Workload
from objmeta.testing.world import World

SAFETY = "safety"
LIVENESS = "liveness"
CRASH = "crash"

BROKEN = {**MUTATIONS, **UPKEEP_MUTATIONS}
"""All broken variants, by name."""

BUCKETS_EVERY = 5
"""Every so many seeds the clients work on buckets instead of registers."""


class Report(msgspec.Struct, frozen=True):
    """What became of one seed. ``failure`` is empty, or SAFETY, LIVENESS or CRASH."""

    seed: int
    failure: str = ""
    message: str = ""
    attempts: int = 0
    answered: int = 0
    writes: int = 0
    undecided: int = 0
    virtual_s: float = 0.0
    changes: int = 0
    """Changes of members that came to their end."""
    erased: int = 0
    """Registers that were erased."""


async def _main(seed: int, mutation: Mutation, trace: Trace | None, watchful: bool) -> Report:
    world = World(seed, mutation, trace, watchful)
    on_buckets = seed % BUCKETS_EVERY == BUCKETS_EVERY - 1
    upkeep = Upkeep(world, on_buckets)
    workload = BucketWork(world) if on_buckets else Workload(world, upkeep.faults.erases)
    background = [world.loop.create_task(work) for work in (world.chaos(), upkeep.run())]
    await workload.with_faults()
    for task in background:
        task.cancel()
    world.heal(all_up=upkeep.needs_all)
    await upkeep.settle_members()
    await workload.after_healing()
    await upkeep.at_end()
    world.watch.at_end()
    workload.check()
    return Report(
        seed,
        attempts=workload.attempts,
        answered=workload.answered,
        writes=workload.writes,
        undecided=workload.undecided,
        virtual_s=world.loop.time(),
        changes=upkeep.completed,
        erased=world.watch.erased,
    )


def run_seed(seed: int, mutation: Mutation = NONE, trace: Trace | None = None, watchful: bool = True) -> Report:
    """Run one seed; never raises. Unless ``watchful``, only what clients see is checked."""
    try:
        return loop.run(_main(seed, mutation, trace, watchful))
    except (Violation, IntegrityError) as error:
        return Report(seed, SAFETY, str(error))
    except (NoProgress, Stuck, loop.Deadlock) as error:
        return Report(seed, LIVENESS, str(error))
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return Report(seed, CRASH, f"{error!r} at {os.path.basename(where.filename)}:{where.lineno}")


def digest_of(seed: int, mutation: Mutation = NONE) -> str:
    """A digest of the whole trace of a seed."""
    digest = hashlib.sha256()
    report = run_seed(seed, mutation, lambda line: digest.update(line.encode()))
    digest.update(repr(report).encode())
    return digest.hexdigest()


def run_many(seeds: Sequence[int], mutation: Mutation = NONE, jobs: int = 1) -> Iterator[Report]:
    """Run seeds, in order, in ``jobs`` processes."""
    if jobs <= 1:
        yield from (run_seed(seed, mutation) for seed in seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(_run_named, [(seed, mutation.name) for seed in seeds], chunksize=16)


def _run_named(job: tuple[int, str]) -> Report:
    seed, name = job
    return run_seed(seed, BROKEN.get(name, NONE))


def replay_command(seed: int, mutation: Mutation = NONE) -> str:
    """The one command that replays a seed."""
    extra = f" --mutation {mutation.name}" if mutation is not NONE else ""
    return f"python -m objmeta.testing.sim --seed {seed}{extra} --trace"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m objmeta.testing.sim", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this seed alone")
    parser.add_argument("--seeds", type=int, default=100, help="run this many seeds")
    parser.add_argument("--start", type=int, default=0, help="the first of them")
    parser.add_argument("--mutation", choices=sorted(BROKEN), help="run a broken variant, which should fail")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--trace", action="store_true", help="print everything that happens (with --seed)")
    parser.add_argument("--digest", action="store_true", help="print the digest of the trace (with --seed)")
    parser.add_argument("--first", action="store_true", help="stop at the first failure")
    options = parser.parse_args(arguments)
    mutation = BROKEN[options.mutation] if options.mutation else NONE
    if options.seed is not None and options.digest:
        print(digest_of(options.seed, mutation))
        return 0
    if options.seed is not None:
        reports: Iterator[Report] = iter((run_seed(options.seed, mutation, print if options.trace else None),))
    else:
        reports = run_many(range(options.start, options.start + options.seeds), mutation, options.jobs)
    return _summarise(reports, mutation, options.first)


def _summarise(reports: Iterator[Report], mutation: Mutation, first_only: bool) -> int:
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
        f"{sum(r.answered for r in done)} answered, {sum(r.writes for r in done)} writes chosen, "
        f"{sum(r.undecided for r in done)} searches given up, {sum(r.changes for r in done)} changes of members, "
        f"{sum(r.erased for r in done)} registers erased, {sum(r.virtual_s for r in done):.0f} s of virtual time "
        f"in {time.monotonic() - started:.1f} s"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
