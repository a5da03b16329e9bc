"""One step of an acceptor: a request against what is stored, giving a reply and what to store.

Theory of operation.  An acceptor is a table of rows (one per register), a table of records, and floors.  A step reads
through an :class:`AcceptorView`, decides, and writes through the same view; the store that offers the view makes all
writes of a step durable together before the reply leaves (rule 2).  Every store, the embedded one, a node's and the
simulator's, runs this same code.

The rules, by number as in docs/protocol.md:

* prepare(b) succeeds iff ``b > max(promised, accepted, floor)``, strictly (rule 2);
* accept(b, v) succeeds iff ``b >= promised and b > accepted and b > floor``, or ``b == accepted`` with the identical
  value, a duplicate (rule 2); accepting b also promises b;
* a state is refused unless every record it names comes along or is held (rule 7);
* an operation whose record is held under another sequence is refused, and the refusal says where (at most once);
* accepts are refused below the term of their scope, write-backs too, and new values below the generation floor.
"""

from __future__ import annotations

from typing import Protocol

from objmeta.core.ballot import Ballot
from objmeta.core.messages import (
    Accept,
    Accepted,
    Fetch,
    Fetched,
    Found,
    Prepare,
    Promise,
    Raised,
    RaiseTerm,
    Read,
    Record,
    RecordRef,
    Refusal,
    Refused,
    Reply,
    Request,
    Row,
)

_NEVER_TOUCHED = Row()


class AcceptorView(Protocol):
    """What one step may read and write; all writes of a step become durable together or not at all."""

    @property
    def ballot_floor(self) -> Ballot:
        """Ballots at or below it are refused for every register."""
        ...

    @property
    def generation_floor(self) -> int:
        """Operations begun in a lower generation are refused."""
        ...

    @property
    def sequence_floor(self) -> int:
        """Registers created anew start above it."""
        ...

    def term(self, scope: bytes) -> int:
        """The floor of a scope, 0 if none was ever raised."""
        ...

    def raise_term(self, scope: bytes, term: int) -> None:
        """Store a scope's floor."""
        ...

    def row(self, name: bytes) -> Row | None:
        """The row of a register, or None if there is none."""
        ...

    def put_row(self, name: bytes, row: Row, state_changed: bool) -> None:
        """Replace the row; ``state_changed`` is false when only the promise moved."""
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
    if isinstance(request, Read):
        row = view.row(request.name) or _NEVER_TOUCHED
        return Found(row.accepted, row.state)
    if isinstance(request, Accept):
        return _accept(view, request)
    if isinstance(request, Prepare):
        return _prepare(view, request)
    if isinstance(request, Fetch):
        return Fetched(view.records(request.name, request.refs, request.with_data))
    return _raise_term(view, request)


def _prepare(view: AcceptorView, request: Prepare) -> Promise | Refused:
    row = view.row(request.name)
    floor = view.ballot_floor
    known = row or _NEVER_TOUCHED
    greatest = max(known.promised, known.accepted, floor)
    if request.ballot <= greatest:
        return Refused(request.ballot, Refusal.CONFLICT, greatest)
    view.put_row(request.name, Row(request.ballot, known.accepted, known.state), False)
    held = view.held(request.name, request.version_id) if request.version_id and row else ()
    return Promise(request.ballot, known.accepted, known.state, held, view.sequence_floor)


def _accept(view: AcceptorView, request: Accept) -> Accepted | Refused:
    ballot = request.ballot
    row = view.row(request.name) or _NEVER_TOUCHED
    floor = view.ballot_floor
    if ballot == row.accepted and ballot > floor and row.state == request.state:
        return Accepted(ballot)  # a duplicate, answered again
    if ballot.counter == 0 and view.sequence_floor:
        return Refused(ballot, Refusal.CONFLICT, floor)  # whoever uses the zero ballot does not know this floor
    if ballot < row.promised or ballot <= row.accepted or ballot <= floor:
        return Refused(ballot, Refusal.CONFLICT, max(row.promised, row.accepted, floor))
    if request.fence is not None and request.fence.term < view.term(request.fence.scope):
        return Refused(ballot, Refusal.STALE_TERM)
    if request.generation is not None and request.generation < view.generation_floor:
        return Refused(ballot, Refusal.STALE_GENERATION)
    brought = {record.ref for record in request.records}
    for ref in request.state.refs:
        held = view.held(request.name, ref.version_id)
        elsewhere = tuple(h for h in held if h.sequence != ref.sequence and h not in request.dead)
        if elsewhere:
            return Refused(ballot, Refusal.HELD_ELSEWHERE, held=elsewhere)
        if ref not in brought and ref not in held:
            return Refused(ballot, Refusal.RECORD_MISSING)
    if request.dead:
        view.drop_records(request.name, request.dead)
    view.put_records(request.name, request.records)
    view.put_row(request.name, Row(ballot, ballot, request.state), True)
    return Accepted(ballot)


def _raise_term(view: AcceptorView, request: RaiseTerm) -> Raised:
    term = view.term(request.scope)
    if request.term > term:
        view.raise_term(request.scope, request.term)
        term = request.term
    return Raised(term)
