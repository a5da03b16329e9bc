"""Where content is cut: by the content alone, whatever pieces it comes in, and little changes around a change."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import cycle

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.data.chunking import CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, WINDOW_BYTES, Cutter

MIB = 1 << 20


def content(mib: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(mib * MIB)


def cut(data: bytes, lengths: Sequence[int] = (MIB,)) -> Iterator[bytes]:
    """Chunks of data that is added in pieces of these lengths, in turn."""
    cutter = Cutter()
    start = 0
    for length in cycle(lengths):
        if start >= len(data):
            break
        full = cutter.add(memoryview(data)[start : start + length])
        start += length
        assert cutter.buffered <= WINDOW_BYTES + length
        if full:
            yield from map(bytes, cutter.cut(cutter.take()))
            assert cutter.buffered <= CHUNK_BYTES_MAX
    yield from map(bytes, cutter.cut(cutter.take(), ended=True))
    assert cutter.buffered == 0


DATA = content(32)
CHUNKS = list(cut(DATA))


def test_chunks_are_the_content_and_neither_short_nor_long() -> None:
    assert b"".join(CHUNKS) == DATA
    assert all(CHUNK_BYTES_MIN <= len(chunk) <= CHUNK_BYTES_MAX for chunk in CHUNKS[:-1])
    assert len(DATA) / len(CHUNKS) < 2 * MIB


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(50_000, 20 * MIB), min_size=1, max_size=8))
def test_pieces_have_no_influence(lengths: list[int]) -> None:
    assert list(cut(DATA, lengths)) == CHUNKS


@pytest.mark.parametrize(
    "length",
    [
        0,
        1,
        CHUNK_BYTES_MIN - 1,
        CHUNK_BYTES_MIN,
        CHUNK_BYTES_MAX - 1,
        CHUNK_BYTES_MAX,
        CHUNK_BYTES_MAX + 1,
        WINDOW_BYTES,
    ],
)
def test_every_length(length: int) -> None:
    data = DATA[:length]
    found = list(cut(data, [70_001]))
    assert b"".join(found) == data
    assert len(found) == (length > 0) or length > CHUNK_BYTES_MIN
    assert list(cut(data, [length or 1])) == found
    assert not any(len(chunk) > CHUNK_BYTES_MAX for chunk in found)


def test_content_without_places_to_cut_is_cut_all_the_same() -> None:
    found = list(cut(bytes(20 * MIB)))
    assert {len(chunk) for chunk in found} == {CHUNK_BYTES_MAX}
    assert len(set(found)) == 1


def test_a_chunk_is_given_without_a_copy_when_it_is_all() -> None:
    cutter = Cutter()
    data = bytes(100)
    cutter.add(data)
    assert cutter.rest() is data
    assert cutter.cut(cutter.take(), ended=True)[0] is data


@pytest.mark.parametrize("at", [0, 1, 17 * MIB + 12_345, 32 * MIB])
def test_what_is_inserted_changes_little(at: int) -> None:
    known = {blake3(chunk).digest() for chunk in CHUNKS}
    changed = DATA[:at] + content(1, seed=2) + DATA[at:]
    new = sum(len(chunk) for chunk in cut(changed) if blake3(chunk).digest() not in known)
    assert new < 16 * MIB


def test_the_cuts_stay_where_they_are_from_version_to_version() -> None:
    """What is stored by one rule shares nothing with what is stored by another: change this only on purpose."""
    digests = blake3()
    for chunk in CHUNKS:
        digests.update(blake3(chunk).digest())
    assert digests.hexdigest() == "1fbc7fe307a4c815e80f42bad53810e2fe844a86880b01fe4da8c2388f65ce16"
