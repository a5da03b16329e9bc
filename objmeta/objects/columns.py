"""Versions column by column: for whoever loads very many, and for whom a struct for each would cost too much."""

from __future__ import annotations

import msgspec

from objmeta.core.listing import decode_records, decode_rows
from objmeta.core.messages import TOMBSTONE, Record, RecordRef
from objmeta.interfaces import ScanPage
from objmeta.model.values import Chunk
from objmeta.objects.history import walk
from objmeta.objects.types import RemovedVersion


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
    for each in decode_records(page.records):
        records.setdefault(each.name, {})[each.record.ref] = each.record
    for row in decode_rows(page.rows):
        history = walk(row.state, records.get(row.name, {}))
        key = row.name[base:].decode()
        if row.state.flag != TOMBSTONE:
            current = history.current
            latest = current.ref if current is not None else None
            for entry in history.entries:
                ref, manifest = entry.ref, entry.manifest
                columns.key.append(key)
                columns.version_id.append(ref.version_id.hex())
                columns.sequence.append(ref.sequence)
                columns.is_latest.append(ref == latest)
                columns.is_delete_marker.append(manifest.delete_marker)
                columns.size.append(manifest.size)
                columns.etag.append(manifest.etag.hex())
                columns.content_type.append(manifest.content_type)
                columns.modified_us.append(manifest.modified_us)
                columns.metadata.append(manifest.metadata)
                columns.parent_version_id.append(manifest.parent_version_id.hex() or None)
                columns.chunks.append(manifest.chunks)
                columns.lists.append(manifest.lists)
        if history.removals:
            columns.removals += ((key, removal) for removal in history.public_removals(bucket, key))
    return columns
