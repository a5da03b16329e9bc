"""Durable puts: three of our nodes and three members of etcd, in turn, in one run.

    python -m bench.puts [--rounds N] [--seconds S] [--writers W] [--directory DIR]

Both clusters run on this machine from the beginning to the end, on the same disk, and only one of them is loaded at a
time. Each round loads every client in turn, so that whatever else the machine does hits all of them alike; the medians
over the rounds are compared. Ours is the real ``AsyncClient`` putting objects of 1 KiB, etcd puts values of 300 bytes.

A client in Python takes processor time from the servers, so etcd gets the best of several: ``grpc.aio``, which is what
a Python program would use, and a bare one (bench/http2.py) that costs next to nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import objmeta
from bench import etcd
from bench.driver import BUCKET
from bench.machine import cpu_seconds, describe, scratch, spread
from objmeta.node.dev import LocalCluster

TARGET = 0.7
"""Of etcd's median."""
_ROUND_TIMEOUT_S = 120.0


@dataclass
class Load:
    """One way to load a cluster: some processes that share the writers."""

    name: str
    kind: str
    endpoints: Sequence[str]
    servers: Sequence[int]
    writers: int
    processes: int
    running: list[subprocess.Popen[str]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    driver_us: list[float] = field(default_factory=list)
    server_us: list[float] = field(default_factory=list)

    @contextmanager
    def started(self) -> Iterator[None]:
        """Start the processes, and stop them at the end."""
        writers = self.writers // self.processes
        command = [sys.executable, "-m", "bench.driver", self.kind, "--endpoints", ",".join(self.endpoints)]
        command += ["--writers", str(writers)]
        try:
            for _ in range(self.processes):
                self.running.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            for process in self.running:
                _answer(process)
            yield
        finally:
            for process in self.running:
                process.kill()
                process.communicate()

    def run(self, seconds: float) -> None:
        """One round."""
        before = cpu_seconds(self.servers)
        drivers = [process.pid for process in self.running]
        drivers_before = cpu_seconds(drivers)
        for process in self.running:
            assert process.stdin is not None
            process.stdin.write(f"run {seconds}\n")
            process.stdin.flush()
        answers = [json.loads(_answer(process)) for process in self.running]
        puts = sum(answer["puts"] for answer in answers)
        self.rates.append(sum(answer["puts"] / answer["seconds"] for answer in answers))
        self.p50_ms.append(max(answer["p50_ms"] for answer in answers))
        self.p99_ms.append(max(answer["p99_ms"] for answer in answers))
        self.driver_us.append(1e6 * (cpu_seconds(drivers) - drivers_before) / puts)
        self.server_us.append(1e6 * (cpu_seconds(self.servers) - before) / puts)

    @property
    def median(self) -> float:
        """Puts a second."""
        return statistics.median(self.rates)

    def report(self) -> str:
        """One line."""
        latency = f"p50 {statistics.median(self.p50_ms):5.1f} ms, p99 {statistics.median(self.p99_ms):5.1f} ms"
        cpu = f"{statistics.median(self.driver_us):4.0f} + {statistics.median(self.server_us):4.0f} µs"
        return f"{self.name:<28}{spread(self.rates):<28}{latency};  client + servers {cpu} of processor a put"


def _answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"a load process ended with exit code {process.wait(_ROUND_TIMEOUT_S)}")
    return line


def main() -> int:
    """The exit code: 1 if the target was missed."""
    parser = argparse.ArgumentParser(description="Durable puts, ours and etcd's, in turn.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each load in each round")
    parser.add_argument("--writers", type=int, default=64)
    parser.add_argument("--directory", help="where the data goes (default: ./build)")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        directory = stack.enter_context(scratch(arguments.directory))
        print(describe(directory))
        cluster = stack.enter_context(LocalCluster(directory / "objmeta", nodes=3))
        with objmeta.connect(",".join(cluster.endpoints)) as client:
            client.create_bucket(BUCKET)
        endpoints, writers = cluster.endpoints, arguments.writers
        servers = [pid for node in cluster.node_ids if (pid := cluster.pid(node)) is not None]
        ours = [Load(f"objmeta, {n} client(s)", "objmeta", endpoints, servers, writers, n) for n in (1, 2)]
        theirs: list[Load] = []
        if etcd.is_installed():
            members = stack.enter_context(etcd.EtcdCluster(directory / "etcd"))
            leader = [members.leader()]
            theirs = [
                Load("etcd, grpc.aio, 1 client", "etcd-grpc", leader, members.pids, writers, 1),
                Load("etcd, grpc.aio, 2 clients", "etcd-grpc", leader, members.pids, writers, 2),
                Load("etcd, bare client", "etcd-bare", leader, members.pids, writers, 1),
            ]
        else:
            print("etcd is not installed (Debian: etcd-server): no comparison")
        loads = [*ours, *theirs]
        for load in loads:
            stack.enter_context(load.started())
            load.run(min(1.0, arguments.seconds))
        for load in loads:
            for figures in (load.rates, load.p50_ms, load.p99_ms, load.driver_us, load.server_us):
                figures.clear()  # that was to warm up
        for _ in range(arguments.rounds):
            for load in loads:
                load.run(arguments.seconds)
        print(f"durable puts per second, {writers} writers; median (least to greatest) of {arguments.rounds} rounds")
        for load in loads:
            print(load.report())
        if not theirs:
            return 0
        best, rival = (max(group, key=lambda load: load.median) for group in (ours, theirs))
        reached = best.median >= TARGET * rival.median
        for name, median in (("etcd's best", rival.median), ("etcd from Python (grpc.aio)", _python(theirs))):
            print(f"ratio to {name}: {best.median / median:.2f}")
        print(f"target: {TARGET} of etcd's best, {'reached' if reached else 'missed'}")
        return 0 if reached else 1


def _python(loads: Sequence[Load]) -> float:
    return max(load.median for load in loads if load.kind == "etcd-grpc")


if __name__ == "__main__":
    sys.exit(main())
