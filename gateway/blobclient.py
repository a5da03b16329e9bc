"""Chunks on the nodes of a cluster.

Rules.  Every node is to keep every chunk; a put returns when a majority has it durable, and the other copies go on in
the background, at most ``PENDING_BYTES_MAX`` to one node.  A node that is down costs a put nothing; for one that lags
puts wait ``LAG_WAIT_S`` once, and then leave it out until it has caught up (repair is another part's duty).
A get asks one node, the next one at once if the first has no good copy, and after ``HEDGE_S`` without a byte one more.
Nothing is returned that was not verified here.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from gateway.blobpeer import BACKOFF_S_MIN, LAG_WAIT_S, Payload, Peer, Progress, Unreachable
from gateway.blobs import BlobStatus, ChunkMissing, digest_of
from objmeta import Chunk, errors

HEDGE_S: Final = 0.25
CLOSE_S_MAX: Final = 5.0
"""How long close() waits for copies in the background at most; it stops earlier when none finishes for a second."""

Members = Callable[[], Awaitable[Sequence[str]]]
"""Asks for the addresses ``host:port`` of all nodes of the cluster, also those that are down; "" for one that is not to
be used but counts."""


class _Copy:
    """One chunk on its way to one node."""

    def __init__(self, peer: Peer, chunk: Chunk, data: bytes, timeout_s: float) -> None:
        self.peer = peer
        self.started = asyncio.Event()
        self.failure = "no answer in time"
        self.settled = False
        self.task = asyncio.create_task(self._run(chunk, Payload(data), timeout_s))

    async def _run(self, chunk: Chunk, payload: Payload, timeout_s: float) -> None:
        try:
            while True:
                await self.peer.turn()
                try:
                    return await self.peer.put(chunk, payload, self.started, timeout_s)
                except Unreachable as failure:
                    self.failure = str(failure)
                    if self.settled:
                        return None
                    self.started.clear()
        finally:
            payload.drop()


class ClusterBlobs:
    """Chunks on the nodes at ``endpoints``, all of them, or on those that ``members`` names at the first use.

    ``members`` is asked again when ``epoch``, a number that changes with the members, is another one.  Belongs to the
    event loop of its first use and to its process.  ``timeout_s`` bounds one operation.
    """

    def __init__(
        self,
        endpoints: Sequence[str] = (),
        *,
        timeout_s: float = 10.0,
        members: Members | None = None,
        epoch: Callable[[], int] = int,
    ) -> None:
        self._endpoints = tuple(endpoints)
        self._members = members
        self._epoch = epoch
        self._epoch_of_peers = 0
        self._former: list[Peer] = []
        self._timeout_s = timeout_s
        self._pid = os.getpid()
        self._peers: tuple[Peer, ...] = ()
        self._nodes = 0
        self._connecting = asyncio.Lock()
        self._trailing: set[asyncio.Task[None]] = set()
        self._turn = itertools.count()

    # -- Operations ---------------------------------------------------------------------------------------------------

    async def put(self, data: bytes, *, generation: int, replicas: int = 0) -> Chunk:
        """Store a chunk; on return a majority of the nodes has it durable.

        Raises NoQuorum, StoreFull or StoreError when a majority refused it; some nodes may have it all the same.
        """
        chunk = Chunk(await digest_of(data), len(data))
        peers = await self._connected()
        copies = [_Copy(peer, chunk, data, self._timeout_s) for peer in peers]
        try:
            await self._majority(copies)
            await self._let_go(copies)
        except BaseException:
            await _cancel([copy.task for copy in copies])
            raise
        return chunk

    async def touch(self, chunks: Sequence[Chunk], *, generation: int, replicas: int = 0) -> list[bool]:
        """Nothing is known to be there: every put sends."""
        return [False] * len(chunks)

    async def get(self, chunk: Chunk, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes ``start`` to ``stop`` of a chunk, all of which was verified.

        Raises IntegrityError (every node's copy is damaged or missing), ChunkMissing (no node has one), Unavailable.
        """
        peers = await self._connected()
        failures: dict[Peer, Exception] = {}
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    data = await self._ask(chunk, self._ranked(peers, failures), failures)
                    if data is not None:
                        return data if start == 0 and stop is None else data[start:stop]
                    if not any(isinstance(failure, Unreachable) for failure in failures.values()):
                        raise _nowhere(chunk, failures)
                    await asyncio.sleep(BACKOFF_S_MIN)
        except TimeoutError:
            known = "; ".join(map(str, failures.values())) or "no node sent anything"
            raise errors.Unavailable(
                f"chunk {chunk.digest.hex()} could not be read within {self._timeout_s:g} s ({known})"
            ) from None

    async def status(self) -> tuple[BlobStatus, ...]:
        """Every node's answer."""
        peers = await self._connected()
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
        await _cancel(list(self._trailing))
        peers, self._peers = (*self._peers, *self._former), ()
        self._former.clear()
        await asyncio.gather(*(peer.close() for peer in peers))

    # -- How ----------------------------------------------------------------------------------------------------------

    async def _connected(self) -> tuple[Peer, ...]:
        if os.getpid() != self._pid:
            raise errors.ForkedClient("this store of a cluster belongs to the parent process; open one in the child")
        if not self._peers or self._epoch() != self._epoch_of_peers:
            async with self._connecting:
                if not self._peers or self._epoch() != self._epoch_of_peers:
                    await self._connect()
        if not self._peers:
            raise errors.NoQuorum("no node of the cluster is known that could keep data")
        return self._peers

    async def _connect(self) -> None:
        """Have a peer for each node there is now; what is under way with others goes on."""
        addresses = self._endpoints if self._members is None else await self._members()
        self._epoch_of_peers = self._epoch()  # asking may have shown a higher one
        known = {peer.address: peer for peer in (*self._peers, *self._former)}
        peers = tuple(known.pop(address) if address in known else Peer(address) for address in addresses if address)
        self._nodes, self._peers, self._former = len(addresses), peers, list(known.values())

    async def _majority(self, copies: list[_Copy]) -> None:
        """Wait until a majority has succeeded, or cannot any more."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_s
        needed = self._nodes // 2 + 1
        while True:
            done = [copy.task for copy in copies if copy.task.done()]
            refusals = [error for task in done if (error := task.exception()) is not None]
            if len(done) - len(refusals) >= needed:
                return
            if len(copies) - len(refusals) < needed and refusals:
                full = [error for error in refusals if isinstance(error, errors.StoreFull)]
                raise (full or refusals)[0]
            waiting = [copy.task for copy in copies if not copy.task.done()]
            finished: set[asyncio.Task[None]] = set()
            if waiting:
                left_s = max(0.0, deadline - loop.time())
                finished, _ = await asyncio.wait(waiting, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if not finished:
                reasons = "; ".join(map(str, refusals + [copy.failure for copy in copies if not copy.task.done()]))
                raise errors.NoQuorum(
                    f"no majority of the {self._nodes} nodes stored the data within {self._timeout_s:g} s ({reasons})"
                )

    async def _let_go(self, copies: list[_Copy]) -> None:
        """Leave the surplus copies to the background, or give them up."""
        for copy in copies:
            copy.settled = True
        waiting = [copy for copy in copies if not copy.task.done() and not copy.started.is_set()]
        hopeful = [copy for copy in waiting if not copy.peer.down and not copy.peer.lagging]
        if hopeful:
            starts = [asyncio.create_task(copy.started.wait()) for copy in hopeful]
            try:
                await asyncio.wait(starts, timeout=LAG_WAIT_S)
            finally:
                await _cancel(starts)
        for copy in copies:
            if copy.task.done():
                copy.task.exception()
            elif copy.started.is_set():
                self._trailing.add(copy.task)
                copy.task.add_done_callback(self._finished)
            else:
                copy.peer.leave_out()
                copy.task.cancel()

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._trailing.discard(task)
        if not task.cancelled():
            task.exception()

    def _ranked(self, peers: tuple[Peer, ...], failures: dict[Peer, Exception]) -> list[Peer]:
        """Whom to ask, in this order: those that are up first, then the least busy, then in turn."""
        first = next(self._turn) % len(peers)
        turn = peers[first:] + peers[:first]
        worth = [peer for peer in turn if isinstance(failures.get(peer), Unreachable | None)]
        return sorted(worth, key=lambda peer: (peer.down, peer.reads))

    async def _ask(self, chunk: Chunk, candidates: list[Peer], failures: dict[Peer, Exception]) -> bytes | None:
        """Ask one node after the other until one has sent a good copy; None when all failed."""
        loop = asyncio.get_running_loop()
        asked: dict[asyncio.Task[bytes], Peer] = {}
        progress = Progress(loop.time())
        try:
            while candidates or asked:
                if candidates and (not asked or loop.time() - progress.at >= HEDGE_S):
                    peer = candidates.pop(0)
                    progress.at = loop.time()
                    asked[asyncio.create_task(peer.get(chunk, progress, self._timeout_s))] = peer
                patience_s = progress.at + HEDGE_S - loop.time() if candidates else None
                done, _ = await asyncio.wait(asked, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    peer = asked.pop(task)
                    failure = task.exception()
                    if failure is None:
                        return task.result()
                    if not isinstance(failure, Unreachable | errors.ObjmetaError):
                        raise failure
                    failures[peer] = failure
            return None
        finally:
            await _cancel(list(asked))


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _nowhere(chunk: Chunk, failures: dict[Peer, Exception]) -> errors.ObjmetaError:
    reasons = "; ".join(map(str, failures.values()))
    if all(isinstance(failure, ChunkMissing) for failure in failures.values()):
        return ChunkMissing(f"no node has chunk {chunk.digest.hex()} ({reasons})")
    return errors.IntegrityError(f"no node has a good copy of chunk {chunk.digest.hex()} ({reasons})")
