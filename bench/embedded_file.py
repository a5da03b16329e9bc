"""One big file into an embedded store and out again, against ``cp`` with ``sync`` and against reading it with hashing.

``python bench/embedded_file.py [--mib 1024] [--runs 5] [--dir DIR]``

The four are measured in turn, several times, in one directory on one disk; what counts is the ratio of the medians,
because a shared machine is not equally fast all the time.  The source is warm (in the page cache), every put is of a
new store (nothing to share), and opening the store is not counted.  Before each, a file of twice the size is written
and removed: on a virtual machine whose free memory goes back to the host, the first write to a page costs ten times as
much as the next (2.2 against 0.2 s a GiB, whoever writes), and without this the last in turn pays for it.

Targets: put within 2 times of ``cp`` followed by ``sync``, get within 3 times of reading and hashing.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from blake3 import blake3  # noqa: E402

from gateway.data.transfer import READ_BYTES, open_store  # noqa: E402

PUT_RATIO_MAX = 2.0
GET_RATIO_MAX = 3.0


def copy_and_sync(source: Path, target: Path) -> None:
    """What a put is measured against."""
    subprocess.run(["cp", source, target], check=True)
    os.sync()


def read_and_hash(source: Path) -> None:
    """What a get is measured against."""
    hasher = blake3()
    buffer = bytearray(READ_BYTES)
    with open(source, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            hasher.update(memoryview(buffer)[:count])


def warm_memory(directory: Path, mib: int) -> None:
    """Leave free memory that was used before, and nothing to be written."""
    ballast = directory / "ballast"
    block = bytes(1 << 20)
    with open(ballast, "wb") as file:
        for _ in range(2 * mib):
            file.write(block)
    ballast.unlink()
    os.sync()


def seconds(work: Callable[[], None]) -> float:
    """How long something takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


async def put_and_get(home: Path, source: Path, target: Path, mib: int) -> tuple[float, float]:
    """Seconds of a put and of a get in a new store."""
    store = await open_store(home)
    await store.client.create_bucket("bench")
    await store.put_stream("bench", "first", os.urandom(64 << 10))
    warm_memory(home, mib)
    begun = time.perf_counter()
    await store.put_file("bench", "file", source)
    put_s = time.perf_counter() - begun
    warm_memory(home, mib)
    begun = time.perf_counter()
    await store.get_file("bench", "file", target)
    get_s = time.perf_counter() - begun
    await store.close()
    return put_s, get_s


def main() -> int:
    """Measure, print a table, and say by the exit code whether the targets are met."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mib", type=int, default=1024, help="size of the file in MiB")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--dir", type=Path, default=ROOT, help="where to make a temporary directory")
    options = parser.parse_args()
    taken: dict[str, list[float]] = {"cp+sync": [], "put": [], "read+hash": [], "get": []}
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=options.dir) as name:
        directory = Path(name)
        source, target, home = directory / "source", directory / "target", directory / "store"
        with open(source, "wb") as file:
            for _ in range(options.mib):
                file.write(os.urandom(1 << 20))
        os.sync()
        for run in range(options.runs):
            warm_memory(directory, options.mib)
            taken["cp+sync"].append(seconds(lambda: copy_and_sync(source, target)))
            target.unlink()
            taken["read+hash"].append(seconds(lambda: read_and_hash(source)))
            put_s, get_s = asyncio.run(put_and_get(home, source, target, options.mib))
            taken["put"].append(put_s)
            taken["get"].append(get_s)
            shutil.rmtree(home)
            target.unlink()
            print(
                f"run {run + 1}: " + ", ".join(f"{what} {times[-1]:.2f} s" for what, times in taken.items()), flush=True
            )
    put_ok = judged(taken, "put", "cp+sync", PUT_RATIO_MAX)
    get_ok = judged(taken, "get", "read+hash", GET_RATIO_MAX)
    return 0 if put_ok and get_ok else 1


def judged(taken: dict[str, list[float]], ours: str, theirs: str, ratio_max: float) -> bool:
    """Print the medians of two and their ratio; whether it is good enough."""
    ours_s, theirs_s = statistics.median(taken[ours]), statistics.median(taken[theirs])
    ratio = ours_s / theirs_s
    print(f"{ours} {ours_s:.2f} s, {theirs} {theirs_s:.2f} s: {ratio:.2f} times (target {ratio_max:g})")
    return ratio <= ratio_max


if __name__ == "__main__":
    sys.exit(main())
