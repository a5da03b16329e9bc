"""RemoteRegisters against nodes that answer, refuse, hesitate, fall silent or vanish."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator

import pytest

from objmeta.core.change import Identity
from objmeta.core.erasure import GENERATION_REGISTER
from objmeta.core.home import home_of
from objmeta.core.listing import ScanRequest
from objmeta.core.messages import RecordRef, State
from objmeta.errors import (
    ConfigurationMismatch,
    ForkedClient,
    InvalidArgument,
    NoQuorum,
    StoreError,
    StoreFull,
    UnknownOutcome,
)
from objmeta.interfaces import ChangedNames, ChangeReply, ChangeRequest, Watermarks
from objmeta.rpc.client import RemoteRegisters
from tests.node.fakes import FakeNode, Served, change, free_endpoints, served, silent_endpoint, until

TIMEOUT_S = 10.0
EXISTS = ChangeReply("already_exists", None)


@pytest.fixture
async def pair() -> AsyncIterator[list[Served]]:
    """Two nodes."""
    async with served(FakeNode(1), FakeNode(2)) as servers:
        yield servers


@pytest.fixture
async def registers(pair: list[Served]) -> AsyncIterator[RemoteRegisters]:
    """A client of both that has found out where they are."""
    client = RemoteRegisters([server.endpoint for server in pair])
    await client.status(TIMEOUT_S)
    await until(lambda: client.connections == 2)
    yield client
    await client.close()


def home_and_other(pair: list[Served], name: bytes = b"k/a") -> tuple[Served, Served]:
    """The node a name belongs to, and the other one."""
    home = home_of(name, (1, 2))
    return (pair[0], pair[1]) if home == 1 else (pair[1], pair[0])


# -- Plain ------------------------------------------------------------------------------------------------------------


async def test_every_operation_arrives(registers: RemoteRegisters) -> None:
    ref = RecordRef(1, b"v" * 16, b"d" * 32)
    assert (await registers.change(change(), TIMEOUT_S)).code == ""
    assert await registers.read([b"a", b"b"], TIMEOUT_S) == [State(b"a", ()), State(b"b", ())]
    assert [record.ref for record in await registers.records(b"a", [ref], TIMEOUT_S)] == [ref]
    assert (await registers.scan(ScanRequest(b"start"), TIMEOUT_S)).rows == b"start"
    marks = Watermarks(b"s" * 16, 1, ((1, 7),))
    assert await registers.changes(None, 7, TIMEOUT_S) == ChangedNames((b"a",), marks)
    assert await registers.changes(marks, 9, TIMEOUT_S) == ChangedNames((b"a",), marks)
    await registers.raise_term(b"scope", 3, TIMEOUT_S)
    assert (await registers.status(TIMEOUT_S)).quorum
    assert await registers.read([], TIMEOUT_S) == []


async def test_operations_go_to_the_home(registers: RemoteRegisters, pair: list[Served]) -> None:
    names = [b"k/%d" % i for i in range(40)]
    await asyncio.gather(*(registers.change(change(name), TIMEOUT_S) for name in names))
    for server in pair:
        assert server.node.changes_made == sum(home_of(name, (1, 2)) == server.node.node_id for name in names)


async def test_who_began_to_collect_is_asked_how_it_goes(registers: RemoteRegisters, pair: list[Served]) -> None:
    home, other = home_and_other(pair, GENERATION_REGISTER)
    home.node.open = False
    begun = await registers.collect(0, 1.0)
    home.node.open = True
    await asyncio.sleep(0.1)  # until it may be asked again
    assert (await registers.collect(begun.run, 1.0)).done
    assert other.node.runs == [0, begun.run]
    assert not home.node.runs


async def test_what_queues_up_shares_messages(registers: RemoteRegisters, pair: list[Served]) -> None:
    before = registers.messages_sent, sum(server.node.service.messages_sent for server in pair)
    await asyncio.gather(*(registers.change(change(b"k/%d" % i), TIMEOUT_S) for i in range(1000)))
    assert registers.messages_sent - before[0] <= 20
    assert sum(server.node.service.messages_sent for server in pair) - before[1] <= 60


async def test_the_node_is_given_a_little_less_time(registers: RemoteRegisters, pair: list[Served]) -> None:
    await registers.change(change(), 4.0)
    home, _ = home_and_other(pair)
    assert 3.0 < home.node.timeouts[0] < 4.0


@pytest.mark.parametrize("error", [StoreFull("full"), ConfigurationMismatch("other"), UnknownOutcome("maybe")])
async def test_errors_keep_their_class(registers: RemoteRegisters, pair: list[Served], error: Exception) -> None:
    for server in pair:
        server.node.error = error
    with pytest.raises(type(error), match=str(error)):
        await registers.change(change(), TIMEOUT_S)


async def test_a_defect_of_the_node_is_an_unknown_outcome(registers: RemoteRegisters, pair: list[Served]) -> None:
    for server in pair:
        server.node.error = ZeroDivisionError("oops")
    with pytest.raises(UnknownOutcome, match="ZeroDivisionError"):
        await registers.change(change(), TIMEOUT_S)
    with pytest.raises(StoreError, match="ZeroDivisionError"):
        await registers.read([b"a"], TIMEOUT_S)


async def test_what_cannot_travel_is_refused(registers: RemoteRegisters) -> None:
    with pytest.raises(InvalidArgument, match="Identity"):
        await registers.change(ChangeRequest(b"a", Identity()), TIMEOUT_S)


# -- Nodes that are not there -----------------------------------------------------------------------------------------


async def test_nobody_listens() -> None:
    endpoints = free_endpoints(2)
    client = RemoteRegisters(endpoints)
    begin = time.monotonic()
    with pytest.raises(NoQuorum) as raised:
        await client.change(change(), TIMEOUT_S)
    assert time.monotonic() - begin < TIMEOUT_S
    assert all(endpoint in str(raised.value) for endpoint in endpoints)
    await client.close()


async def test_one_of_two_does_not_listen(pair: list[Served]) -> None:
    client = RemoteRegisters([*free_endpoints(1), pair[0].endpoint])
    for i in range(20):
        assert (await client.change(change(b"k/%d" % i), TIMEOUT_S)).code == ""
    await client.close()


async def test_a_node_that_takes_no_operations(registers: RemoteRegisters, pair: list[Served]) -> None:
    home, other = home_and_other(pair)
    home.node.open = False
    assert (await registers.change(change(), TIMEOUT_S)).code == ""
    assert other.node.changes_made == 1


async def test_no_node_takes_operations(registers: RemoteRegisters, pair: list[Served]) -> None:
    for server in pair:
        server.node.open = False
    with pytest.raises(NoQuorum, match="not ready"):
        await registers.change(change(), TIMEOUT_S)


async def test_a_connection_that_breaks(registers: RemoteRegisters, pair: list[Served]) -> None:
    home, other = home_and_other(pair)
    home.node.hold.clear()
    begin = time.monotonic()
    waiting = asyncio.ensure_future(registers.change(change(), TIMEOUT_S))
    await until(lambda: home.node.changes_made == 1)
    await home.crash()
    assert (await waiting).code == ""
    assert other.node.changes_made == 1
    assert time.monotonic() - begin < TIMEOUT_S


async def test_a_node_that_comes_back_is_used_again(registers: RemoteRegisters, pair: list[Served]) -> None:
    home, _ = home_and_other(pair)
    await home.crash()
    await registers.change(change(), TIMEOUT_S)
    await home.start(int(home.endpoint.rpartition(":")[2]))
    seen = home.node.changes_made

    async def used() -> None:
        while home.node.changes_made == seen:
            await registers.change(change(), TIMEOUT_S)

    await asyncio.wait_for(used(), 5.0)


# -- Silence ----------------------------------------------------------------------------------------------------------


async def test_a_silent_endpoint_is_passed_over(pair: list[Served]) -> None:
    with silent_endpoint() as silent:
        client = RemoteRegisters([silent, pair[0].endpoint])
        begin = time.monotonic()
        await asyncio.gather(*(client.change(change(b"k/%d" % i), TIMEOUT_S) for i in range(20)))
        assert time.monotonic() - begin < TIMEOUT_S
        await client.close()


async def test_a_busy_node_is_not_passed_over(registers: RemoteRegisters, pair: list[Served]) -> None:
    home, other = home_and_other(pair)
    home.node.hold.clear()
    waiting = asyncio.ensure_future(registers.change(change(), TIMEOUT_S))
    await asyncio.wait((waiting,), timeout=0.5)
    assert not waiting.done()
    home.node.hold.set()
    await waiting
    assert other.node.changes_made == 0


async def test_a_node_out_of_touch_is_passed_over(registers: RemoteRegisters, pair: list[Served]) -> None:
    home, other = home_and_other(pair)
    home.node.hold.clear()
    home.node.connected = False
    assert (await registers.change(change(), TIMEOUT_S)).code == ""
    assert (home.node.changes_made, other.node.changes_made) == (1, 1)


# -- Which answer counts ----------------------------------------------------------------------------------------------


async def _two_copies(
    registers: RemoteRegisters, pair: list[Served]
) -> tuple[asyncio.Task[ChangeReply], Served, Served]:
    """A change of which both nodes hold a copy and neither has answered."""
    home, other = home_and_other(pair)
    home.node.hold.clear()
    other.node.hold.clear()
    home.node.connected = False
    waiting = asyncio.ensure_future(registers.change(change(), TIMEOUT_S))
    await until(lambda: other.node.changes_made == 1)
    return waiting, home, other


async def test_a_refusal_waits_for_the_other_copy(registers: RemoteRegisters, pair: list[Served]) -> None:
    waiting, home, other = await _two_copies(registers, pair)
    other.node.reply = EXISTS
    other.node.hold.set()
    await until(lambda: other.node.service.in_flight == 0)
    await asyncio.wait((waiting,), timeout=0.1)
    assert not waiting.done()
    home.node.hold.set()
    assert (await waiting).code == ""


async def test_refused_by_all_copies(registers: RemoteRegisters, pair: list[Served]) -> None:
    waiting, home, other = await _two_copies(registers, pair)
    home.node.reply = EXISTS
    other.node.error = NoQuorum("too slow")
    other.node.hold.set()
    home.node.hold.set()
    assert (await waiting).code == "already_exists"


async def test_a_refusal_says_nothing_of_a_lost_copy(registers: RemoteRegisters, pair: list[Served]) -> None:
    waiting, home, other = await _two_copies(registers, pair)
    other.node.reply = EXISTS
    await home.crash()
    other.node.hold.set()
    with pytest.raises(UnknownOutcome):
        await waiting


async def test_a_change_without_an_answer(registers: RemoteRegisters, pair: list[Served]) -> None:
    for server in pair:
        server.node.hold.clear()
    begin = time.monotonic()
    with pytest.raises(UnknownOutcome):
        await registers.change(change(), 0.3)
    with pytest.raises(NoQuorum):
        await registers.read([b"a"], 0.3)
    assert time.monotonic() - begin < TIMEOUT_S


async def test_close_fails_what_is_under_way(registers: RemoteRegisters, pair: list[Served]) -> None:
    home, _ = home_and_other(pair)
    home.node.hold.clear()
    waiting = asyncio.ensure_future(registers.change(change(), TIMEOUT_S))
    await until(lambda: home.node.changes_made == 1)
    await registers.close()
    with pytest.raises(UnknownOutcome, match="closed"):
        await waiting
    with pytest.raises(InvalidArgument, match="closed"):
        await registers.read([b"a"], TIMEOUT_S)


async def test_a_caller_that_gives_up(registers: RemoteRegisters, pair: list[Served]) -> None:
    home, _ = home_and_other(pair)
    home.node.hold.clear()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(registers.change(change(), TIMEOUT_S), 0.1)
    home.node.hold.set()
    assert (await registers.change(change(), TIMEOUT_S)).code == ""


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_children_of_a_busy_client_are_left_alone(registers: RemoteRegisters) -> None:
    for _ in range(30):
        reads = [asyncio.ensure_future(registers.read([b"a"], TIMEOUT_S)) for _ in range(3)]
        await asyncio.wait(reads, timeout=0.001)
        child = os.fork()
        if child == 0:
            os._exit(0)
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        await asyncio.gather(*reads)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_a_forked_child_is_told_so(registers: RemoteRegisters) -> None:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            registers.read([b"a"], 1.0).send(None)
        except ForkedClient:
            code = 0
        finally:
            os._exit(code)
    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert await registers.read([b"a"], TIMEOUT_S) == [State(b"a", ())]
