"""One node as a client of its chunks sees it: the calls, and what is known of its health.

A call that could be tried again raises :class:`Unreachable`; what the node itself says (full, missing, damaged) is an
error of :mod:`objmeta.errors` and final.  A node that cannot be reached is left alone for a while that grows from
100 ms to 2 s; then one call may try it again.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeVar, cast

import grpc
import msgspec
from blake3 import blake3

from gateway.blobs.files import update
from gateway.blobs.places import BlobStatus, ChunkMissing, Held, Usage, digest_now
from gateway.blobs.room import Room
from gateway.blobs.service import (
    FRAME_BYTES,
    KIND,
    MANY_BYTES_MAX,
    MANY_MAX,
    MISSING,
    NAMES_MAX,
    SERVICE,
    SMALL_BYTES_MAX,
    AskFor,
    PutMany,
    Refusal,
    encode_header,
)
from objmeta import Chunk, errors

PENDING_BYTES_MAX: Final = 16 << 20
"""On their way to one node at most, so that a slow one costs little memory: four big chunks, or"""
PENDING_MAX: Final = 64
"""this many small ones, so that they share syncs there."""
LAG_WAIT_S: Final = 0.25
"""How long a put waits for room at a node whose copy it does not need; and what counts as keeping up."""
BACKOFF_S_MIN: Final = 0.1
BACKOFF_S_MAX: Final = 2.0
MESSAGES_MAX: Final = 2
"""Messages of small chunks on their way to one node: one is stored while the next is sent, and the others gather."""
FORGET_S: Final = 10.0
"""How long the pace of a node is believed: a slow one gets another try."""

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
    errors.StaleGeneration.kind: errors.StaleGeneration,
}

_UNARY: Final = ("PutMany", "GetMany", "Touch", "Has", "Held", "Usage", "Status")

_T = TypeVar("_T")


class Unreachable(Exception):
    """A call failed for a reason that may pass."""


class Payload:
    """The bytes of a chunk on its way to several nodes, cut into frames once; they can be let go of.

    What fails or is cancelled inside gRPC stays in cycles until Python looks for those, and a traceback keeps all
    variables of its frames: they may hold this, but not megabytes.
    """

    def __init__(self, chunk: Chunk, data: bytes | memoryview) -> None:
        self.chunk = chunk
        if len(data) <= FRAME_BYTES:
            self.frames = [bytes(data)]
        else:
            view = memoryview(data)
            self.frames = [bytes(view[start : start + FRAME_BYTES]) for start in range(0, len(data), FRAME_BYTES)]

    def drop(self) -> None:
        """Let go."""
        self.frames = []


class Progress:
    """When a download last got a byte, by the event loop's clock."""

    def __init__(self, now: float) -> None:
        self.at = now


class Peer:
    """A node's chunks."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.lagging = False
        self._channel = cast(
            "Any", grpc.aio.insecure_channel(address, options=_OPTIONS)
        )  # the stubs are behind the API
        self._calls = {name: self._channel.unary_unary(f"/{SERVICE}/{name}") for name in _UNARY}
        self._put = self._channel.stream_unary(f"/{SERVICE}/Put")
        self._get = self._channel.unary_stream(f"/{SERVICE}/Get")
        self._room = Room(PENDING_MAX)
        self._sending = 0
        self._small: deque[_Small] = deque()
        self._messages: set[asyncio.Task[None]] = set()
        self._reads = 0
        self._pace_s = 0.0
        self._paced_at = 0.0
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

    @property
    def resting(self) -> bool:
        """Whether it is not to be tried just now."""
        return self.down and asyncio.get_running_loop().time() < self._retry_at

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

    @property
    def wait_s(self) -> float:
        """How long a chunk from here is likely to take, by the last ones and by what is under way; 0: not known."""
        if asyncio.get_running_loop().time() - self._paced_at > FORGET_S:
            return 0.0
        return self._pace_s * (1 + self._reads)

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

    async def put(self, payload: Payload, generation: int, started: Callable[[], None], timeout_s: float) -> None:
        """Send a chunk and wait until it is durable there; ``started`` is called when it begins.

        Raises Unreachable, StaleGeneration, StoreFull, StoreError.
        """
        length = payload.chunk.length
        units = -(-min(length, PENDING_BYTES_MAX) * PENDING_MAX // PENDING_BYTES_MAX) or 1
        async with self._room.share(units):
            started()
            self._sending += 1
            now = asyncio.get_running_loop().time
            begun = now()
            try:
                if length <= SMALL_BYTES_MAX:
                    await self._send_small(payload, generation, timeout_s)
                else:
                    await self._send(payload, generation, timeout_s)
                self._answered()
                if now() - begun < LAG_WAIT_S:
                    self.lagging = False
            finally:
                self._sending -= 1
                if self._sending == 0:
                    self.lagging = False

    async def _send(self, payload: Payload, generation: int, timeout_s: float) -> None:
        call = self._put(timeout=timeout_s)
        try:
            with suppress(asyncio.InvalidStateError):  # it has ended already, and its status says why
                await call.write(encode_header(payload.chunk, generation))
                for frame in payload.frames:
                    await call.write(frame)
                await call.done_writing()
            await call
        except grpc.aio.AioRpcError as error:
            raise self._translated(error) from error
        finally:
            call.cancel()

    async def _send_small(self, payload: Payload, generation: int, timeout_s: float) -> None:
        small = _Small(payload, generation, timeout_s, asyncio.get_running_loop().create_future())
        self._small.append(small)
        if len(self._messages) < MESSAGES_MAX:
            task = asyncio.create_task(self._send_messages())
            self._messages.add(task)
            task.add_done_callback(self._messages.discard)
        await small.done

    async def _send_messages(self) -> None:
        while self._small:
            batch: list[_Small] = []
            length = 0
            while self._small and len(batch) < MANY_MAX and length < MANY_BYTES_MAX:
                if batch and self._small[0].generation != batch[0].generation:
                    break
                small = self._small.popleft()
                if not small.done.done() and small.payload.frames:
                    batch.append(small)
                    length += small.payload.chunk.length
            if batch:
                await self._send_message(batch)

    async def _send_message(self, batch: list[_Small]) -> None:
        contents = tuple((small.payload.chunk.digest, small.payload.frames[0]) for small in batch)
        outcomes: list[Exception | None]
        try:
            refusals = await self._ask(
                "PutMany", PutMany(batch[0].generation, contents), list[Refusal | None], batch[0].timeout_s
            )
            if len(refusals) != len(batch):
                raise errors.StoreError(f"{self.address} answered about {len(refusals)} chunks, not {len(batch)}")
            outcomes = [None if each is None else self._refused(each.kind, each.message) for each in refusals]
        except (Unreachable, errors.ObjmetaError) as error:
            outcomes = [error] * len(batch)
        except BaseException:
            for small in batch:
                small.done.cancel()
            raise
        for small, outcome in zip(batch, outcomes, strict=True):
            if small.done.done():
                continue
            if outcome is None:
                small.done.set_result(None)
            else:
                small.done.set_exception(outcome)

    async def get(self, chunk: Chunk, progress: Progress, timeout_s: float) -> bytes:
        """Fetch a chunk and verify it.

        Raises Unreachable, IntegrityError (damaged there or on the way), ChunkMissing, StoreError.
        """
        loop = asyncio.get_running_loop()
        call = self._get(encode_header(chunk), timeout=timeout_s)
        hasher = blake3()
        frames: list[bytes] = []
        self._reads += 1
        begun = loop.time()
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
            self._reads -= 1
            call.cancel()
            self._paced(loop.time() - begun)
        self._answered()
        if hasher.digest() != chunk.digest:
            raise errors.IntegrityError(f"chunk {chunk.digest.hex()} arrived damaged from {self.address}")
        return frames[0] if len(frames) == 1 else b"".join(frames)

    async def get_many(self, chunks: Sequence[Chunk], timeout_s: float) -> list[bytes | errors.StoreError]:
        """Fetch chunks that fit into a message together, and verify them; for each it, or why it cannot be had.

        Raises Unreachable, StoreError.
        """
        asked = AskFor(0, tuple(chunks))
        answers = await self._ask("GetMany", asked, list[bytes | Refusal], timeout_s)
        if len(answers) != len(chunks):
            raise errors.StoreError(f"{self.address} answered about {len(answers)} chunks, not {len(chunks)}")
        return [self._verified(chunk, answer) for chunk, answer in zip(chunks, answers, strict=True)]

    def _verified(self, chunk: Chunk, answer: bytes | Refusal) -> bytes | errors.StoreError:
        if isinstance(answer, Refusal):
            refused = self._refused(answer.kind, answer.message)
            return refused if isinstance(refused, errors.StoreError) else errors.StoreError(str(refused))
        if digest_now(answer) != chunk.digest:
            return errors.IntegrityError(f"chunk {chunk.digest.hex()} arrived damaged from {self.address}")
        return answer

    def _paced(self, took_s: float) -> None:
        """Note how long a chunk took, shared by those that were under way at once."""
        share_s = took_s / (1 + self._reads)
        self._pace_s = share_s if self.wait_s == 0 else 0.8 * self._pace_s + 0.2 * share_s
        self._paced_at = asyncio.get_running_loop().time()

    async def touch(self, chunks: Sequence[Chunk], generation: int, timeout_s: float) -> list[bool]:
        """Whether each chunk is there, durably touched now. Raises Unreachable, StaleGeneration, StoreError."""
        return await self._ask_for("Touch", chunks, generation, timeout_s)

    async def has(self, chunks: Sequence[Chunk], timeout_s: float) -> list[bool]:
        """Whether each chunk is there, as far as is known undamaged. Raises Unreachable, StoreError."""
        return await self._ask_for("Has", chunks, 0, timeout_s)

    async def held(self, after: bytes, limit: int, timeout_s: float) -> list[Held]:
        """What is there, in order of digest, behind ``after``. Raises Unreachable, StoreError."""
        return await self._ask("Held", (after, limit), list[Held], timeout_s)

    async def usage(self, timeout_s: float) -> Usage:
        """How much is there. Raises Unreachable, StoreError."""
        return await self._ask("Usage", (), Usage, timeout_s)

    async def _ask_for(self, name: str, chunks: Sequence[Chunk], generation: int, timeout_s: float) -> list[bool]:
        found: list[bool] = []
        for start in range(0, len(chunks), NAMES_MAX):
            page = tuple(chunks[start : start + NAMES_MAX])
            answers = await self._ask(name, AskFor(generation, page), list[bool], timeout_s)
            if len(answers) != len(page):
                raise errors.StoreError(f"{self.address} answered about {len(answers)} chunks, not {len(page)}")
            found.extend(answers)
        return found

    async def _ask(self, name: str, request: object, kind: type[_T], timeout_s: float) -> _T:
        try:
            answer = await self._calls[name](msgspec.msgpack.encode(request), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise self._translated(error) from error
        self._answered()
        try:
            return msgspec.msgpack.decode(answer, type=kind)
        except msgspec.MsgspecError as wrong:
            raise errors.StoreError(f"{self.address} gave an answer that cannot be read: {wrong}") from wrong

    async def status(self, timeout_s: float) -> BlobStatus:
        """Ask for the room on the node's disk."""
        try:
            answer = await self._calls["Status"](b"", timeout=timeout_s)
            status = msgspec.msgpack.decode(answer, type=BlobStatus)
        except (grpc.aio.AioRpcError, msgspec.MsgspecError) as error:
            return BlobStatus(self.address, "down", _reason(error))
        return msgspec.structs.replace(status, address=self.address)

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()
        await asyncio.gather(*self._messages, return_exceptions=True)

    def _refused(self, kind: str, reason: str) -> errors.ObjmetaError:
        return _SAID.get(kind, errors.StoreError)(f"{self.address}: {reason}")

    def _translated(self, error: grpc.aio.AioRpcError) -> Exception:
        metadata: Any = error.trailing_metadata() or ()
        kind = dict(metadata).get(KIND)
        message = f"{self.address}: {_reason(error)}"
        if kind is not None:
            self._answered()
            return self._refused(kind, _reason(error))
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            return errors.StoreError(f"{self.address} is not a node that keeps data")
        self._failed()
        return Unreachable(message)


class _Small(NamedTuple):
    """A short chunk that waits to travel with others."""

    payload: Payload
    generation: int
    timeout_s: float
    done: asyncio.Future[None]


def _reason(error: Exception) -> str:
    if not isinstance(error, grpc.aio.AioRpcError):
        return str(error)
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "no answer in time"
    details = error.details() or error.code().name
    if error.code() is grpc.StatusCode.UNAVAILABLE and not details.startswith("node "):
        return "cannot be reached"
    return details
