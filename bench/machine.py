"""What a measurement needs to know about the machine, and where it may put its files."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_SYNCS: Final = 200


@contextmanager
def scratch(parent: str | None) -> Iterator[Path]:
    """A directory of its own, removed at the end; in ``parent``, or in ``build`` of the working directory.

    Not the system's temporary directory: that is often memory, where a sync costs nothing.
    """
    base = Path(parent or "build")
    base.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="bench-", dir=base)).resolve()
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def describe(directory: Path) -> str:
    """One line: cores, load, and what a sync costs where the files are."""
    p50, p99 = _sync_ms(directory)
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} cores, load {load:.1f}; fdatasync of 4 KiB: p50 {p50:.2f} ms, p99 {p99:.2f} ms"


def _sync_ms(directory: Path) -> tuple[float, float]:
    took = []
    path = directory / "sync-probe"
    file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    try:
        for _ in range(_SYNCS):
            os.write(file, bytes(4096))
            start = time.perf_counter()
            os.fdatasync(file)
            took.append(1000 * (time.perf_counter() - start))
    finally:
        os.close(file)
        path.unlink()
    took.sort()
    return took[_SYNCS // 2], took[_SYNCS * 99 // 100]


def cpu_seconds(pids: Sequence[int]) -> float:
    """Processor time that these processes, children not included, have used."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def spread(values: Sequence[float]) -> str:
    """Median, least and greatest, for people."""
    return f"{statistics.median(values):>8,.0f}  ({min(values):,.0f} to {max(values):,.0f})"
