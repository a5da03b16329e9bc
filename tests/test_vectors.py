"""What is read column by column is what msgspec reads value by value, and nothing that is read can do harm."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from objmeta import vectors
from objmeta.core.messages import Record, RecordRef
from objmeta.model.values import Chunk, Manifest, Removal, Step, encode

NUMBERS = st.one_of(*(st.integers(0, 2**bits - 1) for bits in (5, 7, 8, 16, 32, 63)))
IDS = st.binary(min_size=16, max_size=16)
REFS = st.builds(RecordRef, NUMBERS, IDS, st.binary(min_size=32, max_size=32))
CHUNKS = st.lists(st.builds(Chunk, st.binary(max_size=40), NUMBERS), max_size=4).map(tuple)
MANIFESTS = st.builds(
    Manifest,
    NUMBERS,
    st.binary(max_size=300),
    NUMBERS,
    st.text(max_size=300),
    st.dictionaries(st.text(max_size=40), st.text(max_size=40), max_size=20),
    CHUNKS,
    st.booleans(),
    st.one_of(IDS, st.just(b"")),
    CHUNKS,
)
RECORDS = st.builds(Record, REFS, st.one_of(REFS, st.none()), st.binary(max_size=300), st.binary(max_size=70_000))


def _column(values: list[bytes], before: bytes = b"") -> vectors.Spans:
    length = np.array([len(value) for value in values], np.int64)
    return vectors.column(before + b"".join(values), len(before) + np.cumsum(length) - length, length)


def _bytes(column: vectors.Spans) -> list[bytes]:
    ends = np.cumsum(column.length)
    data = column.joined().tobytes()
    return [data[end - length : end] for end, length in zip(ends, column.length, strict=True)]


def _lists(column: vectors.Many, items: list[Any]) -> list[list[Any]]:
    ends = np.cumsum(column.count)
    return [items[end - count : end] for end, count in zip(ends, column.count, strict=True)]


def _chunks(column: vectors.Many) -> list[tuple[Chunk, ...]]:
    digests, lengths = _bytes(column.items["digest"]), column.items["length"].tolist()
    return [tuple(each) for each in _lists(column, list(map(Chunk, digests, lengths)))]


def _manifests(columns: dict[str, Any]) -> list[Manifest]:
    pairs = columns["metadata"].items
    texts = [[each.decode() for each in _bytes(pairs[name])] for name in ("keys", "values")]
    fields = (
        columns["size"].tolist(),
        _bytes(columns["etag"]),
        columns["modified_us"].tolist(),
        [each.decode() for each in _bytes(columns["content_type"])],
        [dict(each) for each in _lists(columns["metadata"], list(zip(*texts, strict=True)))],
        _chunks(columns["chunks"]),
        columns["delete_marker"].tolist(),
        _bytes(columns["parent_version_id"]),
        _chunks(columns["lists"]),
    )
    return [Manifest(*each) for each in zip(*fields, strict=True)]


def _refs(columns: dict[str, Any]) -> list[RecordRef]:
    fields = columns["sequence"].tolist(), _bytes(columns["version_id"]), _bytes(columns["digest"])
    return [RecordRef(*each) for each in zip(*fields, strict=True)]


@given(st.lists(MANIFESTS, max_size=6), st.binary(max_size=5))
def test_manifests(manifests: list[Manifest], before: bytes) -> None:
    columns, good = vectors.read(Manifest, _column([encode(each) for each in manifests], before))
    assert good.all()
    assert _manifests(columns) == manifests


@given(st.lists(RECORDS, max_size=6))
def test_records(records: list[Record]) -> None:
    columns, good = vectors.read(Record, _column([msgspec.msgpack.encode(each) for each in records]))
    assert good.all()
    assert _refs(columns["ref"]) == [each.ref for each in records]
    assert _bytes(columns["body"]) == [each.body for each in records]
    assert columns["parent"].there.tolist() == [each.parent is not None for each in records]
    held = columns["parent"].there
    of_parents = {name: _taken(column, held) for name, column in columns["parent"].value.items()}
    assert _refs(of_parents) == [each.parent for each in records if each.parent is not None]


def _taken(column: Any, which: vectors.Flags) -> Any:
    return column.take(which) if isinstance(column, vectors.Spans) else column[which]


@given(st.lists(st.one_of(MANIFESTS, st.builds(Removal, IDS), st.just(Step())), min_size=1, max_size=8))
def test_what_is_of_another_type_is_told_apart(bodies: list[Manifest | Removal | Step]) -> None:
    columns, good = vectors.read(Manifest, _column([encode(each) for each in bodies]))
    assert good.tolist() == [isinstance(each, Manifest) for each in bodies]
    sizes = columns["size"][good].tolist()
    assert sizes == [each.size for each in bodies if isinstance(each, Manifest)]


@given(st.lists(MANIFESTS, min_size=1, max_size=4), st.data())
def test_damage_does_no_harm(manifests: list[Manifest], data: st.DataObject) -> None:
    encoded = [bytearray(encode(each)) for each in manifests]
    for each in encoded:
        for _ in range(data.draw(st.integers(0, 3))):
            each[data.draw(st.integers(0, len(each) - 1))] = data.draw(st.integers(0, 255))
    columns, good = vectors.read(Manifest, _column([bytes(each) for each in encoded]))
    decoder = msgspec.msgpack.Decoder(Manifest)
    for at, each in enumerate(encoded):
        if good[at]:  # then it is one, but for text that is none
            with contextlib.suppress(UnicodeDecodeError):
                assert decoder.decode(bytes(each)).size == columns["size"][at]


@given(st.lists(st.binary(max_size=200), max_size=8))
def test_any_bytes_can_be_read(values: list[bytes]) -> None:
    for kind in (Manifest, Record):
        vectors.read(kind, _column(values))


def test_more_items_than_are_read_in_step() -> None:
    manifests = [Manifest(1, b"", 1, chunks=(Chunk(b"x", 1),) * many) for many in (3, 64, 65, 4000, 0)]
    columns, good = vectors.read(Manifest, _column([encode(each) for each in manifests]))
    assert good.tolist() == [True, True, False, False, True]
    assert columns["chunks"].count[good].tolist() == [3, 64, 0]


def test_a_value_that_ends_early_or_late_is_not_good() -> None:
    whole = encode(Manifest(300, b"e" * 32, 5))
    _, good = vectors.read(Manifest, _column([whole, whole[:-1], whole + b"\xc0", whole]))
    assert good.tolist()[0] is True
    assert good.tolist()[1:3] == [False, False]


@given(st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=20), st.booleans()), max_size=8))
def test_what_is_equal(pairs: list[tuple[bytes, bytes, bool]]) -> None:
    left = [one for one, _, _ in pairs]
    right = [one if same else other for one, other, same in pairs]
    found = vectors.equal(_column(left, b"before"), _column(right))
    assert found.tolist() == [one == other for one, other in zip(left, right, strict=True)]


@given(st.lists(st.one_of(RECORDS, MANIFESTS, NUMBERS), max_size=20))
def test_the_items_of_a_list(values: list[Any]) -> None:
    encoded = [msgspec.msgpack.encode(each) for each in values]
    assert vectors.items(msgspec.msgpack.encode(values)).values() == encoded


class Numbered(msgspec.Struct, array_like=True):
    """What has a number that does not matter."""

    any: msgspec.Raw
    number: int


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), NUMBERS), max_size=8))
def test_numbers_that_do_not_matter_may_be_large(pairs: list[tuple[int, int]]) -> None:
    columns, good = vectors.read(Numbered, _column([msgspec.msgpack.encode(each) for each in pairs]))
    assert good.all()
    assert columns["number"].tolist() == [number for _, number in pairs]


def test_what_cannot_be_read_so() -> None:
    with pytest.raises(TypeError, match="column"):
        vectors.read(dict[str, float], _column([]))
