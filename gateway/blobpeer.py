"""One node as a client of its chunks sees it: the calls, and what is known of its health.

A call that could be tried again raises :class:`Unreachable`; what the node itself says (full, missing, damaged) is an
error of :mod:`objmeta.errors` and final.  A node that cannot be reached is left alone for a while that grows from
100 ms to 2 s; then one call may try it again.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, cast

import grpc
import msgspec
from blake3 import blake3

from gateway.blobs import BlobStatus, ChunkMissing
from gateway.blobservice import FRAME_BYTES, KIND, MISSING, SERVICE, encode_header
from gateway.files import update
from objmeta import Chunk, errors

PENDING_BYTES_MAX: Final = 16 << 20
"""On their way to one node at most, so that a slow one costs little memory: four big chunks, or"""
PENDING_MAX: Final = 64
"""this many small ones, so that they share syncs there."""
LAG_WAIT_S: Final = 0.25
"""How long a put waits for room at a node whose copy it does not need; and what counts as keeping up."""
BACKOFF_S_MIN: Final = 0.1
BACKOFF_S_MAX: Final = 2.0

_OPTIONS: Final[Sequence[tuple[str, Any]]] = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A machine that vanished closes no connection: these find it within seconds.
    ("grpc.keepalive_time_ms", 2000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.http2.max_pings_without_data", 0),
    # Bytes have a connection of their own, so that metadata does not queue behind them.
    ("grpc.use_local_subchannel_pool", 1),
    # A proxy named by the environment is not meant for nodes of a cluster.
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
)
_SAID: Final = {
    MISSING: ChunkMissing,
    errors.IntegrityError.kind: errors.IntegrityError,
    errors.StoreFull.kind: errors.StoreFull,
}


class Unreachable(Exception):
    """A call failed for a reason that may pass."""


class Payload:
    """The bytes of a chunk on its way, which can be let go of.

    What fails or is cancelled inside gRPC stays in cycles until Python looks for those, and a traceback keeps all
    variables of its frames: they may hold this, but not 4 MiB.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data

    def frames(self, header: bytes) -> Iterator[bytes]:
        """What to send: ``header`` and the bytes."""
        yield header + memoryview(self._data)[:FRAME_BYTES]
        start = FRAME_BYTES
        while start < len(self._data):
            yield bytes(memoryview(self._data)[start : start + FRAME_BYTES])
            start += FRAME_BYTES

    def drop(self) -> None:
        """Let go."""
        self._data = b""


class Room:
    """A number of units of which each holder has some; who waits is served in order."""

    def __init__(self, units: int) -> None:
        self._free = units
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def share(self, units: int) -> AsyncIterator[None]:
        """Hold units, waiting for them first."""
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((units, granted))
        self._grant()
        try:
            await granted
            yield
        finally:
            if granted.done() and not granted.cancelled():
                self._free += units
            self._grant()

    def _grant(self) -> None:
        while self._waiting:
            units, granted = self._waiting[0]
            if not granted.cancelled():
                if units > self._free:
                    return
                self._free -= units
                granted.set_result(None)
            self._waiting.popleft()


class Progress:
    """When a download last got a byte, by the event loop's clock."""

    def __init__(self, now: float) -> None:
        self.at = now


class Peer:
    """A node's chunks."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.reads = 0
        self.lagging = False
        self._channel = cast(
            "Any", grpc.aio.insecure_channel(address, options=_OPTIONS)
        )  # the stubs are behind the API
        self._put = self._channel.stream_unary(f"/{SERVICE}/Put")
        self._get = self._channel.unary_stream(f"/{SERVICE}/Get")
        self._status = self._channel.unary_unary(f"/{SERVICE}/Status")
        self._room = Room(PENDING_MAX)
        self._sending = 0
        self._up = asyncio.Event()
        self._up.set()
        self._backoff_s = 0.0
        self._retry_at = 0.0
        self._random = random.Random()

    # -- Health -------------------------------------------------------------------------------------------------------

    @property
    def down(self) -> bool:
        """Whether the last call failed."""
        return not self._up.is_set()

    async def turn(self) -> None:
        """Wait until this node may be tried: at once if it is up, else when its pause is over and nobody else tries."""
        now = asyncio.get_running_loop().time
        while self.down:
            wait_s = self._retry_at - now()
            if wait_s <= 0:
                self._retry_at = now() + self._backoff_s
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._up.wait()

    def leave_out(self) -> None:
        """Note that a chunk was not sent because too much was on its way for too long."""
        self.lagging = self._sending > 0

    def _answered(self) -> None:
        self._backoff_s = 0.0
        self._up.set()

    def _failed(self) -> None:
        self._up.clear()
        self._backoff_s = min(max(2 * self._backoff_s, BACKOFF_S_MIN), BACKOFF_S_MAX)
        self._retry_at = asyncio.get_running_loop().time() + self._backoff_s * self._random.uniform(0.5, 1.0)

    # -- Calls --------------------------------------------------------------------------------------------------------

    async def put(self, chunk: Chunk, payload: Payload, started: asyncio.Event, timeout_s: float) -> None:
        """Send a chunk and wait until it is durable there; ``started`` is set when it begins.

        Raises Unreachable, StoreFull, StoreError.
        """
        units = -(-min(chunk.length, PENDING_BYTES_MAX) * PENDING_MAX // PENDING_BYTES_MAX) or 1
        async with self._room.share(units):
            started.set()
            self._sending += 1
            now = asyncio.get_running_loop().time
            begun = now()
            try:
                await self._send(chunk, payload, timeout_s)
                self._answered()
                if now() - begun < LAG_WAIT_S:
                    self.lagging = False
            finally:
                self._sending -= 1
                if self._sending == 0:
                    self.lagging = False

    async def _send(self, chunk: Chunk, payload: Payload, timeout_s: float) -> None:
        call = self._put(timeout=timeout_s)
        try:
            with suppress(asyncio.InvalidStateError):  # it has ended already, and its status says why
                for frame in payload.frames(encode_header(chunk)):
                    await call.write(frame)
                await call.done_writing()
            await call
        except grpc.aio.AioRpcError as error:
            raise self._translated(error) from error
        finally:
            call.cancel()

    async def get(self, chunk: Chunk, progress: Progress, timeout_s: float) -> bytes:
        """Fetch a chunk and verify it.

        Raises Unreachable, IntegrityError (damaged there or on the way), ChunkMissing, StoreError.
        """
        loop = asyncio.get_running_loop()
        call = self._get(encode_header(chunk), timeout=timeout_s)
        hasher = blake3()
        frames: list[bytes] = []
        self.reads += 1
        try:
            async for frame in call:
                progress.at = loop.time()
                frames.append(frame)
                await update(hasher, frame)
        except BaseException as error:
            frames.clear()
            if isinstance(error, grpc.aio.AioRpcError):
                raise self._translated(error) from error
            raise
        finally:
            self.reads -= 1
            call.cancel()
        self._answered()
        if hasher.digest() != chunk.digest:
            raise errors.IntegrityError(f"chunk {chunk.digest.hex()} arrived damaged from {self.address}")
        return frames[0] if len(frames) == 1 else b"".join(frames)

    async def status(self, timeout_s: float) -> BlobStatus:
        """Ask for the room on the node's disk."""
        try:
            answer = await self._status(b"", timeout=timeout_s)
            status = msgspec.msgpack.decode(answer, type=BlobStatus)
        except (grpc.aio.AioRpcError, msgspec.MsgspecError) as error:
            return BlobStatus(self.address, "down", _reason(error))
        return msgspec.structs.replace(status, address=self.address)

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    def _translated(self, error: grpc.aio.AioRpcError) -> Exception:
        metadata: Any = error.trailing_metadata() or ()
        kind = dict(metadata).get(KIND)
        message = f"{self.address}: {_reason(error)}"
        if kind is not None:
            self._answered()
            return _SAID.get(kind, errors.StoreError)(message)
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            return errors.StoreError(f"{self.address} is not a node that keeps data")
        self._failed()
        return Unreachable(message)


def _reason(error: Exception) -> str:
    if not isinstance(error, grpc.aio.AioRpcError):
        return str(error)
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "no answer in time"
    details = error.details() or error.code().name
    if error.code() is grpc.StatusCode.UNAVAILABLE and not details.startswith("node "):
        return "cannot be reached"
    return details
