"""A chunk on its way to the nodes that are to keep it.

Rules.  A put sends a chunk to its homes and returns when as many copies as ``placement.enough`` says are durable, each
on a node of its own; the others go on in the background, at most ``PENDING_BYTES_MAX`` to one node.  For a home that is
down, full or lagging the next in order stands in; repair moves the copy home.  Where nobody is left, a node that is
down costs a put nothing, and for one that lags puts wait ``LAG_WAIT_S`` once and then leave it out until it has caught
up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Final

from gateway.blobs.peer import LAG_WAIT_S, BlobPeer
from gateway.blobs.placement import copies, enough
from gateway.blobs.sending import Payload, Unreachable
from objmeta import errors

STAND_IN_S: Final = 1.0
"""So long a node may take to store or touch a chunk before it counts as silent."""


class _Copy:
    """A chunk on its way to one node."""

    def __init__(self, peer: BlobPeer) -> None:
        self.peer = peer
        self.started = False
        self.slow = False
        self.task: asyncio.Task[None]


class Putting:
    """A chunk on its way to its places: who has it, who gets it, and who comes next.

    ``ranked`` are the nodes that may be used, of ``nodes`` that there are, in the order of this chunk.
    """

    def __init__(
        self,
        ranked: Sequence[BlobPeer],
        nodes: int,
        payload: Payload,
        generation: int,
        replicas: int,
        timeout_s: float,
    ) -> None:
        self._payload = payload
        self._generation = generation
        self._timeout_s = timeout_s
        self._nodes = nodes
        self._wanted = copies(replicas, nodes)
        self._needed = enough(replicas, nodes)
        self._next = list(ranked)
        self._rank = {peer: rank for rank, peer in enumerate(self._next)}
        self._under_way: list[_Copy] = []
        self._done = 0
        self._refusals: list[Exception] = []
        self._reasons: dict[BlobPeer, str] = {}
        self._changed = asyncio.Event()
        self.released: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when enough copies are durable and no other one waits for its turn: the others go on by themselves."""

    async def run(self) -> None:
        """Until all copies are made that can be. Errors are told by :attr:`released`."""
        try:
            await self._run()
        except asyncio.CancelledError:
            self.released.cancel()
            raise
        except Exception as error:
            if not self.released.done():
                self.released.set_exception(error)
        finally:
            await cancel([copy.task for copy in self._under_way])
            self._payload.drop()
            if not self.released.done():
                self.released.set_result(None)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_s
        slow_at = loop.time() + STAND_IN_S
        settled_at: float | None = None
        while True:
            self._changed.clear()
            self._collect()
            if self._done >= self._needed and settled_at is None:
                settled_at = loop.time()
            self._begin_more()
            if settled_at is None:
                if self._done + len(self._under_way) < self._needed:
                    full = [error for error in self._refusals if isinstance(error, errors.StoreFull)]
                    raise (full or self._refusals or [self._no_quorum()])[0]
                if deadline <= loop.time():
                    raise self._no_quorum()
                if slow_at <= loop.time():
                    for copy in self._under_way:
                        copy.slow = True
                    self._begin_more()
                    slow_at = deadline
                left_s = min(deadline, slow_at) - loop.time()
            else:
                waiting = [copy for copy in self._under_way if not copy.started]
                left_s = settled_at + LAG_WAIT_S - loop.time()
                if waiting and (left_s <= 0 or all(copy.peer.down or copy.peer.lagging for copy in waiting)):
                    await self._leave_out(waiting)
                    continue
                if not waiting:
                    if not self.released.done():
                        self.released.set_result(None)
                    if not self._under_way:
                        return
                    left_s = self._timeout_s
            try:
                async with asyncio.timeout(left_s):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def _collect(self) -> None:
        """Note what has come of copies."""
        for copy in [copy for copy in self._under_way if copy.task.done()]:
            self._under_way.remove(copy)
            failure = copy.task.exception()
            if failure is None:
                self._done += 1
            elif isinstance(failure, Unreachable):
                self._reasons[copy.peer] = str(failure)
                self._next.append(copy.peer)
                self._next.sort(key=self._rank.__getitem__)
            elif isinstance(failure, errors.StaleGeneration) or not isinstance(failure, errors.ObjmetaError):
                raise failure
            else:
                self._refusals.append(failure)

    def _begin_more(self) -> None:
        """Have as many copies under way as are wanted; at nodes in trouble only while they are needed."""
        for peer in [peer for peer in self._next if not (peer.resting or peer.lagging)]:
            if self._done + len(self._under_way) < self._wanted:
                self._begin(peer)
        promised = self._done + sum(not (copy.slow or copy.peer.down) for copy in self._under_way)
        for peer in [peer for peer in self._next if not peer.down]:
            if promised < self._needed:
                self._begin(peer)
                promised += 1
        if promised < self._needed:  # whoever comes back first
            for peer in list(self._next):
                self._begin(peer)

    def _begin(self, peer: BlobPeer) -> None:
        self._next.remove(peer)
        copy = _Copy(peer)

        def started() -> None:
            copy.started = True
            self._changed.set()

        async def send() -> None:
            await peer.turn()
            await peer.put(self._payload, self._generation, started, self._timeout_s)

        copy.task = asyncio.create_task(send())
        copy.task.add_done_callback(lambda _: self._changed.set())
        self._under_way.append(copy)

    async def _leave_out(self, waiting: Iterable[_Copy]) -> None:
        """Enough have it, and these have not begun to get it: somebody else may stand in."""
        for copy in waiting:
            self._under_way.remove(copy)
            if not copy.peer.down:
                copy.peer.leave_out()
            await cancel((copy.task,))

    def _no_quorum(self) -> errors.NoQuorum:
        silent = {copy.peer: f"{copy.peer.address}: no answer in time" for copy in self._under_way}
        reasons = [*map(str, self._refusals), *(silent | self._reasons).values()]
        return errors.NoQuorum(
            f"no {self._needed} of the {self._nodes} nodes stored the data within {self._timeout_s:g} s "
            f"({'; '.join(reasons)})"
        )


async def cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """End these tasks, and wait until they have."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
