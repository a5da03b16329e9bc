"""The acceptor's rules, one by one, over the simulator's table."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from objmeta.core.acceptor import step
from objmeta.core.ballot import ZERO, Ballot
from objmeta.core.configuration import OUTSIDE, Configuration, Membership, single_set
from objmeta.core.home import scope_of
from objmeta.core.messages import (
    TOMBSTONE,
    Accept,
    Accepted,
    Adopt,
    Adopted,
    Erase,
    Erased,
    Fence,
    Fetch,
    Fetched,
    Found,
    Prepare,
    Promise,
    Raised,
    RaiseFloors,
    RaiseTerm,
    Read,
    Record,
    RecordRef,
    Refusal,
    Refused,
    Row,
    ScopeFloor,
    State,
)
from objmeta.core.records import is_intact, record_digest
from objmeta.errors import RowDamaged
from objmeta.testing.disk import Table


def ballot(counter: int, proposer: int = 1) -> Ballot:
    return Ballot(counter, proposer, 5)


def record(name: str, sequence: int = 1, parent: RecordRef | None = None) -> Record:
    version_id = name.encode().ljust(16, b"\x00")
    return Record(RecordRef(sequence, version_id, record_digest(sequence, version_id, parent, b"")), parent, b"")


def accept(counter: int, *, of: Record | None = None, bring: bool = True, **more: object) -> Accept:
    of = of or record("X")
    records = (of,) if bring else ()
    return Accept(b"k", ballot(counter), State(of.ref.version_id, (of.ref,)), records, **more)  # type: ignore[arg-type]


def reason(reply: object) -> Refusal:
    assert isinstance(reply, Refused)
    return reply.reason


def test_prepare_is_strict() -> None:
    table = Table()
    assert step(table, Prepare(b"k", ballot(2))) == Promise(ballot(2), ZERO, None)
    again = step(table, Prepare(b"k", ballot(2)))
    assert again == Refused(ballot(2), Refusal.CONFLICT, ballot(2))
    assert reason(step(table, Prepare(b"k", ballot(1)))) is Refusal.CONFLICT
    assert step(table, Prepare(b"k", ballot(2, proposer=2))) == Promise(ballot(2, proposer=2), ZERO, None)


def test_accepting_promises() -> None:
    table = Table()
    assert step(table, accept(3)) == Accepted(ballot(3))
    assert table.row(b"k") == Row(ballot(3), ballot(3), accept(3).state, True)
    assert reason(step(table, Prepare(b"k", ballot(3)))) is Refusal.CONFLICT
    assert isinstance(step(table, Prepare(b"k", ballot(4))), Promise)


def test_an_accept_below_a_promise_is_refused_and_told_what_to_jump_past() -> None:
    table = Table()
    step(table, Prepare(b"k", ballot(5)))
    assert step(table, accept(4)) == Refused(ballot(4), Refusal.CONFLICT, ballot(5))
    assert table.kept == {}


def test_a_duplicate_is_answered_again_unless_its_value_differs() -> None:
    table = Table()
    step(table, accept(3))
    assert step(table, accept(3)) == Accepted(ballot(3))
    assert reason(step(table, accept(3, of=record("Y")))) is Refusal.CONFLICT
    step(table, Prepare(b"k", ballot(9)))
    assert step(table, accept(3)) == Accepted(ballot(3)), "a duplicate changes nothing, so a promise is no obstacle"


def test_the_ballot_floor_is_refused_for_every_register() -> None:
    table = Table()
    table.put_scope_floor(b"k", ScopeFloor(ballot=ballot(7)))
    assert step(table, Prepare(b"k", ballot(7))) == Refused(ballot(7), Refusal.CONFLICT, ballot(7))
    assert reason(step(table, accept(7))) is Refusal.CONFLICT
    assert step(table, accept(8)) == Accepted(ballot(8))


def test_a_state_without_its_record_is_refused() -> None:
    table = Table()
    assert reason(step(table, accept(1, bring=False))) is Refusal.RECORD_MISSING
    step(table, accept(2))
    assert step(table, accept(3, bring=False)) == Accepted(ballot(3)), "it is held"
    own = accept(4, bring=False, dead=(record("X").ref,))
    assert reason(step(table, own)) is Refusal.RECORD_MISSING, "it would be dropped"


def test_an_operation_held_under_another_sequence_is_refused_unless_that_is_dead() -> None:
    table = Table()
    step(table, accept(1, of=record("X")))
    moved = record("X", 2, record("Y").ref)
    refused = step(table, accept(2, of=moved))
    assert refused == Refused(ballot(2), Refusal.HELD_ELSEWHERE, held=(record("X").ref,))
    assert step(table, accept(2, of=moved, dead=(record("X").ref,))) == Accepted(ballot(2))
    assert table.held(b"k", moved.ref.version_id) == (moved.ref,)


def test_promises_say_where_an_operation_is_held() -> None:
    table = Table()
    step(table, accept(1))
    reply = step(table, Prepare(b"k", ballot(2), (record("X").ref.version_id,)))
    assert isinstance(reply, Promise)
    assert reply.held == (record("X").ref,)
    other = step(table, Prepare(b"k", ballot(3), (record("Y").ref.version_id,)))
    assert isinstance(other, Promise)
    assert other.held == ()


def test_floors_of_terms_and_generations_bind_new_values_only() -> None:
    table = Table()
    scope = b"bucket"
    assert step(table, RaiseTerm(scope, 3)) == Raised(3)
    assert step(table, RaiseTerm(scope, 2)) == Raised(3), "a floor never falls"
    table.generation_floor = 5
    assert reason(step(table, accept(1, fence=Fence(scope, 2), generation=5))) is Refusal.STALE_TERM
    assert reason(step(table, accept(1, fence=Fence(scope, 3), generation=4))) is Refusal.STALE_GENERATION
    assert step(table, accept(1, fence=Fence(scope, 3), generation=5)) == Accepted(ballot(1))
    assert step(table, accept(2)) == Accepted(ballot(2)), "a write-back states neither"


def test_reading_changes_nothing() -> None:
    table = Table()
    assert step(table, Read(b"k")) == Found(ZERO, None)
    step(table, accept(1))
    before = (dict(table.rows), dict(table.kept))
    assert step(table, Read(b"k")) == Found(ballot(1), accept(1).state)
    assert step(table, Fetch(b"k", (record("X").ref, record("Y").ref))) == Fetched((record("X"),))
    assert (table.rows, table.kept) == before


def test_a_record_proves_what_it_is() -> None:
    assert is_intact(record("X"))
    assert not is_intact(Record(record("X").ref, None, b"another body"))
    assert not is_intact(Record(record("X").ref, record("Y").ref, b""))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(1, 2), st.sampled_from("XYZ")), max_size=30))
def test_promises_and_accepted_ballots_never_fall_and_no_ballot_has_two_values(
    requests: list[tuple[bool, int, int, str]],
) -> None:
    table = Table()
    accepted: dict[Ballot, State] = {}
    promised: set[Ballot] = set()
    before = Row()
    for is_prepare, counter, proposer, name in requests:
        drawn = Ballot(counter, proposer, 0)
        of = record(name)
        if is_prepare:
            if isinstance(step(table, Prepare(b"k", drawn)), Promise):
                assert drawn not in promised, "no ballot collects two promises"
                promised.add(drawn)
        elif isinstance(step(table, Accept(b"k", drawn, State(of.ref.version_id, (of.ref,)), (of,))), Accepted):
            assert accepted.setdefault(drawn, State(of.ref.version_id, (of.ref,))) == State(
                of.ref.version_id, (of.ref,)
            )
        after = table.row(b"k") or Row()
        assert after.promised >= max(before.promised, after.accepted)
        assert after.accepted >= before.accepted
        before = after


# -- The promise that comes along with an accept (rule 10) -------------------------------------------------------------


def test_an_accept_may_promise_the_next_ballot() -> None:
    table = Table()
    assert step(table, accept(2, following=ballot(5))) == Accepted(ballot(2), ballot(5))
    assert reason(step(table, Prepare(b"k", ballot(5)))) is Refusal.CONFLICT
    assert step(table, accept(2, following=ballot(5))) == Accepted(ballot(2), ballot(5)), "a duplicate says so again"
    step(table, Prepare(b"k", ballot(6)))
    assert step(table, accept(2, following=ballot(5))) == Accepted(ballot(2)), "it was promised to somebody else since"


def test_what_comes_without_phase_one_is_taken_only_on_its_base_with_its_whole_chain() -> None:
    one, three = record("A"), record("C", 3, record("B", 2, record("A").ref).ref)
    two = record("B", 2, one.ref)
    knows, misses = Table(), Table()
    for table in (knows, misses):
        step(table, accept(1, of=one))
    step(knows, accept(2, of=two, following=ballot(3)))
    base = ballot(2)
    assert reason(step(misses, accept(3, of=three, based_on=base))) is Refusal.CONFLICT, "it did not accept the base"
    assert step(knows, accept(3, of=three, based_on=base)) == Accepted(ballot(3))
    latecomer = Table()
    promising = step(latecomer, accept(2, of=two, following=ballot(3)))
    assert promising == Accepted(ballot(2)), "who would refuse what is based on the promise does not tell of it"
    assert reason(step(latecomer, accept(3, of=three, based_on=base))) is Refusal.CONFLICT, "it lacks the chain below"
    whole = Accept(b"k", ballot(2), State(two.ref.version_id, (two.ref,)), (two, one))
    assert step(latecomer, whole) == Accepted(ballot(2)), "history comes along with a duplicate"
    assert step(latecomer, accept(3, of=three, based_on=base)) == Accepted(ballot(3))


def test_a_higher_record_of_an_operation_is_no_obstacle_a_lower_one_is() -> None:
    table = Table()
    base, late = record("A"), record("X", 3, record("B", 2, record("A").ref).ref)
    step(table, accept(1, of=base))
    table.put_records(b"k", (late,))
    assert step(table, accept(2, of=record("X", 2, base.ref))) == Accepted(ballot(2)), "its place is taken if chosen"
    refused = step(table, accept(3, of=record("A", 3, record("X", 2, base.ref).ref)))
    assert reason(refused) is Refusal.HELD_ELSEWHERE


# -- Damage and membership ---------------------------------------------------------------------------------------------


class _Damaged(Table):
    def row(self, name: bytes) -> Row | None:
        found = super().row(name)
        if found is not None and found.accepted == ballot(4):
            raise RowDamaged("flipped")
        return found


def test_a_damaged_row_has_no_vote_until_an_accept_above_every_promise_mends_it() -> None:
    table = _Damaged()
    step(table, accept(4))
    step(table, Prepare(b"elsewhere", ballot(6)))
    for request in (Prepare(b"k", ballot(9)), Read(b"k"), accept(6)):
        assert reason(step(table, request)) is Refusal.DAMAGED
    assert step(table, accept(7)) == Accepted(ballot(7))
    assert isinstance(step(table, Prepare(b"k", ballot(8))), Promise)


def test_a_membership_is_adopted_if_its_epoch_is_higher_and_outside_only_by_joining() -> None:
    store_id = bytes(16)
    first, second = (Membership(single_set(store_id, (1, 2, 3), epoch)) for epoch in (4, 5))
    table = Table(first)
    assert step(table, Adopt(second)) == Adopted(second)
    assert step(table, Adopt(first)) == Adopted(second)
    assert reason(step(table, Adopt(Membership(single_set(b"another store id", (1,), 9))))) is Refusal.CONFIGURATION
    outside = Table(Membership(single_set(store_id, (1,), OUTSIDE)))
    assert reason(step(outside, Adopt(second))) is Refusal.CONFIGURATION
    assert step(outside, Adopt(second, joining=True)) == Adopted(second)


# -- Erasure (rules 8 and 9) -------------------------------------------------------------------------------------------


def tombstone(counter: int, of: Record, **more: object) -> Accept:
    return Accept(b"k", ballot(counter), State(b"", (of.ref,), TOMBSTONE), (of,), **more)  # type: ignore[arg-type]


def test_a_confirmed_tombstone_goes_with_its_records_and_leaves_floors() -> None:
    table = Table()
    step(table, accept(1))
    step(table, tombstone(3, record("Y", 2, record("X").ref)))
    assert step(table, Erase(b"k", ballot(3))) == Erased(ballot(3), True)
    assert (table.rows, table.held(b"k", record("X").ref.version_id)) == ({}, ())
    assert step(table, Erase(b"k", ballot(3))) == Erased(ballot(3), True), "a copy of the message says so again"
    assert step(table, Erase(b"k", ballot(4))) == Erased(ballot(4), False)
    assert reason(step(table, Prepare(b"k", ballot(3)))) is Refusal.CONFLICT, "what is older stays refused"
    assert reason(step(table, accept(3))) is Refusal.CONFLICT
    assert reason(step(table, Accept(b"k", Ballot(0, 1, 1), accept(1).state, (record("X"),)))) is Refusal.CONFLICT
    promise = step(table, Prepare(b"k", ballot(4)))
    assert promise == Promise(ballot(4), ZERO, None, (), 2), "a register made anew starts above the sequence"


def test_nothing_else_is_erased() -> None:
    of = record("X")
    for requests in (
        (accept(3),),
        (tombstone(3, of, following=ballot(4)),),
        (tombstone(3, of), Prepare(b"k", ballot(4))),
        (tombstone(2, of),),
        (tombstone(4, of),),
        (tombstone(3, of), accept(4, of=record("Y", 2, of.ref))),
    ):
        table = Table()
        for request in requests:
            step(table, request)
        before = table.row(b"k")
        assert step(table, Erase(b"k", ballot(3))) == Erased(ballot(3), False)
        assert table.row(b"k") == before
        assert not table.scope_floors(b"", 9)


def test_a_promise_alone_goes_only_where_the_floor_says_as_much() -> None:
    table = Table()
    step(table, Prepare(b"k", ballot(5)))
    assert step(table, Erase(b"k", ballot(9))) == Erased(ballot(9), False)
    step(table, RaiseFloors(scopes=((scope_of(b"k"), ScopeFloor(0, ballot(4))),)))
    assert step(table, Erase(b"k", ballot(9))) == Erased(ballot(9), False)
    step(table, RaiseFloors(scopes=((scope_of(b"k"), ScopeFloor(0, ballot(9))),)))
    assert step(table, Erase(b"k", ballot(4))) == Erased(ballot(4), False)
    assert step(table, Erase(b"k", ballot(9))) == Erased(ballot(9), True)
    assert table.rows == {}
    assert reason(step(table, accept(5))) is Refusal.CONFLICT, "nor can what it was promised for be accepted any more"


def test_a_joint_configuration_erases_nothing() -> None:
    table = Table()
    step(table, tombstone(3, record("X")))
    joint = Configuration(table.membership.configuration.store_id, 2, ((1, 2, 3), (2, 3, 4)))
    step(table, Adopt(Membership(joint)))
    assert reason(step(table, Erase(b"k", ballot(3)))) is Refusal.CONFIGURATION


def test_a_promise_tells_the_generation_floor() -> None:
    table = Table()
    step(table, RaiseFloors(7))
    promise = step(table, Prepare(b"k", ballot(1)))
    assert isinstance(promise, Promise)
    assert promise.generation_floor == 7
