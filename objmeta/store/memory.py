"""An acceptor's state in memory: for tests and the simulator, which decide themselves what "durable" means.

Rules.  A batch is atomic: when a step raises, nothing of the batch is left.  Nothing here is random, timed or ordered
by hash, so equal batches give equal replies and equal pages.

What was not synced.  With ``keep_undo=True`` the store remembers how to undo every batch until :meth:`MemoryStore.sync`
says that it is durable; :meth:`MemoryStore.lose_unsynced` undoes the rest, as a crash does.  Both cost no more than the
batches they concern.  :meth:`MemoryStore.snapshot` and :meth:`MemoryStore.restore` copy everything (O(rows)), for disks
that are rolled back.  Reads see unsynced state too: whoever simulates a sync must hold replies, to reads as well, until
it is done.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import msgspec

from objmeta.core.ballot import ZERO, Ballot
from objmeta.core.configuration import Configuration, ConfigurationTag, Membership
from objmeta.core.inventory import DigestRequest, Digests, Inventory, InventoryRequest
from objmeta.core.listing import ScanAnswer, ScanRequest
from objmeta.core.messages import NO_FLOOR, TOMBSTONE, Record, RecordRef, Reply, Row, ScopeFloor
from objmeta.interfaces import Changes, Envelope
from objmeta.store.inventories import HeldRow, NamedRef, digests, inventory
from objmeta.store.pages import StoredRecord, StoredRow, encoded_record, page
from objmeta.store.steps import answer, check_reads, check_tag, check_term

CHANGES_KEPT: Final = 100_000
"""Change numbers kept for :meth:`MemoryStore.changes`; a follower further behind reads everything anew."""

_ENCODER: Final = msgspec.msgpack.Encoder()

_Records = dict[bytes, dict[bytes, dict[RecordRef, Record]]]


class MemorySnapshot(NamedTuple):
    """A copy of all that a :class:`MemoryStore` holds; opaque."""

    membership: Membership
    rows: dict[bytes, Row]
    records: _Records
    floors: dict[bytes, ScopeFloor]
    generation_floor: int
    greatest_ballot: Ballot
    changes: list[bytes]
    pruned: int


class _View:
    """Satisfies :class:`objmeta.core.acceptor.AcceptorView`; remembers how to undo each write."""

    def __init__(self, membership: Membership) -> None:
        self.membership = membership
        self.generation_floor = 0
        self.greatest_ballot = ZERO
        self.floors: dict[bytes, ScopeFloor] = {}
        self.rows: dict[bytes, Row] = {}
        self.names: list[bytes] = []
        self.kept: _Records = {}
        self.changes: list[bytes] = []
        self.undo: list[Callable[[], object]] = []

    def adopt(self, membership: Membership) -> None:
        self._set("membership", membership)

    def raise_generation_floor(self, generation: int) -> None:
        self._set("generation_floor", generation)

    def scope_floor(self, scope: bytes) -> ScopeFloor:
        return self.floors.get(scope, NO_FLOOR)

    def put_scope_floor(self, scope: bytes, floor: ScopeFloor) -> None:
        before = self.floors.get(scope)
        self.floors[scope] = floor
        self.undo.append(lambda: self.floors.pop(scope) if before is None else self.floors.update({scope: before}))

    def scope_floors(self, after: bytes, limit: int) -> tuple[tuple[bytes, ScopeFloor], ...]:
        return tuple(sorted((scope, floor) for scope, floor in self.floors.items() if scope > after)[:limit])

    def _set(self, field: str, value: object) -> None:
        before = getattr(self, field)
        setattr(self, field, value)
        self.undo.append(lambda: setattr(self, field, before))

    def row(self, name: bytes) -> Row | None:
        return self.rows.get(name)

    def put_row(self, name: bytes, row: Row, state_changed: bool) -> None:
        before = self.rows.get(name)
        self.rows[name] = row
        if row.promised > self.greatest_ballot:
            self._set("greatest_ballot", row.promised)
        if before is None:
            insort(self.names, name)
            self.undo.append(lambda: (self.rows.pop(name), self.names.pop(bisect_left(self.names, name))))
        else:
            self.undo.append(lambda: self.rows.update({name: before}))
        if state_changed:
            self.changes.append(name)
            self.undo.append(self.changes.pop)

    def erase(self, name: bytes) -> None:
        before = self.rows.pop(name, None)
        records = self.kept.pop(name, None)
        if records is not None:
            self.undo.append(lambda: self.kept.update({name: records}))
        if before is not None:
            self.names.pop(bisect_left(self.names, name))
            self.undo.append(lambda: (self.rows.update({name: before}), insort(self.names, name)))
            self.changes.append(name)
            self.undo.append(self.changes.pop)

    def held(self, name: bytes, version_id: bytes) -> tuple[RecordRef, ...]:
        return tuple(sorted(self.kept.get(name, {}).get(version_id, ())))

    def records(self, name: bytes, refs: tuple[RecordRef, ...], with_data: bool) -> tuple[Record, ...]:
        own = self.kept.get(name, {})
        found = (own.get(ref.version_id, {}).get(ref) for ref in refs)
        return tuple(
            record if with_data else msgspec.structs.replace(record, data=b"") for record in found if record is not None
        )

    def put_records(self, name: bytes, records: tuple[Record, ...]) -> None:
        for record in records:
            ref = record.ref
            same_operation = self.kept.setdefault(name, {}).setdefault(ref.version_id, {})
            if ref not in same_operation:
                same_operation[ref] = record
                self.undo.append(lambda held=same_operation, ref=ref: held.pop(ref))  # type: ignore[misc]

    def drop_records(self, name: bytes, refs: tuple[RecordRef, ...]) -> None:
        own = self.kept.get(name, {})
        for ref in refs:
            same_operation = own.get(ref.version_id, {})
            record = same_operation.pop(ref, None)
            if record is not None:
                self.undo.append(lambda held=same_operation, record=record: held.update({record.ref: record}))  # type: ignore[misc]


class MemoryStore:
    """Satisfies :class:`objmeta.interfaces.AcceptorStore`."""

    def __init__(
        self,
        acceptor_id: int,
        configuration: Configuration,
        *,
        keep_undo: bool = False,
        changes_kept: int = CHANGES_KEPT,
    ) -> None:
        self._acceptor_id = acceptor_id
        self._keep_undo = keep_undo
        self._changes_kept = changes_kept
        self._pruned = 0
        self._view = _View(Membership(configuration))

    @property
    def acceptor_id(self) -> int:
        return self._acceptor_id

    @property
    def membership(self) -> Membership:
        return self._view.membership

    @property
    def configuration(self) -> Configuration:
        return self._view.membership.configuration

    def apply(self, batch: Sequence[Envelope]) -> list[Reply]:
        """Run the steps in order, all or none; an exception raised by a step leaves the store as it was."""
        undo = self._view.undo
        mark = len(undo)
        try:
            replies = answer(self._view, batch)
        except BaseException:
            self._undo_to(mark)
            raise
        if not self._keep_undo:
            self._settle()
        return replies

    def read(self, batch: Sequence[Envelope]) -> list[Reply]:
        """Answer requests that change nothing. Raises InvalidArgument for any other."""
        check_reads(batch)
        return answer(self._view, batch)

    def scan(self, tag: ConfigurationTag, request: ScanRequest) -> ScanAnswer:
        check_tag(self._view.membership.configuration.tag, tag)
        check_term(self._view, request)
        return page(self, request)

    def inventory(self, tag: ConfigurationTag, request: InventoryRequest) -> Inventory:
        check_tag(self._view.membership.configuration.tag, tag)
        return inventory(self, request)

    def digests(self, tag: ConfigurationTag, request: DigestRequest) -> Digests:
        check_tag(self._view.membership.configuration.tag, tag)
        return digests(self, request)

    def changes(self, since: int, limit: int) -> Changes:
        newest, epoch = self._pruned + len(self._view.changes), self.configuration.epoch
        if not self._pruned <= since <= newest:
            return Changes((), newest, True, newest, epoch)
        at = since - self._pruned
        changed = self._view.changes[at : at + max(1, limit)]
        return Changes(tuple(dict.fromkeys(changed)), since + len(changed), False, newest, epoch)

    def count(self) -> int:
        return len(self._view.rows)

    def tidy(self) -> None:
        """Nothing is left behind."""

    def close(self) -> None:
        """Nothing to release: what is held stays, as on a disk."""

    # -- For the simulator --------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Everything applied so far is durable from now on."""
        self._settle()

    def lose_unsynced(self) -> None:
        """Undo every batch applied since the last :meth:`sync`, as a crash does. Needs ``keep_undo=True``."""
        assert self._keep_undo, "MemoryStore(keep_undo=True) is needed to lose what was not synced"
        self._undo_to(0)

    def snapshot(self) -> MemorySnapshot:
        """A copy of everything, to come back to with :meth:`restore`."""
        view = self._view
        return MemorySnapshot(
            view.membership,
            dict(view.rows),
            _copy_records(view.kept),
            dict(view.floors),
            view.generation_floor,
            view.greatest_ballot,
            list(view.changes),
            self._pruned,
        )

    def restore(self, snapshot: MemorySnapshot) -> None:
        """Become what ``snapshot`` holds, floors and all, as a disk that was rolled back does."""
        self._view = view = _View(snapshot.membership)
        view.rows = dict(snapshot.rows)
        view.names = sorted(snapshot.rows)
        view.kept = _copy_records(snapshot.records)
        view.floors = dict(snapshot.floors)
        view.generation_floor = snapshot.generation_floor
        view.greatest_ballot = snapshot.greatest_ballot
        view.changes = list(snapshot.changes)
        self._pruned = snapshot.pruned

    # -- For the pages (objmeta.store.pages.Snapshot) -----------------------------------------------------------------

    def rows(self, start: bytes, end: bytes, limit: int) -> list[StoredRow]:
        view = self._view
        found: list[StoredRow] = []
        for index in range(bisect_left(view.names, start), len(view.names)):
            name = view.names[index]
            if (end and name >= end) or len(found) == limit:
                break
            row = view.rows[name]
            if row.state is not None:
                found.append(StoredRow(name, row.state.flag, row.accepted.pack(), _ENCODER.encode(row.state)))
        return found

    def named_rows(self, names: Sequence[bytes]) -> list[StoredRow]:
        return [row for name in names for row in self.rows(name, name + b"\0", 1)]

    def named_record_rows(self, names: Sequence[bytes]) -> Iterator[StoredRecord]:
        for name in names:
            yield from self.record_rows(name, name)

    def record_rows(self, first: bytes, last: bytes) -> Iterator[StoredRecord]:
        for name in self._names(first, last + b"\0"):
            own = self._view.kept.get(name, {})
            for version_id in sorted(own):
                for ref, record in sorted(own[version_id].items()):
                    parent = _ENCODER.encode(record.parent)
                    yield name, encoded_record(name, ref.sequence, version_id, ref.digest, parent, record.body)

    # -- For inventories (objmeta.store.inventories.Holdings) ---------------------------------------------------------

    def held_rows(self, start: bytes, end: bytes) -> Iterator[HeldRow]:
        for name in self._names(start, end):
            row = self._view.rows[name]
            if row.state is None:
                yield HeldRow(name, row.promised.pack(), None, None)
                continue
            flag = row.state.flag
            tombstone = _ENCODER.encode(row.state) if flag == TOMBSTONE else None
            yield HeldRow(name, row.promised.pack(), row.accepted.pack(), flag, False, tombstone)

    def held_records(self, start: bytes, end: bytes, after: RecordRef | None) -> Iterator[NamedRef]:
        beyond = None if after is None else (start, after.version_id, after.sequence, after.digest)
        for name in self._names(start, end):
            own = self._view.kept.get(name, {})
            for version_id in sorted(own):
                for ref, record in sorted(own[version_id].items()):
                    key = (name, version_id, ref.sequence, ref.digest)
                    if beyond is None or key > beyond:
                        yield NamedRef(*key, _ENCODER.encode(record.parent))

    # -- Inside -------------------------------------------------------------------------------------------------------

    def _names(self, start: bytes, end: bytes) -> Iterator[bytes]:
        names = self._view.names
        for index in range(bisect_left(names, start), bisect_left(names, end) if end else len(names)):
            yield names[index]

    def _undo_to(self, mark: int) -> None:
        undo = self._view.undo
        while len(undo) > mark:
            undo.pop()()

    def _settle(self) -> None:
        self._view.undo.clear()
        changes = self._view.changes
        if len(changes) > 2 * self._changes_kept:  # in big steps, so that a batch costs O(1) on average
            surplus = len(changes) - self._changes_kept
            del changes[:surplus]
            self._pruned += surplus


def _copy_records(records: _Records) -> _Records:
    copied = {name: {op: dict(held) for op, held in own.items() if held} for name, own in records.items()}
    return {name: own for name, own in copied.items() if own}
