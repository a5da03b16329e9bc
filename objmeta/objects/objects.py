"""Objects: put, get, delete, copy, and their versions.

A put is one change of the head's register; the record with the manifest rides along.  Conditions are decided inside the
change function, so of any number of racing writers through any nodes exactly one wins.  Reads take the bucket and the
head in one trip; a bucket's id is only ever cached as a guess that the same trip confirms.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from blake3 import blake3

from objmeta.core.messages import Fence, Record, RecordRef, State
from objmeta.errors import (
    AlreadyExists,
    Fenced,
    IntegrityError,
    InvalidArgument,
    NoSuchBucket,
    NoSuchKey,
    NoSuchVersion,
    PreconditionFailed,
    StaleGeneration,
    Unavailable,
    UnknownOutcome,
)
from objmeta.interfaces import ChangeReply, ChangeRequest
from objmeta.model.changes import (
    EXISTS,
    MISSING,
    MOVED,
    PENDING,
    PRECONDITION,
    Intend,
    ModelChange,
    PutVersion,
    RemoveVersion,
)
from objmeta.model.names import bucket_register, check_key, object_register
from objmeta.model.values import (
    BucketHead,
    Chunk,
    Head,
    Manifest,
    Version,
    decode_body,
    decode_value,
    holds_intent,
    tip_of,
)
from objmeta.objects.buckets import Buckets, fence
from objmeta.objects.context import Context
from objmeta.objects.history import Entry, History, load
from objmeta.objects.ids import parse_version_id
from objmeta.objects.intents import STALE_TERM
from objmeta.objects.types import DeleteObject, ObjectSummary, ObjectVersion, PutObject

Condition = Callable[[Sequence[ObjectVersion]], bool]
"""Of all versions of an object, newest first."""

_ATTEMPTS_MAX = 20
_EMPTY_ETAG = blake3(b"").digest()


class Objects:
    """Operations on the objects of buckets."""

    def __init__(self, context: Context, buckets: Buckets) -> None:
        self._context = context
        self._buckets = buckets

    # -- Writing ------------------------------------------------------------------------------------------------------

    async def put(
        self,
        bucket: str,
        key: str,
        *,
        data: bytes | None = None,
        chunks: Sequence[Chunk] = (),
        lists: Sequence[Chunk] = (),
        size: int | None = None,
        etag: str | None = None,
        content_type: str = "",
        metadata: Mapping[str, str] | None = None,
        if_absent: bool = False,
        if_version: str | None = None,
        generation: int = 0,
    ) -> ObjectVersion:
        """Commit a version whose content is ``data`` (in the record), or ``chunks`` or ``lists`` that are durable."""
        wanted = PutObject(
            bucket, key, data, chunks, lists, size, etag, content_type, metadata or {}, if_absent, if_version
        )
        return await self.append(wanted, self.change_for(wanted), generation)

    async def delete(self, bucket: str, key: str, if_version: str | None) -> ObjectVersion:
        """Put a delete marker. Raises NoSuchBucket, NoSuchKey, PreconditionFailed."""
        wanted = DeleteObject(bucket, key, if_version)
        return await self.append(wanted, self.change_for(wanted))

    async def copy(
        self,
        source: tuple[str, str],
        target: tuple[str, str],
        *,
        version_id: str | None,
        if_absent: bool,
        if_version: str | None,
        generation: int = 0,
    ) -> ObjectVersion:
        """Commit the content of one version as a new version elsewhere; no bytes of chunks move."""
        found = await self.get(*source, version_id=version_id, with_data=True)
        if found.is_delete_marker:
            raise InvalidArgument(f"version {found.version_id} of {source[1]!r} is a delete marker and has no content")
        return await self.put(
            *target,
            data=found.data if found.is_inline else None,
            chunks=found.chunks,
            lists=found.lists,
            size=found.size,
            etag=found.etag,
            content_type=found.content_type,
            metadata=found.metadata,
            if_absent=if_absent,
            if_version=if_version,
            generation=generation,
        )

    async def remove_version(self, bucket: str, key: str, version_id: str, only_if: Condition | None = None) -> None:
        """Remove one version for good. Raises NoSuchBucket, NoSuchVersion, PreconditionFailed."""
        target = parse_version_id(version_id)
        operation = self._context.new_id()
        for _ in range(_ATTEMPTS_MAX):
            _, history = await self._history(bucket, key)
            if history is None or history.find(target) is None:
                raise NoSuchVersion(f"object {key!r} in bucket {bucket!r} has no version {version_id}")
            if only_if is not None and not only_if(history.public(bucket, key)):
                raise PreconditionFailed(f"version {version_id} of object {key!r} in bucket {bucket!r} is to stay")
            # What the condition saw is what is changed: the change names the newest record of that history.
            change = RemoveVersion(operation, target, history.tip, _current_without(history, target))
            _, reply = await self._change(bucket, key, change)
            if reply.code != MOVED:
                return
        raise Unavailable(f"object {key!r} in bucket {bucket!r} is being written to all the time; try again later")

    def change_for(
        self, wanted: PutObject | DeleteObject, transaction: bytes = b"", now_us: int | None = None, objects: int = 1
    ) -> PutVersion:
        """The change that makes a version, as an intent of ``transaction`` if one is given. Raises InvalidArgument.

        ``now_us`` is the time of a transaction, for all its versions alike, and ``objects`` how many it changes.
        """
        now_us = self._context.wall_clock() if now_us is None else now_us
        required = b"" if wanted.if_version is None else parse_version_id(wanted.if_version)
        if isinstance(wanted, DeleteObject):
            manifest, data, if_absent = Manifest(0, _EMPTY_ETAG, now_us, delete_marker=True), b"", False
        else:
            manifest, data, if_absent = _manifest(wanted, now_us), wanted.data or b"", wanted.if_absent
        fields = (self._context.new_id(), manifest, data, if_absent, isinstance(wanted, DeleteObject), required)
        return Intend(*fields, transaction=transaction, objects=objects) if transaction else PutVersion(*fields)

    async def append(self, wanted: PutObject | DeleteObject, change: PutVersion, generation: int = 0) -> ObjectVersion:
        """Run the change of :meth:`change_for`; see :meth:`placed`."""
        _, version = await self.placed(wanted, change, generation)
        return version

    async def placed(
        self, wanted: PutObject | DeleteObject, change: PutVersion, generation: int = 0
    ) -> tuple[bytes, ObjectVersion]:
        """The same, with the register that was changed.

        Raises NoSuchBucket, NoSuchKey, AlreadyExists, PreconditionFailed, StaleGeneration.
        """
        bucket, key = wanted.bucket, wanted.key
        register, reply = await self._change(bucket, key, change, generation)
        if reply.code == EXISTS:
            raise AlreadyExists(f"object {key!r} exists already in bucket {bucket!r}")
        if reply.code == PRECONDITION:
            raise PreconditionFailed(
                f"the current version of object {key!r} in bucket {bucket!r} is not {wanted.if_version}"
            )
        if reply.code == MISSING:
            raise NoSuchKey(f"object {key!r} does not exist in bucket {bucket!r}")
        assert reply.record is not None, "a put that took effect names its record"
        has_data = change.manifest.is_inline or change.manifest.delete_marker
        return register, _entry(reply.record).public(bucket, key, True, change.data if has_data else None)

    async def _change(
        self, bucket: str, key: str, change: ModelChange, generation: int = 0
    ) -> tuple[bytes, ChangeReply]:
        """Run a change of a head under the bucket's term, and which register that is.

        It began in ``generation`` (0: it begins now).  What a transaction has left in its way is settled first.

        An attempt that was refused for its term may have reached an acceptor, from where others can finish it.  From
        then on a failure is an unknown outcome; and where the bucket was removed meanwhile, what is under its dead id,
        which nothing can be added to any more, says whether the change was applied.
        """
        if generation < 0:
            raise InvalidArgument(f"a generation is at least 1, or 0 for the newest, not {generation}")
        proposed: BucketHead | None = None
        begun = generation
        tried = False
        for _ in range(_ATTEMPTS_MAX):
            try:
                head = await self._head_to_change(bucket, proposed)
                if head is None or (proposed is not None and head.bucket_id != proposed.bucket_id):
                    assert proposed is not None
                    register = object_register(proposed.bucket_id, key)
                    record = await self._found(register, proposed, change.version_id)
                    if record is not None:
                        return register, ChangeReply("", None, record)
                    if head is None:
                        raise NoSuchBucket(f"bucket {bucket!r} does not exist")
                    proposed = None
                register = object_register(head.bucket_id, key)
                reply = await self._change_of(register, change, fence(head), begun)
            except (Unavailable, IntegrityError) as failure:
                if proposed is not None or (tried and isinstance(failure, StaleGeneration)):
                    raise UnknownOutcome(f"{failure}; an earlier attempt may have applied") from failure
                raise
            if reply.code != STALE_TERM:
                return register, reply
            if reply.proposed:
                proposed, begun, tried = head, reply.generation, True
            self._buckets.forget(bucket)
        raise UnknownOutcome(f"bucket {bucket!r} is being removed again and again; the change may have applied")

    async def _change_of(self, register: bytes, change: ModelChange, stated: Fence, begun: int) -> ChangeReply:
        """One attempt of it, once no intent is in the way."""
        request = ChangeRequest(register, change, stated, begun)
        while True:
            reply = await self._context.registers.change(request, self._context.timeout_s)
            if reply.code != PENDING:
                return reply
            try:
                await self._buckets.intents.clear(register, stated)
            except Fenced:
                return ChangeReply(STALE_TERM, None)

    async def _head_to_change(self, bucket: str, proposed: BucketHead | None) -> BucketHead | None:
        """The bucket with the term to state; None if it is gone and an attempt was made in it."""
        try:
            return await self._buckets.writable(bucket)
        except NoSuchBucket:
            if proposed is None:
                raise
            return None

    async def _found(self, register: bytes, head: BucketHead, operation: bytes) -> Record | None:
        """The record of an operation if it is on the register's chain."""
        (state,) = await self._context.registers.read((register,), self._context.timeout_s, fence(head))
        cursor = tip_of(state)
        while cursor is not None:
            record = await self._record(register, cursor, with_data=False)
            if cursor.version_id == operation:
                return record
            cursor = record.parent
        return None

    # -- Reading ------------------------------------------------------------------------------------------------------

    async def head(self, bucket: str, key: str) -> ObjectSummary:
        """The current version, from the head alone. Raises NoSuchBucket, NoSuchKey."""
        _, current = await self._current(bucket, key)
        ref = current.ref
        return ObjectSummary(
            bucket, key, ref.version_id.hex(), ref.sequence, current.size, current.etag.hex(), current.modified_us
        )

    async def get(self, bucket: str, key: str, *, version_id: str | None, with_data: bool) -> ObjectVersion:
        """One version with its manifest. Raises NoSuchBucket, NoSuchKey, NoSuchVersion, IntegrityError."""
        if version_id is not None:
            return await self._get_version(bucket, key, parse_version_id(version_id), with_data)
        register, current = await self._current(bucket, key)
        record = await self._record(register, current.ref, with_data)
        return _with_data(_entry(record), record, bucket, key, True, with_data)

    async def _get_version(self, bucket: str, key: str, version_id: bytes, with_data: bool) -> ObjectVersion:
        register, history = await self._history(bucket, key)
        entry = history.find(version_id) if history else None
        if history is None or entry is None:
            raise NoSuchVersion(f"object {key!r} in bucket {bucket!r} has no version {version_id.hex()}")
        current = history.current
        is_latest = current is not None and current.ref == entry.ref
        if not (with_data and entry.manifest.is_inline):
            return entry.public(bucket, key, is_latest)
        record = await self._record(register, entry.ref, True)
        return _with_data(entry, record, bucket, key, is_latest, True)

    async def versions(self, bucket: str, key: str) -> list[ObjectVersion]:
        """All versions of one object, newest first. Raises NoSuchBucket, NoSuchKey."""
        _, history = await self._history(bucket, key)
        if history is None or not history.entries:
            raise NoSuchKey(f"object {key!r} does not exist in bucket {bucket!r}")
        return history.public(bucket, key)

    async def _current(self, bucket: str, key: str) -> tuple[bytes, Version]:
        """The register and the current version of an object that is there to see."""
        check_key(key)

        async def look(guess: BucketHead) -> tuple[bytes, State | None] | None:
            register = object_register(guess.bucket_id, key)
            read, timeout_s = self._context.registers.read, self._context.timeout_s
            (bucket_state,), (state,) = await asyncio.gather(
                read((bucket_register(bucket),), timeout_s), read((register,), timeout_s, fence(guess))
            )
            if self._buckets.learn(bucket, bucket_state).bucket_id != guess.bucket_id:
                return None
            if holds_intent(state):
                state = await self._buckets.intents.settled(register, state, fence(guess))
            return register, state

        while (found := await self._buckets.under_term(bucket, look)) is None:
            pass  # the guess was a bucket that is gone; the right one is known now
        register, state = found
        head = decode_value(state.value) if state else Head(None)
        assert isinstance(head, Head)
        if head.current is None or head.current.delete_marker:
            raise NoSuchKey(f"object {key!r} does not exist in bucket {bucket!r}")
        return register, head.current

    async def _history(self, bucket: str, key: str) -> tuple[bytes, History | None]:
        check_key(key)

        async def look(head: BucketHead) -> tuple[bytes, History | None]:
            register = object_register(head.bucket_id, key)
            return register, await load(self._buckets.intents, register, fence(head))

        await self._buckets.look_up(bucket)
        return await self._buckets.under_term(bucket, look)

    async def _record(self, register: bytes, ref: RecordRef, with_data: bool) -> Record:
        (record,) = await self._context.registers.records(register, (ref,), self._context.timeout_s, with_data)
        return record


def _manifest(wanted: PutObject, now_us: int) -> Manifest:
    """What the record says. Raises InvalidArgument."""
    _check_text("content_type", wanted.content_type)
    for name, value in wanted.metadata.items():
        _check_text(name, value)
    if (wanted.data is not None) + bool(wanted.chunks) + bool(wanted.lists) > 1:
        raise InvalidArgument("content is either data or chunks or lists of chunks, not two of them")
    size = wanted.size
    if wanted.data is not None:
        size, digest = len(wanted.data), blake3(wanted.data).digest()
    else:
        if size is None or wanted.etag is None:
            raise InvalidArgument("content in chunks needs its size and etag")
        if not wanted.lists and sum(chunk.length for chunk in wanted.chunks) != size:
            raise InvalidArgument(f"the chunks' lengths do not add up to the size {size}")
        digest = bytes.fromhex(wanted.etag)
    return Manifest(
        size,
        digest,
        now_us,
        wanted.content_type,
        dict(wanted.metadata),
        tuple(wanted.chunks),
        lists=tuple(wanted.lists),
    )


def _check_text(name: object, value: object) -> None:
    """Raise InvalidArgument for what a record cannot hold."""
    if not isinstance(name, str) or not isinstance(value, str):
        raise InvalidArgument(f"content_type and metadata are text (metadata under text), not {name!r}: {value!r}")
    try:
        f"{name}{value}".encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"{name!r}: {value!r} is not valid Unicode and cannot be written as UTF-8") from None


def _entry(record: Record) -> Entry:
    body = decode_body(record)
    assert isinstance(body, Manifest), "a version's record holds a manifest"
    return Entry(record.ref, body)


def _with_data(entry: Entry, record: Record, bucket: str, key: str, is_latest: bool, with_data: bool) -> ObjectVersion:
    manifest = entry.manifest
    if not (with_data and manifest.is_inline):
        return entry.public(bucket, key, is_latest)
    if blake3(record.data).digest() != manifest.etag:
        raise IntegrityError(f"the content of object {key!r} in bucket {bucket!r} is damaged: its digest is wrong")
    return entry.public(bucket, key, is_latest, record.data)


def _current_without(history: History, removed: bytes) -> Version | None:
    current = history.current
    if current is not None and current.ref.version_id != removed:
        return current
    return next((entry.version() for entry in history.entries if entry.ref.version_id != removed), None)
