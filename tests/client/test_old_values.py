"""What earlier versions wrote stays readable: fields are only ever added at the end, with defaults."""

from __future__ import annotations

import msgspec

from objmeta.model.values import BucketHead, BucketSettings, Manifest, decode_body, decode_value, make_record

BUCKET = ["bucket1", b"\x07" * 16, 3, "active", 1_700_000_000_000_000]
MANIFEST = ["version1", 3, b"\x08" * 32, 5, "text/plain", {"a": "b"}, [[b"\x09" * 32, 3]], False, b"\x0a" * 16]


def test_a_bucket_without_settings() -> None:
    head = decode_value(msgspec.msgpack.encode(BUCKET))
    assert head == BucketHead(b"\x07" * 16, 3, "active", 1_700_000_000_000_000, BucketSettings())


def test_a_version_without_lists_of_chunks() -> None:
    record = make_record(None, 0, bytes(16), Manifest(0, b"", 0))
    manifest = decode_body(msgspec.structs.replace(record, body=msgspec.msgpack.encode(MANIFEST)))
    assert isinstance(manifest, Manifest)
    assert (manifest.lists, manifest.parent_version_id, manifest.is_inline) == ((), b"\x0a" * 16, False)
