"""The numbered list of changed registers."""

from __future__ import annotations

from pathlib import Path

import pytest

from objmeta.core.messages import TOMBSTONE, Erase, Prepare, RaiseTerm
from objmeta.interfaces import Changes
from objmeta.store import rocks as rocks_module
from objmeta.store import sqlite as sqlite_module
from objmeta.store.memory import MemoryStore
from objmeta.store.rocks import RocksStore
from objmeta.store.sqlite import SqliteStore
from tests.store.build import CONFIGURATION, ask, ballot, put, record

Store = MemoryStore | SqliteStore | RocksStore


def listed(names: tuple[bytes, ...], watermark: int, *, newest: int | None = None, reload: bool = False) -> Changes:
    return Changes(names, watermark, reload, watermark if newest is None else newest, CONFIGURATION.epoch)


def test_nothing_changed_yet(store: Store) -> None:
    assert store.changes(0, 10) == listed((), 0)


def test_state_changes_are_numbered_and_promises_are_not(store: Store) -> None:
    ask(store, Prepare(b"a", ballot(1)), put(b"b", 1, record(1)), RaiseTerm(b"s", 1), put(b"a", 1, record(1)))
    ask(store, put(b"a", 0, record(2)))
    assert store.changes(0, 10) == listed((b"b", b"a"), 2)
    ask(store, put(b"b", 2, record(1)))
    assert store.changes(2, 10) == listed((b"b",), 3)
    assert store.changes(3, 10) == listed((), 3)


def test_names_come_once_and_pages_lead_on(store: Store) -> None:
    ask(store, *[put(b"%d" % (number % 3), number + 1, record(1)) for number in range(7)])
    assert store.changes(0, 100) == listed((b"0", b"1", b"2"), 7)
    assert store.changes(0, 2) == listed((b"0", b"1"), 2, newest=7)
    assert store.changes(2, 2) == listed((b"2", b"0"), 4, newest=7)
    assert store.changes(6, 0) == listed((b"0",), 7)


def test_a_number_from_another_life_asks_for_a_reload(store: Store) -> None:
    ask(store, put(b"k", 1, record(1)))
    assert store.changes(2, 10) == listed((), 1, reload=True)
    assert store.changes(-1, 10) == listed((), 1, reload=True)


def test_pruned_numbers_ask_for_a_reload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_module, "CHANGES_KEPT", 10)
    monkeypatch.setattr(rocks_module, "CHANGES_KEPT", 10)
    stores = (
        SqliteStore.create(tmp_path / "sqlite", 1, CONFIGURATION),
        RocksStore.create(tmp_path / "rocks", 1, CONFIGURATION),
        MemoryStore(1, CONFIGURATION, changes_kept=10),
    )
    for store in stores:
        for number in range(40):
            ask(store, put(b"%d" % number, 1, record(1)))
        assert store.changes(0, 10) == listed((), 40, reload=True)
        assert store.changes(30, 100) == listed(tuple(b"%d" % number for number in range(30, 40)), 40)
        assert store.changes(40, 10) == listed((), 40)
        store.close()


def test_erased_names_are_listed(store: Store) -> None:
    ask(store, put(b"k/a", 1, record(1), flag=TOMBSTONE), put(b"k/b", 1, record(1)), Prepare(b"k/c", ballot(1)))
    before = store.changes(0, 10).watermark
    ask(store, Erase(b"k/a", ballot(1)), Erase(b"k/b", ballot(1)), Erase(b"k/c", ballot(1)))
    assert store.changes(before, 10).names == (b"k/a", b"k/c")
    assert store.changes(0, 10) == listed((b"k/a", b"k/b", b"k/c"), before + 2)
