"""One step of an acceptor: a request against what is stored, giving a reply and what to store.

Theory of operation.  An acceptor is a table of rows (one per register), a table of records, and floors.  A step reads
through an :class:`AcceptorView`, decides, and writes through the same view; the store that offers the view makes all
writes of a step durable together before the reply leaves (rule 2).  Every store, the embedded one, a node's and the
simulator's, runs this same code.

The rules, by number as in docs/protocol.md:

* prepare(b) succeeds iff ``b > max(promised, accepted, floor)``, strictly (rule 2);
* accept(b, v) succeeds iff ``b >= promised and b > accepted and b > floor``, or ``b == accepted`` with the identical
  value, a duplicate (rule 2); accepting b also promises b, or the higher ballot that the accept asks for (rule 10);
* a zero ballot is refused unless nothing is known of the register;
* what is proposed on a promise given along with an earlier accept comes without the question where its operations are
  held, so only an acceptor that can tell takes it: one that accepted the base and holds all of its chain; others do
  not tell of the promise (rule 10);
* a state is refused unless every record it names comes along or is held (rule 7);
* an operation whose record is held under a lower sequence than the first that is added is refused, and the refusal
  says where (at most once; one held higher up loses its place in the chain if this state is chosen);
* accepts are refused below the term of their scope, write-backs too, and new values below the generation floor;
* a register is erased iff its accepted ballot is the tombstone's own, the value is that tombstone and nothing higher is
  promised, in a configuration that is not joint; its ballot becomes a floor of its scope (rules 8 and 9).  A promise
  without a value goes iff the ballot floor covers it;
* a membership is adopted iff its epoch is higher; what names another configuration than the acceptor's is refused;
* a register whose row is damaged has no vote; an accept above every ballot ever promised here replaces it.
"""

from __future__ import annotations

from typing import Protocol

from objmeta.core.ballot import ZERO, Ballot
from objmeta.core.configuration import OUTSIDE, Membership
from objmeta.core.home import scope_of
from objmeta.core.messages import (
    TOMBSTONE,
    Accept,
    Accepted,
    Adopt,
    Adopted,
    Erase,
    Erased,
    Fetch,
    Fetched,
    Floors,
    Found,
    Prepare,
    Promise,
    Raised,
    RaiseFloors,
    RaiseTerm,
    Read,
    ReadFloors,
    Record,
    RecordRef,
    Refusal,
    Refused,
    Reply,
    Request,
    Row,
    ScopeFloor,
)
from objmeta.errors import RowDamaged

_NEVER_TOUCHED = Row()


class AcceptorView(Protocol):
    """What one step may read and write; all writes of a step become durable together or not at all."""

    @property
    def membership(self) -> Membership:
        """The configuration this acceptor votes in."""
        ...

    def adopt(self, membership: Membership) -> None:
        """Store another one."""
        ...

    @property
    def generation_floor(self) -> int:
        """Operations begun in a lower generation are refused."""
        ...

    def raise_generation_floor(self, generation: int) -> None:
        """Store a higher generation floor."""
        ...

    def scope_floor(self, scope: bytes) -> ScopeFloor:
        """The floors of a scope; all zero if none was ever raised."""
        ...

    def put_scope_floor(self, scope: bytes, floor: ScopeFloor) -> None:
        """Store a scope's floors."""
        ...

    def scope_floors(self, after: bytes, limit: int) -> tuple[tuple[bytes, ScopeFloor], ...]:
        """The first ``limit`` scopes above ``after`` that have a floor, in order."""
        ...

    @property
    def greatest_ballot(self) -> Ballot:
        """The greatest ballot ever promised or accepted for any register; kept by :meth:`put_row`."""
        ...

    def row(self, name: bytes) -> Row | None:
        """The row of a register, or None if there is none. Raises RowDamaged."""
        ...

    def put_row(self, name: bytes, row: Row, state_changed: bool) -> None:
        """Replace the row; ``state_changed`` is false when only the promise moved."""
        ...

    def erase(self, name: bytes) -> None:
        """Remove the row and every record of a register; counts as a change of it."""
        ...

    def held(self, name: bytes, version_id: bytes) -> tuple[RecordRef, ...]:
        """Where records of an operation are held, by sequence."""
        ...

    def records(self, name: bytes, refs: tuple[RecordRef, ...], with_data: bool) -> tuple[Record, ...]:
        """Those of the records that are held."""
        ...

    def put_records(self, name: bytes, records: tuple[Record, ...]) -> None:
        """Store records; one that is held already stays as it is."""
        ...

    def drop_records(self, name: bytes, refs: tuple[RecordRef, ...]) -> None:
        """Remove records that were proven to lie on no chain."""
        ...


def step(view: AcceptorView, request: Request) -> Reply:
    """Answer one request, writing what it changes through ``view``."""
    try:
        if isinstance(request, Accept):
            return _accept(view, request, view.row(request.name) or _NEVER_TOUCHED)
        if isinstance(request, Read):
            row = view.row(request.name) or _NEVER_TOUCHED
            return Found(row.accepted, row.state)
        if isinstance(request, Prepare):
            return _prepare(view, request)
        if isinstance(request, Fetch):
            return Fetched(view.records(request.name, request.refs, request.with_data))
        if isinstance(request, Erase):
            return _erase(view, request)
    except RowDamaged as damage:
        return _on_damage(view, request, damage)
    if isinstance(request, RaiseTerm):
        return _raise_term(view, request)
    if isinstance(request, RaiseFloors):
        return _raise_floors(view, request)
    if isinstance(request, ReadFloors):
        found = view.scope_floors(request.after, request.limit + 1)
        return Floors(view.generation_floor, found[: request.limit], len(found) > request.limit)
    return _adopt(view, request)


def _prepare(view: AcceptorView, request: Prepare) -> Promise | Refused:
    row = view.row(request.name)
    floor = view.scope_floor(scope_of(request.name))
    known = row or _NEVER_TOUCHED
    greatest = max(known.promised, known.accepted, floor.ballot)
    if request.ballot <= greatest:
        return Refused(request.ballot, Refusal.CONFLICT, greatest)
    view.put_row(request.name, Row(request.ballot, known.accepted, known.state, known.whole), False)
    held: tuple[RecordRef, ...] = ()
    if row is not None:
        for operation in request.operations:
            held += view.held(request.name, operation)
    return Promise(request.ballot, known.accepted, known.state, held, floor.sequence, view.generation_floor)


def _accept(view: AcceptorView, request: Accept, row: Row) -> Accepted | Refused:
    ballot = request.ballot
    floor = view.scope_floor(scope_of(request.name))
    if ballot == row.accepted and ballot > floor.ballot and row.state == request.state:
        _take_history(view, request, row)
        return Accepted(ballot, _following(request, row.promised, row.whole))  # a duplicate, answered again
    if ballot.counter == 0 and (floor.sequence or row != _NEVER_TOUCHED):
        # Whoever uses the zero ballot knows neither this floor nor what happened to the register since.
        return Refused(ballot, Refusal.CONFLICT, max(row.promised, row.accepted, floor.ballot))
    if ballot < row.promised or ballot <= row.accepted or ballot <= floor.ballot:
        return Refused(ballot, Refusal.CONFLICT, max(row.promised, row.accepted, floor.ballot))
    if request.based_on != ZERO and (row.accepted != request.based_on or not row.whole):
        return Refused(ballot, Refusal.CONFLICT, max(row.promised, floor.ballot))
    fence = request.fence
    if fence is not None and fence.term < view.scope_floor(fence.scope).term:
        return Refused(ballot, Refusal.STALE_TERM)
    if request.generation is not None and request.generation < view.generation_floor:
        return Refused(ballot, Refusal.STALE_GENERATION)
    refs, records = request.state.refs, request.records
    if row is _NEVER_TOUCHED and len(refs) == len(records) == 1 and refs[0] == records[0].ref:
        # A first write. The rules below come to the same: of a register without a row no record is held.
        whole = records[0].parent is None
    else:
        brought = {record.ref: record for record in records}
        for ref in refs:
            held = view.held(request.name, ref.version_id)
            if held and (other := tuple(h for h in held if h.sequence < refs[0].sequence and h not in request.dead)):
                return Refused(ballot, Refusal.HELD_ELSEWHERE, held=other)
            if ref not in brought and (ref not in held or ref in request.dead):
                return Refused(ballot, Refusal.RECORD_MISSING)
        whole = _whole_after(view, request, row, brought)
    if request.dead:
        view.drop_records(request.name, request.dead)
    promised = max(ballot, request.following)
    view.put_records(request.name, records)
    view.put_row(request.name, Row(promised, ballot, request.state, whole), True)
    return Accepted(ballot, _following(request, promised, whole))


def _whole_after(view: AcceptorView, request: Accept, row: Row, brought: dict[RecordRef, Record]) -> bool:
    """Whether the chain of the request's state is held: it goes on from one that is, or came along to its beginning."""
    refs = request.state.refs
    own = row.state.refs[-1] if row.state is not None and row.state.refs else None
    if not refs or refs[-1] == own:
        return row.whole
    if refs[0] not in brought:
        (brought[refs[0]],) = view.records(request.name, refs[:1], False)
    cursor: RecordRef | None = refs[0]
    while cursor in brought:
        cursor = brought[cursor].parent
    return cursor is None or (row.whole and cursor == own)


def _take_history(view: AcceptorView, request: Accept, row: Row) -> None:
    """Store what a duplicate brings of the chain that is not held yet, and see whether that completes it."""
    if not request.records:
        return
    view.put_records(request.name, request.records)
    if row.whole:
        return
    cursor: RecordRef | None = request.state.refs[-1] if request.state.refs else None
    while cursor is not None:
        held = view.records(request.name, (cursor,), False)
        if not held:
            return
        cursor = held[0].parent
    view.put_row(request.name, Row(row.promised, row.accepted, row.state, True), False)


def _following(request: Accept, promised: Ballot, whole: bool) -> Ballot:
    """What is told of the promise. Who would refuse the proposal that is based on it must not be counted on for it."""
    return promised if whole and request.following == promised else ZERO


def _erase(view: AcceptorView, request: Erase) -> Erased | Refused:
    if view.membership.configuration.is_joint:
        return Refused(request.ballot, Refusal.CONFIGURATION, detail="nothing is erased while members change")
    name, ballot = request.name, request.ballot
    scope = scope_of(name)
    floor = view.scope_floor(scope)
    row = view.row(name)
    if row is None:
        return Erased(ballot, ballot <= floor.ballot)
    if row.state is None and row.promised <= min(ballot, floor.ballot):
        # A promise alone says: nothing at or below it. The floor says that already, and for good, so nothing is lost
        # here; that it stands at all acceptors, and so in every later configuration, is for the sender to see to.
        view.erase(name)
        return Erased(ballot, True)
    if row.accepted != ballot or row.promised > ballot or row.state is None or row.state.flag != TOMBSTONE:
        return Erased(ballot, False)
    sequence = row.state.refs[-1].sequence if row.state.refs else 0
    view.put_scope_floor(scope, floor.raised(ScopeFloor(0, ballot, sequence)))
    view.erase(name)
    return Erased(ballot, True)


def _on_damage(view: AcceptorView, request: Request, damage: RowDamaged) -> Reply:
    greatest = view.greatest_ballot
    ballot = request.ballot if isinstance(request, Prepare | Accept | Erase) else ZERO
    if isinstance(request, Accept) and ballot > greatest:
        return _accept(view, request, Row(greatest, greatest, None))
    return Refused(ballot, Refusal.DAMAGED, greatest, detail=f"{damage.kind}: {damage}")


def _raise_term(view: AcceptorView, request: RaiseTerm) -> Raised:
    floor = view.scope_floor(request.scope)
    if request.term > floor.term:
        floor = floor.raised(ScopeFloor(request.term))
        view.put_scope_floor(request.scope, floor)
    return Raised(floor.term)


def _raise_floors(view: AcceptorView, request: RaiseFloors) -> Floors:
    if request.generation > view.generation_floor:
        view.raise_generation_floor(request.generation)
    for scope, floor in request.scopes:
        known = view.scope_floor(scope)
        raised = known.raised(floor)
        if raised != known:
            view.put_scope_floor(scope, raised)
    return Floors(view.generation_floor)


def _adopt(view: AcceptorView, request: Adopt) -> Adopted | Refused:
    own, new = view.membership.configuration, request.membership.configuration
    if own.store_id != new.store_id:
        return Refused(ZERO, Refusal.CONFIGURATION, detail="this acceptor belongs to another store")
    if new.epoch > own.epoch:
        if own.epoch == OUTSIDE and not request.joining:
            return Refused(ZERO, Refusal.CONFIGURATION, detail="this acceptor has not been given its floors yet")
        view.adopt(request.membership)
    return Adopted(view.membership)
