"""Pages of a scan, built the same way over every store, so that equal content gives equal bytes.

The bytes are those of :func:`objmeta.core.listing.encode_rows`, put together from what is stored, without decoding and
encoding each state again.  A page ends after ``limit`` rows or about ``PAGE_BYTES_MAX``, whichever comes first, but
has at least one row if there is any.  ``covered`` depends only on the rows answered: after a plain row it is the least
name above it, after a witness the successor of its prefix, and at the end of the range it is empty.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, Protocol

import msgspec

from objmeta.core.listing import END, ScanAnswer, ScanRequest, common_prefix, successor
from objmeta.core.messages import LIVE

UNKNOWN: Final = -1
"""In place of a row's flag: the row is damaged, and only its name is known."""
PAGE_BYTES_MAX: Final = 1 << 20
"""A page must fit a message with room to spare, and be merged without holding up the loop for long."""
WITNESS_ROWS_MAX: Final = 64
"""How many rows of a common prefix are looked at for a live one: a hint is not worth more."""
_CHUNK_ROWS: Final = 1024
_PREFIX_CHUNK_ROWS: Final = 2 * WITNESS_ROWS_MAX
_NAMES_AT_ONCE: Final = 200
"""Few enough that little is read in vain where the page ends among them."""

_encode: Final = msgspec.msgpack.Encoder().encode
_BALLOT: Final = struct.Struct(">QQQ")
_ROW: Final = b"\x94"
_PLAIN: Final = b"\xc2"
_WITNESS: Final = b"\xc3"
_BIN8_MAX: Final = 0xFF
_BIN8: Final = tuple(_ROW + b"\xc4" + bytes((length,)) for length in range(_BIN8_MAX + 1))


class StoredRow(NamedTuple):
    """A row with an accepted value: its ballot packed, its state encoded."""

    name: bytes
    flag: int
    accepted: bytes
    state: bytes


StoredRecord = tuple[bytes, bytes]
"""A record: the name of its register, and how a page has it (:func:`encoded_record`)."""


def encoded_record(name: bytes, sequence: int, version_id: bytes, digest: bytes, parent: bytes, body: bytes) -> bytes:
    """A record without its data, as one of the list that ``decode_records`` reads; ``parent`` is encoded already."""
    return _encode((name, ((sequence, version_id, digest), msgspec.Raw(parent), body, b"")))


class Snapshot(Protocol):
    """What a page is built from: one instant of a store."""

    def rows(self, start: bytes, end: bytes, limit: int) -> Sequence[tuple[bytes, int, bytes, bytes]]:
        """The first ``limit`` :class:`StoredRow` with ``start <= name < end``, by name; ``end`` empty: no bound.

        One that is damaged has the flag ``UNKNOWN``.
        """
        ...

    def named_rows(self, names: Sequence[bytes]) -> Sequence[tuple[bytes, int, bytes, bytes]]:
        """Those of :meth:`rows` that have one of these names, which are in order."""
        ...

    def record_rows(self, first: bytes, last: bytes) -> Iterator[StoredRecord]:
        """Every :class:`StoredRecord` of the registers from ``first`` to ``last``.

        By name, version id, sequence and digest.  Of what is damaged some may be missing, and others be out of order.
        """
        ...

    def named_record_rows(self, names: Sequence[bytes]) -> Iterator[StoredRecord]:
        """Those of :meth:`record_rows` that belong to registers of these names, which are in order."""
        ...


class _Records:
    """The records of registers that are asked for in order: in one go what was begun before, else each."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._found: Iterator[StoredRecord] = iter(())
        self._next: StoredRecord | None = None

    def begin(self, found: Iterator[StoredRecord]) -> None:
        """What comes next is among these."""
        self._found = found
        self._next = next(found, None)

    def of(self, name: bytes) -> list[bytes]:
        """All of one register. A damaged name among them can hide others, so where none is found we look again."""
        found = []
        record = self._next
        while record is not None and record[0] <= name:
            if record[0] == name:
                found.append(record[1])
            record = next(self._found, None)
        self._next = record
        return found or [record for _, record in self._snapshot.record_rows(name, name)]


class _Page:
    """Collects rows until the page is full."""

    def __init__(self, snapshot: Snapshot, request: ScanRequest) -> None:
        self._snapshot = snapshot
        self._held = _Records(snapshot) if request.with_records else None
        self._limit = max(1, request.limit)
        self._parts: list[bytes] = []
        self._records: list[bytes] = []
        self._unknown: list[bytes] = []
        self._rows = 0
        self._bytes = 0

    def add(self, row: tuple[bytes, int, bytes, bytes], mark: bytes) -> bool:
        """Add a row; False if it must wait for the next page."""
        if self._rows + len(self._unknown) >= self._limit:
            return False
        name, flag, accepted, state = row
        if flag == UNKNOWN:
            self._unknown.append(name)
            return True
        length = len(name)
        size = 30 + length + len(state)
        records = self._held.of(name) if self._held is not None else ()
        if records:
            size += sum(map(len, records))
        if self._bytes + size > PAGE_BYTES_MAX and self._rows:
            return False
        head = _BIN8[length] if length <= _BIN8_MAX else _ROW + _encode(name)[:-length]
        self._parts += (head, name, _encode(_BALLOT.unpack(accepted)), state, mark)
        self._records += records
        self._rows += 1
        self._bytes += size
        return True

    def begin(self, first: bytes, last: bytes) -> None:
        """The rows that are added next are from ``first`` to ``last``: their records can be had in one go."""
        if self._held is not None:
            self._held.begin(self._snapshot.record_rows(first, last))

    def begin_named(self, names: Sequence[bytes]) -> None:
        """The same for rows of these names."""
        if self._held is not None:
            self._held.begin(self._snapshot.named_record_rows(names))

    def answer(self, covered: bytes) -> ScanAnswer:
        return ScanAnswer(
            _array_header(self._rows) + b"".join(self._parts),
            covered,
            _array_header(len(self._records)) + b"".join(self._records),
            tuple(self._unknown),
        )


def page(snapshot: Snapshot, request: ScanRequest) -> ScanAnswer:
    """One page of registers that have an accepted value (see the module's text)."""
    building = _Page(snapshot, request)
    if request.names:
        return building.answer(_named(building, snapshot, request.names))
    covered = _by_prefix(building, snapshot, request) if request.delimiter else _plain(building, snapshot, request)
    return building.answer(covered)


def _plain(building: _Page, snapshot: Snapshot, request: ScanRequest) -> bytes:
    start = request.start
    last = b""
    chunk = min(max(1, request.limit) + 1, _CHUNK_ROWS)
    while True:
        rows = snapshot.rows(start, request.end, chunk)
        if rows:
            building.begin(rows[0][0], rows[-1][0])
        for row in rows:
            if not building.add(row, _PLAIN):
                return _after(last)
            last = row[0]
        if len(rows) < chunk:
            return END
        start = _after(last)


def _named(building: _Page, snapshot: Snapshot, names: Sequence[bytes]) -> bytes:
    for at in range(0, len(names), _NAMES_AT_ONCE):
        rows = snapshot.named_rows(names[at : at + _NAMES_AT_ONCE])
        building.begin_named([row[0] for row in rows])
        for row in rows:
            if not building.add(row, _PLAIN):
                return row[0]
    return END


def _by_prefix(building: _Page, snapshot: Snapshot, request: ScanRequest) -> bytes:
    start = request.start
    covered = END
    while True:
        rows = snapshot.rows(start, request.end, _PREFIX_CHUNK_ROWS)
        more = len(rows) == _PREFIX_CHUNK_ROWS
        at = 0
        start = END
        while at < len(rows):
            row = rows[at]
            prefix = common_prefix(row[0], request.delimiter, request.prefix_length)
            if prefix is None:
                if not building.add(row, _PLAIN):
                    return covered
                covered = _after(row[0])
                at += 1
                continue
            beyond = _first_without(rows, at, prefix)
            witness = _witness(rows, at, beyond)
            if witness is None and more and beyond == len(rows) and beyond - at < WITNESS_ROWS_MAX:
                start = row[0]  # the chunk ended too early to tell: look again, from the prefix on
                break
            if not building.add(witness or row, _WITNESS):
                return covered
            covered = successor(prefix)
            if beyond == len(rows) and more:
                start = covered
                break
            at = beyond
        else:
            start = _after(rows[-1][0]) if more else END
        if not start or (request.end and start >= request.end):
            return END


def _first_without(rows: Sequence[tuple[bytes, int, bytes, bytes]], at: int, prefix: bytes) -> int:
    while at < len(rows) and rows[at][0].startswith(prefix):
        at += 1
    return at


def _witness(
    rows: Sequence[tuple[bytes, int, bytes, bytes]], at: int, beyond: int
) -> tuple[bytes, int, bytes, bytes] | None:
    stop = min(beyond, at + WITNESS_ROWS_MAX)
    return next((row for row in rows[at:stop] if row[1] == LIVE), None)


def _after(name: bytes) -> bytes:
    """The least name above ``name``."""
    return name + b"\x00"


def _array_header(length: int) -> bytes:
    if length < 16:
        return bytes((0x90 | length,))
    return b"\xdc" + length.to_bytes(2) if length < 1 << 16 else b"\xdd" + length.to_bytes(4)
