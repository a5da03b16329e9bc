"""Storing many small chunks, each durable before the next of its writer: in packs, in a file each, and plain files.

``python -m bench.chunks [--count 10000] [--length 20480] [--writers 32] [--rounds 3] [--dir DIR]``

In turn, round by round, on one disk, new bytes each time:

* ``packed``: a place for chunks as nodes and embedded stores use it, with short chunks in packs;
* ``files``: the same place told to give every chunk a file of its own;
* ``plain``: as many threads as writers, each writing, syncing and closing one file after the other, in 256
  directories that are synced at the end: the least that makes each file durable by itself;
* ``plain-at-once``: the same files, nothing synced until all are written: durable all at once, at the end.

Beside objects a second: what it takes on the disk, and how many objects a second are read back, verified.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from bench.machine import describe, scratch
from gateway.blobs.local import LocalBlobs
from gateway.blobs.packs import PACKED_BYTES_MAX
from objmeta import Chunk

READS: Final = 2000
RATIO_MIN: Final = 1.0
"""Packed, beside plain files that are each durable by themselves."""


class Done:
    """What one way of storing took."""

    def __init__(self, puts_s: float, reads_s: float, disk_bytes: int, files: int) -> None:
        self.puts_s = puts_s
        self.reads_s = reads_s
        self.disk_bytes = disk_bytes
        self.files = files


def place(packed_bytes_max: int) -> Callable[[Path, int, int, int], Done]:
    """Through a place for chunks."""

    async def work(directory: Path, count: int, length: int, writers: int) -> Done:
        blobs = LocalBlobs(directory / "blobs", packed_bytes_max=packed_bytes_max)
        await blobs.put(b"open", generation=1)
        contents = iter(range(count))
        chunks: list[Chunk] = []

        async def writer() -> None:
            for _ in contents:
                chunks.append(await blobs.put(os.urandom(length), generation=1))

        async def reader() -> None:
            for chunk in wanted:
                await blobs.get(chunk)

        begun = time.perf_counter()
        await asyncio.gather(*(writer() for _ in range(writers)))
        puts_s = time.perf_counter() - begun
        wanted = iter(chunks[:: max(1, count // READS)])
        read = len(chunks[:: max(1, count // READS)])
        begun = time.perf_counter()
        await asyncio.gather(*(reader() for _ in range(writers)))
        reads_s = (time.perf_counter() - begun) / read
        await blobs.close()
        return Done(puts_s, reads_s, *occupied(directory))

    def run(directory: Path, count: int, length: int, writers: int) -> Done:
        return asyncio.run(work(directory, count, length, writers))

    return run


def plain(sync_each: bool) -> Callable[[Path, int, int, int], Done]:
    """Without us."""

    def run(directory: Path, count: int, length: int, writers: int) -> Done:
        for prefix in range(256):
            (directory / f"{prefix:02x}").mkdir()
        numbers = iter(range(count))

        def path(number: int) -> Path:
            return directory / f"{number % 256:02x}" / str(number)

        def writer() -> None:
            for number in numbers:
                descriptor = os.open(path(number), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
                os.write(descriptor, os.urandom(length))
                if sync_each:
                    os.fsync(descriptor)
                os.close(descriptor)

        def reader() -> None:
            for number in wanted:
                path(number).read_bytes()

        begun = time.perf_counter()
        with ThreadPoolExecutor(writers) as pool:
            list(pool.map(lambda _: writer(), range(writers)))
        if not sync_each:
            os.sync()
        for prefix in range(256):
            descriptor = os.open(directory / f"{prefix:02x}", os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        puts_s = time.perf_counter() - begun
        wanted = iter(range(0, count, max(1, count // READS)))
        read = len(range(0, count, max(1, count // READS)))
        begun = time.perf_counter()
        reader()
        return Done(puts_s, (time.perf_counter() - begun) / read, *occupied(directory))

    return run


def occupied(directory: Path) -> tuple[int, int]:
    """Bytes that files below a directory take, and how many files there are."""
    found = [path.stat() for path in directory.rglob("*") if path.is_file()]
    return sum(status.st_blocks * 512 for status in found), len(found)


WAYS: Final = {
    "packed": place(PACKED_BYTES_MAX),
    "files": place(0),
    "plain": plain(True),
    "plain-at-once": plain(False),
}


def main() -> int:
    """Measure, print a table, and say by the exit code whether packs are worth it."""
    parser = argparse.ArgumentParser(prog="python -m bench.chunks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000, help="chunks in each round")
    parser.add_argument("--length", type=int, default=20 << 10, help="bytes of each")
    parser.add_argument("--writers", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", default="", help=f"which of them, separated by commas: {', '.join(WAYS)}")
    parser.add_argument("--pack-all", action="store_true", help="pack whatever the length")
    parser.add_argument("--dir", default=None, help="where to put files (default: build/)")
    options = parser.parse_args()
    ways = dict(WAYS)
    if options.pack_all:
        ways["packed"] = place(options.length)
    if options.ways:
        ways = {name: ways[name] for name in options.ways.split(",")}
    done: dict[str, list[Done]] = {name: [] for name in ways}
    with scratch(options.dir) as directory:
        print(describe(directory), flush=True)
        for _ in range(options.rounds):
            for name, work in ways.items():
                home = directory / "round"
                home.mkdir()
                done[name].append(work(home, options.count, options.length, options.writers))
                shutil.rmtree(home)
                os.sync()
    print(f"{options.count} chunks of {options.length} bytes, {options.writers} writers, {options.rounds} rounds")
    print(f"{'':20}  objects/s (range)            reads/s   bytes on disk each   files")
    rates: dict[str, float] = {}
    for name, each in done.items():
        puts = [options.count / one.puts_s for one in each]
        rates[name] = statistics.median(puts)
        reads = statistics.median(1 / one.reads_s for one in each)
        print(
            f"{name:20}  {rates[name]:>8,.0f} ({min(puts):,.0f} to {max(puts):,.0f})".ljust(50)
            + f" {reads:>8,.0f}   {each[-1].disk_bytes / options.count:>12,.0f}   {each[-1].files:>14,}"
        )
    if not {"packed", "plain"} <= set(rates):
        return 0
    ratio = rates["packed"] / rates["plain"]
    print(f"packed / plain: {ratio:.2f} (target {RATIO_MIN:g})")
    return 0 if ratio >= RATIO_MIN else 1


if __name__ == "__main__":
    sys.exit(main())
