"""A node as a process with a client in it reaches it: what :class:`gateway.blobs.peer.Peer` is over real connections.

The calls go through the simulated network to the node's place.  What a peer knows of the node's health, and how much
may be on its way there, follows the rules of the real one, so that stand-ins, copies that are left out, hedged reads
and pauses after failures happen here as well.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeVar

from gateway.blobs.peer import BACKOFF_S_MAX, BACKOFF_S_MIN, LAG_WAIT_S, Progress
from gateway.blobs.places import BlobStatus
from gateway.blobs.room import Room
from gateway.blobs.sending import Payload, Unreachable
from gateway.testing.nodes import DataNetwork, DataNode
from objmeta import Chunk, errors
from objmeta.testing.network import Port

T = TypeVar("T")

PACE_KEPT: Final = 0.8
"""Of what was known of a node's pace, when another chunk has arrived."""


@dataclass(frozen=True, slots=True)
class Ways:
    """How the ways from clients to nodes are in one run; drawn once."""

    answer_s: float
    """When a call is given up at the latest."""
    pending: int
    """Chunks on their way to one node at most."""

    @staticmethod
    def draw(rng: random.Random) -> Ways:
        """Of one run."""
        return Ways(answer_s=rng.choice((0.1, 0.2, 0.6, 2.0)), pending=rng.choice((1, 2, 64)))


class SimPeer:
    """A node's chunks, from one life of a process; satisfies :class:`gateway.blobs.peer.BlobPeer`.

    When that life has ended (``port`` is closed) whatever it was doing is cancelled.
    """

    def __init__(self, address: str, network: DataNetwork, port: Port, rng: random.Random, ways: Ways) -> None:
        self.address = address
        self.lagging = False
        self._node_id = int(address)
        self._network = network
        self._port = port
        self._rng = rng
        self._answer_s = ways.answer_s
        self._room = Room(ways.pending)
        self._sending = 0
        self._pace_s = 0.0
        self._up = asyncio.Event()
        self._up.set()
        self._backoff_s = 0.0
        self._retry_at = 0.0

    @property
    def down(self) -> bool:
        """Whether the last call failed."""
        return not self._up.is_set()

    @property
    def resting(self) -> bool:
        """Whether it is not to be tried just now."""
        return self.down and self._now() < self._retry_at

    @property
    def wait_s(self) -> float:
        """How long a chunk from here is likely to take."""
        return self._pace_s

    async def turn(self) -> None:
        """Wait until this node may be tried: at once if it is up, else when its pause is over and nobody else tries."""
        while self.down:
            wait_s = self._retry_at - self._now()
            if wait_s <= 0:
                self._retry_at = self._now() + self._backoff_s
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._up.wait()

    def leave_out(self) -> None:
        """Note that a chunk was not sent because too much was on its way for too long."""
        self.lagging = self._sending > 0

    async def put(self, payload: Payload, generation: int, started: Callable[[], None], timeout_s: float) -> None:
        """Send a chunk and wait until it is durable there. Raises Unreachable, StaleGeneration, StoreError."""
        chunk, data = payload.chunk, b"".join(payload.frames)
        async with self._room.share(1):
            started()
            self._sending += 1
            begun = self._now()
            try:
                await self._call(lambda node: node.put(chunk, data, generation), timeout_s)
                if self._now() - begun < LAG_WAIT_S:
                    self.lagging = False
            finally:
                self._sending -= 1
                if self._sending == 0:
                    self.lagging = False

    async def get(self, chunk: Chunk, progress: Progress, timeout_s: float) -> bytes:
        """Fetch a chunk, which the place verifies. Raises Unreachable, IntegrityError, ChunkMissing."""
        begun = self._now()
        try:
            return await self._call(lambda node: node.place.get(chunk), timeout_s)
        finally:
            self._pace_s = PACE_KEPT * self._pace_s + (1 - PACE_KEPT) * (self._now() - begun)

    async def touch(self, chunks: Sequence[Chunk], generation: int, timeout_s: float) -> list[bool]:
        """Whether each chunk is there, durably touched now. Raises Unreachable, StaleGeneration, StoreError."""
        return await self._call(lambda node: node.touch(chunks, generation), timeout_s)

    async def status(self, timeout_s: float) -> BlobStatus:
        """It is up or down."""
        return BlobStatus(self.address, "down" if self.down else "up")

    async def close(self) -> None:
        """Nothing is held."""

    async def _call(self, work: Callable[[DataNode], Coroutine[object, object, T]], timeout_s: float) -> T:
        self._check_alive()
        answer_s = min(timeout_s, self._answer_s)
        try:
            answer = await self._network.call(self._node_id, work, sender=self._port.proposer, answer_s=answer_s)
        except (errors.StaleGeneration, errors.StoreError):
            self._check_alive()
            self._answered()
            raise
        except errors.Unavailable as silence:
            self._check_alive()
            self._failed()
            raise Unreachable(f"{self.address}: {silence}") from None
        self._check_alive()
        self._answered()
        return answer

    def _check_alive(self) -> None:
        if not self._port.open:
            raise asyncio.CancelledError("the process has ended")

    def _answered(self) -> None:
        self._backoff_s = 0.0
        self._up.set()

    def _failed(self) -> None:
        self._up.clear()
        self._backoff_s = min(max(2 * self._backoff_s, BACKOFF_S_MIN), BACKOFF_S_MAX)
        self._retry_at = self._now() + self._backoff_s * self._rng.uniform(0.5, 1.0)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
