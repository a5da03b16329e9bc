"""A node's upkeep of its chunks: the real repair, handing over and leaving, among simulated nodes."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

from gateway.blobs.placement import PLACES, Place, Said, encode_places
from gateway.blobs.places import Held
from gateway.testing.nodes import DataNetwork, DataNode
from gateway.upkeep.leaving import Leaving
from gateway.upkeep.pace import Pace
from gateway.upkeep.repairing import Answer, Repairer, Want, Wanted
from gateway.upkeep.runs import Runner
from gateway.upkeep.service import DataStatus
from gateway.upkeep.views import Tag, Views
from objmeta import Chunk, KeyValue, errors
from objmeta.core.configuration import OUTSIDE, Configuration, Membership

T = TypeVar("T")

TAKE_S: Final = 2.0
"""How long a node may take to fetch a chunk from another one that leaves."""


@functools.cache
def said(node_id: int) -> Said:
    """What a node says of itself: some are larger than others, and two and two are in one zone."""
    return Said(1.0 + node_id % 3, str(node_id // 2))


@functools.cache
def place(node_id: int) -> Place:
    """A node's place."""
    about = said(node_id)
    return Place(node_id, str(node_id), about.weight, about.zone)


def addressed(configuration: Configuration) -> Membership:
    """With the addresses that nodes have here."""
    return Membership(configuration, tuple((node_id, str(node_id)) for node_id in configuration.quorums.members))


@functools.cache
def _all_said() -> bytes:
    return encode_places({node_id: said(node_id) for node_id in range(1, 100)})


class Keeping:
    """The upkeep of one node, life after life. ``generation`` and ``wanted`` are asked for by what the node does."""

    def __init__(
        self, node: DataNode, network: DataNetwork, generation: Callable[[], Awaitable[int]], wanted: Wanted
    ) -> None:
        self._node = node
        self._network = network
        self._generation = generation
        self._wanted = wanted
        self._rng = node.world.random(f"upkeep of {node.node_id}")
        self._idle_passes = node.world.random("passes without need").choice((0.0, 0.05, 0.2))
        """How often a repair begins without need, of the times that it is thought of."""
        self.begin()

    def stop(self) -> None:
        """Nothing is begun any more, also in later lives."""
        self._node.on_life = lambda: None
        self._running.cancel()

    def status(self) -> DataStatus:
        """As far as it is asked for by who coordinates a change of members."""
        repairer = self.repairer
        told = self.runner.told()
        return DataStatus(self._node.node_id, surplus=repairer.surplus, repair=told, epoch=repairer.epoch)

    def begin(self) -> None:
        """Work in this life, and in later ones."""
        node = self._node
        node.on_life = self.begin
        self.views = Views(_Said, self._membership)
        blobs: Any = _OwnPlace(node)
        self.repairer = Repairer(
            node.node_id,
            blobs,
            _Others(self._network),
            self.views,
            self._wanted,
            self._generation,
            Pace(math.inf),
        )
        self.runner = Runner("repair of data", self.repairer.run, retries_left=True)
        self._seen: Tag | None = None
        self._running = node.spawn(self.runner.forever(self._is_due))

    def _membership(self) -> Membership | None:
        configuration = self._node.world.nodes[self._node.node_id].store.disk.durable.membership.configuration
        return None if configuration.epoch == OUTSIDE else addressed(configuration)

    async def _is_due(self) -> bool:
        seen, self._seen = self._seen, self.views.tag()
        return self._membership() is not None and (seen != self._seen or self._rng.random() < self._idle_passes)


class _Said:
    """The register in which nodes say what they are."""

    async def get(self, key: str) -> KeyValue | None:
        assert key == PLACES, "nothing else is looked up by nodes"
        return KeyValue(key=key.encode(), value=_all_said(), version_id="", sequence=1)

    async def compare_and_swap(self, key: str, value: bytes, *, expected: str | None) -> KeyValue:
        raise AssertionError("nobody writes it here")


class _OwnPlace:
    """What a node's repair works on."""

    def __init__(self, node: DataNode) -> None:
        self._node = node

    async def put(self, data: bytes, *, generation: int, replicas: int = 0, chunk: Chunk) -> Chunk:
        await self._node.put(chunk, data, generation)
        return chunk

    async def touch(self, chunks: Sequence[Chunk], *, generation: int, replicas: int = 0) -> list[bool]:
        return await self._node.touch(chunks, generation)

    async def has(self, chunks: Sequence[Chunk]) -> list[bool]:
        return await self._node.place.has(chunks)

    async def held(self, after: bytes, limit: int) -> list[Held]:
        return await self._node.place.held(after, limit)

    async def drop(self, chunk: Chunk, floor: int) -> bool:
        return await self._node.place.drop(chunk, floor)


class _Others:
    """The other nodes, over the network; satisfies :class:`gateway.upkeep.repairing.Others`."""

    def __init__(self, network: DataNetwork) -> None:
        self._network = network

    async def fetch(self, place: Place, chunks: Sequence[Chunk]) -> list[Answer]:
        answers: list[Answer] = []
        for chunk in chunks:
            give = functools.partial(_give, chunk)
            try:
                answers.append(await self._network.call(int(place.address), give))
            except (errors.StoreError, errors.Unavailable) as problem:
                answers.append(problem)
        return answers

    async def confirm(self, place: Place, tag: Tag, generation: int, wants: Sequence[Want]) -> list[bool]:
        async def ask(node: DataNode) -> list[bool]:
            return await node.keeping.repairer.handover.confirm(tag, generation, wants)

        return await self._network.call(int(place.address), ask)

    async def give(self, place: Place, own: Place, tag: Tag, generation: int, chunk: Chunk) -> None:
        async def ask(node: DataNode) -> None:
            await node.keeping.repairer.handover.take(tag, generation, own.address, chunk)

        await self._network.call(int(place.address), ask, answer_s=TAKE_S)


async def _give(chunk: Chunk, node: DataNode) -> bytes:
    return await node.place.get(chunk)


class _Leaver:
    """The upkeep of a node that leaves, as who coordinates a change reaches it: always, if it is up.

    A node that cannot be reached for a while counts as lost, and so does what it has: no fault of this world may last
    that long by chance.
    """

    def __init__(self, network: DataNetwork, address: str) -> None:
        self._network = network
        self._node_id = int(address)

    async def start(self, what: str, timeout_s: float) -> int:
        return (await self._reached()).keeping.runner.ask()

    async def status(self, timeout_s: float) -> DataStatus:
        return (await self._reached()).keeping.status()

    async def _reached(self) -> DataNode:
        await asyncio.sleep(self._network.world.network.delay())
        node = self._network.nodes[self._node_id]
        if not node.up:
            raise errors.Unavailable(f"node {self._node_id} is down")
        return node


async def may_leave(
    network: DataNetwork, epoch: Callable[[], int], joint: Membership, tell: Callable[[str], None]
) -> None:
    """Return when nobody relies on the members that leave (MayLeave), as known to a process in this epoch."""
    leaving = Leaving(lambda: (epoch(), 0), lambda address: _Leaver(network, address))
    await leaving.may_leave(addressed(joint.configuration), tell)


async def wanted(marked: AsyncGenerator[Any, None], replicas: int) -> Sequence[Want]:
    """What an acceptor names, in order of digest."""
    found = {each.digest: each.length async for page in marked for each in page.named}
    return [Want(Chunk(digest, found[digest]), replicas) for digest in sorted(found)]
