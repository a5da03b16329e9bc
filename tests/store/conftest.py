from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from objmeta.store.memory import MemoryStore
from objmeta.store.rocks import RocksStore
from objmeta.store.sqlite import SqliteStore
from tests.store.build import CONFIGURATION


@pytest.fixture(params=["memory", "sqlite", "rocks"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MemoryStore | SqliteStore | RocksStore]:
    """Every kind of acceptor store, empty."""
    made: MemoryStore | SqliteStore | RocksStore
    if request.param == "memory":
        made = MemoryStore(1, CONFIGURATION)
    elif request.param == "rocks":
        made = RocksStore.create(tmp_path / "acceptor", 1, CONFIGURATION)
    else:
        made = SqliteStore.create(tmp_path / "acceptor", 1, CONFIGURATION)
    yield made
    made.close()


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[SqliteStore]:
    made = SqliteStore.create(tmp_path / "acceptor", 1, CONFIGURATION)
    yield made
    made.close()


@pytest.fixture
def rocks(tmp_path: Path) -> Iterator[RocksStore]:
    made = RocksStore.create(tmp_path / "acceptor", 1, CONFIGURATION)
    yield made
    made.close()
