"""Several objects at once, through a client: all or nothing, whoever dies in between."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import os

import pytest

from objmeta import AsyncClient, DeleteObject, PutObject, errors
from objmeta.client.services import Services
from objmeta.core.listing import ScanRequest, decode_rows, successor
from objmeta.interfaces import ChangeRequest
from objmeta.model.changes import Decide
from objmeta.model.names import TRANSACTIONS, object_register, transaction_register
from objmeta.model.values import DONE, INTENT_MARK, Pending, Transaction, decode_value, holds_intent
from objmeta.objects import intents
from objmeta.objects.transactions import CHANGES_MAX


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Owners that are gone are not waited for; those that live here are, for as long as it takes."""
    monkeypatch.setattr(intents, "GRACE_S", 0.02)


class Owner:
    """One that stops wherever the test wants."""

    def __init__(self, services: Services, generation: int) -> None:
        self.services = services
        self.generation = generation
        self.transaction = os.urandom(16)
        self.names: list[bytes] = []

    async def leave(self, *wanted: PutObject | DeleteObject) -> None:
        for each in wanted:
            placed = await self.services.transactions._leave(self.transaction, each, self.generation)
            self.names.append(placed.register)

    async def decide(self) -> bool:
        return await self.services.transactions._decide(self.transaction, self.names, self.generation)


@pytest.fixture
async def owner(client: AsyncClient) -> Owner:
    return Owner(await client._open(), await client.generation())


async def _left(client: AsyncClient, bucket: str) -> list[str]:
    """The keys in which there are intents, without settling them."""
    services = await client._open()
    base = object_register((await client.bucket(bucket)).bucket_id, "x")[:-1]
    fence = None
    page = await services.registers.scan(ScanRequest(base, successor(base), 1000, fence=fence), 10)
    return [row.name[len(base) :].decode() for row in decode_rows(page.rows) if holds_intent(row.state)]


async def _open_transactions(client: AsyncClient) -> set[str]:
    services = await client._open()
    page = await services.registers.scan(ScanRequest(TRANSACTIONS, successor(TRANSACTIONS), 1000), 10)
    found = [decode_value(row.state.value) for row in decode_rows(page.rows)]
    return {each.status for each in found if isinstance(each, Transaction)}


async def test_all_of_it(client: AsyncClient, bucket: str) -> None:
    there = await client.put_object(bucket, "b", data=b"old")
    made = await client.commit(
        [PutObject(bucket, "c ä?#", data=b"new", metadata={"a": "b"}), DeleteObject(bucket, "b", there.version_id)]
    )
    assert [(each.key, each.is_delete_marker) for each in made] == [("c ä?#", False), ("b", True)]
    assert await client.get_object(bucket, "c ä?#") == made[0]
    assert made[1].parent_version_id == there.version_id
    assert made[0].modified_us == made[1].modified_us
    with pytest.raises(errors.NoSuchKey):
        await client.get_object(bucket, "b")
    assert [each.version_id for each in await client.versions(bucket, "b")] == [made[1].version_id, there.version_id]
    assert [each.key for each in (await client.list_objects(bucket)).objects] == ["c ä?#"]
    assert not await _left(client, bucket)
    await client.put_object(bucket, "b", data=b"again", if_absent=True)


async def test_over_two_buckets(client: AsyncClient, bucket: str) -> None:
    other = bucket + "-2"
    await client.create_bucket(other)
    await client.commit([PutObject(other, "k", data=b"1"), PutObject(bucket, "k", data=b"2")])
    assert (await client.get_object(other, "k")).data == b"1"
    assert (await client.get_object(bucket, "k")).data == b"2"


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (lambda bucket: PutObject(bucket, "there", data=b"", if_absent=True), errors.AlreadyExists),
        (lambda bucket: PutObject(bucket, "there", data=b"", if_version="00" * 16), errors.PreconditionFailed),
        (lambda bucket: DeleteObject(bucket, "zz"), errors.NoSuchKey),
        (lambda bucket: DeleteObject(bucket, "there", "00" * 16), errors.PreconditionFailed),
        (lambda _: PutObject("no-such-bucket", "a", data=b""), errors.NoSuchBucket),
        (lambda _: PutObject("zz-no-such-bucket", "a", data=b""), errors.NoSuchBucket),
    ],
)
async def test_none_of_it(client: AsyncClient, bucket: str, bad, error) -> None:  # type: ignore[no-untyped-def]
    await client.put_object(bucket, "there", data=b"1")
    cursor = (await client.changes()).cursor
    with pytest.raises(error):
        await client.commit([PutObject(bucket, "a", data=b"x"), bad(bucket), PutObject(bucket, "zzz", data=b"x")])
    assert [each.key for each in (await client.list_versions(bucket)).versions] == ["there"]
    assert not await _left(client, bucket)
    seen = [each for each in (await client.changes(cursor)).objects if each.key != "there"]  # listed without need
    assert all(not each.versions and not each.removals for each in seen)


async def test_what_cannot_be_a_transaction(client: AsyncClient, bucket: str) -> None:
    assert await client.commit([]) == []
    with pytest.raises(errors.InvalidArgument, match="is named twice"):
        await client.commit([PutObject(bucket, "a", data=b""), DeleteObject(bucket, "a")])
    with pytest.raises(errors.InvalidArgument, match="at most 1000"):
        await client.commit([PutObject(bucket, str(i), data=b"") for i in range(CHANGES_MAX + 1)])
    with pytest.raises(errors.InvalidArgument, match="not str"):
        await client.commit(["a"])  # type: ignore[list-item]
    with pytest.raises(errors.InvalidArgument, match="1 to 1024"):
        await client.commit([PutObject(bucket, "a", data=b""), PutObject(bucket, "", data=b"")])
    with pytest.raises(errors.InvalidArgument, match="size and etag"):
        await client.commit([PutObject(bucket, "a", data=b""), PutObject(bucket, "b")])
    with pytest.raises(errors.InvalidArgument, match="generation"):
        await client.commit([PutObject(bucket, "a", data=b"")], generation=-1)
    assert not (await client.list_versions(bucket)).versions


async def test_a_single_change_is_a_plain_one(client: AsyncClient, bucket: str) -> None:
    (made,) = await client.commit([PutObject(bucket, "a", data=b"1")])
    assert await client.get_object(bucket, "a") == made
    assert made.sequence == 1


async def test_very_many(client: AsyncClient, bucket: str) -> None:
    made = await client.commit([PutObject(bucket, f"{i:03}", data=b"%d" % i) for i in range(100)])
    assert [each.data for each in made] == [b"%d" % i for i in range(100)]
    page = await client.list_objects(bucket)
    assert [each.version_id for each in page.objects] == [each.version_id for each in made]


READS = {
    "head": lambda client, bucket: client.head_object(bucket, "a"),
    "get": lambda client, bucket: client.get_object(bucket, "a"),
    "versions": lambda client, bucket: client.versions(bucket, "a"),
    "list": lambda client, bucket: client.list_objects(bucket),
    "list versions": lambda client, bucket: client.list_versions(bucket),
    "put": lambda client, bucket: client.put_object(bucket, "a", data=b"3"),
    "delete": lambda client, bucket: client.delete_object(bucket, "a"),
    "commit": lambda client, bucket: client.commit(
        [PutObject(bucket, "a", data=b"3"), PutObject(bucket, "z", data=b"3")]
    ),
}


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("committed", [True, False])
async def test_whoever_meets_an_intent_finishes_the_transaction(
    client: AsyncClient, bucket: str, owner: Owner, read: str, committed: bool
) -> None:
    old = await client.put_object(bucket, "a", data=b"1")
    await owner.leave(PutObject(bucket, "a", data=b"2"), PutObject(bucket, "b", data=b"2", if_absent=True))
    if committed:
        assert await owner.decide()
    await READS[read](client, bucket)
    assert "a" not in await _left(client, bucket)
    assert await owner.decide() is committed
    seen = [
        each.data
        for each in await asyncio.gather(
            *(client.get_object(bucket, "a", version_id=each.version_id) for each in await client.versions(bucket, "a"))
        )
        if not each.is_delete_marker and each.data != b"3"
    ]
    assert seen == ([b"2", b"1"] if committed else [b"1"])
    if committed:
        assert (await client.get_object(bucket, "b")).data == b"2"
    else:
        assert (await client.versions(bucket, "a"))[-1].version_id == old.version_id
        with pytest.raises(errors.NoSuchKey):
            await client.get_object(bucket, "b")
    assert not await _left(client, bucket)


@pytest.mark.parametrize("committed", [True, False])
async def test_those_who_follow_see_no_intent(client: AsyncClient, bucket: str, owner: Owner, committed: bool) -> None:
    page = await client.changes()
    loaded = await client.load_versions(await client.bucket(bucket), page.cursor)
    await client.put_object(bucket, "a", data=b"1")
    await owner.leave(PutObject(bucket, "a", data=b"2"), PutObject(bucket, "b", data=b"2"))
    if committed:
        assert await owner.decide()
    found = {each.key: each for each in (await client.changes(loaded.cursor)).objects if each.bucket == bucket}
    assert not await _left(client, bucket)
    assert len(found["a"].versions) == (2 if committed else 1)
    assert len(found["b"].versions) == (1 if committed else 0)
    assert not found["a"].removals
    assert not found["b"].removals


@pytest.mark.parametrize("committed", [True, False])
async def test_a_load_has_no_intents(client: AsyncClient, bucket: str, owner: Owner, committed: bool) -> None:
    cursor = (await client.changes()).cursor
    for i in range(5):
        await owner.leave(PutObject(bucket, f"{i}", data=b"2"))
    if committed:
        assert await owner.decide()
    keys: list[str] = []
    continuation = None
    while True:
        page = await client.load_versions(await client.bucket(bucket), cursor, continuation=continuation, limit=3)
        columns = page.columns()
        keys += columns.key
        assert columns.is_latest == [True] * len(columns)
        if (continuation := page.continuation) is None:
            break
    assert keys == ([f"{i}" for i in range(5)] if committed else [])


async def test_a_key_that_looks_like_an_intent(client: AsyncClient, bucket: str) -> None:
    """What a page is searched for is only a hint."""
    key = "½" + INTENT_MARK[1:].decode()
    assert INTENT_MARK in key.encode()
    await client.commit([PutObject(bucket, key, data=b"1"), PutObject(bucket, key * 9, data=b"2")])
    assert [each.key for each in (await client.list_objects(bucket)).objects] == [key, key * 9]


async def test_a_prefix_that_is_only_intended_is_not_listed(client: AsyncClient, bucket: str, owner: Owner) -> None:
    await owner.leave(PutObject(bucket, "d/a", data=b"2"))
    await client.put_object(bucket, "e/f", data=b"1")
    page = await client.list_objects(bucket, delimiter="/")
    assert (page.prefixes, page.objects) == (("e/",), ())
    assert not await owner.decide()


async def test_a_bucket_in_which_there_are_only_intents_can_go(client: AsyncClient, bucket: str, owner: Owner) -> None:
    await owner.leave(PutObject(bucket, "a", data=b"2"))
    await client.remove_bucket(bucket)
    assert not await owner.decide()


async def test_a_bucket_with_a_committed_intent_is_not_empty(client: AsyncClient, bucket: str, owner: Owner) -> None:
    await owner.leave(PutObject(bucket, "a", data=b"2"))
    assert await owner.decide()
    with pytest.raises(errors.BucketNotEmpty):
        await client.remove_bucket(bucket)
    assert (await client.get_object(bucket, "a")).data == b"2"


async def test_a_version_that_is_only_intended_cannot_be_had_or_removed(
    client: AsyncClient, bucket: str, owner: Owner
) -> None:
    await client.put_object(bucket, "a", data=b"1")
    placed = await owner.services.transactions._leave(
        owner.transaction, PutObject(bucket, "a", data=b"2"), owner.generation
    )
    with pytest.raises(errors.NoSuchVersion):
        await client.get_object(bucket, "a", version_id=placed.version.version_id)
    with pytest.raises(errors.NoSuchVersion):
        await client.remove_version(bucket, "a", placed.version.version_id)


async def test_an_owner_that_lives_is_waited_for(
    client: AsyncClient, bucket: str, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intents, "GRACE_S", 10)
    await owner.leave(PutObject(bucket, "a", data=b"2"))
    reading = asyncio.create_task(client.get_object(bucket, "a"))
    await asyncio.wait((reading,), timeout=0.02)
    assert not reading.done()
    assert await owner.decide()
    assert (await reading).data == b"2"


async def test_a_transaction_that_was_aborted_begins_anew(
    client: AsyncClient, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    transactions = (await client._open()).transactions
    decide, times = transactions._decide, itertools.count()

    async def late(*arguments) -> bool:  # type: ignore[no-untyped-def]
        if next(times) == 0:
            assert not (await client.list_objects(bucket)).objects  # this loses patience
        return await decide(*arguments)

    monkeypatch.setattr(transactions, "_decide", late)
    made = await client.commit([PutObject(bucket, "a", data=b"1"), PutObject(bucket, "b", data=b"1")])
    assert next(times) == 2
    assert [each.version_id for each in (await client.list_versions(bucket)).versions] == [
        each.version_id for each in made
    ]


async def test_an_outcome_that_got_lost_is_found_out(
    client: AsyncClient, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registers = (await client._open()).registers
    change = registers.change

    async def lossy(request: ChangeRequest, timeout_s: float):  # type: ignore[no-untyped-def]
        reply = await change(request, timeout_s)
        if isinstance(request.change, Decide) and request.change.committed:
            raise errors.UnknownOutcome("the answer was lost")
        return reply

    monkeypatch.setattr(registers, "change", lossy)
    await client.commit([PutObject(bucket, "a", data=b"1"), PutObject(bucket, "b", data=b"1")])
    monkeypatch.undo()
    assert len((await client.list_objects(bucket)).objects) == 2


async def _forget(client: AsyncClient, transaction: bytes) -> None:
    """Collect until the register of a transaction is erased."""
    services = await client._open()
    for _ in range(4):
        collected = await client.collect()
        while not collected.done:
            collected = await client.collect(collected.run)
        if await services.registers.read((transaction,), 10) == [None]:
            return
    pytest.fail("the transaction was not erased")


async def test_an_outcome_that_got_lost_and_was_forgotten_is_unknown(
    client: AsyncClient, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the owner an empty register is not the leave to begin anew: everything would be done twice."""
    registers = (await client._open()).registers
    change = registers.change

    async def lossy(request: ChangeRequest, timeout_s: float):  # type: ignore[no-untyped-def]
        reply = await change(request, timeout_s)
        if isinstance(request.change, Decide) and request.change.committed:
            monkeypatch.setattr(registers, "change", change)
            assert await client.conclude_transactions() >= 1
            await _forget(client, request.name)
            raise errors.UnknownOutcome("the answer was lost")
        return reply

    monkeypatch.setattr(registers, "change", lossy)
    with pytest.raises(errors.UnknownOutcome):
        await client.commit([PutObject(bucket, "a", data=b"1"), PutObject(bucket, "b", data=b"1")])
    for key in ("a", "b"):
        assert len(await client.versions(bucket, key)) == 1


async def test_what_is_remembered_of_a_bucket_may_be_older_than_an_intent(
    client: AsyncClient, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow read may bring the bucket's last life back to mind; then intents in the new one must not be left."""
    services = await client._open()
    before = await services.buckets.look_up(bucket)
    await client.remove_bucket(bucket)
    await client.create_bucket(bucket)
    decide = services.transactions._decide

    async def remembering(*arguments) -> bool:  # type: ignore[no-untyped-def]
        committed = await decide(*arguments)
        services.buckets._known[bucket] = before
        return committed

    monkeypatch.setattr(services.transactions, "_decide", remembering)
    await client.commit([PutObject(bucket, "a", data=b"1"), PutObject(bucket, "b", data=b"1")])
    assert not await _left(client, bucket)


async def test_all_changes_are_of_one_time_whatever_the_clock_says(
    client: AsyncClient, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else time travel would show one change without the other."""
    there = await client.put_object(bucket, "a", data=b"0")
    services = await client._open()
    late = dataclasses.replace(services.context, wall_clock=lambda: there.modified_us - 5_000_000)
    monkeypatch.setattr(services.transactions, "_context", late)
    made = await client.commit([PutObject(bucket, "a", data=b"1"), PutObject(bucket, "b", data=b"1")])
    assert [each.modified_us for each in made] == [there.modified_us + 1] * 2
    assert len(await client.versions(bucket, "a")) == 2


async def test_racing_transactions_are_one_after_the_other(
    client: AsyncClient, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intents, "GRACE_S", 0.5)
    keys = ["a", "b", "c"]

    async def write(number: int) -> None:
        for _ in range(3):
            await client.commit([PutObject(bucket, key, data=b"%d" % number) for key in keys[:: (-1) ** number]])

    await asyncio.gather(*(write(number) for number in range(4)))
    orders = [
        [
            (await client.get_object(bucket, key, version_id=each.version_id)).data
            for each in await client.versions(bucket, key)
        ]
        for key in keys
    ]
    assert len(orders[0]) == 12
    assert orders[0] == orders[1] == orders[2]


async def test_very_many_do_not_wait_for_each_other_in_a_circle(
    client: AsyncClient, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who wants the same objects waits at the first of them, without anybody's losing patience."""
    monkeypatch.setattr(intents.Intents, "grace_s", lambda *_: 600.0)
    keys = [f"{i:03}" for i in range(100)]
    done = await asyncio.wait_for(
        asyncio.gather(*(client.commit([PutObject(bucket, key, data=b"%d" % n) for key in keys]) for n in range(4))), 60
    )
    assert len({each.version_id for made in done for each in made}) == 400


async def test_one_loses_patience_for_all_intents_of_a_transaction(
    client: AsyncClient, bucket: str, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(30):
        await owner.leave(PutObject(bucket, f"{i}", data=b"2"))
    registers = (await client._open()).registers
    change, aborts = registers.change, itertools.count()

    async def counted(request: ChangeRequest, timeout_s: float):  # type: ignore[no-untyped-def]
        if isinstance(request.change, Decide):
            next(aborts)
        return await change(request, timeout_s)

    monkeypatch.setattr(registers, "change", counted)
    assert not (await client.list_objects(bucket)).objects
    assert next(aborts) == 1


async def test_a_large_transaction_is_waited_for_longer(client: AsyncClient, bucket: str, owner: Owner) -> None:
    buckets = (await client._open()).buckets
    found: list[float] = []
    for key, objects in (("a", 2), ("b", 1000)):
        placed = await owner.services.transactions._leave(
            owner.transaction, PutObject(bucket, key, data=b""), owner.generation, None, objects
        )
        (state,) = await owner.services.registers.read((placed.register,), 10)
        assert state is not None
        intent = decode_value(state.value)
        assert isinstance(intent, Pending)
        found.append(buckets.intents.grace_s(intent))
    assert found == [intents.GRACE_S, 10 * intents.GRACE_S]


async def test_what_owners_left_is_concluded_and_erased(client: AsyncClient, bucket: str, owner: Owner) -> None:
    await owner.leave(PutObject(bucket, "a", data=b"2"), PutObject(bucket, "b", data=b"2"))
    assert await owner.decide()
    assert await client.conclude_transactions() >= 1
    assert not await _left(client, bucket)
    assert await client.conclude_transactions() == 0
    services = await client._open()
    (state,) = await services.registers.read((transaction_register(owner.transaction),), 10)
    assert state is not None
    assert decode_value(state.value) == Transaction(DONE)
    assert (await client.get_object(bucket, "b")).data == b"2"


async def test_a_slow_owner_cannot_commit_what_was_forgotten(client: AsyncClient, bucket: str, owner: Owner) -> None:
    """Its transaction was aborted, its object went on, and the register that said so was erased."""
    await owner.leave(PutObject(bucket, "a", data=b"2"))
    with pytest.raises(errors.NoSuchKey):
        await client.get_object(bucket, "a")
    await client.put_object(bucket, "a", data=b"3")
    await _forget(client, transaction_register(owner.transaction))
    with pytest.raises(errors.NoQuorum):  # StaleGeneration
        await owner.decide()
    assert (await client.get_object(bucket, "a")).data == b"3"
