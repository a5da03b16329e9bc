"""Locks and elections, embedded and on three nodes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

import objmeta
from objmeta import AsyncClient, AsyncLease, LockHolder, connect_async, errors
from objmeta.node.dev import LocalCluster

TTL_S = 0.6


@pytest.fixture
async def other(target: str) -> AsyncIterator[AsyncClient]:
    async with connect_async(target) as other:
        yield other


# -- Taking and giving back -------------------------------------------------------------------------------------------


async def test_one_holder_at_a_time_and_tokens_that_grow(client: AsyncClient, other: AsyncClient, fresh: str) -> None:
    assert await client.lock(fresh).holder() is None
    async with client.lock(fresh, ttl_s=5, owner="me") as lease:
        lease.check()
        assert 0 < lease.valid_for_s <= 4.5
        assert await other.lock(fresh).holder() == LockHolder(fresh, "me", lease.token, 5.0)
        with pytest.raises(errors.LockHeld, match=f"held by me \\(token {lease.token}\\)"):
            await other.lock(fresh, wait_s=0).acquire()
        with pytest.raises(errors.LockHeld, match=r"after 0\.2 s"):
            await other.lock(fresh, wait_s=0.2).acquire()
    assert not lease.is_valid
    assert not lease.lost.is_set()
    assert await client.lock(fresh).holder() is None
    async with other.lock(fresh, wait_s=0) as later:
        assert later.token > lease.token


async def test_a_waiter_gets_it_when_it_is_released(client: AsyncClient, other: AsyncClient, fresh: str) -> None:
    first = await client.lock(fresh, ttl_s=60).acquire()
    waiting = asyncio.create_task(other.lock(fresh, ttl_s=60, wait_s=30).acquire())
    await asyncio.sleep(0)
    assert not waiting.done()
    await first.release()
    await first.release()
    second = await waiting
    assert second.token > first.token
    await second.release()


async def test_a_lock_is_kept_for_longer_than_its_time_to_live(
    client: AsyncClient, other: AsyncClient, fresh: str
) -> None:
    async with client.lock(fresh, ttl_s=2.0) as lease:
        first = lease.valid_until
        with pytest.raises(errors.LockHeld):
            await other.lock(fresh, wait_s=2.2).acquire()
        lease.check()
        assert lease.valid_until > first + 0.6
        before = lease.valid_until
        await lease.renew()
        assert lease.valid_until >= before


async def test_what_is_read_and_written_under_a_lock_is_counted_right(target: str, fresh: str) -> None:
    async def work() -> None:
        async with connect_async(target) as client:
            for _ in range(3):
                async with client.lock(fresh) as lease:
                    found = await client.get(fresh)
                    lease.check()
                    await client.put(fresh, b"%d" % (int(found.value if found else 0) + 1))

    await asyncio.gather(*(work() for _ in range(4)))
    async with connect_async(target) as client:
        found = await client.get(fresh)
        assert found is not None
        assert found.value == b"12"


async def test_who_lets_go_and_asks_again_at_once_leaves_a_waiter_its_turn(tmp_path: Path) -> None:
    async with connect_async(tmp_path) as greedy, connect_async(tmp_path) as patient:

        async def wait() -> None:
            async with patient.lock("l"):
                pass

        turns = 0
        async with greedy.lock("l"):
            waiting = asyncio.create_task(wait())
            await asyncio.sleep(0.1)
        while not waiting.done():
            async with greedy.lock("l"):
                await asyncio.sleep(0.1)
                turns += 1
                assert turns < 20
        await waiting


# -- Losing -----------------------------------------------------------------------------------------------------------


async def test_the_lock_of_one_who_is_gone_can_be_taken(client: AsyncClient, other: AsyncClient, fresh: str) -> None:
    lease = await other.lock(fresh, ttl_s=TTL_S).acquire()
    await other.close()  # gives nothing back
    assert lease.lost.is_set()
    with pytest.raises(errors.LockLost, match="its client was closed"):
        lease.check()
    began = asyncio.get_running_loop().time()
    async with client.lock(fresh, ttl_s=TTL_S) as later:
        assert later.token > lease.token
    assert asyncio.get_running_loop().time() - began >= TTL_S


async def test_tries_add_up(client: AsyncClient, other: AsyncClient, fresh: str) -> None:
    """One who only ever tries once takes over as well: the client remembers what it saw."""
    await other.lock(fresh, ttl_s=0.5).acquire()
    await other.close()
    tries = 0
    while True:
        tries += 1
        try:
            async with client.lock(fresh, ttl_s=0.5, wait_s=0):
                break
        except errors.LockHeld:
            await asyncio.sleep(0.02)
    assert tries > 1


async def test_a_block_is_cancelled_when_no_majority_is_left(tmp_path: Path) -> None:
    told: list[AsyncLease] = []

    async def hold(client: AsyncClient, cluster: LocalCluster) -> None:
        async with client.lock("l", ttl_s=TTL_S) as lease:
            lease.when_lost(lambda: told.append(lease))
            for node_id in cluster.node_ids[:2]:
                await asyncio.to_thread(cluster.kill, node_id)
            await asyncio.Event().wait()

    with LocalCluster(tmp_path, nodes=3) as cluster:
        async with connect_async(",".join(cluster.endpoints)) as client:
            with pytest.raises(errors.LockLost, match="could not be renewed in time"):
                await hold(client, cluster)
            (lease,) = told
            assert lease.lost.is_set()
            assert not lease.is_valid
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0
            await asyncio.sleep(0)


async def test_what_leaves_a_block_whose_lease_was_lost(tmp_path: Path) -> None:
    client = connect_async(tmp_path)

    async def goes_on() -> None:
        async with client.lock("a"):
            await client.close()

    async def looks() -> None:
        async with client.lock("b") as lease:
            await client.close()
            lease.check()
            pytest.fail("it is lost")

    async def fails() -> None:
        async with client.lock("c"):
            closing = asyncio.create_task(client.close())
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await closing
                raise RuntimeError("of the block") from None

    for work in (goes_on, looks):
        with pytest.raises(errors.LockLost, match="its client was closed"):
            await work()
    with pytest.raises(RuntimeError, match="of the block"):
        await fails()
    await client.close()


async def test_a_cancellation_from_outside_stays_one(client: AsyncClient, fresh: str) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), client.lock(fresh):
            await asyncio.Event().wait()
    first = await client.lock(fresh, wait_s=0).acquire()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), client.lock(fresh):
            pytest.fail("it is held")
    await first.release()
    async with client.lock(fresh, wait_s=0):
        pass


async def test_a_task_does_not_wait_for_itself(client: AsyncClient, fresh: str) -> None:
    lock = client.lock(fresh)
    async with lock:
        with pytest.raises(RuntimeError, match="not reentrant"):
            async with lock:
                pytest.fail("it is held")
    async with lock:
        pass


@pytest.mark.parametrize(
    ("name", "ttl_s", "wait_s"),
    [
        ("", 1.0, None),
        ("x" * 1025, 1.0, None),
        ("\ud800", 1.0, None),
        ("l", 0.01, None),
        ("l", 1e6, None),
        ("l", 1.0, -1.0),
    ],
)
async def test_wrong_arguments_are_refused(tmp_path: Path, name: str, ttl_s: float, wait_s: float | None) -> None:
    with pytest.raises(errors.InvalidArgument):
        connect_async(tmp_path).lock(name, ttl_s=ttl_s, wait_s=wait_s)
    with pytest.raises(errors.InvalidArgument):
        objmeta.connect(tmp_path).election(name, ttl_s=ttl_s, wait_s=wait_s)


# -- Elections --------------------------------------------------------------------------------------------------------


async def test_an_election(client: AsyncClient, other: AsyncClient, fresh: str) -> None:
    terms: asyncio.Queue[tuple[str, int]] = asyncio.Queue()

    async def rule(lease: AsyncLease) -> None:
        terms.put_nowait(("first", lease.token))
        await asyncio.Event().wait()

    async def finish(lease: AsyncLease) -> str:
        terms.put_nowait(("second", lease.token))
        found = await other.election(fresh).leader()
        assert found is not None
        return found.owner

    first = asyncio.create_task(client.election(fresh, ttl_s=1.5, candidate="first").run(rule))
    told = [await terms.get()]
    leader = await other.election(fresh).leader()
    assert leader is not None
    assert leader.owner == "first"
    second = asyncio.create_task(other.election(fresh, ttl_s=1.5, candidate="second").run(finish))
    while not second.done():  # the first loses, stands again, and may win once more
        await client.close()
        await asyncio.wait({second}, timeout=3.0)
    assert second.result() == "second"
    while told[-1][0] != "first" or "second" not in dict(told):
        told.append(await terms.get())
    tokens = [token for _, token in told]
    assert sorted(set(tokens)) == tokens
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    async with other.election(fresh) as lease:
        assert lease.token > tokens[-1]


# -- The synchronous client, and processes ----------------------------------------------------------------------------


def test_without_coroutines(target: str, fresh: str) -> None:
    with objmeta.connect(target) as client, objmeta.connect(target) as other:
        lock = client.lock(fresh, ttl_s=5, owner="me")
        with lock as lease:
            lease.check()
            before = lease.valid_until
            lease.renew()
            assert lease.valid_until > before
            assert lease.is_valid
            assert 0 < lease.valid_for_s <= 4.5
            holder = other.lock(fresh).holder()
            assert holder == LockHolder(fresh, "me", lease.token, 5.0)
            with pytest.raises(RuntimeError, match="not reentrant"):
                lock.__enter__()
            with pytest.raises(errors.LockHeld), other.lock(fresh, wait_s=0):
                pytest.fail("it is held")
        with pytest.raises(errors.LockLost, match="was released"):
            lease.check()
        lease.release()
        assert client.election(fresh).run(lambda lease: lease.token) > lease.token
        assert client.election(fresh).leader() is None


def test_a_lease_whose_client_was_closed(tmp_path: Path) -> None:
    client = objmeta.connect(tmp_path)
    told, late = threading.Event(), threading.Event()
    leases: list[objmeta.Lease] = []

    def work() -> None:
        with client.lock("l") as lease:
            leases.append(lease)
            lease.when_lost(told.set)
            client.close()

    with pytest.raises(errors.LockLost, match="its client was closed"):
        work()
    assert told.is_set()
    (lease,) = leases
    assert lease.lost.is_set()
    lease.release()
    lease.when_lost(late.set)
    assert late.is_set()


def test_a_fork_holds_nothing(tmp_path: Path) -> None:
    with objmeta.connect(tmp_path) as client, client.lock("l") as lease:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                assert not lease.is_valid
                lease.release()
                try:
                    lease.check()
                except errors.LockLost as error:
                    status = 0 if "fork" in str(error) else 2
            finally:
                os._exit(status)
        _, result = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(result) == 0
        lease.check()
        assert client.lock("l").holder() is not None


HOLD = """
import sys, time, objmeta
from objmeta import errors
client = objmeta.connect(sys.argv[1])
try:
    with client.lock(sys.argv[2], ttl_s=float(sys.argv[3])) as lease:
        print(lease.token, flush=True)
        while True:
            time.sleep(0.02)
            lease.check()
except errors.LockLost as error:
    print("lost", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
async def test_a_process_that_stops_loses_the_lock(
    target: str, client: AsyncClient, fresh: str, number: signal.Signals
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLD, target, fresh, str(TTL_S), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        token = int(await process.stdout.readline())
        process.send_signal(number)
        async with client.lock(fresh) as lease:
            assert lease.token > token
            if number == signal.SIGSTOP:
                process.send_signal(signal.SIGCONT)
                assert await process.stdout.readline() == b"lost\n"
            lease.check()
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
