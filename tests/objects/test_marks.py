"""What one of three acceptors names: nothing that can still be read may be missing, whatever reached whom."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import random
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path

import pytest

import objmeta
from objmeta.core.ballot import BallotSource
from objmeta.core.change import Renewal
from objmeta.core.configuration import ConfigurationTag, Membership, single_set
from objmeta.core.inventory import InventoryRequest
from objmeta.core.listing import ScanAnswer, ScanRequest
from objmeta.core.messages import Accept, Prepare, RaiseFloors, Read, Reply, Request
from objmeta.errors import (
    ConfigurationMismatch,
    IntegrityError,
    InvalidArgument,
    NoSuchBucket,
    RowDamaged,
    Unavailable,
    UnknownOutcome,
)
from objmeta.interfaces import ChangeRequest, OnReply
from objmeta.model.names import object_register
from objmeta.model.values import Chunk
from objmeta.objects.buckets import Buckets
from objmeta.objects.context import Context
from objmeta.objects.fences import BucketFences
from objmeta.objects.marks import marks
from objmeta.objects.objects import Objects
from objmeta.objects.types import ObjectVersion
from objmeta.register.engine import Engine, EngineSettings
from objmeta.register.local import LocalTransport
from objmeta.register.mending import RepairSettings
from objmeta.register.repairing import Repairer
from objmeta.store import sqlite_files
from objmeta.store.lane import Lane
from objmeta.store.memory import MemoryStore
from objmeta.store.rocks import RocksStore
from objmeta.store.sqlite import SqliteStore
from tests.node.test_bootstrap import Machines

CONFIGURATION = single_set(b"store-id-16bytes", (1, 2, 3))
BUCKET = "bucket"
_GIVEN_UP_S = 0.5
REPAIR = RepairSettings(compared_per_s_max=1e6, mended_per_s_max=1e6, timeout_s=2.0, defer_s=0.01)

Store = MemoryStore | SqliteStore | RocksStore


def chunk(number: int) -> Chunk:
    return Chunk(number.to_bytes(32), 10)


class Wires(LocalTransport):
    """Local acceptors; ``lose`` decides which requests get lost."""

    def __init__(self, lanes: dict[int, Lane]) -> None:
        super().__init__(CONFIGURATION.tag, lanes)
        self.lose: Callable[[int, Request], bool] = lambda acceptor, request: False

    def send(self, acceptor: int, request: Request, on_reply: OnReply) -> None:
        if not self.lose(acceptor, request):
            super().send(acceptor, request, on_reply)

    async def scan(self, acceptor: int, request: ScanRequest) -> ScanAnswer:
        if self.lose(acceptor, Prepare(b"", BallotSource(1, 1).next())):
            raise Unavailable("it is cut off")
        return await super().scan(acceptor, request)


class Trio:
    """Three acceptors in this process, and a proposer for them."""

    def __init__(self, stores: dict[int, Store]) -> None:
        loop = asyncio.get_running_loop()
        self.stores = stores
        self.lanes = {acceptor: Lane(store, loop) for acceptor, store in stores.items()}
        self.wires = Wires(self.lanes)
        settings = EngineSettings(round_timeout_s=_GIVEN_UP_S, straggler_wait_s=0.001)
        self.engine = Engine(Membership(CONFIGURATION), self.wires, BallotSource(7, 7, 100), random.Random(1), settings)
        numbers = itertools.count(1)
        self.context = Context(
            self.engine, lambda: time.time_ns() // 1000, lambda: next(numbers).to_bytes(16), 20.0, True
        )
        self.buckets = Buckets(self.context)
        self.objects = Objects(self.context, self.buckets)
        self.hasty = Objects(dataclasses.replace(self.context, timeout_s=_GIVEN_UP_S), self.buckets)

    async def put(self, key: str, *numbers: int, lists: tuple[Chunk, ...] = ()) -> ObjectVersion:
        chunks = [chunk(number) for number in numbers]
        size = 10 * len(chunks)
        return await self.objects.put(BUCKET, key, chunks=chunks, lists=lists, size=size, etag="00" * 32)

    async def put_in_vain(self, key: str, number: int) -> None:
        """A put that is given up, as too few acceptors are reached."""
        with pytest.raises(UnknownOutcome):
            await self.hasty.put(BUCKET, key, chunks=[chunk(number)], size=10, etag="00" * 32)

    async def renew(self, key: str) -> None:
        """What is chosen is accepted anew by whoever is reached."""
        name = await self.name_of(key)
        fence = await BucketFences(self.context).fence_of(name, False)
        await self.engine.change(ChangeRequest(name, Renewal(), fence), 20.0)

    async def named(self, acceptor: int) -> set[int]:
        """The numbers of the chunks that an acceptor names, once it has taken what was sent to it."""
        await self.answered(acceptor, RaiseFloors())
        found: set[int] = set()
        async for page in marks(self.context, self.lanes[acceptor], CONFIGURATION.tag):
            found.update(int.from_bytes(each.digest) for each in page.named)
        return found

    async def answered(self, acceptor: int, request: Request) -> Reply:
        """What an acceptor says, after its answers to all that came before (reads and writes by themselves)."""
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.lanes[acceptor].submit(CONFIGURATION.tag, request, answer.set_result)
        return await answer

    async def named_by_each(self) -> list[set[int]]:
        return [await self.named(acceptor) for acceptor in self.lanes]

    async def name_of(self, key: str) -> bytes:
        return object_register((await self.buckets.look_up(BUCKET)).bucket_id, key)

    def reaching(self, *acceptors: int, prepares: tuple[int, ...] | None = None) -> Reaching:
        """While it lasts accepts reach these only, and prepares those."""
        return Reaching(self, acceptors, prepares)

    def without(self, *acceptors: int) -> Reaching:
        """While it lasts these are cut off."""
        there = tuple(acceptor for acceptor in self.lanes if acceptor not in acceptors)
        return Reaching(self, there, there)

    async def repair(self) -> None:
        fences = BucketFences(self.context)
        for acceptor in self.lanes:
            others = [other for other in self.lanes if other != acceptor]
            await Repairer(self.engine, acceptor, REPAIR, fence_of=fences.fence_of).repair(others)

    async def close(self) -> None:
        await self.engine.close()
        for lane in self.lanes.values():
            await lane.close()
        for store in self.stores.values():
            store.close()


class Reaching:
    def __init__(self, trio: Trio, accepts: tuple[int, ...], prepares: tuple[int, ...] | None) -> None:
        self._trio = trio
        self._accepts = accepts
        self._prepares = prepares

    def __enter__(self) -> None:
        self._trio.wires.lose = self._lose

    def __exit__(self, *error: object) -> None:
        self._trio.wires.lose = lambda acceptor, request: False

    def _lose(self, acceptor: int, request: Request) -> bool:
        if isinstance(request, Accept):
            return acceptor not in self._accepts
        return self._prepares is not None and acceptor not in self._prepares


@pytest.fixture(params=["memory", "sqlite", "rocks"])
async def trio(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Trio]:
    stores: dict[int, Store] = {}
    for acceptor in (1, 2, 3):
        if request.param == "memory":
            stores[acceptor] = MemoryStore(acceptor, CONFIGURATION)
        elif request.param == "sqlite":
            stores[acceptor] = SqliteStore.create(tmp_path / str(acceptor), acceptor, CONFIGURATION)
        else:
            stores[acceptor] = RocksStore.create(tmp_path / str(acceptor), acceptor, CONFIGURATION)
    made = Trio(stores)
    await made.buckets.create(BUCKET)
    yield made
    await made.close()


async def test_what_versions_name(trio: Trio) -> None:
    await trio.put("a", 1, 2)
    await trio.put("a", 2, 3)
    await trio.put("b", lists=(Chunk(bytes(31) + b"\x04", 77),))
    await trio.objects.put(BUCKET, "inline", data=b"content")
    await trio.objects.delete(BUCKET, "a", None)
    assert await trio.named_by_each() == [{1, 2, 3, 4}] * 3
    (page,) = [page async for page in marks(trio.context, trio.lanes[1], CONFIGURATION.tag)]
    bucket_id = (await trio.buckets.look_up(BUCKET)).bucket_id
    assert page.objects == 3
    assert {each.bucket_id for each in page.named} == {bucket_id}
    assert [(each.length, each.is_list) for each in page.named if each.digest[-1] == 4] == [(77, True)]
    assert len(page.named) == 4


async def test_page_by_page(trio: Trio) -> None:
    names = [f"{number:04d}" for number in range(1200)]
    for at in range(0, len(names), 200):
        await asyncio.gather(*(trio.put(name, int(name)) for name in names[at : at + 200]))
    pages = [page async for page in marks(trio.context, trio.lanes[2], CONFIGURATION.tag)]
    assert [page.objects for page in pages] == [500, 500, 200]
    assert sorted(int.from_bytes(each.digest) for page in pages for each in page.named) == list(range(1200))


async def test_what_reached_a_minority_is_named_there(trio: Trio) -> None:
    with trio.reaching(2):
        await trio.put_in_vain("k", 1)
    assert await trio.named_by_each() == [set(), {1}, set()]
    with trio.without(1):
        await trio.objects.head(BUCKET, "k")  # and it is chosen after all
    assert await trio.named_by_each() == [set(), {1}, {1}]


async def test_a_place_that_was_taken_is_not_named_once_that_is_known(trio: Trio) -> None:
    with trio.reaching(1):
        await trio.put_in_vain("k", 1)
    with trio.without(1):
        await trio.put("k", 2)
    assert await trio.named_by_each() == [{1}, {2}, {2}]  # the first one has not heard of it
    await trio.repair()
    assert await trio.named_by_each() == [{2}] * 3


async def test_a_removal_that_reached_a_minority_proves_nothing(trio: Trio) -> None:
    """Whoever holds it is asked just then, and a round of the others has it overridden: three times in a row."""
    put = await trio.put("k", 1)
    for acceptor in (1, 2, 3):
        others = tuple(each for each in (1, 2, 3) if each != acceptor)
        with trio.reaching(acceptor), pytest.raises(UnknownOutcome):
            await trio.hasty.remove_version(BUCKET, "k", put.version_id)
        with trio.without(acceptor):
            assert (await trio.objects.head(BUCKET, "k")).version_id == put.version_id
        assert await trio.named(acceptor) == {1}
        with trio.reaching(1, 2, 3, prepares=others):
            await trio.renew("k")
    assert (await trio.objects.head(BUCKET, "k")).version_id == put.version_id


async def test_a_removal_that_was_chosen(trio: Trio) -> None:
    first = await trio.put("k", 1)
    second = await trio.put("k", 2)
    await trio.objects.remove_version(BUCKET, "k", first.version_id)
    assert await trio.named_by_each() == [{2}] * 3
    await trio.put("k", 3)
    assert await trio.named_by_each() == [{2, 3}] * 3
    await trio.objects.remove_version(BUCKET, "k", second.version_id)
    assert await trio.named_by_each() == [{3}] * 3


async def test_who_did_not_hear_of_a_removal_is_told(trio: Trio) -> None:
    first = await trio.put("k", 1)
    await trio.put("k", 2)
    with trio.without(3):
        await trio.objects.remove_version(BUCKET, "k", first.version_id)
    assert await trio.named_by_each() == [{2}, {2}, {1, 2}]
    await trio.repair()
    assert await trio.named_by_each() == [{2}] * 3


async def test_removed_and_restored(trio: Trio) -> None:
    first = await trio.put("k", 1)
    await trio.put("k", 2)
    kept = {"if_absent": False, "if_version": None}
    await trio.objects.copy((BUCKET, "k"), (BUCKET, "k"), version_id=first.version_id, **kept)  # type: ignore[arg-type]
    await trio.objects.remove_version(BUCKET, "k", first.version_id)
    assert await trio.named_by_each() == [{1, 2}] * 3


async def test_below_the_removal_of_the_last_version_nothing_is_left(trio: Trio) -> None:
    for _ in range(2):
        put = await trio.put("k", 1)
        marker = await trio.objects.delete(BUCKET, "k", None)
        await trio.objects.remove_version(BUCKET, "k", put.version_id)
        await trio.objects.remove_version(BUCKET, "k", marker.version_id)
        assert await trio.named_by_each() == [set()] * 3
        put = await trio.put("k", 2)
        assert await trio.named_by_each() == [{2}] * 3
        await trio.objects.remove_version(BUCKET, "k", put.version_id)


async def test_a_dead_record_beside_the_chain(trio: Trio) -> None:
    await trio.put("k", 1)
    with trio.reaching(1):
        await trio.put_in_vain("k", 2)
    with trio.without(1):
        await trio.put("k", 3)
    assert await trio.named_by_each() == [{1, 2}, {1, 3}, {1, 3}]
    await trio.renew("k")  # the first one takes the new version, and still holds the dead record
    await trio.answered(1, RaiseFloors())
    (row,) = trio.stores[1].inventory(CONFIGURATION.tag, InventoryRequest(await trio.name_of("k"))).rows
    assert len(row.held) == 3
    assert await trio.named_by_each() == [{1, 3}] * 3


async def test_what_may_yet_be_chosen_beside_the_chain_is_named(trio: Trio) -> None:
    """A record above the chosen tip: its ballot was lost, but another copy of the operation makes the same record."""
    await trio.put("k", 1)
    name = await trio.name_of("k")
    with trio.reaching(1):
        await trio.put_in_vain("k", 2)
    with trio.reaching(1, 2, 3, prepares=(2, 3)):
        await trio.renew("k")
    (row,) = trio.stores[1].inventory(CONFIGURATION.tag, InventoryRequest(name, name + b"\0")).rows
    assert len(row.held) == 2
    assert await trio.named_by_each() == [{1, 2}, {1}, {1}]


async def test_promises_alone_name_nothing(trio: Trio) -> None:
    with trio.reaching():
        await trio.put_in_vain("k", 1)
    name = await trio.name_of("k")
    (row,) = trio.stores[1].inventory(CONFIGURATION.tag, InventoryRequest(name, name + b"\0")).rows
    assert row.flag is None
    assert await trio.named_by_each() == [set()] * 3


class ErasedMeanwhile:
    """An acceptor whose register is erased right after its page was read."""

    def __init__(self, trio: Trio) -> None:
        self._trio = trio

    async def scan(self, tag: ConfigurationTag, request: ScanRequest) -> ScanAnswer:
        answer = await self._trio.lanes[1].scan(tag, request)
        found = await self._trio.engine.collect(0, 20.0)
        assert found.erased == 1
        return answer


async def test_a_register_that_is_erased_meanwhile(trio: Trio) -> None:
    put = await trio.put("k", 1)
    await trio.put("other", 2)
    await trio.objects.remove_version(BUCKET, "k", put.version_id)
    trio.engine.eraser.settings = type(trio.engine.eraser.settings)(grace_s=0.0)
    (page,) = [page async for page in marks(trio.context, ErasedMeanwhile(trio), CONFIGURATION.tag)]
    assert {int.from_bytes(each.digest) for each in page.named} <= {1, 2}
    assert await trio.named_by_each() == [{2}] * 3


async def test_a_bucket_that_is_gone(trio: Trio) -> None:
    with trio.reaching(1):
        await trio.put_in_vain("k", 1)
    assert await trio.named(1) == {1}
    with trio.without(1):
        await trio.buckets.remove(BUCKET)
    assert await trio.named(1) == set()
    with pytest.raises(NoSuchBucket):
        await trio.buckets.get(BUCKET)


async def test_nothing_is_said_under_another_configuration(trio: Trio) -> None:
    await trio.put("k", 1)
    other = single_set(b"store-id-16bytes", (1, 2)).tag
    with pytest.raises(ConfigurationMismatch):
        [page async for page in marks(trio.context, trio.lanes[1], other)]


# -- Damage -----------------------------------------------------------------------------------------------------------


def damage(store: SqliteStore, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(sqlite_files.database_path(store.path), isolation_level=None)) as other:
        assert other.execute(statement, values).rowcount == 1


@pytest.mark.parametrize("trio", ["sqlite"], indirect=True)
async def test_a_damaged_row_is_never_passed_by(trio: Trio) -> None:
    await trio.put("a", 1)
    await trio.put("b", 2)
    name = await trio.name_of("a")
    store = trio.stores[2]
    assert isinstance(store, SqliteStore)
    damage(store, "UPDATE registers SET flag = 1 - flag WHERE name = ?", name)
    with pytest.raises(RowDamaged, match="'a'"):
        await trio.named(2)
    await trio.answered(2, Read(b"k/another"))
    assert trio.lanes[2].damage.take() == [name]  # so that it is mended
    assert await trio.named(1) == {1, 2}


@pytest.mark.parametrize("trio", ["sqlite"], indirect=True)
async def test_a_lost_record_is_fetched_from_others(trio: Trio) -> None:
    await trio.put("a", 1)
    store = trio.stores[2]
    assert isinstance(store, SqliteStore)
    damage(store, "DELETE FROM records WHERE name = ?", await trio.name_of("a"))
    assert await trio.named(2) == {1}


async def test_the_only_acceptor_must_have_all(tmp_path: Path) -> None:
    async with objmeta.connect_async(tmp_path / "store") as client:
        await client.create_bucket(BUCKET)
        for number in (1, 2):
            version = await client.put_object(BUCKET, "k", chunks=[chunk(number)], size=10, etag="00" * 32)
        epoch = (await client.status()).epoch
        assert await of_all(client, epoch) == {1: {1, 2}}
        (record,) = [v for v in await client.versions(BUCKET, "k") if v != version]
        database = sqlite_files.database_path(tmp_path / "store" / "acceptor")
        with closing(sqlite3.connect(database, isolation_level=None)) as other:
            other.execute("DELETE FROM records WHERE version_id = ?", (bytes.fromhex(record.version_id),))
        with pytest.raises(IntegrityError, match="'k'"):
            await of_all(client, epoch)


# -- Through clients and nodes ----------------------------------------------------------------------------------------


async def of_all(client: objmeta.AsyncClient, epoch: int) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {}
    for acceptor, pages in (await client.local_marks(epoch)).items():
        found[acceptor] = {int.from_bytes(each.digest) async for page in pages for each in page.named}
    return found


async def test_a_store_over_several_disks(tmp_path: Path) -> None:
    disks = [tmp_path / name for name in "abc"]
    async with objmeta.connect_async(disks=disks) as client:
        await client.create_bucket(BUCKET)
        await client.put_object(BUCKET, "k", chunks=[chunk(1)], size=10, etag="00" * 32)
        cycle = await client.begin_cycle()
        assert await of_all(client, cycle.epoch) == {1: {1}, 2: {1}, 3: {1}}
        with pytest.raises(Unavailable, match="epoch"):
            await client.local_marks(cycle.epoch + 1)
    (tmp_path / "b").rename(tmp_path / "away")
    async with objmeta.connect_async(disks=disks) as client:
        with pytest.raises(Unavailable):
            await of_all(client, cycle.epoch)


async def test_the_nodes_of_a_cluster(tmp_path: Path) -> None:
    machines = Machines(tmp_path)
    try:
        await machines.start_all()
        async with objmeta.connect_async(",".join(machines.addresses.values())) as client:
            await client.create_bucket(BUCKET)
            await client.put_object(BUCKET, "k", chunks=[chunk(1)], size=10, etag="00" * 32)
            cycle = await client.begin_cycle()
            with pytest.raises(InvalidArgument):
                await client.local_marks(cycle.epoch)
        named: set[objmeta.Named] = set()
        for node in machines.nodes.values():
            with pytest.raises(Unavailable, match="epoch"):
                node.marks(cycle.epoch + 1)
            async for page in node.marks(cycle.epoch):
                named.update(page.named)
        assert {(each.digest, each.length) for each in named} == {(chunk(1).digest, 10)}
    finally:
        await machines.stop()
