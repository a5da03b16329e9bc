"""A place in memory: the behaviour of :class:`gateway.blobs.places.LocalBlobs` over a virtual disk, which can crash.

Steps change what is read at once and are acknowledged after a sync; what waits together shares one.  A crash keeps what
was synced and, of the steps that were not, the first few.
"""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import Awaitable, Callable, Sequence

import msgspec
from blake3 import blake3

from gateway.blobs.places import BlobStatus, ChunkMissing, Held, Sweep, Swept, Usage, Verified
from objmeta import Chunk, errors


class Row(msgspec.Struct, frozen=True):
    """One chunk. ``unmarked_since``: the first cycle that found it unmarked, since it was last touched or marked."""

    data: bytes
    touched: int = 0
    unmarked_since: int = 0
    replicas: int = 0
    damaged: bool = False


Wait = Callable[[], Awaitable[None]]
Step = tuple[bytes, Row | None]


class MemoryPlace:
    """Chunks in memory; ``sync`` takes as long as a sync takes."""

    def __init__(self, sync: Wait | None = None) -> None:
        self._sync = sync
        self._durable: dict[bytes, Row] = {}
        self._rows: dict[bytes, Row] = {}
        self._waiting: list[Step] = []
        self._syncing: asyncio.Task[None] | None = None
        self._life = 0
        self._floor = 0
        self._newest = 0
        self.on_delete: Callable[[bytes, Row, Sweep | None], None] = lambda digest, row, sweep: None
        """Told of what is deleted, with the sweep that does it."""
        self.on_gone: Callable[[bytes], None] = lambda digest: None
        """Told when that is durable."""

    # -- As a store ---------------------------------------------------------------------------------------------------

    async def put(
        self, data: bytes | memoryview, *, generation: int, replicas: int = 0, chunk: Chunk | None = None
    ) -> Chunk:
        """Store a chunk and touch it."""
        chunk = chunk or Chunk(blake3(data).digest(), len(data))
        await self._store(chunk.digest, bytes(data), generation)
        return chunk

    async def receive(self, chunk: Chunk, parts: Sequence[bytes | memoryview], *, generation: int) -> None:
        """The same for what comes in parts. Raises IntegrityError."""
        data = b"".join(parts)
        if len(data) != chunk.length or blake3(data).digest() != chunk.digest:
            raise errors.IntegrityError(f"what arrived is not chunk {chunk.digest.hex()}, and was not stored")
        await self._store(chunk.digest, data, generation)

    async def touch(self, chunks: Sequence[Chunk], *, generation: int, replicas: int = 0) -> list[bool]:
        """Touch what is there."""
        self._check(generation)
        there: list[bool] = []
        for chunk in chunks:
            row = self._rows.get(chunk.digest)
            good = row is not None and not row.damaged
            there.append(good)
            if row is not None and good:
                self._write(chunk.digest, self._touched(row, generation))
        await self._settle()
        return there

    async def get(self, chunk: Chunk, start: int = 0, stop: int | None = None) -> bytes:
        """Raises ChunkMissing, IntegrityError (damaged)."""
        row = self._rows.get(chunk.digest)
        if row is None:
            raise ChunkMissing(f"chunk {chunk.digest.hex()} is missing in memory")
        if blake3(row.data).digest() != chunk.digest:
            self._write(chunk.digest, msgspec.structs.replace(row, damaged=True))
            raise errors.IntegrityError(f"chunk {chunk.digest.hex()} in memory is damaged")
        return row.data[start:stop]

    async def get_many(self, chunks: Sequence[Chunk]) -> list[bytes | errors.StoreError]:
        """Each, or what :meth:`get` raises."""
        contents: list[bytes | errors.StoreError] = []
        for chunk in chunks:
            try:
                contents.append(await self.get(chunk))
            except errors.StoreError as problem:
                contents.append(problem)
        return contents

    async def status(self) -> tuple[BlobStatus, ...]:
        """It is up."""
        return (BlobStatus("memory", "up"),)

    async def close(self) -> None:
        """Wait for what is under way."""
        if self._syncing is not None:
            await asyncio.wait((self._syncing,))

    # -- As a place ---------------------------------------------------------------------------------------------------

    async def has(self, chunks: Sequence[Chunk]) -> list[bool]:
        """Whether each is there and not known to be damaged."""
        rows = [self._rows.get(chunk.digest) for chunk in chunks]
        return [row is not None and not row.damaged for row in rows]

    async def held(self, after: bytes = b"", limit: int = 1000) -> list[Held]:
        """In order of digest."""
        digests = sorted(self._rows)
        first = bisect.bisect_right(digests, after)
        rows = ((digest, self._rows[digest]) for digest in digests[first : first + limit])
        return [Held(digest, len(row.data), row.touched, row.replicas, row.damaged) for digest, row in rows]

    async def sweep(self, sweep: Sweep) -> Swept:
        """Delete what is due."""
        marks = dict(sweep.marks)
        self._floor, self._newest = max(self._floor, sweep.floor), max(self._newest, sweep.cycle)
        deleted = deleted_bytes = kept = unmarked = touched = 0
        for digest in sorted(self._rows):
            if digest < sweep.start or (sweep.end and digest >= sweep.end):
                continue
            row = self._rows[digest]
            if not row.touched:
                row = msgspec.structs.replace(row, touched=self._newest)
            if digest in marks:
                kept += 1
                row = msgspec.structs.replace(row, unmarked_since=0, replicas=marks[digest])
            elif row.touched >= sweep.floor:
                kept, touched = kept + 1, touched + 1
            elif self._is_due(row, sweep):
                deleted, deleted_bytes = deleted + 1, deleted_bytes + len(row.data)
                self.on_delete(digest, row, sweep)
                self._write(digest, None)
                continue
            else:
                unmarked += 1
                row = msgspec.structs.replace(row, unmarked_since=row.unmarked_since or sweep.cycle)
            if row != self._rows[digest]:
                self._write(digest, row)
        await self._settle()
        return Swept(deleted, deleted_bytes, kept, unmarked, touched)

    async def drop(self, chunk: Chunk, floor: int) -> bool:
        """Delete a surplus copy if it was last touched below ``floor``."""
        row = self._rows.get(chunk.digest)
        if row is None or not 0 < row.touched < floor:
            return False
        self.on_delete(chunk.digest, row, None)
        self._write(chunk.digest, None)
        await self._settle()
        return True

    async def verify(self, after: bytes, limit_bytes: int) -> Verified:
        """Look for damage."""
        checked = checked_bytes = 0
        damaged: list[Chunk] = []
        for digest in sorted(digest for digest in self._rows if digest > after):
            row = self._rows[digest]
            checked, checked_bytes = checked + 1, checked_bytes + len(row.data)
            if blake3(row.data).digest() != digest:
                damaged.append(Chunk(digest, len(row.data)))
                self._write(digest, msgspec.structs.replace(row, damaged=True))
            if checked_bytes >= limit_bytes:
                await self._settle()
                return Verified(digest, checked, checked_bytes, tuple(damaged))
        await self._settle()
        return Verified(b"", checked, checked_bytes, tuple(damaged))

    async def usage(self) -> Usage:
        """How much there is."""
        size = sum(len(row.data) for row in self._rows.values())
        return Usage(len(self._rows), size, size, 0, sum(row.damaged for row in self._rows.values()))

    # -- What happens to it -------------------------------------------------------------------------------------------

    def crash(self, survivors: int) -> None:
        """Lose what was not synced but the first ``survivors`` steps; who waited for a sync is never answered."""
        self._apply(survivors)
        self._waiting.clear()
        self._rows = dict(self._durable)
        self._life += 1
        self._syncing = None

    def damage(self, digest: bytes) -> None:
        """Change bytes behind its back."""
        row = self._durable[digest]
        self._rows[digest] = self._durable[digest] = msgspec.structs.replace(
            row, data=bytes((row.data[0] ^ 1,)) + row.data[1:]
        )

    def lose(self, digest: bytes) -> None:
        """Lose bytes behind its back."""
        del self._rows[digest], self._durable[digest]

    def is_settled(self, digest: bytes) -> bool:
        """Whether nothing that was done to a chunk waits for a sync."""
        return digest in self._durable and all(waiting != digest for waiting, _ in self._waiting)

    @property
    def floor(self) -> int:
        """What states a lower generation is refused."""
        return self._floor

    @property
    def waiting(self) -> int:
        """Steps that were not synced yet."""
        return len(self._waiting)

    @property
    def rows(self) -> dict[bytes, Row]:
        """What is there, by digest."""
        return self._rows

    @property
    def durable(self) -> dict[bytes, Row]:
        """What would be there after a crash."""
        return self._durable

    async def _store(self, digest: bytes, data: bytes, generation: int) -> None:
        self._check(generation)
        old = self._rows.get(digest)
        row = Row(data, generation or self._newest) if old is None else self._touched(old, generation)
        self._write(digest, msgspec.structs.replace(row, data=data, damaged=False))
        await self._settle()

    async def raise_floor(self, generation: int) -> None:
        """Refuse what states a lower generation."""
        self._floor = max(self._floor, generation)

    def _check(self, generation: int) -> None:
        if generation and generation < self._floor:
            raise errors.StaleGeneration(f"generation {generation} is below {self._floor}")
        self._newest = max(self._newest, generation)

    def _touched(self, row: Row, generation: int) -> Row:
        """When a chunk was touched of which that was not known stays so until a sweep dates it."""
        touched = max(row.touched, generation or self._newest) if row.touched else 0
        return msgspec.structs.replace(row, touched=touched, unmarked_since=0)

    def _is_due(self, row: Row, sweep: Sweep) -> bool:
        return 0 < row.unmarked_since < sweep.cycle

    def _write(self, digest: bytes, row: Row | None) -> None:
        if row is None:
            self._rows.pop(digest, None)
        else:
            self._rows[digest] = row
        self._waiting.append((digest, row))

    def _apply(self, steps: int) -> None:
        for digest, row in self._waiting[:steps]:
            if row is None:
                self._durable.pop(digest, None)
                self.on_gone(digest)
            else:
                self._durable[digest] = row
        del self._waiting[:steps]

    async def _settle(self) -> None:
        """Wait for a sync that covers what was written until now."""
        life = self._life
        while life == self._life and self._waiting:
            if self._syncing is None:
                self._syncing = asyncio.create_task(self._sync_once(len(self._waiting)))
                covered = True
            else:
                covered = False
            await asyncio.wait((self._syncing,))
            if covered:
                break
        if life != self._life:
            raise errors.Unavailable("the place crashed")

    async def _sync_once(self, steps: int) -> None:
        life = self._life
        if self._sync is not None:
            await self._sync()
        if life == self._life:
            self._apply(steps)
            self._syncing = None
