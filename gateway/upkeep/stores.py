"""The places of a store, whatever its kind: a directory, several disks, the nodes of a cluster.

Commands and SQL look at copies through this. A place that does not answer is told apart from one that lacks something.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from gateway.blobs.disks import BLOBS
from gateway.blobs.local import LocalBlobs
from gateway.blobs.placement import copies
from gateway.blobs.places import Held
from gateway.upkeep.asking import Upkeep
from gateway.upkeep.service import Copy, DataStatus, look
from objmeta import Chunk, Cluster, Embedded, errors
from objmeta.client import Location, StoreStatus

STATUS_TIMEOUT_S: Final = 2.0
_EMBEDDED: Final = 1
"""The number of the only place of a store in a directory."""


class DataPlace(Protocol):
    """One place. Every call raises Unavailable if it does not answer, StoreError if its disk fails."""

    @property
    def node_id(self) -> int:
        """Of the node, or the number of the disk, from 1."""
        ...

    @property
    def name(self) -> str:
        """Its address or path."""
        ...

    async def status(self) -> DataStatus:
        """What it holds."""
        ...

    async def look(self, chunks: Sequence[Chunk], deep: bool) -> list[Copy]:
        """What became of its copies of these; ``deep``: it reads them."""
        ...

    async def held(self, after: bytes, limit: int) -> list[Held]:
        """What it holds, in order of digest."""
        ...


@dataclass(frozen=True)
class LocalPlace:
    """A directory of this machine."""

    node_id: int
    blobs: LocalBlobs

    @property
    def name(self) -> str:
        """Its path."""
        return str(self.blobs.path)

    async def status(self) -> DataStatus:
        """What it holds, and what is wrong with its disk."""
        usage = await self.blobs.usage()
        (room,) = await self.blobs.status()
        return DataStatus(
            self.node_id,
            chunks=usage.chunks,
            chunk_bytes=usage.chunk_bytes,
            stored_bytes=usage.stored_bytes,
            damaged=usage.damaged,
            trouble=room.detail,
        )

    async def look(self, chunks: Sequence[Chunk], deep: bool) -> list[Copy]:
        """What became of its copies."""
        return await look(self.blobs, chunks, deep)

    async def held(self, after: bytes, limit: int) -> list[Held]:
        """What it holds."""
        return await self.blobs.held(after, limit)


@dataclass(frozen=True)
class NodePlace:
    """A node of a cluster."""

    node_id: int
    upkeep: Upkeep
    timeout_s: float

    @property
    def name(self) -> str:
        """Its address."""
        return self.upkeep.address

    async def status(self) -> DataStatus:
        """What it holds, and how its upkeep goes."""
        return await self.upkeep.status(min(self.timeout_s, STATUS_TIMEOUT_S))

    async def look(self, chunks: Sequence[Chunk], deep: bool) -> list[Copy]:
        """What became of its copies."""
        return await self.upkeep.look(chunks, deep, self.timeout_s)

    async def held(self, after: bytes, limit: int) -> list[Held]:
        """What it holds."""
        return await self.upkeep.held(after, limit, self.timeout_s)


@dataclass(frozen=True)
class Places:
    """All places of a store; ``absent`` are those that cannot be asked, by number, and why.

    ``keeps_all`` says whether every place is to have every chunk.
    """

    places: tuple[DataPlace, ...]
    absent: dict[int, str]
    keeps_all: bool

    def wanted(self, replicas: int) -> int:
        """In how many copies a chunk is to be, if ``replicas`` are asked for (0: the default)."""
        total = len(self.places) + len(self.absent)
        return total if self.keeps_all else copies(replicas, total)


@contextlib.asynccontextmanager
async def places_of(
    location: Location, status: StoreStatus, timeout_s: float = 10.0, *, patient: bool = False
) -> AsyncIterator[Places]:
    """The places of the store at ``location`` (as its client says), as ``status`` (of the client) shows them.

    ``patient``: nodes that it shows as down are asked all the same; they may have been too busy to answer it at once.
    """
    asked = {"up", "down"} if patient and isinstance(location, Cluster) else {"up"}
    up = [node for node in status.nodes if node.state in asked]
    away = {node.node_id: f"{node.address}: {node.detail or node.state}" for node in status.nodes if node not in up}
    if isinstance(location, Cluster):
        upkeeps = [Upkeep(node.address) for node in up]
        try:
            pairs = zip(up, upkeeps, strict=True)
            yield Places(tuple(NodePlace(node.node_id, upkeep, timeout_s) for node, upkeep in pairs), away, False)
        finally:
            await asyncio.gather(*(upkeep.close() for upkeep in upkeeps))
        return
    roots = {_EMBEDDED: location.path} if isinstance(location, Embedded) else {n.node_id: Path(n.address) for n in up}
    directories = {number: LocalBlobs(root / BLOBS) for number, root in roots.items()}
    try:
        yield Places(tuple(LocalPlace(number, blobs) for number, blobs in directories.items()), away, True)
    finally:
        await asyncio.gather(*(blobs.close() for blobs in directories.values()))


async def statuses(places: Places) -> dict[int, DataStatus | str]:
    """What every place says, by number, or why it says nothing."""

    async def ask(place: DataPlace) -> DataStatus | str:
        try:
            return await place.status()
        except errors.ObjmetaError as problem:
            return str(problem)

    answers = await asyncio.gather(*(ask(place) for place in places.places))
    told: dict[int, DataStatus | str] = {
        place.node_id: answer for place, answer in zip(places.places, answers, strict=True)
    }
    return told | dict(places.absent)
