"""What a RocksDB store keeps under which key, and one batch of steps as an acceptor sees it.

The first byte of a key says what it is::

    c name-escaped version-id-escaped sequence digest   a record: length of its parent, parent, body
    d the same                                          its data, apart so that scans pass it by
    f scope                                             floors of a scope
    h number                                            names of registers that changed, up to the change of that number
    m …                                                 the store itself: identity, membership, position
    r name                                              a row: promised, and accepted, flag and state if there is one

so that names sort as bytes and a register's records lie together, in the order pages show them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final, NamedTuple, TypeVar

import msgspec

from objmeta.core.acceptor import step
from objmeta.core.ballot import ZERO, Ballot
from objmeta.core.configuration import Membership
from objmeta.core.messages import (
    NO_FLOOR,
    TOMBSTONE,
    Record,
    RecordRef,
    Refusal,
    Reply,
    Request,
    Row,
    ScopeFloor,
    State,
)
from objmeta.errors import IntegrityError, RowDamaged
from objmeta.store.inventories import HeldRow, NamedRef
from objmeta.store.pages import StoredRecord, encoded_record
from objmeta.store.rocks_tree import Overlay, Tree
from objmeta.store.steps import refusal

MEMBERSHIP_KEY: Final = b"mm"
POSITION_KEY: Final = b"mp"
_RECORD: Final = b"c"
_DATA: Final = b"d"
_FLOOR: Final = b"f"
_FLOORS_END: Final = b"g"
_CHANGE: Final = b"h"
_ROW: Final = b"r"
_ROWS_END: Final = b"s"

_POSITION: Final = struct.Struct(">16sQQQQQ24s")
_NUMBER: Final = struct.Struct(">Q")
_LENGTH: Final = struct.Struct(">I")
_ROW_HEAD: Final = struct.Struct(">6QB")
_BALLOT_BYTES: Final = 24
_FLAG_AT: Final = 2 * _BALLOT_BYTES
_WHOLE: Final = 0x80
"""Beside the flag: all records of the chain are held."""
_STATE_AT: Final = _FLAG_AT + 1
_DIGEST_AT: Final = 8

_ENCODER: Final = msgspec.msgpack.Encoder()
_STATE: Final = msgspec.msgpack.Decoder(State)
_NAMES: Final = msgspec.msgpack.Decoder(list[bytes])
_PARENT: Final = msgspec.msgpack.Decoder(RecordRef | None)
_SCOPE_FLOOR: Final = msgspec.msgpack.Decoder(ScopeFloor)

_Decoded = TypeVar("_Decoded")


class Position(NamedTuple):
    """What every batch writes: how far the store has come."""

    mark: bytes
    batch: int = 0
    changes: int = 0
    changes_pruned: int = 0
    rows: int = 0
    generation_floor: int = 0
    greatest_ballot: Ballot = ZERO

    def pack(self) -> bytes:
        """The mark and the batch number come first."""
        return _POSITION.pack(*self[:-1], self.greatest_ballot.pack())

    @staticmethod
    def unpack(packed: bytes) -> Position:
        """The inverse of :meth:`pack`."""
        mark, batch, changes, pruned, rows, generation, greatest = _POSITION.unpack(packed)
        return Position(mark, batch, changes, pruned, rows, generation, Ballot.unpack(greatest))


class View:
    """Reads a tree as an acceptor does; satisfies :class:`objmeta.store.pages.Snapshot` and
    :class:`objmeta.store.inventories.Holdings` as well."""

    def __init__(self, tree: Tree, membership: Membership, position: Position) -> None:
        self._tree = tree
        self.membership = membership
        self.position = position
        self.generation_floor = position.generation_floor
        self.greatest_ballot = position.greatest_ballot
        self._floors: dict[bytes, ScopeFloor] = {}
        self._rows: dict[bytes, Row | None] = {}
        self._held: dict[tuple[bytes, bytes], tuple[RecordRef, ...]] = {}

    def scope_floor(self, scope: bytes) -> ScopeFloor:
        floor = self._floors.get(scope)
        if floor is None:
            stored = self._tree.get(_FLOOR + scope)
            floor = self._floors[scope] = NO_FLOOR if stored is None else _decoded(_SCOPE_FLOOR, stored)
        return floor

    def scope_floors(self, after: bytes, limit: int) -> tuple[tuple[bytes, ScopeFloor], ...]:
        found = islice(self._tree.items(_FLOOR + after + b"\0", _FLOORS_END), max(0, limit))
        return tuple((key[1:], _decoded(_SCOPE_FLOOR, stored)) for key, stored in found)

    def row(self, name: bytes) -> Row | None:
        rows = self._rows
        if name not in rows:
            try:
                stored = self._tree.get(_ROW + name)
                rows[name] = None if stored is None else _row(stored)
            except IntegrityError as error:
                raise RowDamaged(f"what is stored of a register cannot be read: {error}") from error
        return rows[name]

    def held(self, name: bytes, version_id: bytes) -> tuple[RecordRef, ...]:
        key = (name, version_id)
        held = self._held.get(key)
        if held is None:
            if not self._has_row(name):  # records are only ever stored together with a row
                return ()
            found = []
            prefix = _record_prefix(name) + _escaped(version_id)
            for at, _ in self._tree.items(_RECORD + prefix, _RECORD + _beyond(prefix)):
                (sequence,) = _NUMBER.unpack_from(at, 1 + len(prefix))
                found.append(RecordRef(sequence, version_id, at[1 + len(prefix) + _DIGEST_AT :]))
            held = self._held[key] = tuple(found)
        return held

    def records(self, name: bytes, refs: tuple[RecordRef, ...], with_data: bool) -> tuple[Record, ...]:
        found: list[Record] = []
        for ref in refs:
            key = _record_key(name, ref)
            stored = self._tree.get(_RECORD + key)
            if stored is not None:
                parent, body = _record(stored)
                data = (self._tree.get(_DATA + key) or b"") if with_data else b""
                found.append(Record(ref, _decoded(_PARENT, parent), body, data))
        return tuple(found)

    def changed(self, since: int, limit: int) -> list[bytes]:
        """Names under the first ``limit`` change numbers above ``since``."""
        names: list[bytes] = []
        for key, stored in self._tree.items(*changes_range(since, self.position.changes)):
            batch = _decoded(_NAMES, stored)
            (last,) = _NUMBER.unpack_from(key, 1)
            names += batch[max(0, since - (last - len(batch))) :]
            if len(names) >= limit:
                break
        return names[:limit]

    # -- For the pages ------------------------------------------------------------------------------------------------

    def rows(self, start: bytes, end: bytes, limit: int) -> Sequence[tuple[bytes, int, bytes, bytes]]:
        found: list[tuple[bytes, int, bytes, bytes]] = []
        for key, stored in self._tree.items(_ROW + start, _ROW + end if end else _ROWS_END):
            if len(stored) > _BALLOT_BYTES:
                found.append(_accepted(key[1:], stored))
                if len(found) == limit:
                    break
        return found

    def named_rows(self, names: Sequence[bytes]) -> Sequence[tuple[bytes, int, bytes, bytes]]:
        found: list[tuple[bytes, int, bytes, bytes]] = []
        for name in names:
            stored = self._tree.get(_ROW + name)
            if stored is not None and len(stored) > _BALLOT_BYTES:
                found.append(_accepted(name, stored))
        return found

    def named_record_rows(self, names: Sequence[bytes]) -> Iterator[StoredRecord]:
        for name in names:
            yield from self.record_rows(name, name)

    def record_rows(self, first: bytes, last: bytes) -> Iterator[StoredRecord]:
        prefix = b""
        for key, stored in self._tree.items(_RECORD + _record_prefix(first), _RECORD + _beyond(_record_prefix(last))):
            if not prefix or not key.startswith(prefix):
                name, at = _unescaped(key, 1)
                prefix = key[:at]
            version_id, at = _unescaped(key, len(prefix))
            (sequence,) = _NUMBER.unpack_from(key, at)
            parent, body = _record(stored)
            yield name, encoded_record(name, sequence, version_id, key[at + _DIGEST_AT :], parent, body)

    # -- For inventories ----------------------------------------------------------------------------------------------

    def held_rows(self, start: bytes, end: bytes) -> Iterator[HeldRow]:
        for key, stored in self._tree.items(_ROW + start, _ROW + end if end else _ROWS_END):
            length = len(stored)
            if length > _STATE_AT:
                flag = stored[_FLAG_AT] & ~_WHOLE
                tombstone = stored[_STATE_AT:] if flag == TOMBSTONE else None
                yield HeldRow(key[1:], stored[:_BALLOT_BYTES], stored[_BALLOT_BYTES:_FLAG_AT], flag, False, tombstone)
            else:
                yield HeldRow(key[1:], stored, None, None, damaged=length != _BALLOT_BYTES)

    def held_records(self, start: bytes, end: bytes, after: RecordRef | None) -> Iterator[NamedRef]:
        first = _record_prefix(start) if after is None else _record_key(start, after) + b"\0"
        for key, stored in self._tree.items(_RECORD + first, _RECORD + _record_prefix(end) if end else _DATA):
            name, at = _unescaped(key, 1)
            version_id, at = _unescaped(key, at)
            (sequence,) = _NUMBER.unpack_from(key, at)
            yield NamedRef(name, version_id, sequence, key[at + _DIGEST_AT :], _record(stored)[0])

    # -- Inside -------------------------------------------------------------------------------------------------------

    def _has_row(self, name: bytes) -> bool:
        if name in self._rows:
            return self._rows[name] is not None
        try:
            return self.row(name) is not None
        except RowDamaged:
            return True


class BatchView(View):
    """Satisfies :class:`objmeta.core.acceptor.AcceptorView`; what it writes waits in an overlay."""

    def __init__(self, overlay: Overlay, membership: Membership, position: Position) -> None:
        super().__init__(overlay, membership, position)
        self._overlay = overlay
        self.writes = overlay.writes
        """What waits to be written; None for a key to remove."""
        self._changed: list[bytes] = []
        self._count = position.rows

    def adopt(self, membership: Membership) -> None:
        self.membership = membership
        self._overlay.put(MEMBERSHIP_KEY, _ENCODER.encode(membership))

    def raise_generation_floor(self, generation: int) -> None:
        self.generation_floor = generation

    def put_scope_floor(self, scope: bytes, floor: ScopeFloor) -> None:
        self._floors[scope] = floor
        self._overlay.put(_FLOOR + scope, _ENCODER.encode(floor))

    def put_row(self, name: bytes, row: Row, state_changed: bool) -> None:
        if not self._has_row(name):
            self._count += 1
        self._rows[name] = row
        if row.promised > self.greatest_ballot:
            self.greatest_ballot = row.promised
        self._overlay.put(_ROW + name, _stored_row(row))
        if state_changed:
            self._changed.append(name)

    def erase(self, name: bytes) -> None:
        prefix = _record_prefix(name)
        for kind in (_RECORD, _DATA):
            for key, _ in list(self._tree.items(kind + prefix, kind + _beyond(prefix))):
                self._overlay.put(key, None)
        for held in [key for key in self._held if key[0] == name]:
            del self._held[held]
        if self._has_row(name):
            self._rows[name] = None
            self._overlay.put(_ROW + name, None)
            self._count -= 1
            self._changed.append(name)

    def put_records(self, name: bytes, records: tuple[Record, ...]) -> None:
        put, has_row = self._overlay.put, self._has_row(name)
        for record in records:
            ref = record.ref
            if has_row:
                held = self.held(name, ref.version_id)
                if ref in held:
                    continue
                self._held[name, ref.version_id] = tuple(sorted((*held, ref)))
            key = _record_key(name, ref)
            parent = _ENCODER.encode(record.parent)
            put(_RECORD + key, _LENGTH.pack(len(parent)) + parent + record.body)
            if record.data:
                put(_DATA + key, record.data)

    def drop_records(self, name: bytes, refs: tuple[RecordRef, ...]) -> None:
        for ref in refs:
            self._held.pop((name, ref.version_id), None)
            key = _record_key(name, ref)
            self._overlay.put(_RECORD + key, None)
            self._overlay.put(_DATA + key, None)

    def guarded_step(self, request: Request) -> Reply:
        """As :func:`objmeta.core.acceptor.step`, but damage on the way leaves nothing of the step and is no vote."""
        mark = self._overlay.mark()
        changes = len(self._changed)
        before = (self.membership, self.generation_floor, self.greatest_ballot, self._count)
        try:
            return step(self, request)
        except IntegrityError as error:
            self._overlay.undo(mark)
            del self._changed[changes:]
            self.membership, self.generation_floor, self.greatest_ballot, self._count = before
            for known in (self._floors, self._rows, self._held):
                known.clear()
            return refusal(request, Refusal.DAMAGED, f"{error.kind}: {error}")

    def finish(self) -> Position:
        """Add the names of what changed to what waits, and say which position the batch leads to."""
        changes = self.position.changes + len(self._changed)
        if self._changed:
            self._overlay.put(_change_key(changes), _ENCODER.encode(self._changed))
        return self.position._replace(
            batch=self.position.batch + 1,
            changes=changes,
            rows=self._count,
            generation_floor=self.generation_floor,
            greatest_ballot=self.greatest_ballot,
        )


def changes_range(after: int, to: int) -> tuple[bytes, bytes]:
    """The keys under which changes end, ``after < number <= to``, as a range."""
    return _change_key(after + 1), _change_key(to + 1)


def _change_key(number: int) -> bytes:
    return _CHANGE + _NUMBER.pack(number)


def _escaped(part: bytes) -> bytes:
    """``part`` with an end of its own, such that what begins a key sorts as it does by itself."""
    return part.replace(b"\0", b"\0\xff") + b"\0\0"


def _unescaped(key: bytes, at: int) -> tuple[bytes, int]:
    """The part of ``key`` that begins at ``at``, and where the next one does."""
    end = at
    while True:
        end = key.index(b"\0", end)
        if key[end + 1] == 0:
            return key[at:end].replace(b"\0\xff", b"\0"), end + 2
        end += 2


def _record_prefix(name: bytes) -> bytes:
    return _escaped(name)


def _record_key(name: bytes, ref: RecordRef) -> bytes:
    return _escaped(name) + _escaped(ref.version_id) + _NUMBER.pack(ref.sequence) + ref.digest


def _beyond(prefix: bytes) -> bytes:
    """The least key above all that begin with ``prefix``, which ends in a zero byte."""
    return prefix[:-1] + b"\1"


def _stored_row(row: Row) -> bytes:
    state = row.state
    if state is None:
        return row.promised.pack()
    flag = state.flag | (_WHOLE if row.whole else 0)
    return _ROW_HEAD.pack(*row.promised, *row.accepted, flag) + _ENCODER.encode(state)


def _accepted(name: bytes, stored: bytes) -> tuple[bytes, int, bytes, bytes]:
    """A row as pages have it."""
    return name, stored[_FLAG_AT] & ~_WHOLE, stored[_BALLOT_BYTES:_FLAG_AT], stored[_STATE_AT:]


def _row(stored: bytes) -> Row:
    promised = Ballot.unpack(stored[:_BALLOT_BYTES])
    if len(stored) == _BALLOT_BYTES:
        return Row(promised)
    accepted = Ballot.unpack(stored[_BALLOT_BYTES:_FLAG_AT])
    return Row(promised, accepted, _decoded(_STATE, stored[_STATE_AT:]), bool(stored[_FLAG_AT] & _WHOLE))


def _record(stored: bytes) -> tuple[bytes, bytes]:
    """The encoded parent and the body."""
    at = _LENGTH.size
    end = at + _LENGTH.unpack_from(stored)[0]
    return stored[at:end], stored[end:]


def _decoded(decoder: msgspec.msgpack.Decoder[_Decoded], stored: bytes) -> _Decoded:
    try:
        return decoder.decode(stored)
    except msgspec.MsgspecError as error:
        raise IntegrityError(f"a stored value is damaged ({error})") from error
