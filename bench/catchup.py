"""Catching up: how fast a node that was away is up to date again, and what that costs those who write meanwhile.

    python -m bench.catchup [--registers N] [--away S] [--changed M] [--seconds S] [--writers W] [--idle]
                            [--directory DIR]

Three of our nodes on this machine.  N registers are put into their stores (``bench.filling``); the nodes compare them
all, which is measured too, and the greatest load of W writers is found (puts of 1 KiB objects, as in ``bench.puts``).
Then one node is killed (SIGKILL); for so many seconds half the greatest load goes on, and M of the registers, spread
over all of them, are changed.  The node is started again, and half the greatest load goes on until the node's status
says that it has caught up (with ``--idle``, nothing goes on).  The latency of these puts is compared with that of the
same load before and after, and told apart for the first seconds of the node, in which it has not begun to compare.  At
the end the digests of the N registers are compared between the nodes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import msgspec

import objmeta
from bench.driver import BUCKET
from bench.filling import fill, name_of
from bench.machine import describe, scratch
from objmeta import AsyncClient
from objmeta.core.inventory import DigestRequest, RangeDigest
from objmeta.interfaces import ChangeRequest, RepairStatus, StoreStatus
from objmeta.model.changes import SetValue
from objmeta.node.dev import LocalCluster
from objmeta.register.mending import RepairSettings
from objmeta.rpc import wire
from objmeta.rpc.client import RemoteRegisters
from objmeta.rpc.options import ask_blocking

TARGET_FACTOR = 2.0
TARGET_MORE_MS = 20.0
"""p99 of the foreground's puts may be twice what it is without a catch-up, or this much more."""
_AWAY = 3
_IN_FLIGHT = 256
_VALUE = bytes(100)
_FIRST, _BEYOND = b"k/", b"k0"
_STARTING_S = RepairSettings().start_s
_SLICE_S = 2.0
_PATIENCE_S = 3600.0
_ASK_S = 10.0


async def _write(endpoints: Sequence[str], numbers: Iterable[int]) -> None:
    registers = RemoteRegisters(endpoints)
    left = iter(numbers)

    async def writer() -> None:
        for number in left:
            change = SetValue(os.urandom(16), _VALUE)
            await registers.change(ChangeRequest(name_of(_FIRST, number), change), 60.0)

    try:
        await asyncio.gather(*(writer() for _ in range(_IN_FLIGHT)))
    finally:
        await registers.close()


@contextmanager
def load(endpoints: Sequence[str], kind: str, writers: int) -> Iterator[subprocess.Popen[str]]:
    """A load process (``bench.driver``) that waits for commands."""
    command = [sys.executable, "-m", "bench.driver", kind, "--endpoints", ",".join(endpoints)]
    process = subprocess.Popen(
        [*command, "--writers", str(writers)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        _line(process)
        yield process
    finally:
        process.kill()
        process.communicate()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"the load process ended with exit code {process.wait()}")
    return line


def ask(process: subprocess.Popen[str], command: str) -> dict[str, object]:
    """Have it do something; its answer."""
    assert process.stdin is not None
    process.stdin.write(command + "\n")
    process.stdin.flush()
    answer = json.loads(_line(process))
    assert isinstance(answer, dict)
    return answer


def paced(process: subprocess.Popen[str], seconds: float, rate: float) -> list[float]:
    """The latencies of so many puts a second, in milliseconds."""
    latencies = ask(process, f"pace {seconds} {rate}")["latencies_ms"]
    assert isinstance(latencies, list)
    return latencies


def _repair_of(status: StoreStatus, node_id: int) -> RepairStatus | None:
    return next(node.repair for node in status.nodes if node.node_id == node_id)


def _digests(cluster: LocalCluster, node_id: int, start: bytes, bounds: tuple[bytes, ...]) -> list[RangeDigest]:
    """One answer of a node about what its acceptor holds."""
    endpoint = cluster.endpoint(node_id)
    hello = wire.decode_hello(ask_blocking(endpoint, wire.path(wire.PEER_SERVICE, wire.HELLO), b"", _ASK_S))
    assert hello.configuration is not None
    request = msgspec.Raw(wire.encode(DigestRequest(start, bounds)))
    question = wire.encode(wire.PeerQuestion(hello.configuration.tag, node_id, request))
    path = wire.path(wire.PEER_SERVICE, wire.DIGESTS)
    return list(
        wire.decode_digests(wire.decode_peer_answer(ask_blocking(endpoint, path, question, _ASK_S)).answer).ranges
    )


def _differing(cluster: LocalCluster) -> tuple[int, int]:
    """In how many ranges of the registers that were written here the nodes differ, and how many ranges there are."""
    differing = total = 0
    start = _FIRST
    while start and start < _BEYOND:
        own = [each for each in _digests(cluster, _AWAY, start, ()) if each.end and each.end < _BEYOND]
        bounds = tuple(each.end for each in own)
        theirs = (
            [_digests(cluster, node_id, start, bounds) for node_id in cluster.node_ids if node_id != _AWAY]
            if own
            else []
        )
        start = bounds[min(map(len, theirs)) - 1] if theirs and all(theirs) else bounds[0] if bounds else b""
        for ranges in zip(own, *theirs, strict=False):
            total += 1
            differing += len(set(ranges)) > 1
        if theirs and not all(theirs):
            total, differing = total + 1, differing + 1
    return differing, total


def _caught_up(runner: asyncio.Runner, client: AsyncClient, node_ids: Sequence[int]) -> list[RepairStatus]:
    """What the nodes have done, if all of them have nothing left to do."""
    told = [_repair_of(runner.run(client.status()), node_id) for node_id in node_ids]
    return [repair for repair in told if repair is not None and repair.complete_s is not None]


def _compare_all(runner: asyncio.Runner, client: AsyncClient, cluster: LocalCluster) -> None:
    began = time.monotonic()
    while len(done := _caught_up(runner, client, cluster.node_ids)) < len(cluster.node_ids):
        if time.monotonic() - began > _PATIENCE_S:
            raise SystemExit("the nodes do not come to the end of comparing what is equal")
        time.sleep(_SLICE_S)
    took = time.monotonic() - began - min(repair.complete_s or 0.0 for repair in done)
    print(f"each node compared {done[0].compared:,} registers with the two others in {took:.0f} s", flush=True)


def percentiles(latencies: Sequence[float]) -> tuple[float, float]:
    """The 50th and the 99th."""
    latencies = sorted(latencies)
    return latencies[len(latencies) // 2], latencies[len(latencies) * 99 // 100]


def _tell(latencies: Sequence[float], when: str) -> float:
    """The 99th percentile."""
    p50, p99 = percentiles(latencies)
    print(f"puts at half the greatest load: p50 {p50:.1f} ms, p99 {p99:.1f} ms {when}")
    return p99


def main() -> int:
    """The exit code: 1 if the target was missed."""
    parser = argparse.ArgumentParser(description="Catch-up of a node that was away, and its effect on puts.")
    parser.add_argument("--registers", type=int, default=100_000)
    parser.add_argument("--away", type=float, default=10.0, help="seconds for which the node is away")
    parser.add_argument("--changed", type=int, help="registers changed while it is away (default: a hundredth)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement without a catch-up")
    parser.add_argument("--writers", type=int, default=64)
    parser.add_argument("--idle", action="store_true", help="no puts while the node catches up")
    parser.add_argument("--directory", help="where the data goes (default: ./build)")
    arguments = parser.parse_args()
    registers = arguments.registers
    changed = arguments.changed if arguments.changed is not None else registers // 100
    with ExitStack() as stack:
        directory = stack.enter_context(scratch(arguments.directory))
        print(describe(directory))
        cluster = stack.enter_context(LocalCluster(directory / "objmeta", nodes=3))
        runner = stack.enter_context(asyncio.Runner())
        client = objmeta.connect_async(",".join(cluster.endpoints))
        stack.callback(lambda: runner.run(client.close()))
        runner.run(client.create_bucket(BUCKET))
        began = time.monotonic()
        fill(cluster, _FIRST, registers, _VALUE)
        print(f"{registers:,} registers put into the stores in {time.monotonic() - began:.0f} s", flush=True)
        _compare_all(runner, client, cluster)

        driver = stack.enter_context(load(cluster.endpoints, "objmeta", arguments.writers))
        greatest = ask(driver, f"run {arguments.seconds}")
        puts, seconds = greatest["puts"], greatest["seconds"]
        assert isinstance(puts, int)
        assert isinstance(seconds, float)
        rate = puts / seconds / 2
        alone = paced(driver, arguments.seconds, rate)
        print(f"greatest load {2 * rate:,.0f} puts/s", flush=True)

        cluster.kill(_AWAY)
        began = time.monotonic()
        added = len(paced(driver, arguments.away, rate))
        runner.run(_write(cluster.endpoints, range(0, registers, max(1, registers // max(1, changed)))))
        print(f"away for {time.monotonic() - began:.0f} s: {changed:,} registers changed, {added:,} added", flush=True)

        cluster.start(_AWAY)
        cluster.wait_ready([_AWAY])
        began = time.monotonic()
        starting: list[float] = []
        latencies: list[float] = []
        while not (done := _caught_up(runner, client, [_AWAY])):
            if time.monotonic() - began > _PATIENCE_S:
                print(f"the node has not caught up: {_repair_of(runner.run(client.status()), _AWAY)}")
                return 1
            if arguments.idle:
                time.sleep(_SLICE_S / 10)
            elif time.monotonic() - began < _STARTING_S:
                starting += paced(driver, _SLICE_S, rate)
            else:
                latencies += paced(driver, _SLICE_S, rate)
        (repair,) = done
        took = time.monotonic() - began - (repair.complete_s or 0.0)
        print(
            f"caught up in {took:.1f} s: {repair.compared:,} registers compared ({repair.compared / took:,.0f}/s), "
            f"{repair.repaired:,} repaired ({repair.repaired / took:,.0f}/s) by {repair.records:,} records"
        )
        alone += paced(driver, arguments.seconds, rate)
        quiet = _tell(alone, "before and after")
        if starting:
            _tell(starting, f"in the first {_STARTING_S:g} s of the node")
        busy = _tell(latencies, "while it caught up after that") if latencies else quiet
        differing, ranges = _differing(cluster)
        print(f"digests of the {registers:,} registers: {differing} of {ranges:,} ranges differ between nodes")
        reached = busy <= max(TARGET_FACTOR * quiet, quiet + TARGET_MORE_MS)
        print(f"target: p99 at most doubled or {TARGET_MORE_MS:g} ms more: {'reached' if reached else 'missed'}")
        return 0 if reached and not differing else 1


if __name__ == "__main__":
    sys.exit(main())
