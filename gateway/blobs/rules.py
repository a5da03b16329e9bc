"""What happens to a chunk of a place, each within one transaction of its index.

Deletion and reuse meet here.  A put writes and syncs its bytes first; then, in a transaction, it looks whether they
are still there, and commits a row that says so, touched with its generation.  A sweep or a drop removes the bytes in
the same transaction that finds the row due and removes it, before that commits.  Transactions run one after the other,
so either the put finds the bytes gone and writes them again, or the sweep finds the row touched and keeps it.  A crash
between removing the bytes and the commit leaves a row without bytes: it counts as not held, everywhere.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Final

from gateway.blobs.index import Change, Row
from gateway.blobs.packs import Packs
from gateway.blobs.places import Sweep, Swept, digest_now
from objmeta import Chunk, errors

DAMAGE: Final = frozenset({errno.EIO, errno.EBADMSG, errno.EUCLEAN})
"""A disk that cannot read what it was given."""
PAGE_ROWS: Final = 256
"""Judged by a sweep in one transaction: deleting as many files takes some ten milliseconds, in which puts wait."""

TRIES: Final = 8
"""Of something that a sweep or a compaction came between: it would have to do so every time."""


class Outcome(Enum):
    """What came of committing a chunk's bytes."""

    STORED = 1
    THERE = 2
    """Another copy is there, and was left alone: look whether it is good."""
    GONE = 3
    """A sweep removed the bytes before the commit."""
    WRONG = 4
    """They are not the chunk's."""


class Bytes:
    """Where the bytes of rows are."""

    def __init__(self, path: Path, packs: Packs) -> None:
        self.path = path
        self.packs = packs

    def own(self, digest: bytes) -> Path:
        """The file of a chunk that is not in a pack."""
        name = digest.hex()
        return self.path / name[:2] / name

    def are_there(self, row: Row) -> bool:
        """Whether they are, as far as can be told without reading them. Raises OSError."""
        with suppress(FileNotFoundError):
            if row.pack:
                return os.stat(self.packs.path(row.pack)).st_size >= row.offset + row.length
            return os.stat(self.own(row.digest)).st_size == row.length
        return False

    def read(self, row: Row) -> bytes | None:
        """What is there; None if that is not the chunk. Raises OSError."""
        if row.pack:
            data = self.packs.read(row.pack, row.offset, row.length)
        else:
            with open(self.own(row.digest), "rb", buffering=0) as file:
                data = file.read(row.length + 1)
        return data if len(data) == row.length and digest_now(data) == row.digest else None

    def remove(self, row: Row) -> None:
        """Remove them, if they have a file of their own; in a pack they are dead without a row."""
        if not row.pack:
            with suppress(FileNotFoundError):
                os.unlink(self.own(row.digest))


def store(place: Bytes, new: Row, generation: int, replace: bool) -> Callable[[Change], Outcome]:
    """The bytes of a chunk are durable, where ``new`` says: have a row for them.

    With ``replace`` another copy that may be there is known to be bad.
    """

    def step(change: Change) -> Outcome:
        _check(change, generation)
        if not place.are_there(new):
            return Outcome.GONE
        old = change.find(new.digest)
        if old is not None and new.pack and not replace and not old.damaged and place.are_there(old):
            return Outcome.THERE
        if old is not None and new.pack:
            place.remove(old)
        replicas = 0 if old is None else old.replicas
        change.save(new._replace(touched=_touched(change, old, generation), replicas=replicas))
        return Outcome.STORED

    return step


def distrust(row: Row, generation: int) -> Callable[[Change], None]:
    """A put found the bytes of a chunk bad and is about to write them again: no sweep removes them meanwhile."""

    def step(change: Change) -> None:
        _check(change, generation)
        old = change.find(row.digest)
        if old is not None and old[:4] == row[:4]:
            change.save(old._replace(touched=_touched(change, old, generation), unmarked_since=0, damaged=1))

    return step


def touch(place: Bytes, chunks: Sequence[Chunk], generation: int) -> Callable[[Change], list[bool]]:
    """Touch what is there; for each whether it is."""

    def step(change: Change) -> list[bool]:
        _check(change, generation)
        found = []
        for chunk in chunks:
            old = change.find(chunk.digest)
            there = is_good(place, old, chunk)
            if there and old is not None:
                new = old._replace(touched=_touched(change, old, generation), unmarked_since=0)
                if new != old:
                    change.save(new)
            found.append(there)
        return found

    return step


def is_good(place: Bytes, row: Row | None, chunk: Chunk) -> bool:
    """Whether a row stands for a chunk's bytes, as far as is known."""
    return row is not None and not row.damaged and row.length == chunk.length and place.are_there(row)


def judge(
    place: Bytes, sweep: Sweep, start: bytes, marks: Mapping[bytes, int]
) -> Callable[[Change], tuple[bytes, Swept]]:
    """One page of a sweep from ``start`` on: what follows the page (empty: nothing), and what was done."""

    def step(change: Change) -> tuple[bytes, Swept]:
        change.raise_floor(sweep.floor)
        change.note(sweep.cycle)
        rows = change.page(start, sweep.end, PAGE_ROWS)
        deleted = deleted_bytes = kept = unmarked = touched = 0
        for old in rows:
            new = _judged(old, sweep, marks.get(old.digest), change.newest)
            if new is None:
                place.remove(old)
                change.remove(old.digest)
                deleted += 1
                deleted_bytes += old.length
            else:
                kept += not new.unmarked_since
                unmarked += bool(new.unmarked_since)
                touched += not new.unmarked_since and old.digest not in marks
                if new != old:
                    change.save(new)
        after = rows[-1].digest + b"\0" if len(rows) == PAGE_ROWS else b""
        return after, Swept(deleted, deleted_bytes, kept, unmarked, touched)

    return step


def _judged(row: Row, sweep: Sweep, replicas: int | None, newest: int) -> Row | None:
    """The row after a sweep; None if it is due."""
    if not row.touched:
        row = row._replace(touched=newest)
    if replicas is not None:
        return row._replace(unmarked_since=0, replicas=replicas)
    if row.touched >= sweep.floor:
        return row
    if not row.unmarked_since:
        return row._replace(unmarked_since=sweep.cycle)
    return None if row.unmarked_since < sweep.cycle else row


def adopt(place: Bytes, digests: Sequence[bytes]) -> Callable[[Change], None]:
    """Files are there; whoever wrote them may have died before the commit. Have rows for those that have none."""

    def step(change: Change) -> None:
        for digest in digests:
            old = change.find(digest)
            if old is None:
                with suppress(FileNotFoundError):
                    change.save(Row(digest, os.stat(place.own(digest)).st_size, touched=change.newest))
            elif old.pack:
                place.remove(Row(digest, old.length))

    return step


def drop(place: Bytes, chunk: Chunk, floor: int) -> Callable[[Change], bool]:
    """Remove a copy that was last touched below ``floor``; whether so."""

    def step(change: Change) -> bool:
        row = change.find(chunk.digest)
        if row is None or not 0 < row.touched < floor:
            return False
        place.remove(row)
        change.remove(row.digest)
        return True

    return step


def note_damage(place: Bytes, chunk: Chunk) -> Callable[[Change], bool]:
    """Look once more at a chunk that was found bad, as it may have been put anew since; whether it is bad."""

    def step(change: Change) -> bool:
        row = change.find(chunk.digest)
        if row is None:
            return False
        damaged = is_bad(place, row)
        if damaged != bool(row.damaged):
            change.save(row._replace(damaged=int(damaged)))
        return damaged

    return step


def look(place: Bytes, find: Callable[[bytes], Row | None], chunk: Chunk) -> tuple[Row | None, bool]:
    """The row of a chunk, and whether its bytes are good. Raises OSError, StoreError."""
    row = find(chunk.digest)
    return row, row is not None and row.length == chunk.length and not is_bad(place, row)


def is_bad(place: Bytes, row: Row) -> bool:
    """Whether the bytes of a row are not what they should be, gone, or beyond reading. Raises OSError."""
    try:
        return place.read(row) is None
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in DAMAGE:
            return True
        raise


def _check(change: Change, generation: int) -> None:
    if generation and generation < change.floor:
        raise errors.StaleGeneration(
            f"data was sent in generation {generation}, and only {change.floor} and later are accepted by now: "
            "what was stored since then may have been deleted, so begin anew"
        )
    change.note(generation)


def _touched(change: Change, old: Row | None, generation: int) -> int:
    """The generation of a chunk that is touched; one that is not known stays so until a sweep dates it."""
    stated = generation or change.newest
    if old is None:
        return stated
    return max(old.touched, stated) if old.touched else 0
