"""One key that everybody changes: 64 clients, through three nodes at once.

    python -m bench.hotkey [--seconds S] [--clients N] [--directory DIR]

The clients are spread over three processes; each process knows one node only, so that the key is proposed for by all
three.  Two loads in turn: plain puts, and compare-and-swap loops (``AsyncClient.change``, here a counter), where a
change that loses has to look again.  At the end every change must have taken effect exactly once: the versions of the
acknowledged changes are all different, their sequence numbers have no gap but what ended with an unknown outcome, and
the counter says how many there were.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import objmeta
from bench.machine import describe, scratch
from objmeta.errors import Unavailable, UnknownOutcome
from objmeta.node.dev import LocalCluster

TARGET: Final = 2_000
"""Plain changes a second."""
LOADS: Final = ("put", "change")
_VALUE: Final = bytes(100)
_ROUND_TIMEOUT_S: Final = 120.0

Change = Callable[[], Awaitable[objmeta.KeyValue | None]]


class Wrong(Exception):
    """A change took effect twice, or not at all."""


# -- One process of clients -------------------------------------------------------------------------------------------


async def _drive(endpoint: str, count: int) -> None:
    async with objmeta.connect_async(endpoint) as client:
        await client.get("put")
        print("ready", flush=True)
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            load, seconds = line.split()
            print(json.dumps(await _load(client, load, count, float(seconds))), flush=True)


async def _load(client: objmeta.AsyncClient, load: str, count: int, seconds: float) -> dict[str, Any]:
    sequences: list[int] = []
    latencies: list[float] = []
    unknown = failed = 0

    async def put() -> objmeta.KeyValue:
        return await client.put(load, _VALUE)

    async def change() -> objmeta.KeyValue | None:
        return await client.change(load, lambda current: b"%d" % (int(current or b"0") + 1))

    do: Change = put if load == "put" else change
    start = time.monotonic()
    end = start + seconds

    async def run() -> None:
        nonlocal unknown, failed
        while (before := time.monotonic()) < end:
            try:
                changed = await do()
            except UnknownOutcome:
                unknown += 1
            except Unavailable:
                failed += 1
            else:
                assert changed is not None, "no function here deletes"
                sequences.append(changed.sequence)
                latencies.append(time.monotonic() - before)

    await asyncio.gather(*(run() for _ in range(count)))
    return {
        "sequences": sequences,
        "latencies": latencies,
        "unknown": unknown,
        "failed": failed,
        "seconds": time.monotonic() - start,
    }


# -- All of them ------------------------------------------------------------------------------------------------------


def _measure(cluster: LocalCluster, processes: Sequence[subprocess.Popen[str]], load: str, seconds: float) -> float:
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(f"{load} {seconds}\n")
        process.stdin.flush()
    answers = [json.loads(_answer(process)) for process in processes]
    _check(cluster, load, answers)
    latencies = sorted(latency for answer in answers for latency in answer["latencies"])
    rates: list[float] = [len(answer["latencies"]) / answer["seconds"] for answer in answers]
    shares = ", ".join(f"{rate:,.0f}" for rate in rates)
    p50, p99 = (1000 * latencies[len(latencies) * part // 100] for part in (50, 99))
    print(
        f"{load:<8}{sum(rates):>8,.0f} changes/s (by node: {shares});  p50 {p50:.1f} ms, p99 {p99:.1f} ms, "
        f"longest {1000 * latencies[-1]:,.0f} ms;  {sum(answer['unknown'] for answer in answers)} unknown, "
        f"{sum(answer['failed'] for answer in answers)} failed",
        flush=True,
    )
    return sum(rates)


def _check(cluster: LocalCluster, load: str, answers: Sequence[dict[str, Any]]) -> None:
    """Every change took effect exactly once. Raises Wrong."""
    sequences = [sequence for answer in answers for sequence in answer["sequences"]]
    unknown = sum(answer["unknown"] for answer in answers)
    if not sequences:
        raise Wrong(f"{load}: nobody changed anything")
    if len(set(sequences)) < len(sequences):
        raise Wrong(f"{load}: two changes have one sequence number")
    with objmeta.connect(",".join(cluster.endpoints)) as client:
        last = client.get(load)
    if (
        last is None
        or not len(sequences) <= last.sequence <= len(sequences) + unknown
        or last.sequence < max(sequences)
    ):
        raise Wrong(f"{load}: {len(sequences)} changes were acknowledged, {unknown} are unknown; the store has {last}")
    if load == "change" and int(last.value) != last.sequence:
        raise Wrong(f"the counter is at {int(last.value)} after {last.sequence} changes")


def _answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"a load process ended with exit code {process.wait(_ROUND_TIMEOUT_S)}")
    return line


def main() -> int:
    """The exit code: 1 if the target was missed or a change did not take effect exactly once."""
    parser = argparse.ArgumentParser(description="One key that everybody changes.")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--directory", help="where the data goes (default: ./build)")
    parser.add_argument("--drive", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.drive:
        asyncio.run(_drive(arguments.drive, arguments.clients))
        return 0
    with scratch(arguments.directory) as directory, LocalCluster(directory) as cluster:
        print(describe(directory))
        nodes = len(cluster.endpoints)
        processes: list[subprocess.Popen[str]] = []
        try:
            for at, endpoint in enumerate(cluster.endpoints):
                count = arguments.clients // nodes + (at < arguments.clients % nodes)
                command = [sys.executable, "-m", "bench.hotkey", "--drive", endpoint, "--clients", str(count)]
                processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            for process in processes:
                _answer(process)
            rates = {load: _measure(cluster, processes, load, arguments.seconds) for load in LOADS}
        except Wrong as wrong:
            print(f"WRONG: {wrong}")
            return 1
        finally:
            for process in processes:
                process.kill()
                process.communicate()
    reached = rates["put"] >= TARGET
    print(f"every change took effect exactly once; target: {TARGET:,} puts/s, {'reached' if reached else 'missed'}")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
