"""Versions column by column: for whoever loads very many, and for whom a struct for each would cost too much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from objmeta.core.listing import NamedRecord, decode_records, decode_rows
from objmeta.core.messages import TOMBSTONE, Record, RecordRef, State
from objmeta.model.values import Chunk, Manifest, decode_body, tip_of
from objmeta.objects.history import by_ref, walk
from objmeta.objects.types import RemovedVersion


class VersionColumns(msgspec.Struct):
    """The fields of :class:`objmeta.ObjectVersion`, each as a list with one item for each version.

    Ids and digests are bytes here (``version_id``, ``parent_version_id``: 16, ``etag``: 32), where that has them in
    hex, since a whole column is turned into text sooner than one after another.  ``parent_version_id`` is None, and
    ``etag`` empty, where there is none.  The versions of an object follow one another, newest first.  Of ``removals``,
    which are rare, each comes with its object's key.
    """

    bucket: str
    key: list[str] = []
    version_id: list[bytes] = []
    sequence: list[int] = []
    is_latest: list[bool] = []
    is_delete_marker: list[bool] = []
    size: list[int] = []
    etag: list[bytes] = []
    content_type: list[str] = []
    modified_us: list[int] = []
    metadata: list[dict[str, str]] = []
    parent_version_id: list[bytes | None] = []
    chunks: list[tuple[Chunk, ...]] = []
    lists: list[tuple[Chunk, ...]] = []
    removals: list[tuple[str, RemovedVersion]] = []

    def __len__(self) -> int:
        return len(self.key)


class EncodedVersions(msgspec.Struct, frozen=True, array_like=True):
    """Versions as they were read; taking them apart is work that another process may do (it goes through MessagePack).

    The names of registers have ``base`` bytes before the key.  Rows and records are in order of name.
    """

    bucket: str
    base: int
    rows: bytes
    records: bytes

    def columns(self) -> VersionColumns:
        """The versions. Raises IntegrityError."""
        found = _Collected(self.bucket)
        records = decode_records(self.records)
        count = len(records)
        beyond = 0
        for row in decode_rows(self.rows):
            name = row.name
            while beyond < count and records[beyond].name < name:
                beyond += 1
            first = beyond
            while beyond < count and records[beyond].name == name:
                beyond += 1
            held = records[first:beyond]
            key = name[self.base :].decode()
            if not found.take_plain(key, row.state, held):
                found.take(key, row.state, by_ref(named.record for named in held))
        return found.columns()


class _Collected:
    """Versions object by object, before they are turned into columns."""

    def __init__(self, bucket: str) -> None:
        self._bucket = bucket
        self._keys: list[str] = []
        self._refs: list[RecordRef] = []
        self._latest: list[bool] = []
        self._manifests: list[Manifest] = []
        self._removals: list[tuple[str, RemovedVersion]] = []

    def take_plain(self, key: str, state: State, held: list[NamedRecord]) -> bool:
        """Nearly every object: ``held`` is its chain, and nothing of it was removed, so that its tip is current.

        False, and nothing done, if it is not so.
        """
        if len(held) > 1:
            held.sort(key=_sequence, reverse=True)
        refs: list[RecordRef] = []
        manifests: list[Manifest] = []
        cursor = tip_of(state)
        for named in held:
            record = named.record
            ref, parent = record.ref, record.parent
            if ref != cursor or (parent is not None and parent.sequence >= ref.sequence):
                return False
            body = decode_body(record)
            if type(body) is not Manifest:
                return False
            refs.append(ref)
            manifests.append(body)
            cursor = parent
        if cursor is not None or not refs:
            return False
        self._add(key, refs, manifests, 0)
        return True

    def take(self, key: str, state: State, held: Mapping[RecordRef, Record]) -> None:
        """Any object. Raises IntegrityError."""
        history = walk(state, held)
        if state.flag != TOMBSTONE:
            refs = [entry.ref for entry in history.entries]
            current = history.current
            latest = refs.index(current.ref) if current is not None and current.ref in refs else None
            self._add(key, refs, [entry.manifest for entry in history.entries], latest)
        self._removals += ((key, removal) for removal in history.public_removals(self._bucket, key))

    def columns(self) -> VersionColumns:
        """All of them."""
        refs, manifests = self._refs, self._manifests
        return VersionColumns(
            self._bucket,
            self._keys,
            [ref.version_id for ref in refs],
            [ref.sequence for ref in refs],
            self._latest,
            [manifest.delete_marker for manifest in manifests],
            [manifest.size for manifest in manifests],
            [manifest.etag for manifest in manifests],
            [manifest.content_type for manifest in manifests],
            [manifest.modified_us for manifest in manifests],
            [manifest.metadata for manifest in manifests],
            [manifest.parent_version_id or None for manifest in manifests],
            [manifest.chunks for manifest in manifests],
            [manifest.lists for manifest in manifests],
            self._removals,
        )

    def _add(self, key: str, refs: Sequence[RecordRef], manifests: Sequence[Manifest], latest: int | None) -> None:
        count = len(refs)
        start = len(self._refs)
        self._keys += [key] * count
        self._refs += refs
        self._manifests += manifests
        self._latest += _NONE_LATEST * count
        if latest is not None:
            self._latest[start + latest] = True


_NONE_LATEST: Final = [False]


def _sequence(named: NamedRecord) -> int:
    return named.record.ref.sequence
