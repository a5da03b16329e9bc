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
from typing import Final, NamedTuple, Protocol

import msgspec

from objmeta import errors
from objmeta.core.configuration import Configuration, ConfigurationTag, Membership
from objmeta.core.inventory import ChangesRequest, DigestRequest, Digests, Inventory, InventoryRequest
from objmeta.core.listing import ScanAnswer, ScanRequest
from objmeta.core.messages import Fence, Record, RecordRef, Reply, Request, State
from objmeta.interfaces import (
    ChangedNames,
    ChangeProgress,
    ChangeReply,
    Changes,
    Collected,
    Cycle,
    MembersStatus,
    NodeStatus,
    ScanPage,
    StoreStatus,
    Watermarks,
)
from objmeta.model.changes import ModelChange

PEER_SERVICE: Final = "objmeta.v1.Peer"
CLIENT_SERVICE: Final = "objmeta.v1.Client"
STREAM: Final = "Stream"
SCAN: Final = "Scan"
INVENTORY: Final = "Inventory"
DIGESTS: Final = "Digests"
CHANGES: Final = "Changes"
HELLO: Final = "Hello"
INIT: Final = "Init"
ESTABLISH: Final = "Establish"
JOIN: Final = "Join"
STATUS: Final = "Status"
POSITION: Final = "Position"

NODE: Final = "objmeta-node"
"""Metadata: which node a stream is for, and which one answers."""
MEMBERS: Final = "objmeta-members"
"""Metadata: all node ids, with commas between them."""
MEMBERSHIP: Final = "objmeta-membership-bin"
"""Metadata: the membership (absent while the node knows none)."""

LIFE: Final = "objmeta-life-bin"
"""Metadata: the :class:`Life` of the node that answers."""


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
    """Requests of one proposer under one configuration, in groups that are answered together."""

    tag: ConfigurationTag
    items: list[tuple[int, list[Request]]]


class PeerReplies(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Answers to groups of requests, each by the group's number and in its order; groups in any order.

    ``position`` is the number of the acceptor's last durable batch.
    """

    items: list[tuple[int, list[Reply]]]
    position: int = 0


class PeerScan(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A page is up to a megabyte, so it is a call of its own and holds no batch up."""

    tag: ConfigurationTag
    request: ScanRequest
    node_id: int


class PeerScanned(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The page, or why there is none."""

    answer: ScanAnswer | None
    failure: Failure | None = None


class PeerQuestion(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What is asked about what an acceptor holds; the method says what ``request`` is."""

    tag: ConfigurationTag
    node_id: int
    request: msgspec.Raw


class PeerAnswer(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The answer as the method has it, or why there is none."""

    answer: msgspec.Raw
    failure: Failure | None = None


class Life(NamedTuple):
    """One run of a node: a number drawn at random, the position it began at, and where it is (``node.positions``)."""

    random: bytes
    began_at: int
    position: int


class Memory(Protocol):
    """What is remembered of the peers (``node.positions``)."""

    def met(self, node_id: int, life: Life) -> str:
        """A peer is reached: why its votes must not be taken, empty if they may."""
        ...

    def heard(self, node_id: int, position: int) -> None:
        """A peer told its position."""
        ...


class Remembered(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a node remembers of the one that asks: the life it met last, and the greatest position it was told."""

    node_id: int
    store_id: bytes
    life: bytes
    position: int


EMPTY: Final = "empty"
BOOTSTRAPPING: Final = "bootstrapping"
ESTABLISHED: Final = "established"


class Hello(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Who a node is. ``phase`` is EMPTY, BOOTSTRAPPING or ESTABLISHED; ``serving`` that it takes operations.

    ``configuration`` is what its acceptor holds (None when empty), ``members`` who it was told belongs to the cluster,
    ``membership`` what it knows of the members by now.
    """

    node_id: int
    members: tuple[int, ...]
    phase: str
    configuration: Configuration | None
    serving: bool = False
    problem: str = ""
    membership: Membership | None = None


class PeerStatus(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A node about itself."""

    hello: Hello
    status: NodeStatus
    change: ChangeProgress | None = None


# -- From clients -----------------------------------------------------------------------------------------------------


class ReadNames(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """``Registers.read``."""

    names: tuple[bytes, ...]
    fence: Fence | None = None


class ChangeName(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """``Registers.change``. ``sent_on``: by another node, so propose it here."""

    name: bytes
    change: ModelChange
    fence: Fence | None
    generation: int
    sent_on: bool = False


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


class AskMembers(msgspec.Struct, frozen=True, array_like=True, tag=7, gc=False):
    """Who the members are. ``brief`` leaves out how they are."""

    brief: bool = False


class ChangeMembers(msgspec.Struct, frozen=True, array_like=True, tag=8, gc=False):
    """Begin to change the members: ids and addresses to add, ids to remove, and the epoch this was decided under."""

    add: tuple[tuple[int, str], ...]
    remove: tuple[int, ...]
    epoch: int


class Collect(msgspec.Struct, frozen=True, array_like=True, tag=9, gc=False):
    """``Registers.collect``, for up to ``wait_s`` seconds."""

    run: int
    wait_s: float


class BeginCycle(msgspec.Struct, frozen=True, array_like=True, tag=10, gc=False):
    """``Registers.begin_cycle``, within ``wait_s`` seconds."""

    wait_s: float


class AskChanges(msgspec.Struct, frozen=True, array_like=True, tag=11, gc=False):
    """``Registers.changes``."""

    since: Watermarks | None
    limit: int


OtherOperation = (
    ReadNames
    | FetchRecords
    | ScanNames
    | RaiseScope
    | AskStatus
    | AskMembers
    | ChangeMembers
    | Collect
    | BeginCycle
    | AskChanges
)
Operation = ChangeName | OtherOperation


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


class Members(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """Answer to :class:`AskMembers`."""

    status: MembersStatus


class MembersChanging(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """Answer to :class:`ChangeMembers`: the membership that stands now. If it is joint, the rest follows by itself."""

    membership: Membership


class Collection(msgspec.Struct, frozen=True, array_like=True, tag=9, gc=False):
    """Answer to :class:`Collect`."""

    collected: Collected


class CycleBegun(msgspec.Struct, frozen=True, array_like=True, tag=10, gc=False):
    """Answer to :class:`BeginCycle`."""

    cycle: Cycle


class Followed(msgspec.Struct, frozen=True, array_like=True, tag=11, gc=False):
    """Answer to :class:`AskChanges`."""

    changed: ChangedNames


Result = (
    Failure
    | States
    | Changed
    | Records
    | Page
    | Raised
    | Health
    | Members
    | MembersChanging
    | Collection
    | CycleBegun
    | Followed
)


class ClientBatch(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Operations, each with its number and the seconds it has left. An empty batch asks for an empty one, at once."""

    items: list[tuple[int, float, Operation]]


class ClientReplies(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Results, by the number of their operation, in any order.

    ``connected``: whether the node is in touch with a majority; when it is not, another node is worth asking.
    ``epoch``: of the membership the node knows.  ``generation``: the newest it knows to have begun.
    """

    items: list[tuple[int, Result]]
    connected: bool = True
    epoch: int = 0
    generation: int = 0


# -- Bytes ------------------------------------------------------------------------------------------------------------

_ENCODER: Final = msgspec.msgpack.Encoder()
encode = _ENCODER.encode
"""The bytes of a message, or of an item of one."""

decode_peer_batch: Final = msgspec.msgpack.Decoder(PeerBatch).decode
decode_peer_replies: Final = msgspec.msgpack.Decoder(PeerReplies).decode
decode_peer_scan: Final = msgspec.msgpack.Decoder(PeerScan).decode
decode_peer_scanned: Final = msgspec.msgpack.Decoder(PeerScanned).decode
decode_peer_question: Final = msgspec.msgpack.Decoder(PeerQuestion).decode
decode_peer_answer: Final = msgspec.msgpack.Decoder(PeerAnswer).decode
decode_inventory_request: Final = msgspec.msgpack.Decoder(InventoryRequest).decode
decode_inventory: Final = msgspec.msgpack.Decoder(Inventory).decode
decode_digest_request: Final = msgspec.msgpack.Decoder(DigestRequest).decode
decode_digests: Final = msgspec.msgpack.Decoder(Digests).decode
decode_changes_request: Final = msgspec.msgpack.Decoder(ChangesRequest).decode
decode_changes: Final = msgspec.msgpack.Decoder(Changes).decode
decode_life: Final = msgspec.msgpack.Decoder(Life).decode
decode_remembered: Final = msgspec.msgpack.Decoder(Remembered).decode
decode_node_id: Final = msgspec.msgpack.Decoder(int).decode
decode_hello: Final = msgspec.msgpack.Decoder(Hello).decode
decode_configuration: Final = msgspec.msgpack.Decoder(Configuration).decode
decode_membership: Final = msgspec.msgpack.Decoder(Membership).decode
decode_peer_status: Final = msgspec.msgpack.Decoder(PeerStatus).decode
decode_client_batch: Final = msgspec.msgpack.Decoder(ClientBatch).decode
decode_client_replies: Final = msgspec.msgpack.Decoder(ClientReplies).decode


def raw(items: Sequence[bytes]) -> list[msgspec.Raw]:
    """Items that are bytes already, as part of a message."""
    return [msgspec.Raw(item) for item in items]
