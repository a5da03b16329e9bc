"""Pages: what is in them, where they end, and that equal content gives equal bytes."""

from __future__ import annotations

import msgspec
import pytest

from objmeta.core.configuration import single_set
from objmeta.core.listing import NamedRecord, ScanAnswer, ScanRequest, ScanRow, decode_records, decode_rows, encode_rows
from objmeta.core.messages import HIDDEN, LIVE, TOMBSTONE, Accept, Prepare
from objmeta.errors import ConfigurationMismatch
from objmeta.store.memory import MemoryStore
from objmeta.store.pages import PAGE_BYTES_MAX, WITNESS_ROWS_MAX
from objmeta.store.rocks import RocksStore
from objmeta.store.sqlite import SqliteStore
from tests.store.build import CONFIGURATION, TAG, ask, ballot, put, record, scan, state

Store = MemoryStore | SqliteStore | RocksStore


def fill(store: Store, *names: bytes, flag: int = LIVE) -> None:
    ask(store, *[put(name, 1, record(1), flag=flag) for name in names])


def names_of(store: Store, request: ScanRequest) -> tuple[list[bytes], bytes]:
    rows, answer = scan(store, request)
    return [row.name for row in rows], answer.covered


def test_an_empty_store_has_an_empty_page(store: Store) -> None:
    assert store.scan(TAG, ScanRequest(b"")) == ScanAnswer(b"\x90")
    assert store.scan(TAG, ScanRequest(b"", delimiter=b"/", with_records=True)) == ScanAnswer(b"\x90")


def test_another_configuration_is_refused(store: Store) -> None:
    with pytest.raises(ConfigurationMismatch):
        store.scan(single_set(CONFIGURATION.store_id, (9,)).tag, ScanRequest(b""))


def test_rows_come_in_byte_order_between_start_and_end(store: Store) -> None:
    fill(store, b"b", b"a\xff", b"a", b"\xff", b"", b"a\x00", b"\x80")
    assert names_of(store, ScanRequest(b"")) == ([b"", b"a", b"a\x00", b"a\xff", b"b", b"\x80", b"\xff"], b"")
    assert names_of(store, ScanRequest(b"a\x00", b"b")) == ([b"a\x00", b"a\xff"], b"")
    assert names_of(store, ScanRequest(b"b", b"b")) == ([], b"")
    assert names_of(store, ScanRequest(b"c", b"b")) == ([], b"")


def test_rows_are_encoded_as_everybody_encodes_them(store: Store) -> None:
    names = [b"short", b"n" * 255, b"n" * 256, b"n" * 1060]
    accepts = [put(name, counter, record(counter)) for name, counter in zip(names, (1, 200, 2**32, 2**63), strict=True)]
    ask(store, *accepts)
    rows = [ScanRow(each.name, each.ballot, each.state) for each in sorted(accepts, key=lambda each: each.name)]
    assert store.scan(TAG, ScanRequest(b"")).rows == encode_rows(rows)


@pytest.mark.parametrize("count", [15, 16, 17, 1024, 1025, 2100])
def test_long_pages_are_encoded_alike_too(store: Store, count: int) -> None:
    names = [b"%06d" % number for number in range(count)]
    fill(store, *names)
    rows, answer = scan(store, ScanRequest(b"", limit=5000))
    assert [row.name for row in rows] == names
    assert answer == ScanAnswer(encode_rows(rows))


def test_promises_alone_are_not_shown_and_the_dead_are(store: Store) -> None:
    ask(store, Prepare(b"promised", ballot(3)), Prepare(b"live", ballot(3)))
    fill(store, b"hidden", flag=HIDDEN)
    fill(store, b"gone", flag=TOMBSTONE)
    ask(store, put(b"live", 3, record(1)))
    assert names_of(store, ScanRequest(b""))[0] == [b"gone", b"hidden", b"live"]


def test_the_limit_ends_a_page_just_after_its_last_row(store: Store) -> None:
    fill(store, b"a", b"b", b"b\x00", b"c")
    assert names_of(store, ScanRequest(b"", limit=2)) == ([b"a", b"b"], b"b\x00")
    assert names_of(store, ScanRequest(b"b\x00", limit=2)) == ([b"b\x00", b"c"], b"")
    assert names_of(store, ScanRequest(b"", b"b\x00", limit=2)) == ([b"a", b"b"], b"")
    assert names_of(store, ScanRequest(b"", limit=4)) == ([b"a", b"b", b"b\x00", b"c"], b"")
    for limit in (1, 0, -1):
        assert names_of(store, ScanRequest(b"", limit=limit)) == ([b"a"], b"a\x00")


def test_promises_beyond_do_not_change_a_page(store: Store) -> None:
    fill(store, b"a", b"b")
    ask(store, Prepare(b"aa", ballot(1)), Prepare(b"c", ballot(1)))
    assert names_of(store, ScanRequest(b"", limit=2)) == ([b"a", b"b"], b"")


def test_a_page_is_bounded_in_bytes_but_never_empty_for_it(store: Store) -> None:
    big = b"v" * (PAGE_BYTES_MAX // 3)
    ask(store, *[put(name, 1, record(1), value=big) for name in (b"a", b"b", b"c", b"d")])
    ask(store, put(b"e", 1, record(1), value=b"v" * (PAGE_BYTES_MAX + 1)))
    assert names_of(store, ScanRequest(b"")) == ([b"a", b"b"], b"b\x00")
    assert names_of(store, ScanRequest(b"c")) == ([b"c", b"d"], b"d\x00")
    assert names_of(store, ScanRequest(b"d\x00")) == ([b"e"], b"")


def test_records_count_in_a_pages_bytes(store: Store) -> None:
    body = b"b" * (PAGE_BYTES_MAX // 3)
    ask(store, *[put(name, 1, record(1, body=body)) for name in (b"a", b"b", b"c")])
    assert names_of(store, ScanRequest(b"", with_records=True)) == ([b"a", b"b"], b"b\x00")
    assert names_of(store, ScanRequest(b"")) == ([b"a", b"b", b"c"], b"")


def test_records_of_the_names_answered_come_along_without_data(store: Store) -> None:
    first = record(1, data=b"data")
    second = record(2, sequence=2, parent=first.ref, body=b"second")
    third = record(3, sequence=3, parent=second.ref)
    ask(store, put(b"a", 1, first), put(b"a", 2, second, third), put(b"b", 1, record(9)))
    ask(store, Prepare(b"c", ballot(1)))
    answer = store.scan(TAG, ScanRequest(b"", limit=1, with_records=True))
    assert decode_records(answer.records) == [
        NamedRecord(b"a", record(1)),
        NamedRecord(b"a", second),
        NamedRecord(b"a", third),
    ]
    assert store.scan(TAG, ScanRequest(b"")).records == b"\x90"
    both = decode_records(store.scan(TAG, ScanRequest(b"", with_records=True)).records)
    assert [named.name for named in both] == [b"a", b"a", b"a", b"b"]


def witnesses(store: Store, request: ScanRequest) -> tuple[list[tuple[bytes, bool]], bytes]:
    rows, answer = scan(store, request)
    return [(row.name, row.witness) for row in rows], answer.covered


def test_one_witness_stands_for_each_common_prefix(store: Store) -> None:
    fill(store, b"p/a", b"p/b/1", b"p/b/2", b"p/c/x/y", b"p/d", b"p", b"q/1")
    request = ScanRequest(b"p/", b"p0", delimiter=b"/", prefix_length=2)
    expected = [(b"p/a", False), (b"p/b/1", True), (b"p/c/x/y", True), (b"p/d", False)]
    assert witnesses(store, request) == (expected, b"")
    top = ScanRequest(b"", delimiter=b"/")
    assert witnesses(store, top) == ([(b"p", False), (b"p/a", True), (b"q/1", True)], b"")


def test_pages_with_a_delimiter_end_after_the_prefix(store: Store) -> None:
    fill(store, b"a/1", b"a/2", b"b", b"c/1", b"c/2")
    assert witnesses(store, ScanRequest(b"", limit=1, delimiter=b"/")) == ([(b"a/1", True)], b"a0")
    assert witnesses(store, ScanRequest(b"a0", limit=1, delimiter=b"/")) == ([(b"b", False)], b"b\x00")
    assert witnesses(store, ScanRequest(b"b\x00", limit=1, delimiter=b"/")) == ([(b"c/1", True)], b"")
    assert witnesses(store, ScanRequest(b"a/2", b"c/2", delimiter=b"/")) == (
        [(b"a/2", True), (b"b", False), (b"c/1", True)],
        b"",
    )


def test_delimiters_may_be_long_and_prefixes_end_in_the_last_byte(store: Store) -> None:
    fill(store, b"a--1", b"a-b", b"\xff\xff1", b"\xff\xff2")
    assert witnesses(store, ScanRequest(b"", delimiter=b"--"))[0][0] == (b"a--1", True)
    assert witnesses(store, ScanRequest(b"b", limit=1, delimiter=b"\xff\xff")) == ([(b"\xff\xff1", True)], b"")


@pytest.mark.parametrize("before", [0, 1, 5, 63, 64, 65, 127, 128, 129, 300])
@pytest.mark.parametrize("plain", [0, 1, 100])
def test_a_witness_is_live_if_one_of_the_first_rows_is(store: Store, before: int, plain: int) -> None:
    hidden = [b"p/%06d" % number for number in range(before)]
    fill(store, *[b"o%06d" % number for number in range(plain)])
    fill(store, *hidden, flag=HIDDEN)
    fill(store, b"p/live", b"q")
    expected = b"p/live" if before < WITNESS_ROWS_MAX else hidden[0]
    rows, answer = scan(store, ScanRequest(b"", delimiter=b"/"))
    assert [row.name for row in rows if row.witness] == [expected]
    assert rows[-1].name == b"q"
    assert len(rows) == plain + 2
    assert answer.covered == b""


def test_a_prefix_of_dead_rows_has_its_first_row_as_witness(store: Store) -> None:
    fill(store, *[b"p/%d" % number for number in range(9)], flag=TOMBSTONE)
    ask(store, Prepare(b"o/1", ballot(1)))
    assert witnesses(store, ScanRequest(b"", delimiter=b"/")) == ([(b"p/0", True)], b"")


def test_a_delimited_page_skips_over_big_prefixes(store: Store) -> None:
    for prefix in (b"a/", b"b/", b"c/"):
        fill(store, *[prefix + b"%06d" % number for number in range(500)])
    fill(store, b"a", b"b0")
    expected = [(b"a", False), (b"a/000000", True), (b"b/000000", True), (b"b0", False), (b"c/000000", True)]
    assert witnesses(store, ScanRequest(b"", delimiter=b"/")) == (expected, b"")


def test_following_covered_visits_everything_once(store: Store) -> None:
    fill(store, *[b"d%d/%d" % (number % 7, number) for number in range(300)], *[b"%d" % n for n in range(50)])
    for delimiter in (b"", b"/"):
        whole = scan(store, ScanRequest(b"", delimiter=delimiter))[0]
        for limit in (1, 3, 50):
            pages: list[ScanRow] = []
            start = b""
            while True:
                rows, answer = scan(store, ScanRequest(start, limit=limit, delimiter=delimiter))
                pages += rows
                start = answer.covered
                if not start:
                    break
            assert pages == whole


def test_a_row_shows_what_was_accepted_last(store: Store) -> None:
    ask(store, put(b"k", 1, record(1)), Accept(b"k", ballot(7), state(record(1), value=b"new"), ()))
    ask(store, Prepare(b"k", ballot(9)))
    rows = decode_rows(store.scan(TAG, ScanRequest(b"")).rows)
    assert rows == [ScanRow(b"k", ballot(7), state(record(1), value=b"new"))]


def test_names_alone_are_looked_at(store: Store) -> None:
    ask(store, *[put(b"%d" % number, 1, record(number + 1)) for number in range(6)], Prepare(b"7", ballot(1)))
    wanted = ScanRequest(b"1", limit=10, with_records=True, names=(b"1", b"11", b"4", b"7"))
    rows, answer = scan(store, wanted)
    assert [row.name for row in rows] == [b"1", b"4"]
    assert answer.covered == b""
    assert [named.name for named in decode_records(answer.records)] == [b"1", b"4"]
    rows, answer = scan(store, msgspec.structs.replace(wanted, limit=1))
    assert ([row.name for row in rows], answer.covered) == ([b"1"], b"4")


def test_many_names_are_looked_at_together(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the bounds of what is read at once, and of a page, it is the page of the range without the others."""
    monkeypatch.setattr("objmeta.store.pages._NAMES_AT_ONCE", 3)
    held = [b"%02d" % number for number in range(20) if number % 3]
    ask(store, *[put(name, 1, record(number + 1)) for number, name in enumerate(held)], Prepare(b"99", ballot(1)))
    names = (*(b"%02d" % number for number in range(20)), b"99")
    wanted = ScanRequest(b"", limit=len(names), with_records=True, names=names)
    assert scan(store, wanted)[1] == scan(store, ScanRequest(b"", with_records=True))[1]
    found: list[bytes] = []
    while names:
        rows, answer = scan(store, msgspec.structs.replace(wanted, names=names, limit=4))
        found += [row.name for row in rows]
        names = names[names.index(answer.covered) :] if answer.covered else ()
    assert found == held
