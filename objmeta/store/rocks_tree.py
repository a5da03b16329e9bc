"""An ordered tree of bytes in three guises: as it is, as of the last sync, and with writes that wait on top.

All that a store keeps is made of three operations: get a value, go through a range in order, write many keys at once.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

from rocksdict import Rdict, ReadOptions, Snapshot

from objmeta.errors import StoreError
from objmeta.store.rocks_files import explain

_ABSENT: Final = "key not found"
_ON_DAMAGE: Final = "the rest can be used, and what is written anew; replace the node when there is time"


class Tree(Protocol):
    """Something to read from. Raises IntegrityError for a damaged block, StoreError for a failing disk."""

    def get(self, key: bytes) -> bytes | None:
        """The value of a key, or None."""
        ...

    def items(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values with ``start <= key < end``, in order."""
        ...


class Live:
    """The database as it is, what was not synced included: for the writer alone."""

    def __init__(self, directory: Path, database: Rdict) -> None:
        self._directory = directory
        self._database = database

    def get(self, key: bytes) -> bytes | None:
        try:
            return self._database.get(key)
        except Exception as error:
            raise _explained(self._directory, error) from error

    def items(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        return _items(self._directory, self._database, start, end)


class Durable:
    """The database as it was at one instant. :meth:`release` it: the database stays open while a snapshot lives."""

    def __init__(self, directory: Path, snapshot: Snapshot) -> None:
        self._directory = directory
        self._snapshot: Snapshot | None = snapshot

    def get(self, key: bytes) -> bytes | None:
        assert self._snapshot is not None, "a released snapshot is not read"
        try:
            return self._snapshot[key]  # type: ignore[no-any-return]
        except Exception as error:
            if str(error) == _ABSENT:
                return None
            raise _explained(self._directory, error) from error

    def items(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        assert self._snapshot is not None, "a released snapshot is not read"
        return _items(self._directory, self._snapshot, start, end)

    def release(self) -> None:
        """Let go of the instant."""
        self._snapshot = None


def _items(directory: Path, source: Rdict | Snapshot, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
    options = ReadOptions()
    options.set_iterate_upper_bound(end)
    iterator = source.iter(options)
    try:
        iterator.seek(start)
        while iterator.valid():
            yield iterator.key(), iterator.value()
            iterator.next()
        iterator.status()  # it ends early at a damaged block, and only says so here
    except Exception as error:
        raise _explained(directory, error) from error
    finally:
        del iterator, source  # the traceback of an error must not keep the database open


def _explained(directory: Path, error: Exception) -> StoreError:
    return explain(directory, error, _ON_DAMAGE) or StoreError(f"the store in {directory} failed ({error!r})")


class Overlay:
    """A tree with writes on top that are not in it yet; each can be undone."""

    def __init__(self, tree: Tree) -> None:
        self.writes: dict[bytes, bytes | None] = {}
        """What waits to be written; None for a key to remove."""
        self._tree = tree
        self._replaced: list[tuple[bytes, bytes | None]] = []
        self._sorted: list[bytes] | None = None

    def get(self, key: bytes) -> bytes | None:
        writes = self.writes
        return writes[key] if key in writes else self._tree.get(key)

    def put(self, key: bytes, value: bytes | None) -> None:
        """Write a key; None removes it."""
        writes = self.writes
        if key in writes:
            self._replaced.append((key, writes[key]))
        elif self._sorted is not None:
            insort(self._sorted, key)
        writes[key] = value

    def items(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """As :meth:`Tree.items`; what is written meanwhile is not seen."""
        own = self._written(start, end)
        if not own:
            yield from self._tree.items(start, end)
            return
        at = 0
        for key, value in self._tree.items(start, end):
            while at < len(own) and own[at][0] < key:
                yield from _present(own[at])
                at += 1
            if at < len(own) and own[at][0] == key:
                yield from _present(own[at])
                at += 1
            else:
                yield key, value
        for waiting in own[at:]:
            yield from _present(waiting)

    def mark(self) -> tuple[int, int]:
        """Where to :meth:`undo` to."""
        return len(self.writes), len(self._replaced)

    def undo(self, mark: tuple[int, int]) -> None:
        """Take back what was written since ``mark``."""
        keys, replaced = mark
        while len(self._replaced) > replaced:
            key, before = self._replaced.pop()
            self.writes[key] = before
        while len(self.writes) > keys:
            self.writes.popitem()  # the newest: a value that is replaced keeps its place
        self._sorted = None

    def _written(self, start: bytes, end: bytes) -> list[tuple[bytes, bytes | None]]:
        if self._sorted is None:
            self._sorted = sorted(self.writes)
        keys = self._sorted[bisect_left(self._sorted, start) : bisect_left(self._sorted, end)]
        return [(key, self.writes[key]) for key in keys]


def _present(written: tuple[bytes, bytes | None]) -> Iterator[tuple[bytes, bytes]]:
    key, value = written
    if value is not None:
        yield key, value
