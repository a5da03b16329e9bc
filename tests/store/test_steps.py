"""What every acceptor store must do with a batch (rules numbered as in docs/protocol.md)."""

from __future__ import annotations

import msgspec
import pytest

from objmeta.core.ballot import ZERO
from objmeta.core.configuration import Configuration, single_set
from objmeta.core.listing import ScanRequest
from objmeta.core.messages import (
    Accept,
    Accepted,
    Fence,
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
    Refusal,
    Refused,
    Request,
    ScopeFloor,
)
from objmeta.errors import InvalidArgument
from objmeta.store.memory import MemoryStore
from objmeta.store.rocks import RocksStore
from objmeta.store.sqlite import SqliteStore
from tests.store.build import CONFIGURATION, TAG, ask, ask_one, ballot, put, read_one, record, state, version

Store = MemoryStore | SqliteStore | RocksStore
_ALL = ScanRequest(b"", with_records=True)


def test_it_knows_who_it_is(store: Store) -> None:
    assert store.acceptor_id == 1
    assert store.configuration == CONFIGURATION


def test_a_register_nobody_touched_reads_as_ballot_zero(store: Store) -> None:
    assert read_one(store, Read(b"k")) == Found(ZERO, None)


def test_prepare_is_strict(store: Store) -> None:
    assert ask_one(store, Prepare(b"k", ballot(5))) == Promise(ballot(5), ZERO, None)
    assert ask_one(store, Prepare(b"k", ballot(5))) == Refused(ballot(5), Refusal.CONFLICT, ballot(5))
    assert ask_one(store, Prepare(b"k", ballot(4))) == Refused(ballot(4), Refusal.CONFLICT, ballot(5))
    assert isinstance(ask_one(store, Prepare(b"k", ballot(5, proposer=2))), Promise)


def test_a_promise_is_not_shown_to_readers(store: Store) -> None:
    ask_one(store, Prepare(b"k", ballot(5)))
    assert read_one(store, Read(b"k")) == Found(ZERO, None)


def test_accept_needs_its_promise_or_more(store: Store) -> None:
    ask_one(store, Prepare(b"k", ballot(5)))
    assert ask_one(store, put(b"k", 4, record(1))) == Refused(ballot(4), Refusal.CONFLICT, ballot(5))
    accept = put(b"k", 5, record(1))
    assert ask_one(store, accept) == Accepted(ballot(5))
    assert read_one(store, Read(b"k")) == Found(ballot(5), accept.state)


def test_accept_promises_too(store: Store) -> None:
    ask_one(store, put(b"k", 5, record(1)))
    assert ask_one(store, Prepare(b"k", ballot(5))) == Refused(ballot(5), Refusal.CONFLICT, ballot(5))
    promise = ask_one(store, Prepare(b"k", ballot(6), (version(1),)))
    assert promise == Promise(ballot(6), ballot(5), state(record(1)), (record(1).ref,))


def test_a_duplicate_is_answered_again_and_another_value_refused(store: Store) -> None:
    accept = put(b"k", 5, record(1))
    assert ask(store, accept, accept) == [Accepted(ballot(5))] * 2
    assert ask_one(store, accept) == Accepted(ballot(5))
    other = put(b"k", 5, record(2), value=b"other")
    assert ask_one(store, other) == Refused(ballot(5), Refusal.CONFLICT, ballot(5))
    assert store.changes(0, 10).names == (b"k",)


def test_a_late_duplicate_under_a_higher_promise_is_still_the_same_vote(store: Store) -> None:
    accept = put(b"k", 5, record(1))
    ask(store, accept, Prepare(b"k", ballot(9)))
    assert ask_one(store, accept) == Accepted(ballot(5))
    assert ask_one(store, put(b"k", 6, record(2))) == Refused(ballot(6), Refusal.CONFLICT, ballot(9))


def test_a_state_without_its_record_is_refused(store: Store) -> None:
    bare = Accept(b"k", ballot(1), state(record(1)))
    assert ask_one(store, bare) == Refused(ballot(1), Refusal.RECORD_MISSING)
    assert read_one(store, Read(b"k")) == Found(ZERO, None)
    ask_one(store, put(b"k", 2, record(1)))
    held = Accept(b"k", ballot(3), state(record(1), value=b"again"))
    assert ask_one(store, held) == Accepted(ballot(3))


def test_a_record_is_held_under_its_own_register_only(store: Store) -> None:
    ask_one(store, put(b"k", 1, record(1)))
    assert ask_one(store, Accept(b"l", ballot(1), state(record(1)))) == Refused(ballot(1), Refusal.RECORD_MISSING)


def test_an_operation_held_under_another_sequence_is_refused_and_where_is_said(store: Store) -> None:
    first, again = record(1, sequence=1), record(1, sequence=4)
    ask_one(store, put(b"k", 1, first))
    assert ask_one(store, put(b"k", 2, again)) == Refused(ballot(2), Refusal.HELD_ELSEWHERE, held=(first.ref,))
    same_place = record(1, sequence=1, body=b"another body")
    assert ask_one(store, put(b"k", 3, same_place)) == Accepted(ballot(3))


def test_within_one_batch_a_step_sees_those_before_it(store: Store) -> None:
    replies = ask(
        store,
        Prepare(b"k", ballot(3)),
        put(b"k", 3, record(1)),
        put(b"k", 4, record(1, sequence=2)),
        Prepare(b"k", ballot(3)),
        Fetch(b"k", (record(1).ref,)),
        Read(b"k"),
    )
    assert replies == [
        Promise(ballot(3), ZERO, None),
        Accepted(ballot(3)),
        Refused(ballot(4), Refusal.HELD_ELSEWHERE, held=(record(1).ref,)),
        Refused(ballot(3), Refusal.CONFLICT, ballot(3)),
        Fetched((record(1),)),
        Found(ballot(3), state(record(1))),
    ]


def test_dead_records_are_dropped_and_not_held_against_the_operation(store: Store) -> None:
    dead = record(1, sequence=1, data=b"dead data")
    live = record(1, sequence=2, data=b"live data")
    ask_one(store, put(b"k", 1, dead))
    accept = Accept(b"k", ballot(2), state(live), (live,), dead=(dead.ref,))
    assert ask_one(store, accept) == Accepted(ballot(2))
    assert read_one(store, Fetch(b"k", (dead.ref, live.ref))) == Fetched((live,))
    promise = ask_one(store, Prepare(b"k", ballot(3), (version(1),)))
    assert isinstance(promise, Promise)
    assert promise.held == (live.ref,)


def test_a_record_dropped_and_brought_again_in_one_batch_is_held(store: Store) -> None:
    one, two = record(1, data=b"one"), record(2, sequence=2)
    ask(
        store,
        put(b"k", 1, one),
        Accept(b"k", ballot(2), state(two), (two,), dead=(one.ref,)),
        put(b"k", 3, one),
    )
    assert read_one(store, Fetch(b"k", (one.ref, two.ref))) == Fetched((one, two))


def test_a_refused_accept_leaves_nothing(store: Store) -> None:
    old, new = record(1), record(2, sequence=2)
    ask(store, put(b"k", 5, old))
    ask_one(store, Accept(b"k", ballot(4), state(new), (new,), dead=(old.ref,)))
    assert read_one(store, Fetch(b"k", (old.ref, new.ref))) == Fetched((old,))


def test_records_come_back_whole_in_the_order_asked_and_without_data_if_asked(store: Store) -> None:
    first = record(1, data=b"x" * 9000)
    second = record(2, sequence=2, parent=first.ref, body=b"")
    ask_one(store, put(b"k", 1, first, second))
    assert read_one(store, Fetch(b"k", (second.ref, first.ref))) == Fetched((second, first))
    bare = msgspec.structs.replace(first, data=b"")
    assert read_one(store, Fetch(b"k", (first.ref, second.ref), False)) == Fetched((bare, second))
    absent = record(3, sequence=3).ref
    assert read_one(store, Fetch(b"k", (absent,))) == Fetched(())


def test_a_record_that_is_held_stays_as_it_is(store: Store) -> None:
    whole = record(1, data=b"data")
    ask_one(store, put(b"k", 1, whole))
    ask_one(store, put(b"k", 2, msgspec.structs.replace(whole, data=b"")))
    assert read_one(store, Fetch(b"k", (whole.ref,))) == Fetched((whole,))


def test_terms_only_grow_and_fence_new_values_of_their_scope(store: Store) -> None:
    assert ask_one(store, RaiseTerm(b"bucket", 3)) == Raised(3)
    assert ask(store, RaiseTerm(b"bucket", 2), RaiseTerm(b"other", 1)) == [Raised(3), Raised(1)]
    stale = msgspec.structs.replace(put(b"k", 1, record(1)), fence=Fence(b"bucket", 2))
    assert ask_one(store, stale) == Refused(ballot(1), Refusal.STALE_TERM)
    for number, fence in enumerate((Fence(b"bucket", 3), Fence(b"elsewhere", 0), None)):
        fenced = msgspec.structs.replace(put(b"k-%d" % number, 1, record(1)), fence=fence)
        assert ask_one(store, fenced) == Accepted(ballot(1))


def test_a_term_raised_in_the_batch_fences_what_follows_in_it(store: Store) -> None:
    accept = msgspec.structs.replace(put(b"k", 1, record(1)), fence=Fence(b"bucket", 0))
    other = msgspec.structs.replace(accept, name=b"l")
    assert ask(store, accept, RaiseTerm(b"bucket", 1), other) == [
        Accepted(ballot(1)),
        Raised(1),
        Refused(ballot(1), Refusal.STALE_TERM),
    ]


def test_the_generation_floor_refuses_new_values_but_not_write_backs(store: Store) -> None:
    assert ask_one(store, RaiseFloors(7)) == Floors(7)
    assert ask_one(store, RaiseFloors(5)) == Floors(7)
    old = msgspec.structs.replace(put(b"k", 1, record(1)), generation=6)
    assert ask_one(store, old) == Refused(ballot(1), Refusal.STALE_GENERATION)
    assert ask_one(store, msgspec.structs.replace(old, generation=7)) == Accepted(ballot(1))
    assert ask_one(store, put(b"l", 1, record(1))) == Accepted(ballot(1))


def test_the_ballot_floor_of_a_scope_refuses_rounds_at_or_below_it(store: Store) -> None:
    accept = put(b"k/old", 4, record(1))
    ask_one(store, accept)
    for floor in (ScopeFloor(ballot=ballot(5)), ScopeFloor(ballot=ballot(3)), ScopeFloor(term=1)):
        ask_one(store, RaiseFloors(scopes=((b"k/", floor),)))
    refused = Refused(ballot(5), Refusal.CONFLICT, ballot(5))
    assert ask(store, Prepare(b"k/new", ballot(5)), put(b"k/new", 5, record(1))) == [refused, refused]
    assert ask_one(store, accept) == Refused(ballot(4), Refusal.CONFLICT, ballot(5))
    assert isinstance(ask_one(store, Prepare(b"k/new", ballot(6))), Promise)
    assert read_one(store, Read(b"k/old")) == Found(ballot(4), accept.state)


def test_the_sequence_floor_is_told_with_each_promise(store: Store) -> None:
    for sequence in (40, 30):
        ask_one(store, RaiseFloors(scopes=((b"k/", ScopeFloor(sequence=sequence)),)))
    assert ask_one(store, Prepare(b"o/", ballot(1))) == Promise(ballot(1), ZERO, None)
    assert ask_one(store, Prepare(b"k/", ballot(1))) == Promise(ballot(1), ZERO, None, (), 40)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (single_set(b"another-store-id", (1, 2, 3)), "belongs to store"),
        (single_set(CONFIGURATION.store_id, (1, 2, 3), epoch=2), "epoch 1"),
        (single_set(CONFIGURATION.store_id, (1, 2, 4)), "other members"),
    ],
)
def test_another_configuration_is_refused_and_touches_nothing(store: Store, other: Configuration, said: str) -> None:
    writes: list[Request] = [Prepare(b"k", ballot(1)), put(b"k", 1, record(1)), RaiseTerm(b"b", 1)]
    requests: list[Request] = [*writes, Read(b"k"), Fetch(b"k", ())]
    replies = store.apply([(other.tag, request) for request in requests])
    for request, reply in zip(requests, replies, strict=True):
        assert isinstance(reply, Refused)
        assert reply.reason is Refusal.CONFIGURATION
        assert said in reply.detail
        assert reply.ballot == getattr(request, "ballot", ZERO)
    assert store.changes(0, 10).watermark == 0
    assert ask_one(store, Prepare(b"k", ballot(1))) == Promise(ballot(1), ZERO, None)
    (mixed,) = store.read([(other.tag, Read(b"k"))])
    assert isinstance(mixed, Refused)


def test_a_batch_with_a_raising_step_leaves_nothing(store: Store) -> None:
    ask(store, put(b"kept", 1, record(1)), RaiseTerm(b"bucket", 1))
    before = store.scan(TAG, _ALL), store.changes(0, 10)
    with pytest.raises(AttributeError):
        store.apply(
            [
                (TAG, put(b"kept", 2, record(2, sequence=2))),
                (TAG, Accept(b"kept", ballot(3), state(record(3)), (record(3),), dead=(record(1).ref,))),
                (TAG, Prepare(b"new", ballot(1))),
                (TAG, RaiseTerm(b"bucket", 5)),
                (TAG, _Unknown()),  # type: ignore[list-item]
            ]
        )
    assert (store.scan(TAG, _ALL), store.changes(0, 10)) == before
    assert ask(store, RaiseTerm(b"bucket", 0), Prepare(b"new", ballot(1))) == [
        Raised(1),
        Promise(ballot(1), ZERO, None),
    ]
    assert read_one(store, Fetch(b"kept", (record(1).ref, record(2, sequence=2).ref))) == Fetched((record(1),))


def test_read_refuses_what_would_change_something(store: Store) -> None:
    with pytest.raises(InvalidArgument, match=r"apply\(\)"):
        store.read([(TAG, Read(b"k")), (TAG, Prepare(b"k", ballot(1)))])


def test_empty_batches_are_answered_with_nothing(store: Store) -> None:
    assert store.apply([]) == []
    assert store.read([]) == []


class _Unknown:
    """No request at all."""
