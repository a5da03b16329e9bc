"""Inventories and digests: what is in them, where they end, and that all stores answer alike."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from objmeta.core.ballot import ZERO
from objmeta.core.configuration import single_set
from objmeta.core.inventory import (
    DIGESTED_MAX,
    HELD_PER_PAGE_MAX,
    LEAF_REGISTERS,
    DigestRequest,
    Digests,
    HeldRecord,
    Inventory,
    InventoryRequest,
    InventoryRow,
)
from objmeta.core.messages import LIVE, TOMBSTONE, Accept, Erase, Prepare, Record, Request
from objmeta.errors import ConfigurationMismatch
from objmeta.store.memory import MemoryStore
from objmeta.store.rocks import RocksStore
from objmeta.store.sqlite import SqliteStore
from objmeta.testing.disk import AcceptorHooks, SimStore
from tests.store.build import CONFIGURATION, TAG, ask, ballot, put, record, state, version

Store = MemoryStore | SqliteStore | RocksStore


def held(*records: Record) -> tuple[HeldRecord, ...]:
    return tuple((each.ref, each.parent) for each in records)


def names_of(store: Store, request: InventoryRequest) -> tuple[list[bytes], bytes]:
    answer = store.inventory(TAG, request)
    return [row.name for row in answer.rows], answer.covered


def test_nothing_is_held_by_an_empty_store(store: Store) -> None:
    assert store.inventory(TAG, InventoryRequest()) == Inventory(())
    (whole,) = store.digests(TAG, DigestRequest()).ranges
    assert (whole.end, whole.registers) == (b"", 0)
    bounds = (b"a", b"b", b"")
    assert [each.end for each in store.digests(TAG, DigestRequest(b"", bounds)).ranges] == list(bounds)


def test_another_configuration_is_refused(store: Store) -> None:
    stranger = single_set(CONFIGURATION.store_id, (9,)).tag
    with pytest.raises(ConfigurationMismatch):
        store.inventory(stranger, InventoryRequest())
    with pytest.raises(ConfigurationMismatch):
        store.digests(stranger, DigestRequest())


def test_every_row_is_listed_with_all_records(store: Store) -> None:
    first = record(1)
    second = record(2, sequence=2, parent=first.ref)
    dead = record(3, sequence=2)
    ask(store, Prepare(b"promised", ballot(4)), put(b"k", 1, first), put(b"k", 2, dead), put(b"k", 3, second))
    ask(store, put(b"a\0b", 1, record(1), flag=TOMBSTONE), put(b"a", 1, record(1)), Prepare(b"k", ballot(9)))
    ask(store, put(b"erased", 1, record(1), flag=TOMBSTONE), put(b"a\0", 1, record(1)))
    ask(store, Erase(b"erased", ballot(1)))
    one = held(record(1))
    assert store.inventory(TAG, InventoryRequest()) == Inventory(
        (
            InventoryRow(b"a", ballot(1), ballot(1), LIVE, one),
            InventoryRow(b"a\0", ballot(1), ballot(1), LIVE, one),
            InventoryRow(b"a\0b", ballot(1), ballot(1), TOMBSTONE, one),
            InventoryRow(b"k", ballot(9), ballot(3), LIVE, held(first, second, dead)),
            InventoryRow(b"promised", ballot(4), ZERO, None),
        )
    )


def test_pages_end_at_the_limit_and_lead_on(store: Store) -> None:
    ask(store, *[put(name, 1, record(1)) for name in (b"a", b"a\0", b"b")], Prepare(b"c", ballot(1)))
    assert names_of(store, InventoryRequest(limit=2)) == ([b"a", b"a\0"], b"b")
    assert names_of(store, InventoryRequest(b"b", limit=2)) == ([b"b", b"c"], b"")
    assert names_of(store, InventoryRequest(b"a\0", b"c", limit=2)) == ([b"a\0", b"b"], b"")
    assert names_of(store, InventoryRequest(b"a\0", b"b", limit=0)) == ([b"a\0"], b"")
    assert names_of(store, InventoryRequest(b"d")) == ([], b"")


def test_registers_are_listed_by_name(store: Store) -> None:
    ask(store, *[put(name, 1, record(1)) for name in (b"a", b"a\0", b"b")], Prepare(b"c", ballot(1)))
    assert names_of(store, InventoryRequest(names=(b"", b"a\0", b"aa", b"c"), limit=1)) == ([b"a\0", b"c"], b"")
    (row,) = store.inventory(TAG, InventoryRequest(names=(b"a\0",))).rows
    assert row == InventoryRow(b"a\0", ballot(1), ballot(1), LIVE, held(record(1)))


def test_a_register_with_many_records_is_listed_in_parts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("objmeta.store.inventories.HELD_PER_PAGE_MAX", 3)
    records = [record(number, sequence=number) for number in range(1, 8)]
    ask(store, put(b"a", 1, records[0]), put(b"k", 1, *records), put(b"z", 1, records[0]))
    found: list[HeldRecord] = []
    rows: list[tuple[bytes, bool, bytes]] = []
    request = InventoryRequest(b"b")
    while True:
        answer = store.inventory(TAG, request)
        row = answer.rows[0]
        rows.append((row.name, row.more, answer.covered))
        found += row.held
        if not row.more:
            break
        request = InventoryRequest(b"k", held_after=row.held[-1][0])
    assert rows == [(b"k", True, b"k\0"), (b"k", True, b"k\0"), (b"k", False, b"")]
    assert found == list(held(*records))
    assert [row.name for row in answer.rows] == [b"k", b"z"]


def digested(store: Store, *bounds: bytes, start: bytes = b"") -> list[tuple[bytes, int, bytes]]:
    ranges = store.digests(TAG, DigestRequest(start, bounds)).ranges
    return [(each.end, each.registers, each.digest) for each in ranges]


def test_a_digest_tells_what_repair_must_move_and_nothing_else(store: Store) -> None:
    first = record(1)
    second = record(2, sequence=2, parent=first.ref)
    third = record(3, sequence=3, parent=second.ref)
    ask(store, put(b"a", 1, first), put(b"k", 1, first))
    before = digested(store, b"b", b"")
    ask(store, Prepare(b"a", ballot(5)), Prepare(b"b", ballot(5)), Prepare(b"k", ballot(5)))
    assert digested(store, b"b", b"") == before, "promises are not moved by repair"
    ask(store, put(b"k", 5, third))
    moved = digested(store, b"b", b"")
    assert moved[0] == before[0]
    assert moved[1] != before[1], "another ballot was accepted"
    ask(store, put(b"k", 6, third))
    assert digested(store, b"b", b"")[1] not in (before[1], moved[1]), "the ballot alone"
    moved = digested(store, b"b", b"")
    ask(store, Accept(b"k", ballot(6), state(third), (second, third)))
    assert digested(store, b"b", b"")[1] not in (before[1], moved[1]), "a record was added"
    assert [registers for _, registers, _ in digested(store, b"a", b"a\0", b"k", b"l", b"")] == [0, 1, 0, 1, 0]


def test_digests_are_cut_into_leaves_and_bounded(store: Store) -> None:
    count = DIGESTED_MAX
    ask(store, *[put(b"%06d" % number, 1, record(1)) for number in range(count)])
    first = store.digests(TAG, DigestRequest())
    assert [each.registers for each in first.ranges] == [LEAF_REGISTERS] * (DIGESTED_MAX // 2 // LEAF_REGISTERS)
    assert [each.end for each in first.ranges][:2] == [b"%06d" % LEAF_REGISTERS, b"%06d" % (2 * LEAF_REGISTERS)]
    rest = store.digests(TAG, DigestRequest(first.ranges[-1].end))
    assert sum(each.registers for each in (*first.ranges, *rest.ranges)) == count
    assert rest.ranges[-1].end == b""
    asked = store.digests(TAG, DigestRequest(b"", tuple(each.end for each in (*first.ranges, *rest.ranges))))
    assert asked == first, "given bounds give the same digests, as far as one answer goes"
    assert store.digests(TAG, DigestRequest(b"", (b"",))) == Digests(()), "one range of all of them is too long"


def test_a_register_with_very_many_records_ends_its_range(store: Store) -> None:
    records = [record(number, sequence=number) for number in range(1, DIGESTED_MAX + 2)]
    ask(store, put(b"a", 1, record(1)), put(b"hot", 1, *records), put(b"x", 1, record(1)))
    (upto_hot,) = store.digests(TAG, DigestRequest()).ranges
    assert (upto_hot.end, upto_hot.registers) == (b"x", 2)
    assert store.digests(TAG, DigestRequest(b"", (b"x", b""))).ranges == (upto_hot,)
    assert len(records) < HELD_PER_PAGE_MAX, "an inventory still shows it on one page"


@contextmanager
def one_of_each() -> Iterator[list[Store]]:
    with ExitStack() as opened:
        directory = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        stores: list[Store] = [
            MemoryStore(1, CONFIGURATION),
            SqliteStore.create(directory / "sqlite", 1, CONFIGURATION),
            RocksStore.create(directory / "rocks", 1, CONFIGURATION),
        ]
        for each in stores:
            opened.callback(each.close)
        yield stores


def some_requests(rng: random.Random, count: int) -> list[Request]:
    requests: list[Request] = []
    for _ in range(count):
        name = rng.choice((b"", b"\0", b"a", b"a\0", b"a\0\xff", b"a\xff", b"b", b"\xff")) + rng.choice((b"", b"1"))
        records = [record(rng.randint(1, 400), sequence=rng.randint(1, 3)) for _ in range(rng.randint(1, 2))]
        kind = rng.random()
        at = ballot(rng.randint(1, 30))
        if kind < 0.3:
            requests.append(Prepare(name, at))
        elif kind < 0.4:
            requests.append(Erase(name, at))
        else:
            flag = rng.choice((LIVE, TOMBSTONE))
            dead = tuple(record(rng.randint(1, 400)).ref for _ in range(5)) if rng.random() < 0.3 else ()
            requests.append(Accept(name, at, state(*records, flag=flag), tuple(records), dead=dead))
    return requests


@pytest.mark.parametrize("seed", range(8))
def test_every_store_answers_alike(seed: int) -> None:
    rng = random.Random(seed)
    simulated = SimStore(1, CONFIGURATION, AcceptorHooks())
    with one_of_each() as stores:
        for _ in range(10):
            requests = some_requests(rng, 8)
            for store in stores:
                ask(store, *requests)
            for request in requests:
                simulated.apply(TAG, request)
        simulated.disk.sync(len(simulated.disk.waiting))
        names = [row.name for row in stores[0].inventory(TAG, InventoryRequest()).rows]
        assert len(names) > 5
        for _ in range(12):
            start, end = sorted(rng.choices([b"", *names, b"aa"], k=2))
            after = record(rng.randint(1, 400)).ref if rng.random() < 0.5 else None
            asked = InventoryRequest(start, rng.choice((b"", end)), rng.randint(1, 9), after)
            answers = [store.inventory(TAG, asked) for store in (*stores, simulated)]
            assert answers == [answers[0]] * 4
            named = InventoryRequest(names=tuple(sorted({*rng.choices(names, k=4), b"aa"})))
            answers = [store.inventory(TAG, named) for store in (*stores, simulated)]
            assert answers == [answers[0]] * 4
            bounds = (*sorted(set(rng.choices(names, k=3)) - {b""}), b"")
            for ranges in (DigestRequest(start), DigestRequest(b"", bounds)):
                digests = [store.digests(TAG, ranges) for store in (*stores, simulated)]
                assert digests == [digests[0]] * 4


def test_version_ids_of_all_bytes_sort_alike() -> None:
    ids = [bytes(16), b"\0" * 15 + b"\1", b"\0\xff" * 8, b"\xff" * 16, version(7), b"a\0" * 8]
    with one_of_each() as stores:
        for store in stores:
            for number, each in enumerate(ids, 1):
                made = record(1, sequence=number)
                odd = Record(made.ref._replace(version_id=each), None, b"", b"data")
                ask(store, put(b"k\0", number, odd))
        answers = [store.inventory(TAG, InventoryRequest()) for store in stores]
        assert answers == [answers[0]] * 3
        assert [ref.version_id for ref, _ in answers[0].rows[0].held] == sorted(ids)
