"""One transaction of a SQLite store as an acceptor sees it.

Within the transaction what was read is kept, and what is written waits for :meth:`TransactionView.flush`, so that each
table is written by one statement per batch.  Nothing outlives the transaction.
"""

from __future__ import annotations

import sqlite3
from typing import Final, NamedTuple

import msgspec

from objmeta.core.ballot import ZERO, Ballot
from objmeta.core.configuration import Membership
from objmeta.core.messages import NO_FLOOR, Record, RecordRef, Row, ScopeFloor, State

_ENCODER: Final = msgspec.msgpack.Encoder()
_STATE: Final = msgspec.msgpack.Decoder(State)
_PARENT: Final = msgspec.msgpack.Decoder(RecordRef | None)

_SELECT_ROW: Final = "SELECT promised, accepted, state FROM registers WHERE name = ?"
_PUT_ROW: Final = "INSERT OR REPLACE INTO registers VALUES (?, ?, ?, ?, ?)"
_SELECT_HELD: Final = "SELECT sequence, digest FROM records WHERE name = ? AND version_id = ?"
_PUT_RECORD: Final = "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?)"
_SELECT_RECORD: Final = (
    "SELECT parent, body, data_number FROM records WHERE name = ? AND version_id = ? AND sequence = ? AND digest = ?"
)
_DROP_DATA: Final = (
    "DELETE FROM data WHERE number = "
    "(SELECT data_number FROM records WHERE name = ? AND version_id = ? AND sequence = ? AND digest = ?)"
)
_DROP_RECORD: Final = "DELETE FROM records WHERE name = ? AND version_id = ? AND sequence = ? AND digest = ?"
_SELECT_FLOOR: Final = "SELECT term, ballot, sequence FROM floors WHERE scope = ?"
_SELECT_FLOORS: Final = "SELECT scope, term, ballot, sequence FROM floors WHERE scope > ? ORDER BY scope LIMIT ?"
_PUT_FLOOR: Final = "INSERT OR REPLACE INTO floors VALUES (?, ?, ?, ?)"
_PUT_STORE: Final = "UPDATE store SET membership = ?, generation_floor = ?, greatest_ballot = ?"
_ERASE: Final = (
    "DELETE FROM data WHERE number IN (SELECT data_number FROM records WHERE name = ?)",
    "DELETE FROM records WHERE name = ?",
    "DELETE FROM registers WHERE name = ?",
)


class Identity(NamedTuple):
    """The one row about the store itself, read in the transaction."""

    membership: Membership
    generation_floor: int
    greatest_ballot: Ballot


class TransactionView:
    """Satisfies :class:`objmeta.core.acceptor.AcceptorView` while a transaction is open on ``cursor``."""

    def __init__(self, cursor: sqlite3.Cursor, identity: Identity) -> None:
        self._cursor = cursor
        self._stored = identity
        self.membership, self.generation_floor, self.greatest_ballot = identity
        self._floors: dict[bytes, ScopeFloor] = {}
        self._rows: dict[bytes, Row | None] = {}
        self._held: dict[tuple[bytes, bytes], tuple[RecordRef, ...]] = {}
        self._touched: dict[bytes, None] = {}
        self._changed: list[tuple[bytes]] = []
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
            floor = self._floors[scope] = _floor(*stored) if stored else NO_FLOOR
        return floor

    def put_scope_floor(self, scope: bytes, floor: ScopeFloor) -> None:
        self._floors[scope] = floor
        self._cursor.execute(_PUT_FLOOR, (scope, floor.term, floor.ballot.pack(), floor.sequence))

    def scope_floors(self, after: bytes, limit: int) -> tuple[tuple[bytes, ScopeFloor], ...]:
        found = self._cursor.execute(_SELECT_FLOORS, (after, limit)).fetchall()
        return tuple((scope, _floor(*floor)) for scope, *floor in found)

    def row(self, name: bytes) -> Row | None:
        rows = self._rows
        if name in rows:
            return rows[name]
        stored = self._cursor.execute(_SELECT_ROW, (name,)).fetchone()
        row = None
        if stored is not None:
            promised, accepted, state = stored
            row = Row(
                Ballot.unpack(promised),
                ZERO if accepted is None else Ballot.unpack(accepted),
                None if state is None else _STATE.decode(state),
            )
        rows[name] = row
        return row

    def put_row(self, name: bytes, row: Row, state_changed: bool) -> None:
        self._rows[name] = row
        self._touched[name] = None
        if row.promised > self.greatest_ballot:
            self.greatest_ballot = row.promised
        if state_changed:
            self._changed.append((name,))

    def erase(self, name: bytes) -> None:
        self._flush_records()
        for statement in _ERASE:
            self._cursor.execute(statement, (name,))
        self._rows[name] = None
        self._touched.pop(name, None)
        self._changed.append((name,))
        for key in [key for key in self._held if key[0] == name]:
            del self._held[key]

    def held(self, name: bytes, version_id: bytes) -> tuple[RecordRef, ...]:
        key = (name, version_id)
        held = self._held.get(key)
        if held is None:
            if self.row(name) is None:
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
            parent, body, number = stored
            data = b""
            if with_data and number is not None:
                (data,) = self._cursor.execute("SELECT bytes FROM data WHERE number = ?", (number,)).fetchone()
            found.append(Record(ref, _PARENT.decode(parent), body, data))
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
            self._cursor.executemany("INSERT INTO changes (name) VALUES (?)", self._changed)
        identity = Identity(self.membership, self.generation_floor, self.greatest_ballot)
        if identity != self._stored:
            encoded = _ENCODER.encode(self.membership)
            self._cursor.execute(_PUT_STORE, (encoded, self.generation_floor, self.greatest_ballot.pack()))
        return len(self._changed)

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


def _floor(term: int, ballot: bytes, sequence: int) -> ScopeFloor:
    return ScopeFloor(term, Ballot.unpack(ballot), sequence)


def _stored(name: bytes, row: Row | None) -> tuple[bytes, bytes, bytes | None, int | None, bytes | None]:
    assert row is not None, "a row that was put is there"
    state = row.state
    if state is None:
        return name, row.promised.pack(), None, None, None
    return name, row.promised.pack(), row.accepted.pack(), state.flag, _ENCODER.encode(state)
