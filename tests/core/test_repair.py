"""Where repair looks, and what it calls lacking."""

from __future__ import annotations

from objmeta.core.ballot import ZERO
from objmeta.core.inventory import Digests, InventoryRow, RangeDigest
from objmeta.core.messages import LIVE, TOMBSTONE, Record
from objmeta.core.quorum import Quorums
from objmeta.core.repair import Span, chain, differing, off_chain, parcels, to_look_at
from tests.store.build import ballot, record

THREE = Quorums(((1, 2, 3),))


def ranges(**digests: bytes) -> Digests:
    """Ranges by their ends; ``end`` stands for no bound."""
    return Digests(
        tuple(RangeDigest(b"" if end == "end" else end.encode(), 1, digest) for end, digest in digests.items())
    )


def row(name: bytes, accepted: int, *held: Record, promised: int = 0, flag: int = LIVE) -> InventoryRow:
    at = ballot(accepted) if accepted else ZERO
    return InventoryRow(name, max(at, ballot(promised)), at, flag, tuple((each.ref, each.parent) for each in held))


def test_neighbouring_ranges_that_differ_are_one_span() -> None:
    own = ranges(b=b"1", c=b"2", d=b"3", e=b"4", end=b"5")
    others = {2: ranges(b=b"1", c=b"x", d=b"x", e=b"x", end=b"5"), 3: ranges(b=b"1", c=b"2", d=b"3", e=b"y", end=b"5")}
    spans, compared = differing(b"", own, others)
    assert spans == [Span(b"b", b"e", frozenset({2, 3}))]
    assert compared == 5


def test_equal_ranges_between_keep_spans_apart() -> None:
    own = ranges(b=b"1", c=b"2", end=b"3")
    spans, _ = differing(b"a", own, {2: ranges(b=b"x", c=b"2", end=b"x")})
    assert spans == [Span(b"a", b"b", frozenset({2})), Span(b"c", b"", frozenset({2}))]


def test_only_what_everybody_answered_for_is_compared() -> None:
    own = ranges(b=b"1", c=b"2", end=b"3")
    spans, compared = differing(b"", own, {2: ranges(b=b"1", c=b"2"), 3: ranges(b=b"1", c=b"2", end=b"x")})
    assert (spans, compared) == ([], 2)


def test_who_cannot_answer_for_the_first_range_differs_in_it() -> None:
    own = ranges(b=b"1", end=b"2")
    assert differing(b"", own, {2: Digests(()), 3: own}) == ([Span(b"", b"b", frozenset({2}))], 1)


def test_a_higher_ballot_elsewhere_is_looked_at() -> None:
    first = record(1)
    second = record(2, sequence=2, parent=first.ref)
    own = [row(b"a", 1, first), row(b"b", 3, first, promised=9)]
    theirs = [row(b"a", 2, first, second), row(b"b", 3, first), row(b"c", 1, first)]
    looks = to_look_at(3, {3: own, 1: theirs, 2: theirs}, b"", THREE)
    assert [(look.name, look.ballot, look.accepted, look.holders, look.chosen) for look in looks] == [
        (b"a", ballot(2), ballot(1), (1, 2), True),
        (b"c", ballot(1), ZERO, (1, 2), True),
    ]
    assert looks[0].strange == {second.ref}
    assert looks[0].parents == {first.ref: None, second.ref: first.ref}


def test_a_minority_proves_nothing_chosen() -> None:
    first = record(1)
    (look,) = to_look_at(3, {3: [], 1: [row(b"a", 2, first)], 2: [row(b"a", 1, first)]}, b"", THREE)
    assert (look.ballot, look.chosen) == (ballot(2), False)
    (look,) = to_look_at(3, {3: [], 1: [row(b"a", 2, first)]}, b"", THREE)
    assert not look.chosen


def test_under_a_joint_configuration_both_majorities_are_needed() -> None:
    joint = Quorums(((1, 2, 3), (3, 4, 5)))
    first = record(1)
    rows = {a: [row(b"a", 2, first)] for a in (1, 2, 4)} | {3: [], 5: []}
    assert not to_look_at(3, rows, b"", joint)[0].chosen
    assert to_look_at(3, rows | {5: [row(b"a", 2, first)]}, b"", joint)[0].chosen


def test_what_only_we_have_and_promises_are_not_looked_at() -> None:
    first, second = record(1), record(2, sequence=2)
    own = [row(b"a", 5, first, second), row(b"t", 5, first, flag=TOMBSTONE)]
    theirs = [row(b"a", 4, first), row(b"p", 0, promised=7)]
    assert to_look_at(3, {3: own, 1: theirs, 2: theirs}, b"", THREE) == []


def test_lacking_records_are_looked_at_under_our_own_ballot() -> None:
    first = record(1)
    second = record(2, sequence=2, parent=first.ref)
    (look,) = to_look_at(
        3, {3: [row(b"a", 5, second)], 1: [row(b"a", 5, first, second)], 2: [row(b"a", 5, second)]}, b"", THREE
    )
    assert (look.accepted, look.ballot, look.chosen) == (ballot(5), ballot(5), True)
    assert look.strange == frozenset({first.ref})


def test_a_damaged_row_is_looked_at_if_anybody_has_it() -> None:
    damaged = InventoryRow(b"a", ZERO, ZERO, None, damaged=True)
    (look,) = to_look_at(3, {3: [damaged], 1: [row(b"a", 5, record(1))]}, b"", THREE)
    assert look.damaged
    assert to_look_at(3, {3: [damaged], 1: []}, b"", THREE) == []


def test_nothing_beyond_the_least_page_is_judged() -> None:
    rows = {3: [row(b"a", 1, record(1))], 1: [row(b"a", 1, record(1)), row(b"b", 1, record(1))]}
    assert to_look_at(3, rows, b"b", THREE) == []
    assert [look.name for look in to_look_at(3, rows, b"", THREE)] == [b"b"]


def test_a_chain_is_followed_as_far_as_it_is_known() -> None:
    first = record(1)
    second = record(2, sequence=2, parent=first.ref)
    third = record(3, sequence=3, parent=second.ref)
    parents = {each.ref: each.parent for each in (second, third)}
    assert chain((second.ref, third.ref), parents) == ([third.ref, second.ref], first.ref)
    assert chain((third.ref,), parents | {first.ref: None}) == ([third.ref, second.ref, first.ref], None)
    assert chain((), parents) == ([], None)


def test_dead_is_only_what_lost_its_place() -> None:
    first = record(1)
    second = record(2, sequence=2, parent=first.ref)
    dead, newer = record(3, sequence=2), record(4, sequence=3)
    assert off_chain({dead.ref, newer.ref, first.ref}, [second.ref, first.ref]) == {dead.ref}


def test_parcels_keep_to_the_bound_or_hold_one_record() -> None:
    records = [record(number, body=b"b" * size) for number, size in enumerate((4, 4, 4, 20, 1, 9, 1), 1)]
    assert [[len(each.body) for each in parcel] for parcel in parcels(records, 10)] == [[4, 4], [4], [20], [1, 9], [1]]
    assert parcels([], 10) == []
