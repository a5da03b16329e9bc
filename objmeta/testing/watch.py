"""Invariants that hold after every step of every acceptor, checked by an observer who sees all of them.

* One ballot, one value (rule 1).
* What an acceptor told others it promised or accepted never falls, also over restarts (rule 2).
* A value accepted under a ballot is built on every value chosen under a lower one.
* A chosen value is never forgotten: no quorum of acceptors is without it, or something built on it.
* Every record on the chain of a chosen value is durable on a quorum (rule 7).
* An operation is on a chain at most once, and an acknowledged one is on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from objmeta.core.ballot import ZERO, Ballot
from objmeta.core.messages import Accept, Accepted, Promise, RecordRef, Reply, Request, Row, State
from objmeta.core.quorum import Quorums
from objmeta.testing.checkers import Violation
from objmeta.testing.disk import Entry, Table
from objmeta.testing.telling import tell_ballot, tell_id, tell_ref, tell_row, tell_state


@dataclass(slots=True)
class _Register:
    """All that ever happened to one register."""

    values: dict[Ballot, State] = field(default_factory=dict)
    votes: dict[Ballot, set[int]] = field(default_factory=dict)
    chosen: list[Ballot] = field(default_factory=list)
    parents: dict[RecordRef, RecordRef | None] = field(default_factory=dict)
    chain: list[RecordRef] = field(default_factory=list)
    operations: set[bytes] = field(default_factory=set)
    told: dict[int, tuple[Ballot, Ballot]] = field(default_factory=dict)
    """By acceptor: the greatest promise and the greatest accepted ballot that it told anybody."""


class Watch:
    """Sees every step; raises Violation at the first that breaks an invariant."""

    def __init__(self, quorums: Quorums, tables: Mapping[int, Table], strict: bool = True) -> None:
        self._quorums = quorums
        self.strict = strict
        """False: look on in silence, so that a test sees whether the clients' histories alone show a fault."""
        self._tables = tables
        """The durable tables, by acceptor; the mapping is kept up to date by its owner."""
        self._registers: dict[bytes, _Register] = {}

    def chain(self, name: bytes) -> list[RecordRef]:
        """The records of the chosen chain, oldest first."""
        register = self._registers.get(name)
        return list(register.chain) if register else []

    def states(self, name: bytes) -> list[State]:
        """The chosen states, by ballot."""
        register = self._registers.get(name)
        return [register.values[ballot] for ballot in sorted(register.chosen)] if register else []

    def names(self) -> list[bytes]:
        """Registers that were ever accepted anywhere."""
        return sorted(name for name, register in self._registers.items() if register.values)

    # -- Events -------------------------------------------------------------------------------------------------------

    def on_step(self, acceptor: int, request: Request, reply: Reply, before: Row, after: Row) -> None:
        """A step changed (or not) the volatile row of the request's register."""
        if after.promised < before.promised or after.accepted < before.accepted:
            self._violated(f"acceptor {acceptor} went back from {tell_row(before)} to {tell_row(after)}")
        if after.promised < after.accepted:
            self._violated(f"acceptor {acceptor} accepted above its promise: {tell_row(after)}")
        if not isinstance(request, Accept) or not isinstance(reply, Accepted):
            return
        register = self._registers.setdefault(request.name, _Register())
        for record in request.records:
            register.parents.setdefault(record.ref, record.parent)
        if request.ballot.counter == 0 and request.ballot.incarnation == acceptor:
            return  # the home's own step under the zero ballot counts when it is durable: until then nobody knows of it
        self._one_value(register, request.ballot, request.state)
        if before.accepted != request.ballot:
            below = max((ballot for ballot in register.chosen if ballot < request.ballot), default=None)
            if below is not None:
                self._must_build_on(register, register.values[below], below, request.state, request.ballot)

    def on_durable(self, acceptor: int, written: Sequence[Entry]) -> None:
        """Writes of an acceptor became durable."""
        for method, *arguments in written:
            if method is Table.put_row:
                name, row, state_changed = arguments
                if state_changed:
                    self._voted(acceptor, name, row)
            elif method is Table.drop_records:
                name, refs = arguments
                self._nothing_needed(acceptor, name, refs)

    def on_told(self, acceptor: int, request: Request, reply: Reply) -> None:
        """A reply left an acceptor."""
        if not isinstance(reply, Promise | Accepted):
            return
        name = getattr(request, "name", b"")
        register = self._registers.setdefault(name, _Register())
        promised, accepted = register.told.get(acceptor, (ZERO, ZERO))
        promised = max(promised, reply.ballot)
        if isinstance(reply, Accepted):
            accepted = max(accepted, reply.ballot)
        register.told[acceptor] = (promised, accepted)

    def on_restart(self, acceptor: int) -> None:
        """An acceptor came back from a crash with its durable table."""
        table = self._tables[acceptor]
        for name, register in self._registers.items():
            row = table.row(name) or Row()
            promised, accepted = register.told.get(acceptor, (ZERO, ZERO))
            if row.promised < promised or row.accepted < accepted:
                self._violated(
                    f"acceptor {acceptor} forgot: it had told of promise {tell_ballot(promised)} "
                    f"and accepted {tell_ballot(accepted)}, "
                    f"and came back with {tell_row(row)}"
                )
            self._not_forgotten(name, register)

    def on_acknowledged(self, name: bytes, operation: bytes) -> None:
        """A client was told that its write took effect."""
        if operation not in self._registers.setdefault(name, _Register()).operations:
            self._violated(f"operation {operation.hex()} was acknowledged and is not chosen")

    def on_answered(self, name: bytes, state: State | None) -> None:
        """A client was told that this is, or was, the state."""
        if state is not None and state.refs[-1] not in self._registers.setdefault(name, _Register()).chain:
            self._violated(f"{tell_state(state)} was given as an answer and is not chosen")

    def at_end(self) -> None:
        """Everything once more."""
        for name, register in self._registers.items():
            self._not_forgotten(name, register)
            for ref in register.chain:
                self._held_by_quorum(name, ref)

    # -- Rules --------------------------------------------------------------------------------------------------------

    def _violated(self, what: str) -> None:
        if self.strict:
            raise Violation(what)

    def _one_value(self, register: _Register, ballot: Ballot, state: State) -> None:
        if register.values.setdefault(ballot, state) != state:
            self._violated(f"two values under ballot {tell_ballot(ballot)}")

    def _voted(self, acceptor: int, name: bytes, row: Row) -> None:
        assert row.state is not None
        register = self._registers.setdefault(name, _Register())
        self._one_value(register, row.accepted, row.state)
        votes = register.votes.setdefault(row.accepted, set())
        was_chosen = self._quorums.is_quorum(votes)
        votes.add(acceptor)
        if not was_chosen and self._quorums.is_quorum(votes):
            self._chosen(name, register, row.accepted, row.state)

    def _chosen(self, name: bytes, register: _Register, ballot: Ballot, state: State) -> None:
        register.chosen.append(ballot)
        for later, value in register.values.items():
            if later > ballot:
                self._must_build_on(register, state, ballot, value, later)
        new: list[RecordRef] = []
        known = {ref: i for i, ref in enumerate(register.chain)}
        cursor: RecordRef | None = state.refs[-1]
        while cursor is not None and cursor not in known:
            new.append(cursor)
            cursor = register.parents.get(cursor)
        if new and (known[cursor] if cursor is not None else -1) != len(register.chain) - 1:
            self._violated(
                f"register {name!r} forked: {tell_ref(new[-1])} was chosen beside {tell_ref(register.chain[-1])}"
            )
        for ref in reversed(new):
            if ref.version_id in register.operations:
                self._violated(f"operation {tell_id(ref.version_id)} took effect twice")
            register.operations.add(ref.version_id)
            register.chain.append(ref)
            self._held_by_quorum(name, ref)
        self._not_forgotten(name, register)

    def _must_build_on(
        self, register: _Register, older: State, older_ballot: Ballot, newer: State, newer_ballot: Ballot
    ) -> None:
        wanted = older.refs[-1]
        cursor: RecordRef | None = newer.refs[-1]
        while cursor is not None and cursor.sequence > wanted.sequence:
            cursor = register.parents.get(cursor)
        if cursor != wanted:
            self._violated(
                f"{tell_state(newer)}, accepted under {tell_ballot(newer_ballot)}, is not built on "
                f"{tell_state(older)}, chosen under {tell_ballot(older_ballot)}"
            )

    def _not_forgotten(self, name: bytes, register: _Register) -> None:
        if not register.chosen:
            return
        greatest = max(register.chosen)
        without = [a for a, table in self._tables.items() if (table.row(name) or Row()).accepted < greatest]
        if self._quorums.is_quorum(without):
            self._violated(
                f"register {name!r}: acceptors {without} form a quorum without the chosen {tell_ballot(greatest)}"
            )

    def _held_by_quorum(self, name: bytes, ref: RecordRef) -> None:
        holders = [a for a, table in self._tables.items() if ref in table.kept.get(name, ())]
        if not self._quorums.is_quorum(holders):
            self._violated(
                f"register {name!r}: record {tell_ref(ref)} of the chosen chain is only on acceptors {holders}"
            )

    def _nothing_needed(self, acceptor: int, name: bytes, refs: Sequence[RecordRef]) -> None:
        chain = self._registers.setdefault(name, _Register()).chain
        kept = self._tables[acceptor].kept.get(name, {})
        dropped = [ref for ref in refs if ref in chain and ref not in kept]
        if dropped:
            self._violated(f"record {tell_ref(dropped[0])} of the chosen chain was dropped")
