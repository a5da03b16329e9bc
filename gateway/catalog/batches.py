"""What the store gives, as Arrow batches in the shape that is kept (``schema``)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from gateway.catalog.schema import BUCKETS, CHUNKS, REMOVALS, TIME, VERSION_ROWS
from objmeta import Bucket, ChangedObject, Chunk, ObjectVersion, RemovedVersion, VersionColumns

Resolve = Callable[[str, str, str, Sequence[Chunk]], Sequence[Chunk] | None]
"""From a version (bucket, key, version id, lists) to its chunks; None where they cannot be read now."""


def versions(columns: VersionColumns, resolve: Resolve) -> pa.RecordBatch:
    """Rows of ``version_rows``."""
    marker = pa.array(columns.is_delete_marker, pa.bool_())
    chunks: Sequence[Sequence[Chunk] | None] = columns.chunks
    if any(columns.lists):
        chunks = list(chunks)
        for at, lists in enumerate(columns.lists):
            if lists:
                chunks[at] = resolve(columns.bucket, columns.key[at], columns.version_id[at], lists)
    kept, listed = _chunk_lists(chunks), _chunk_lists(columns.lists)
    content_type = pa.array(columns.content_type, pa.string())
    arrays = {
        "bucket": pa.repeat(pa.scalar(columns.bucket, pa.string()), len(columns)),
        "key": pa.array(columns.key, pa.string()),
        "version_id": pa.array(columns.version_id, pa.string()),
        "is_latest": pa.array(columns.is_latest, pa.bool_()),
        "is_delete_marker": marker,
        "size": _unless(marker, pa.array(columns.size, pa.int64())),
        "etag": _unless(marker, pa.array(columns.etag, pa.string())),
        "content_type": _unless(pc.equal(content_type, ""), content_type),
        "last_modified": pa.array(columns.modified_us, pa.int64()).cast(TIME),
        "metadata": _maps(columns.metadata),
        "sequence": pa.array(columns.sequence, pa.int64()),
        "parent_version_id": pa.array(columns.parent_version_id, pa.string()),
        "is_inline": pa.array(
            [
                not (chunks or lists or marker)
                for chunks, lists, marker in zip(columns.chunks, columns.lists, columns.is_delete_marker, strict=True)
            ],
            pa.bool_(),
        ),
        "chunks": kept,
        "lists": listed,
    }
    return pa.RecordBatch.from_arrays([arrays[name] for name in VERSION_ROWS.names], schema=VERSION_ROWS)


def columns_of(bucket: str, objects: Iterable[ChangedObject]) -> VersionColumns:
    """The versions and removals of changed objects of one bucket."""
    columns = VersionColumns(bucket)
    for each in objects:
        for version in each.versions:
            add(columns, version)
        columns.removals += ((each.key, removal) for removal in each.removals)
    return columns


def add(columns: VersionColumns, version: ObjectVersion) -> None:
    """One more version."""
    columns.key.append(version.key)
    columns.version_id.append(version.version_id)
    columns.sequence.append(version.sequence)
    columns.is_latest.append(version.is_latest)
    columns.is_delete_marker.append(version.is_delete_marker)
    columns.size.append(version.size)
    columns.etag.append(version.etag)
    columns.content_type.append(version.content_type)
    columns.modified_us.append(version.modified_us)
    columns.metadata.append(version.metadata)
    columns.parent_version_id.append(version.parent_version_id)
    columns.chunks.append(version.chunks)
    columns.lists.append(version.lists)


def removals(columns: VersionColumns) -> pa.Table:
    """Rows of ``removals``."""
    return table([_removal_row(columns.bucket, key, removal) for key, removal in columns.removals], REMOVALS)


def changed(objects: Iterable[ChangedObject]) -> pa.Table:
    """Bucket and key of each."""
    names = [(each.bucket, each.key) for each in objects]
    return table(names, pa.schema([("bucket", pa.string()), ("key", pa.string())]))


def buckets(found: Iterable[Bucket]) -> pa.Table:
    """Rows of ``buckets``."""
    rows = [
        (
            bucket.name,
            bucket.bucket_id.hex(),
            bucket.term,
            bucket.created_us,
            bucket.settings.replicas,
            bucket.settings.keep_versions,
            bucket.settings.keep_days,
            bucket.settings.expire_delete_markers,
        )
        for bucket in found
    ]
    return table(rows, BUCKETS)


def table(rows: Sequence[tuple[object, ...]], schema: pa.Schema) -> pa.Table:
    """Rows as a table."""
    if not rows:
        return schema.empty_table()
    columns = [pa.array(values, type=field.type) for values, field in zip(zip(*rows, strict=True), schema, strict=True)]
    return pa.Table.from_arrays(columns, schema=schema)


def _removal_row(bucket: str, key: str, removal: RemovedVersion) -> tuple[object, ...]:
    known = removal.version
    content = known if known is not None and not known.is_delete_marker else None
    return (
        bucket,
        key,
        removal.version_id,
        removal.sequence,
        removal.removed_us,
        known.sequence if known is not None else None,
        known.modified_us if known is not None else None,
        known.is_delete_marker if known is not None else None,
        content.size if content is not None else None,
        content.etag if content is not None else None,
    )


def _unless(condition: Any, values: Any) -> Any:
    return pc.if_else(condition, pa.scalar(None, values.type), values)


def _maps(metadata: Sequence[dict[str, str]]) -> pa.Array:
    kind = pa.map_(pa.string(), pa.string())
    offsets = pa.array(itertools.accumulate(map(len, metadata), initial=0), pa.int32())
    items = [pair for each in metadata if each for pair in each.items()]
    keys, values = (
        pa.array([key for key, _ in items], pa.string()),
        pa.array([value for _, value in items], pa.string()),
    )
    return pa.MapArray.from_arrays(offsets, keys, values).cast(kind)


def _chunk_lists(lists: Sequence[Sequence[Chunk] | None]) -> pa.Array:
    offsets = pa.array(itertools.accumulate((len(each or ()) for each in lists), initial=0), pa.int32())
    flat = [chunk for each in lists if each for chunk in each]
    digests = pa.array([chunk.digest.hex() for chunk in flat], pa.string())
    lengths = pa.array([chunk.length for chunk in flat], pa.int64())
    made = pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays([digests, lengths], ["digest", "length"]))
    if None in lists:
        made = pc.if_else(pa.array([each is None for each in lists]), pa.scalar(None, made.type), made)
    return made.cast(CHUNKS)
