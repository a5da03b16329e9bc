"""What only the store in memory offers: losing what was not synced, and rolling back."""

from __future__ import annotations

from objmeta.core.ballot import ZERO
from objmeta.core.listing import ScanRequest
from objmeta.core.messages import Accept, Fetch, Fetched, Prepare, Promise, RaiseFloors, RaiseTerm, ScopeFloor
from objmeta.store.memory import MemoryStore
from tests.store.build import CONFIGURATION, TAG, ask, ask_one, ballot, put, read_one, record, state


def test_what_was_not_synced_can_be_lost() -> None:
    store = MemoryStore(1, CONFIGURATION, keep_undo=True)
    ask(store, put(b"k", 1, record(1)), Prepare(b"p", ballot(1)), RaiseTerm(b"scope", 1))
    store.sync()
    before = store.snapshot()
    ask(store, Prepare(b"k", ballot(5)), put(b"new", 1, record(1)), RaiseTerm(b"scope", 3), RaiseTerm(b"other", 3))
    dropping = record(2, sequence=2)
    ask(store, Accept(b"k", ballot(5), state(dropping), (dropping,), dead=(record(1).ref,)))
    ask(store, RaiseFloors(4, ((b"k/", ScopeFloor(ballot=ballot(9))),)))
    assert store.snapshot() != before
    store.lose_unsynced()
    assert store.snapshot() == before
    assert store.changes(0, 10).watermark == 1
    assert ask_one(store, Prepare(b"k", ballot(2))) == Promise(ballot(2), ballot(1), state(record(1)))


def test_losing_nothing_loses_nothing() -> None:
    store = MemoryStore(1, CONFIGURATION, keep_undo=True)
    ask(store, put(b"k", 1, record(1)))
    store.sync()
    before = store.snapshot()
    store.lose_unsynced()
    store.lose_unsynced()
    assert store.snapshot() == before


def test_a_disk_can_be_rolled_back() -> None:
    store = MemoryStore(1, CONFIGURATION)
    empty = store.snapshot()
    ask(store, put(b"k", 1, record(1)))
    one = store.snapshot()
    page = store.scan(TAG, ScanRequest(b"", with_records=True))
    ask(store, put(b"k", 2, record(2, sequence=2)), put(b"l", 1, record(1)))
    store.restore(one)
    assert store.scan(TAG, ScanRequest(b"", with_records=True)) == page
    assert read_one(store, Fetch(b"k", (record(2, sequence=2).ref,))) == Fetched(())
    store.restore(empty)
    assert ask_one(store, Prepare(b"k", ballot(1))) == Promise(ballot(1), ZERO, None)
