"""What registers and records hold, and how it is written as bytes (MessagePack arrays with a type tag).

A field is only ever added at the end with a default, so that older bytes stay readable; anything else gets a new tag.
"""

from __future__ import annotations

from typing import Final

import msgspec

from objmeta.core.messages import HIDDEN, LIVE, TOMBSTONE, Record, RecordRef, State
from objmeta.core.records import record_digest
from objmeta.errors import IntegrityError

DIGEST_BYTES: Final = 32


# -- What registers hold ----------------------------------------------------------------------------------------------


class Version(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a listing shows of one version of an object."""

    ref: RecordRef
    size: int
    etag: bytes
    modified_us: int
    delete_marker: bool = False


class Head(msgspec.Struct, frozen=True, array_like=True, tag="head1", gc=False):
    """The register of an object: its current version, or None when no version is left."""

    current: Version | None


_PENDING: Final = "pending1: ask its transaction"
"""Long on purpose: the longer it is, the sooner a page is searched for it, and intents are few."""


class Pending(msgspec.Struct, frozen=True, array_like=True, tag=_PENDING, gc=False):
    """The register of an object that an undecided transaction wants to change: an *intent*.

    ``current`` is the object's current version if ``transaction`` (16 bytes) commits, ``before`` if it does not (None:
    no version was left).  Nobody answers from it: whoever meets one asks the transaction and puts a Head in its place.
    ``objects``: how many the transaction changes, for the patience of who waits for it.
    """

    current: Version
    before: Version | None
    transaction: bytes
    objects: int = 1


COMMITTED: Final = "committed"
ABORTED: Final = "aborted"
DONE: Final = "done"


class Transaction(msgspec.Struct, frozen=True, array_like=True, tag="transaction1", gc=False):
    """The register of a transaction, its one commit point; as long as there is none, it is undecided.

    ``status`` is "committed", "aborted", or "done": committed, and no intent of it is left.  ``participants`` are the
    registers of a committed one that have, or had, its intents.  Nothing needs to be done for the others any more, so
    they are tombstones and are erased as such: not before every operation that began with the transaction is refused.
    """

    status: str
    participants: tuple[bytes, ...] = ()


class BucketSettings(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What holds for all objects of a bucket; zero stands for the default of each.

    ``replicas``: copies of each chunk, on as many nodes, as far as there are so many (0: three).  ``keep_versions``:
    how many versions are kept beside the current one, and ``keep_days``: for how many days after another one took its
    place (0: says nothing; both 0: all, for ever); with both given a version is removed when both allow it.
    ``expire_delete_markers``: a delete marker that is all that is left of an object is removed.
    """

    replicas: int = 0
    keep_versions: int = 0
    keep_days: float = 0.0
    expire_delete_markers: bool = False


class BucketHead(msgspec.Struct, frozen=True, array_like=True, tag="bucket1", gc=False):
    """The register of a bucket. ``status`` is "active", "removing" or "gone"."""

    bucket_id: bytes
    term: int
    status: str
    created_us: int
    settings: BucketSettings = BucketSettings()


class Value(msgspec.Struct, frozen=True, array_like=True, tag="value1", gc=False):
    """A plain key-value register; None when deleted."""

    value: bytes | None


RegisterValue = Head | BucketHead | Value | Pending | Transaction


# -- What records hold ------------------------------------------------------------------------------------------------


class Chunk(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A piece of an object's content: BLAKE3 digest (32 bytes) and length in bytes."""

    digest: bytes
    length: int


class Manifest(msgspec.Struct, frozen=True, array_like=True, tag="version1", gc=False):
    """All of one version of an object but its place in the chain.

    ``etag`` is the BLAKE3 of the content; ``chunks`` are in order and empty when the content is inline in the record;
    ``metadata`` is the user's.  A delete marker has no content.  ``parent_version_id`` is the version that was current
    before (set by the change function).  ``lists``, of very large objects, stand for ``chunks``, which are empty then:
    they are chunks themselves, and their contents, in order, are MessagePack arrays of chunks.
    """

    size: int
    etag: bytes
    modified_us: int
    content_type: str = ""
    metadata: dict[str, str] = {}
    chunks: tuple[Chunk, ...] = ()
    delete_marker: bool = False
    parent_version_id: bytes = b""
    lists: tuple[Chunk, ...] = ()

    @property
    def is_inline(self) -> bool:
        """Whether the record itself holds the content."""
        return not (self.chunks or self.lists or self.delete_marker)


class Removal(msgspec.Struct, frozen=True, array_like=True, tag="removal1", gc=False):
    """The record of the permanent removal of one version, named by its id.

    ``last``: no version was left.  What lies below in the chain may have been erased, and history ends here.
    ``undone``: the version was an intent of a transaction that did not commit, so it never was one to see.
    """

    version_id: bytes
    last: bool = False
    undone: bool = False


class Step(msgspec.Struct, frozen=True, array_like=True, tag="step1", gc=False):
    """The record of a change whose value is not kept in history (key-value registers, buckets)."""


RecordBody = Manifest | Removal | Step

_ENCODER: Final = msgspec.msgpack.Encoder()
_VALUES: Final[msgspec.msgpack.Decoder[RegisterValue]] = msgspec.msgpack.Decoder(RegisterValue)
_BODIES: Final[msgspec.msgpack.Decoder[RecordBody]] = msgspec.msgpack.Decoder(Manifest | Removal | Step)


def decode_value(value: bytes) -> RegisterValue:
    """Read a register's bytes; raises IntegrityError if they are not what this version writes."""
    try:
        return _VALUES.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError) as damage:
        raise IntegrityError(f"a register holds bytes that cannot be read: {damage}") from damage


INTENT_MARK: Final = msgspec.msgpack.encode(_PENDING)
"""What the bytes of every intent hold after the first: the tag of :class:`Pending`."""


def holds_intent(state: State | None) -> bool:
    """Whether a register's state is an intent; nothing is decoded."""
    return state is not None and state.value.startswith(INTENT_MARK, 1)


def decode_body(record: Record) -> RecordBody:
    """Read a record's body; raises IntegrityError if it is not what this version writes."""
    try:
        return _BODIES.decode(record.body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as damage:
        raise IntegrityError(f"a record holds bytes that cannot be read: {damage}") from damage


def encode(value: RegisterValue | RecordBody) -> bytes:
    """The bytes of a value or body."""
    return _ENCODER.encode(value)


def make_record(
    tip: RecordRef | None, sequence_floor: int, version_id: bytes, body: RecordBody, data: bytes = b""
) -> Record:
    """The record that follows ``tip`` in a chain."""
    sequence = (tip.sequence if tip else sequence_floor) + 1
    encoded = encode(body)
    ref = RecordRef(sequence, version_id, record_digest(sequence, version_id, tip, encoded))
    return Record(ref, tip, encoded, data)


def tip_of(state: State | None) -> RecordRef | None:
    """The newest record of a register's chain."""
    return state.refs[-1] if state is not None and state.refs else None


def flag_of(value: RegisterValue) -> int:
    """The state flag a value deserves: what plain listings show is LIVE."""
    if isinstance(value, Head):  # nearly all are, and patterns cost more
        if value.current is None:
            return TOMBSTONE
        return HIDDEN if value.current.delete_marker else LIVE
    match value:
        case Value(value=None) | BucketHead(status="gone") | Transaction(status="aborted" | "done"):
            return TOMBSTONE
        case _:
            return LIVE
