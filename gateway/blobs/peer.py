"""One node as a client of its chunks sees it: the calls, and what is known of its health.

A call that could be tried again raises :class:`Unreachable`; what the node itself says (full, missing, damaged) is an
error of :mod:`objmeta.errors` and final.  A node that cannot be reached is left alone for a while that grows from
100 ms to 2 s; then one call may try it again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol, TypeVar, cast

import msgspec

from gateway.blobs.channel import REFUSED, Channel, NoChannel, Offer
from gateway.blobs.places import BlobStatus, ChunkMissing, Held, Usage, digest_now, digest_of
from gateway.blobs.room import Room
from gateway.blobs.sending import Payload, Queue, Unreachable, Waiting
from gateway.blobs.service import (
    FRAME_BYTES,
    KIND,
    MANY_BYTES_MAX,
    MISSING,
    NAMED,
    NAMES_MAX,
    SERVICE,
    SMALL_BYTES_MAX,
    AskFor,
    PutMany,
    Refusal,
    encode_header,
)
from objmeta import Chunk, errors
from objmeta.channels import open_channel
from objmeta.grpcio import grpc

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
CALLS_MAX: Final = 2
"""The same for calls that bring long chunks, each of"""
CALL_BYTES_MAX: Final = FRAME_BYTES
"""at most so many bytes: what a call costs, at both ends and until it is durable, is shared by some three chunks."""
OFFER_TIMEOUT_S: Final = 2.0
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


class Progress:
    """When a download last got a byte, by the event loop's clock."""

    def __init__(self, now: float) -> None:
        self.at = now


class BlobPeer(Protocol):
    """What is asked of one node: as :class:`gateway.blobs.peer.Peer` does it, or somebody in its place."""

    address: str
    lagging: bool

    @property
    def down(self) -> bool:
        """Whether the last call failed."""
        ...

    @property
    def resting(self) -> bool:
        """Whether it failed so lately that it is not to be tried just now."""
        ...

    @property
    def wait_s(self) -> float:
        """How long a chunk from here is likely to take; 0: not known."""
        ...

    async def turn(self) -> None:
        """Wait until this node may be tried."""
        ...

    def leave_out(self) -> None:
        """Note that a chunk was not sent because too much was on its way."""
        ...

    async def put(self, payload: Payload, generation: int, started: Callable[[], None], timeout_s: float) -> None:
        """Send a chunk and wait until it is durable there."""
        ...

    async def get(self, chunk: Chunk, progress: Progress, timeout_s: float) -> bytes:
        """Fetch a chunk and verify it."""
        ...

    async def touch(self, chunks: Sequence[Chunk], generation: int, timeout_s: float) -> list[bool]:
        """Whether each chunk is there, durably touched now."""
        ...

    async def status(self, timeout_s: float) -> BlobStatus:
        """How it is."""
        ...

    async def close(self) -> None:
        """Close the connection."""
        ...


class Peer:
    """A node's chunks."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.lagging = False
        self._channel = open_channel(address, _OPTIONS)
        self._calls = {name: self._channel.unary_unary(f"/{SERVICE}/{name}") for name in _UNARY}
        # On the wire a call with one message is what a stream of one is, and costs less.
        self._put_frame = self._channel.unary_unary(f"/{SERVICE}/Put")
        self._put_frames = self._channel.stream_unary(f"/{SERVICE}/Put")
        self._get_frame = self._channel.unary_unary(f"/{SERVICE}/Get")
        self._get_frames = self._channel.unary_stream(f"/{SERVICE}/Get")
        self._ask_for_channel = self._channel.unary_unary(f"/{SERVICE}/Channel")
        self._direct = Channel(address, self._offer)
        self._room = Room(PENDING_MAX)
        self._sending = 0
        self._short = Queue(self._send_message, MANY_BYTES_MAX, MESSAGES_MAX)
        self._long = Queue(self._send_frames, CALL_BYTES_MAX, CALLS_MAX)
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
        self._direct.ask_again()
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
                queue = self._short if length <= SMALL_BYTES_MAX else self._long
                await queue.put(payload, generation, timeout_s)
                self._answered()
                if now() - begun < LAG_WAIT_S:
                    self.lagging = False
            finally:
                self._sending -= 1
                if self._sending == 0:
                    self.lagging = False

    async def _send_message(self, batch: Sequence[Waiting]) -> list[Exception | None]:
        contents = tuple((each.payload.chunk.digest, each.payload.frames[0]) for each in batch)
        request = PutMany(batch[0].generation, contents)
        return self._outcomes(await self._ask("PutMany", request, list[Refusal | None], batch[0].timeout_s), batch)

    async def _send_frames(self, batch: Sequence[Waiting]) -> list[Exception | None]:
        asked = msgspec.msgpack.encode(AskFor(batch[0].generation, tuple(each.payload.chunk for each in batch)))
        frames = [frame for each in batch for frame in each.payload.frames]
        timeout_s = batch[0].timeout_s
        try:
            answer = await self._directly(self._direct.put(asked, frames, timeout_s))
        except NoChannel:
            answer = await self._send_in_messages(asked, frames, timeout_s)
        finally:
            frames.clear()
        return self._outcomes(self._decoded(answer, list[Refusal | None]), batch)

    async def _directly(self, calling: Awaitable[tuple[int, bytes]]) -> bytes:
        """What a call over the channel answers. Raises NoChannel, Unreachable, and what the node says."""
        problem: Exception
        try:
            kind, answer = await calling
        except TimeoutError:
            self._failed()
            problem = Unreachable(f"{self.address}: no answer in time")
        except (OSError, EOFError):
            self._failed()
            problem = Unreachable(f"{self.address}: cannot be reached")
        except grpc.aio.AioRpcError as error:
            problem = self._translated(error)
        else:
            self._answered()
            if kind != REFUSED:
                return answer
            problem = self._outcome(self._decoded(answer, Refusal))
        raise problem  # without the traceback of the other, which may keep the chunks

    async def _offer(self) -> Offer | None:
        try:
            answer = await self._ask_for_channel(b"", timeout=OFFER_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:  # an older node
                return None
            raise
        (offer,) = self._decoded(answer, tuple[Offer | None])
        return offer

    async def _send_in_messages(self, asked: bytes, frames: list[bytes], timeout_s: float) -> bytes:
        named = ((NAMED, asked),)
        if len(frames) == 1:
            call = self._put_frame(frames.pop(), timeout=timeout_s, metadata=named)
        else:
            call = self._put_frames(timeout=timeout_s, metadata=named)
        try:
            # It has ended already, and its status says why.
            with suppress(asyncio.InvalidStateError, grpc.aio.InternalError):
                for frame in frames:
                    await call.write(frame)
                if frames:
                    await call.done_writing()
            return cast("bytes", await call)
        except grpc.aio.AioRpcError as error:
            problem = self._translated(error)
        finally:
            call.cancel()
            del call
        raise problem  # without the traceback of the other, which would keep the call, and that the chunks

    def _outcomes(self, refusals: list[Refusal | None], batch: Sequence[Waiting]) -> list[Exception | None]:
        if len(refusals) != len(batch):
            raise errors.StoreError(f"{self.address} answered about {len(refusals)} chunks, not {len(batch)}")
        return [None if each is None else self._outcome(each) for each in refusals]

    def _outcome(self, refusal: Refusal) -> Exception:
        if refusal.kind == errors.Unavailable.kind:  # a node that leaves: as if it were gone
            self._failed()
            return Unreachable(f"{self.address}: {refusal.message}")
        return self._refused(refusal.kind, refusal.message)

    async def get(self, chunk: Chunk, progress: Progress, timeout_s: float) -> bytes:
        """Fetch a chunk and verify it.

        Raises Unreachable, IntegrityError (damaged there or on the way), ChunkMissing, StoreError.
        """
        loop = asyncio.get_running_loop()
        self._reads += 1
        begun = loop.time()
        try:
            data = await self._fetch(chunk, progress, timeout_s)
        finally:
            self._reads -= 1
            self._paced(loop.time() - begun)
        self._answered()
        if await digest_of(data) != chunk.digest:
            raise errors.IntegrityError(f"chunk {chunk.digest.hex()} arrived damaged from {self.address}")
        return data

    async def _fetch(self, chunk: Chunk, progress: Progress, timeout_s: float) -> bytes:
        def heard() -> None:
            progress.at = asyncio.get_running_loop().time()

        asked = msgspec.msgpack.encode(AskFor(0, (chunk,)))
        with suppress(NoChannel):
            return await self._directly(self._direct.get(asked, chunk.length, heard, timeout_s))
        try:
            return await self._fetch_in_messages(chunk, heard, timeout_s)
        except grpc.aio.AioRpcError as error:
            raise self._translated(error) from error

    async def _fetch_in_messages(self, chunk: Chunk, heard: Callable[[], None], timeout_s: float) -> bytes:
        request = encode_header(chunk)
        if chunk.length <= FRAME_BYTES:
            return cast("bytes", await self._get_frame(request, timeout=timeout_s))
        call = self._get_frames(request, timeout=timeout_s)
        frames: list[bytes] = []
        try:
            async for frame in call:
                heard()
                frames.append(frame)
            return b"".join(frames)
        finally:
            frames.clear()
            call.cancel()

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
        return self._decoded(answer, kind)

    def _decoded(self, answer: bytes, kind: type[_T]) -> _T:
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
        """Close the connections."""
        self._direct.close()
        await self._channel.close()
        await self._short.ended()
        await self._long.ended()

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


def _reason(error: Exception) -> str:
    if not isinstance(error, grpc.aio.AioRpcError):
        return str(error)
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "no answer in time"
    details = error.details() or error.code().name
    if error.code() is grpc.StatusCode.UNAVAILABLE and not details.startswith("node "):
        return "cannot be reached"
    return details
