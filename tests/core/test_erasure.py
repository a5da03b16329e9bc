"""The confirmation of a tombstone by everybody, and the generation's change."""

from __future__ import annotations

import pytest

from objmeta.core.acceptor import step
from objmeta.core.ballot import Ballot
from objmeta.core.change import Keep, Write
from objmeta.core.erasure import (
    FIRST_GENERATION,
    MOVED,
    Confirm,
    Confirmed,
    InUse,
    MoveGeneration,
    NotConfirmed,
    generation_in,
)
from objmeta.core.messages import TOMBSTONE, Accept, Accepted, Fetched, Prepare, Record, RecordRef, Row, State
from objmeta.core.records import is_intact, record_digest
from objmeta.errors import IntegrityError
from objmeta.testing.disk import Table

NAME = b"k"
MEMBERS = (1, 2, 3)
OPERATION = bytes(15) + b"D"


def ballot(counter: int) -> Ballot:
    return Ballot(counter, 1, 5)


def record(sequence: int, parent: RecordRef | None = None, operation: bytes = OPERATION) -> Record:
    return Record(RecordRef(sequence, operation, record_digest(sequence, operation, parent, b"")), parent, b"")


def accept(counter: int, of: Record, flag: int = TOMBSTONE, **more: object) -> Accept:
    return Accept(NAME, ballot(counter), State(b"", (of.ref,), flag), (of,), **more)  # type: ignore[arg-type]


def tables(*accepted: tuple[int, Record] | None) -> dict[int, Table]:
    found = {acceptor: Table() for acceptor in MEMBERS}
    for table, given in zip(found.values(), accepted, strict=True):
        if given is not None:
            assert isinstance(step(table, accept(*given)), Accepted)
    return found


def run(attempt: Confirm, acceptors: dict[int, Table]) -> list[tuple[int, object]]:
    """Deliver everything until nothing is on its way; what was sent."""
    pending = list(attempt.start())
    sent: list[tuple[int, object]] = []
    while pending:
        send = pending.pop(0)
        for acceptor in send.to:
            sent.append((acceptor, send.request))
            pending += attempt.on_reply(acceptor, step(acceptors[acceptor], send.request))
    return sent


def test_all_confirm_under_one_ballot_and_nothing_changes() -> None:
    tombstone = record(2)
    acceptors = tables((5, tombstone), (5, tombstone), (5, tombstone))
    attempt = Confirm(MEMBERS, NAME, ballot(9), ballot(5))
    sent = run(attempt, acceptors)
    assert attempt.outcome == Confirmed(ballot(9))
    assert len(sent) == 6, "nobody has to be asked for a record"
    for table in acceptors.values():
        row = table.row(NAME)
        assert row is not None
        assert (row.promised, row.accepted, row.state) == (ballot(9), ballot(9), accept(5, tombstone).state)


def test_who_missed_the_tombstone_gets_it_with_its_record() -> None:
    tombstone = record(2, record(1, operation=b"1" * 16).ref)
    acceptors = tables((5, tombstone), None, (4, record(1, operation=b"1" * 16)))
    attempt = Confirm(MEMBERS, NAME, ballot(9), ballot(5))
    run(attempt, acceptors)
    assert attempt.outcome == Confirmed(ballot(9))
    assert all(table.records(NAME, (tombstone.ref,), True) == (tombstone,) for table in acceptors.values())


def test_a_damaged_record_is_not_passed_on() -> None:
    tombstone = record(2)
    acceptors = tables((5, tombstone), None, (5, tombstone))
    attempt = Confirm(MEMBERS, NAME, ballot(9), ballot(5))
    (asked,) = [send for a in MEMBERS for send in attempt.on_reply(a, step(acceptors[a], attempt.start()[0].request))]
    assert asked.to == (1, 3)
    damaged = Record(tombstone.ref, tombstone.parent, b"else")
    assert attempt.on_reply(1, Fetched((damaged,))) == ()
    (accepts,) = attempt.on_reply(3, Fetched((tombstone,)))
    assert isinstance(accepts.request, Accept)
    assert all(is_intact(each) for each in accepts.request.records)
    assert attempt.on_reply(3, Fetched((tombstone,))) == (), "once is enough"


def test_a_record_of_the_operation_with_a_lower_sequence_is_dead() -> None:
    tombstone, dead = record(3), record(2)
    acceptors = tables((5, tombstone), (5, tombstone), None)
    acceptors[3].put_row(NAME, Row(ballot(1)), False)
    acceptors[3].put_records(NAME, (dead,))
    attempt = Confirm(MEMBERS, NAME, ballot(9), ballot(5))
    run(attempt, acceptors)
    assert attempt.outcome == Confirmed(ballot(9))
    assert acceptors[3].held(NAME, OPERATION) == (tombstone.ref,)


@pytest.mark.parametrize("flag", [0, 1])
def test_a_register_in_use_is_left_alone(flag: int) -> None:
    acceptors = tables((5, record(2)), (5, record(2)), (5, record(2)))
    step(acceptors[2], accept(6, record(3, operation=b"2" * 16), flag))
    attempt = Confirm(MEMBERS, NAME, ballot(9), ballot(5))
    sent = run(attempt, acceptors)
    assert attempt.outcome == InUse()
    assert all(isinstance(request, Prepare) for _, request in sent)


def test_another_tombstone_than_the_one_expected_counts_as_use() -> None:
    acceptors = tables((6, record(4)), (6, record(4)), (5, record(2)))
    attempt = Confirm(MEMBERS, NAME, ballot(9), ballot(5))
    run(attempt, acceptors)
    assert attempt.outcome == InUse()


def test_a_higher_promise_stands_in_the_way() -> None:
    acceptors = tables((5, record(2)), (5, record(2)), (5, record(2)))
    step(acceptors[2], Prepare(NAME, ballot(20)))
    attempt = Confirm(MEMBERS, NAME, ballot(9), ballot(5))
    run(attempt, acceptors)
    assert attempt.outcome == NotConfirmed(ballot(20))
    assert attempt.on_reply(1, Accepted(ballot(9))) == ()


def test_one_silent_acceptor_is_enough_to_fail() -> None:
    acceptors = tables((5, record(2)), (5, record(2)), (5, record(2)))
    attempt = Confirm(MEMBERS, NAME, ballot(9), ballot(5))
    (prepare,) = attempt.start()
    for acceptor in (1, 2):
        assert attempt.on_reply(acceptor, step(acceptors[acceptor], prepare.request)) == ()
    attempt.on_timeout()
    assert attempt.outcome == NotConfirmed(ballot(9))
    attempt.on_timeout()


def test_the_generation_moves_by_one_from_what_was_expected() -> None:
    assert generation_in(None) == FIRST_GENERATION
    first = MoveGeneration(b"1" * 16, FIRST_GENERATION).apply(NAME, None, 0)
    assert isinstance(first, Write)
    assert generation_in(first.state) == FIRST_GENERATION + 1
    assert MoveGeneration(b"2" * 16, FIRST_GENERATION).apply(NAME, first.state, 0) == Keep(MOVED)
    second = MoveGeneration(b"2" * 16, FIRST_GENERATION + 1).apply(NAME, first.state, 0)
    assert isinstance(second, Write)
    assert second.records[0].parent == first.state.refs[0]
    assert all(is_intact(record) for write in (first, second) for record in write.records)
    with pytest.raises(IntegrityError):
        generation_in(State(b"\\xc1", ()))
