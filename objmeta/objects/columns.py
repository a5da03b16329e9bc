"""Versions column by column: for whoever loads very many, and for whom a struct for each would cost too much."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from objmeta.core.listing import decode_rows
from objmeta.core.messages import TOMBSTONE, Record, RecordRef, State
from objmeta.interfaces import ScanPage
from objmeta.model.values import Chunk, Manifest, decode_body, tip_of
from objmeta.objects.history import walk
from objmeta.objects.types import RemovedVersion

_RECORDS: Final = msgspec.msgpack.Decoder(list[tuple[bytes, Record]])
"""The same bytes as :func:`objmeta.core.listing.decode_records` reads."""


class VersionColumns(msgspec.Struct):
    """The fields of :class:`objmeta.ObjectVersion`, each as a list with one item for each version.

    The versions of an object follow one another, newest first.  Of ``removals``, which are rare, each comes with its
    object's key.
    """

    bucket: str
    key: list[str] = []
    version_id: list[str] = []
    sequence: list[int] = []
    is_latest: list[bool] = []
    is_delete_marker: list[bool] = []
    size: list[int] = []
    etag: list[str] = []
    content_type: list[str] = []
    modified_us: list[int] = []
    metadata: list[dict[str, str]] = []
    parent_version_id: list[str | None] = []
    chunks: list[tuple[Chunk, ...]] = []
    lists: list[tuple[Chunk, ...]] = []
    removals: list[tuple[str, RemovedVersion]] = []

    def __len__(self) -> int:
        return len(self.key)


def columns_of(bucket: str, base: int, page: ScanPage) -> VersionColumns:
    """The versions on a page whose names have ``base`` bytes before the key. Raises IntegrityError."""
    columns = VersionColumns(bucket)
    records: dict[bytes, dict[RecordRef, Record]] = {}
    for name, record in _RECORDS.decode(page.records):
        held = records.get(name)
        if held is None:
            records[name] = {record.ref: record}
        else:
            held[record.ref] = record
    for row in decode_rows(page.rows):
        key = row.name[base:].decode()
        if not _plain(columns, key, row.state, records.get(row.name, {})):
            _with_removals(columns, key, row.state, records.get(row.name, {}))
    return columns


def _plain(columns: VersionColumns, key: str, state: State, held: Mapping[RecordRef, Record]) -> bool:
    """Nearly every object: nothing on its chain was removed, so its tip is current. False, and nothing done, if not."""
    found: list[tuple[RecordRef, Manifest]] = []
    cursor = tip_of(state)
    while cursor is not None:
        record = held.get(cursor)
        if record is None:
            return False
        body = decode_body(record)
        if type(body) is not Manifest:
            return False
        found.append((cursor, body))
        parent = record.parent
        if parent is not None and parent.sequence >= cursor.sequence:
            return False
        cursor = parent
    latest = True
    for ref, manifest in found:
        _add(columns, key, ref, manifest, latest)
        latest = False
    return True


def _with_removals(columns: VersionColumns, key: str, state: State, held: Mapping[RecordRef, Record]) -> None:
    history = walk(state, held)
    if state.flag != TOMBSTONE:
        current = history.current
        latest = current.ref if current is not None else None
        for entry in history.entries:
            _add(columns, key, entry.ref, entry.manifest, entry.ref == latest)
    columns.removals += ((key, removal) for removal in history.public_removals(columns.bucket, key))


def _add(columns: VersionColumns, key: str, ref: RecordRef, manifest: Manifest, latest: bool) -> None:
    columns.key.append(key)
    columns.version_id.append(ref.version_id.hex())
    columns.sequence.append(ref.sequence)
    columns.is_latest.append(latest)
    columns.is_delete_marker.append(manifest.delete_marker)
    columns.size.append(manifest.size)
    columns.etag.append(manifest.etag.hex())
    columns.content_type.append(manifest.content_type)
    columns.modified_us.append(manifest.modified_us)
    columns.metadata.append(manifest.metadata)
    columns.parent_version_id.append(manifest.parent_version_id.hex() or None)
    columns.chunks.append(manifest.chunks)
    columns.lists.append(manifest.lists)
