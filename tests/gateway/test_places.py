"""What every place for chunks must do: on a disk, and in the simulator's memory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from blake3 import blake3

from gateway.blobs.packs import PACKED_BYTES_MAX
from gateway.blobs.places import BlobPlace, ChunkMissing, Mark, Sweep, Swept
from objmeta import Chunk, errors
from tests.gateway.places import FACTORIES, Lab

LENGTHS = [10, PACKED_BYTES_MAX + 1]
"""One that is packed with others, and one that has a file of its own."""


@pytest.fixture(params=sorted(FACTORIES))
async def lab(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Lab]:
    found = FACTORIES[request.param](tmp_path)
    yield found
    await found.place.close()


@pytest.fixture
def place(lab: Lab) -> BlobPlace:
    return lab.place


def named(data: bytes) -> Chunk:
    return Chunk(blake3(data).digest(), len(data))


def everything(cycle: int, *marked: Chunk, replicas: int = 0) -> Sweep:
    """A sweep of the whole place by cycle ``cycle``, which has the generation before it as its floor."""
    return Sweep(cycle, cycle - 1, b"", b"", tuple(sorted(Mark(chunk.digest, replicas) for chunk in marked)))


async def held(place: BlobPlace) -> list[Chunk]:
    return [each.chunk for each in await place.held()]


# -- In and out -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, PACKED_BYTES_MAX, PACKED_BYTES_MAX + 1, 3 << 20])
async def test_what_was_put_is_got(lab: Lab, length: int) -> None:
    data = os.urandom(length)
    chunk = await lab.place.put(data, generation=1)
    assert chunk == named(data)
    assert await lab.place.get(chunk) == data
    assert await lab.place.get(chunk, 10, 20) == data[10:20]
    again = await lab.reopened()
    assert await again.get(chunk) == data
    assert await again.put(data, generation=1) == chunk


@pytest.mark.parametrize("length", LENGTHS)
async def test_pieces_are_received(place: BlobPlace, length: int) -> None:
    data = os.urandom(length)
    await place.receive(named(data), (data[:3], b"", data[3:]), generation=4)
    assert await place.get(named(data)) == data
    (row,) = await place.held()
    assert (row.chunk, row.touched, row.damaged) == (named(data), 4, False)


@pytest.mark.parametrize("length", LENGTHS)
async def test_what_arrives_wrong_is_not_stored(place: BlobPlace, length: int) -> None:
    data = os.urandom(length)
    for wrong in ((data[:-1],), (data, b"!"), (data[:-1], bytes((data[-1] ^ 1,))), ()):
        with pytest.raises(errors.IntegrityError):
            await place.receive(named(data), wrong, generation=1)
    assert await place.has((named(data),)) == [False]
    with pytest.raises(ChunkMissing, match=named(data).digest.hex()):
        await place.get(named(data))


async def test_an_empty_place(place: BlobPlace) -> None:
    chunk = named(b"never")
    assert await place.has((chunk,)) == [False]
    assert await place.touch((chunk,), generation=1) == [False]
    assert await place.held() == []
    assert not await place.drop(chunk, 5)
    assert (await place.verify(b"", 1 << 20)).next == b""
    assert (await place.usage()).chunks == 0
    with pytest.raises(ChunkMissing):
        await place.get(chunk)
    assert await place.sweep(everything(3, chunk)) == Swept()
    assert await place.has((chunk,)) == [False]


async def test_several_are_got_together_each_or_why_not(lab: Lab) -> None:
    place = lab.place
    good, spoilt, lost, last = [await place.put(name * 100, generation=1) for name in (b"g", b"s", b"l", b"z")]
    never = Chunk(bytes(32), 5)
    lab.spoil(spoilt)
    await place.drop(lost, 2)
    found = await place.get_many([good, spoilt, lost, never, last])
    assert (found[0], found[4]) == (b"g" * 100, b"z" * 100)
    assert type(found[1]) is errors.IntegrityError
    assert isinstance(found[2], ChunkMissing)
    assert isinstance(found[3], ChunkMissing)
    assert await place.has([good, spoilt]) == [True, False]
    assert await place.get_many([]) == []


async def test_held_goes_in_order_and_in_pages(place: BlobPlace) -> None:
    chunks = await asyncio.gather(*(place.put(b"%d" % number, generation=1) for number in range(50)))
    found: list[Chunk] = []
    after = b""
    while page := await place.held(after, 7):
        assert len(page) <= 7
        found += [each.chunk for each in page]
        after = page[-1].digest
    assert found == sorted(chunks, key=lambda chunk: chunk.digest)


async def test_usage(place: BlobPlace) -> None:
    await asyncio.gather(*(place.put(os.urandom(length), generation=1) for length in (10, 20, 400_000)))
    usage = await place.usage()
    assert (usage.chunks, usage.chunk_bytes, usage.damaged) == (3, 400_030, 0)
    assert usage.stored_bytes >= 400_030


# -- Damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", LENGTHS)
async def test_damage_is_never_returned_is_remembered_and_mended_by_a_put(lab: Lab, length: int) -> None:
    place, data = lab.place, os.urandom(length)
    chunk = await place.put(data, generation=1)
    lab.spoil(chunk)
    with pytest.raises(errors.IntegrityError, match=chunk.digest.hex()):
        await place.get(chunk, 0, 1)
    assert await place.has((chunk,)) == [False]
    assert await place.touch((chunk,), generation=1) == [False]
    assert [each.damaged for each in await place.held()] == [True]
    assert (await place.usage()).damaged == 1
    await place.put(data, generation=1)
    assert await place.has((chunk,)) == [True]
    assert await place.get(chunk) == data


@pytest.mark.parametrize("length", LENGTHS)
async def test_damage_that_nobody_noticed_is_mended_by_a_put(lab: Lab, length: int) -> None:
    data = os.urandom(length)
    chunk = await lab.place.put(data, generation=1)
    lab.spoil(chunk)
    await lab.place.put(data, generation=1)
    assert await lab.place.get(chunk) == data


@pytest.mark.parametrize("length", LENGTHS)
async def test_what_lost_its_bytes_is_not_held(lab: Lab, length: int) -> None:
    place, data = lab.place, os.urandom(length)
    chunk = await place.put(data, generation=1)
    lab.lose(chunk)
    assert await place.has((chunk,)) == [False]
    assert await place.touch((chunk,), generation=1) == [False]
    assert await place.held() == []
    with pytest.raises(ChunkMissing):
        await place.get(chunk)
    await place.put(data, generation=1)
    assert await place.get(chunk) == data


async def test_verify_finds_what_is_damaged_and_goes_on(lab: Lab) -> None:
    place = lab.place
    chunks = [await place.put(os.urandom(length), generation=1) for length in (10, 1000, 400_000, 500_000) * 3]
    for chunk in chunks[:3]:
        lab.spoil(chunk)
    after, checked, damaged = b"", 0, set()
    while True:
        verified = await place.verify(after, 450_000)
        checked += verified.checked
        damaged |= set(verified.damaged)
        after = verified.next
        if not after:
            break
    assert checked == len(chunks)
    assert damaged == set(chunks[:3])
    assert await place.has(chunks) == [False] * 3 + [True] * 9
    assert (await place.usage()).damaged == 3


# -- Generations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", LENGTHS)
async def test_below_the_floor_everything_is_refused(lab: Lab, length: int) -> None:
    data = os.urandom(length)
    chunk = await lab.place.put(data, generation=3)
    await lab.place.raise_floor(4)
    place = await lab.reopened()
    for again in (data, os.urandom(length)):
        with pytest.raises(errors.StaleGeneration):
            await place.put(again, generation=3)
        with pytest.raises(errors.StaleGeneration):
            await place.receive(named(again), (again,), generation=3)
    with pytest.raises(errors.StaleGeneration):
        await place.touch((chunk,), generation=3)
    assert [each.touched for each in await place.held()] == [3]
    assert await place.touch((chunk,), generation=4) == [True]
    await place.raise_floor(2)  # never goes back
    with pytest.raises(errors.StaleGeneration):
        await place.touch((chunk,), generation=3)


async def test_a_floor_for_a_place_that_is_empty(lab: Lab) -> None:
    await lab.place.raise_floor(7)
    place = await lab.reopened()
    with pytest.raises(errors.StaleGeneration):
        await place.put(b"late", generation=6)
    await place.put(b"in time", generation=7)


@pytest.mark.parametrize("length", LENGTHS)
async def test_touched_only_grows(place: BlobPlace, length: int) -> None:
    data = os.urandom(length)
    chunk = await place.put(data, generation=5)
    other = named(b"other")
    assert await place.touch((other, chunk), generation=4) == [False, True]
    assert [each.touched for each in await place.held()] == [5]
    await place.put(data, generation=6)
    await place.put(data, generation=2)
    assert [each.touched for each in await place.held()] == [6]


async def test_a_generation_that_is_not_stated_is_the_newest_known(place: BlobPlace) -> None:
    await place.put(b"first", generation=5)
    await place.raise_floor(5)
    await place.put(b"second", generation=0)
    assert [each.touched for each in await place.held()] == [5, 5]


# -- Collection -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", LENGTHS)
async def test_what_nobody_names_goes_in_the_second_cycle(place: BlobPlace, length: int) -> None:
    data = os.urandom(length)
    chunk = await place.put(data, generation=5)
    assert await place.sweep(everything(6)) == Swept(kept=1, touched=1)  # at the floor
    assert await place.sweep(everything(7)) == Swept(unmarked=1)
    assert await place.sweep(everything(7)) == Swept(unmarked=1)  # the same cycle again
    assert await place.get(chunk) == data
    assert await place.sweep(everything(8)) == Swept(deleted=1, deleted_bytes=length)
    assert await held(place) == []
    assert await place.has((chunk,)) == [False]
    with pytest.raises(ChunkMissing):
        await place.get(chunk)
    assert await place.touch((chunk,), generation=8) == [False]
    await place.put(data, generation=8)
    assert await place.get(chunk) == data


async def test_what_is_named_stays_and_two_cycles_must_be_running(place: BlobPlace) -> None:
    chunk = await place.put(b"named", generation=1)
    for cycle in range(3, 12):
        marked = (chunk,) if cycle % 2 else ()
        await place.sweep(everything(cycle, *marked, replicas=cycle))
        (row,) = await place.held()
        assert row.replicas == cycle - (cycle + 1) % 2
    await place.sweep(everything(12))
    await place.sweep(everything(13))
    assert await held(place) == []


@pytest.mark.parametrize("length", LENGTHS)
async def test_a_touch_between_two_cycles_saves_a_chunk(place: BlobPlace, length: int) -> None:
    data = os.urandom(length)
    chunk = await place.put(data, generation=1)
    await place.sweep(everything(4))
    assert await place.touch((chunk,), generation=4) == [True]
    assert await place.sweep(everything(5)) == Swept(kept=1, touched=1)
    assert await place.sweep(everything(6)) == Swept(unmarked=1)
    await place.put(data, generation=6)
    assert await place.sweep(everything(7)) == Swept(kept=1, touched=1)
    assert await place.get(chunk) == data


async def test_an_old_touch_does_not(place: BlobPlace) -> None:
    chunk = await place.put(b"data", generation=5)
    assert await place.touch((chunk,), generation=5) == [True]
    for cycle in (7, 8):
        await place.sweep(everything(cycle))
    assert await held(place) == []


async def test_a_sweep_raises_the_floor(place: BlobPlace) -> None:
    await place.sweep(everything(9))
    with pytest.raises(errors.StaleGeneration):
        await place.put(b"late", generation=7)
    await place.put(b"in time", generation=8)


async def test_a_sweep_stays_in_its_range(place: BlobPlace) -> None:
    chunks = sorted(
        await asyncio.gather(*(place.put(b"%d" % number, generation=1) for number in range(600))),
        key=lambda chunk: chunk.digest,
    )
    inside = chunks[100:500]
    marked = inside[::2]
    for cycle in (5, 6):
        marks = tuple(Mark(chunk.digest, 2) for chunk in marked)
        swept = await place.sweep(Sweep(cycle, cycle - 1, inside[0].digest, chunks[500].digest, marks))
    assert swept == Swept(deleted=200, deleted_bytes=sum(c.length for c in inside[1::2]), kept=200)
    rows = await place.held()
    assert [row.chunk for row in rows] == chunks[:100] + marked + chunks[500:]
    assert {row.replicas for row in rows if row.chunk in set(marked)} == {2}


async def test_a_generation_that_is_not_stated_lasts_two_cycles(place: BlobPlace) -> None:
    chunk = await place.put(b"data", generation=0)
    assert (await place.sweep(everything(3))).deleted == 0
    assert (await place.sweep(everything(4))).deleted == 0
    assert await held(place) == [chunk]
    for cycle in (5, 6):
        await place.sweep(everything(cycle))
    assert await held(place) == []


@pytest.mark.parametrize("length", LENGTHS)
async def test_a_surplus_copy_is_dropped_if_it_was_not_touched(place: BlobPlace, length: int) -> None:
    chunk = await place.put(os.urandom(length), generation=5)
    assert not await place.drop(chunk, 5)
    assert await place.has((chunk,)) == [True]
    assert await place.drop(chunk, 6)
    assert await place.has((chunk,)) == [False]
    assert not await place.drop(chunk, 6)


async def test_puts_touches_and_sweeps_at_once(place: BlobPlace) -> None:
    """A chunk that was touched at or above a floor is there as long as no higher floor has passed."""
    contents = [b"%d" % number * (1 + 70_000 * (number % 3)) for number in range(30)]
    chunks = [named(data) for data in contents]
    generation = 1

    async def writer(seed: int) -> None:
        nonlocal generation
        for step in range(40):
            begun = generation
            chosen = [(seed + step * 7 + each) % len(contents) for each in range(3)]
            try:
                there = await place.touch([chunks[each] for each in chosen], generation=begun)
                for each, is_there in zip(chosen, there, strict=True):
                    if not is_there:
                        await place.put(contents[each], generation=begun)
            except errors.StaleGeneration:
                continue
            found = await place.has([chunks[each] for each in chosen])
            assert all(found) or generation > begun + 1

    async def collector() -> None:
        nonlocal generation
        for _ in range(30):
            generation += 1
            await place.raise_floor(generation - 1)
            await place.sweep(everything(generation))

    await asyncio.gather(*(writer(seed) for seed in range(4)), collector())
    for _ in range(3):
        generation += 1
        await place.sweep(everything(generation))
    assert await held(place) == []
