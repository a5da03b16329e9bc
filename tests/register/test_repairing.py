"""A repairer over three real acceptors in this process: what it brings, what it leaves, and what it costs."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import pytest

from objmeta.core.ballot import ZERO, Ballot, BallotSource
from objmeta.core.configuration import Membership, single_set
from objmeta.core.inventory import DigestRequest, Digests, Inventory, InventoryRequest
from objmeta.core.messages import (
    TOMBSTONE,
    Accept,
    Accepted,
    Erase,
    Erased,
    Fence,
    Fetch,
    Fetched,
    Found,
    Prepare,
    Promise,
    Read,
    Record,
    Reply,
    Request,
    State,
)
from objmeta.errors import NoSuchBucket, Unavailable
from objmeta.interfaces import ChangeRequest, OnReply
from objmeta.model.changes import SetValue
from objmeta.register.engine import Engine, EngineSettings
from objmeta.register.local import LocalTransport
from objmeta.register.mending import RepairSettings
from objmeta.register.repairing import Repairer
from objmeta.store.lane import Lane
from objmeta.store.memory import MemoryStore
from tests.store.build import ballot, record, state

CONFIGURATION = single_set(b"store-id-16bytes", (1, 2, 3))
SETTINGS = RepairSettings(
    compared_per_s_max=1e6,
    mended_per_s_max=1e6,
    timeout_s=2.0,
    watch_s=0.01,
    page_names=7,
    defer_s=0.05,
    mark_s=0.01,
    start_s=0.0,
)


class Wires(LocalTransport):
    """Local acceptors, some of which cannot be reached; counts what is sent."""

    def __init__(self, lanes: dict[int, Lane]) -> None:
        super().__init__(CONFIGURATION.tag, lanes)
        self.cut: set[int] = set()
        self.lose: Callable[[int, Request], bool] = lambda acceptor, request: False
        self.sent: list[tuple[int, Request]] = []
        self.pages = 0
        self.on_page: Callable[[], object] = lambda: None
        self.digested = 0

    def send(self, acceptor: int, request: Request, on_reply: OnReply) -> None:
        self.sent.append((acceptor, request))
        if acceptor not in self.cut and not self.lose(acceptor, request):
            super().send(acceptor, request, on_reply)

    async def inventory(self, acceptor: int, request: InventoryRequest) -> Inventory:
        self._check(acceptor)
        self.pages += 1
        self.on_page()
        return await super().inventory(acceptor, request)

    async def digests(self, acceptor: int, request: DigestRequest) -> Digests:
        self._check(acceptor)
        self.digested += 1
        return await super().digests(acceptor, request)

    def _check(self, acceptor: int) -> None:
        if acceptor in self.cut:
            raise Unavailable(f"acceptor {acceptor} is cut off")


class Cluster:
    """Three acceptors, an engine, and a repairer of acceptor 3."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.stores = {a: MemoryStore(a, CONFIGURATION) for a in (1, 2, 3)}
        self.lanes = {a: Lane(store, loop) for a, store in self.stores.items()}
        self.wires = Wires(self.lanes)
        settings = EngineSettings(round_timeout_s=1.0, straggler_wait_s=0.001)
        self.engine = Engine(Membership(CONFIGURATION), self.wires, BallotSource(7, 7, 100), random.Random(1), settings)
        self.repairer = Repairer(self.engine, 3, SETTINGS)

    def tell(self, acceptor: int, request: Request) -> Reply:
        (reply,) = self.stores[acceptor].apply([(CONFIGURATION.tag, request)])
        return reply

    def accept(self, request: Accept, *acceptors: int) -> None:
        for acceptor in acceptors:
            assert isinstance(self.tell(acceptor, request), Accepted)

    def fill(self, count: int) -> None:
        requests: list[Request] = [put(b"k/%04d" % number, 1, record(number + 1)) for number in range(count)]
        for store in self.stores.values():
            store.apply([(CONFIGURATION.tag, request) for request in requests])

    def found(self, acceptor: int, name: bytes) -> tuple[Ballot, State | None]:
        reply = self.tell(acceptor, Read(name))
        assert isinstance(reply, Found)
        return reply.accepted, reply.state

    def held(self, acceptor: int, name: bytes, *records: Record) -> tuple[Record, ...]:
        reply = self.tell(acceptor, Fetch(name, tuple(each.ref for each in records)))
        assert isinstance(reply, Fetched)
        return reply.records

    def digests(self, acceptor: int) -> Digests:
        return self.stores[acceptor].digests(CONFIGURATION.tag, DigestRequest())

    async def put(self, name: bytes, value: bytes) -> None:
        operation = random.Random(name + value).randbytes(16)
        reply = await self.engine.change(ChangeRequest(name, SetValue(operation, value)), 5.0)
        assert reply.code == ""


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    made = Cluster()
    yield made
    for lane in made.lanes.values():
        await lane.close()


def put(name: bytes, counter: int, *records: Record, flag: int = 0) -> Accept:
    return Accept(name, ballot(counter), state(*records, flag=flag), records)


async def test_what_was_written_while_it_was_away_is_brought(cluster: Cluster) -> None:
    await asyncio.gather(*(cluster.put(b"k/%03d" % number, b"old") for number in range(300)))
    cluster.wires.cut.add(3)
    for value in (b"new", b"newer", b"newest"):
        await asyncio.gather(*(cluster.put(b"k/%03d" % number, value) for number in range(0, 300, 7)))
    await asyncio.gather(*(cluster.put(b"k/%03d+" % number, b"added") for number in range(0, 300, 5)))
    cluster.wires.cut.clear()
    assert await cluster.repairer.repair({1, 2})
    assert cluster.digests(3) == cluster.digests(1) == cluster.digests(2)
    assert cluster.repairer.progress.repaired == 43 + 60
    assert cluster.repairer.progress.records == 3 * 43 + 60
    rows = [row for _, row in sorted(cluster.stores[3].snapshot().rows.items())]
    assert all(row.whole for row in rows), "it may vote on kept promises again"


async def test_equal_acceptors_are_compared_by_digests_alone(cluster: Cluster) -> None:
    cluster.fill(1500)
    cluster.wires.sent.clear()
    assert await cluster.repairer.repair({1, 2})
    assert (cluster.wires.sent, cluster.wires.pages) == ([], 0)
    assert cluster.repairer.progress.compared == 1500
    assert cluster.repairer.progress.complete is not None


async def test_one_difference_is_found_without_sending_everything(cluster: Cluster) -> None:
    cluster.fill(1500)
    cluster.accept(put(b"k/0777", 2, record(2000, sequence=2, parent=record(778).ref)), 1, 2)
    assert await cluster.repairer.repair({1, 2})
    assert {request.name for _, request in cluster.wires.sent if isinstance(request, Read | Accept)} == {b"k/0777"}
    assert cluster.wires.pages < 3 * 30, "one range of 128 names"


async def test_a_promise_in_the_way_is_overcome_by_a_round(cluster: Cluster) -> None:
    first = record(1)
    cluster.accept(put(b"k/a", 5, first), 1, 2)
    assert isinstance(cluster.tell(3, Prepare(b"k/a", ballot(10**9))), Promise)
    assert await cluster.repairer.repair({1, 2})
    accepted = {cluster.found(acceptor, b"k/a") for acceptor in (1, 2, 3)}
    assert len(accepted) == 1
    assert next(iter(accepted))[0] > ballot(10**9)
    assert cluster.held(3, b"k/a", first) == (first,)


async def test_what_only_a_minority_accepted_is_settled_first(cluster: Cluster) -> None:
    first = record(1)
    second = record(2, sequence=2, parent=first.ref)
    cluster.accept(put(b"k/a", 5, first), 1, 2, 3)
    cluster.accept(put(b"k/a", 6, second), 1)
    assert await cluster.repairer.repair({1, 2})
    states = {cluster.found(acceptor, b"k/a") for acceptor in (1, 2, 3)}
    assert len(states) == 1
    assert next(iter(states))[1] in (state(first), state(second)), "whether it is chosen is open; that it is one is not"


async def test_a_dead_record_is_never_brought_and_looked_at_once(cluster: Cluster) -> None:
    first, dead = record(1), record(2, sequence=2)
    second = record(3, sequence=2, parent=first.ref)
    cluster.accept(put(b"k/a", 4, first), 1, 2, 3)
    cluster.accept(put(b"k/a", 5, dead), 1)
    cluster.accept(put(b"k/a", 6, second), 1, 2, 3)
    for looked in (True, False):
        cluster.wires.sent.clear()
        assert await cluster.repairer.repair({1, 2})
        assert bool(cluster.wires.sent) is looked
    assert cluster.held(3, b"k/a", dead) == ()


async def test_a_dead_record_of_the_same_operation_gives_way(cluster: Cluster) -> None:
    first = record(1)
    dead, applied = record(2, sequence=2, parent=first.ref), record(2, sequence=3, parent=record(3, 2, first.ref).ref)
    between = record(3, sequence=2, parent=first.ref)
    cluster.accept(put(b"k/a", 4, first), 1, 2, 3)
    cluster.accept(put(b"k/a", 5, dead), 3)
    cluster.accept(put(b"k/a", 6, between), 1, 2)
    cluster.accept(put(b"k/a", 7, applied), 1, 2)
    # It gives way to a round that hears of it, which is over when two others have accepted: a matter of milliseconds.
    # A pass that left something is followed by another one.
    assert any([await cluster.repairer.repair({1, 2}) for _ in range(10)])
    assert cluster.found(3, b"k/a") == cluster.found(1, b"k/a")
    assert cluster.held(3, b"k/a", first, between, applied, dead) == (first, between, applied)


async def test_long_history_comes_in_parts(cluster: Cluster) -> None:
    records = [record(1, data=b"d" * 1000)]
    for number in range(2, 200):
        records.append(record(number, sequence=number, parent=records[-1].ref, data=b"d" * 1000))
    records.append(record(200, sequence=200, parent=records[-1].ref, body=b"b" * (3 << 20)))
    for number, each in enumerate(records, 1):
        cluster.accept(put(b"k/a", number, each), 1, 2)
    assert await cluster.repairer.repair({1, 2})
    assert cluster.held(3, b"k/a", *records) == tuple(records)
    assert cluster.digests(3) == cluster.digests(1)
    accepts = [request for acceptor, request in cluster.wires.sent if isinstance(request, Accept)]
    assert all(sum(len(r.body) + len(r.data) for r in accept.records[1:]) <= 1 << 20 for accept in accepts)
    assert cluster.stores[3].snapshot().rows[b"k/a"].whole


async def test_records_lost_here_are_brought_again(cluster: Cluster) -> None:
    first = record(1)
    second = record(2, sequence=2, parent=first.ref)
    third = record(3, sequence=3, parent=second.ref)
    for number, each in enumerate((first, second, third), 1):
        cluster.accept(put(b"k/a", number, each), 1, 2, 3)
    damaged = cluster.stores[3].snapshot()
    for lost in (first, second):
        del damaged.records[b"k/a"][lost.ref.version_id]
    cluster.stores[3].restore(damaged)
    assert cluster.held(3, b"k/a", first, second, third) == (third,)
    assert await cluster.repairer.repair({1, 2})
    assert cluster.held(3, b"k/a", first, second, third) == (first, second, third)


async def test_a_record_nobody_has_is_reported(cluster: Cluster) -> None:
    first = record(1)
    second = record(2, sequence=2, parent=first.ref)
    cluster.accept(put(b"k/a", 2, second), 1, 2)
    cluster.accept(put(b"k/b", 2, first), 1, 2)
    assert not await cluster.repairer.repair({1, 2})
    assert (cluster.repairer.progress.repaired, cluster.repairer.progress.left) == (1, 1)
    assert cluster.repairer.progress.lost >= 1
    assert cluster.repairer.progress.complete is None


async def test_an_erased_register_stays_erased(cluster: Cluster) -> None:
    gone = record(1)
    for name in (b"k/here", b"k/there"):
        cluster.accept(put(name, 5, gone, flag=TOMBSTONE), 1, 2, 3)
    assert cluster.tell(3, Erase(b"k/here", ballot(5))) == Erased(ballot(5), True)
    for acceptor in (1, 2):
        assert cluster.tell(acceptor, Erase(b"k/there", ballot(5))) == Erased(ballot(5), True)
    assert await cluster.repairer.repair({1, 2})
    assert cluster.found(3, b"k/here") == (ZERO, None)
    assert [cluster.found(acceptor, b"k/there")[0] for acceptor in (1, 2, 3)] == [ZERO, ZERO, ballot(5)]
    assert not [request for _, request in cluster.wires.sent if isinstance(request, Prepare)]


async def test_below_a_floor_a_register_gets_a_round(cluster: Cluster) -> None:
    cluster.accept(put(b"k/dead", 50, record(1), flag=TOMBSTONE), 1, 2, 3)
    cluster.accept(put(b"k/alive", 5, record(1)), 1, 2)
    for acceptor in (1, 2, 3):
        cluster.tell(acceptor, Erase(b"k/dead", ballot(50)))
    assert await cluster.repairer.repair({1, 2})
    assert len({cluster.found(acceptor, b"k/alive") for acceptor in (1, 2, 3)}) == 1
    assert cluster.found(3, b"k/alive")[0] > ballot(50)


async def test_one_peer_away_leaves_the_pass_incomplete(cluster: Cluster) -> None:
    cluster.accept(put(b"k/a", 5, record(1)), 1, 2)
    cluster.wires.cut.add(2)
    assert not await cluster.repairer.repair({1, 2})
    assert cluster.found(3, b"k/a")[1] == cluster.found(1, b"k/a")[1] == state(record(1))
    assert cluster.repairer.progress.peers == {1: "compared", 2: "unreachable"}
    assert cluster.repairer.progress.complete is None
    cluster.wires.cut.add(1)
    with pytest.raises(Unavailable):
        await cluster.repairer.repair({1, 2})


async def test_writes_go_on_meanwhile(cluster: Cluster) -> None:
    names = [b"k/%03d" % number for number in range(60)]
    cluster.wires.cut.add(3)
    await asyncio.gather(*(cluster.put(name, b"old") for name in names))
    cluster.wires.cut.clear()
    repairing = asyncio.ensure_future(cluster.repairer.repair({1, 2}))
    for value in range(8):
        await asyncio.gather(*(cluster.put(name, b"%d" % value) for name in names[::3]))
    await repairing
    assert await cluster.repairer.repair({1, 2}), "nothing disturbs it any more"
    assert cluster.digests(3) == cluster.digests(1) == cluster.digests(2)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.005)


class Remembered:
    """Marks that outlive a repairer."""

    def __init__(self) -> None:
        self.marks: Mapping[int, int] = {}

    def kept(self) -> Mapping[int, int]:
        return self.marks

    async def keep(self, marks: Mapping[int, int]) -> None:
        self.marks = marks


@asynccontextmanager
async def running(repairer: Repairer) -> AsyncIterator[None]:
    task = asyncio.ensure_future(repairer.run_forever())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_after_a_restart_only_what_changed_is_looked_at(cluster: Cluster) -> None:
    cluster.fill(400)
    remembered = Remembered()
    first = Repairer(cluster.engine, 3, SETTINGS, marks=remembered)
    async with running(first):
        await until(lambda: remembered.marks == {1: 400, 2: 400})
    whole = cluster.wires.digested
    for number in range(0, 400, 40):
        cluster.accept(put(b"k/%04d" % number, 5, record(1000 + number, 2, record(number + 1).ref)), 1, 2)
        cluster.accept(put(b"k/%04d+" % number, 1, record(2000 + number)), 1, 2)
    second = Repairer(cluster.engine, 3, SETTINGS, marks=remembered)
    async with running(second):
        await until(lambda: second.progress.complete is not None)
        assert (second.progress.compared, second.progress.repaired, cluster.wires.digested) == (20, 20, whole)
        await until(lambda: remembered.marks == {1: 420, 2: 420})
    assert cluster.digests(3) == cluster.digests(1)


@pytest.mark.parametrize("marks", [{1: 5}, {1: 5, 2: 10**6}], ids=["of one peer", "of a peer that went back"])
async def test_where_it_is_not_known_what_changed_all_is_compared(cluster: Cluster, marks: Mapping[int, int]) -> None:
    cluster.fill(40)
    cluster.accept(put(b"k/0007", 5, record(1007, 2, record(8).ref)), 1, 2)
    remembered = Remembered()
    remembered.marks = marks
    repairer = Repairer(cluster.engine, 3, SETTINGS, marks=remembered)
    async with running(repairer):
        await until(lambda: repairer.progress.complete is not None)
    assert cluster.wires.digested
    assert cluster.digests(3) == cluster.digests(1)


async def test_a_pass_that_left_something_is_not_built_on(cluster: Cluster) -> None:
    async def no_bucket(name: bytes, again: bool) -> Fence | None:
        raise NoSuchBucket("it has been removed")

    remembered = Remembered()
    remembered.marks = {1: 0, 2: 0}
    cluster.accept(put(b"k/a", 1, record(1)), 1)
    repairer = Repairer(cluster.engine, 3, SETTINGS, marks=remembered, fence_of=no_bucket)
    async with running(repairer):
        await until(lambda: remembered.marks == {})
    assert repairer.progress.left == 1
    assert repairer.progress.complete is None


async def test_named_registers_with_long_history_take_several_pages(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("objmeta.store.inventories.HELD_PER_PAGE_MAX", 3)
    for number in range(6):
        records = [record(1)]
        for sequence in range(2, number + 2):
            records.append(record(sequence, sequence, records[-1].ref))
        for counter, each in enumerate(records, 1):
            cluster.accept(put(b"k/%d" % number, counter, each), 1, 2)
    assert await cluster.repairer.catch_up({1: 0, 2: 0}, {1: 21, 2: 21})
    assert cluster.repairer.progress.repaired == cluster.repairer.progress.compared == 6
    assert cluster.digests(3) == cluster.digests(1)
    assert cluster.wires.digested == 0


async def test_it_does_not_follow_those_who_write_for_ever(cluster: Cluster) -> None:
    cluster.fill(100)
    numbers = itertools.count(1000)

    def write() -> None:
        for number in itertools.islice(numbers, 20):
            cluster.accept(put(b"k/%06d" % number, 1, record(number)), 1, 2, 3)

    cluster.accept(put(b"k/0099+", 1, record(500)), 1, 2)
    cluster.wires.on_page = write
    async with asyncio.timeout(20):
        assert await cluster.repairer.repair({1, 2})
    assert cluster.found(3, b"k/0099+")[0] == ballot(1)


async def test_an_empty_acceptor_is_filled(cluster: Cluster) -> None:
    for number in range(2500):
        cluster.accept(put(b"k/%04d" % number, 1, record(number + 1)), 1, 2)
    assert await cluster.repairer.repair({1, 2})
    assert cluster.repairer.progress.repaired == 2500
    assert cluster.digests(3) == cluster.digests(1)
    assert await cluster.repairer.repair({1, 2})
    assert cluster.repairer.progress.repaired == 0


@pytest.mark.parametrize("kept", [1000, 1])
async def test_after_a_short_break_only_what_changed_is_looked_at(cluster: Cluster, kept: int) -> None:
    for lane in cluster.lanes.values():
        await lane.close()
    cluster.stores = {a: MemoryStore(a, CONFIGURATION, changes_kept=kept) for a in (1, 2, 3)}
    cluster.lanes.update({a: Lane(store, asyncio.get_running_loop()) for a, store in cluster.stores.items()})
    cluster.fill(400)
    reached = {1: 1, 2: 1}
    repairer = Repairer(cluster.engine, 3, SETTINGS, connections=lambda: reached)
    async with running(repairer):
        await until(lambda: repairer.progress.passes == 1)
        whole = cluster.wires.digested
        lost = [put(b"k/%04d" % n, 5, record(1000 + n, 2, record(n + 1).ref)) for n in range(0, 400, 80)]
        for request in lost:
            cluster.accept(request, 1, 2)
        cluster.accept(put(b"k/0007", 5, record(1007, 2, record(8).ref)), 1, 2, 3)
        reached.update({1: 2, 2: 2})
        await until(lambda: repairer.progress.passes == 2)
        assert repairer.progress.repaired == 5
        if kept > 1:
            assert (cluster.wires.digested, repairer.progress.compared) == (whole, 6)
        else:
            assert cluster.wires.digested > whole, "the peers said reload"
        assert cluster.digests(3) == cluster.digests(1)
        assert repairer.progress.complete is not None


async def test_it_starts_by_itself_and_again_when_a_peer_comes_back(cluster: Cluster) -> None:
    reached = {1: 1}
    repairer = Repairer(cluster.engine, 3, SETTINGS, connections=lambda: reached)
    cluster.accept(put(b"k/a", 5, record(1)), 1, 2)
    async with running(repairer):
        await until(lambda: repairer.progress.passes == 1)
        assert repairer.progress.complete is None, "one of the peers was not there"
        reached[2] = 1
        await until(lambda: repairer.progress.passes == 2)
        assert repairer.progress.peers == {2: "compared"}
        cluster.accept(put(b"k/b", 5, record(1)), 1, 2)
        reached[2] = 2
        await until(lambda: cluster.found(3, b"k/b")[0] == ballot(5))
