"""Chunks over gRPC: what a node serves, and how it looks on the wire.

A long chunk travels as raw bytes in a message of its own, or in several of at most 4 MiB.  Short ones that wait
together travel in one message.  A header is a digest (32 bytes), a length and a generation (8 bytes each, big-endian).

* ``Put`` (stream to unary): the metadata ``objmeta-chunks-bin`` says which chunks follow, ``[generation, [[digest,
  length], ...]]`` in MessagePack, the messages are their contents.  Answered, when all are durable or refused, by a
  list of what went wrong with each: ``[kind, message]``, or nil.  There is room for them before the first is taken.
* ``PutMany`` (unary): ``[generation, [[digest, content], ...]]`` in MessagePack, a megabyte or so; answered, when all
  are durable or refused, as ``Put``.
* ``Get`` (unary to stream): the request is a header, the answer the whole chunk, which the node verified before it sent
  any of it; the client verifies again.
* ``GetMany`` (unary): ``[0, [[digest, length], ...]]``, a megabyte at most; answered by a list with the content of
  each, or ``[kind, message]`` where there is none that is good. The client verifies them.
* ``Touch`` and ``Has`` (unary): ``[generation, [[digest, length], ...]]``, answered by a list of booleans; ``Held``:
  ``[after, limit]``, by a list of Held; ``Usage`` and ``Status``: nothing, by a Usage, a BlobStatus. In MessagePack.

* ``Channel`` (unary): nothing, answered by ``[offer]``, where long chunks are better sent to and asked for: an Offer
  of :mod:`gateway.blobs.channel`, or nil.

An error travels as the call's status; where trying again is no use the trailing metadata ``objmeta-kind`` names it.
The node bounds how many calls it works on; the others wait unread, and a client that stops sending loses its place.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeVar

import msgspec

from gateway.blobs.channel import Offer
from gateway.blobs.places import CHUNK_LENGTH_MAX, BlobPlace, ChunkMissing
from gateway.blobs.room import Room
from objmeta import Chunk, errors
from objmeta.grpcio import EOF, grpc

SERVICE: Final = "objmeta.blobs.v1.Blobs"
KIND: Final = "objmeta-kind"
NAMED: Final = "objmeta-chunks-bin"
MISSING: Final = "chunk_missing"
HEADER: Final = struct.Struct(">32sQQ")
FRAME_BYTES: Final = 4 << 20
"""All that uploads cut fits into one: each message costs both sides some 100 µs beside its bytes."""
SMALL_BYTES_MAX: Final = 64 << 10
"""A chunk of up to this many bytes travels with others."""
MANY_MAX: Final = 64
MANY_BYTES_MAX: Final = 1 << 20
"""So much travels in one message, unless one chunk alone is longer."""
NAMES_MAX: Final = 1000
"""Chunks that are asked for in one message."""
PUTS_MAX: Final = 64
"""Enough that chunks share a sync."""
ARRIVING_BYTES_MAX: Final = 32 << 20
"""A long chunk is written when all of it is there: so much is held for that, unless one chunk alone is longer."""
GETS_MAX: Final = 16
"""Each holds a chunk."""
FRAME_TIMEOUT_S: Final = 30.0

_CODES: Final = (
    (ChunkMissing, grpc.StatusCode.NOT_FOUND),
    (errors.IntegrityError, grpc.StatusCode.DATA_LOSS),
    (errors.StoreFull, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.InvalidArgument, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.StaleGeneration, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.Unavailable, grpc.StatusCode.UNAVAILABLE),
    (errors.ObjmetaError, grpc.StatusCode.INTERNAL),
)
_PACKED: Final = msgspec.msgpack.Encoder()

_T = TypeVar("_T")


class AskFor(msgspec.Struct, frozen=True, array_like=True):
    """Chunks that are asked for. The generation touches what is there; 0 where nothing is to be touched."""

    generation: int
    chunks: tuple[Chunk, ...]


class PutMany(msgspec.Struct, frozen=True, array_like=True):
    """Short chunks: digests and contents."""

    generation: int
    chunks: tuple[tuple[bytes, bytes], ...]


class Refusal(msgspec.Struct, frozen=True, array_like=True):
    """Why a chunk was not stored, or not given."""

    kind: str
    message: str


def encode_header(chunk: Chunk, generation: int = 0) -> bytes:
    """The header that names a chunk."""
    return HEADER.pack(chunk.digest, chunk.length, generation)


def decode_header(frame: bytes) -> tuple[Chunk, int]:
    """The chunk that a header names, and the generation. Raises InvalidArgument."""
    if len(frame) != HEADER.size:
        raise errors.InvalidArgument(f"a chunk is named by {HEADER.size} bytes, not {len(frame)}")
    digest, length, generation = HEADER.unpack(frame)
    if length > CHUNK_LENGTH_MAX:
        raise errors.InvalidArgument(f"a chunk has at most {CHUNK_LENGTH_MAX} bytes, not {length}")
    return Chunk(digest, length), generation


Contents = Callable[[Chunk], Awaitable[Sequence[bytes | memoryview]]]
"""Receives the next chunk, in parts."""


class BlobService:
    """The chunks of one node, for its gRPC server, and for plain connections where ``offer`` says that there are some.

    ``check`` is called before a chunk is stored or read, and raises Unavailable while the node may not serve.
    """

    def __init__(self, blobs: BlobPlace, check: Callable[[], object] = lambda: None, node_id: int = 0) -> None:
        self._blobs = blobs
        self._check = check
        self._node_id = node_id
        self._puts = asyncio.Semaphore(PUTS_MAX)
        self._room = Room(ARRIVING_BYTES_MAX)
        self._gets = asyncio.Semaphore(GETS_MAX)
        self.offer: Offer | None = None

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """What to add to a grpc.aio server."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Put": grpc.stream_unary_rpc_method_handler(self._put),
                "PutMany": grpc.unary_unary_rpc_method_handler(self._answering(self._put_many)),
                "Get": grpc.unary_stream_rpc_method_handler(self._get),
                "GetMany": grpc.unary_unary_rpc_method_handler(self._answering(self._get_many)),
                "Touch": grpc.unary_unary_rpc_method_handler(self._answering(self._touch)),
                "Has": grpc.unary_unary_rpc_method_handler(self._answering(self._has)),
                "Held": grpc.unary_unary_rpc_method_handler(self._answering(self._held)),
                "Usage": grpc.unary_unary_rpc_method_handler(self._answering(self._usage)),
                "Channel": grpc.unary_unary_rpc_method_handler(self._channel),
                "Status": grpc.unary_unary_rpc_method_handler(self._status),
            },
        )

    # -- Long chunks --------------------------------------------------------------------------------------------------

    async def take_in(self, asked: AskFor, contents: Contents) -> list[Refusal | None]:
        """Receive and store chunks, as soon as there is room; what went wrong with each. Raises Unavailable."""
        async with self._puts:
            self._check()
            async with self._room.share(min(total(asked), ARRIVING_BYTES_MAX)):
                arrived = [(chunk, await contents(chunk)) for chunk in asked.chunks]
                return await self._receive(arrived, asked.generation)

    @asynccontextmanager
    async def giving(self, chunk: Chunk) -> AsyncIterator[bytes]:
        """A chunk, while it is sent. Raises Unavailable, and as BlobPlace.get."""
        async with self._gets:
            self._check()
            yield await self._blobs.get(chunk)

    async def _put(self, _: object, context: Any) -> bytes:
        async def content(chunk: Chunk) -> Sequence[bytes]:
            return await _content(chunk, context)

        try:
            refusals = await self.take_in(_announced(context), content)
        except errors.ObjmetaError as error:
            await _abort(context, error)
        return _PACKED.encode(refusals)

    async def _receive(
        self, arrived: Iterable[tuple[Chunk, Sequence[bytes | memoryview]]], generation: int
    ) -> list[Refusal | None]:
        async def one(chunk: Chunk, parts: Sequence[bytes | memoryview]) -> Refusal | None:
            try:
                await self._blobs.receive(chunk, parts, generation=generation)
            except errors.ObjmetaError as error:
                return refusal(error)
            return None

        return await asyncio.gather(*(one(*each) for each in arrived))

    async def _get(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        try:
            chunk, _ = decode_header(request)
            async with self.giving(chunk) as data:
                if len(data) <= FRAME_BYTES:
                    yield data
                    return
                for start in range(0, len(data), FRAME_BYTES):
                    yield data[start : start + FRAME_BYTES]
        except errors.ObjmetaError as error:
            await _abort(context, error)

    # -- Messages -----------------------------------------------------------------------------------------------------

    def _answering(self, work: Callable[[bytes], Awaitable[object]]) -> Callable[[bytes, Any], Awaitable[bytes]]:
        async def answer(request: bytes, context: Any) -> bytes:
            try:
                self._check()
                return _PACKED.encode(await work(request))
            except errors.ObjmetaError as error:
                await _abort(context, error)
                raise AssertionError("a call that was aborted goes no further") from error

        return answer

    async def _put_many(self, request: bytes) -> list[Refusal | None]:
        asked = decoded(request, PutMany)
        async with self._puts:
            arrived = ((Chunk(digest, len(data)), (data,)) for digest, data in asked.chunks)
            return await self._receive(arrived, asked.generation)

    async def _get_many(self, request: bytes) -> list[bytes | Refusal]:
        chunks = decoded(request, AskFor).chunks
        length = sum(chunk.length for chunk in chunks)
        if len(chunks) > MANY_MAX or length > MANY_BYTES_MAX:
            raise errors.InvalidArgument(
                f"a message asks for at most {MANY_MAX} chunks of {MANY_BYTES_MAX} bytes together, not for "
                f"{len(chunks)} of {length}"
            )
        async with self._gets:
            found = await self._blobs.get_many(chunks)
        return [data if isinstance(data, bytes) else refusal(data) for data in found]

    async def _touch(self, request: bytes) -> list[bool]:
        asked = decoded(request, AskFor)
        return await self._blobs.touch(asked.chunks, generation=asked.generation)

    async def _has(self, request: bytes) -> list[bool]:
        return await self._blobs.has(decoded(request, AskFor).chunks)

    async def _held(self, request: bytes) -> object:
        after, limit = decoded(request, tuple[bytes, int])
        return await self._blobs.held(after, min(limit, NAMES_MAX))

    async def _usage(self, request: bytes) -> object:
        return await self._blobs.usage()

    async def _channel(self, request: bytes, context: Any) -> bytes:
        return _PACKED.encode((self.offer,))

    async def _status(self, request: bytes, context: Any) -> bytes:
        (status,) = await self._blobs.status()
        return _PACKED.encode(msgspec.structs.replace(status, node_id=self._node_id))


def decoded(request: bytes, kind: type[_T]) -> _T:
    """What a request says. Raises InvalidArgument."""
    try:
        return msgspec.msgpack.decode(request, type=kind)
    except msgspec.MsgspecError as wrong:
        raise errors.InvalidArgument(f"a request cannot be read: {wrong}") from None


def _announced(context: Any) -> AskFor:
    """What a call brings. Raises InvalidArgument."""
    return decoded(dict(context.invocation_metadata() or ()).get(NAMED, b""), AskFor)


def total(asked: AskFor) -> int:
    """The length of all chunks that a call brings. Raises InvalidArgument if it may not bring them together."""
    length = sum(chunk.length for chunk in asked.chunks)
    if not asked.chunks or len(asked.chunks) > MANY_MAX or any(chunk.length < 0 for chunk in asked.chunks):
        raise errors.InvalidArgument(f"a call brings 1 to {MANY_MAX} chunks of 0 bytes or more")
    allowed = CHUNK_LENGTH_MAX if len(asked.chunks) == 1 else ARRIVING_BYTES_MAX
    if length > allowed:
        raise errors.InvalidArgument(f"a call brings at most {allowed} bytes, not {length}")
    return length


async def _content(chunk: Chunk, context: Any) -> list[bytes]:
    """What arrives, as long as that is not more than the chunk. Raises InvalidArgument if less does, or too slowly.

    (The iterator that a handler is given would hold the last message until Python looks for cycles.)
    """
    parts: list[bytes] = []
    left = chunk.length
    while left > 0:
        frame = EOF
        with suppress(TimeoutError):
            async with asyncio.timeout(FRAME_TIMEOUT_S):
                frame = await context.read()
        if frame is EOF:
            raise errors.InvalidArgument("a chunk ended, or paused for too long, before all of it was sent")
        parts.append(frame)
        left -= len(frame)
    return parts


def refusal(error: errors.ObjmetaError) -> Refusal:
    """An error as it travels."""
    return Refusal(_kind(error), str(error))


def _kind(error: errors.ObjmetaError) -> str:
    return MISSING if isinstance(error, ChunkMissing) else error.kind


async def _abort(context: Any, error: errors.ObjmetaError) -> None:
    code = next(code for kind, code in _CODES if isinstance(error, kind))
    passes = isinstance(error, errors.Unavailable) and not isinstance(error, errors.StaleGeneration)
    await context.abort(code, str(error), trailing_metadata=() if passes else ((KIND, _kind(error)),))
