"""The names of records: a digest of everything in them, so that any copy can prove what it is."""

from __future__ import annotations

from typing import Final

import msgspec
from blake3 import blake3

from objmeta.core.messages import Record, RecordRef

_ENCODER: Final = msgspec.msgpack.Encoder()


def record_digest(sequence: int, version_id: bytes, parent: RecordRef | None, body: bytes) -> bytes:
    """The digest that names a record: of everything but its data, which the body binds by a digest of its own."""
    return blake3(_ENCODER.encode((sequence, version_id, parent, body))).digest()


def is_intact(record: Record) -> bool:
    """Whether a record is what its name says."""
    ref = record.ref
    return record_digest(ref.sequence, ref.version_id, record.parent, record.body) == ref.digest
