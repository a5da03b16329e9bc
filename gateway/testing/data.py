"""Clients of a simulated cluster that put, copy, restore, remove and read objects made of chunks."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass

from blake3 import blake3

from gateway.blobs.placement import Place, copies, enough, order
from gateway.blobs.places import ChunkMissing
from gateway.testing.named import Named, Put
from gateway.testing.nodes import DataNetwork, DataNode, Lost
from objmeta import Chunk, ObjectVersion, errors
from objmeta.objects.buckets import Buckets
from objmeta.objects.context import Context
from objmeta.objects.objects import Objects
from objmeta.testing.world import Proposer, World

ATTEMPTS_MAX = 4


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
    pause_s: float
    """Between two operations of a client, on average."""

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
        )


class DataClient:
    """One client's way to the store, through one life of a proposer."""

    def __init__(
        self, world: World, network: DataNetwork, named: Named, proposer: Proposer, rng: random.Random, timeout_s: float
    ) -> None:
        self._world = world
        self._network = network
        self._named = named
        self._engine = proposer.engine
        self._number = proposer.number
        self._rng = rng
        self._timeout_s = timeout_s
        self.buckets = Buckets(self.context())
        """Bucket operations."""

    def context(self, operation: bytes | None = None) -> Context:
        """What objmeta's operations need."""
        number = self._number
        return Context(
            self._engine,
            lambda: self._world.wall_clock_us(number),
            lambda: operation or self._rng.randbytes(16),
            self._timeout_s,
            True,
        )

    def objects(self, operation: bytes | None = None) -> Objects:
        """Object operations, the next one under this id."""
        return Objects(self.context(operation), self.buckets)

    # -- Operations ---------------------------------------------------------------------------------------------------

    async def put(self, bucket: str, key: str, contents: Sequence[bytes], sleep_s: float) -> bytes:
        """Store an object; the id of the operation that did. Raises ObjmetaError."""
        chunks = [Chunk(blake3(data).digest(), len(data)) for data in contents]
        etag = blake3(b"".join(contents)).hexdigest()
        at_hand = dict(zip(chunks, contents, strict=True))
        for _ in range(ATTEMPTS_MAX):
            epoch = self._engine.configuration.epoch
            generation = await self._engine.generations.newest(self._timeout_s)
            await self._have(at_hand, generation)
            await asyncio.sleep(sleep_s)
            sleep_s = 0.0
            if self._engine.configuration.epoch != epoch:
                continue  # W5: those that counted may not be members any more
            try:
                return await self._commit(bucket, key, chunks, etag, generation)
            except errors.StaleGeneration:
                continue
        raise errors.Unavailable("the generation moves all the time")

    async def copy(self, bucket: str, source: str, version_id: str | None, key: str, sleep_s: float) -> bytes:
        """Commit the content of a version under another name, or its own (a restore). Raises ObjmetaError."""
        found = await self.objects().get(bucket, source, version_id=version_id, with_data=False)
        for _ in range(ATTEMPTS_MAX):
            epoch = self._engine.configuration.epoch
            generation = await self._engine.generations.newest(self._timeout_s)
            if not all(await self.touch(found.chunks, generation)):
                raise errors.Unavailable("a chunk of the source is gone")
            await asyncio.sleep(sleep_s)
            sleep_s = 0.0
            if self._engine.configuration.epoch != epoch:
                continue
            try:
                return await self._commit(bucket, key, found.chunks, found.etag, generation)
            except errors.StaleGeneration:
                continue
        raise errors.Unavailable("the generation moves all the time")

    async def remove_version(self, bucket: str, key: str, version_id: bytes) -> None:
        """Remove a version. Raises ObjmetaError."""
        operation = self._rng.randbytes(16)
        self._named.removals[operation] = version_id
        await self.objects(operation).remove_version(bucket, key, version_id.hex())

    async def get(self, version: ObjectVersion, pause_s: float) -> bytes:
        """All content. Raises ChunkMissing, Unavailable."""
        parts = []
        for chunk in version.chunks:
            parts.append(await self.get_chunk(chunk))
            await asyncio.sleep(pause_s)
        return b"".join(parts)

    async def _commit(self, bucket: str, key: str, chunks: Sequence[Chunk], etag: str, generation: int) -> bytes:
        operation = self._rng.randbytes(16)
        self._named.puts[operation] = Put(tuple(chunk.digest for chunk in chunks), generation)
        self._world.note(f"P{self._number}: commit {operation.hex()[:8]} as {key}, generation {generation}")
        size = sum(chunk.length for chunk in chunks)
        await self.objects(operation).put(bucket, key, chunks=chunks, size=size, etag=etag, generation=generation)
        return operation

    # -- Chunks -------------------------------------------------------------------------------------------------------

    def places(self) -> list[Place]:
        """The members, as far as this client knows them."""
        return [Place(a, str(a)) for a in self._engine.quorums.members]

    async def _have(self, at_hand: dict[Chunk, bytes], generation: int) -> None:
        """Have chunks touched, sending what is not there."""
        chunks = list(at_hand)
        there = await self.touch(chunks, generation)
        for chunk, is_there in zip(chunks, there, strict=True):
            if not is_there:
                await self._send(chunk, at_hand[chunk], generation)

    async def touch(self, chunks: Sequence[Chunk], generation: int) -> list[bool]:
        """Whether each is there in enough copies, touched."""
        return list(await asyncio.gather(*(self._touch(chunk, generation) for chunk in chunks)))

    async def _touch(self, chunk: Chunk, generation: int) -> bool:
        places = self.places()
        homes = order(chunk.digest, places)[: copies(0, len(places))]
        there = await asyncio.gather(*(self._touch_at(place.node_id, chunk, generation) for place in homes))
        return sum(there) >= enough(0, len(places))

    async def _touch_at(self, node_id: int, chunk: Chunk, generation: int) -> bool:
        async def touch(node: DataNode) -> bool:
            (there,) = await node.place.touch([chunk], generation=generation)
            if there:
                self._named.on_touched(node, chunk, generation)
            return there

        try:
            return await self._network.call(node_id, touch)
        except errors.ObjmetaError:
            return False

    async def _send(self, chunk: Chunk, data: bytes, generation: int) -> None:
        places = order(chunk.digest, self.places())
        needed = enough(0, len(places))
        width = copies(0, len(places))
        stored = 0
        for start in range(0, len(places), width):
            asked = places[start : start + width]
            stored += sum(await asyncio.gather(*(self._put_at(place.node_id, data, generation) for place in asked)))
            if stored >= needed:
                return
        raise errors.NoQuorum(f"chunk {chunk.digest.hex()[:8]} has {stored} copies of {needed}")

    async def _put_at(self, node_id: int, data: bytes, generation: int) -> bool:
        async def put(node: DataNode) -> None:
            self._named.on_touched(node, await node.place.put(data, generation=generation), generation)

        try:
            await self._network.call(node_id, put)
        except errors.ObjmetaError:
            return False
        return True

    async def get_chunk(self, chunk: Chunk) -> bytes:
        """Raises ChunkMissing if no node has it, Unavailable if it cannot be known."""
        silent = 0
        members = self.places()
        former = [Place(a, str(a)) for a in self._network.nodes if all(place.node_id != a for place in members)]
        for place in (*order(chunk.digest, members), *former):
            try:
                return await self._network.call(place.node_id, lambda node: node.place.get(chunk))
            except Lost:
                silent += 1
            except errors.IntegrityError:
                continue
        if silent:
            raise errors.Unavailable("a node that may have the chunk does not answer")
        raise ChunkMissing(f"chunk {chunk.digest.hex()[:8]} is nowhere")
