"""Marks in order of digest, whatever order they come in."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from gateway.collection.marks import MarksPage, MemorySpool, Spool, Wanted, merge, pack
from objmeta import errors


def some_marks(count: int, seed: int = 1) -> list[Wanted]:
    rng = random.Random(seed)
    return [Wanted(rng.randbytes(32), rng.randrange(1 << 23), rng.randint(1, 5)) for _ in range(count)]


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_spool_gives_pages_in_order_and_each_mark_once(tmp_path: Path, on_disk: bool) -> None:
    marks = some_marks(100)
    spool = Spool(tmp_path / "spools") if on_disk else MemorySpool()
    spool.add(marks[:60])
    spool.add(marks[40:])
    assert spool.count() == 100
    found: list[Wanted] = []
    start = b""
    while True:
        page = spool.page(start, 7)
        found += page.marks()
        start = page.end
        if not start:
            break
    assert found == sorted(marks)
    spool.close()


def test_a_spool_on_disk_has_no_name(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.add(some_marks(10))
    assert not list(tmp_path.iterdir()), "a process that is killed would leave it behind"
    spool.close()


@pytest.mark.parametrize("on_disk", [True, False])
def test_the_greatest_number_of_copies_counts(tmp_path: Path, on_disk: bool) -> None:
    (mark,) = some_marks(1)
    spool = Spool(tmp_path) if on_disk else MemorySpool()
    for replicas in (2, 5, 3):
        spool.add([mark._replace(replicas=replicas)])
    assert spool.page(b"", 10).marks() == [mark._replace(replicas=5)]
    spool.close()


def test_pages_of_several_acceptors_are_merged_up_to_where_all_of_them_reach() -> None:
    marks = sorted(some_marks(20))
    first, second = marks[:10], marks[5:]
    assert merge([first, second], marks[10].digest) == marks[:10]
    assert merge([first, second], b"") == marks
    more = [mark._replace(replicas=9) for mark in first]
    assert merge([first, more], b"") == more


def test_a_page_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(errors.IntegrityError):
        MarksPage(b"", pack(some_marks(2))[:-1]).marks()
