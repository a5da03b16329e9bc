"""The collector over gRPC: what nodes, and whoever runs a cycle, ask of a node's worker (``collect``).

All calls are unary, may be repeated, and carry MessagePack: ``Mark`` (a MarkOrder; answered by a Marking), ``Marks`` (a
MarksRequest; a MarksPage) and ``Sweep`` (a SweepOrder; a Sweeping).  An error travels as the call's status; where
trying again is no use the trailing metadata ``objmeta-kind`` names it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

import msgspec

from gateway.blobs.service import KIND
from gateway.collection.collect import CycleName, Link, Marking, MarkOrder, Sweeping, SweepOrder
from gateway.collection.marks import MarksPage
from objmeta import errors
from objmeta.channels import open_channel
from objmeta.grpcio import grpc

SERVICE: Final = "objmeta.collector.v1.Collector"
ANSWER_S: Final = 10.0
_OPTIONS: Final[Sequence[tuple[str, Any]]] = (
    ("grpc.use_local_subchannel_pool", 1),
    # A proxy named by the environment is not meant for nodes of a cluster.
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
)

Answer = TypeVar("Answer")


class MarksRequest(msgspec.Struct, frozen=True, array_like=True):
    """At most ``limit`` marks of that cycle's spool, from the digest ``start`` on."""

    cycle: CycleName
    start: bytes
    limit: int


def handler(worker: Callable[[], Link]) -> grpc.GenericRpcHandler[Any, Any]:
    """What to add to a grpc.aio server; ``worker`` raises Unavailable while there is none."""

    async def page(request: MarksRequest) -> MarksPage:
        return await worker().page(request.cycle, request.start, request.limit)

    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            "Mark": _unary(MarkOrder, lambda order: worker().mark(order)),
            "Marks": _unary(MarksRequest, page),
            "Sweep": _unary(SweepOrder, lambda order: worker().sweep(order)),
        },
    )


def _unary(question: type[Any], answer: Callable[[Any], Awaitable[object]]) -> Any:
    decoder = msgspec.msgpack.Decoder(question)

    async def handle(request: bytes, context: Any) -> bytes:
        try:
            return msgspec.msgpack.encode(await answer(decoder.decode(request)))
        except msgspec.MsgspecError as damage:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"this request cannot be read: {damage}")
        except errors.Unavailable as silence:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(silence))
        except errors.ObjmetaError as error:
            code = grpc.StatusCode.FAILED_PRECONDITION
            await context.abort(code, str(error), trailing_metadata=((KIND, error.kind),))
        raise AssertionError("abort() does not return")

    return grpc.unary_unary_rpc_method_handler(handle)


class CollectorPeer:
    """The worker of the node at ``address``; a ``collect.Link``. Belongs to one event loop."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel = open_channel(address, _OPTIONS)

    async def mark(self, order: MarkOrder) -> Marking:
        return await self._ask("Mark", order, Marking)

    async def page(self, cycle: CycleName, start: bytes, limit: int) -> MarksPage:
        return await self._ask("Marks", MarksRequest(cycle, start, limit), MarksPage)

    async def sweep(self, order: SweepOrder) -> Sweeping:
        return await self._ask("Sweep", order, Sweeping)

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def _ask(self, method: str, question: object, answer: type[Answer]) -> Answer:
        call = self._channel.unary_unary(f"/{SERVICE}/{method}")
        try:
            return msgspec.msgpack.decode(await call(msgspec.msgpack.encode(question), timeout=ANSWER_S), type=answer)
        except grpc.aio.AioRpcError as error:
            raise self._translated(error) from error
        except msgspec.MsgspecError as damage:
            raise errors.StoreError(f"{self._address} answered what cannot be read: {damage}") from damage

    def _translated(self, error: grpc.aio.AioRpcError) -> errors.ObjmetaError:
        metadata: Any = error.trailing_metadata() or ()
        kind = dict(metadata).get(KIND)
        details = error.details() or error.code().name
        if kind == errors.Conflict.kind:
            return errors.Conflict(details)
        if kind is not None:
            return errors.StoreError(f"{self._address}: {details}")
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            return errors.StoreError(f"{self._address} is no node that keeps data, or an older one")
        if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
            return errors.StoreError(f"{self._address} does not understand this version: {details}")
        return errors.Unavailable(f"{self._address} does not answer: {details}")


class CollectorPeers:
    """Links to workers by their addresses; belongs to one event loop."""

    def __init__(self) -> None:
        self._peers: dict[str, CollectorPeer] = {}

    def link(self, acceptor: int, address: str) -> Link:
        """The worker at an address."""
        if address not in self._peers:
            self._peers[address] = CollectorPeer(address)
        return self._peers[address]

    async def close(self) -> None:
        """Close all connections."""
        peers = list(self._peers.values())
        self._peers.clear()
        await asyncio.gather(*(peer.close() for peer in peers))
