"""What erased registers leave behind is given back to the disk, while other calls go on."""

from __future__ import annotations

import collections
import threading
from pathlib import Path

import pytest

from objmeta.core.inventory import InventoryRequest
from objmeta.core.messages import TOMBSTONE, Erase, Erased
from objmeta.store import rocks as rocks_module
from objmeta.store.rocks import RocksStore
from objmeta.store.sqlite import SqliteStore
from tests.store.build import CONFIGURATION, TAG, ask, ask_one, ballot, put, record

NAMES = [b"k/%05d" % number for number in range(3000)]
KEPT = 100


def bytes_of(directory: Path) -> dict[str, int]:
    """The bytes of all files, by their kind."""
    sizes: collections.Counter[str] = collections.Counter()
    for file in directory.rglob("*"):
        if file.is_file():
            sizes[file.suffix] += file.stat().st_size
    return sizes


@pytest.mark.parametrize("kind", [SqliteStore, RocksStore])
def test_the_disk_gets_the_room_of_erased_registers_back(
    kind: type[SqliteStore | RocksStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rocks_module, "_REMOVED_MIN", 100)
    store = kind.create(tmp_path / "store", 1, CONFIGURATION)
    ask(store, *(put(b"k/kept%d" % n, 1, record(n, data=b"d" * 500)) for n in range(KEPT)))
    ask(store, *(put(name, 2, record(n, data=b"d" * 500), flag=TOMBSTONE) for n, name in enumerate(NAMES)))
    store.tidy()
    full = sum(bytes_of(tmp_path).values())
    shown = store.inventory(TAG, InventoryRequest(limit=KEPT + len(NAMES), erasable=True)).rows
    assert [(row.name, row.tip) for row in shown] == [(name, record(n).ref) for n, name in enumerate(NAMES)]
    assert set(ask(store, *(Erase(name, ballot(2)) for name in NAMES))) == {Erased(ballot(2), True)}
    errors: list[BaseException] = []

    def write() -> None:
        try:
            for number in range(50):
                ask_one(store, put(b"k/new%d" % number, 3, record(number)))
        except BaseException as error:
            errors.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    store.tidy()
    writer.join()
    assert errors == []
    store.tidy()
    left = bytes_of(tmp_path)
    left.pop(".log", 0)  # RocksDB keeps one to write it over, as long as what was last written
    assert sum(left.values()) < full / 3
    assert store.count() == KEPT + 50
    assert store.inventory(TAG, InventoryRequest(erasable=True)).rows == ()
    store.close()
    reopened = kind.open(tmp_path / "store")
    assert reopened.count() == KEPT + 50
    reopened.close()


def test_closing_cuts_it_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rocks_module, "_REMOVED_MIN", 1)
    store = RocksStore.create(tmp_path / "store", 1, CONFIGURATION)
    for start in range(0, len(NAMES), 1000):
        names = NAMES[start : start + 1000]
        ask(store, *(put(name, 2, record(n, data=b"d" * 500), flag=TOMBSTONE) for n, name in enumerate(names)))
        ask(store, *(Erase(name, ballot(2)) for name in names))
    tidying = threading.Thread(target=store.tidy)
    tidying.start()
    store.close()
    tidying.join()
    reopened = RocksStore.open(tmp_path / "store")
    assert reopened.count() == 0
    reopened.close()
