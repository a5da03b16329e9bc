"""The eraser over three real acceptors in this process: what it takes away, what it leaves, and what comes after."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable

import pytest

from objmeta.core.ballot import BallotSource
from objmeta.core.configuration import Membership, single_set
from objmeta.core.erasure import FIRST_GENERATION, GENERATION_REGISTER
from objmeta.core.home import scope_of
from objmeta.core.inventory import Inventory, InventoryRequest
from objmeta.core.messages import Accept, Erase, Floors, Prepare, RaiseFloors, ReadFloors, Request
from objmeta.core.reconfiguration import begin
from objmeta.errors import NoQuorum, StaleGeneration, Unavailable, UnknownOutcome
from objmeta.interfaces import ChangeReply, ChangeRequest, Collected, OnReply
from objmeta.model.changes import SetValue
from objmeta.model.values import Value, decode_value
from objmeta.register.engine import Engine, EngineSettings
from objmeta.register.erasing import Eraser, ErasureSettings, Seen
from objmeta.register.local import LocalTransport
from objmeta.store.lane import Lane
from objmeta.store.memory import MemoryStore
from tests.store.build import record

CONFIGURATION = single_set(b"store-id-16bytes", (1, 2, 3))
TIMEOUT_S = 5.0
NAMES = [b"k/%03d" % number for number in range(40)]


class Wires(LocalTransport):
    """Local acceptors, some of which cannot be reached, and messages that get lost."""

    def __init__(self, lanes: dict[int, Lane]) -> None:
        super().__init__(CONFIGURATION.tag, lanes)
        self.cut: set[int] = set()
        self.lose: Callable[[int, Request], bool] = lambda acceptor, request: False
        self.sent: list[Request] = []

    def send(self, acceptor: int, request: Request, on_reply: OnReply) -> None:
        self.sent.append(request)
        if acceptor not in self.cut and not self.lose(acceptor, request):
            super().send(acceptor, request, on_reply)

    async def inventory(self, acceptor: int, request: InventoryRequest) -> Inventory:
        if acceptor in self.cut:
            raise Unavailable(f"acceptor {acceptor} is cut off")
        return await super().inventory(acceptor, request)


class Cluster:
    """Three acceptors, and an engine whose eraser is in a hurry."""

    def __init__(self, **settings: float) -> None:
        loop = asyncio.get_running_loop()
        self.stores = {a: MemoryStore(a, CONFIGURATION) for a in (1, 2, 3)}
        self.lanes = {a: Lane(store, loop) for a, store in self.stores.items()}
        self.wires = Wires(self.lanes)
        self.engine = self.new_engine(7)
        hurried = {"grace_s": 0.0, "answer_s": 0.3, "names_per_batch": 16} | settings
        self.eraser = self.engine.eraser = Eraser(self.engine, ErasureSettings(**hurried))  # type: ignore[arg-type]

    def new_engine(self, proposer: int) -> Engine:
        settings = EngineSettings(round_timeout_s=0.3, straggler_wait_s=0.001)
        ballots = BallotSource(proposer, 1, 100)
        return Engine(Membership(CONFIGURATION), self.wires, ballots, random.Random(proposer), settings)

    async def set(self, name: bytes, value: bytes | None, operation: bytes = b"", generation: int = 0) -> ChangeReply:
        change = SetValue(operation or random.Random(name + (value or b"-")).randbytes(16), value)
        reply = await self.engine.change(ChangeRequest(name, change, generation=generation), TIMEOUT_S)
        assert reply.code == ""
        return reply

    async def value(self, name: bytes) -> bytes | None:
        (state,) = await self.engine.read((name,), TIMEOUT_S)
        if state is None:
            return None
        value = decode_value(state.value)
        assert isinstance(value, Value)
        return value.value

    async def make_tombstones(self, *names: bytes) -> None:
        await asyncio.gather(*(self.set(name, b"x") for name in names))
        await asyncio.gather(*(self.set(name, None) for name in names))

    def rows(self, acceptor: int) -> list[bytes]:
        found = self.stores[acceptor].inventory(CONFIGURATION.tag, InventoryRequest(limit=1000))
        return [row.name for row in found.rows if not row.name.startswith(b"~")]

    def floors(self, acceptor: int) -> Floors:
        (reply,) = self.stores[acceptor].apply([(CONFIGURATION.tag, ReadFloors())])
        assert isinstance(reply, Floors)
        return reply

    async def settled(self) -> None:
        """Wait until every acceptor has done what it was sent."""
        done: list[asyncio.Future[None]] = []
        for lane in self.lanes.values():
            done.append(asyncio.get_running_loop().create_future())
            lane.submit(CONFIGURATION.tag, RaiseFloors(), lambda reply, future=done[-1]: future.set_result(None))  # type: ignore[misc]
        await asyncio.gather(*done)


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    made = Cluster()
    yield made
    await made.engine.close()
    await asyncio.gather(*(lane.close() for lane in made.lanes.values()))


async def test_a_tombstone_goes_in_the_second_pass_that_sees_it(cluster: Cluster) -> None:
    await cluster.make_tombstones(*NAMES)
    await cluster.set(b"k/live", b"stays")
    assert await cluster.eraser.run_pass() == Collected(0, True)
    assert all(cluster.rows(a) == [*NAMES, b"k/live"] for a in (1, 2, 3)), "the first only looks"
    await cluster.settled()
    before = {a: store.changes(2**40, 1).watermark for a, store in cluster.stores.items()}
    assert await cluster.eraser.run_pass() == Collected(0, True, erased=len(NAMES))
    for acceptor in (1, 2, 3):
        assert cluster.rows(acceptor) == [b"k/live"]
        assert set(cluster.stores[acceptor].changes(before[acceptor], 1000).names) == set(NAMES)
        ((scope, floor),) = cluster.floors(acceptor).scopes
        assert (scope, floor.sequence) == (scope_of(NAMES[0]), 2)
    assert await cluster.value(b"k/live") == b"stays"
    assert await cluster.value(NAMES[0]) is None


async def test_collecting_does_both_passes_and_is_told_by_its_number(cluster: Cluster) -> None:
    await cluster.make_tombstones(*NAMES)
    began = await cluster.engine.collect(0, 0.0)
    assert not began.done
    joined = await cluster.engine.collect(0, TIMEOUT_S)
    assert joined == Collected(began.run, True, erased=len(NAMES))
    assert await cluster.engine.collect(began.run, TIMEOUT_S) == joined, "the answer is kept"
    assert await cluster.engine.collect(0, TIMEOUT_S) == Collected(began.run + 1, True)


async def test_what_tombstones_alone_keep_moving_stands_still_without_them(cluster: Cluster) -> None:
    await cluster.set(b"k/live", b"stays")
    await cluster.engine.collect(0, TIMEOUT_S)
    assert await cluster.engine.generations.newest(TIMEOUT_S) == FIRST_GENERATION
    assert cluster.floors(1).generation == 0


async def test_a_name_made_anew_goes_on_above_the_erased_one(cluster: Cluster) -> None:
    await cluster.make_tombstones(b"k/a")
    last = await cluster.set(b"k/a", b"again", operation=bytes(15) + b"1")
    await cluster.set(b"k/a", None, operation=bytes(15) + b"2")
    await cluster.engine.collect(0, TIMEOUT_S)
    assert cluster.rows(2) == []
    anew = await cluster.set(b"k/a", b"new", operation=bytes(15) + b"3")
    assert anew.record is not None
    assert last.record is not None
    assert anew.record.ref.sequence > last.record.ref.sequence + 1
    assert anew.record.parent is None


async def test_an_old_copy_of_an_operation_is_refused_when_it_would_not_be_known_any_more(cluster: Cluster) -> None:
    operation = bytes(15) + b"P"
    await cluster.set(b"k/a", b"x", operation, generation=FIRST_GENERATION)
    await cluster.set(b"k/a", None)
    again = await cluster.set(b"k/a", b"x", operation, generation=FIRST_GENERATION)
    assert again.record is not None
    assert again.record.ref.sequence == 1, "known still: it was applied"
    await cluster.engine.collect(0, TIMEOUT_S)
    late = cluster.new_engine(8)
    for engine in (cluster.engine, late):
        with pytest.raises(StaleGeneration):
            await engine.change(
                ChangeRequest(b"k/a", SetValue(operation, b"x"), generation=FIRST_GENERATION), TIMEOUT_S
            )
    assert await cluster.value(b"k/a") is None
    begun_now = await late.change(ChangeRequest(b"k/a", SetValue(bytes(15) + b"Q", b"y")), TIMEOUT_S)
    assert begun_now.code == ""


async def test_an_operation_that_begins_with_old_knowledge_begins_anew_by_itself(cluster: Cluster) -> None:
    other = cluster.new_engine(8)
    assert await other.generations.stated(TIMEOUT_S) == FIRST_GENERATION
    await cluster.make_tombstones(b"k/a")
    await cluster.engine.collect(0, TIMEOUT_S)
    assert cluster.floors(1).generation > FIRST_GENERATION
    reply = await other.change(ChangeRequest(b"k/b", SetValue(bytes(16), b"y")), TIMEOUT_S)
    assert reply.code == ""
    assert other.generations.known() > FIRST_GENERATION


async def test_an_operation_that_may_have_been_proposed_has_an_unknown_outcome(cluster: Cluster) -> None:
    prepares: list[int] = []

    def one_accept_and_then_the_floor(acceptor: int, request: Request) -> bool:
        if isinstance(request, Prepare) and request.name == b"k/b":
            prepares.append(acceptor)
            if len(prepares) == 4:
                cluster.wires.cut = {1}
                for store in cluster.stores.values():
                    store.apply([(CONFIGURATION.tag, RaiseFloors(FIRST_GENERATION + 1))])
        return isinstance(request, Accept) and acceptor != 1

    cluster.wires.lose = one_accept_and_then_the_floor
    with pytest.raises(UnknownOutcome):
        await cluster.set(b"k/b", b"y", generation=FIRST_GENERATION)
    assert cluster.rows(1) == [b"k/b"]


async def test_an_operation_has_a_whole_cycle_to_finish(cluster: Cluster) -> None:
    begun = FIRST_GENERATION
    await cluster.make_tombstones(b"k/a")
    await cluster.eraser.run_pass()
    await cluster.set(b"k/b", b"1", generation=begun)
    await cluster.make_tombstones(b"k/c")
    await cluster.eraser.run_pass()
    with pytest.raises(StaleGeneration):
        await cluster.set(b"k/b", b"2", generation=begun)
    await cluster.set(b"k/b", b"3", generation=begun + 1)


async def test_nothing_is_erased_while_one_is_away(cluster: Cluster) -> None:
    await cluster.make_tombstones(*NAMES)
    await cluster.settled()
    cluster.wires.cut = {3}
    assert await cluster.engine.collect(0, TIMEOUT_S) == Collected(1, True, unreachable=(3,))
    assert all(cluster.rows(a) == NAMES for a in (1, 2, 3))
    cluster.wires.cut = set()
    assert (await cluster.engine.collect(0, TIMEOUT_S)).erased == len(NAMES)
    assert all(cluster.rows(a) == [] for a in (1, 2, 3))


async def test_one_that_goes_away_between_the_passes_keeps_the_others_from_erasing(cluster: Cluster) -> None:
    await cluster.make_tombstones(*NAMES)
    await cluster.eraser.run_pass()
    cluster.wires.cut = {2}
    assert await cluster.eraser.run_pass() == Collected(0, True, unreachable=(2,))
    assert cluster.rows(1) == NAMES
    cluster.wires.cut = set()
    assert (await cluster.eraser.run_pass()).erased == len(NAMES), "what was seen is still known"


async def test_one_that_missed_the_tombstone_or_was_asked_since_confirms_it_by_a_round(cluster: Cluster) -> None:
    await cluster.set(b"k/a", b"x")
    await cluster.set(b"k/b", b"x")
    await cluster.settled()
    cluster.wires.cut = {3}
    await cluster.set(b"k/a", None)
    await cluster.set(b"k/b", None)
    cluster.wires.cut = set()
    (read,) = await cluster.engine.settle((b"k/b",), TIMEOUT_S, None)
    assert read is not None
    assert (await cluster.engine.collect(0, TIMEOUT_S)).erased == 2
    assert all(cluster.rows(a) == [] for a in (1, 2, 3))


async def test_what_one_did_not_hear_of_is_erased_there_later(cluster: Cluster) -> None:
    await cluster.make_tombstones(b"k/a", b"k/b")
    await cluster.eraser.run_pass()
    cluster.wires.lose = lambda acceptor, request: isinstance(request, Erase) and acceptor == 2
    assert await cluster.eraser.run_pass() == Collected(0, True, left=2)
    assert [cluster.rows(a) for a in (1, 2, 3)] == [[], [b"k/a", b"k/b"], []]
    cluster.wires.lose = lambda acceptor, request: False
    assert await cluster.value(b"k/a") is None
    await cluster.set(b"k/b", b"new", operation=bytes(15) + b"1")
    assert (await cluster.eraser.run_pass()).erased == 1
    assert all(cluster.rows(a) == [b"k/b"] for a in (1, 2, 3))
    assert await cluster.value(b"k/b") == b"new"


async def test_a_read_between_the_passes_makes_no_difference(cluster: Cluster) -> None:
    await cluster.make_tombstones(b"k/a")
    await cluster.eraser.run_pass()
    await cluster.engine.settle((b"k/a",), TIMEOUT_S, None)
    await cluster.settled()
    cluster.wires.cut = {3}
    late = cluster.new_engine(8)
    await late.settle((b"k/a",), TIMEOUT_S, None)
    cluster.wires.cut = set()
    assert (await cluster.eraser.run_pass()).erased == 1


async def test_a_name_deleted_again_between_the_passes_waits_for_the_next(cluster: Cluster) -> None:
    await cluster.make_tombstones(b"k/a")
    await cluster.eraser.run_pass()
    await cluster.set(b"k/a", b"again", operation=bytes(15) + b"1")
    await cluster.set(b"k/a", None, operation=bytes(15) + b"2")
    assert (await cluster.eraser.run_pass()).erased == 0
    assert (await cluster.eraser.run_pass()).erased == 1


async def test_a_write_during_the_erasure_is_not_lost(cluster: Cluster) -> None:
    """The accept of a new value reaches two acceptors after the inventory and before the erasure."""
    await cluster.make_tombstones(b"k/a")
    await cluster.settled()
    await cluster.eraser.run_pass()
    writer = cluster.new_engine(8)
    writing: list[asyncio.Task[ChangeReply]] = []

    def write_first(acceptor: int, request: Request) -> bool:
        if isinstance(request, Erase) and not writing:
            change = SetValue(bytes(15) + b"W", b"new")
            writing.append(asyncio.ensure_future(writer.change(ChangeRequest(b"k/a", change), TIMEOUT_S)))
            return True
        return bool(isinstance(request, Erase) and acceptor != 1 and not writing[0].done())

    cluster.wires.lose = write_first
    await cluster.eraser.run_pass()
    assert (await writing[0]).code == ""
    for _ in range(3):
        await cluster.eraser.run_pass()
    assert await cluster.value(b"k/a") == b"new"


async def test_promises_without_a_value_go_when_they_are_many() -> None:
    cluster = Cluster(promises_min=5)
    absent = [b"k/absent%d" % number for number in range(4)]
    await cluster.engine.settle(absent, TIMEOUT_S, None)
    await cluster.set(b"k/live", b"x")
    await cluster.settled()
    await cluster.engine.collect(0, TIMEOUT_S)
    assert cluster.rows(1) == [*absent, b"k/live"], "four are not worth a floor"
    assert cluster.floors(1).scopes == ()
    await cluster.engine.settle((b"k/one more",), TIMEOUT_S, None)
    await cluster.settled()
    await cluster.engine.collect(0, TIMEOUT_S)
    assert all(cluster.rows(a) == [b"k/live"] for a in (1, 2, 3))
    first = next(r for r in cluster.wires.sent if isinstance(r, Prepare) and r.name == absent[0])
    (refused,) = cluster.stores[3].apply([(CONFIGURATION.tag, first)])
    assert not hasattr(refused, "accepted"), "what they had promised still holds"
    await cluster.set(b"k/live", b"y", operation=bytes(15) + b"1")
    assert await cluster.value(b"k/live") == b"y"
    await asyncio.gather(*(lane.close() for lane in cluster.lanes.values()))


async def test_erasing_and_changing_the_members_exclude_each_other(cluster: Cluster) -> None:
    await cluster.make_tombstones(b"k/a")
    await cluster.eraser.run_pass()
    joint = begin(Membership(CONFIGURATION), {4: "127.0.0.1:4"}, ())

    def adopt_at_the_first_erase(acceptor: int, request: Request) -> bool:
        if isinstance(request, Erase) and not cluster.engine.configuration.is_joint:
            cluster.engine.adopt(joint)
        return False

    cluster.wires.lose = adopt_at_the_first_erase
    stopped = await cluster.eraser.run_pass()
    assert "members" in stopped.problem
    assert await cluster.eraser.run_pass() == stopped
    assert all(b"k/a" in cluster.rows(a) for a in (2, 3)), "who got it under the new configuration refused it"


async def test_no_quorum_is_said_and_nothing_is_done(cluster: Cluster) -> None:
    await cluster.make_tombstones(b"k/a")
    await cluster.eraser.run_pass()
    cluster.wires.cut = {1, 2}
    stopped = await cluster.eraser.run_pass()
    assert stopped.erased == 0
    assert stopped.problem or stopped.unreachable == (1, 2)
    with pytest.raises(NoQuorum):
        await cluster.engine.generations.newest(0.3)


async def test_the_generation_moves_on_once_for_all_who_move_it_past_the_same(cluster: Cluster) -> None:
    others = [cluster.new_engine(proposer) for proposer in (8, 9)]
    moved = await asyncio.gather(*(e.generations.move_past(1, TIMEOUT_S) for e in (cluster.engine, *others)))
    assert moved == [2, 2, 2]
    assert await others[0].generations.move_past(1, TIMEOUT_S) == 2
    (state,) = await cluster.engine.read((GENERATION_REGISTER,), TIMEOUT_S)
    assert state is not None
    assert state.refs[-1].sequence == 1


def test_what_was_seen_is_known_by_name_and_newest_record() -> None:
    seen, tip, other = Seen(), record(1).ref, record(2, 2).ref
    for start, names in ((b"", [b"a", b"b"]), (b"c", []), (b"d", [b"d", b"f"])):
        seen.add(start, [(name, tip) for name in names])
    assert seen.count == 4
    asked = (b"a", b"b", b"c", b"d", b"e", b"f")
    assert [name for name in asked if seen.has(name, tip)] == [b"a", b"b", b"d", b"f"]
    assert not seen.has(b"a", other)
