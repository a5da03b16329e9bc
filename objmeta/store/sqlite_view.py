"""One transaction of a SQLite store as an acceptor sees it.

Within the transaction what was read is kept, and what is written waits for :meth:`TransactionView.flush`, so that each
table is written by one statement per batch.  Nothing outlives the transaction.
"""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from itertools import starmap
from typing import Final, NamedTuple
from zlib import crc32

import msgspec

from objmeta.core.ballot import ZERO, Ballot
from objmeta.core.configuration import Membership
from objmeta.core.home import describe
from objmeta.core.messages import NO_FLOOR, Record, RecordRef, Row, ScopeFloor, State
from objmeta.errors import RowDamaged
from objmeta.store.checksums import agrees, floor_sum, is_sound, row_sum, store_sum

_ENCODER: Final = msgspec.msgpack.Encoder()
_STATE: Final = msgspec.msgpack.Decoder(State)
_PARENT: Final = msgspec.msgpack.Decoder(RecordRef | None)

_SELECT_ROW: Final = "SELECT name, promised, accepted, flag, whole, state, checksum FROM registers WHERE name = ?"
_SELECT_ANY_RECORD: Final = "SELECT 1 FROM records WHERE name = ? LIMIT 1"
_PUT_ROW: Final = "INSERT OR REPLACE INTO registers VALUES (?, ?, ?, ?, ?, ?, ?)"
_SELECT_HELD: Final = "SELECT sequence, digest FROM records WHERE name = ? AND version_id = ?"
_PUT_RECORD: Final = "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?)"
_SELECT_RECORD: Final = (
    "SELECT parent, body, data_number FROM records WHERE name = ? AND version_id = ? AND sequence = ? AND digest = ?"
)
_SELECT_DATA: Final = "SELECT bytes FROM data WHERE number = ?"
_DROP_DATA: Final = (
    "DELETE FROM data WHERE number = "
    "(SELECT data_number FROM records WHERE name = ? AND version_id = ? AND sequence = ? AND digest = ?)"
)
_DROP_RECORD: Final = "DELETE FROM records WHERE name = ? AND version_id = ? AND sequence = ? AND digest = ?"
_SELECT_FLOOR: Final = "SELECT scope, term, ballot, sequence, checksum FROM floors WHERE scope = ?"
_SELECT_FLOORS: Final = (
    "SELECT scope, term, ballot, sequence, checksum FROM floors WHERE scope > ? ORDER BY scope LIMIT ?"
)
_PUT_FLOOR: Final = "INSERT OR REPLACE INTO floors VALUES (?, ?, ?, ?, ?)"
_PUT_STORE: Final = "UPDATE store SET membership = ?, generation_floor = ?, greatest_ballot = ?, checksum = ?"
_PUT_CHANGE: Final = "INSERT INTO changes (name, checksum) VALUES (?, ?)"
_ERASE: Final = (
    "DELETE FROM data WHERE number IN (SELECT data_number FROM records WHERE name = ?)",
    "DELETE FROM records WHERE name = ?",
    "DELETE FROM registers WHERE name = ?",
)


class Identity(NamedTuple):
    """The one row about the store itself, read in the transaction."""

    acceptor_id: int
    membership: Membership
    generation_floor: int
    greatest_ballot: Ballot


class TransactionView:
    """Satisfies :class:`objmeta.core.acceptor.AcceptorView` while a transaction is open on ``cursor``."""

    def __init__(self, cursor: sqlite3.Cursor, identity: Identity) -> None:
        self._cursor = cursor
        self._stored = identity
        _, self.membership, self.generation_floor, self.greatest_ballot = identity
        self._floors: dict[bytes, ScopeFloor] = {}
        self._rows: dict[bytes, Row | None] = {}
        self._held: dict[tuple[bytes, bytes], tuple[RecordRef, ...]] = {}
        self._touched: dict[bytes, None] = {}
        self._changed: list[tuple[bytes, int]] = []
        self._new_records: list[tuple[bytes, bytes, int, bytes, bytes, bytes, int | None]] = []
        self._new_data: list[tuple[int, bytes]] = []
        self._data_number = 0

    def adopt(self, membership: Membership) -> None:
        self.membership = membership

    def raise_generation_floor(self, generation: int) -> None:
        self.generation_floor = generation

    def scope_floor(self, scope: bytes) -> ScopeFloor:
        floor = self._floors.get(scope)
        if floor is None:
            stored = self._cursor.execute(_SELECT_FLOOR, (scope,)).fetchone()
            floor = self._floors[scope] = _floor(*stored)[1] if stored else NO_FLOOR
        return floor

    def put_scope_floor(self, scope: bytes, floor: ScopeFloor) -> None:
        self._floors[scope] = floor
        stored = (scope, floor.term, floor.ballot.pack(), floor.sequence)
        self._cursor.execute(_PUT_FLOOR, (*stored, floor_sum(*stored)))

    def scope_floors(self, after: bytes, limit: int) -> tuple[tuple[bytes, ScopeFloor], ...]:
        found = self._cursor.execute(_SELECT_FLOORS, (after, limit)).fetchall()
        return tuple(starmap(_floor, found))

    def row(self, name: bytes) -> Row | None:
        rows = self._rows
        if name in rows:
            return rows[name]
        stored = self._cursor.execute(_SELECT_ROW, (name,)).fetchone()
        if stored is None:
            if self._cursor.execute(_SELECT_ANY_RECORD, (name,)).fetchone():
                raise RowDamaged(f"{describe(name)} is damaged: its records are there, but no row of it is found")
            rows[name] = None
            return None
        if not is_sound(*stored):
            raise RowDamaged(f"{describe(name)} is damaged: what is stored of it does not match its checksum")
        _, promised, accepted, _, whole, state, _ = stored
        row = rows[name] = Row(
            Ballot.unpack(promised),
            ZERO if accepted is None else Ballot.unpack(accepted),
            None if state is None else _STATE.decode(state),
            bool(whole),
        )
        return row

    def put_row(self, name: bytes, row: Row, state_changed: bool) -> None:
        self._rows[name] = row
        self._touched[name] = None
        if row.promised > self.greatest_ballot:
            self.greatest_ballot = row.promised
        if state_changed:
            self._changed.append((name, crc32(name)))

    def erase(self, name: bytes) -> None:
        self._flush_records()
        for statement in _ERASE:
            self._cursor.execute(statement, (name,))
        self._rows[name] = None
        self._touched.pop(name, None)
        self._changed.append((name, crc32(name)))
        for key in [key for key in self._held if key[0] == name]:
            del self._held[key]

    def held(self, name: bytes, version_id: bytes) -> tuple[RecordRef, ...]:
        key = (name, version_id)
        held = self._held.get(key)
        if held is None:
            if not self._has_row(name):
                return ()  # records are only ever stored together with a row
            found = self._cursor.execute(_SELECT_HELD, key).fetchall()
            held = tuple(RecordRef(sequence, version_id, digest) for sequence, digest in sorted(found))
            self._held[key] = held
        return held

    def records(self, name: bytes, refs: tuple[RecordRef, ...], with_data: bool) -> tuple[Record, ...]:
        self._flush_records()
        found: list[Record] = []
        for ref in refs:
            stored = self._cursor.execute(_SELECT_RECORD, (name, ref.version_id, ref.sequence, ref.digest)).fetchone()
            if stored is None:
                continue
            encoded, body, number = stored
            data = b""
            if with_data and number is not None:
                (data,) = self._cursor.execute(_SELECT_DATA, (number,)).fetchone() or (b"",)
            with suppress(msgspec.MsgspecError, TypeError):  # what is damaged is not held
                parent = _PARENT.decode(encoded)
                found.append(Record(ref, parent, body, data))
        return tuple(found)

    def put_records(self, name: bytes, records: tuple[Record, ...]) -> None:
        for record in records:
            ref = record.ref
            held = self.held(name, ref.version_id)
            if ref in held:
                continue
            self._held[name, ref.version_id] = tuple(sorted((*held, ref)))
            number = self._keep_data(record.data) if record.data else None
            parent = _ENCODER.encode(record.parent)
            self._new_records.append((name, ref.version_id, ref.sequence, ref.digest, parent, record.body, number))

    def drop_records(self, name: bytes, refs: tuple[RecordRef, ...]) -> None:
        self._flush_records()
        for ref in refs:
            self._held.pop((name, ref.version_id), None)
            key = (name, ref.version_id, ref.sequence, ref.digest)
            self._cursor.execute(_DROP_DATA, key)
            self._cursor.execute(_DROP_RECORD, key)

    def flush(self) -> int:
        """Write what waits; the number of state changes written."""
        self._flush_records()
        if self._touched:
            self._cursor.executemany(_PUT_ROW, [_stored(name, self._rows[name]) for name in self._touched])
        if self._changed:
            self._cursor.executemany(_PUT_CHANGE, self._changed)
        acceptor_id = self._stored.acceptor_id
        identity = Identity(acceptor_id, self.membership, self.generation_floor, self.greatest_ballot)
        if identity != self._stored:
            content = (_ENCODER.encode(self.membership), self.generation_floor, self.greatest_ballot.pack())
            self._cursor.execute(_PUT_STORE, (*content, store_sum(acceptor_id, *content)))
        return len(self._changed)

    def _has_row(self, name: bytes) -> bool:
        try:
            return self.row(name) is not None
        except RowDamaged:
            return True

    def _keep_data(self, data: bytes) -> int:
        if not self._data_number:
            (newest,) = self._cursor.execute("SELECT max(number) FROM data").fetchone()
            self._data_number = newest or 0
        self._data_number += 1
        self._new_data.append((self._data_number, data))
        return self._data_number

    def _flush_records(self) -> None:
        if self._new_records:
            self._cursor.executemany(_PUT_RECORD, self._new_records)
            self._new_records = []
        if self._new_data:
            self._cursor.executemany("INSERT INTO data VALUES (?, ?)", self._new_data)
            self._new_data = []


def _floor(scope: bytes, term: int, ballot: bytes, sequence: int, checksum: int) -> tuple[bytes, ScopeFloor]:
    if not agrees(checksum, floor_sum, scope, term, ballot, sequence):
        raise RowDamaged(f"the floors of a bucket (scope {scope!r}) do not match their checksum")
    return scope, ScopeFloor(term, Ballot.unpack(ballot), sequence)


def _stored(name: bytes, row: Row | None) -> tuple[bytes, bytes, bytes | None, int | None, int, bytes | None, bytes]:
    assert row is not None, "a row that was put is there"
    state, promised = row.state, row.promised.pack()
    if state is None:
        return name, promised, None, None, 0, None, row_sum(name, promised, None, None, 0, None)
    accepted, encoded, whole = row.accepted.pack(), _ENCODER.encode(state), int(row.whole)
    checksum = row_sum(name, promised, accepted, state.flag, whole, encoded)
    return name, promised, accepted, state.flag, whole, encoded, checksum
