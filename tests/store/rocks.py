"""What tests of RocksStore do to its files."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from objmeta.core.listing import ScanRequest
from objmeta.store import rocks_files
from objmeta.store.rocks import RocksStore
from tests.store.build import scan

_ALL = ScanRequest(b"", limit=100_000)


def names_in(store: RocksStore) -> list[bytes]:
    return [row.name for row in scan(store, _ALL)[0]]


def crashed(store: RocksStore, copy: Path) -> Path:
    """A copy of the files as a crash leaves them; the lock stays, as closing any file of it would release it."""
    while True:
        before = files_of(store)
        with suppress(shutil.Error):  # what is no longer needed may go while it is copied
            shutil.copytree(store.path, copy, ignore=shutil.ignore_patterns("LOCK"))
            if files_of(store) == before:
                return copy
        shutil.rmtree(copy)


def files_of(store: RocksStore) -> dict[Path, int]:
    return {path: path.stat().st_size for path in rocks_files.database_path(store.path).iterdir() if path.exists()}


def log_of(directory: Path) -> Path:
    (log,) = (path for path in rocks_files.database_path(directory).glob("*.log") if path.stat().st_size)
    return log


def flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 4
    file.write_bytes(content)


def zero(file: Path, at: int, size: int) -> None:
    content = bytearray(file.read_bytes())
    content[at : at + size] = bytes(size)
    file.write_bytes(content)
