"""Invariants that hold after every step of every acceptor, checked by an observer who sees all of them.

* One ballot, one value (rule 1).
* What an acceptor told others it promised or accepted never falls, also over restarts and erasure, where the ballot
  floor stands for what is gone (rules 2 and 8).
* What is proposed on a kept promise was promised by a quorum of that configuration, at its epoch (rule 10).
* A value accepted under a ballot is built on every value chosen under a lower one.
* A chosen value is never forgotten: no quorum of the newest configuration is without it, or something built on it.
* Every record on the chain of a chosen value is durable on a quorum (rule 7), unless its bucket is gone.
* A register is erased only where every member of a configuration that is not joint held the very tombstone under one
  ballot (rules 8 and 9).  What comes after begins a new life of the register, above the old one's sequences.
* An operation is on a chain at most once, over all lives of a register, and an acknowledged one is on it.

*Chosen* under a configuration: a quorum of it has held that ballot durably while at its epoch, whether it was accepted
then or carried along from an earlier epoch; who reads it cannot tell.  The *newest* configuration is the one with the
greatest epoch that any acceptor has adopted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from objmeta.core.ballot import ZERO, Ballot
from objmeta.core.configuration import Configuration
from objmeta.core.home import scope_of
from objmeta.core.messages import TOMBSTONE, Accept, Accepted, Promise, RecordRef, Reply, Request, Row, State
from objmeta.core.quorum import Quorums
from objmeta.model.names import BUCKETS, object_prefix
from objmeta.model.values import BucketHead, decode_value
from objmeta.objects.buckets import GONE
from objmeta.testing.checkers import Violation
from objmeta.testing.disk import Entry, Table
from objmeta.testing.telling import tell_ballot, tell_id, tell_ref, tell_row, tell_state


@dataclass(slots=True)
class _Register:
    """All that ever happened to one register."""

    values: dict[Ballot, State] = field(default_factory=dict)
    held: dict[int, Ballot] = field(default_factory=dict)
    """By acceptor: the ballot it has durably accepted."""
    votes: dict[tuple[Ballot, int], set[int]] = field(default_factory=dict)
    """By ballot and epoch: who held it then."""
    chosen: list[Ballot] = field(default_factory=list)
    erasures: list[tuple[Ballot, int]] = field(default_factory=list)
    """Tombstones that were erased somewhere: ballot and sequence."""
    parents: dict[RecordRef, RecordRef | None] = field(default_factory=dict)
    chain: list[RecordRef] = field(default_factory=list)
    """Of all lives, one after the other."""
    needed_from: int = 0
    """Where in the chain begins what must still be held."""
    operations: set[bytes] = field(default_factory=set)
    told: dict[int, tuple[Ballot, Ballot]] = field(default_factory=dict)
    """By acceptor: the greatest promise and the greatest accepted ballot that it told anybody."""
    promised_along: dict[tuple[Ballot, int], set[int]] = field(default_factory=dict)
    """By ballot and epoch: who promised it along with a vote."""


class Watch:
    """Sees every step; raises Violation at the first that breaks an invariant."""

    def __init__(self, configuration: Configuration, tables: Mapping[int, Table], strict: bool = True) -> None:
        self.strict = strict
        """False: look on in silence, so that a test sees whether the clients' histories alone show a fault."""
        self.newest = configuration
        """The greatest that an acceptor has adopted."""
        self._tables = tables
        """The durable tables, by acceptor; the mapping is kept up to date by its owner."""
        self._configurations = {a: table.membership.configuration for a, table in tables.items()}
        self._registers: dict[bytes, _Register] = {}
        self._gone: set[bytes] = set()
        """What names of objects in buckets that are gone begin with."""

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

    def was_erased(self, name: bytes) -> bool:
        """Whether a life of the register was erased, anywhere."""
        return name in self._registers and bool(self._registers[name].erasures)

    def current(self) -> list[tuple[bytes, Ballot]]:
        """What is chosen and not erased: registers and ballots."""
        found = [(name, max(register.chosen, default=ZERO)) for name, register in self._registers.items()]
        return [
            (name, ballot)
            for name, ballot in found
            if ballot != ZERO and all(erased < ballot for erased, _ in self._registers[name].erasures)
        ]

    @property
    def erased(self) -> int:
        """How many lives of registers were erased."""
        return sum(len(register.erasures) for register in self._registers.values())

    # -- Events -------------------------------------------------------------------------------------------------------

    def on_step(
        self, acceptor: int, configuration: Configuration, request: Request, reply: Reply, before: Row, after: Row
    ) -> None:
        """A step under a configuration changed (or not) the volatile row of a register; it erased nothing."""
        if after.promised < before.promised or after.accepted < before.accepted:
            self._violated(f"acceptor {acceptor} went back from {tell_row(before)} to {tell_row(after)}")
        if after.promised < after.accepted:
            self._violated(f"acceptor {acceptor} accepted above its promise: {tell_row(after)}")
        if not isinstance(request, Accept) or not isinstance(reply, Accepted):
            return
        register = self._register(request.name)
        if request.based_on != ZERO:
            promised = register.promised_along.get((request.ballot, configuration.epoch), set())
            if not configuration.quorums.is_quorum(promised):
                self._violated(
                    f"{tell_ballot(request.ballot)} was promised at epoch {configuration.epoch} by {sorted(promised)} "
                    "only, and stands for a prepare there"
                )
        if reply.promised > reply.ballot:
            register.promised_along.setdefault((reply.promised, configuration.epoch), set()).add(acceptor)
        for record in request.records:
            register.parents.setdefault(record.ref, record.parent)
        if request.ballot.counter == 0 and request.ballot.incarnation == acceptor:
            return  # the home's own step under the zero ballot counts when it is durable: until then nobody knows of it
        self._one_value(register, request.ballot, request.state)
        if before.accepted != request.ballot:
            self._builds_on_chosen(register, request.ballot, request.state)

    def on_durable(self, acceptor: int, written: Sequence[Entry]) -> None:
        """Writes of an acceptor became durable."""
        for method, *arguments in written:
            if method is Table.put_row:
                name, row, state_changed = arguments
                if state_changed:
                    self._held(acceptor, name, row)
            elif method is Table.drop_records:
                name, refs = arguments
                self._nothing_needed(acceptor, name, refs)
            elif method is Table.adopt:
                self._adopted(acceptor, arguments[0].configuration)
            elif method is Table.erase:
                self._erased(acceptor, arguments[0])

    def on_told(self, acceptor: int, request: Request, reply: Reply) -> None:
        """A reply left an acceptor."""
        if not isinstance(reply, Promise | Accepted):
            return
        register = self._register(getattr(request, "name", b""))
        promised, accepted = register.told.get(acceptor, (ZERO, ZERO))
        promised = max(promised, reply.ballot)
        if isinstance(reply, Accepted):
            promised = max(promised, reply.promised)
            accepted = max(accepted, reply.ballot)
        register.told[acceptor] = (promised, accepted)

    def on_restart(self, acceptor: int) -> None:
        """An acceptor came back from a crash with its durable table."""
        table = self._tables[acceptor]
        for name, register in self._registers.items():
            row = table.row(name) or Row()
            floor = table.scope_floor(scope_of(name)).ballot
            promised, accepted = register.told.get(acceptor, (ZERO, ZERO))
            if max(row.promised, floor) < promised or max(row.accepted, floor) < accepted:
                self._violated(
                    f"acceptor {acceptor} forgot: it had told of promise {tell_ballot(promised)} "
                    f"and accepted {tell_ballot(accepted)}, "
                    f"and came back with {tell_row(row)}"
                )
            self._not_forgotten(name, register)

    def on_acknowledged(self, name: bytes, operation: bytes) -> None:
        """A client was told that its write took effect."""
        if operation not in self._register(name).operations:
            self._violated(f"operation {operation.hex()} was acknowledged and is not chosen")

    def on_answered(self, name: bytes, state: State | None) -> None:
        """A client was told that this is, or was, the state."""
        if state is not None and state.refs[-1] not in self._register(name).chain:
            self._violated(f"{tell_state(state)} was given as an answer and is not chosen")

    def at_end(self) -> None:
        """Everything once more."""
        for name, register in self._registers.items():
            self._not_forgotten(name, register)
            self._chain_is_held(name, register)

    # -- What happened ------------------------------------------------------------------------------------------------

    def _register(self, name: bytes) -> _Register:
        return self._registers.setdefault(name, _Register())

    def _violated(self, what: str) -> None:
        if self.strict:
            raise Violation(what)

    def _held(self, acceptor: int, name: bytes, row: Row) -> None:
        assert row.state is not None
        register = self._register(name)
        ballot = row.accepted
        self._one_value(register, ballot, row.state)
        if ballot.counter == 0 and ballot > max(register.chosen, default=ZERO):
            self._builds_on_chosen(register, ballot, row.state)
        register.held[acceptor] = ballot
        self._vote(acceptor, name, register, self._configuration_of(acceptor))

    def _vote(self, acceptor: int, name: bytes, register: _Register, configuration: Configuration) -> None:
        ballot = register.held[acceptor]
        votes = register.votes.setdefault((ballot, configuration.epoch), set())
        votes.add(acceptor)
        if ballot not in register.chosen and configuration.quorums.is_quorum(votes):
            self._chosen(name, register, ballot)

    def _configuration_of(self, acceptor: int) -> Configuration:
        return self._configurations.setdefault(acceptor, self._tables[acceptor].membership.configuration)

    def _adopted(self, acceptor: int, configuration: Configuration) -> None:
        own = self._configuration_of(acceptor)
        if configuration.epoch < own.epoch:
            self._violated(f"acceptor {acceptor} went back from epoch {own.epoch} to {configuration.epoch}")
        self._configurations[acceptor] = configuration
        if configuration.epoch == self.newest.epoch and configuration != self.newest:
            self._violated(f"two configurations of epoch {configuration.epoch}")
        is_newest = configuration.epoch > self.newest.epoch
        if is_newest:
            self.newest = configuration
        for name, register in self._registers.items():
            if acceptor in register.held:
                self._vote(acceptor, name, register, configuration)
            if is_newest:
                self._not_forgotten(name, register)
                self._chain_is_held(name, register)

    def _erased(self, acceptor: int, name: bytes) -> None:
        register = self._register(name)
        ballot = register.held.pop(acceptor, None)
        floor = self._tables[acceptor].scope_floor(scope_of(name)).ballot
        promised, accepted = register.told.get(acceptor, (ZERO, ZERO))
        if floor < max(promised, accepted):
            self._violated(
                f"acceptor {acceptor} erased {name!r} with the floor {tell_ballot(floor)}, and had told of promise "
                f"{tell_ballot(promised)} and accepted {tell_ballot(accepted)}"
            )
        if ballot is None:
            return  # nothing but a promise was there
        state = register.values[ballot]
        configuration = self._configuration_of(acceptor)
        confirmed = register.votes.get((ballot, configuration.epoch), set())
        if state.flag != TOMBSTONE or configuration.is_joint or not confirmed.issuperset(configuration.quorums.members):
            self._violated(
                f"acceptor {acceptor} erased {tell_state(state)} under {tell_ballot(ballot)}, which acceptors "
                f"{sorted(confirmed)} confirmed at epoch {configuration.epoch}"
            )
        if (ballot, state.refs[-1].sequence) not in register.erasures:
            register.erasures.append((ballot, state.refs[-1].sequence))
        if state.refs[-1] in register.chain:
            register.needed_from = max(register.needed_from, register.chain.index(state.refs[-1]) + 1)

    def _chosen(self, name: bytes, register: _Register, ballot: Ballot) -> None:
        state = register.values[ballot]
        register.chosen.append(ballot)
        for later, value in register.values.items():
            if later > ballot and not (later.counter == 0 and later < max(register.chosen)):
                self._must_build_on(register, ballot, later, value)
        new: list[RecordRef] = []
        known = {ref: i for i, ref in enumerate(register.chain)}
        cursor: RecordRef | None = state.refs[-1]
        while cursor is not None and cursor not in known:
            new.append(cursor)
            cursor = register.parents.get(cursor)
        if new:
            self._joins(name, register, ballot, new[-1], None if cursor is None else known[cursor])
        for ref in reversed(new):
            if ref.version_id in register.operations:
                self._violated(f"operation {tell_id(ref.version_id)} took effect twice")
            register.operations.add(ref.version_id)
            register.chain.append(ref)
            self._held_by_quorum(name, ref)
        self._not_forgotten(name, register)
        if name.startswith(BUCKETS):
            head = decode_value(state.value)
            if isinstance(head, BucketHead) and head.status == GONE:
                self._gone.add(object_prefix(head.bucket_id))

    # -- Rules --------------------------------------------------------------------------------------------------------

    def _one_value(self, register: _Register, ballot: Ballot, state: State) -> None:
        if register.values.setdefault(ballot, state) != state:
            self._violated(f"two values under ballot {tell_ballot(ballot)}")

    def _joins(self, name: bytes, register: _Register, ballot: Ballot, first: RecordRef, after: int | None) -> None:
        """What is new follows the end of the chain, or begins a new life after an erasure."""
        last = len(register.chain) - 1
        if (-1 if after is None else after) == last:
            return
        if after is None and register.needed_from > last and self._new_life(register, ZERO, ballot, first):
            return
        self._violated(f"register {name!r} forked: {tell_ref(first)} was chosen beside {tell_ref(register.chain[-1])}")

    def _new_life(self, register: _Register, older: Ballot, newer: Ballot, first: RecordRef) -> bool:
        """Whether a chain that begins with ``first`` may follow, by an erasure between the two ballots."""
        return any(older <= ballot < newer and first.sequence > sequence for ballot, sequence in register.erasures)

    def _builds_on_chosen(self, register: _Register, ballot: Ballot, state: State) -> None:
        below = max((chosen for chosen in register.chosen if chosen < ballot), default=None)
        if below is not None:
            self._must_build_on(register, below, ballot, state)

    def _must_build_on(self, register: _Register, older_ballot: Ballot, newer_ballot: Ballot, newer: State) -> None:
        older = register.values[older_ballot]
        wanted = older.refs[-1]
        first = cursor = newer.refs[-1] if newer.refs else None
        while cursor is not None and cursor != wanted:
            first, cursor = cursor, register.parents.get(cursor)
        if cursor is None and not (first and self._new_life(register, older_ballot, newer_ballot, first)):
            self._violated(
                f"{tell_state(newer)}, accepted under {tell_ballot(newer_ballot)}, is not built on "
                f"{tell_state(older)}, chosen under {tell_ballot(older_ballot)}"
            )

    def _not_forgotten(self, name: bytes, register: _Register) -> None:
        greatest = max(register.chosen, default=ZERO)
        if any(greatest <= ballot for ballot, _ in register.erasures):
            return
        without = [a for a, table in self._tables.items() if (table.row(name) or Row()).accepted < greatest]
        if greatest != ZERO and self.newest.quorums.is_quorum(without):
            self._violated(
                f"register {name!r}: acceptors {without} form a quorum without the chosen {tell_ballot(greatest)}"
            )

    def _chain_is_held(self, name: bytes, register: _Register) -> None:
        """All records still; what lies in a bucket that is gone cannot be brought to every new member (decision 8)."""
        if not any(name.startswith(prefix) for prefix in self._gone):
            for ref in register.chain[register.needed_from :]:
                self._held_by_quorum(name, ref)

    def _held_by_quorum(self, name: bytes, ref: RecordRef) -> None:
        holders = [a for a, table in self._tables.items() if ref in table.kept.get(name, ())]
        # While members change, new ones are still being given what was there before.
        if not Quorums(self.newest.member_sets[:1]).is_quorum(holders):
            self._violated(
                f"register {name!r}: record {tell_ref(ref)} of the chosen chain is only on acceptors {holders}"
            )

    def _nothing_needed(self, acceptor: int, name: bytes, refs: Sequence[RecordRef]) -> None:
        register = self._register(name)
        kept = self._tables[acceptor].kept.get(name, {})
        needed = register.chain[register.needed_from :]
        dropped = [ref for ref in refs if ref in needed and ref not in kept]
        if dropped:
            self._violated(f"record {tell_ref(dropped[0])} of the chosen chain was dropped")
