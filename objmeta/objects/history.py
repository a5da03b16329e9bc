"""The history of an object: its chain of records, and what it says about versions.

Every change of an object appends one record: a manifest (a version put, or a delete marker) or the removal of a
version.  The versions of an object are the manifests on the chain less those that a removal names.  A transaction that
commits leaves a step beside its version, which says nothing; of one that does not, nothing is shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from objmeta.core.listing import ScanRequest, decode_records, decode_rows
from objmeta.core.messages import Fence, Record, RecordRef, State
from objmeta.errors import IntegrityError
from objmeta.model.values import Head, Manifest, Removal, Version, decode_body, decode_value, tip_of
from objmeta.objects.ids import time_of
from objmeta.objects.intents import Intents
from objmeta.objects.types import ObjectVersion, RemovedVersion


class Entry(msgspec.Struct, frozen=True):
    """One version on a chain."""

    ref: RecordRef
    manifest: Manifest

    def version(self) -> Version:
        """What the head shows when this is the current version."""
        manifest = self.manifest
        return Version(self.ref, manifest.size, manifest.etag, manifest.modified_us, manifest.delete_marker)

    def public(self, bucket: str, key: str, is_latest: bool, data: bytes | None = None) -> ObjectVersion:
        """What users see."""
        manifest = self.manifest
        return ObjectVersion(
            bucket,
            key,
            self.ref.version_id.hex(),
            self.ref.sequence,
            manifest.size,
            manifest.etag.hex(),
            manifest.modified_us,
            manifest.delete_marker,
            is_latest=is_latest,
            content_type=manifest.content_type,
            metadata=manifest.metadata,
            chunks=manifest.chunks,
            data=data,
            parent_version_id=manifest.parent_version_id.hex() or None,
            lists=manifest.lists,
        )


class History(msgspec.Struct, frozen=True):
    """An object at one instant: the state it was read from and its versions, newest first.

    ``removals`` are the records of removals and what they say, newest first; ``removed`` the versions they removed, as
    far as the chain still has them.
    """

    state: State
    entries: tuple[Entry, ...]
    removals: tuple[tuple[RecordRef, Removal], ...] = ()
    removed: tuple[Entry, ...] = ()

    @property
    def tip(self) -> RecordRef:
        """The newest record."""
        tip = tip_of(self.state)
        assert tip is not None, "a state always names the record its change wrote"
        return tip

    @property
    def current(self) -> Version | None:
        """The current version."""
        value = decode_value(self.state.value)
        assert isinstance(value, Head)
        return value.current

    def find(self, version_id: bytes) -> Entry | None:
        """The version with that id."""
        return next((entry for entry in self.entries if entry.ref.version_id == version_id), None)

    def public(self, bucket: str, key: str) -> list[ObjectVersion]:
        """All versions, newest first."""
        current = self.current
        latest = current.ref if current else None
        return [entry.public(bucket, key, entry.ref == latest) for entry in self.entries]

    def public_removals(self, bucket: str, key: str) -> list[RemovedVersion]:
        """All removals of versions that are known, newest first."""
        gone = {entry.ref.version_id: entry.public(bucket, key, False) for entry in self.removed}
        return [
            RemovedVersion(body.version_id.hex(), ref.sequence, time_of(ref.version_id), gone.get(body.version_id))
            for ref, body in self.removals
        ]


def walk(state: State, records: Mapping[RecordRef, Record]) -> History:
    """Follow the chain from a state's tip. Raises IntegrityError if a record is missing or its parent is not older."""
    removed: set[bytes] = set()
    undone: set[bytes] = set()
    entries: list[Entry] = []
    removals: list[tuple[RecordRef, Removal]] = []
    gone: list[Entry] = []
    cursor = tip_of(state)
    while cursor is not None:
        record = records.get(cursor)
        if record is None:
            raise IntegrityError(f"record {cursor.sequence} of an object's history is missing")
        body = decode_body(record)
        if isinstance(body, Removal):
            removed.add(body.version_id)
            if body.undone:
                undone.add(body.version_id)  # it never was a version
            else:
                removals.append((cursor, body))
            if body.last:
                break
        elif isinstance(body, Manifest) and cursor.version_id not in undone:
            (gone if cursor.version_id in removed else entries).append(Entry(cursor, body))
        if record.parent is not None and record.parent.sequence >= cursor.sequence:
            raise IntegrityError(f"record {cursor.sequence} of an object's history names a parent that is not older")
        cursor = record.parent
    return History(state, tuple(entries), tuple(removals), tuple(gone))


async def load(intents: Intents, name: bytes, fence: Fence) -> History | None:
    """The whole history of one object, from one instant; None if the register was never written.

    Raises Fenced, NoQuorum.
    """
    request = ScanRequest(name, name + b"\x00", 1, with_records=True, fence=fence)
    page = await intents.scan(request)
    rows = decode_rows(page.rows)
    if not rows:
        return None
    return walk(rows[0].state, by_ref(named.record for named in decode_records(page.records)))


def by_ref(records: Iterable[Record]) -> dict[RecordRef, Record]:
    """Records by their names."""
    return {record.ref: record for record in records}
