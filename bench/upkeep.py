"""Upkeep of data: how fast nodes repair and scrub, and what that costs those who store objects meanwhile.

    python -m bench.upkeep [--mib N] [--seconds S] [--writers W] [--directory DIR]

Three of our nodes on this machine, with N MiB of large objects on each.  First without any bound and without other
load: all nodes scrub, and one that lost its chunks fetches them again.  Then both once more at the rates that nodes
keep by default, while objects of 20 KiB are stored at half the greatest rate that W writers reach; the latency of these
puts is compared with that of the same load before and after.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.catchup import TARGET_FACTOR, TARGET_MORE_MS, ask, load, paced, percentiles
from bench.driver import BUCKET
from bench.machine import describe, scratch
from gateway.data.transfer import open_store
from gateway.upkeep.asking import Upkeep
from gateway.upkeep.runs import Run
from objmeta import errors
from objmeta.node.dev import LocalCluster

_MIB = 1 << 20
_OBJECT_MIB = 16
_AWAY = 3
_SLICE_S = 2.0
_LOOK_S = 0.1
_PATIENCE_S = 600.0
_NODE = (sys.executable, "-m", "gateway.server")
_UNBOUNDED = ("--repair-rate", "1e6", "--scrub-rate", "1e6")


class _Nodes:
    """The upkeep of the nodes of a running cluster."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster
        self._upkeeps = {node_id: Upkeep(cluster.endpoint(node_id)) for node_id in cluster.node_ids}

    async def scrub(self) -> dict[int, int]:
        """Have all scrub; the numbers of the runs."""
        return {node_id: await upkeep.start("scrub", 10.0) for node_id, upkeep in self._upkeeps.items()}

    async def run(self, what: str, node_id: int) -> Run:
        """The last run of a node."""
        status = await self._upkeeps[node_id].status(10.0)
        return status.repair if what == "repair" else status.scrub

    async def ended(self, what: str, numbers: dict[int, int]) -> list[Run] | None:
        """These runs, if all have ended. A node may be starting still."""
        try:
            runs = [(await self.run(what, node_id), number) for node_id, number in numbers.items()]
        except errors.Unavailable:
            return None
        if any(run.number < number or run.running for run, number in runs):
            return None
        return [run for run, _ in runs]

    async def hold(self, count: int) -> bool:
        """Whether each has so many bytes of chunks."""
        return all([(await upkeep.status(10.0)).chunk_bytes >= count for upkeep in self._upkeeps.values()])

    async def close(self) -> None:
        """Close the connections."""
        await asyncio.gather(*(upkeep.close() for upkeep in self._upkeeps.values()))


@contextmanager
def _cluster(directory: Path, *options: str) -> Iterator[LocalCluster]:
    with LocalCluster(directory / "objmeta", 3, (*_NODE, *options)) as cluster:
        yield cluster


async def _fill(endpoints: str, mib: int) -> None:
    store = await open_store(endpoints)
    await store.client.create_bucket(BUCKET)
    for number in range(mib // _OBJECT_MIB):
        await store.put_stream(BUCKET, f"large/{number}", os.urandom(_OBJECT_MIB * _MIB))
    await store.close()


async def _everywhere(nodes: _Nodes, mib: int) -> None:
    """Wait until every node has all of it."""
    deadline = time.monotonic() + _PATIENCE_S
    while not await nodes.hold(mib * _MIB):
        if time.monotonic() > deadline:
            raise RuntimeError("the copies are not at all nodes")
        await asyncio.sleep(_LOOK_S)


def _lose(cluster: LocalCluster) -> None:
    """One node is killed, loses its chunks, and comes back."""
    cluster.kill(_AWAY)
    shutil.rmtree(cluster.directory / f"node-{_AWAY}" / "data" / "blobs")
    cluster.start(_AWAY)
    cluster.wait_ready((_AWAY,))


def _shown(what: str, runs: list[Run]) -> str:
    moved = sum(run.bytes for run in runs) / 1e6
    took = max(run.running_s for run in runs)
    nodes = f"{len(runs)} nodes" if len(runs) > 1 else "one node"
    problems = "".join(f" ({run.problem})" for run in runs if run.problem)
    return f"{what} by {nodes}: {moved:,.0f} MB in {took:.1f} s, {moved / took:,.0f} MB/s{problems}"


def main() -> int:
    """The exit code: 1 if the target was missed."""
    parser = argparse.ArgumentParser(description="Repair and scrub of data, and their effect on puts.")
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement without upkeep")
    parser.add_argument("--writers", type=int, default=32)
    parser.add_argument("--directory", help="where the data goes (default: ./build)")
    arguments = parser.parse_args()
    with scratch(arguments.directory) as directory, asyncio.Runner() as runner:
        print(describe(directory))
        with ExitStack() as stack:
            cluster = stack.enter_context(_cluster(directory, *_UNBOUNDED))
            nodes = _Nodes(cluster)
            stack.callback(lambda: runner.run(nodes.close()))
            began = time.monotonic()
            runner.run(_fill(",".join(cluster.endpoints), arguments.mib))
            runner.run(_everywhere(nodes, arguments.mib))
            print(f"{arguments.mib} MiB stored three times in {time.monotonic() - began:.0f} s")
            numbers = runner.run(nodes.scrub())
            print(_shown("scrub without a bound", _until(runner, nodes, "scrub", numbers)))
            _lose(cluster)
            print(_shown("repair without a bound", _until(runner, nodes, "repair", {_AWAY: 1})))
        with ExitStack() as stack:
            cluster = stack.enter_context(_cluster(directory))
            nodes = _Nodes(cluster)
            stack.callback(lambda: runner.run(nodes.close()))
            driver = stack.enter_context(load(cluster.endpoints, "objects", arguments.writers))
            greatest = ask(driver, f"run {arguments.seconds}")
            puts, seconds = greatest["puts"], greatest["seconds"]
            assert isinstance(puts, int)
            assert isinstance(seconds, float)
            rate = puts / seconds / 2
            print(f"greatest load {2 * rate:,.0f} objects/s")
            alone = paced(driver, arguments.seconds, rate)
            busy: list[float] = []

            def meanwhile() -> None:
                busy.extend(paced(driver, _SLICE_S, rate))

            numbers = runner.run(nodes.scrub())
            print(_shown("scrub beside half of it", _until(runner, nodes, "scrub", numbers, meanwhile)))
            scrubbing, repairing = percentiles(busy), len(busy)
            _lose(cluster)
            print(_shown("repair beside half of it", _until(runner, nodes, "repair", {_AWAY: 1}, meanwhile)))
            repaired = percentiles(busy[repairing:]) if repairing < len(busy) else scrubbing
            alone += paced(driver, arguments.seconds, rate)
            quiet = percentiles(alone)
        print(f"puts at half the greatest load: p50 {quiet[0]:.1f} ms, p99 {quiet[1]:.1f} ms before and after")
        reached = True
        for what, (p50, p99) in (("scrub", scrubbing), ("repair", repaired)):
            reached &= p99 <= max(TARGET_FACTOR * quiet[1], quiet[1] + TARGET_MORE_MS)
            print(f"puts at half the greatest load: p50 {p50:.1f} ms, p99 {p99:.1f} ms during {what}")
        print(f"target: p99 at most doubled or {TARGET_MORE_MS:g} ms more: {'reached' if reached else 'missed'}")
        return 0 if reached else 1


def _until(
    runner: asyncio.Runner,
    nodes: _Nodes,
    what: str,
    numbers: dict[int, int],
    meanwhile: Callable[[], None] = lambda: time.sleep(_LOOK_S),
) -> list[Run]:
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        meanwhile()
        runs = runner.run(nodes.ended(what, numbers))
        if runs is not None:
            return runs
    raise RuntimeError(f"{what} does not end")


if __name__ == "__main__":
    sys.exit(main())
