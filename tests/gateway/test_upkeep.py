"""Repair and scrub of single nodes, with the others in the same process: real places on disk, no network."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from blake3 import blake3

from gateway.blobs.local import LocalBlobs
from gateway.blobs.packs import PACKED_BYTES_MAX
from gateway.blobs.placement import PLACES, Place, Said, decode_places, encode_places, order
from gateway.upkeep.pace import Pace
from gateway.upkeep.repairing import Answer, Repairer, Want
from gateway.upkeep.runs import Progress, Runner
from gateway.upkeep.scrubbing import Scrubber
from gateway.upkeep.views import Tag, Views, register
from gateway.upkeep.watched import WatchedBlobs
from objmeta import Chunk, KeyValue, errors
from objmeta.client import Membership
from objmeta.core.configuration import Configuration
from tests.gateway.blobfiles import spoil, whereabouts

STORE = bytes(16)
LENGTH = 300_000
GENERATION = 7


@dataclass
class Registers:
    """The register of weights and zones; everybody sees its newest value."""

    kept: KeyValue | None = None

    async def get(self, key: str) -> KeyValue | None:
        assert key == PLACES
        return self.kept

    async def compare_and_swap(self, key: str, value: bytes, *, expected: str | None) -> KeyValue:
        if (self.kept.version_id if self.kept else None) != expected:
            raise errors.PreconditionFailed("somebody else was faster")
        sequence = self.kept.sequence + 1 if self.kept else 1
        self.kept = KeyValue(key.encode(), value, f"{sequence:032x}", sequence)
        return self.kept

    def say(self, said: dict[int, Said]) -> None:
        sequence = self.kept.sequence + 1 if self.kept else 1
        self.kept = KeyValue(PLACES.encode(), encode_places(said), f"{sequence:032x}", sequence)


@dataclass
class World:
    """Nodes that reach each other, each with a membership of its own to believe in."""

    path: Path
    registers: Registers = field(default_factory=Registers)
    nodes: dict[int, Node] = field(default_factory=dict)
    wants: dict[bytes, Want] = field(default_factory=dict)
    away: set[int] = field(default_factory=set)
    before_page: Callable[[], None] = lambda: None

    def add(self, count: int, membership: Membership) -> list[Node]:
        for node_id in range(1, count + 1):
            self.nodes[node_id] = Node(self, node_id, membership)
        return list(self.nodes.values())

    async def put(self, content: bytes, node_ids: Sequence[int], replicas: int = 0) -> Chunk:
        """A chunk that everybody's acceptor names, at these nodes."""
        chunk = Chunk(blake3(content).digest(), len(content))
        for node_id in node_ids:
            await self.nodes[node_id].blobs.put(content, generation=1)
        self.wants[chunk.digest] = Want(chunk, replicas)
        return chunk

    async def pages(self) -> AsyncGenerator[Sequence[Want], None]:
        self.before_page()
        yield [self.wants[digest] for digest in sorted(self.wants)]

    async def fetch(self, place: Place, chunks: Sequence[Chunk]) -> list[Answer]:
        answers: list[Answer] = []
        for chunk in chunks:
            try:
                answers.append(await self._reached(place).blobs.get(chunk))
            except (errors.StoreError, errors.Unavailable) as problem:
                answers.append(problem)
        return answers

    async def confirm(self, place: Place, tag: Tag, generation: int, wants: Sequence[Want]) -> list[bool]:
        return await self._reached(place).repairer.handover.confirm(tag, generation, wants)

    async def give(self, place: Place, own: Place, tag: Tag, generation: int, chunk: Chunk) -> None:
        await self._reached(place).repairer.handover.take(tag, generation, own.address, chunk)

    def _reached(self, place: Place) -> Node:
        if place.node_id in self.away:
            raise errors.Unavailable(f"node {place.node_id} cannot be reached")
        return self.nodes[place.node_id or int(place.address.rpartition(":")[2])]

    async def holders(self, chunk: Chunk) -> set[int]:
        return {node_id for node_id, node in self.nodes.items() if (await node.blobs.has((chunk,)))[0]}

    async def close(self) -> None:
        for node in self.nodes.values():
            await node.blobs.close()


class Node:
    def __init__(self, world: World, node_id: int, membership: Membership) -> None:
        self.membership = membership
        self.blobs = LocalBlobs(world.path / f"{node_id}")
        self.views = Views(lambda: world.registers, lambda: self.membership)

        async def generation() -> int:
            return GENERATION

        self.repairer = Repairer(node_id, self.blobs, world, self.views, world.pages, generation, Pace(math.inf))

    async def repair(self) -> Progress:
        progress = Progress()
        await self.repairer.run(progress)
        return progress


def members(epoch: int, *sets: tuple[int, ...]) -> Membership:
    known = sorted({node_id for some in sets for node_id in some})
    return Membership(Configuration(STORE, epoch, sets), tuple((node_id, f"127.0.0.1:{node_id}") for node_id in known))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    yield made
    await made.close()


def content_with(first: Callable[[list[int]], bool], nodes: Sequence[int]) -> bytes:
    """Content whose chunk has this order of nodes."""
    places = [Place(node_id, "") for node_id in nodes]
    for number in range(10_000):
        content = number.to_bytes(4, "big") * (LENGTH // 4)
        if first([place.node_id for place in order(blake3(content).digest(), places)]):
            return content
    raise AssertionError("no such content")


# -- Repair -----------------------------------------------------------------------------------------------------------


async def test_a_home_fetches_what_it_lacks_from_whoever_has_it(world: World) -> None:
    nodes = world.add(4, members(1, (1, 2, 3, 4)))
    chunk = await world.put(content_with(lambda o: o == [1, 2, 3, 4], range(1, 5)), [4])
    for node in nodes[:3]:
        made = await node.repair()
        assert (made.fixed, made.left) == (1, 0)
    assert await world.holders(chunk) == {1, 2, 3, 4}
    (held,) = await nodes[0].blobs.held()
    assert held.touched == GENERATION
    made = await nodes[3].repair()
    assert (made.dropped, made.left) == (1, 0)
    assert await world.holders(chunk) == {1, 2, 3}
    assert [(await node.repair()).fixed for node in nodes] == [0, 0, 0, 0]


async def test_short_chunks_come_in_groups_and_what_is_lost_stops_none(world: World) -> None:
    nodes = world.add(2, members(1, (1, 2)))
    for number in range(150):
        await world.put(number.to_bytes(2, "big") * 100, [2])
    await world.put(b"lost" * 100, [])
    made = await nodes[0].repair()
    assert (made.fixed, made.left, made.bytes, made.chunks) == (150, 1, 150 * 200, 151)
    assert len(await nodes[0].blobs.held()) == 150


async def test_what_one_node_cannot_give_comes_from_the_next(world: World) -> None:
    nodes = world.add(4, members(1, (1, 2, 3, 4)))
    contents = [number.to_bytes(2, "big") * 100 for number in range(40)]
    for number, content in enumerate(contents):
        await world.put(content, [(2, 3)[number % 2]], replicas=4)
    world.away = {4}
    made = await nodes[0].repair()
    assert (made.fixed, made.left) == (40, 0)
    world.away = {3, 4}
    made = await nodes[1].repair()
    assert (made.fixed, made.left) == (20, 0), "the first has all by now"


async def test_a_damaged_copy_counts_as_lacking(world: World) -> None:
    nodes = world.add(3, members(1, (1, 2, 3)))
    chunk = await world.put(bytes(LENGTH), [1, 2, 3])
    spoil(nodes[0].blobs.path, chunk)
    assert (await nodes[0].blobs.verify(b"", 1 << 20)).damaged == (chunk,)
    assert (await nodes[0].repair()).fixed == 1
    assert await nodes[0].blobs.get(chunk) == bytes(LENGTH)


async def test_what_nobody_has_is_left_and_told(world: World) -> None:
    nodes = world.add(3, members(1, (1, 2, 3)))
    await world.put(bytes(LENGTH), [])
    made = await nodes[0].repair()
    assert (made.fixed, made.left, nodes[0].repairer.missing) == (0, 1, 1)


async def test_a_surplus_copy_stays_while_a_home_lacks_the_chunk_or_is_away(world: World) -> None:
    nodes = world.add(4, members(1, (1, 2, 3, 4)))
    chunk = await world.put(content_with(lambda o: o[3] == 4, range(1, 5)), [1, 2, 4])
    made = await nodes[3].repair()
    assert (made.dropped, made.left, nodes[3].repairer.surplus) == (0, 1, 1)
    await nodes[2].repair()
    world.away = {2}
    assert (await nodes[3].repair()).dropped == 0
    world.away = set()
    assert (await nodes[3].repair()).dropped == 1
    assert await world.holders(chunk) == {1, 2, 3}


async def test_a_copy_that_was_touched_after_the_homes_stays(world: World) -> None:
    nodes = world.add(4, members(1, (1, 2, 3, 4)))
    chunk = await world.put(content_with(lambda o: o[3] == 4, range(1, 5)), [1, 2, 3, 4])
    await nodes[3].blobs.touch((chunk,), generation=GENERATION + 1)
    assert (await nodes[3].repair()).dropped == 0
    assert 4 in await world.holders(chunk)


async def test_nodes_that_see_different_members_do_not_rely_on_each_other(world: World) -> None:
    """One copy is wanted. Node 1 believes that it belongs to node 2, which knows that it belongs to node 1 by now."""
    nodes = world.add(2, members(1, (1, 2)))
    chunk = await world.put(content_with(lambda o: o[0] == 2, (1, 2)), [1, 2], replicas=1)
    world.registers.say({2: Said(weight=0.0)})
    await nodes[1].views.refreshed()
    assert nodes[1].views.tag() > nodes[0].views.tag()
    tag = nodes[0].views.tag()
    with pytest.raises(errors.Unavailable):
        await nodes[1].repairer.handover.confirm(tag, GENERATION, [Want(chunk, 1)])
    # node 1 was told yes before that; it has heard of the new weights since, and drops nothing any more
    await nodes[0].views.refreshed()
    assert await nodes[0].repairer.handover.drop(tag, GENERATION, [chunk]) == 0
    assert (await nodes[0].repair()).dropped == 0
    assert (await nodes[1].repair()).dropped == 1
    assert await world.holders(chunk) == {1}


async def test_a_home_that_is_asked_under_a_newer_view_learns_it_first(world: World) -> None:
    nodes = world.add(2, members(1, (1, 2)))
    chunk = await world.put(content_with(lambda o: o[0] == 2, (1, 2)), [1, 2], replicas=1)
    world.registers.say({2: Said(zone="here")})
    assert (await nodes[0].repair()).dropped == 1
    assert nodes[1].views.tag() == nodes[0].views.tag() == (1, 1)
    assert await world.holders(chunk) == {2}


async def test_a_node_that_leaves_hands_over_all_it_has(world: World) -> None:
    joint = members(2, (1, 2, 3), (2, 3, 4))
    nodes = world.add(4, joint)
    chunk = await world.put(bytes(LENGTH), [1, 2, 3])
    under_way = await world.put(b"1" * LENGTH, [1])
    del world.wants[under_way.digest]  # nothing names it yet
    made = await nodes[0].repair()
    assert (made.left, made.dropped, nodes[0].repairer.surplus) == (0, 0, 0)
    assert await world.holders(chunk) == await world.holders(under_way) == {1, 2, 3, 4}
    (held,) = [held for held in await nodes[3].blobs.held() if held.digest == under_way.digest]
    assert held.touched == GENERATION


async def test_a_node_that_leaves_finds_stand_ins_or_says_that_it_is_needed(world: World) -> None:
    nodes = world.add(5, members(2, (1, 2, 3, 4, 5), (2, 3, 4, 5)))
    chunk = await world.put(content_with(lambda o: o == [2, 3, 4, 5], range(2, 6)), [1])
    world.away = {2, 3, 4}
    assert (await nodes[0].repair()).left == 1
    world.away = {2}
    assert (await nodes[0].repair()).left == 0
    assert await world.holders(chunk) == {1, 3, 4, 5}


async def test_a_pass_ends_when_the_members_change(world: World) -> None:
    nodes = world.add(3, members(1, (1, 2, 3)))
    await world.put(bytes(LENGTH), [1, 2])

    def change() -> None:
        nodes[2].membership = members(2, (1, 2, 3), (1, 2))

    world.before_page = change
    with pytest.raises(errors.Unavailable, match="changed"):
        await nodes[2].repair()


# -- Weights and zones ------------------------------------------------------------------------------------------------


async def test_a_node_registers_itself_and_leaves_others_alone() -> None:
    registers = Registers()
    await register(registers, 1, Said())
    assert registers.kept is None  # it says nothing special
    await register(registers, 1, Said(2.0, "a"))
    await register(registers, 2, Said(1.0, "b"))
    await register(registers, 1, Said(2.0, "a"))
    assert registers.kept is not None
    assert decode_places(registers.kept.value) == {1: Said(2.0, "a"), 2: Said(1.0, "b")}
    assert registers.kept.sequence == 2
    await register(registers, 1, Said())
    assert decode_places(registers.kept.value).get(1, Said()) == Said()


# -- Scrub ------------------------------------------------------------------------------------------------------------


async def test_scrub_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path / "blobs")
    for number in range(8):
        await blobs.put(bytes([number]) * LENGTH, generation=1)
    healed: list[Chunk] = []

    class Stopped(Exception):
        pass

    class Stopping(Pace):
        calls = 0

        async def take(self, count: int) -> None:
            self.calls += 1
            if self.calls == 3:
                raise Stopped

    async def heal(chunk: Chunk) -> None:
        healed.append(chunk)

    scrubber = Scrubber(blobs, Stopping(math.inf), heal, step_bytes=LENGTH)
    assert not await scrubber.due(1000.0)
    first = Progress()
    with pytest.raises(Stopped):
        await scrubber.run(first)
    assert await scrubber.due(1000.0)
    rest = Progress()
    await scrubber.run(rest)
    assert first.chunks + rest.chunks == 8
    assert rest.chunks < 8
    assert not await scrubber.due(1000.0)
    assert not await Scrubber(blobs, Pace(math.inf), None).due(1000.0)
    assert await Scrubber(blobs, Pace(math.inf), None).due(1e-9)
    assert healed == []
    await blobs.close()


async def test_damage_that_nobody_can_heal_is_counted(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path / "blobs")
    chunk = await blobs.put(bytes(LENGTH), generation=1)
    spoil(blobs.path, chunk)
    progress = Progress()
    await Scrubber(blobs, Pace(math.inf), None).run(progress)
    assert (progress.fixed, progress.left, (await blobs.usage()).damaged) == (0, 1, 1)
    await blobs.close()


# -- A disk in trouble, a node that leaves ----------------------------------------------------------------------------


async def test_a_disk_that_cannot_read_is_told(tmp_path: Path) -> None:
    blobs = WatchedBlobs(tmp_path / "blobs")
    length = PACKED_BYTES_MAX + 1
    good, bad = [await blobs.put(bytes([number]) * length, generation=1) for number in range(2)]
    assert await blobs.trouble() == ""
    path, _ = whereabouts(blobs.path, bad)
    path.unlink()
    path.mkdir()  # no file, and not missing either
    with pytest.raises(errors.StoreError):
        await blobs.get(bad)
    assert str(blobs.path) in await blobs.trouble()
    assert await blobs.get(good) == bytes(length)
    await blobs.close()


async def test_a_disk_that_cannot_be_written_to_is_tried_again(tmp_path: Path) -> None:
    blobs = WatchedBlobs(tmp_path / "blobs")
    tmp_path.joinpath("blobs").write_bytes(b"in the way")
    with pytest.raises(errors.StoreError):
        await blobs.put(bytes(LENGTH), generation=1)
    assert await blobs.trouble() != ""
    await blobs.probe()
    assert await blobs.trouble() != ""
    tmp_path.joinpath("blobs").unlink()
    await blobs.probe()
    assert await blobs.trouble() == ""
    await blobs.close()


async def test_a_node_that_leaves_acknowledges_nothing(tmp_path: Path) -> None:
    leaves = False
    blobs = WatchedBlobs(tmp_path / "blobs", lambda: leaves)
    chunk = await blobs.put(bytes(LENGTH), generation=1)
    leaves = True
    with pytest.raises(errors.Unavailable):
        await blobs.put(b"1" * LENGTH, generation=1)
    assert await blobs.touch((chunk,), generation=2) == [False]
    assert await blobs.get(chunk) == bytes(LENGTH)
    await blobs.close()


# -- Runs and pace ----------------------------------------------------------------------------------------------------


async def test_a_run_that_is_asked_for_begins_after_the_one_under_way() -> None:
    began: list[int] = []
    going, first, second = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work(progress: Progress) -> None:
        began.append(len(began) + 1)
        (second if len(began) == 2 else first).set()
        await going.wait()

    async def never() -> bool:
        return False

    runner = Runner("work", work, retries_left=True)
    task = asyncio.create_task(runner.forever(never))
    assert runner.ask() == 1
    await first.wait()
    assert runner.told().running
    assert runner.ask() == 2
    assert runner.ask() == 2
    going.set()
    await second.wait()
    assert began == [1, 2]
    assert runner.told().number == 2
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_what_goes_wrong_is_told() -> None:
    async def work(progress: Progress) -> None:
        progress.chunks = 3
        raise errors.Unavailable("nobody is there")

    runner = Runner("work", work, retries_left=True)
    assert not await runner.once()
    told = runner.told()
    assert (told.number, told.chunks, told.problem, told.running) == (1, 3, "nobody is there", False)


async def test_pace_bounds_the_rate() -> None:
    pace = Pace(1 << 20)
    loop = asyncio.get_running_loop()
    began = loop.time()
    for _ in range(4):
        await pace.take(1 << 17)
    # never faster than the bound, whatever the machine; how much slower is its own affair
    assert loop.time() - began >= 0.4 - 0.1
    await Pace(math.inf).take(1 << 40)
