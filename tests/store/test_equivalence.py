"""The stores give equal replies and equal pages for any sequence of requests."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from objmeta.core.ballot import ZERO, Ballot
from objmeta.core.listing import ScanRequest
from objmeta.core.messages import (
    Accept,
    Erase,
    Fence,
    Fetch,
    Prepare,
    RaiseFloors,
    RaiseTerm,
    Read,
    ReadFloors,
    Record,
    Request,
    ScopeFloor,
)
from objmeta.interfaces import AcceptorStore
from objmeta.store.memory import MemoryStore
from objmeta.store.rocks import RocksStore
from objmeta.store.sqlite import SqliteStore
from tests.store.build import CONFIGURATION, TAG, record, state, version

_NAMES = st.sampled_from([b"", b"a", b"a/", b"a/1", b"a/2", b"a/b/c", b"b", b"b/\xff", b"\xff", b"\xff/"])
_BALLOTS = st.builds(Ballot, st.integers(1, 12), st.integers(0, 1), st.just(2**64 - 1))
_RECORDS = st.builds(
    lambda number, sequence, data: record(number, sequence, body=b"%d" % number, data=data),
    st.integers(1, 3),
    st.integers(1, 2),
    st.sampled_from([b"", b"data"]),
)
_REFS = st.lists(_RECORDS.map(lambda each: each.ref), max_size=2).map(tuple)


@st.composite
def _accepts(draw: st.DrawFn) -> Accept:
    named = draw(st.lists(_RECORDS, min_size=1, max_size=2))
    brought: list[Record] = named if draw(st.integers(0, 4)) else []
    return Accept(
        draw(_NAMES),
        draw(_BALLOTS),
        state(*named, value=draw(st.sampled_from([b"", b"v", b"w" * 300])), flag=draw(st.integers(0, 2))),
        tuple(brought),
        draw(st.none() | st.builds(Fence, st.just(b"scope"), st.integers(0, 3))),
        draw(st.none() | st.just(0)),
        draw(_REFS),
        draw(st.just(ZERO) | _BALLOTS),
        draw(st.just(ZERO) | _BALLOTS),
    )


_REQUESTS: st.SearchStrategy[Request] = st.one_of(
    st.builds(Prepare, _NAMES, _BALLOTS, st.sampled_from([(), (version(1),), (version(2), version(1))])),
    _accepts(),
    _accepts(),
    st.builds(Read, _NAMES),
    st.builds(Fetch, _NAMES, _REFS, st.booleans()),
    st.builds(RaiseTerm, st.just(b"scope"), st.integers(0, 3)),
    st.builds(Erase, _NAMES, _BALLOTS),
    st.builds(
        lambda scope, term, ballot: RaiseFloors(0, ((scope, ScopeFloor(term, ballot)),)),
        st.sampled_from([b"", b"a/", b"b"]),
        st.integers(0, 2),
        _BALLOTS,
    ),
    st.builds(ReadFloors, st.sampled_from([b"", b"a/"]), st.integers(0, 2)),
)
_BATCHES = st.lists(st.lists(_REQUESTS, max_size=6), max_size=8)
_SCANS = st.builds(
    ScanRequest,
    _NAMES,
    st.just(b"") | _NAMES,
    st.integers(1, 6),
    st.sampled_from([b"", b"/"]),
    st.integers(0, 2),
    st.booleans(),
)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(_BATCHES, st.lists(_SCANS, max_size=8), st.integers(0, 20))
def test_all_stores_answer_alike(batches: list[list[Request]], scans: list[ScanRequest], since: int) -> None:
    memory = MemoryStore(1, CONFIGURATION, keep_undo=True)
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        others: list[AcceptorStore] = [
            SqliteStore.create(Path(directory) / "sqlite", 1, CONFIGURATION),
            RocksStore.create(Path(directory) / "rocks", 1, CONFIGURATION),
        ]
        for other in others:
            stack.callback(other.close)
        for batch in batches:
            envelopes = [(TAG, request) for request in batch]
            replies = memory.apply(envelopes)
            for other in others:
                assert other.apply(envelopes) == replies
        for request in scans:
            answer = memory.scan(TAG, request)
            for other in others:
                assert other.scan(TAG, request) == answer
        for other in others:
            assert other.changes(since, 5) == memory.changes(since, 5)
            assert other.count() == memory.count()
    memory.lose_unsynced()
    empty = MemoryStore(1, CONFIGURATION)
    assert memory.snapshot() == empty.snapshot()
