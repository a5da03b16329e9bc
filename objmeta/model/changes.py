"""The change functions: data that says what to do, and a pure ``apply`` that does it.

Each carries its operation id (``version_id``, 16 bytes, UUIDv7) and appends one record under that id, so that acceptors
can refuse a second application (docs/protocol.md, "At most once").
"""

from __future__ import annotations

from typing import Final

import msgspec

from objmeta.core.change import Decision, Keep, Write
from objmeta.core.messages import RecordRef, State
from objmeta.model.values import (
    ABORTED,
    COMMITTED,
    DONE,
    BucketHead,
    BucketSettings,
    Head,
    Manifest,
    Pending,
    RecordBody,
    RegisterValue,
    Removal,
    Step,
    Transaction,
    Value,
    Version,
    decode_value,
    encode,
    flag_of,
    holds_intent,
    make_record,
    tip_of,
)

EXISTS: Final = "already_exists"
PRECONDITION: Final = "precondition_failed"
MISSING: Final = "not_found"
MOVED: Final = "moved"
"""The chain's tip is not the one the caller computed with: look again."""
PENDING: Final = "pending"
"""An intent of a transaction is in the way. Nothing was changed, so the same change may be asked for again once that
is settled."""


class _Change(msgspec.Struct, frozen=True, array_like=True, gc=False):
    version_id: bytes

    @property
    def operations(self) -> tuple[bytes, ...]:
        """The one operation id."""
        return (self.version_id,)


def _write(change_id: bytes, state: State | None, sequence_floor: int, value: RegisterValue, body: RecordBody) -> Write:
    record = make_record(tip_of(state), sequence_floor, change_id, body)
    return Write(State(encode(value), (record.ref,), flag_of(value)), (record,))


def _current(state: State | None) -> Head | Keep:
    """The head of an object; Keep if an intent is in the way."""
    if state is None:
        return _NO_HEAD
    value = decode_value(state.value)
    if isinstance(value, Pending):
        return Keep(PENDING)
    assert isinstance(value, Head)
    return value


_NO_HEAD: Final = Head(None)


class PutVersion(_Change, frozen=True, tag="put", gc=False):
    """Append a version to an object: content, or a delete marker.

    ``if_version`` (16 bytes) requires that version to be current; ``if_absent`` that there is no object to see (none at
    all, or a delete marker: S3's ``If-None-Match: *``); ``if_present`` the opposite (used by deletes).
    """

    manifest: Manifest
    data: bytes = b""
    if_absent: bool = False
    if_present: bool = False
    if_version: bytes = b""

    def apply(self, name: bytes, state: State | None, sequence_floor: int) -> Decision:
        found = _current(state)
        if isinstance(found, Keep):
            return found
        current = found.current
        visible = current is not None and not current.delete_marker
        if self.if_absent and visible:
            return Keep(EXISTS)
        if self.if_version and (current is None or current.ref.version_id != self.if_version):
            return Keep(PRECONDITION)
        if self.if_present and not visible:
            return Keep(MISSING)
        manifest = self.manifest
        if current is not None and current.modified_us >= manifest.modified_us:
            manifest = msgspec.structs.replace(manifest, modified_us=current.modified_us + 1)
        if current is not None:
            manifest = msgspec.structs.replace(manifest, parent_version_id=current.ref.version_id)
        record = make_record(tip_of(state), sequence_floor, self.version_id, manifest, self.data)
        version = Version(record.ref, manifest.size, manifest.etag, manifest.modified_us, manifest.delete_marker)
        value = self._value(version, current)
        return Write(State(encode(value), (record.ref,), flag_of(value)), (record,))

    def _value(self, version: Version, before: Version | None) -> RegisterValue:
        """What the register holds when ``version`` follows ``before``."""
        return Head(version)


class Intend(PutVersion, frozen=True, tag="intend", gc=False):
    """What PutVersion does, if ``transaction`` (its id, 16 bytes) commits: an intent is left, and nobody sees it yet.

    It is one of so many ``objects`` that the transaction changes.

    The conditions are decided now, and nothing else is written until the transaction is decided, so they hold then.
    """

    transaction: bytes = b""
    objects: int = 1

    def _value(self, version: Version, before: Version | None) -> RegisterValue:
        return Pending(version, before, self.transaction, self.objects)


class Resolve(_Change, frozen=True, tag="resolve", gc=False):
    """Put in the place of an intent of ``transaction`` what its outcome makes of it; anything else stays as it is.

    An intent that comes to nothing is taken back as a version is removed, so that its chunks are let go.
    """

    transaction: bytes
    committed: bool

    def apply(self, name: bytes, state: State | None, sequence_floor: int) -> Decision:
        intent = decode_value(state.value) if state else None
        if not isinstance(intent, Pending) or intent.transaction != self.transaction:
            return Keep()
        if self.committed:
            return _write(self.version_id, state, sequence_floor, Head(intent.current), Step())
        undone = Removal(intent.current.ref.version_id, last=intent.before is None, undone=True)
        return _write(self.version_id, state, sequence_floor, Head(intent.before), undone)


class Decide(_Change, frozen=True, tag="decide", gc=False):
    """Decide a transaction, if nobody has: of any number of these exactly one takes effect (else Keep(EXISTS)).

    The owner commits under the generation in which the transaction began, and names the ``participants``.
    """

    committed: bool
    participants: tuple[bytes, ...] = ()

    def apply(self, name: bytes, state: State | None, sequence_floor: int) -> Decision:
        if state is not None:
            return Keep(EXISTS)
        value = Transaction(COMMITTED if self.committed else ABORTED, self.participants)
        return _write(self.version_id, state, sequence_floor, value, Step())


class Conclude(_Change, frozen=True, tag="conclude", gc=False):
    """Let a committed transaction be forgotten, none of whose intents is left."""

    def apply(self, name: bytes, state: State | None, sequence_floor: int) -> Decision:
        found = decode_value(state.value) if state else None
        if not isinstance(found, Transaction) or found.status != COMMITTED:
            return Keep(MOVED)
        return _write(self.version_id, state, sequence_floor, Transaction(DONE), Step())


class RemoveVersion(_Change, frozen=True, tag="remove", gc=False):
    """Remove one version for good. The caller walked the chain from ``tip`` and says what is current afterwards."""

    target: bytes
    tip: RecordRef
    current: Version | None

    def apply(self, name: bytes, state: State | None, sequence_floor: int) -> Decision:
        if tip_of(state) != self.tip:
            return Keep(MOVED)
        if holds_intent(state):  # of which the caller should not have computed anything
            return Keep(PENDING)
        removal = Removal(self.target, last=self.current is None)
        return _write(self.version_id, state, sequence_floor, Head(self.current), removal)


class CreateBucket(_Change, frozen=True, tag="mkbucket", gc=False):
    """Create a bucket; the operation id becomes the bucket's id, which is never used again."""

    created_us: int

    def apply(self, name: bytes, state: State | None, sequence_floor: int) -> Decision:
        current = decode_value(state.value) if state else None
        if isinstance(current, BucketHead) and current.status != "gone":
            return Keep(EXISTS)
        value = BucketHead(self.version_id, 1, "active", self.created_us)
        return _write(self.version_id, state, sequence_floor, value, Step())


class MoveBucket(_Change, frozen=True, tag="mvbucket", gc=False):
    """Move a bucket from exactly one status to the next (DESIGN section 4: active, removing, gone)."""

    expected: BucketHead
    status: str
    term: int

    def apply(self, name: bytes, state: State | None, sequence_floor: int) -> Decision:
        current = decode_value(state.value) if state else None
        if current != self.expected:
            return Keep(MOVED)
        value = msgspec.structs.replace(self.expected, status=self.status, term=self.term)
        return _write(self.version_id, state, sequence_floor, value, Step())


class ConfigureBucket(_Change, frozen=True, tag="setbucket", gc=False):
    """Change those settings of a bucket that are not None; the others stay what they are."""

    replicas: int | None = None
    keep_versions: int | None = None
    keep_days: float | None = None
    expire_delete_markers: bool | None = None

    def apply(self, name: bytes, state: State | None, sequence_floor: int) -> Decision:
        current = decode_value(state.value) if state else None
        if not isinstance(current, BucketHead) or current.status == "gone":
            return Keep(MISSING)
        named = {field: getattr(self, field) for field in BucketSettings.__struct_fields__}
        changed = {field: value for field, value in named.items() if value is not None}
        settings = msgspec.structs.replace(current.settings, **changed)
        if settings == current.settings:
            return Keep()
        value = msgspec.structs.replace(current, settings=settings)
        return _write(self.version_id, state, sequence_floor, value, Step())


class SetValue(_Change, frozen=True, tag="set", gc=False):
    """Set or delete (``value`` None) a key-value register.

    ``if_version`` requires that operation to have been the last (all zero bytes: that there is no value).
    """

    value: bytes | None
    if_version: bytes = b""

    def apply(self, name: bytes, state: State | None, sequence_floor: int) -> Decision:
        current = decode_value(state.value) if state else None
        present = isinstance(current, Value) and current.value is not None
        if self.if_version == NO_VERSION and present:
            return Keep(EXISTS)
        if self.if_version and self.if_version != NO_VERSION:
            tip = tip_of(state)
            if not present or tip is None or tip.version_id != self.if_version:
                return Keep(PRECONDITION)
        if self.value is None and not present:
            return Keep(MISSING)
        return _write(self.version_id, state, sequence_floor, Value(self.value), Step())


NO_VERSION: Final = bytes(16)
"""As ``if_version``: there must be no value."""

ModelChange = (
    PutVersion
    | RemoveVersion
    | CreateBucket
    | MoveBucket
    | ConfigureBucket
    | SetValue
    | Intend
    | Resolve
    | Decide
    | Conclude
)
"""The changes that travel."""
