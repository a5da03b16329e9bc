"""The nodes of a simulated cluster, as far as data goes: a place and a worker each, beside an acceptor."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from gateway.collection.collect import CycleName, Link, Marking, MarkOrder, Sweeping, SweepOrder, Worker
from gateway.collection.marks import MarksPage
from gateway.testing.mutations import DataMutation
from gateway.testing.places import MemoryPlace
from objmeta import Chunk, Marked, errors
from objmeta.testing.world import World

T = TypeVar("T")

ANSWER_S = 0.2
"""How long an answer is waited for."""

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
        self.place = mutation.place(self._sync)
        self.life = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self.worker = self._new_worker()
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

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Do something in this life of the node."""
        task = self.world.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
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

    async def call(self, to: int, work: Callable[[DataNode], Coroutine[Any, Any, T]]) -> T:
        """Have a node do something. Raises Lost, or what it raises; it is done also if nobody waits any more."""
        world, rng = self.world, self._rng
        faults = world.network.faults
        answer: asyncio.Future[T] = world.loop.create_future()

        def arrive() -> None:
            node = self.nodes.get(to)
            if node is not None and node.up:
                task = node.spawn(work(node))
                task.add_done_callback(functools.partial(leave, node))

        def leave(node: DataNode, task: asyncio.Task[T]) -> None:
            if task.cancelled():
                return
            failure = task.exception()
            if faults.lose_reply and rng.random() < faults.lose_reply:
                return
            if failure is None or isinstance(failure, errors.ObjmetaError):
                world.loop.call_later(self._delay_s(), deliver, task)

        def deliver(task: asyncio.Task[T]) -> None:
            if answer.done():
                return
            failure = task.exception()
            if failure is not None:
                answer.set_exception(failure)
            else:
                answer.set_result(task.result())

        if not (faults.lose_request and rng.random() < faults.lose_request):
            world.loop.call_later(self._delay_s(), arrive)
        try:
            async with asyncio.timeout(ANSWER_S):
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
