"""Flipped bits in a SQLite store: found, reported, never served, and no matter of anybody else."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

import objmeta
from objmeta.core.inventory import InventoryRequest
from objmeta.core.listing import ScanAnswer, ScanRequest, encode_rows, merge
from objmeta.core.messages import (
    Accept,
    Accepted,
    Fence,
    Fetch,
    Fetched,
    Found,
    Prepare,
    RaiseTerm,
    Read,
    Refusal,
    Refused,
)
from objmeta.core.quorum import Quorums
from objmeta.errors import IntegrityError, NotFound, ObjmetaError
from objmeta.store import sqlite_files
from objmeta.store.sqlite import SqliteStore
from tests.store.build import TAG, ask, ask_one, ballot, put, read_one, record, scan, state

Flip = Callable[..., SqliteStore]


def change(store: SqliteStore, statement: str, *values: object) -> SqliteStore:
    """The store, opened again, after something else has written into its closed database."""
    store.close()
    with closing(sqlite3.connect(sqlite_files.database_path(store.path), isolation_level=None)) as other:
        assert other.execute(statement, values).rowcount > 0
    return SqliteStore.open(store.path)


def flipped(value: bytes) -> bytes:
    """The middle bit of it turned over."""
    at = len(value) // 2
    return value[:at] + bytes((value[at] ^ 0x10,)) + value[at + 1 :]


def flip(store: SqliteStore, column: str, name: bytes) -> SqliteStore:
    store.close()
    with closing(sqlite3.connect(sqlite_files.database_path(store.path), isolation_level=None)) as other:
        (value,) = other.execute(f"SELECT {column} FROM registers WHERE name = ?", (name,)).fetchone()
        new = flipped(value) if isinstance(value, bytes) else value ^ 1
        other.execute(f"UPDATE registers SET {column} = ? WHERE name = ?", (new, name))
    return SqliteStore.open(store.path)


@pytest.mark.parametrize("column", ["promised", "accepted", "flag", "whole", "state", "checksum"])
def test_a_damaged_row_has_no_vote_and_the_others_have(sqlite: SqliteStore, column: str) -> None:
    ask(sqlite, put(b"a", 1, record(1)), put(b"b", 2, record(2)), put(b"c", 1, record(3)))
    store = flip(sqlite, column, b"b")
    replies = ask(store, Prepare(b"a", ballot(9)), Prepare(b"b", ballot(9)), put(b"c", 3, record(4)))
    assert [type(reply).__name__ for reply in replies] == ["Promise", "Refused", "Accepted"]
    assert isinstance(replies[1], Refused)
    assert replies[1].reason is Refusal.DAMAGED
    assert replies[1].greatest >= ballot(2)
    assert "'b'" in replies[1].detail
    assert isinstance(read_one(store, Read(b"a")), Found)
    assert isinstance(read_one(store, Read(b"b")), Refused)
    rows, answer = scan(store, ScanRequest(b""))
    assert [row.name for row in rows] == [b"a", b"c"]
    assert answer.unknown == (b"b",)
    assert scan(store, ScanRequest(b"a", names=(b"a", b"b", b"bb", b"c")))[1] == answer
    inventory = store.inventory(TAG, InventoryRequest())
    assert [(row.name, row.damaged) for row in inventory.rows] == [(b"a", False), (b"b", True), (b"c", False)]
    store.close()


def test_a_write_back_above_every_promise_mends_a_row(sqlite: SqliteStore) -> None:
    mended = record(2)
    ask(sqlite, put(b"a", 1, record(1)), put(b"b", 5, mended), Prepare(b"z", ballot(7)))
    store = flip(sqlite, "state", b"b")
    again = Accept(b"b", ballot(7), state(mended), (mended,))
    assert isinstance(ask_one(store, again), Refused)  # perhaps promised to somebody else
    above = Accept(b"b", ballot(8), state(mended), (mended,))
    assert ask_one(store, above) == Accepted(ballot(8))
    assert read_one(store, Read(b"b")) == Found(ballot(8), state(mended))
    _, answer = scan(store, ScanRequest(b""))
    assert answer.unknown == ()
    store.close()


def test_a_row_whose_name_is_damaged_is_neither_absent_nor_passed_by(sqlite: SqliteStore) -> None:
    ask(sqlite, put(b"a", 1, record(1)), put(b"bb", 1, record(2)), *(put(n, 1, record(3)) for n in (b"c", b"d")))
    store = change(sqlite, "UPDATE registers SET name = ? WHERE name = ?", b"b\x22", b"bb")
    reply = read_one(store, Read(b"bb"))
    assert isinstance(reply, Refused)
    assert reply.reason is Refusal.DAMAGED
    with pytest.raises(IntegrityError, match="damaged"):
        scan(store, ScanRequest(b""))
    with pytest.raises(IntegrityError, match="damaged"):
        scan(store, ScanRequest(b"a", names=(b"a", b"bb")))
    assert [row.name for row in scan(store, ScanRequest(b"a", names=(b"a", b"c")))[0]] == [b"a", b"c"]
    assert [row.name for row in scan(store, ScanRequest(b"d"))[0]] == [b"d"]
    assert isinstance(read_one(store, Read(b"a")), Found)
    assert read_one(store, Read(b"new")) == Found(ballot(0, 0)._replace(incarnation=0), None)
    store.close()


def test_a_damaged_promise_alone_has_no_vote(sqlite: SqliteStore) -> None:
    ask(sqlite, Prepare(b"p", ballot(5)), put(b"q", 1, record(1)))
    store = flip(sqlite, "promised", b"p")
    reply = ask_one(store, Prepare(b"p", ballot(4)))
    assert isinstance(reply, Refused)
    assert reply.reason is Refusal.DAMAGED
    assert scan(store, ScanRequest(b""))[1].unknown == (b"p",)
    store.close()


def test_damaged_floors_concern_their_scope_alone(sqlite: SqliteStore) -> None:
    ask(sqlite, RaiseTerm(b"s1", 3), RaiseTerm(b"s2", 3))
    store = change(sqlite, "UPDATE floors SET term = 1 WHERE scope = ?", b"s1")
    first, second = (
        Accept(b"k/%d" % number, ballot(1), state(record(number)), (record(number),), Fence(scope, 2))
        for number, scope in ((1, b"s1"), (2, b"s2"))
    )
    refused, stale = ask(store, first, second)
    assert isinstance(refused, Refused)
    assert isinstance(stale, Refused)
    assert (refused.reason, stale.reason) == (Refusal.DAMAGED, Refusal.STALE_TERM)
    assert read_one(store, Read(b"k/1")) == Found(ballot(0, 0)._replace(incarnation=0), None)
    store.close()


def test_a_damaged_identity_stops_the_store(sqlite: SqliteStore) -> None:
    ask_one(sqlite, put(b"a", 1, record(1)))
    with pytest.raises(IntegrityError, match="replace it"):
        change(sqlite, "UPDATE store SET generation_floor = 1")


def test_damaged_changes_mean_reload(sqlite: SqliteStore) -> None:
    ask(sqlite, put(b"a", 1, record(1)), put(b"b", 1, record(2)), put(b"c", 1, record(3)))
    assert sqlite.changes(0, 10).names == (b"a", b"b", b"c")
    store = change(sqlite, "UPDATE changes SET name = x'00' WHERE number = 2")
    assert store.changes(0, 10).reload
    assert store.changes(2, 10).names == (b"c",)
    store.close()


def test_damaged_records_are_not_shown(sqlite: SqliteStore) -> None:
    whole, damaged = record(1, body=b"one"), record(2, body=b"two")
    ask(sqlite, put(b"a", 1, whole), put(b"b", 1, damaged))
    store = change(sqlite, "UPDATE records SET parent = x'c1' WHERE name = ?", b"b")
    assert read_one(store, Fetch(b"b", (damaged.ref,))) == Fetched(())
    assert read_one(store, Fetch(b"a", (whole.ref,))) == Fetched((whole,))
    answer = store.scan(TAG, ScanRequest(b"", with_records=True))
    assert b"one" in answer.records
    assert b"two" not in answer.records
    store.close()


def test_an_unknown_name_is_neither_shown_nor_taken_for_absent() -> None:
    quorums = Quorums([(1, 2, 3)])
    nothing, damaged = ScanAnswer(encode_rows([])), ScanAnswer(encode_rows([]), unknown=(b"k",))
    request = ScanRequest(b"")
    assert merge(request, {1: nothing, 2: nothing, 3: damaged}, quorums).open == ()  # two say that there is none
    assert merge(request, {1: nothing, 3: damaged}, quorums).open == (b"k",)
    assert merge(request, {1: damaged, 3: damaged}, quorums).open == (b"k",)
    by_prefix = ScanRequest(b"", delimiter=b"/")
    found = merge(by_prefix, {1: ScanAnswer(encode_rows([]), unknown=(b"d/k",))}, Quorums([(1,)]))
    assert (found.open, found.witnesses) == ((b"d/k",), (b"d/k",))


# -- As people see it -------------------------------------------------------------------------------------------------


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    with objmeta.connect(tmp_path, timeout_s=3) as client:
        client.create_bucket("bucket")
        for number in range(60):
            client.put_object("bucket", f"dir/{number:02}", data=b"content of %d" % number)
        client.put_object("bucket", "top", data=b"top")
    return tmp_path


def test_a_damaged_object_is_named_and_the_others_work(filled: Path) -> None:
    path = sqlite_files.database_path(filled / "acceptor")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        rows = other.execute("SELECT name, state FROM registers").fetchall()
        ((name, value),) = [row for row in rows if row[0].endswith(b"dir/07")]
        other.execute("UPDATE registers SET state = ? WHERE name = ?", (flipped(value), name))
    with objmeta.connect(filled, timeout_s=30) as client:
        with pytest.raises(IntegrityError, match="'dir/07'"):
            client.get_object("bucket", "dir/07")
        with pytest.raises(IntegrityError, match="'dir/07'"):
            client.put_object("bucket", "dir/07", data=b"new")
        with pytest.raises(IntegrityError, match="'dir/07'"):
            client.list_objects("bucket")
        assert client.get_object("bucket", "dir/08").data == b"content of 8"
        client.put_object("bucket", "dir/08", data=b"new")
        assert client.get_object("bucket", "dir/08").data == b"new"
        assert [each.key for each in client.list_objects("bucket", prefix="dir/1").objects] == [
            f"dir/1{last}" for last in range(10)
        ]


def test_any_flipped_bit_of_the_file_is_found_or_harmless(filled: Path) -> None:
    """Whatever is answered is what was written; that something is missing is said only where it is."""
    path = sqlite_files.database_path(filled / "acceptor")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    whole = path.read_bytes()
    rng = random.Random(20_26)
    found = 0
    for _ in range(30):
        at = rng.randrange(100 * 8, len(whole) * 8)
        broken = bytearray(whole)
        broken[at // 8] ^= 1 << (at % 8)
        path.write_bytes(broken)
        for leftover in ("-wal", "-shm"):
            path.with_name(path.name + leftover).unlink(missing_ok=True)
        with objmeta.connect(filled, timeout_s=3) as client:
            for key, content in ((f"dir/{n:02}", b"content of %d" % n) for n in range(0, 60, 7)):
                try:
                    assert client.get_object("bucket", key).data == content, f"bit {at}"
                except NotFound:
                    pytest.fail(f"{key} was taken for absent with bit {at} flipped")
                except ObjmetaError:
                    found += 1
            try:
                listed = [each.key for each in client.list_objects("bucket").objects]
                assert listed == [*(f"dir/{n:02}" for n in range(60)), "top"], f"bit {at}"
            except ObjmetaError:
                found += 1
    assert found, "no damage was met at all: the test looks at the wrong place"
