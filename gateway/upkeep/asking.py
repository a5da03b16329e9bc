"""The other end of ``service``: a node's upkeep as clients and other nodes see it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final, TypeVar

import msgspec

from gateway.blobs.peer import Peer, Progress
from gateway.blobs.placement import Place
from gateway.blobs.places import Held
from gateway.blobs.sending import Unreachable
from gateway.blobs.service import KIND, MANY_BYTES_MAX, MANY_MAX
from gateway.upkeep.repairing import Answer, Want
from gateway.upkeep.service import SERVICE, Confirm, Copy, DataStatus, Look, Take, encode_wants
from gateway.upkeep.views import Tag
from objmeta import Chunk, errors
from objmeta.channels import open_channel
from objmeta.grpcio import grpc

FETCH_TIMEOUT_S: Final = 30.0
CONFIRM_TIMEOUT_S: Final = 30.0
_OPTIONS: Final[Sequence[tuple[str, Any]]] = (
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.use_local_subchannel_pool", 1),
    # A proxy named by the environment is not meant for nodes of a cluster.
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
)

_T = TypeVar("_T")


class Upkeep:
    """The upkeep of the node at ``address``; belongs to one event loop."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = open_channel(address, _OPTIONS)

    async def status(self, timeout_s: float) -> DataStatus:
        """What it says of its chunks. Raises Unavailable, StoreError."""
        return await self._call("Status", b"", DataStatus, timeout_s)

    async def start(self, what: str, timeout_s: float) -> int:
        """Begin ``REPAIR`` or ``SCRUB``; the number of the run. Raises Unavailable, StoreError."""
        return await self._call("Start", msgspec.msgpack.encode(what), int, timeout_s)

    async def look(self, chunks: Sequence[Chunk], deep: bool, timeout_s: float) -> list[Copy]:
        """What became of its copies; ``deep``: it reads them. Raises Unavailable, StoreError."""
        request = msgspec.msgpack.encode(Look(deep, [(chunk.digest, chunk.length) for chunk in chunks]))
        return await self._call("Look", request, list[Copy], timeout_s)

    async def held(self, after: bytes, limit: int, timeout_s: float) -> list[Held]:
        """At most ``limit`` of its chunks, in order of digest. Raises Unavailable, StoreError."""
        return await self._call("Held", msgspec.msgpack.encode((after, limit)), list[Held], timeout_s)

    async def confirm(self, tag: Tag, generation: int, wants: Sequence[Want], timeout_s: float) -> list[bool]:
        """Have it touch chunks of which it is a home. Raises Unavailable, also under another view; StoreError."""
        request = msgspec.msgpack.encode(Confirm(tag, generation, encode_wants(wants)))
        return await self._call("Confirm", request, list[bool], timeout_s)

    async def take(self, tag: Tag, generation: int, giver: str, chunk: Chunk, timeout_s: float) -> None:
        """Have it fetch a chunk from the node at ``giver``. Raises Unavailable, StoreError."""
        request = msgspec.msgpack.encode(Take(tag, generation, giver, chunk.digest, chunk.length))
        await self._call("Take", request, bool, timeout_s)

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def _call(self, method: str, request: bytes, kind: type[_T], timeout_s: float) -> _T:
        call = self._channel.unary_unary(f"/{SERVICE}/{method}")
        try:
            return msgspec.msgpack.decode(await call(request, timeout=timeout_s), type=kind)
        except grpc.aio.AioRpcError as error:
            raise _translated(self.address, error) from None
        except msgspec.MsgspecError as bad:
            raise errors.StoreError(f"{self.address} gave an answer that cannot be read: {bad}") from None


class Nodes:
    """The other nodes of a store, as repair needs them (``repairing.Others``); belongs to one event loop."""

    def __init__(self) -> None:
        self._peers: dict[str, Peer] = {}
        self._upkeeps: dict[str, Upkeep] = {}

    async def fetch(self, place: Place, chunks: Sequence[Chunk]) -> list[Answer]:
        """Of each a good copy, or why this node gives none."""
        answers: list[Answer] = []
        for some in _messages(chunks):
            try:
                answers += await self._given(place.address, some)
            except Unreachable as gone:
                answers += [errors.Unavailable(str(gone))] * len(some)
            except (errors.StoreError, errors.Unavailable) as refusal:
                answers += [refusal] * len(some)
        return answers

    async def _given(self, address: str, chunks: Sequence[Chunk]) -> Sequence[Answer]:
        peer = self._peers.get(address)
        if peer is None:
            peer = self._peers[address] = Peer(address)
        if len(chunks) > 1:
            return await peer.get_many(chunks, FETCH_TIMEOUT_S)
        return [await peer.get(chunks[0], Progress(asyncio.get_running_loop().time()), FETCH_TIMEOUT_S)]

    async def confirm(self, place: Place, tag: Tag, generation: int, wants: Sequence[Want]) -> list[bool]:
        """Ask a home. Raises Unavailable, StoreError."""
        return await self.upkeep(place.address).confirm(tag, generation, wants, CONFIRM_TIMEOUT_S)

    async def give(self, place: Place, own: Place, tag: Tag, generation: int, chunk: Chunk) -> None:
        """Have a node fetch a chunk from this one. Raises Unavailable, StoreError."""
        await self.upkeep(place.address).take(tag, generation, own.address, chunk, FETCH_TIMEOUT_S)

    def upkeep(self, address: str) -> Upkeep:
        """The node at an address."""
        found = self._upkeeps.get(address)
        if found is None:
            found = self._upkeeps[address] = Upkeep(address)
        return found

    async def close(self) -> None:
        """Close all connections."""
        ends: list[Peer | Upkeep] = [*self._peers.values(), *self._upkeeps.values()]
        self._peers.clear()
        self._upkeeps.clear()
        await asyncio.gather(*(end.close() for end in ends))


def _messages(chunks: Sequence[Chunk]) -> list[list[Chunk]]:
    """Chunks that are asked for together: as many as fit into a message, or one that is long."""
    messages: list[list[Chunk]] = []
    room = 0
    for chunk in chunks:
        if not messages or chunk.length > room or len(messages[-1]) == MANY_MAX:
            messages.append([])
            room = MANY_BYTES_MAX
        messages[-1].append(chunk)
        room -= chunk.length
    return messages


def _translated(address: str, error: grpc.aio.AioRpcError) -> errors.ObjmetaError:
    metadata: Any = error.trailing_metadata() or ()
    details = error.details() or error.code().name
    if dict(metadata).get(KIND) is not None:
        again = error.code() is grpc.StatusCode.UNAVAILABLE
        return errors.Unavailable(details) if again else errors.StoreError(f"{address}: {details}")
    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
        return errors.StoreError(f"{address} is not a node that keeps data")
    late = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    return errors.Unavailable(f"{address}: {'no answer in time' if late else 'cannot be reached'}")
