"""Walks over a whole place: adopting, listing, verifying, compacting. Everything here runs in a thread.

What a walk reads is one snapshot after another, so each change is decided anew in a transaction (``rules``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from gateway.blobs import rules
from gateway.blobs.index import Change, Index, Row
from gateway.blobs.packs import HEADER
from gateway.blobs.places import Held, Sweep, Usage, Verified
from gateway.blobs.rules import Bytes
from objmeta import Chunk

NAME_LENGTH: Final = 64
PAGE_ROWS: Final = 1000
ADOPTED_ROWS: Final = 256
"""In one transaction."""
COMPACTED_BYTES_MAX: Final = 1 << 30
"""Copied by one compaction at most; packs that hold nothing are removed without end."""
COPIED_BYTES_MAX: Final = 4 << 20
"""Copied and committed at a time."""


def found(place: Bytes) -> Iterator[Row]:
    """Rows for what is in a directory that has no index; when it was touched is not known. Raises OSError."""
    for pack in place.packs.sizes():
        for digest, length, offset in place.packs.scan(pack):
            yield Row(digest, length, pack, offset)
    for prefix in range(256):
        for digest in _files(place, prefix):
            with suppress(FileNotFoundError):
                yield Row(digest, os.stat(place.own(digest)).st_size)


def files_without_rows(index: Index, place: Bytes, sweep: Sweep) -> list[list[bytes]]:
    """Chunks in the range of a sweep that have a file but no row, in groups for one transaction each."""
    lacking: list[bytes] = []
    last = sweep.end[0] if sweep.end else 255
    for prefix in range(sweep.start[0] if sweep.start else 0, last + 1):
        digests = [
            each for each in _files(place, prefix) if each >= sweep.start and (not sweep.end or each < sweep.end)
        ]
        for start in range(0, len(digests), PAGE_ROWS):
            page = digests[start : start + PAGE_ROWS]
            rows = _rows(index, page)
            lacking += [digest for digest, row in zip(page, rows, strict=True) if row is None or row.pack]
    return [lacking[start : start + ADOPTED_ROWS] for start in range(0, len(lacking), ADOPTED_ROWS)]


def _rows(index: Index, digests: Sequence[bytes]) -> list[Row | None]:
    return index.read(lambda view: [view.find(digest) for digest in digests])


def _files(place: Bytes, prefix: int) -> list[bytes]:
    """The chunks with files in one directory, in order."""
    with suppress(FileNotFoundError, NotADirectoryError):
        names = os.listdir(place.path / f"{prefix:02x}")
        digests = []
        for name in names:
            with suppress(ValueError):
                if len(name) == NAME_LENGTH:
                    digests.append(bytes.fromhex(name))
        return sorted(digests)
    return []


def held(index: Index, place: Bytes, after: bytes, limit: int) -> list[Held]:
    """The first chunks after ``after`` whose bytes are there."""
    there: list[Held] = []
    while len(there) < limit:
        wanted = limit - len(there)
        rows = _after(index, after, wanted)
        there += [
            Held(row.digest, row.length, row.touched, row.replicas, bool(row.damaged))
            for row in (current(index, place, row) for row in rows)
            if row is not None
        ]
        if len(rows) < wanted:
            break
        after = rows[-1].digest
    return there


def current(index: Index, place: Bytes, row: Row) -> Row | None:
    """A row as it is where its bytes are, to which a compaction may have moved them since; None if they are gone."""
    for _ in range(rules.TRIES):
        if place.are_there(row):
            return row
        now = index.find(row.digest)
        if now is None or now == row:
            break
        row = now
    return None


def _after(index: Index, digest: bytes, limit: int) -> list[Row]:
    return index.read(lambda view: view.page(digest + b"\0" if digest else b"", b"", limit))


def verify(index: Index, place: Bytes, after: bytes, limit_bytes: int) -> Verified:
    """Read and hash the first chunks after ``after``; ``damaged`` are those to look at once more, or no longer bad."""
    checked = checked_bytes = 0
    suspect: list[Chunk] = []
    rows = _after(index, after, PAGE_ROWS)
    for row in rows:
        bad = rules.is_bad(place, row)
        if bad != bool(row.damaged) or bad:
            suspect.append(Chunk(row.digest, row.length))
        after = row.digest
        checked += 1
        checked_bytes += row.length
        if checked_bytes >= limit_bytes:
            break
    is_end = checked == len(rows) < PAGE_ROWS
    return Verified(b"" if is_end else after, checked, checked_bytes, tuple(suspect))


def usage(index: Index, place: Bytes) -> Usage:
    """What is held, and what it takes on the disk."""
    chunks, length, in_files, damaged = index.read(lambda view: view.totals())
    packs = place.packs.sizes()
    return Usage(chunks, length, in_files + sum(packs.values()), len(packs), damaged)


# -- Compaction -------------------------------------------------------------------------------------------------------


def compact(index: Index, place: Bytes) -> None:
    """Copy what is left in packs of which more than half is dead to another pack, and remove them. Raises OSError.

    A pack is removed while this process holds its lock, so that nobody appends to it, and after the index, asked under
    that lock, knows no row of it: so there never will be one.  A pack with a damaged chunk is left as it is, until that
    is put again elsewhere: it may be the last copy, and something may yet be made of it.
    """
    place.packs.close()  # so that this process's own is not left out
    used = index.read(lambda view: view.packed(HEADER.size))
    copied = 0
    sizes = place.packs.sizes()
    for pack, size in sorted(sizes.items(), key=lambda item: used.get(item[0], 0)):  # what frees most with least
        if copied + used.get(pack, 0) > COMPACTED_BYTES_MAX or 2 * used.get(pack, 0) > size:
            continue
        with place.packs.locked(pack) as is_ours:
            if is_ours:
                copied += _empty(index, place, pack)
                if not _in_pack(index, pack):
                    place.packs.path(pack).unlink(missing_ok=True)


def _empty(index: Index, place: Bytes, pack: int) -> int:
    """Move the chunks of a pack elsewhere; how many bytes."""
    rows = _in_pack(index, pack)
    contents: list[tuple[Row, bytes]] = []
    copied = size = 0
    for row in rows:
        data = place.read(row)
        if data is None:
            index.commit([rules.note_damage(place, Chunk(row.digest, row.length))])
            return copied
        contents.append((row, data))
        size += len(data)
        if size >= COPIED_BYTES_MAX:
            _move(index, place, contents)
            copied += size
            contents, size = [], 0
    if contents:
        _move(index, place, contents)
    return copied + size


def _in_pack(index: Index, pack: int) -> list[Row]:
    return index.read(lambda view: view.in_pack(pack))


def _move(index: Index, place: Bytes, contents: list[tuple[Row, bytes]]) -> None:
    pack, offsets = place.packs.append([(row.digest, (data,)) for row, data in contents], to_free=True)
    try:
        steps = [partial(_moved, row, pack, offset) for (row, _), offset in zip(contents, offsets, strict=True)]
        for result in index.commit(steps):
            if isinstance(result, Exception):
                raise result
    finally:
        place.packs.settled(pack)


def _moved(old: Row, pack: int, offset: int, change: Change) -> None:
    """A chunk has been copied: it is there from now on, unless it was deleted or put anew meanwhile."""
    row = change.find(old.digest)
    if row is not None and (row.pack, row.offset) == (old.pack, old.offset):
        change.save(row._replace(pack=pack, offset=offset))
