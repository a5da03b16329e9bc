"""Clients of a simulated cluster that put, copy, restore, remove and read objects made of chunks.

They do it by the code that does it in a gateway: ``Store``, ``Upload``, ``Commits`` and ``ClusterBlobs``.  What stands
in for something else is :class:`SimClient` (for objmeta's client, over an engine in the same process), ``peers`` (for
connections) and :class:`Pieces` (for cutting content into chunks of a megabyte).
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final
from unittest import mock

from gateway.blobs import client as blobs_client
from gateway.blobs import putting
from gateway.blobs.client import ClusterBlobs
from gateway.blobs.placement import Place, enough
from gateway.blobs.places import BlobStatus
from gateway.data import commits, transfer, uploading
from gateway.data.transfer import Store
from gateway.testing.keeping import place
from gateway.testing.mutations import DataMutation
from gateway.testing.named import Named
from gateway.testing.nodes import DataNetwork, DataNode
from gateway.testing.peers import Ways
from gateway.upkeep import leaving, repairing, runs
from objmeta import Chunk, DeleteObject, ObjectVersion, PutObject, errors
from objmeta.core.configuration import Configuration
from objmeta.objects.buckets import Buckets
from objmeta.objects.context import Context
from objmeta.objects.objects import Objects
from objmeta.objects.types import Bucket, ObjectSummary
from objmeta.testing.world import Proposer, World

CHUNK_BYTES: Final = 24
"""The length of every chunk here."""

SILENT: Final = logging.getLogger("gateway.testing.silent")
SILENT.disabled = True

PAUSE_S: ContextVar[float] = ContextVar("PAUSE_S", default=0.0)
"""How long this task's operation sleeps when all is stored, and only the commit is left."""


@dataclass(frozen=True, slots=True)
class Habits:
    """How the clients of one run behave; drawn once."""

    clients: int
    operations: int
    contents: int
    """Different chunks there are: few, so that most are reused."""
    sleeps: float
    """How often a writer sleeps between its chunks and its commit."""
    sleep_s_max: float
    removals: float
    copies: float
    timeout_s: float
    blobs_timeout_s: float
    pause_s: float
    """Between two operations of a client, on average."""
    replicas: int
    """Of the bucket."""
    ways: Ways

    @staticmethod
    def draw(rng: random.Random) -> Habits:
        """Of one run."""
        return Habits(
            clients=rng.choice((2, 3, 4)),
            operations=rng.randint(20, 40),
            contents=rng.choice((3, 6, 12)),
            sleeps=rng.choice((0.1, 0.3, 0.6)),
            sleep_s_max=rng.choice((0.05, 0.3, 1.0)),
            removals=rng.choice((0.3, 0.45)),
            copies=rng.choice((0.1, 0.2)),
            pause_s=rng.choice((0.01, 0.03, 0.1)),
            timeout_s=rng.choice((0.2, 0.5, 1.5)),
            blobs_timeout_s=rng.choice((0.3, 1.0, 3.0)),
            replicas=rng.choice((0, 0, 0, 2, 5)),
            ways=Ways.draw(rng),
        )


@contextmanager
def sized(rng: random.Random) -> Iterator[None]:
    """The times and lengths of the gateway made as short as those of this world, and drawn once for a run."""
    sizes: dict[Any, dict[str, Any]] = {
        uploading: {
            "Cutter": Pieces,
            "WINDOW_BYTES": CHUNK_BYTES,
            "INLINE_BYTES_MAX": -1,
            "ASK_BYTES_MIN": rng.choice((0, 0, CHUNK_BYTES)),
            "IN_FLIGHT_BYTES": rng.choice((CHUNK_BYTES, 100 * CHUNK_BYTES)),
            "LOOK_S": rng.choice((0.05, 0.3, 1.0)),
        },
        commits: {"KNOWN_S": rng.choice((0.0, 0.1, 1.0))},
        transfer: {"WINDOW": rng.choice((1, 12)), "recycle_buffers": lambda: None},
        putting: {
            "STAND_IN_S": (stand_in_s := rng.choice((0.1, 1.0))),
            "LAG_WAIT_S": rng.choice((0.02, 0.25)),
        },
        blobs_client: {"STAND_IN_S": stand_in_s, "HEDGE_S": rng.choice((0.01, 0.25))},
        leaving: {"LOOK_S": 0.02, "LEAVE_LOOK_S_MAX": 0.5},
        runs: {"LOOK_S": 0.2, "AGAIN_S_MIN": 1.0, "AGAIN_S_MAX": 4.0, "_log": SILENT},
        repairing: {"_log": SILENT},
    }
    with ExitStack() as stack:
        for module, named in sizes.items():
            stack.enter_context(mock.patch.multiple(module, **named))
        yield


class Pieces:
    """What :class:`gateway.data.chunking.Cutter` does, for content that comes in pieces that are chunks already."""

    def __init__(self) -> None:
        self._pieces: list[bytes | memoryview] = []

    @property
    def buffered(self) -> int:
        """Bytes that wait to be taken."""
        return sum(map(len, self._pieces))

    def add(self, data: bytes | memoryview) -> bool:
        """Add a chunk."""
        assert len(data) <= CHUNK_BYTES, "what is written here comes in chunks"
        self._pieces.append(data)
        return True

    def take(self) -> list[bytes | memoryview]:
        """All that was added."""
        taken, self._pieces = self._pieces, []
        return taken

    def cut(self, window: list[bytes | memoryview], ended: bool = False) -> list[bytes]:
        """The chunks."""
        return [bytes(piece) for piece in window]


class SimClient:
    """What a :class:`gateway.data.transfer.Store` needs of objmeta's client, in one life of a proposer."""

    def __init__(
        self, world: World, network: DataNetwork, named: Named, proposer: Proposer, rng: random.Random, timeout_s: float
    ) -> None:
        self.timeout_s = timeout_s
        self._world = world
        self._network = network
        self._named = named
        self._engine = proposer.engine
        self._number = proposer.number
        self._rng = rng
        self.buckets = Buckets(self.context())
        """Bucket operations."""

    def context(self, operation: bytes | None = None) -> Context:
        """What objmeta's operations need."""
        number = self._number
        return Context(
            self._engine,
            lambda: self._world.wall_clock_us(number),
            lambda: operation or self._rng.randbytes(16),
            self.timeout_s,
            True,
        )

    def objects(self, operation: bytes | None = None) -> Objects:
        """Object operations, the next one under this id."""
        return Objects(self.context(operation), self.buckets)

    @property
    def epoch(self) -> int:
        """Of the newest configuration that this process knows."""
        return self._engine.configuration.epoch

    async def generation(self) -> int:
        """The generation now."""
        return await self._engine.generations.newest(self.timeout_s)

    async def bucket(self, name: str) -> Bucket:
        """A bucket."""
        return await self.buckets.get(name)

    async def head_object(self, bucket: str, key: str) -> ObjectSummary:
        """The current version's size and times."""
        return await self.objects().head(bucket, key)

    async def get_object(
        self, bucket: str, key: str, *, version_id: str | None = None, with_data: bool = True
    ) -> ObjectVersion:
        """One version."""
        return await self.objects().get(bucket, key, version_id=version_id, with_data=with_data)

    async def put_object(
        self, bucket: str, key: str, *, chunks: Sequence[Chunk] = (), generation: int = 0, **options: Any
    ) -> ObjectVersion:
        """Commit a version, of which the observer is told first."""
        objects = await self._announced(key, chunks, generation)
        return await objects.put(bucket, key, chunks=chunks, generation=generation, **options)

    async def commit(self, changes: Sequence[PutObject | DeleteObject], *, generation: int = 0) -> list[ObjectVersion]:
        """The same for a copy, which is a commit of one change; nothing is moved here."""
        (wanted,) = changes
        assert isinstance(wanted, PutObject), "what is copied is put"
        objects = await self._announced(wanted.key, wanted.chunks, generation)
        return [await objects.append(wanted, objects.change_for(wanted), generation)]

    async def _announced(self, key: str, chunks: Sequence[Chunk], generation: int) -> Objects:
        """Object operations, the next one under an id that the observer knows."""
        pause_s = PAUSE_S.get()
        PAUSE_S.set(0.0)
        await asyncio.sleep(pause_s)
        operation = self._rng.randbytes(16)
        self._named.on_commit(operation, chunks, generation)
        self._world.note(f"P{self._number}: commit {operation.hex()[:8]} as {key}, generation {generation}")
        return self.objects(operation)

    async def members(self) -> tuple[int, list[Place]]:
        """The nodes that keep data, as some node knows them, and in which epoch that is. Raises Unavailable."""

        async def tell(node: DataNode) -> Configuration:
            return self._world.nodes[node.node_id].store.disk.durable.membership.configuration

        members = self._engine.quorums.members
        for asked in self._rng.sample(members, len(members)):
            with suppress(errors.Unavailable):
                known = await self._network.call(asked, tell, sender=self._number)
                return known.epoch, list(map(place, known.quorums.members))
        raise errors.NoQuorum("no node says who keeps data")


class Witnessed:
    """A store of chunks whose answers an observer is told of."""

    def __init__(self, blobs: ClusterBlobs, named: Named) -> None:
        self.blobs = blobs
        self._named = named

    async def put(
        self, data: bytes | memoryview, *, generation: int, replicas: int = 0, chunk: Chunk | None = None
    ) -> Chunk:
        """Store a chunk."""
        await self.blobs._known()
        before = self._needed(replicas)
        stored = await self.blobs.put(data, generation=generation, replicas=replicas, chunk=chunk)
        self._named.on_acknowledged(stored, generation, min(before, self._needed(replicas)))
        return stored

    async def touch(self, chunks: Sequence[Chunk], *, generation: int, replicas: int = 0) -> list[bool]:
        """Touch chunks."""
        await self.blobs._known()
        before = self._needed(replicas)
        there = await self.blobs.touch(chunks, generation=generation, replicas=replicas)
        needed = min(before, self._needed(replicas))
        for chunk, is_there in zip(chunks, there, strict=True):
            if is_there:
                self._named.on_acknowledged(chunk, generation, needed)
        return there

    async def get(self, chunk: Chunk, start: int = 0, stop: int | None = None) -> bytes:
        """Fetch a chunk."""
        return await self.blobs.get(chunk, start, stop)

    async def status(self) -> tuple[BlobStatus, ...]:
        """How the nodes are."""
        return await self.blobs.status()

    async def close(self) -> None:
        """Let copies in the background finish."""
        await self.blobs.close()

    def _needed(self, replicas: int) -> int:
        """Of the nodes that are known just now; members may change while something is under way."""
        return enough(replicas, len(self.blobs._places))


class DataClient:
    """A gateway in the process of a proposer, as long as that lives."""

    def __init__(
        self,
        world: World,
        network: DataNetwork,
        named: Named,
        proposer: Proposer,
        rng: random.Random,
        habits: Habits,
        timeout_s: float,
        mutation: DataMutation,
    ) -> None:
        self._rng = rng
        self._named = named
        self.client = SimClient(world, network, named, proposer, rng, timeout_s)
        connect = functools.partial(mutation.peer, network=network, port=proposer.port, rng=rng, ways=habits.ways)
        generation: Callable[..., Any] | None = mutation.healing(self.client.generation)
        self.blobs = mutation.blobs(
            self.client.members,
            timeout_s=max(timeout_s, habits.blobs_timeout_s),
            epoch=lambda: self.client.epoch,
            generation=generation,
            connect=connect,
        )
        client: Any = self.client
        self.store: Store = mutation.store(client, Witnessed(self.blobs, named))
        self.store.commits = mutation.commits(client, self.store.blobs)

    @property
    def buckets(self) -> Buckets:
        """Bucket operations."""
        return self.client.buckets

    def objects(self, operation: bytes | None = None) -> Objects:
        """Object operations, the next one under this id."""
        return self.client.objects(operation)

    async def put(
        self, bucket: str, key: str, contents: Sequence[bytes], sleep_s: float, between_s: float = 0.0
    ) -> bytes:
        """Store an object; the id of the operation that did. Raises ObjmetaError."""
        upload = self.store.upload(bucket, key)
        try:
            for data in contents:
                await upload.write(data)
                await asyncio.sleep(between_s)
            PAUSE_S.set(sleep_s)
            return bytes.fromhex((await upload.commit()).version_id)
        except BaseException:
            await upload.discard()
            raise

    async def copy(self, bucket: str, source: str, version_id: str | None, key: str, sleep_s: float) -> bytes:
        """Commit the content of a version under another name, or its own (a restore). Raises ObjmetaError."""
        PAUSE_S.set(sleep_s)
        if version_id is not None and source == key:
            version = await self.store.restore(bucket, key, version_id)
        else:
            version = await self.store.copy(bucket, source, bucket, key, version_id=version_id)
        return bytes.fromhex(version.version_id)

    async def remove_version(self, bucket: str, key: str, version_id: bytes) -> None:
        """Remove a version. Raises ObjmetaError."""
        operation = self._rng.randbytes(16)
        self._named.removals[operation] = version_id
        await self.objects(operation).remove_version(bucket, key, version_id.hex())

    async def get(self, version: ObjectVersion, pause_s: float) -> bytes:
        """All content, the etag verified. Raises IntegrityError, Unavailable."""
        parts = []
        async for piece in self.store.stream(version):
            parts.append(piece)
            await asyncio.sleep(pause_s)
        return b"".join(parts)
