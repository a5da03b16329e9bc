"""Chunks on the nodes of a cluster.

Rules.  Who keeps a chunk is worked out from its digest (``placement``): its homes are the first in its order.  How a
put brings it there is in ``putting``.

A get asks the home that is likely to be quickest, the next one at once if the first has no good copy, and one more
when it takes ``HEDGE_S`` longer than usual.  Nothing is returned that was not verified here.  A home whose copy turned
out to be damaged or missing is given a good one in the background.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from gateway.blobs.peer import BACKOFF_S_MIN, BlobPeer, Peer, Progress
from gateway.blobs.placement import Place, copies, enough, order
from gateway.blobs.places import BlobStatus, ChunkMissing, digest_of
from gateway.blobs.putting import STAND_IN_S, Putting, cancel
from gateway.blobs.sending import Payload, Unreachable
from objmeta import Chunk, errors

HEDGE_S: Final = 0.25
HEALS_MAX: Final = 4
"""Copies that are mended at a time: each holds a chunk.  What is not mended now is by repair, or by the next get."""
CLOSE_S_MAX: Final = 5.0
"""How long close() waits for copies in the background at most; it stops earlier when none finishes for a second."""

Members = Callable[[], Awaitable[tuple[int, Sequence[Place]]]]
"""Asks for all nodes of the cluster, also those that are down, and for the epoch in which that is so.

A node without an address is not to be used but counts.  Whoever answers may not have heard of the newest epoch yet.
"""


class ClusterBlobs:
    """Chunks on the nodes that ``members`` names, a :class:`gateway.blobs.places.BlobStore`.

    ``members`` is asked at the first use, again while ``epoch``, a number that grows when members change, is above that
    of the answer, and when nobody has a chunk that is to be read.  Belongs to the event loop of its first use and to
    its process.  ``timeout_s`` bounds one operation.  ``generation`` asks for the newest, which copies that are healed
    state; without, they state none.
    """

    def __init__(
        self,
        members: Members,
        *,
        timeout_s: float = 10.0,
        epoch: Callable[[], int] = int,
        generation: Callable[[], Awaitable[int]] | None = None,
        connect: Callable[[str], BlobPeer] = Peer,
    ) -> None:
        self._members = members
        self._epoch = epoch
        self._epoch_of_places = 0
        self._generation = generation
        self._connect_to = connect
        self._timeout_s = timeout_s
        self._pid = os.getpid()
        self._places: tuple[Place, ...] = ()
        self._peers: dict[str, BlobPeer] = {}
        self._connecting = asyncio.Lock()
        self._asking: asyncio.Task[None] | None = None
        self._trailing: set[asyncio.Task[Any]] = set()
        self._healing: set[tuple[bytes, str]] = set()

    # -- Operations ---------------------------------------------------------------------------------------------------

    async def put(
        self, data: bytes | memoryview, *, generation: int, replicas: int = 0, chunk: Chunk | None = None
    ) -> Chunk:
        """Store a chunk; on return it is durable in min(replicas, majority of the nodes) copies.

        Raises NoQuorum, StoreFull or StoreError when too many refused it, StaleGeneration; some nodes may have it all
        the same.
        """
        chunk = chunk or Chunk(await digest_of(data), len(data))
        places = await self._known()
        ranked = [self._peers[place.address] for place in order(chunk.digest, places) if place.address]
        putting = Putting(ranked, len(places), Payload(chunk, data), generation, replicas, self._timeout_s)
        task = asyncio.create_task(putting.run())
        self._trailing.add(task)
        task.add_done_callback(self._finished)
        try:
            await asyncio.shield(putting.released)
        except BaseException:
            await cancel((task,))
            raise
        return chunk

    async def touch(self, chunks: Sequence[Chunk], *, generation: int, replicas: int = 0) -> list[bool]:
        """Whether each chunk is there in as many copies as a put waits for, all durably touched with ``generation``.

        Nodes that are down or silent for ``STAND_IN_S`` count as if they had none, and who could not change the answer
        any more is not waited for. Raises StaleGeneration.
        """
        places = await self._known()
        needed = enough(replicas, len(places))
        asked: dict[str, list[int]] = {}
        for index, chunk in enumerate(chunks):
            candidates = [place for place in order(chunk.digest, places) if self._hopeful(place)]
            for place in candidates[: copies(replicas, len(places))]:
                asked.setdefault(place.address, []).append(index)
        found = [0] * len(chunks)
        open_for = [sum(index in indexes for indexes in asked.values()) for index in range(len(chunks))]
        tasks = {
            asyncio.create_task(
                self._peers[address].touch([chunks[index] for index in indexes], generation, self._timeout_s)
            ): indexes
            for address, indexes in asked.items()
        }
        waiting = set(tasks)
        try:
            while waiting and any(count < needed <= count + more for count, more in zip(found, open_for, strict=True)):
                done, waiting = await asyncio.wait(waiting, timeout=STAND_IN_S, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    break
                for task in [task for task in tasks if task in done]:
                    for index in tasks[task]:
                        open_for[index] -= 1
                    failure = task.exception()
                    if failure is None:
                        for index, there in zip(tasks[task], task.result(), strict=True):
                            found[index] += there
                    elif isinstance(failure, errors.StaleGeneration) or not isinstance(
                        failure, Unreachable | errors.StoreError
                    ):
                        raise failure
        except BaseException:
            await cancel(tuple(tasks))  # all of them: those that failed together as well
            raise
        for task in waiting:  # the other copies are worth a touch too
            self._trailing.add(task)
            task.add_done_callback(self._finished)
        return [count >= needed for count in found]

    async def get(self, chunk: Chunk, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes ``start`` to ``stop`` of a chunk, all of which was verified.

        Raises IntegrityError (every node's copy is damaged or missing), ChunkMissing (no node has one), Unavailable.
        """
        places = await self._known()
        failures: dict[str, Exception] = {}
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    data = await self._ask(chunk, self._ranked(chunk, places, failures), failures)
                    if data is not None:
                        self._heal(chunk, data, places, failures)
                        return data if start == 0 and stop is None else data[start:stop]
                    asking = self._ask_again()
                    if any(isinstance(failure, Unreachable) for failure in failures.values()):
                        await asyncio.sleep(BACKOFF_S_MIN)
                    else:
                        await asyncio.wait((asking,))
                        if self._places is places:
                            raise _nowhere(chunk, failures)
                    if self._places is not places:  # others have taken their place
                        places, failures = self._places, {}
        except TimeoutError:
            known = "; ".join(map(str, failures.values())) or "no node sent anything"
            raise errors.Unavailable(
                f"chunk {chunk.digest.hex()} could not be read within {self._timeout_s:g} s ({known})"
            ) from None

    async def status(self) -> tuple[BlobStatus, ...]:
        """Every node's answer."""
        places = await self._known()
        peers = [self._peers[place.address] for place in places if place.address]
        return tuple(await asyncio.gather(*(peer.status(self._timeout_s) for peer in peers)))

    async def close(self) -> None:
        """Let copies in the background finish as long as some do, then close the connections."""
        if os.getpid() != self._pid:
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + CLOSE_S_MAX
        while self._trailing and (left_s := deadline - loop.time()) > 0:
            done, _ = await asyncio.wait(self._trailing, timeout=min(1.0, left_s), return_when=asyncio.FIRST_COMPLETED)
            if not done:
                break
        await cancel(tuple(self._trailing))
        peers, self._peers, self._places = self._peers, {}, ()
        await asyncio.gather(*(peer.close() for peer in peers.values()))

    # -- Who there is -------------------------------------------------------------------------------------------------

    async def _known(self) -> tuple[Place, ...]:
        """All places, with a peer for each that has an address."""
        if os.getpid() != self._pid:
            raise errors.ForkedClient("this store of a cluster belongs to the parent process; open one in the child")
        if not self._places or self._epoch_of_places < self._epoch():
            async with self._connecting:
                if not self._places or self._epoch_of_places < self._epoch():
                    await self._learn()
        if not any(place.address for place in self._places):
            raise errors.NoQuorum("no node of the cluster is known that could keep data")
        return self._places

    def _ask_again(self) -> asyncio.Task[None]:
        """Ask for the members anew, once for all who want to know."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._learn())
            self._trailing.add(self._asking)
            self._asking.add_done_callback(self._finished)
        return self._asking

    async def _learn(self) -> None:
        epoch, places = await self._members()
        for place in places:  # what is under way with others goes on
            if place.address and place.address not in self._peers:
                self._peers[place.address] = self._connect_to(place.address)
        if not self._places or epoch > self._epoch_of_places:
            self._places, self._epoch_of_places = tuple(places), epoch

    def _hopeful(self, place: Place) -> bool:
        return bool(place.address) and not self._peers[place.address].resting

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._trailing.discard(task)
        if not task.cancelled():
            task.exception()

    # -- Reading ------------------------------------------------------------------------------------------------------

    def _ranked(self, chunk: Chunk, places: Sequence[Place], failures: dict[str, Exception]) -> list[BlobPeer]:
        """Whom to ask, in this order: those that are up first, homes before others, then by how long it may take."""
        homes = copies(0, len(places))
        ranked = [
            ((peer.down, rank >= homes, peer.wait_s, rank), peer)
            for rank, place in enumerate(order(chunk.digest, places))
            if place.address and isinstance(failures.get(place.address), Unreachable | None)
            for peer in (self._peers[place.address],)
        ]
        return [peer for _, peer in sorted(ranked, key=lambda each: each[0])]

    async def _ask(self, chunk: Chunk, candidates: list[BlobPeer], failures: dict[str, Exception]) -> bytes | None:
        """Ask one node after the other until one has sent a good copy; None when all failed."""
        loop = asyncio.get_running_loop()
        asked: dict[asyncio.Task[bytes], BlobPeer] = {}
        progress = Progress(loop.time())
        allowed_s = HEDGE_S
        try:
            while candidates or asked:
                if candidates and (not asked or loop.time() >= progress.at + allowed_s):
                    peer = candidates.pop(0)
                    progress.at = loop.time()
                    allowed_s = HEDGE_S + peer.wait_s  # where the way is narrow all take long
                    asked[asyncio.create_task(peer.get(chunk, progress, self._timeout_s))] = peer
                patience_s = max(0.0, progress.at + allowed_s - loop.time()) if candidates else None
                done, _ = await asyncio.wait(asked, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
                for task in [task for task in asked if task in done]:
                    peer = asked.pop(task)
                    failure = task.exception()
                    if failure is None:
                        return task.result()
                    if not isinstance(failure, Unreachable | errors.ObjmetaError):
                        raise failure
                    failures[peer.address] = failure
            return None
        finally:
            await cancel(tuple(asked))

    def _heal(self, chunk: Chunk, data: bytes, places: Sequence[Place], failures: dict[str, Exception]) -> None:
        """Give a good copy to the homes that had none, and to others that had a bad one."""
        if not any(isinstance(failure, errors.IntegrityError) for failure in failures.values()):
            return
        homes = copies(0, len(places))
        for rank, place in enumerate(order(chunk.digest, places)):
            failure = failures.get(place.address)
            bad = isinstance(failure, errors.IntegrityError) and (rank < homes or not isinstance(failure, ChunkMissing))
            name = (chunk.digest, place.address)
            if bad and name not in self._healing and len(self._healing) < HEALS_MAX:
                self._healing.add(name)
                task = asyncio.create_task(self._give(self._peers[place.address], Payload(chunk, data), name))
                self._trailing.add(task)
                task.add_done_callback(self._finished)

    async def _give(self, peer: BlobPeer, payload: Payload, name: tuple[bytes, str]) -> None:
        """It states the newest generation: a writer who has touched the others counts on this one as well."""
        try:
            generation = 0 if self._generation is None else await self._generation()
            await peer.put(payload, generation, _ignore, self._timeout_s)
        finally:
            payload.drop()
            self._healing.discard(name)


def _ignore() -> None:
    return None


def _nowhere(chunk: Chunk, failures: dict[str, Exception]) -> errors.ObjmetaError:
    reasons = "; ".join(map(str, failures.values()))
    if all(isinstance(failure, ChunkMissing) for failure in failures.values()):
        return ChunkMissing(f"no node has chunk {chunk.digest.hex()} ({reasons})")
    return errors.IntegrityError(f"no node has a good copy of chunk {chunk.digest.hex()} ({reasons})")
