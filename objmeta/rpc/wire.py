"""What travels between processes, and how it is written as bytes (MessagePack arrays).

Rules.  Every stream carries batches: what has queued up while the last message was in flight travels in the next one,
because a message costs about a hundred times what an operation in it costs.  An item is encoded once; a batch is put
together from items that are bytes already.  A field is only ever added at the end with a default; anything else gets a
new method name (``v1`` is in it).

An error travels as its ``kind`` and becomes the same class on the other side, so that definite stays definite.  The
kind ``unavailable`` itself says that the node did not even begin, and that another one may be asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from objmeta import errors
from objmeta.core.configuration import Configuration, ConfigurationTag
from objmeta.core.listing import ScanAnswer, ScanRequest
from objmeta.core.messages import Fence, Record, RecordRef, Reply, Request, State
from objmeta.interfaces import ChangeReply, NodeStatus, ScanPage, StoreStatus
from objmeta.model.changes import ModelChange

PEER_SERVICE: Final = "objmeta.v1.Peer"
CLIENT_SERVICE: Final = "objmeta.v1.Client"
STREAM: Final = "Stream"
SCAN: Final = "Scan"
HELLO: Final = "Hello"
INIT: Final = "Init"
ESTABLISH: Final = "Establish"
STATUS: Final = "Status"

NODE: Final = "objmeta-node"
"""Metadata: which node a stream is for, and which one answers."""
MEMBERS: Final = "objmeta-members"
"""Metadata: all node ids, with commas between them."""


def path(service: str, method: str) -> str:
    """The full name of a method."""
    return f"/{service}/{method}"


# -- Errors -----------------------------------------------------------------------------------------------------------


class Failure(msgspec.Struct, frozen=True, array_like=True, tag=0, gc=False):
    """An error of :mod:`objmeta.errors`, by its kind."""

    kind: str
    message: str


_CLASSES: Final = {
    error.kind: error
    for error in vars(errors).values()
    if isinstance(error, type) and issubclass(error, errors.ObjmetaError)
}


def failure(error: errors.ObjmetaError) -> Failure:
    """An error as it travels."""
    return Failure(error.kind, str(error))


def error(failed: Failure) -> errors.ObjmetaError:
    """The error that travelled; one of a kind this version does not know is an ObjmetaError."""
    return _CLASSES.get(failed.kind, errors.ObjmetaError)(failed.message)


# -- Between nodes ----------------------------------------------------------------------------------------------------


class PeerBatch(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Requests of one proposer under one configuration."""

    tag: ConfigurationTag
    items: list[tuple[int, Request]]


class PeerReplies(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Answers, by the number of their request, in any order."""

    items: list[tuple[int, Reply]]


class PeerScan(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A page is up to a megabyte, so it is a call of its own and holds no batch up."""

    tag: ConfigurationTag
    request: ScanRequest
    node_id: int


class PeerScanned(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The page, or why there is none."""

    answer: ScanAnswer | None
    failure: Failure | None = None


EMPTY: Final = "empty"
BOOTSTRAPPING: Final = "bootstrapping"
ESTABLISHED: Final = "established"


class Hello(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Who a node is. ``phase`` is EMPTY, BOOTSTRAPPING or ESTABLISHED; ``serving`` that it takes operations.

    ``configuration`` is what its acceptor holds (None when empty), ``members`` who it was told belongs to the cluster.
    """

    node_id: int
    members: tuple[int, ...]
    phase: str
    configuration: Configuration | None
    serving: bool = False
    problem: str = ""


class PeerStatus(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A node about itself."""

    hello: Hello
    status: NodeStatus


# -- From clients -----------------------------------------------------------------------------------------------------


class ReadNames(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """``Registers.read``."""

    names: tuple[bytes, ...]
    fence: Fence | None = None


class ChangeName(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """``Registers.change``."""

    name: bytes
    change: ModelChange
    fence: Fence | None
    generation: int


class FetchRecords(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """``Registers.records``."""

    name: bytes
    refs: tuple[RecordRef, ...]
    with_data: bool


class ScanNames(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """``Registers.scan``."""

    request: ScanRequest


class RaiseScope(msgspec.Struct, frozen=True, array_like=True, tag=5, gc=False):
    """``Registers.raise_term``."""

    scope: bytes
    term: int


class AskStatus(msgspec.Struct, frozen=True, array_like=True, tag=6, gc=False):
    """``Registers.status``."""


Operation = ReadNames | ChangeName | FetchRecords | ScanNames | RaiseScope | AskStatus


class States(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """Answer to :class:`ReadNames`."""

    states: list[State | None]


class Changed(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """Answer to :class:`ChangeName`."""

    reply: ChangeReply


class Records(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """Answer to :class:`FetchRecords`."""

    records: list[Record]


class Page(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """Answer to :class:`ScanNames`."""

    page: ScanPage


class Raised(msgspec.Struct, frozen=True, array_like=True, tag=5, gc=False):
    """Answer to :class:`RaiseScope`."""


class Health(msgspec.Struct, frozen=True, array_like=True, tag=6, gc=False):
    """Answer to :class:`AskStatus`."""

    status: StoreStatus


Result = Failure | States | Changed | Records | Page | Raised | Health


class ClientBatch(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Operations, each with its number and the seconds it has left. An empty batch asks for an empty one, at once."""

    items: list[tuple[int, float, Operation]]


class ClientReplies(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Results, by the number of their operation, in any order.

    ``connected``: whether the node is in touch with a majority; when it is not, another node is worth asking.
    """

    items: list[tuple[int, Result]]
    connected: bool = True


# -- Bytes ------------------------------------------------------------------------------------------------------------

_ENCODER: Final = msgspec.msgpack.Encoder()
encode = _ENCODER.encode
"""The bytes of a message, or of an item of one."""

decode_peer_batch: Final = msgspec.msgpack.Decoder(PeerBatch).decode
decode_peer_replies: Final = msgspec.msgpack.Decoder(PeerReplies).decode
decode_peer_scan: Final = msgspec.msgpack.Decoder(PeerScan).decode
decode_peer_scanned: Final = msgspec.msgpack.Decoder(PeerScanned).decode
decode_hello: Final = msgspec.msgpack.Decoder(Hello).decode
decode_configuration: Final = msgspec.msgpack.Decoder(Configuration).decode
decode_peer_status: Final = msgspec.msgpack.Decoder(PeerStatus).decode
decode_client_batch: Final = msgspec.msgpack.Decoder(ClientBatch).decode
decode_client_replies: Final = msgspec.msgpack.Decoder(ClientReplies).decode


def raw(items: Sequence[bytes]) -> list[msgspec.Raw]:
    """Items that are bytes already, as part of a message."""
    return [msgspec.Raw(item) for item in items]
