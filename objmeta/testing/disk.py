"""A simulated acceptor: the real acceptor step over a virtual disk.

Steps change the volatile table at once and wait for a sync; what waits together shares one.  Replies leave only after
the sync that covers them.  A crash keeps what was synced and, of the steps that were not, either none, all, or the
first few (a log is written in order).  Reads and scans see durable state only, as the interface demands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from objmeta.core import acceptor
from objmeta.core.ballot import ZERO, Ballot
from objmeta.core.configuration import Configuration, ConfigurationTag
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
    WRITES,
    Record,
    RecordRef,
    Refusal,
    Refused,
    Reply,
    Request,
    Row,
)
from objmeta.errors import ConfigurationMismatch
from objmeta.store.steps import check_term

WITNESS_LOOKS = 4
"""How many rows under a common prefix are looked at for a live witness: few, so that the hint is often wrong."""


class Table:
    """Rows, records and terms; an :class:`objmeta.core.acceptor.AcceptorView`."""

    ballot_floor: Ballot = ZERO
    generation_floor: int = 0
    sequence_floor: int = 0

    def __init__(self) -> None:
        self.rows: dict[bytes, Row] = {}
        self.kept: dict[bytes, dict[RecordRef, Record]] = {}
        self.terms: dict[bytes, int] = {}

    def copy(self) -> Table:
        """An independent table with the same content."""
        table = Table()
        table.rows = dict(self.rows)
        table.kept = {name: dict(records) for name, records in self.kept.items()}
        table.terms = dict(self.terms)
        return table

    def term(self, scope: bytes) -> int:
        return self.terms.get(scope, 0)

    def raise_term(self, scope: bytes, term: int) -> None:
        self.terms[scope] = term

    def row(self, name: bytes) -> Row | None:
        return self.rows.get(name)

    def put_row(self, name: bytes, row: Row, state_changed: bool) -> None:
        self.rows[name] = row

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

    def _scan_row(self, name: bytes, witness: bool) -> ScanRow:
        row = self.rows[name]
        assert row.state is not None
        return ScanRow(name, row.accepted, row.state, witness)


Entry = tuple[Any, ...]
"""One write of a step, as the log keeps it: the method of :class:`Table` and its arguments."""


class Logged(Table):
    """A volatile table whose steps write a log of what they changed."""

    def __init__(self, content: Table) -> None:
        super().__init__()
        self.rows, self.kept, self.terms = content.rows, content.kept, content.terms
        self.log: list[Entry] = []

    def raise_term(self, scope: bytes, term: int) -> None:
        super().raise_term(scope, term)
        self.log.append((Table.raise_term, scope, term))

    def put_row(self, name: bytes, row: Row, state_changed: bool) -> None:
        super().put_row(name, row, state_changed)
        self.log.append((Table.put_row, name, row, state_changed))

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

    def __init__(self) -> None:
        self.durable = Table()
        self.volatile = Logged(Table())
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
        self.configuration = configuration
        self.hooks = hooks
        self.disk = Disk()

    def apply(self, tag: ConfigurationTag, request: Request) -> Reply:
        """One step; durable after the next sync."""
        if tag != self.configuration.tag:
            assert isinstance(request, WRITES)
            ballot = getattr(request, "ballot", ZERO)
            self.disk.waiting.append([])
            return Refused(ballot, Refusal.CONFIGURATION)
        reply = self.disk.run(self.hooks.step, request)
        self.disk.waiting[-1] = self.hooks.durable(self.disk.waiting[-1])
        return reply

    def read(self, tag: ConfigurationTag, request: Request) -> Reply:
        """Answer a request that changes nothing."""
        if tag != self.configuration.tag:
            return Refused(ZERO, Refusal.CONFIGURATION)
        return self.hooks.step(self.disk.durable, request)

    def scan(self, tag: ConfigurationTag, request: ScanRequest) -> ScanAnswer:
        """One page of durable state."""
        if tag != self.configuration.tag:
            raise ConfigurationMismatch("the acceptor belongs to another store")
        check_term(self.disk.durable, request)
        return self.disk.durable.scan(request)
