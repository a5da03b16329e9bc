"""The lane: sharing of commits, order of replies, errors, and its end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence

import pytest

from objmeta.core.configuration import single_set
from objmeta.core.listing import ScanRequest, decode_rows
from objmeta.core.messages import Accepted, Found, Prepare, Promise, Read, Refusal, Refused, Reply, Request
from objmeta.errors import ConfigurationMismatch, StoreError, StoreFull, UnknownOutcome
from objmeta.interfaces import Envelope
from objmeta.store.lane import BATCH_REQUESTS_MAX, Lane
from objmeta.store.memory import MemoryStore
from objmeta.store.sqlite import SqliteStore
from tests.store.build import CONFIGURATION, TAG, ballot, put, record


class SlowStore(MemoryStore):
    """A store whose commits wait until they are allowed, and fail as told."""

    def __init__(self) -> None:
        super().__init__(1, CONFIGURATION)
        self.batches: list[int] = []
        self.entered = threading.Semaphore(0)
        self.allowed = threading.Semaphore(0)
        self.failures: list[Exception] = []

    def apply(self, batch: Sequence[Envelope]) -> list[Reply]:
        self.batches.append(len(batch))
        self.entered.release()
        assert self.allowed.acquire(timeout=30)
        if self.failures:
            raise self.failures.pop(0)
        return super().apply(batch)


@pytest.fixture
def slow() -> SlowStore:
    return SlowStore()


@pytest.fixture
async def lane(slow: SlowStore) -> AsyncIterator[Lane]:
    made = Lane(slow, asyncio.get_running_loop())
    yield made
    slow.allowed.release(100)
    await made.close()


def submit(lane: Lane, request: Request) -> asyncio.Future[Reply]:
    reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    lane.submit(TAG, request, reply.set_result)
    return reply


async def entered(slow: SlowStore) -> None:
    assert await asyncio.to_thread(slow.entered.acquire, timeout=30)


async def test_one_turn_of_the_loop_shares_a_commit(slow: SlowStore, lane: Lane) -> None:
    slow.allowed.release()
    replies = await asyncio.gather(*[submit(lane, Prepare(b"%d" % n, ballot(1))) for n in range(64)])
    assert all(isinstance(reply, Promise) for reply in replies)
    assert slow.batches == [64]


async def test_what_arrives_during_a_commit_shares_the_next(slow: SlowStore, lane: Lane) -> None:
    first = submit(lane, Prepare(b"first", ballot(1)))
    await entered(slow)
    waiting = []
    for number in range(20):
        waiting.append(submit(lane, Prepare(b"%d" % number, ballot(1))))
        await asyncio.sleep(0)
    slow.allowed.release(2)
    await asyncio.gather(first, *waiting)
    assert slow.batches == [1, 20]


async def test_replies_come_in_order_all_of_a_commit_together(slow: SlowStore, lane: Lane) -> None:
    order: list[int] = []
    together: list[int] = []
    last = asyncio.get_running_loop().create_future()

    def replied(number: int) -> None:
        if not order:
            asyncio.get_running_loop().call_soon(lambda: together.append(len(order)))
        order.append(number)
        if number == 49:
            last.set_result(None)

    for number in range(50):
        lane.submit(TAG, Prepare(b"k", ballot(number + 1)), lambda _, number=number: replied(number))  # type: ignore[misc]
    slow.allowed.release()
    await last
    await asyncio.sleep(0)
    assert order == list(range(50))
    assert together == [50]


async def test_no_reply_before_its_commit(slow: SlowStore, lane: Lane) -> None:
    reply = submit(lane, put(b"k", 1, record(1)))
    await entered(slow)
    assert not reply.done()
    slow.allowed.release()
    assert await reply == Accepted(ballot(1))


async def test_a_batch_is_bounded(slow: SlowStore, lane: Lane) -> None:
    count = 2 * BATCH_REQUESTS_MAX + 5
    slow.allowed.release(10)
    replies = await asyncio.gather(*[submit(lane, Prepare(b"%d" % n, ballot(1))) for n in range(count)])
    assert all(isinstance(reply, Promise) for reply in replies)
    assert sum(slow.batches) == count
    assert max(slow.batches) == BATCH_REQUESTS_MAX


async def test_reads_do_not_wait_for_a_commit(slow: SlowStore, lane: Lane) -> None:
    writing = submit(lane, put(b"k", 1, record(1)))
    await entered(slow)
    assert isinstance(await submit(lane, Read(b"k")), Found)
    assert decode_rows((await lane.scan(TAG, ScanRequest(b""))).rows) == []
    assert (await lane.changes(0, 10)).watermark == 0
    slow.allowed.release()
    await writing
    assert (await lane.changes(0, 10)).names == (b"k",)


async def test_a_failed_commit_refuses_every_request_of_its_batch_and_no_other(slow: SlowStore, lane: Lane) -> None:
    slow.failures = [StoreFull("the disk is full")]
    slow.allowed.release()
    replies = await asyncio.gather(*[submit(lane, Prepare(b"%d" % n, ballot(n))) for n in range(3)])
    assert replies == [Refused(ballot(n), Refusal.FAILED, detail="store_full: the disk is full") for n in range(3)]
    slow.allowed.release()
    assert isinstance(await submit(lane, Prepare(b"k", ballot(1))), Promise)


async def test_a_mistake_in_a_store_is_logged_and_refused(
    slow: SlowStore, lane: Lane, caplog: pytest.LogCaptureFixture
) -> None:
    slow.failures = [AssertionError()]
    slow.allowed.release()
    refused = Refused(ballot(1), Refusal.FAILED, detail="store: AssertionError")
    assert await submit(lane, Prepare(b"k", ballot(1))) == refused
    assert "1 requests failed" in caplog.text


async def test_an_unknown_outcome_is_answered_to_nobody(slow: SlowStore, lane: Lane) -> None:
    slow.failures = [UnknownOutcome("perhaps")]
    lost = submit(lane, Prepare(b"k", ballot(1)))
    await entered(slow)
    later = submit(lane, Prepare(b"l", ballot(1)))
    slow.allowed.release(2)
    assert isinstance(await later, Promise)
    assert not lost.done()


async def test_a_receiver_that_fails_costs_nobody_else_a_reply(
    slow: SlowStore, lane: Lane, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Reply) -> None:
        raise ValueError("mine")

    lane.submit(TAG, Prepare(b"a", ballot(1)), fail)
    other = submit(lane, Prepare(b"b", ballot(1)))
    slow.allowed.release()
    assert isinstance(await other, Promise)
    assert "a receiver of a reply failed" in caplog.text


async def test_errors_of_a_scan_reach_who_asked(lane: Lane) -> None:
    with pytest.raises(ConfigurationMismatch):
        await lane.scan(single_set(b"another-store-id", (1,)).tag, ScanRequest(b""))


async def test_a_cancelled_scan_is_dropped(lane: Lane) -> None:
    task = asyncio.ensure_future(lane.scan(TAG, ScanRequest(b"")))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await lane.scan(TAG, ScanRequest(b""))).rows == b"\x90"


async def test_close_answers_what_was_submitted_and_drops_what_comes_after(slow: SlowStore) -> None:
    lane = Lane(slow, asyncio.get_running_loop())
    reply = submit(lane, Prepare(b"k", ballot(1)))
    slow.allowed.release()
    await lane.close()
    await lane.close()
    assert isinstance(reply.result(), Promise)
    late = submit(lane, Prepare(b"l", ballot(1)))
    with pytest.raises(StoreError, match="closed"):
        await lane.scan(TAG, ScanRequest(b""))
    assert not late.done()


def test_a_loop_that_is_gone_ends_the_lane_quietly(slow: SlowStore) -> None:
    threads_before = set(threading.enumerate())

    async def abandon() -> None:
        lane = Lane(slow, asyncio.get_running_loop())
        lane.submit(TAG, Prepare(b"k", ballot(1)), lambda _: None)
        await entered(slow)

    with asyncio.Runner() as runner:
        runner.run(abandon())
    slow.allowed.release()
    for thread in set(threading.enumerate()) - threads_before:
        thread.join(timeout=30)
        assert not thread.is_alive()


async def test_over_sqlite(sqlite: SqliteStore) -> None:
    lane = Lane(sqlite, asyncio.get_running_loop())
    accepted = await asyncio.gather(*[submit(lane, put(b"%04d" % n, 1, record(1))) for n in range(500)])
    assert set(accepted) == {Accepted(ballot(1))}
    found = await asyncio.gather(*[submit(lane, Read(b"%04d" % n)) for n in range(500)])
    assert all(isinstance(reply, Found) and reply.state is not None for reply in found)
    assert len(decode_rows((await lane.scan(TAG, ScanRequest(b""))).rows)) == 500
    await lane.close()


async def test_requests_that_came_together_are_answered_in_their_order_whatever_they_are(
    slow: SlowStore, lane: Lane
) -> None:
    answered: asyncio.Future[list[Reply]] = asyncio.get_running_loop().create_future()
    slow.allowed.release(2)
    lane.submit_all(TAG, [put(b"k", 1, record(1)), Read(b"k"), put(b"k", 2, record(2))], answered.set_result)
    async with asyncio.timeout(5):
        first, second, third = await answered
    assert (first, third) == (Accepted(ballot(1)), Accepted(ballot(2)))
    assert isinstance(second, Found)


async def test_requests_that_came_together_over_two_commits_one_of_which_fails(slow: SlowStore, lane: Lane) -> None:
    answers: list[list[Reply]] = []
    requests = [Prepare(b"%d" % n, ballot(1)) for n in range(BATCH_REQUESTS_MAX + 2)]
    slow.failures = [StoreFull("the disk is full")]
    slow.allowed.release(2)
    lane.submit_all(TAG, requests, answers.append)
    await submit(lane, Prepare(b"behind", ballot(1)))
    (replies,) = answers
    assert [type(reply) for reply in replies] == [Refused] * BATCH_REQUESTS_MAX + [Promise] * 2
    slow.failures = [UnknownOutcome("?")]
    slow.allowed.release(2)
    lane.submit_all(TAG, requests, answers.append)
    await submit(lane, Prepare(b"behind", ballot(2)))
    assert len(answers) == 1, "nobody is told what is not certain of all"
