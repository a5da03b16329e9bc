"""Inventories and digests of ranges, built the same way over every store, so that equal content gives equal answers.

Both go once through the rows of a range and, beside them, through its records; they stop where the answer is full, so
that none keeps other readers waiting for more than a few milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, Protocol

import msgspec

from objmeta.core.ballot import ZERO, Ballot
from objmeta.core.inventory import (
    DIGESTED_MAX,
    HELD_PER_PAGE_MAX,
    LEAF_ITEMS,
    LEAF_REGISTERS,
    LOOKED_AT_MAX,
    DigestRequest,
    Digests,
    HeldRecord,
    Inventory,
    InventoryRequest,
    InventoryRow,
    RangeDigest,
    range_digest,
    row_digest,
)
from objmeta.core.messages import TOMBSTONE, RecordRef, State

_PARENT: Final = msgspec.msgpack.Decoder(RecordRef | None)
_STATE: Final = msgspec.msgpack.Decoder(State)
_DAMAGED: Final = b"damaged"


class HeldRow(NamedTuple):
    """A row as stored: ballots packed, None where nothing was accepted; of tombstones the state, encoded."""

    name: bytes
    promised: bytes
    accepted: bytes | None
    flag: int | None
    damaged: bool = False
    tombstone: bytes | None = None


class NamedRef(NamedTuple):
    """A record as stored, without its content; ``parent`` is the encoded reference or nil."""

    name: bytes
    version_id: bytes
    sequence: int
    digest: bytes
    parent: bytes


class Holdings(Protocol):
    """What inventories are built from: one instant of a store, read on demand."""

    def held_rows(self, start: bytes, end: bytes) -> Iterator[HeldRow]:
        """Every row with ``start <= name < end``, promises alone included, by name; ``end`` empty: no bound."""
        ...

    def held_records(self, start: bytes, end: bytes, after: RecordRef | None) -> Iterator[NamedRef]:
        """The records of these registers, by name, version id, sequence and digest.

        ``after`` leaves out those of ``start`` up to this one.
        """
        ...


class _Beside:
    """The records of one register after the other, for who goes through the rows."""

    def __init__(self, records: Iterator[NamedRef]) -> None:
        self._records = records
        self._next = next(records, None)

    def of(self, name: bytes) -> Iterator[NamedRef]:
        """Those of ``name``, and of no name before it any more."""
        while self._next is not None and self._next.name <= name:
            record = self._next
            if record.name == name:
                yield record
            self._next = next(self._records, None)


def inventory(holdings: Holdings, request: InventoryRequest) -> Inventory:
    """One page of all registers held (:class:`~objmeta.core.inventory.InventoryRequest`)."""
    if request.erasable:
        return _erasable(holdings, request)
    named = request.names
    limit = len(named) if named else max(1, request.limit)
    rows: list[InventoryRow] = []
    room = HELD_PER_PAGE_MAX
    for row, beside in _each_of(holdings, named) if named else _each(holdings, request):
        if len(rows) >= limit or room <= 0:
            return Inventory(tuple(rows), row.name)
        held: list[HeldRecord] = []
        more = False
        for record in beside.of(row.name):
            if len(held) >= max(1, room):
                more = True
                break
            ref = RecordRef(record.sequence, record.version_id, record.digest)
            held.append((ref, _PARENT.decode(record.parent)))
        room -= len(held)
        promised = ZERO if row.damaged else Ballot.unpack(row.promised)
        accepted = ZERO if row.accepted is None or row.damaged else Ballot.unpack(row.accepted)
        rows.append(InventoryRow(row.name, promised, accepted, row.flag, tuple(held), row.damaged, more))
        if more:
            return Inventory(tuple(rows), row.name + b"\0")
    return Inventory(tuple(rows))


def _each(holdings: Holdings, request: InventoryRequest) -> Iterator[tuple[HeldRow, _Beside]]:
    beside = _Beside(holdings.held_records(request.start, request.end, request.held_after))
    for row in holdings.held_rows(request.start, request.end):
        yield row, beside


def _each_of(holdings: Holdings, names: Sequence[bytes]) -> Iterator[tuple[HeldRow, _Beside]]:
    for name in names:
        for row in holdings.held_rows(name, name + b"\0"):
            yield row, _Beside(holdings.held_records(name, name + b"\0", None))


def _erasable(holdings: Holdings, request: InventoryRequest) -> Inventory:
    rows: list[InventoryRow] = []
    for looked_at, row in enumerate(holdings.held_rows(request.start, request.end)):
        if len(rows) >= max(1, request.limit) or looked_at >= LOOKED_AT_MAX:
            return Inventory(tuple(rows), row.name)
        if row.damaged or row.flag not in (None, TOMBSTONE):
            continue
        accepted = ZERO if row.accepted is None else Ballot.unpack(row.accepted)
        refs = () if row.tombstone is None else _STATE.decode(row.tombstone).refs
        tip = refs[-1] if refs else None
        rows.append(InventoryRow(row.name, Ballot.unpack(row.promised), accepted, row.flag, tip=tip))
    return Inventory(tuple(rows))


def digests(holdings: Holdings, request: DigestRequest) -> Digests:
    """Digests of ranges (:class:`~objmeta.core.inventory.DigestRequest`)."""
    chosen_here = not request.bounds
    last = b"" if chosen_here else request.bounds[-1]
    beside = _Beside(holdings.held_records(request.start, last, None))
    ranges: list[RangeDigest] = []
    leaf: list[bytes] = []
    items = looked_at = 0
    for row in holdings.held_rows(request.start, last):
        if chosen_here:
            if len(leaf) >= LEAF_REGISTERS or items >= LEAF_ITEMS:
                ranges.append(range_digest(row.name, leaf))
                leaf = []
                items = 0
        else:
            while _ends_before(request.bounds[len(ranges)], row.name):
                ranges.append(range_digest(request.bounds[len(ranges)], leaf))
                leaf = []
        if looked_at >= DIGESTED_MAX and (ranges or not chosen_here):
            return Digests(tuple(ranges))
        held = [(record.sequence, record.version_id, record.digest) for record in beside.of(row.name)]
        items += 1 + len(held)
        looked_at += 1 + len(held)
        if row.accepted is not None or row.damaged:
            leaf.append(row_digest(row.name, row.accepted or _DAMAGED, held))
    for bound in (b"",) if chosen_here else request.bounds[len(ranges) :]:
        ranges.append(range_digest(bound, leaf))
        leaf = []
    return Digests(tuple(ranges))


def _ends_before(bound: bytes, name: bytes) -> bool:
    return bound != b"" and bound <= name
