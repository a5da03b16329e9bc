"""What creating and deleting many names leaves behind on three nodes, before and after they are erased.

Compared are the tables of their databases.  The logs beside them hold the last changes, of whatever kind; how long they
are is bounded, and says nothing of how many names there were.

python -m bench.erasure [--names N] [--kept N] [--direct] [--directory DIR]

The names are made and deleted by a client, or with ``--direct`` by accepts to the stores of the stopped cluster
(``bench.filling``), which leave the same rows and records in less time.  Erasing is the real thing either way.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import objmeta
from bench.filling import fill
from bench.machine import describe, scratch
from objmeta.model.names import value_register
from objmeta.node.dev import LocalCluster

TARGET = 1.1
"""Bytes on all disks, as a multiple of what they were before the names were made."""
ALLOWANCE = 8 << 20
"""Bytes of each node on top of that: the numbers of the last 200,000 changes."""
_WRITERS = 256
_VALUE = b"x" * 100
_TIDY_S_MAX = 180.0
_TRIES_MAX = 3
_OPEN_S_MAX = 120.0


async def _each(names: Iterable[bytes], work: Callable[[bytes], Awaitable[object]]) -> None:
    waiting = iter(names)

    async def worker() -> None:
        for name in waiting:
            await work(name)

    await asyncio.gather(*(worker() for _ in range(_WRITERS)))


async def _make_and_delete(endpoints: str, prefix: bytes, count: int, delete: bool) -> None:
    names = [prefix + b"/%012d" % number for number in range(count)]
    async with objmeta.connect_async(endpoints, timeout_s=60) as client:
        begin = time.perf_counter()
        await _each(names, lambda name: client.put(name, _VALUE))
        made_s = time.perf_counter() - begin
        print(f"made {count:,} names, {count / made_s:,.0f}/s", flush=True)
        if delete:
            begin = time.perf_counter()
            await _each(names, client.delete)
            print(f"deleted them, {count / (time.perf_counter() - begin):,.0f}/s", flush=True)


async def _erase(endpoints: str, kept: int) -> bool:
    """Erase; whether every node has only what is kept, and the generation."""
    async with objmeta.connect_async(endpoints, timeout_s=60) as client:
        registers: list[int] = []
        for _ in range(_TRIES_MAX):
            begin = time.perf_counter()
            found = await client.collect()
            while not found.done:
                found = await client.collect(found.run)
            took_s = time.perf_counter() - begin
            rate = found.erased / took_s
            print(f"erased {found.erased:,} registers in {took_s:.1f} s, {rate:,.0f}/s; left {found.left}")
            registers = [node.registers for node in (await client.status()).nodes]
            if registers == [kept + 1] * len(registers):
                return True
        print(f"registers on the nodes: {registers}, of which {kept + 1} are to stay")
        return False


def _bytes(directory: Path, logs: bool = False) -> int:
    """What the disk holds of all nodes' acceptors, without their logs or (``logs``) of these."""
    files = (Path(where) / name for where, _, names in os.walk(directory) for name in names)
    return sum(_on_disk(file) for file in files if "acceptor" in file.parts and (file.suffix == ".log") is logs)


def _on_disk(file: Path) -> int:
    try:
        return file.stat().st_blocks * 512
    except FileNotFoundError:  # removed just now
        return 0


def _at_rest(cluster: LocalCluster, directory: Path) -> int:
    """The same when what is in memory and in logs has been written to tables, which starting does."""
    cluster.close()
    cluster.open(_OPEN_S_MAX)
    return _bytes(directory)


def _tidied(directory: Path, goal: float) -> int:
    """Wait until the nodes have given the room back, which they look after once a minute; what they keep."""
    begin = time.monotonic()
    while (size := _bytes(directory)) > goal and time.monotonic() - begin < _TIDY_S_MAX:
        time.sleep(1)
    return size


async def _measure(cluster: LocalCluster, directory: Path, names: int, kept: int, direct: bool) -> bool:
    """Make, delete and erase; whether the target was reached."""
    await _make_and_delete(",".join(cluster.endpoints), b"kept", kept, False)
    before = await asyncio.to_thread(_at_rest, cluster, directory)
    if direct:
        begin = time.perf_counter()
        await asyncio.to_thread(fill, cluster, value_register(b"gone/"), names, _VALUE, True)
        print(f"made and deleted {names:,} names in the stores in {time.perf_counter() - begin:.0f} s", flush=True)
    else:
        await _make_and_delete(",".join(cluster.endpoints), b"gone", names, True)
    full = await asyncio.to_thread(_at_rest, cluster, directory)
    erased = await _erase(",".join(cluster.endpoints), kept)
    after = await asyncio.to_thread(_tidied, directory, TARGET * before)
    print(
        f"bytes on the three disks: {before:,} before, {full:,} with what was deleted, {after:,} after erasing "
        f"({after / before:.2f} of before), and {_bytes(directory, logs=True):,} of logs"
    )
    reached = erased and after <= TARGET * before + 3 * ALLOWANCE
    print(f"target {TARGET} and {ALLOWANCE >> 20} MiB a node: {'reached' if reached else 'missed'}")
    return reached


def main() -> int:
    """The exit code: 1 if more is left than the target allows."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.erasure", description="What many deleted names leave on three nodes."
    )
    parser.add_argument("--names", type=int, default=100_000)
    parser.add_argument("--kept", type=int, default=20_000, help="names made before and kept")
    parser.add_argument("--direct", action="store_true", help="make and delete the names in the stores themselves")
    parser.add_argument("--directory", default="", help="where the nodes keep their data")
    given = parser.parse_args()
    with scratch(given.directory) as directory, LocalCluster(directory) as cluster:
        print(describe(directory))
        return 0 if asyncio.run(_measure(cluster, directory, given.names, given.kept, given.direct)) else 1


if __name__ == "__main__":
    sys.exit(main())
