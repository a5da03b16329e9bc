"""A big file into three local nodes and out again, against ``cp`` with ``sync``; and many small objects.

``python -m bench.cluster_file [--mib 1024] [--runs 3] [--objects 10000] [--writers 32] [--dir DIR]``

Three nodes keep every chunk (replicas 3), so a put is measured against three times ``cp`` + ``sync``, a get against
one.  They are measured in turn, several times, in one directory on one disk; what counts is the ratio of the medians.
The small objects, 20 KiB each, are measured against writing the same files with as many threads and syncing each
of them, and against the fastest way there is: all of them, and then one sync of the file system.  Client and nodes are
processes of their own, and the most memory each took is shown.  Then 1 MiB is inserted in the middle of the file, and
what the new version adds on one node is shown.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from bench.machine import cpu_seconds, describe, scratch
from gateway.data.transfer import Store, open_store
from gateway.server import local_cluster

PUT_RATIO_MIN: Final = 0.5
GET_RATIO_MIN: Final = 0.6
MEMORY_MIB_MAX: Final = 300
OBJECT_BYTES: Final = 20 << 10
BUCKET: Final = "bench"


# -- The client, a process of its own ---------------------------------------------------------------------------------


async def _client(endpoints: str) -> None:
    store = await open_store(endpoints)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        what, *arguments = json.loads(line)
        begun, cpu = time.perf_counter(), time.process_time()
        if what == "put":
            await store.put_file(BUCKET, *arguments)
        elif what == "get":
            await store.get_file(BUCKET, *arguments)
        else:
            await _put_small(store, *arguments)
        took = {
            "seconds": time.perf_counter() - begun,
            "cpu_s": time.process_time() - cpu,
            "peak_mib": peak_mib("self"),
        }
        print(json.dumps(took), flush=True)
    await store.close()


async def _put_small(store: Store, prefix: str, objects: int, writers: int) -> None:
    block = os.urandom(OBJECT_BYTES)
    numbers = iter(range(objects))

    async def writer() -> None:
        for number in numbers:
            await store.put_stream(BUCKET, f"{prefix}/{number}", number.to_bytes(8, "big") + block[8:])

    await asyncio.gather(*(writer() for _ in range(writers)))


class Client:
    """The client's process, told what to do line by line."""

    def __init__(self, endpoints: str) -> None:
        command = (sys.executable, "-m", "bench.cluster_file", "--client", endpoints)
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def do(self, *task: Any) -> dict[str, float]:
        """Have something done; seconds, processor seconds, most memory so far."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(task), file=self._process.stdin, flush=True)
        answer: dict[str, float] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


# -- What it is measured against --------------------------------------------------------------------------------------


def copy_and_sync(source: Path, target: Path) -> float:
    """How long ``cp`` and ``sync`` of the copy take, in seconds."""
    begun = time.perf_counter()
    subprocess.run(("cp", source, target), check=True)
    subprocess.run(("sync", target), check=True)
    return time.perf_counter() - begun


def write_files(directory: Path, objects: int, writers: int, sync_each: bool) -> float:
    """How long it takes to have so many small files durable, in seconds."""
    directory.mkdir()
    block = os.urandom(OBJECT_BYTES)

    def write(number: int) -> None:
        with open(directory / str(number), "wb", buffering=0) as file:
            file.write(block)
            if sync_each:
                os.fdatasync(file.fileno())

    begun = time.perf_counter()
    with ThreadPoolExecutor(writers) as pool:
        list(pool.map(write, range(objects)))
    descriptor = os.open(directory, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    if not sync_each:
        subprocess.run(("sync", "--file-system", directory), check=True)
    return time.perf_counter() - begun


def peak_mib(pid: int | str) -> float:
    """The most memory that a process had, in MiB."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def disk_mib(directory: Path) -> float:
    """How much the files below a directory take, in MiB."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) / (1 << 20)


# -- The measurement --------------------------------------------------------------------------------------------------


def main() -> int:
    """The exit code: 1 if a target was missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--objects", type=int, default=10_000)
    parser.add_argument("--writers", type=int, default=32)
    parser.add_argument("--dir")
    parser.add_argument("--client", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        asyncio.run(_client(options.client))
        return 0
    with scratch(options.dir) as directory:
        print(describe(directory), flush=True)
        with local_cluster(directory / "cluster") as cluster:
            asyncio.run(_make_bucket(",".join(cluster.endpoints)))
            client = Client(",".join(cluster.endpoints))
            try:
                pids = [pid for node_id in cluster.node_ids if (pid := cluster.pid(node_id))]
                fine = large(options, directory, client, pids, directory / "cluster" / "node-1" / "data" / "blobs")
                small(options, directory, client)
                peaks = {"client": client.do("small", "last", 1, 1)["peak_mib"]}
                peaks |= {f"node {number}": peak_mib(pid) for number, pid in enumerate(pids, start=1)}
            finally:
                client.close()
        shown = ", ".join(f"{who} {mib:.0f}" for who, mib in peaks.items())
        print(f"most memory in MiB (at most {MEMORY_MIB_MAX}): {shown}")
    return 0 if fine and max(peaks.values()) <= MEMORY_MIB_MAX else 1


async def _make_bucket(endpoints: str) -> None:
    store = await open_store(endpoints)
    await store.client.create_bucket(BUCKET)
    await store.close()


def large(options: argparse.Namespace, directory: Path, client: Client, pids: list[int], blobs: Path) -> bool:
    """The big file; whether the targets were met."""
    source, target = directory / "source", directory / "target"
    taken: dict[str, list[float]] = {"cp+sync": [], "put": [], "get": []}
    for run in range(options.runs):
        with open(source, "wb") as file:  # new content each time: nothing of it is there already
            for _ in range(options.mib):
                file.write(os.urandom(1 << 20))
        os.sync()
        taken["cp+sync"].append(copy_and_sync(source, target))
        target.unlink()
        nodes_cpu = cpu_seconds(pids)
        put = client.do("put", "big", str(source))
        between_cpu = cpu_seconds(pids)
        os.sync()
        get = client.do("get", "big", str(target))
        get_cpu = cpu_seconds(pids) - between_cpu
        target.unlink()
        taken["put"].append(put["seconds"])
        taken["get"].append(get["seconds"])
        print(
            f"run {run + 1}: " + ", ".join(f"{what} {times[-1]:.2f} s" for what, times in taken.items()) + "; cpu: "
            f"put {put['cpu_s']:.1f} s + nodes {between_cpu - nodes_cpu:.1f} s, "
            f"get {get['cpu_s']:.1f} s + nodes {get_cpu:.1f} s",
            flush=True,
        )
    before = disk_mib(blobs)
    inserted = directory / "inserted"
    middle = options.mib << 19
    with open(source, "rb") as old, open(inserted, "wb") as new:
        for number in range(options.mib):
            if number << 20 == middle:
                new.write(os.urandom(1 << 20))
            new.write(old.read(1 << 20))
    again = client.do("put", "big", str(inserted))
    print(
        f"1 MiB inserted in the middle: put in {again['seconds']:.2f} s, {disk_mib(blobs) - before:.1f} MiB more a node"
    )
    base_s, put_s, get_s = (statistics.median(taken[what]) for what in ("cp+sync", "put", "get"))
    for what, rate_s, base in (("put", put_s, 3 * base_s), ("get", get_s, base_s)):
        print(f"{what} {options.mib / rate_s:,.0f} MiB/s, {base / rate_s:.2f} of cp+sync{' times 3' * (what == 'put')}")
    return 3 * base_s / put_s >= PUT_RATIO_MIN and base_s / get_s >= GET_RATIO_MIN


def small(options: argparse.Namespace, directory: Path, client: Client) -> None:
    """Many small objects."""
    one_by_one = write_files(directory / "one-by-one", options.objects, options.writers, True)
    at_once = write_files(directory / "at-once", options.objects, options.writers, False)
    ours = client.do("small", "small", options.objects, options.writers)
    rates = [options.objects / seconds for seconds in (ours["seconds"], one_by_one, at_once)]
    print(
        f"objects of 20 KiB, {options.writers} writers: {rates[0]:,.0f}/s in three copies; files, each synced: "
        f"{rates[1]:,.0f}/s; files and one sync at the end: {rates[2]:,.0f}/s"
    )


if __name__ == "__main__":
    sys.exit(main())
