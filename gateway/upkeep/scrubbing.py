"""Scrub: every chunk that is here is read and hashed once per period, at a bounded rate, and what is damaged is healed.

Where it stands is kept in a small file, so that a restart goes on from there.  The file is a convenience: without it a
pass begins anew.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from gateway.blobs.files import in_thread
from gateway.blobs.local import LocalBlobs
from gateway.upkeep.pace import Pace
from gateway.upkeep.runs import Progress
from objmeta import Chunk, errors

STEP_BYTES: Final = 1 << 20
"""Little enough that whoever waits for the disk waits milliseconds."""
KEEP_EVERY_BYTES: Final = 1 << 30
_FILE: Final = "scrub.json"

Heal = Callable[[Chunk], Awaitable[object]]
"""Fetches a good copy of a damaged chunk and stores it. Raises ObjmetaError."""


class Standing(msgspec.Struct):
    """Where the scrub stands: ``next`` is the digest, in hexadecimal, after which the pass goes on that began at
    ``began`` (seconds since the epoch); ``ended`` is when the last complete pass did, 0: none has."""

    next: str = ""
    began: float = 0.0
    ended: float = 0.0


class Scrubber:
    """Scrubs one place. ``heal`` is None where there are no other copies: damage is then only counted.

    ``step_bytes`` are read between two looks at the bound.
    """

    def __init__(self, blobs: LocalBlobs, pace: Pace, heal: Heal | None, *, step_bytes: int = STEP_BYTES) -> None:
        self._step_bytes = step_bytes
        self._blobs = blobs
        self._pace = pace
        self._heal = heal
        self._standing: Standing | None = None

    async def due(self, period_s: float) -> bool:
        """Whether a pass was interrupted, or the last one began longer than a period ago."""
        if self._standing is None:
            self._standing = await in_thread(_load, self._blobs.path)
        standing = self._standing
        if not standing.began:  # a new place: its first pass is due in a period
            standing.began = time.time()
            await in_thread(_keep, self._blobs.path, standing)
        return bool(standing.next) or time.time() >= standing.began + period_s

    async def run(self, progress: Progress) -> None:
        """One pass, or the rest of one that was interrupted. Raises StoreError."""
        standing = self._standing if self._standing is not None else await in_thread(_load, self._blobs.path)
        self._standing = standing
        if not standing.next:
            standing.began = time.time()
        progress.total = (await self._blobs.usage()).chunks
        after = bytes.fromhex(standing.next)
        kept = 0
        while True:
            found = await self._blobs.verify(after, self._step_bytes)
            progress.chunks += found.checked
            progress.bytes += found.checked_bytes
            for chunk in found.damaged:
                await self._mend(chunk, progress)
            after = found.next
            if not after:
                break
            standing.next = after.hex()
            if progress.bytes - kept >= KEEP_EVERY_BYTES:
                kept = progress.bytes
                await in_thread(_keep, self._blobs.path, standing)
            await self._pace.take(found.checked_bytes)
        standing.next, standing.ended = "", time.time()
        await in_thread(_keep, self._blobs.path, standing)

    async def _mend(self, chunk: Chunk, progress: Progress) -> None:
        if self._heal is not None:
            with suppress(errors.ObjmetaError):
                await self._heal(chunk)
                progress.fixed += 1
                return
        progress.left += 1


def _load(path: Path) -> Standing:
    try:
        return msgspec.json.decode((path / _FILE).read_bytes(), type=Standing)
    except (OSError, msgspec.MsgspecError):
        return Standing()


def _keep(path: Path, standing: Standing) -> None:
    temporary = path / f"{_FILE}.{os.getpid()}"
    with suppress(OSError):  # on a disk that cannot be written to, it can still be read
        if path.is_dir():
            temporary.write_bytes(msgspec.json.encode(standing))
            temporary.replace(path / _FILE)
