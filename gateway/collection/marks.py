"""Marks: which chunks are named, in order of their digests.

Records come in order of names; a *spool* turns what they name around, in a file (SQLite) and so in bounded memory.
Nothing of it outlives its process.
"""

from __future__ import annotations

import os
import sqlite3
import struct
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from objmeta import Chunk, errors

PAGE_MARKS: Final = 4000
"""Marks that travel together, and are swept in one go: 160 KiB."""
_PACKED: Final = struct.Struct(">32sQB")


class Wanted(NamedTuple):
    """A chunk that is named. ``replicas``: of all that name it, the greatest."""

    digest: bytes
    length: int
    replicas: int

    @property
    def chunk(self) -> Chunk:
        """The chunk."""
        return Chunk(self.digest, self.length)


class MarksPage(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """All marks of a spool from where was asked to below ``end`` (empty: to the end), in order, packed."""

    end: bytes
    packed: bytes

    def marks(self) -> list[Wanted]:
        """Unpacked. Raises IntegrityError."""
        try:
            return [Wanted(*fields) for fields in _PACKED.iter_unpack(self.packed)]
        except struct.error as damage:
            raise errors.IntegrityError(f"a page of marks cannot be read: {damage}") from damage


def pack(marks: Iterable[Wanted]) -> bytes:
    """Marks as they travel."""
    return b"".join(_PACKED.pack(*mark) for mark in marks)


def merge(pages: Sequence[Sequence[Wanted]], end: bytes) -> list[Wanted]:
    """The marks of several pages below ``end`` (empty: all), each once, in order."""
    merged: dict[bytes, Wanted] = {}
    for page in pages:
        for mark in page:
            if end and mark.digest >= end:
                break
            known = merged.get(mark.digest)
            if known is None or known.replicas < mark.replicas:
                merged[mark.digest] = mark
    return [merged[digest] for digest in sorted(merged)]


_SCHEMA: Final = "CREATE TABLE marks (digest BLOB PRIMARY KEY, length INTEGER, replicas INTEGER) WITHOUT ROWID"
_ADD: Final = (
    "INSERT INTO marks VALUES (?, ?, ?) ON CONFLICT (digest) DO UPDATE SET replicas = max(replicas, excluded.replicas)"
)
_PAGE: Final = "SELECT digest, length, replicas FROM marks WHERE digest >= ? ORDER BY digest LIMIT ?"


class Spool:
    """Marks on disk in ``directory``. Methods block; one thread at a time."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        handle, file = tempfile.mkstemp(".spool", "marks-", directory)
        os.close(handle)
        self._db = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        # What a crash leaves of it is never read.
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._db.execute(_SCHEMA)
        os.unlink(file)  # it is open, and nobody else needs its name: a process that is killed leaves nothing behind

    def add(self, marks: Iterable[Wanted]) -> None:
        """Add marks; of one that is there already the greater number of replicas stays."""
        self._db.execute("BEGIN")
        self._db.executemany(_ADD, marks)
        self._db.execute("COMMIT")

    def page(self, start: bytes, limit: int) -> MarksPage:
        """At most ``limit`` marks from ``start`` on."""
        rows = self._db.execute(_PAGE, (start, limit + 1)).fetchall()
        return MarksPage(rows[limit][0] if len(rows) > limit else b"", pack(Wanted(*row) for row in rows[:limit]))

    def count(self) -> int:
        """How many marks there are."""
        found: int = self._db.execute("SELECT count(*) FROM marks").fetchone()[0]
        return found

    def close(self) -> None:
        """Let it go."""
        self._db.close()


class MemorySpool:
    """The same in memory: for simulations, which make thousands of them."""

    def __init__(self) -> None:
        self._marks: dict[bytes, Wanted] = {}

    def add(self, marks: Iterable[Wanted]) -> None:
        """See :class:`Spool`."""
        for mark in marks:
            known = self._marks.get(mark.digest)
            if known is None or known.replicas < mark.replicas:
                self._marks[mark.digest] = mark

    def page(self, start: bytes, limit: int) -> MarksPage:
        """See :class:`Spool`."""
        digests = sorted(digest for digest in self._marks if digest >= start)
        end = digests[limit] if len(digests) > limit else b""
        return MarksPage(end, pack(self._marks[digest] for digest in digests[:limit]))

    def count(self) -> int:
        """See :class:`Spool`."""
        return len(self._marks)

    def close(self) -> None:
        """See :class:`Spool`."""
        self._marks.clear()
