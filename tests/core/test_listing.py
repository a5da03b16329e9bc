"""Merging pages of a quorum, against a dumb model: absence, disagreement, horizons, delimiters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from objmeta.core.ballot import Ballot
from objmeta.core.listing import (
    ScanAnswer,
    ScanRequest,
    ScanRow,
    common_prefix,
    decode_rows,
    encode_rows,
    merge,
    successor,
)
from objmeta.core.messages import Row, State
from objmeta.core.quorum import Quorums
from objmeta.testing.disk import Table

NAMES = [b"a", b"b/1", b"b/2", b"c", b"d/x/1", b"e"]
TABLES = st.lists(
    st.dictionaries(st.sampled_from(NAMES), st.integers(1, 3), max_size=len(NAMES)), min_size=3, max_size=3
)


def table_of(ballots: dict[bytes, int]) -> Table:
    """An acceptor whose rows were accepted under these ballots; same ballot, same value."""
    table = Table()
    for name, counter in ballots.items():
        ballot = Ballot(counter, 1, 1)
        table.rows[name] = Row(ballot, ballot, State(name + bytes((counter,)), ()))
    return table


@given(TABLES, st.integers(1, 4), st.sampled_from([(0, 1), (0, 2), (1, 2), (0, 1, 2)]))
def test_pages_decide_what_the_acceptors_agree_on(
    tables: list[dict[bytes, int]], limit: int, asked: tuple[int, ...]
) -> None:
    quorums = Quorums([range(3)])
    decided: dict[bytes, ScanRow] = {}
    undecided: set[bytes] = set()
    start, pages = b"", 0
    while True:
        request = ScanRequest(start, b"", limit)
        answers = {i: table_of(tables[i]).scan(request) for i in asked}
        merged = merge(request, answers, quorums)
        pages += 1
        rows = decode_rows(merged.rows) if merged.rows is not None else list(merged.decided)
        assert not decided.keys() & {row.name for row in rows}, "a name is decided on one page"
        assert all(start <= row.name and (not merged.horizon or row.name < merged.horizon) for row in rows)
        decided.update((row.name, row) for row in rows)
        undecided.update(merged.open)
        if not merged.horizon:
            break
        assert merged.horizon > start
        start = merged.horizon
    assert pages <= len(NAMES) + 1
    for name in NAMES:
        seen = [tables[i].get(name, 0) for i in asked]
        agreed = [counter for counter in set(seen) if seen.count(counter) >= 2]
        if not agreed:
            assert name in undecided
        elif agreed[0] == 0:
            assert name not in decided
            assert name not in undecided
        else:
            assert decided[name].accepted.counter == agreed[0]


@given(TABLES, st.integers(1, 4))
def test_with_a_delimiter_every_prefix_in_use_has_a_witness(tables: list[dict[bytes, int]], limit: int) -> None:
    quorums = Quorums([range(3)])
    witnessed: set[bytes | None] = set()
    plain: set[bytes] = set()
    start = b""
    while True:
        request = ScanRequest(start, b"", limit, b"/")
        answers = {i: table_of(tables[i]).scan(request) for i in range(3)}
        merged = merge(request, answers, quorums)
        witnessed |= {common_prefix(name, b"/", 0) for name in merged.witnesses}
        plain |= {row.name for row in merged.decided if not row.witness} | set(merged.open) - set(merged.witnesses)
        if not merged.horizon:
            break
        start = merged.horizon
    used = {common_prefix(name, b"/", 0) for table in tables for name in table if b"/" in name}
    assert witnessed == used
    assert all(b"/" not in name for name in plain)
    for name in (b"a", b"c", b"e"):
        counters = [table.get(name, 0) for table in tables]
        if counters.count(0) < 2:
            assert name in plain


def test_equal_pages_need_no_merge() -> None:
    page = table_of({b"a": 1, b"c": 2}).scan(ScanRequest(b"", b""))
    merged = merge(ScanRequest(b"", b""), {1: page, 2: page}, Quorums([(1, 2, 3)]))
    assert merged.rows == page.rows
    assert merged.decided == ()
    assert merged.open == ()


def test_what_a_truncated_page_leaves_out_is_not_absent() -> None:
    request = ScanRequest(b"", b"", 1)
    short = ScanAnswer(encode_rows([]), b"b")
    full = table_of({b"a": 1, b"c": 1}).scan(ScanRequest(b"", b""))
    merged = merge(request, {1: short, 2: full}, Quorums([(1, 2, 3)]))
    assert merged.horizon == b"b"
    assert merged.open == (b"a",)
    assert merged.decided == ()


@pytest.mark.parametrize(
    ("prefix", "expected"), [(b"a", b"b"), (b"a\xff", b"b"), (b"\xff", b""), (b"", b""), (b"a/", b"a0")]
)
def test_successor(prefix: bytes, expected: bytes) -> None:
    assert successor(prefix) == expected


@pytest.mark.parametrize(
    ("name", "length", "expected"),
    [(b"a/b/c", 0, b"a/"), (b"a/b/c", 2, b"a/b/"), (b"a/b/c", 4, None), (b"abc", 0, None), (b"/a", 0, b"/")],
)
def test_common_prefix(name: bytes, length: int, expected: bytes | None) -> None:
    assert common_prefix(name, b"/", length) == expected
