"""What a sync does, against a dumb twin; which names the filters take."""

from __future__ import annotations

import fnmatch
from collections.abc import AsyncIterator, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli.ends.entries import Entry, Listed, Unlisted, time_ns, time_text
from gateway.cli.filters import Filters
from gateway.cli.merging import EXTRA, NEW, SIZE, Action, actions

names = st.text("ab/-", min_size=1, max_size=4)
rules = st.lists(st.tuples(st.booleans(), st.text("ab*?/", max_size=3)), max_size=3)


async def listed(entries: Iterable[Listed]) -> AsyncIterator[Listed]:
    for entry in sorted(entries, key=lambda each: each.name):
        yield entry


def by_size(source: Entry, target: Entry) -> str | None:
    return None if source.size == target.size else SIZE


async def merged(
    source: Iterable[Listed], target: Iterable[Listed], filters: Filters, delete: bool = True
) -> list[Action | Unlisted | Entry]:
    return [each async for each in actions(listed(source), listed(target), filters, by_size, delete=delete)]


@given(st.dictionaries(names, st.integers(0, 1)), st.dictionaries(names, st.integers(0, 1)), rules, st.booleans())
async def test_a_sync_does_what_a_comparison_of_two_dictionaries_says(
    source: dict[str, int], target: dict[str, int], given_rules: list[tuple[bool, str]], delete: bool
) -> None:
    def taken(name: str) -> bool:
        verdict = True
        for include, pattern in given_rules:
            if fnmatch.fnmatchcase(name, pattern):
                verdict = include
        return verdict

    found = await merged(
        [Entry(name, size) for name, size in source.items()],
        [Entry(name, size) for name, size in target.items()],
        Filters(given_rules),
        delete,
    )
    expected: dict[str, str | None] = {}
    for name in filter(taken, source):
        expected[name] = NEW if name not in target else None if source[name] == target[name] else SIZE
    if delete:
        expected |= {name: EXTRA for name in filter(taken, target) if name not in source}
    assert {each.name: each.reason if isinstance(each, Action) else None for each in found} == expected
    assert len(found) == len(expected)


@given(st.sets(names), st.sets(names), st.sets(names, min_size=1))
async def test_what_could_not_be_listed_is_not_deleted(source: set[str], target: set[str], unknown: set[str]) -> None:
    entries: list[Listed] = [Entry(name) for name in source - unknown]
    found = await merged([*entries, *(Unlisted(name, "why") for name in unknown)], map(Entry, target), Filters())
    deleted = {each.name for each in found if isinstance(each, Action) and each.reason == EXTRA}
    kept = {name for name in target for one in unknown if name == one or name.startswith(one.removesuffix("/") + "/")}
    assert deleted == target - source - kept
    assert [each.name for each in found if isinstance(each, Unlisted)] == sorted(unknown)


async def test_a_listing_that_is_not_in_order_is_refused() -> None:
    async def unordered() -> AsyncIterator[Listed]:
        yield Entry("b")
        yield Entry("a")

    with pytest.raises(OSError, match="not in order"):
        async for _ in actions(unordered(), listed([]), Filters(), by_size, delete=True):
            pass


@pytest.mark.parametrize("number", [0, 1, -1, 1_700_000_000_123_456_789, -1_500_000_000, 10**18])
def test_a_time_as_metadata(number: int) -> None:
    assert time_ns({"source-mtime": time_text(number)}) == number


@pytest.mark.parametrize("text", ["", "soon", "1e9", "1.2.3", "0x1", "9" * 30])
def test_metadata_that_is_no_time(text: str) -> None:
    assert time_ns({"source-mtime": text}) is None
