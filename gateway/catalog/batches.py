"""What the store gives, as Arrow batches in the shape that is kept (``schema``)."""

from __future__ import annotations

import binascii
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gateway.catalog.schema import BUCKETS, CHUNKS, REMOVALS, TIME, VERSION_ROWS
from objmeta import Bucket, Chunk, RemovedVersion, VersionArrays, VersionColumns
from objmeta.errors import IntegrityError
from objmeta.vectors import Many, Spans

_ENCODER: Final = msgspec.msgpack.Encoder()
_CHUNKS: Final = msgspec.msgpack.Decoder(list[Chunk])

Resolve = Callable[[str, str, str, Sequence[Chunk]], Sequence[Chunk] | None]
"""From a version (bucket, key, version id, lists) to its chunks; None where they cannot be read now."""


def versions(columns: VersionColumns, resolve: Resolve) -> pa.RecordBatch:
    """Rows of ``version_rows``."""
    marker = pa.array(columns.is_delete_marker, pa.bool_())
    chunks: Sequence[Sequence[Chunk] | None] = columns.chunks
    inline = [not (some or others) for some, others in zip(chunks, columns.lists, strict=True)]
    if any(columns.lists):
        chunks = list(chunks)
        for at, lists in enumerate(columns.lists):
            if lists:
                chunks[at] = resolve(columns.bucket, columns.key[at], columns.version_id[at].hex(), lists)
    content_type = pa.array(columns.content_type, pa.string())
    arrays = {
        "bucket": pa.repeat(pa.scalar(columns.bucket, pa.string()), len(columns)),
        "key": pa.array(columns.key, pa.string()),
        "directory": pa.array(map(_directory, columns.key), pa.string()),
        "version_id": _hex(columns.version_id),
        "is_latest": pa.array(columns.is_latest, pa.bool_()),
        "is_delete_marker": marker,
        "size": _unless(marker, pa.array(columns.size, pa.int64())),
        "etag": _unless(marker, _hex(columns.etag)),
        "content_type": _unless(pc.equal(content_type, ""), content_type),
        "last_modified": pa.array(columns.modified_us, pa.int64()).cast(TIME),
        "metadata": _maps(columns.metadata),
        "sequence": pa.array(columns.sequence, pa.int64()),
        "parent_version_id": _hex(columns.parent_version_id),
        "is_inline": pc.and_not(pa.array(inline, pa.bool_()), marker),
        "chunks": _chunk_lists(chunks),
        "lists": pa.array(map(_named_lists, chunks, columns.lists), pa.binary()),
    }
    return pa.RecordBatch.from_arrays([arrays[name] for name in VERSION_ROWS.names], schema=VERSION_ROWS)


def plain_versions(arrays: VersionArrays) -> pa.RecordBatch:
    """The same of plain objects. Raises IntegrityError."""
    columns = arrays.columns
    marker = pa.array(columns["delete_marker"])
    content_type = _text(columns["content_type"])
    parent = columns["parent_version_id"]
    of = pa.array(arrays.object)
    made = {
        "bucket": pa.repeat(pa.scalar(arrays.bucket, pa.string()), len(of)),
        "key": _text(arrays.keys).take(of),
        "directory": _text(_directories(arrays.keys)).take(of),
        "version_id": _text(arrays.version_id, hex=True),
        "is_latest": pa.array(arrays.is_latest),
        "is_delete_marker": marker,
        "size": _unless(marker, pa.array(columns["size"])),
        "etag": _unless(marker, _text(columns["etag"], hex=True)),
        "content_type": _unless(pc.equal(content_type, ""), content_type),
        "last_modified": pa.array(columns["modified_us"]).cast(TIME),
        "metadata": _text_maps(columns["metadata"]),
        "sequence": pa.array(arrays.sequence),
        "parent_version_id": _unless(pa.array(parent.length == 0), _text(parent, hex=True)),
        "is_inline": pc.and_not(pa.array(columns["chunks"].count == 0), marker),
        "chunks": _chunks(columns["chunks"]),
        "lists": pa.nulls(len(of), pa.binary()),
    }
    batch = pa.RecordBatch.from_arrays([made[name] for name in VERSION_ROWS.names], schema=VERSION_ROWS)
    try:
        batch.validate(full=True)  # what should be text and is not would fail at who reads the catalog
    except pa.ArrowInvalid as damage:
        raise IntegrityError(f"a record holds text that cannot be read: {damage}") from damage
    return batch


def lists_of(column: bytes) -> Sequence[Chunk]:
    """What the column ``lists`` has of a version."""
    return _CHUNKS.decode(column)


def removals(columns: VersionColumns) -> pa.Table:
    """Rows of ``removals``."""
    return table([_removal_row(columns.bucket, key, removal) for key, removal in columns.removals], REMOVALS)


def names(objects: Iterable[tuple[str, str]]) -> pa.Table:
    """Bucket and key of each."""
    return table(list(objects), pa.schema([("bucket", pa.string()), ("key", pa.string())]))


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


def _named_lists(chunks: Sequence[Chunk] | None, lists: Sequence[Chunk]) -> bytes | None:
    return _ENCODER.encode(lists) if chunks is None else None


def _directory(key: str) -> str:
    return key[: key.rfind("/") + 1]


def _directories(keys: Spans) -> Spans:
    """The same of a column."""
    slashes = np.flatnonzero(keys.data == ord("/"))
    before = np.searchsorted(slashes, keys.start + keys.length)
    last = np.where(before > 0, slashes.take(before - 1, mode="wrap"), -1) if len(slashes) else -1
    return Spans(keys.data, keys.start, np.maximum(last + 1 - keys.start, 0))


def _unless(condition: Any, values: Any) -> Any:
    return pc.if_else(condition, pa.scalar(None, values.type), values)


def _hex(values: Sequence[bytes | None]) -> pa.Array:
    """Bytes as text, the whole column at once."""
    binary = pa.array(values, pa.binary())
    missing, offsets, data = binary.buffers()
    doubled = pc.multiply(pa.Array.from_buffers(pa.int32(), len(values) + 1, [None, offsets]), pa.scalar(2, pa.int32()))
    text = pa.py_buffer(binascii.hexlify(data) if data is not None else b"")
    return pa.StringArray.from_buffers(len(values), doubled.buffers()[1], text, missing, binary.null_count)


def _maps(metadata: Sequence[dict[str, str]]) -> pa.Array:
    kind = pa.map_(pa.string(), pa.string())
    offsets = pa.array(itertools.accumulate(map(len, metadata), initial=0), pa.int32())
    keys = pa.array([key for each in metadata for key in each], pa.string())
    values = pa.array([value for each in metadata for value in each.values()], pa.string())
    return pa.MapArray.from_arrays(offsets, keys, values).cast(kind)


def _chunk_lists(lists: Sequence[Sequence[Chunk] | None]) -> pa.Array:
    offsets = pa.array(itertools.accumulate((len(each or ()) for each in lists), initial=0), pa.int32())
    flat = [chunk for each in lists if each for chunk in each]
    digests = _hex([chunk.digest for chunk in flat])
    lengths = pa.array([chunk.length for chunk in flat], pa.int64())
    made = pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays([digests, lengths], ["digest", "length"]))
    if None in lists:
        made = pc.if_else(pa.array([each is None for each in lists]), pa.scalar(None, made.type), made)
    return made.cast(CHUNKS)


def _text(spans: Spans, hex: bool = False) -> pa.StringArray:
    offsets = _offsets(spans.length) * (2 if hex else 1)
    data = binascii.hexlify(spans.joined().data) if hex else spans.joined()
    return pa.StringArray.from_buffers(len(spans.length), pa.py_buffer(offsets), pa.py_buffer(data))


def _offsets(lengths: Any) -> Any:
    return np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)


def _text_maps(maps: Many) -> pa.Array:
    kind = pa.map_(pa.string(), pa.string())
    keys, values = _text(maps.items["keys"]), _text(maps.items["values"])
    return pa.MapArray.from_arrays(pa.array(_offsets(maps.count)), keys, values).cast(kind)


def _chunks(lists: Many) -> pa.Array:
    fields = [_text(lists.items["digest"], hex=True), pa.array(lists.items["length"])]
    found = pa.StructArray.from_arrays(fields, ["digest", "length"])
    return pa.ListArray.from_arrays(pa.array(_offsets(lists.count)), found).cast(CHUNKS)
