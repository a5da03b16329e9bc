"""A simulated acceptor: the real acceptor step over a virtual disk.

Steps change the volatile table at once and wait for a sync; what waits together shares one.  Replies leave only after
the sync that covers them.  A crash keeps what was synced and, of the steps that were not, either none, all, or the
first few (a log is written in order).  Reads and scans see durable state only, as the interface demands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from objmeta.core import acceptor
from objmeta.core.ballot import ZERO
from objmeta.core.configuration import Configuration, ConfigurationTag, Membership, single_set
from objmeta.core.inventory import DigestRequest, Digests, Inventory, InventoryRequest
from objmeta.core.listing import (
    END,
    NamedRecord,
    ScanAnswer,
    ScanRequest,
    ScanRow,
    common_prefix,
    encode_records,
    encode_rows,
    successor,
)
from objmeta.core.messages import (
    LIVE,
    NO_FLOOR,
    TOMBSTONE,
    WRITES,
    Record,
    RecordRef,
    Reply,
    Request,
    Row,
    ScopeFloor,
)
from objmeta.store.inventories import HeldRow, NamedRef, digests, inventory
from objmeta.store.steps import answer, check_tag, check_term

WITNESS_LOOKS = 4
"""How many rows under a common prefix are looked at for a live witness: few, so that the hint is often wrong."""

_ALONE = Membership(single_set(bytes(16), (1,)))


class Table:
    """Rows, records and terms; an :class:`objmeta.core.acceptor.AcceptorView`."""

    def __init__(self, membership: Membership = _ALONE) -> None:
        self.membership = membership
        self.generation_floor = 0
        self.greatest_ballot = ZERO
        self.floors: dict[bytes, ScopeFloor] = {}
        self.rows: dict[bytes, Row] = {}
        self.kept: dict[bytes, dict[RecordRef, Record]] = {}

    def copy(self) -> Table:
        """An independent table with the same content."""
        table = Table(self.membership)
        table.generation_floor = self.generation_floor
        table.greatest_ballot = self.greatest_ballot
        table.floors = dict(self.floors)
        table.rows = dict(self.rows)
        table.kept = {name: dict(records) for name, records in self.kept.items()}
        return table

    def adopt(self, membership: Membership) -> None:
        self.membership = membership

    def raise_generation_floor(self, generation: int) -> None:
        self.generation_floor = generation

    def scope_floor(self, scope: bytes) -> ScopeFloor:
        return self.floors.get(scope, NO_FLOOR)

    def put_scope_floor(self, scope: bytes, floor: ScopeFloor) -> None:
        self.floors[scope] = floor

    def scope_floors(self, after: bytes, limit: int) -> tuple[tuple[bytes, ScopeFloor], ...]:
        return tuple(sorted((scope, floor) for scope, floor in self.floors.items() if scope > after)[:limit])

    def row(self, name: bytes) -> Row | None:
        return self.rows.get(name)

    def put_row(self, name: bytes, row: Row, state_changed: bool) -> None:
        self.rows[name] = row
        self.greatest_ballot = max(self.greatest_ballot, row.promised)

    def erase(self, name: bytes) -> None:
        self.rows.pop(name, None)
        self.kept.pop(name, None)

    def held(self, name: bytes, version_id: bytes) -> tuple[RecordRef, ...]:
        return tuple(sorted(ref for ref in self.kept.get(name, ()) if ref.version_id == version_id))

    def records(self, name: bytes, refs: tuple[RecordRef, ...], with_data: bool) -> tuple[Record, ...]:
        kept = self.kept.get(name, {})
        found = [kept[ref] for ref in refs if ref in kept]
        return tuple(found if with_data else [Record(r.ref, r.parent, r.body) for r in found])

    def put_records(self, name: bytes, records: tuple[Record, ...]) -> None:
        kept = self.kept.setdefault(name, {})
        for record in records:
            kept.setdefault(record.ref, record)

    def drop_records(self, name: bytes, refs: tuple[RecordRef, ...]) -> None:
        kept = self.kept.setdefault(name, {})
        for ref in refs:
            kept.pop(ref, None)

    def scan(self, request: ScanRequest) -> ScanAnswer:
        """One page (see :mod:`objmeta.core.listing`)."""
        names = sorted(name for name, row in self.rows.items() if row.state is not None)
        rows: list[ScanRow] = []
        covered, skip_below = END, request.start
        for name in names:
            if name < skip_below:
                continue
            if request.end and name >= request.end:
                break
            if len(rows) >= request.limit:
                covered = name
                break
            prefix = common_prefix(name, request.delimiter, request.prefix_length)
            if prefix is None:
                rows.append(self._scan_row(name, False))
                continue
            looked = [n for n in names if n >= name and n.startswith(prefix)][:WITNESS_LOOKS]
            live = (n for n in looked if self._scan_row(n, True).state.flag == LIVE)
            rows.append(self._scan_row(next(live, name), True))
            skip_below = successor(prefix)
            if not skip_below:
                break
        records: list[NamedRecord] = []
        if request.with_records:
            records = [
                NamedRecord(row.name, Record(record.ref, record.parent, record.body))
                for row in rows
                for _, record in sorted(self.kept.get(row.name, {}).items())
            ]
        return ScanAnswer(encode_rows(rows), covered, encode_records(records))

    def held_rows(self, start: bytes, end: bytes) -> Iterator[HeldRow]:
        """For inventories (:class:`objmeta.store.inventories.Holdings`)."""
        for name in self._names(start, end):
            row = self.rows[name]
            if row.state is None:
                yield HeldRow(name, row.promised.pack(), None, None)
                continue
            flag = row.state.flag
            tombstone = msgspec.msgpack.encode(row.state) if flag == TOMBSTONE else None
            yield HeldRow(name, row.promised.pack(), row.accepted.pack(), flag, False, tombstone)

    def held_records(self, start: bytes, end: bytes, after: RecordRef | None) -> Iterator[NamedRef]:
        beyond = None if after is None else (start, after.version_id, after.sequence, after.digest)
        for name in self._names(start, end):
            kept = self.kept.get(name, {})
            for ref in sorted(kept, key=lambda ref: (ref.version_id, ref.sequence, ref.digest)):
                key = (name, ref.version_id, ref.sequence, ref.digest)
                if beyond is None or key > beyond:
                    yield NamedRef(*key, msgspec.msgpack.encode(kept[ref].parent))

    def _names(self, start: bytes, end: bytes) -> list[bytes]:
        return sorted(name for name in self.rows if name >= start and (not end or name < end))

    def _scan_row(self, name: bytes, witness: bool) -> ScanRow:
        row = self.rows[name]
        assert row.state is not None
        return ScanRow(name, row.accepted, row.state, witness)


Entry = tuple[Any, ...]
"""One write of a step, as the log keeps it: the method of :class:`Table` and its arguments."""


class Logged(Table):
    """A volatile table whose steps write a log of what they changed."""

    def __init__(self, content: Table) -> None:
        super().__init__(content.membership)
        self.generation_floor, self.greatest_ballot = content.generation_floor, content.greatest_ballot
        self.floors, self.rows, self.kept = content.floors, content.rows, content.kept
        self.log: list[Entry] = []

    def adopt(self, membership: Membership) -> None:
        super().adopt(membership)
        self.log.append((Table.adopt, membership))

    def raise_generation_floor(self, generation: int) -> None:
        super().raise_generation_floor(generation)
        self.log.append((Table.raise_generation_floor, generation))

    def put_scope_floor(self, scope: bytes, floor: ScopeFloor) -> None:
        super().put_scope_floor(scope, floor)
        self.log.append((Table.put_scope_floor, scope, floor))

    def put_row(self, name: bytes, row: Row, state_changed: bool) -> None:
        super().put_row(name, row, state_changed)
        self.log.append((Table.put_row, name, row, state_changed))

    def erase(self, name: bytes) -> None:
        super().erase(name)
        self.log.append((Table.erase, name))

    def put_records(self, name: bytes, records: tuple[Record, ...]) -> None:
        if records:
            super().put_records(name, records)
            self.log.append((Table.put_records, name, records))

    def drop_records(self, name: bytes, refs: tuple[RecordRef, ...]) -> None:
        super().drop_records(name, refs)
        self.log.append((Table.drop_records, name, refs))


def replay(table: Table, log: Iterable[Entry]) -> None:
    """Make logged writes part of a table."""
    for method, *arguments in log:
        method(table, *arguments)


class Disk:
    """What survives a crash, and what does not yet."""

    def __init__(self, membership: Membership) -> None:
        self.durable = Table(membership)
        self.volatile = Logged(Table(membership))
        self.waiting: list[list[Entry]] = []

    def run(self, step: Callable[[acceptor.AcceptorView, Request], Reply], request: Request) -> Reply:
        """One step on the volatile table; its writes wait for a sync."""
        self.volatile.log = []
        reply = step(self.volatile, request)
        self.waiting.append(self.volatile.log)
        return reply

    def sync(self, steps: int) -> list[Entry]:
        """Make the oldest waiting steps durable; returns what they wrote."""
        written = [entry for log in self.waiting[:steps] for entry in log]
        del self.waiting[:steps]
        replay(self.durable, written)
        return written

    def crash(self, survivors: int) -> list[Entry]:
        """Lose all that is not durable but the first ``survivors`` waiting steps, which had reached the disk."""
        written = self.sync(survivors)
        self.waiting.clear()
        self.volatile = Logged(self.durable.copy())
        return written


class AcceptorHooks:
    """How broken variants change an acceptor; this one changes nothing."""

    def step(self, view: acceptor.AcceptorView, request: Request) -> Reply:
        """Stands for :func:`objmeta.core.acceptor.step`."""
        return acceptor.step(view, request)

    def durable(self, log: list[Entry]) -> list[Entry]:
        """Which writes of a step reach the disk."""
        return log

    replies_before_sync: bool = False


class SimStore:
    """One acceptor's state and identity; the world around it decides when it syncs and crashes."""

    def __init__(self, acceptor_id: int, configuration: Configuration, hooks: AcceptorHooks) -> None:
        self.acceptor_id = acceptor_id
        self.hooks = hooks
        self.disk = Disk(Membership(configuration))

    def apply(self, tag: ConfigurationTag, request: Request) -> Reply:
        """One step; durable after the next sync."""
        assert isinstance(request, WRITES)
        reply = self.disk.run(lambda view, asked: answer(view, [(tag, asked)], self.hooks.step)[0], request)
        self.disk.waiting[-1] = self.hooks.durable(self.disk.waiting[-1])
        return reply

    def read(self, tag: ConfigurationTag, request: Request) -> Reply:
        """Answer a request that changes nothing."""
        return answer(self.disk.durable, [(tag, request)], self.hooks.step)[0]

    def scan(self, tag: ConfigurationTag, request: ScanRequest) -> ScanAnswer:
        """One page of durable state."""
        check_tag(self.disk.durable.membership.configuration.tag, tag)
        check_term(self.disk.durable, request)
        return self.disk.durable.scan(request)

    def inventory(self, tag: ConfigurationTag, request: InventoryRequest) -> Inventory:
        """One page of what is durable."""
        check_tag(self.disk.durable.membership.configuration.tag, tag)
        return inventory(self.disk.durable, request)

    def digests(self, tag: ConfigurationTag, request: DigestRequest) -> Digests:
        """Digests of what is durable."""
        check_tag(self.disk.durable.membership.configuration.tag, tag)
        return digests(self.disk.durable, request)
