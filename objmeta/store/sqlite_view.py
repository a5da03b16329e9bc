"""One transaction of a SQLite store as an acceptor sees it.

Within the transaction what was read is kept, and what is written waits for :meth:`TransactionView.flush`, so that each
table is written by one statement per batch.  Nothing outlives the transaction.
"""

from __future__ import annotations

import sqlite3
from typing import Final, NamedTuple

import msgspec

from objmeta.core.ballot import ZERO, Ballot
from objmeta.core.messages import Record, RecordRef, Row, State

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
_PUT_TERM: Final = "INSERT OR REPLACE INTO terms VALUES (?, ?)"


class Floors(NamedTuple):
    """The floors of the store, read in the transaction."""

    ballot: Ballot
    generation: int
    sequence: int


class TransactionView:
    """Satisfies :class:`objmeta.core.acceptor.AcceptorView` while a transaction is open on ``cursor``."""

    def __init__(self, cursor: sqlite3.Cursor, floors: Floors) -> None:
        self._cursor = cursor
        self._floors = floors
        self._terms: dict[bytes, int] = {}
        self._rows: dict[bytes, Row | None] = {}
        self._held: dict[tuple[bytes, bytes], tuple[RecordRef, ...]] = {}
        self._touched: dict[bytes, None] = {}
        self._changed: list[tuple[bytes]] = []
        self._new_records: list[tuple[bytes, bytes, int, bytes, bytes, bytes, int | None]] = []
        self._new_data: list[tuple[int, bytes]] = []
        self._data_number = 0

    @property
    def ballot_floor(self) -> Ballot:
        return self._floors.ballot

    @property
    def generation_floor(self) -> int:
        return self._floors.generation

    @property
    def sequence_floor(self) -> int:
        return self._floors.sequence

    def term(self, scope: bytes) -> int:
        term = self._terms.get(scope)
        if term is None:
            row = self._cursor.execute("SELECT term FROM terms WHERE scope = ?", (scope,)).fetchone()
            term = self._terms[scope] = row[0] if row else 0
        return term

    def raise_term(self, scope: bytes, term: int) -> None:
        self._terms[scope] = term
        self._cursor.execute(_PUT_TERM, (scope, term))

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
        if state_changed:
            self._changed.append((name,))

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


def _stored(name: bytes, row: Row | None) -> tuple[bytes, bytes, bytes | None, int | None, bytes | None]:
    assert row is not None, "a row that was put is there"
    state = row.state
    if state is None:
        return name, row.promised.pack(), None, None, None
    return name, row.promised.pack(), row.accepted.pack(), state.flag, _ENCODER.encode(state)
