"""The simulator of the data finds nothing wrong with the collector, and everything that is wrong with broken ones."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from unittest import mock

import pytest
from blake3 import blake3

from gateway.blobs.places import Sweep
from gateway.testing.data import CHUNK_BYTES, DataClient
from gateway.testing.mutations import DATA_MUTATIONS, DATA_NONE, DataMutation
from gateway.testing.sim import LONGEST_S, replay_command, run_seed
from gateway.testing.world import BUCKET, DataWorld
from objmeta import Chunk, errors
from objmeta.core.messages import Accept, Adopt, Prepare, Read, Request
from objmeta.testing import loop
from objmeta.testing.checkers import Violation
from objmeta.testing.network import Port
from objmeta.testing.sim import SAFETY

SEEDS = 20
SEEDS_MAX = 300

Directed = Callable[[DataWorld, DataClient], Awaitable[None]]


def test_nothing_that_is_needed_is_deleted_and_all_else_is() -> None:
    for seed in range(SEEDS):
        report = run_seed(seed)
        assert not report.failure, f"{report.message}; {replay_command(seed)}"


def test_a_seed_says_the_same_every_time() -> None:
    def trace() -> list[str]:
        lines: list[str] = []
        run_seed(3, DATA_NONE, lines.append)
        return lines

    first = trace()
    assert len(first) > 100
    assert trace() == first


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("reuse-untouched", 0),
        ("generation-not-checked", 15),
        ("touch-not-durable", 0),
        ("node-counts-twice", 0),
        ("one-copy-fewer", 0),
        ("no-for-yes", 0),
        ("healing-ahead", 0),
        ("renewed-untouched", 0),
        ("copied-untouched", 0),
        ("newest-stated", 15),
        ("gone-renewed", 15),
    ],
)
def test_a_broken_variant_is_caught_by_seeds(name: str, first: int) -> None:
    """``first`` is near the first seed that shows it, which saves time and is no condition."""
    mutation = DATA_MUTATIONS[name]
    for seed in range(first, first + SEEDS_MAX):
        if run_seed(seed, mutation).failure == SAFETY:
            return
    pytest.fail(f"{SEEDS_MAX} seeds do not show it: {mutation.breaks}")


# -- Schedules, without other faults than what they do themselves -----------------------------------------------------


def play(schedule: Directed, mutation: DataMutation, seed: int = 5) -> None:
    """Among three acceptors. Raises Violation."""

    async def main() -> None:
        with DataWorld(seed, mutation) as data:
            data.world.network.heal()
            data.stop_keeping()
            await data.ensure_bucket()
            proposer = data.world.proposers[0]
            async with asyncio.timeout(LONGEST_S):
                await schedule(data, data.client_of(proposer))
            data.named.check()

    loop.run(main())


async def cycle(data: DataWorld, members: int = 0) -> None:
    done = await data.run_cycle(data.world.proposers[0], 5.0)
    assert done.complete, done


async def a_record_on_one_acceptor(data: DataWorld, client: DataClient) -> None:
    """A put reaches one acceptor, whose marks a broken variant leaves out; cycles pass; then a read finishes it."""
    world = data.world
    hasty = data.client_of(world.proposers[0], 0.3)
    world.network.faults = dataclasses.replace(world.network.faults, minority_accepts=1.0)
    for number in range(50):
        key = f"k{number}"
        with pytest.raises(errors.UnknownOutcome):
            await hasty.put(BUCKET, key, [b"of " + key.encode()], 0.0)
        await asyncio.sleep(1.0)
        name = next(name for name in world.watch.names() if name.endswith(key.encode()))
        holders = [a for a, node in world.nodes.items() if node.store.disk.durable.kept.get(name)]
        if len(holders) == 1:
            break
    world.network.heal()
    data.leaves_out = set(holders)
    for _ in range(4):
        await cycle(data)
    world.nodes[next(a for a in world.nodes if a not in holders)].crash(random.Random(1), False)
    await client.objects().versions(BUCKET, key)


async def a_removal_during_the_marks(data: DataWorld, client: DataClient) -> None:
    """A version is removed after a cycle has begun, and before its marks are taken."""
    version = await client.put(BUCKET, "k", [b"content"], 0.0)
    for _ in range(2):
        await cycle(data)
    data.mark_s_max = 5.0
    begun = len(data.named.runs)
    running = asyncio.ensure_future(cycle(data))
    await data.until(lambda: len(data.named.runs) > begun and data.marking > 0)
    data.named.check()
    await client.remove_version(BUCKET, "k", version)
    await running


@contextmanager
def reaching(data: DataWorld, key: str, prepares: Collection[int], accepts: Collection[int]) -> Iterator[None]:
    """What is said of one object reaches these acceptors only."""

    def reaches(port: Port, acceptor: int, request: Request) -> bool:
        if not request.name.endswith(key.encode()) if isinstance(request, Prepare | Accept | Read) else True:
            return True
        return acceptor in (accepts if isinstance(request, Accept) else prepares)

    with mock.patch.object(data.world.network, "_reaches", reaches):
        yield


async def a_removal_that_never_was(data: DataWorld, client: DataClient) -> None:
    """The example of docs/collection.md ("What is marked"): a removal is on the accepted chains of all who have the
    version that it names, and is not chosen in the end."""
    z, v, w = data.world.nodes
    first, second = (data.client_of(proposer, 0.3) for proposer in data.world.proposers[:2])
    with reaching(data, "k", (z, v), (z, v)):
        version = await client.put(BUCKET, "k", [b"content"], 0.0)
    await client.objects().put(BUCKET, "k", data=b"newer")
    await asyncio.sleep(1.0)
    with reaching(data, "k", (z, v, w), (z,)), pytest.raises(errors.UnknownOutcome):
        await first.remove_version(BUCKET, "k", version)
    with reaching(data, "k", (v, w), (w,)), pytest.raises(errors.UnknownOutcome):
        await second.objects().put(BUCKET, "k", data=b"newest")
    with reaching(data, "k", (z, v), (v,)), pytest.raises(errors.NoQuorum):
        await first.objects().versions(BUCKET, "k")
    await asyncio.sleep(1.0)
    (name,) = (name for name in data.world.watch.names() if name.endswith(b"k"))
    holders = [
        acceptor
        for acceptor, node in data.world.nodes.items()
        if any(ref.version_id == version for ref in node.store.disk.durable.kept[name])
    ]
    assert holders == [z, v]
    for _ in range(4):
        await cycle(data)
    with reaching(data, "k", (z, w), (z, w)):
        await data.client_of(data.world.proposers[1]).objects().versions(BUCKET, "k")


async def change_members(data: DataWorld, add: Collection[int], remove: Collection[int]) -> None:
    coordinator = data.upkeep._coordinator(data.world.proposers[0], 5.0)
    await coordinator.begin({node: f"node{node}:1" for node in add}, remove, data.upkeep._prepare, 5.0)
    await coordinator.finish()


async def stored_at_two(data: DataWorld, content: bytes) -> tuple[int, int, int]:
    """The third is down meanwhile: it is the caller's to start again."""
    one, two, three = data.world.nodes
    digest = blake3(content).digest()
    data.world.nodes[three].crash(random.Random(1), False)
    await data.until(lambda: all(digest in data.network.nodes[number].place.durable for number in (one, two)))
    return one, two, three


async def nodes_that_leave(data: DataWorld, client: DataClient) -> None:
    """The nodes that have a writer's chunk are replaced before it commits."""
    data.begin_keeping()
    writing = asyncio.ensure_future(client.put(BUCKET, "k", [b"content"], 5.0))
    one, two, three = await stored_at_two(data, b"content")
    data.world.nodes[three].restart()
    await change_members(data, (4, 5), (one, two))
    await writing


async def a_node_that_was_not_told(data: DataWorld, client: DataClient) -> None:
    """The only one that has a chunk, as another lost its copy, leaves; for a while it does not hear of that."""
    data.network.nodes[next(iter(data.network.nodes))].keeping.begin()
    writing = asyncio.ensure_future(client.put(BUCKET, "k", [b"content"], 0.0))
    one, two, three = await stored_at_two(data, b"content")
    await writing
    data.world.proposers[0].crash()  # or it would give the third its copy
    data.world.proposers[0].start()
    data.world.nodes[three].restart()
    data.network.nodes[two].place.lose(blake3(b"content").digest())
    deaf_until_s = data.world.loop.time() + 5.0

    def reaches(port: Port, acceptor: int, request: Request) -> bool:
        return acceptor != one or data.world.loop.time() > deaf_until_s or not isinstance(request, Adopt)

    with mock.patch.object(data.world.network, "_reaches", reaches):
        await change_members(data, (4,), (one,))


async def nodes_that_leave_and_store(data: DataWorld, client: DataClient) -> None:
    """While two nodes leave and those that come are down, a writer has nobody who may count."""
    one, two, _ = data.world.nodes
    changing = asyncio.ensure_future(change_members(data, (4, 5), (one, two)))
    await data.until(lambda: all(data.network.nodes[number].leaves for number in (one, two)))
    for number in (4, 5):
        await data.until(lambda number=number: data.network.nodes[number].up)  # type: ignore[misc]
        await data.until(lambda number=number: not data.network.nodes[number].leaves)  # type: ignore[misc]
        data.world.nodes[number].crash(random.Random(1), False)
    with suppress(errors.NoQuorum):
        await client.blobs.put(b"content", generation=1)
        raise Violation("two nodes that leave were counted")
    changing.cancel()


async def disks_lost_one_after_the_other(data: DataWorld, client: DataClient) -> None:
    """Each is replaced before the next goes, so that nothing is lost that is named; but the writer's chunk is not."""
    data.begin_keeping()
    content = b"of full length".ljust(CHUNK_BYTES)  # shorter content is sent with the commit
    writing = asyncio.ensure_future(client.put(BUCKET, "k", [content], 0.0, 100.0))
    one, two, three = await stored_at_two(data, content)
    data.world.nodes[three].restart()
    for lost, new in ((one, 4), (two, 5)):
        data.world.nodes[lost].lost = True
        data.world.nodes[lost].crash(random.Random(1), False)
        await change_members(data, (new,), (lost,))
    with suppress(errors.Unavailable):  # it is told to begin anew
        await writing


async def a_copy_by_healing(data: DataWorld, client: DataClient) -> None:
    """The same as by repair; a reader made it, who found that one of the homes has no copy."""
    (one, two, three), digest = data.world.nodes, blake3(b"content").digest()
    await client.put(BUCKET, "other", [b"of some generation"], 0.0)
    for _ in range(3):  # whoever ran these cycles crashed
        begun = await data.world.proposers[0].engine.begin_cycle(5.0)
    writing = asyncio.ensure_future(client.put(BUCKET, "k", [b"content"], 10.0))
    await stored_at_two(data, b"content")
    data.world.nodes[three].restart()
    places = {number: node.place for number, node in data.network.nodes.items()}
    places[one].damage(digest)
    reader = data.client_of(data.world.proposers[1])
    while digest not in places[three].durable:
        assert await reader.blobs.get(Chunk(digest, len(b"content"))) == b"content"
        await asyncio.sleep(0.1)
    await places[three].sweep(Sweep(begun.generation, begun.floor, b"", b"", ()))
    await cycle(data)
    await writing
    for number in (one, two):
        places[number].damage(digest)


async def a_copy_by_repair(data: DataWorld, client: DataClient) -> None:
    """A writer's chunk goes to two nodes; one copy is lost, repair makes a third, a writer's cycle comes, and then the
    other is lost, too."""
    proposer, (one, two, three) = data.world.proposers[0], data.world.nodes
    await client.put(BUCKET, "other", [b"of some generation"], 0.0)
    for _ in range(3):  # whoever ran these cycles crashed
        begun = await proposer.engine.begin_cycle(5.0)
    data.world.nodes[three].crash(random.Random(1), False)
    writing = asyncio.ensure_future(client.put(BUCKET, "k", [b"content"], 10.0))
    digest = blake3(b"content").digest()
    places = {number: node.place for number, node in data.network.nodes.items()}
    await data.until(lambda: all(digest in places[number].durable for number in (one, two)))
    data.world.nodes[three].restart()
    places[one].damage(digest)
    await data.bring(proposer, digest, two, three)
    # The sweep of the cycle that began before the writer did; then another cycle, whose marks come before its commit.
    await places[three].sweep(Sweep(begun.generation, begun.floor, b"", b"", ()))
    await cycle(data)
    await writing
    places[two].damage(digest)


@pytest.mark.parametrize(
    ("schedule", "name"),
    [
        (a_removal_during_the_marks, "one-cycle"),
        (a_record_on_one_acceptor, "marks-of-a-majority"),
        (a_removal_that_never_was, "accepted-removals"),
        (a_copy_by_repair, "repair-untouched"),
        (a_copy_by_healing, "healing-untouched"),
        (nodes_that_leave, "leaves-at-once"),
        (a_node_that_was_not_told, "leaves-at-once"),
        (nodes_that_leave_and_store, "leavers-acknowledge"),
        (disks_lost_one_after_the_other, "members-ignored"),
    ],
)
def test_a_schedule_shows_what_a_broken_variant_does(schedule: Directed, name: str) -> None:
    play(schedule, DATA_NONE)
    with pytest.raises(Violation):
        play(schedule, DATA_MUTATIONS[name])
