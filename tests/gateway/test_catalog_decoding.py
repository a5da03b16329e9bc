"""Pages are taken apart the same way here and by helpers, and helpers are missed by nobody."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest

import objmeta
from gateway.catalog import batches, decoding
from gateway.catalog.decoding import Decoders, decoded
from objmeta import Chunk, EncodedVersions, vectors
from objmeta.core.ballot import ZERO, Ballot
from objmeta.core.listing import NamedRecord, ScanRow, decode_rows, encode_records, encode_rows
from objmeta.core.messages import Record, RecordRef, State
from objmeta.errors import IntegrityError
from objmeta.model.values import Head, Manifest, Version, encode

PAGES = 2 * decoding._ALONE


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> EncodedVersions:
    """Objects of several versions, one with a delete marker, one with a version removed, one with nothing left."""
    with objmeta.connect(tmp_path_factory.mktemp("decoding") / "store") as client:
        bucket = client.create_bucket("data")
        for key in ("ä b", "plain", "%?#*[", "gone", "marked", "removed"):
            for number in range(3):
                client.put_object("data", key, data=bytes(number), metadata={"number": str(number)})
        client.delete_object("data", "marked")
        for key, some in (("removed", 1), ("gone", 3)):
            for version in client.list_versions("data", key).versions[:some]:
                client.remove_version("data", key, version.version_id)
        return client.load_versions(bucket, client.changes(None).cursor).versions


@pytest.fixture
def decoders() -> Iterator[Decoders]:
    with Decoders(_unwanted, helpers=2) as made:
        yield made


def _unwanted(*_: object) -> None:
    raise AssertionError("no version has lists of chunks")


def _children() -> set[int]:
    found = set()
    for each in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(each.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.add(int(each.parent.name))
        except FileNotFoundError:
            continue
    return found


def _until_asked(decoders: Decoders, page: EncodedVersions) -> None:
    """Submit pages until all helpers have started and were asked."""
    while len(decoders.asked) < decoders.helpers:
        for each in [decoders.submit(page) for _ in range(PAGES)]:
            each.result()


def test_a_helper_says_the_same(page: EncodedVersions, decoders: Decoders) -> None:
    here = decoded(page, _unwanted)
    before = _children()
    _until_asked(decoders, page)
    found = [each.result() for each in [decoders.submit(page) for _ in range(PAGES)]]
    assert _children() - before == decoders.asked
    assert len(decoders.asked) == 2
    assert here.objects == 5
    assert all(each.versions.equals(here.versions) and each.objects == 5 for each in found)
    assert all(each.removals is not None and each.removals.equals(here.removals) for each in found)


def test_a_helper_that_dies_is_done_without(page: EncodedVersions, decoders: Decoders) -> None:
    _until_asked(decoders, page)
    for process in decoders.asked:
        os.kill(process, signal.SIGKILL)
    found = [each.result() for each in [decoders.submit(page) for _ in range(8)]]
    assert [each.objects for each in found] == [5] * 8


def test_none_that_can_be_started_is_done_without(
    page: EncodedVersions, decoders: Decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    found = [each.result() for each in [decoders.submit(page) for _ in range(PAGES)]]
    assert [each.objects for each in found] == [5] * PAGES


def test_damage_is_told_by_its_error(page: EncodedVersions, decoders: Decoders) -> None:
    _until_asked(decoders, page)
    broken = EncodedVersions(page.bucket, page.base, page.rows, b"\x90")
    for _ in range(PAGES):
        with pytest.raises(IntegrityError, match="missing"):
            decoders.submit(broken).result()


def test_lists_of_chunks_are_read_here(tmp_path: Path) -> None:
    lists = (Chunk(bytes(32), 10),)
    with objmeta.connect(tmp_path / "store") as client:
        bucket = client.create_bucket("data")
        client.put_object("data", "long", lists=lists, size=5, etag="ab" * 32)
        page = client.load_versions(bucket, client.changes(None).cursor).versions
    found = (Chunk(b"\x01" * 32, 5),)
    with Decoders(lambda *_: found, helpers=1) as decoders:
        _until_asked(decoders, page)
        for _ in range(PAGES):
            rows = decoders.submit(page).result().versions.to_pylist()
            assert [row["chunks"] for row in rows] == [[{"digest": "01" * 32, "length": 5}]]
            assert [row["is_inline"] for row in rows] == [False]


def _rows(*tables: pa.Table | pa.RecordBatch) -> list[dict[str, Any]]:
    found = [row for table in tables for row in table.to_pylist()]
    return sorted(found, key=lambda row: (row["key"], -row["sequence"]))


def test_what_is_read_by_the_column_is_what_is_read_one_by_one(page: EncodedVersions, tmp_path: Path) -> None:
    assert _rows(decoded(page, _unwanted).versions) == _rows(batches.versions(page.columns(), _unwanted))
    assert len(page.arrays().others) == 2, "of the object with a version removed"
    with objmeta.connect(tmp_path / "store") as client:
        bucket = client.create_bucket("data")
        for number, chunks in enumerate((0, 1, 2, vectors.ITEMS_MAX, vectors.ITEMS_MAX + 1, 500)):
            given = [Chunk(bytes([at % 256]) * 32, 70_000 + at) for at in range(chunks)]
            for key in (f"{number}/größe 📦", "all/of them"):
                client.put_object(
                    "data",
                    key,
                    **({"chunks": given, "size": sum(each.length for each in given)} if given else {"data": b""}),
                    etag="0f" * 32,
                    content_type="text/plain" if number % 2 else "",
                    metadata={str(at): "ü" * at for at in range(number)},
                )
        made = client.load_versions(bucket, client.changes(None).cursor).versions
    found = decoded(made, _unwanted)
    assert _rows(found.versions) == _rows(batches.versions(made.columns(), _unwanted))
    assert (found.objects, found.versions.num_rows) == (7, 12)
    assert set(made.arrays().others.key) == {"4/größe 📦", "5/größe 📦", "all/of them"}


def test_text_that_is_none_is_told(page: EncodedVersions) -> None:
    broken = EncodedVersions(page.bucket, page.base, page.rows, page.records.replace(b"\xa6number", b"\xa6n\xffmber"))
    assert broken.records != page.records
    with pytest.raises(IntegrityError):
        decoded(broken, _unwanted)


def test_rows_of_any_ballot_are_read_by_the_column(page: EncodedVersions) -> None:
    """Its numbers are of 64 bits, and most of real ones need them all."""
    ballot = Ballot(2**64 - 1, 2**63, 2**64 - 2)
    rows = [msgspec.structs.replace(row, accepted=ballot) for row in decode_rows(page.rows)]
    made = EncodedVersions(page.bucket, page.base, encode_rows(rows), page.records)
    assert len(made.arrays().others) == 2, "as with theirs"
    assert _rows(decoded(made, _unwanted).versions) == _rows(decoded(page, _unwanted).versions)


def test_records_without_a_row_are_left_out(page: EncodedVersions) -> None:
    rows = decode_rows(page.rows)
    some = EncodedVersions(page.bucket, page.base, encode_rows(rows[2:]), page.records)
    assert _rows(decoded(some, _unwanted).versions) == _rows(batches.versions(some.columns(), _unwanted))
    whole, left = page.columns(), some.columns()
    missing = {row.name[page.base :].decode() for row in rows[:2]}
    assert left.key == [key for key in whole.key if key not in missing]
    assert [(key, ref) for key, ref in zip(whole.key, whole.version_id, strict=True) if key not in missing] == list(
        zip(left.key, left.version_id, strict=True)
    )
    assert len(left.etag) == len(left) < len(whole)


def test_a_tip_that_no_record_can_have_is_read_one_by_one() -> None:
    """As may be what stands before a name that is longer than any may be."""
    rows, records = [], []
    for name, version_id in ((b"odd", b"short"), (b"plain", bytes(16)), (b"x" * 70_000, bytes(16))):
        ref = RecordRef(1, version_id, bytes(32))
        head = Head(Version(ref, 5, b"", 1, False))
        rows.append(ScanRow(name, ZERO, State(encode(head), (ref,))))
        records.append(NamedRecord(name, Record(ref, None, encode(Manifest(5, b"", 1)))))
    made = EncodedVersions("data", 0, encode_rows(rows), encode_records(records))
    assert _rows(decoded(made, _unwanted).versions) == _rows(batches.versions(made.columns(), _unwanted))
    assert "odd" in made.arrays().others.key
