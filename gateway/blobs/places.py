"""Bytes of objects, cut into chunks that are named by their BLAKE3: what stores of chunks and places promise.

A *store* (:class:`BlobStore`) is what objects are put through: one directory, several disks, the nodes of a cluster. A
*place* (:class:`BlobPlace`) keeps one copy of each chunk it is given; stores of several disks and nodes are made of
places, and the collector, repair and scrub work on them.

Every put and every reuse of a chunk states the generation in which its operation began (DESIGN, section 1), and the
place keeps the greatest it was told: a chunk is deleted only when that lies below the collector's floor and nobody
named the chunk in two cycles running. Generation 0 is not stated: it counts as the newest the place knows, which keeps
the chunk for two cycles, and says nothing about a commit that comes later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

import msgspec
from blake3 import blake3

from gateway.blobs.files import HASH_INLINE_MAX, in_thread
from objmeta import Chunk, errors

CHUNK_LENGTH_MAX: Final = 64 << 20
"""The longest chunk anybody may store, in bytes: one is held in memory to be verified."""


class ChunkMissing(errors.IntegrityError):
    """A chunk that a manifest names is not where it should be."""


class BlobStatus(msgspec.Struct, frozen=True):
    """One place where chunks live. ``state`` is "up" or "down"; the numbers (of bytes) are 0 if unknown."""

    address: str
    state: str
    detail: str = ""
    disk_free: int = 0
    disk_total: int = 0
    node_id: int = 0


class Held(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A chunk that a place holds."""

    digest: bytes
    length: int
    touched: int
    """The greatest generation that was stated with it; 0: none yet, the next sweep counts as one."""
    replicas: int
    """In how many copies those who name it want it, as of the last sweep that found it named; 0: the default."""
    damaged: bool

    @property
    def chunk(self) -> Chunk:
        """Its name."""
        return Chunk(self.digest, self.length)


class Mark(NamedTuple):
    """A chunk that something names."""

    digest: bytes
    replicas: int
    """The greatest number that those who name it want; 0: the default."""


class Sweep(msgspec.Struct, frozen=True, array_like=True):
    """One range of one cycle of the collector: what to keep, and by which floor to judge the rest.

    ``marks`` are all marks of the cycle with ``start`` <= digest < ``end`` (an empty end: no bound), in order. The
    floor is one that every acceptor had taken before the first of the marks was read.
    """

    cycle: int
    floor: int
    start: bytes
    end: bytes
    marks: tuple[Mark, ...]


class Swept(msgspec.Struct, frozen=True, array_like=True):
    """What a sweep did. ``unmarked``: kept for now, and gone in the next cycle unless it is named or touched.

    ``touched``: those of ``kept`` that nothing names, but somebody touched lately.
    """

    deleted: int = 0
    deleted_bytes: int = 0
    kept: int = 0
    unmarked: int = 0
    touched: int = 0

    def __add__(self, other: Swept) -> Swept:
        return Swept(
            self.deleted + other.deleted,
            self.deleted_bytes + other.deleted_bytes,
            self.kept + other.kept,
            self.unmarked + other.unmarked,
            self.touched + other.touched,
        )


class Verified(msgspec.Struct, frozen=True, array_like=True):
    """What was read and hashed. ``next``: where to go on; empty when that was the last chunk."""

    next: bytes
    checked: int
    checked_bytes: int
    damaged: tuple[Chunk, ...]


class Usage(msgspec.Struct, frozen=True, array_like=True):
    """What a place holds. ``stored_bytes`` are on the disk, with what is dead in packs and not yet compacted."""

    chunks: int = 0
    chunk_bytes: int = 0
    stored_bytes: int = 0
    packs: int = 0
    damaged: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.chunks + other.chunks,
            self.chunk_bytes + other.chunk_bytes,
            self.stored_bytes + other.stored_bytes,
            self.packs + other.packs,
            self.damaged + other.damaged,
        )


class BlobStore(Protocol):
    """Where chunks live. Chunks are immutable and named by their content, so every operation may be repeated."""

    async def put(
        self, data: bytes | memoryview, *, generation: int, replicas: int = 0, chunk: Chunk | None = None
    ) -> Chunk:
        """Store a chunk, touched with ``generation``; durable on return (in a cluster: in as many copies as needed).

        Who has hashed the content already passes its name as ``chunk``.

        Raises StaleGeneration, StoreFull, StoreError, and in a cluster NoQuorum; the chunk may then be on fewer nodes.
        """
        ...

    async def touch(self, chunks: Sequence[Chunk], *, generation: int, replicas: int = 0) -> list[bool]:
        """Whether each chunk is there, in as many durable copies as a put acknowledges, and durably touched now.

        Nothing is read, so what is damaged without anybody having noticed counts as there. Raises as :meth:`put`.
        """
        ...

    async def get(self, chunk: Chunk, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes ``start`` to ``stop`` of a chunk, all of which was verified.

        Raises IntegrityError (damaged), ChunkMissing (nowhere), StoreError, and in a cluster Unavailable.
        """
        ...

    async def status(self) -> tuple[BlobStatus, ...]:
        """Who is up, with how much room. Never raises for a place that is down."""
        ...

    async def close(self) -> None:
        """Finish what is under way, within bounds, and release connections and threads."""
        ...


class BlobPlace(BlobStore, Protocol):
    """One copy of chunks. Everything raises StoreError when the disk fails; what was acknowledged stays so."""

    async def receive(self, chunk: Chunk, parts: Sequence[bytes | memoryview], *, generation: int) -> None:
        """Store a chunk that somebody sent, in parts; durable on return.

        Raises IntegrityError if these are not that chunk, StaleGeneration, StoreFull, StoreError; nothing is
        visible then.
        """
        ...

    async def get_many(self, chunks: Sequence[Chunk]) -> list[bytes | errors.StoreError]:
        """The content of each of some short chunks, verified, or why it cannot be had, as :meth:`get` says it."""
        ...

    async def has(self, chunks: Sequence[Chunk]) -> list[bool]:
        """Whether each chunk is there and not known to be damaged. Touches nothing."""
        ...

    async def held(self, after: bytes = b"", limit: int = 1000) -> list[Held]:
        """What is there, in order of digest, from the first after ``after``; none when that was all."""
        ...

    async def raise_floor(self, generation: int) -> None:
        """Refuse from now on, durably, what states a lower generation (never one that states none)."""
        ...

    async def sweep(self, sweep: Sweep) -> Swept:
        """Delete what is due in a range; each chunk is judged and deleted in one step, which no touch can split.

        A chunk stays if it was touched at or above the floor, or is marked, or was not yet found unmarked by an
        earlier cycle, which it is from now on.
        """
        ...

    async def drop(self, chunk: Chunk, floor: int) -> bool:
        """Delete a copy that is not wanted here, if it was touched, and last touched below ``floor``; whether so."""
        ...

    async def verify(self, after: bytes, limit_bytes: int) -> Verified:
        """Read and hash chunks in order of digest from the first after ``after``, at least one, to about so many bytes.

        What is damaged, or has lost its bytes, is remembered as such until it is put again.
        """
        ...

    async def usage(self) -> Usage:
        """How much there is."""
        ...


def digest_now(data: bytes | memoryview) -> bytes:
    """The name of a chunk with this content."""
    return blake3(data).digest()


async def digest_of(data: bytes | memoryview) -> bytes:
    """The same, off the event loop when it takes long."""
    return digest_now(data) if len(data) <= HASH_INLINE_MAX else await in_thread(digest_now, data)
