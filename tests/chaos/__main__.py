"""``make chaos``: real nodes and clients, real faults, a checked history.

    python -m tests.chaos [--seconds N] [--nodes 3] [--seed S] [--faults kill,cut,…] [--history FILE]

The seed decides which faults come and in which order; processes and networks add their own chance, so the same seed
gives the same trouble but not the same run.  The exit code is 1 if a promise was broken; then histories, logs and the
list of faults are kept.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Final

from objmeta.errors import ObjmetaError
from tests.chaos.disks import private_mounts
from tests.chaos.faults import FAULTS
from tests.chaos.run import Outcome, Run

_OWN_MOUNTS: Final = "--own-mounts"
_SHOWN_MAX: Final = 10


def main() -> int:
    """The exit code: 0 if all promises were kept, 1 if not, 2 for wrong options."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description="Real nodes and clients, real faults, a checked history."
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="how long things break (default: 60)")
    parser.add_argument("--nodes", type=int, choices=(3, 4, 5), default=3)
    parser.add_argument("--seed", type=int, help="which faults come (default: drawn)")
    parser.add_argument("--faults", default=",".join(FAULTS), help=f"of {', '.join(FAULTS)} (default: all); or none")
    parser.add_argument("--history", type=Path, default=Path("build/chaos.jsonl"), help="where the history goes")
    parser.add_argument("--directory", type=Path, default=Path("build"), help="where the nodes' directories go")
    parser.add_argument(_OWN_MOUNTS, action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    kinds = [] if given.faults == "none" else given.faults.split(",")
    if unknown := set(kinds) - FAULTS.keys():
        parser.error(f"there is no fault {', '.join(sorted(unknown))}; there are {', '.join(FAULTS)}")
    if "disk" in kinds and not given.own_mounts and (command := private_mounts()):
        os.execvp(command[0], [*command, sys.executable, "-m", "tests.chaos", *sys.argv[1:], _OWN_MOUNTS])
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(1 << 30)
    print(f"seed {seed}; disks are {'file systems in memory' if given.own_mounts else 'limited by RLIMIT_FSIZE'}")
    given.directory.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="chaos-", dir=given.directory)).resolve()
    outcome = asyncio.run(_run(Run(directory, seed, given.own_mounts), given, kinds))
    if outcome is None:
        return 1
    _report(outcome, given.history)
    if outcome.failures:
        print(f"again: python -m tests.chaos --seed {seed} --seconds {given.seconds:g} --nodes {given.nodes}", end="")
        print(f" --faults {given.faults}\nlogs are in {directory}")
        return 1
    shutil.rmtree(directory, ignore_errors=True)
    return 0


async def _run(run: Run, given: argparse.Namespace, kinds: list[str]) -> Outcome | None:
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(run.execute(given.nodes, given.seconds, kinds, given.history))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        print(f"interrupted; all processes were ended, logs are in {run.directory}", file=sys.stderr)
    except ObjmetaError as problem:
        print(f"error: {problem}; logs are in {run.directory}", file=sys.stderr)
    return None


def _report(outcome: Outcome, history: Path) -> None:
    verdict = outcome.verdict
    ended = ", ".join(f"{count:,} {name}" for name, count in sorted(outcome.outcomes.items()))
    print("faults: " + ", ".join(f"{count} {name}" for name, count in sorted(outcome.faults.items())))
    print(f"the members were changed {outcome.changes} times")
    print(f"{verdict.operations:,} operations ({ended}) on {verdict.registers:,} registers; history in {history}")
    if verdict.undecided:
        print(f"not decided by the search, only by sequence numbers: {', '.join(verdict.undecided)}")
    failures = outcome.failures
    for failure in failures[:_SHOWN_MAX]:
        print(f"BROKEN: {failure}")
    if len(failures) > _SHOWN_MAX:
        print(f"… and {len(failures) - _SHOWN_MAX} more")
    if not failures:
        print("linearizable; every acknowledged write is there; progress through every node after mending")


if __name__ == "__main__":
    sys.exit(main())
