"""What a node answers about its chunks, over gRPC, and how it looks on the wire (MessagePack, one message each way).

* ``Status``: a :class:`DataStatus`.
* ``Start``: ``"repair"`` or ``"scrub"``; the number of the run that begins after this call, which ``Status`` shows.
* ``Look``: chunks; for each a :class:`Copy`, found by reading it (``deep``), or from what is known.
* ``Held``: a page of the chunks that are here, in order of digest.
* ``Confirm``: a home touches chunks and says which are there, so that another node can drop its copies.
* ``Take``: fetch a chunk from a node that leaves.

An error that a node itself raises travels as the call's status, with its ``kind`` in the trailing metadata.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

import msgspec

from gateway.blobs.local import LocalBlobs
from gateway.blobs.places import ChunkMissing, Held
from gateway.blobs.service import KIND
from gateway.upkeep.repairing import Handover, Want
from gateway.upkeep.runs import Run, Runner
from gateway.upkeep.views import Tag
from objmeta import Chunk, errors
from objmeta.grpcio import grpc

SERVICE: Final = "objmeta.upkeep.v1.Upkeep"
REPAIR: Final = "repair"
SCRUB: Final = "scrub"
HELD_MAX: Final = 5000
_LOOKS_MAX: Final = 4
_TAKES_MAX: Final = 8

_T = TypeVar("_T")


class Copy(enum.IntEnum):
    """What became of a chunk at one place."""

    MISSING = 0
    GOOD = 1
    DAMAGED = 2


class DataStatus(msgspec.Struct, frozen=True, array_like=True):
    """What a node says of its chunks.

    ``chunks`` of ``chunk_bytes`` are there, in ``stored_bytes`` on disk; of them ``damaged`` ones are known.
    ``missing`` are those of its share that it lacks, ``surplus`` those that it keeps in others' stead, both as of the
    last repair, which knew the members of ``epoch``.  ``trouble`` is what is wrong with its disk.
    """

    node_id: int
    zone: str = ""
    weight: float = 1.0
    chunks: int = 0
    chunk_bytes: int = 0
    stored_bytes: int = 0
    damaged: int = 0
    missing: int = 0
    surplus: int = 0
    trouble: str = ""
    repair: Run = Run()
    scrub: Run = Run()
    epoch: int = 0


class Look(msgspec.Struct, frozen=True, array_like=True):
    """A question about copies."""

    deep: bool
    chunks: list[tuple[bytes, int]]


class Confirm(msgspec.Struct, frozen=True, array_like=True):
    """A question to a home: under the view ``tag``, with ``generation``."""

    tag: Tag
    generation: int
    wants: list[tuple[bytes, int, int]]


class Take(msgspec.Struct, frozen=True, array_like=True):
    """A chunk to be fetched from the node at ``giver``, under the view ``tag``."""

    tag: Tag
    generation: int
    giver: str
    digest: bytes
    length: int


class UpkeepService:
    """For a node's gRPC server. ``check`` raises Unavailable while the node may not serve."""

    def __init__(
        self,
        blobs: LocalBlobs,
        handover: Handover,
        runners: dict[str, Runner],
        status: Callable[[], Awaitable[DataStatus]],
        check: Callable[[], object],
    ) -> None:
        self._blobs = blobs
        self._handover = handover
        self._runners = runners
        self._status = status
        self._check = check
        self._takes = asyncio.Semaphore(_TAKES_MAX)
        self._looks = asyncio.Semaphore(_LOOKS_MAX)

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """What to add to a grpc.aio server."""
        calls = {
            "Status": self._tell,
            "Start": self._start,
            "Look": self._look,
            "Held": self._held,
            "Confirm": self._confirm,
            "Take": self._take,
        }
        return grpc.method_handlers_generic_handler(
            SERVICE, {name: grpc.unary_unary_rpc_method_handler(_answering(call)) for name, call in calls.items()}
        )

    async def _tell(self, request: bytes) -> DataStatus:
        return await self._status()

    async def _start(self, request: bytes) -> int:
        self._check()
        runner = self._runners.get(_decoded(request, str))
        if runner is None:
            raise errors.InvalidArgument(f"there is no such work; a node knows {', '.join(self._runners)}")
        return runner.ask()

    async def _look(self, request: bytes) -> list[Copy]:
        self._check()
        asked = _decoded(request, Look)
        async with self._looks:
            return await look(self._blobs, [Chunk(*named) for named in asked.chunks], asked.deep)

    async def _held(self, request: bytes) -> list[Held]:
        self._check()
        after, limit = _decoded(request, tuple[bytes, int])
        return await self._blobs.held(after, min(limit, HELD_MAX))

    async def _confirm(self, request: bytes) -> list[bool]:
        self._check()
        asked = _decoded(request, Confirm)
        wants = [Want(Chunk(digest, length), replicas) for digest, length, replicas in asked.wants]
        return await self._handover.confirm(asked.tag, asked.generation, wants)

    async def _take(self, request: bytes) -> bool:
        self._check()
        asked = _decoded(request, Take)
        async with self._takes:
            await self._handover.take(asked.tag, asked.generation, asked.giver, Chunk(asked.digest, asked.length))
        return True


async def look(blobs: LocalBlobs, chunks: Sequence[Chunk], deep: bool) -> list[Copy]:
    """What became of chunks at one place. Raises StoreError where the disk fails."""
    if not deep:
        return [Copy.GOOD if there else Copy.MISSING for there in await blobs.has(chunks)]
    found = []
    for chunk in chunks:
        try:
            await blobs.get(chunk)
            found.append(Copy.GOOD)
        except ChunkMissing:
            found.append(Copy.MISSING)
        except errors.IntegrityError:
            found.append(Copy.DAMAGED)
    return found


def encode_wants(wants: Sequence[Want]) -> list[tuple[bytes, int, int]]:
    """As :class:`Confirm` names them."""
    return [(want.chunk.digest, want.chunk.length, want.replicas) for want in wants]


def _decoded(request: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.msgpack.decode(request, type=kind)
    except msgspec.MsgspecError as bad:
        raise errors.InvalidArgument(f"this request cannot be read: {bad}") from None


def _answering(call: Callable[[bytes], Awaitable[object]]) -> Any:
    async def answer(request: bytes, context: Any) -> bytes:
        try:
            return msgspec.msgpack.encode(await call(request))
        except errors.ObjmetaError as error:
            again = isinstance(error, errors.Unavailable)
            code = grpc.StatusCode.UNAVAILABLE if again else grpc.StatusCode.INTERNAL
            await context.abort(code, str(error), trailing_metadata=((KIND, error.kind),))
        raise AssertionError("abort() does not return")

    return answer
