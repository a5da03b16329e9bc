"""The acceptor's rules, one by one, over the simulator's table."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from objmeta.core.acceptor import step
from objmeta.core.ballot import ZERO, Ballot
from objmeta.core.messages import (
    Accept,
    Accepted,
    Fence,
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
    Row,
    ScopeFloor,
    State,
)
from objmeta.core.records import is_intact, record_digest
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
    assert table.row(b"k") == Row(ballot(3), ballot(3), accept(3).state)
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
    reply = step(table, Prepare(b"k", ballot(2), record("X").ref.version_id))
    assert isinstance(reply, Promise)
    assert reply.held == (record("X").ref,)
    other = step(table, Prepare(b"k", ballot(3), record("Y").ref.version_id))
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
