"""The nodes of a simulated cluster, as far as data goes: a place and a worker each, beside an acceptor."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from gateway.collection.collect import CycleName, Link, Marking, MarkOrder, Sweeping, SweepOrder, Worker
from gateway.collection.marks import MarksPage
from gateway.testing.places import MemoryPlace
from objmeta import Chunk, Marked, errors
from objmeta.testing.world import World

if TYPE_CHECKING:
    from gateway.testing.keeping import Keeping
    from gateway.testing.mutations import DataMutation

T = TypeVar("T")

ANSWER_S = 0.2
"""How long an answer is waited for, where nobody says."""

SILENCE_S = 0.5
"""How long a worker that does not answer is waited for."""

Marks = Callable[[int, CycleName], AsyncIterator[Marked]]
"""What an acceptor names."""


class Lost(errors.Unavailable):
    """No answer came. What was asked for may have been done."""


class DataNode:
    """A node's place and worker. They crash with its acceptor; the place keeps what was durable."""

    def __init__(self, node_id: int, world: World, network: DataNetwork, marks: Marks, mutation: DataMutation) -> None:
        self.node_id = node_id
        self.world = world
        self._network = network
        self._marks = marks
        self.mutation = mutation
        self.place = mutation.place(self._sync)
        self.life = 0
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self.worker = self._new_worker()
        self.full = False
        """Whether its disk takes no chunk more."""
        self.on_asked: Callable[[int], None] = lambda generation: None
        """Told of a generation that is stated here."""
        self.on_touched: Callable[[Chunk, int], None] = lambda chunk, generation: None
        """Told of a chunk that is about to be acknowledged as stored or touched, and of the generation stated."""
        self.on_life: Callable[[], None] = lambda: None
        """Told when a life begins."""
        self.keeping: Keeping
        """Its upkeep, which is made after it."""
        world.nodes[node_id].beside.append(self)

    @property
    def up(self) -> bool:
        """Whether it answers."""
        return self.world.nodes[self.node_id].up

    def crash(self, rng: random.Random, lossy: bool) -> None:
        """All that it was doing ends here."""
        waiting = self.place.waiting
        self.place.crash(rng.choice((0, rng.randint(0, waiting))) if lossy else waiting)
        self.life += 1
        for task in list(self._tasks):
            task.cancel()
        self._tasks.clear()
        self.worker.stop()

    def restart(self) -> None:
        """It comes back with an empty memory."""
        self.worker = self._new_worker()
        self.on_life()

    @property
    def leaves(self) -> bool:
        """Whether this node knows that it is no member any more, or will not be one soon."""
        configuration = self.world.nodes[self.node_id].store.disk.durable.membership.configuration
        return self.node_id not in configuration.member_sets[-1]

    # -- What it is asked for, as gateway.blobs.service and gateway.upkeep.watched answer -----------------------------

    async def put(self, chunk: Chunk, data: bytes, generation: int) -> None:
        """Keep a chunk. Raises StaleGeneration, StoreFull, and Unavailable on a node that leaves."""
        self.on_asked(generation)
        if self.full:
            raise errors.StoreFull(f"the disk of node {self.node_id} is full")
        await self.place.receive(chunk, (data,), generation=generation)
        if self.leaves and not self.mutation.leavers_acknowledge:
            raise errors.Unavailable(f"node {self.node_id} leaves and keeps nothing more")
        self.on_touched(chunk, generation)

    async def touch(self, chunks: Sequence[Chunk], generation: int) -> list[bool]:
        """Touch what is there; a node that leaves says of nothing that it is there. Raises StaleGeneration."""
        self.on_asked(generation)
        there = await self.place.touch(chunks, generation=generation)
        if self.leaves and not self.mutation.leavers_acknowledge:
            return [False] * len(chunks)
        for chunk, is_there in zip(chunks, there, strict=True):
            if is_there:
                self.on_touched(chunk, generation)
        return there

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Do something in this life of the node."""
        task = self.world.loop.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(lambda _: self._tasks.pop(task, None))
        return task

    def _new_worker(self) -> Worker:
        return Worker(
            self.node_id,
            functools.partial(self._marks, self.node_id),
            self.place,
            expand=self._expand,
            link=lambda acceptor, address: DataLink(self._network, acceptor),
            patience_s=SILENCE_S,
        )

    async def _sync(self) -> None:
        node = self.world.nodes[self.node_id]
        await asyncio.sleep(self.world.disk_rng.uniform(0.0001, self.world.network.faults.sync_s_max + node.slow_s))

    async def _expand(self, chunk: Chunk) -> Sequence[Chunk]:
        raise errors.IntegrityError("there are no lists in this simulation")


class DataNetwork:
    """Carries calls to nodes, with the faults of the metadata's network."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.nodes: dict[int, DataNode] = {}
        self._rng = world.random("data network")

    async def call(
        self,
        to: int,
        work: Callable[[DataNode], Coroutine[Any, Any, T]],
        *,
        sender: int = 0,
        answer_s: float = ANSWER_S,
    ) -> T:
        """Have a node do something. Raises Lost, or what it raises; it is done also if nobody waits any more.

        ``sender`` is the proposer in whose process the caller is, whose links may be cut (0: it is in another one).
        """
        world, rng = self.world, self._rng
        faults = world.network.faults
        answer: asyncio.Future[T] = world.loop.create_future()

        def is_lost(request: bool, probability: float) -> bool:
            if (sender, to, request) in world.network.cuts:
                return True
            return probability > 0 and rng.random() < probability

        def arrive() -> None:
            node = self.nodes.get(to)
            if node is not None and node.up:
                task = node.spawn(work(node))
                task.add_done_callback(functools.partial(leave, node))

        def leave(node: DataNode, task: asyncio.Task[T]) -> None:
            if task.cancelled():
                return
            failure = task.exception()
            if failure is not None and not isinstance(failure, errors.ObjmetaError):
                world.loop.call_exception_handler({"message": "a node failed", "exception": failure})
            elif not is_lost(False, faults.lose_reply):
                world.loop.call_later(self._delay_s(), deliver, task)

        def deliver(task: asyncio.Task[T]) -> None:
            if answer.done():
                return
            failure = task.exception()
            if failure is not None:
                answer.set_exception(failure)
            else:
                answer.set_result(task.result())

        if not is_lost(True, faults.lose_request):
            world.loop.call_later(self._delay_s(), arrive)
        try:
            async with asyncio.timeout(answer_s):
                return await answer
        except TimeoutError:
            raise Lost(f"node {to} does not answer") from None

    def _delay_s(self) -> float:
        return self.world.network.delay()


class DataLink:
    """A worker over the network; satisfies :class:`gateway.collection.collect.Link`."""

    def __init__(self, network: DataNetwork, acceptor: int) -> None:
        self._network = network
        self._acceptor = acceptor

    async def mark(self, order: MarkOrder) -> Marking:
        return await self._network.call(self._acceptor, lambda node: node.worker.mark(order))

    async def page(self, cycle: CycleName, start: bytes, limit: int) -> MarksPage:
        return await self._network.call(self._acceptor, lambda node: node.worker.page(cycle, start, limit))

    async def sweep(self, order: SweepOrder) -> Sweeping:
        return await self._network.call(self._acceptor, lambda node: node.worker.sweep(order))


def link(network: DataNetwork, acceptor: int) -> Link:
    """A link to a node's worker."""
    return DataLink(network, acceptor)


__all__ = ["DataLink", "DataNetwork", "DataNode", "Lost", "Marks", "MemoryPlace", "link"]
