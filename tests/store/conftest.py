from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from objmeta.store.memory import MemoryStore
from objmeta.store.sqlite import SqliteStore
from tests.store.build import CONFIGURATION


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MemoryStore | SqliteStore]:
    """Every kind of acceptor store, empty."""
    made: MemoryStore | SqliteStore
    if request.param == "memory":
        made = MemoryStore(1, CONFIGURATION)
    else:
        made = SqliteStore.create(tmp_path / "acceptor", 1, CONFIGURATION)
    yield made
    made.close()


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[SqliteStore]:
    made = SqliteStore.create(tmp_path / "acceptor", 1, CONFIGURATION)
    yield made
    made.close()
