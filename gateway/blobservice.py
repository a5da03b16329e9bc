"""Chunks over gRPC: what a node serves, and how it looks on the wire.

One call moves one chunk, as raw bytes in frames of at most 1 MiB, so that flow control bounds memory at both ends.

* ``Put`` (stream to unary): the first frame begins with a header, digest (32 bytes) and length (8 bytes, big-endian),
  and data follows. Answered when the chunk is durable. The node takes all frames before it answers, also with an error.
* ``Get`` (unary to stream): the request is a header, the answer the whole chunk, which the node verified before it sent
  any of it; the client verifies again.
* ``Status`` (unary): a BlobStatus in MessagePack.

An error travels as the call's status; where trying again is no use the trailing metadata ``objmeta-kind`` names it.
The node bounds how many calls it works on; the others wait unread, and a client that stops sending loses its place.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, Final

import grpc
import msgspec

from gateway.bloblocal import LocalBlobs
from gateway.blobs import CHUNK_LENGTH_MAX, ChunkMissing
from objmeta import Chunk, errors

SERVICE: Final = "objmeta.blobs.v1.Blobs"
KIND: Final = "objmeta-kind"
MISSING: Final = "chunk_missing"
HEADER: Final = struct.Struct(">32sQ")
FRAME_BYTES: Final = (1 << 20) - HEADER.size
PUTS_MAX: Final = 64
"""Enough that small chunks share a sync; each holds one frame."""
GETS_MAX: Final = 16
"""Each holds a chunk."""
FRAME_TIMEOUT_S: Final = 30.0

_CODES: Final = (
    (ChunkMissing, grpc.StatusCode.NOT_FOUND),
    (errors.IntegrityError, grpc.StatusCode.DATA_LOSS),
    (errors.StoreFull, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.InvalidArgument, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.Unavailable, grpc.StatusCode.UNAVAILABLE),
    (errors.ObjmetaError, grpc.StatusCode.INTERNAL),
)


def encode_header(chunk: Chunk) -> bytes:
    """The header that names a chunk."""
    return HEADER.pack(chunk.digest, chunk.length)


def decode_header(frame: bytes) -> Chunk:
    """The chunk that a frame names. Raises InvalidArgument."""
    if len(frame) < HEADER.size:
        raise errors.InvalidArgument(f"a frame of {len(frame)} bytes is too short to name a chunk")
    digest, length = HEADER.unpack_from(frame)
    if length > CHUNK_LENGTH_MAX:
        raise errors.InvalidArgument(f"a chunk has at most {CHUNK_LENGTH_MAX} bytes, not {length}")
    return Chunk(digest, length)


class BlobService:
    """The chunks of one node, for its gRPC server.

    ``check`` is called before a chunk is stored or read, and raises Unavailable while the node may not serve.
    """

    def __init__(self, blobs: LocalBlobs, check: Callable[[], object] = lambda: None) -> None:
        self._blobs = blobs
        self._check = check
        self._puts = asyncio.Semaphore(PUTS_MAX)
        self._gets = asyncio.Semaphore(GETS_MAX)

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """What to add to a grpc.aio server."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Put": grpc.stream_unary_rpc_method_handler(self._put),
                "Get": grpc.unary_stream_rpc_method_handler(self._get),
                "Status": grpc.unary_unary_rpc_method_handler(self._status),
            },
        )

    async def _put(self, frames: AsyncIterator[bytes], context: Any) -> bytes:
        async with self._puts:
            try:
                self._check()
                first = await _next(frames)
                await self._blobs.receive(decode_header(first), _data(first, frames), generation=0)
            except errors.ObjmetaError as error:
                await _abort(context, error)
        return b""

    async def _get(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        async with self._gets:
            try:
                self._check()
                data = memoryview(await self._blobs.get(decode_header(request)))
            except errors.ObjmetaError as error:
                await _abort(context, error)
            for start in range(0, len(data), FRAME_BYTES):
                yield bytes(data[start : start + FRAME_BYTES])

    async def _status(self, request: bytes, context: Any) -> bytes:
        (status,) = await self._blobs.status()
        return msgspec.msgpack.encode(status)


async def _next(frames: AsyncIterator[bytes]) -> bytes:
    """The next frame. Raises InvalidArgument when there is none, or none for a long time."""
    with suppress(StopAsyncIteration, TimeoutError):
        async with asyncio.timeout(FRAME_TIMEOUT_S):
            return await anext(frames)
    raise errors.InvalidArgument("a chunk ended, or paused for too long, before all of it was sent")


async def _data(first: bytes, frames: AsyncIterator[bytes]) -> AsyncIterator[memoryview]:
    remaining = decode_header(first).length
    frame = memoryview(first)[HEADER.size :]
    while True:
        remaining -= len(frame)
        yield frame
        if remaining <= 0:
            break
        frame = memoryview(await _next(frames))


async def _abort(context: Any, error: errors.ObjmetaError) -> None:
    code = next(code for kind, code in _CODES if isinstance(error, kind))
    kind = MISSING if isinstance(error, ChunkMissing) else error.kind
    metadata = () if isinstance(error, errors.Unavailable) else ((KIND, kind),)
    await context.abort(code, str(error), trailing_metadata=metadata)
