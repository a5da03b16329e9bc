"""How long a client's connection bears the silence of a node."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from objmeta.rpc import wire
from objmeta.rpc.link import SILENT_TICKS, Call, Condition, NodeLink
from objmeta.rpc.options import new_server
from tests.node.fakes import FakeNode, free_endpoints, served, silent_endpoint, until


class Deaf:
    """A client that takes no notice, but of connections."""

    def __init__(self) -> None:
        self.connections = 0
        self.lost = 0

    def on_ready(self, link: NodeLink) -> None:
        self.connections += 1

    def on_generation(self, generation: int) -> None: ...
    def on_result(self, link: NodeLink, number: int, result: wire.Result) -> None: ...
    def on_down(self, link: NodeLink, unsent: list[Call], sent: list[Call]) -> None: ...
    def on_epoch(self, link: NodeLink, epoch: int) -> None: ...

    def on_lost(self, link: NodeLink) -> None:
        self.lost += 1


def ticks_borne(link: NodeLink) -> int:
    """Let the node be silent until it is passed over: after how many ticks it was."""
    now = asyncio.get_running_loop().time()
    for ticks in range(1, 1000):
        link.tick()
        if not link.is_healthy(now):
            return ticks
    pytest.fail("silence is borne without end")


async def test_whoever_was_passed_over_for_being_slow_is_given_more_time_and_less_again_when_it_is_prompt() -> None:
    loop = asyncio.get_running_loop()
    answer = wire.encode(wire.ClientReplies([]))
    with silent_endpoint() as endpoint:
        link = NodeLink(endpoint, Deaf())
        link.send(Call(1, b"", b"a", True, loop.time() + 10, loop.create_future()))
        borne = []
        for _ in range(8):
            borne.append(ticks_borne(link))
            await link._on_message(answer)
        assert borne[0] == SILENT_TICKS
        assert all(later >= 1.5 * earlier for earlier, later in itertools.pairwise(borne[:4]))
        assert borne[-1] == borne[-2], "there is a bound"

        for _ in range(500):
            link.tick()
            await link._on_message(answer)
        assert ticks_borne(link) == SILENT_TICKS
        await link.close()


async def test_where_nobody_listens_there_never_was_a_connection() -> None:
    owner = Deaf()
    (endpoint,) = free_endpoints(1)
    link = NodeLink(endpoint, owner)
    link.node_id = 2
    link.connect()
    await until(lambda: link.condition is Condition.DOWN)
    assert (owner.connections, link.node_id) == (0, 2)
    assert "refused" in link.problem.lower()
    await link.close()


async def test_who_knows_no_such_service_is_no_node() -> None:
    server = new_server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    owner = Deaf()
    link = NodeLink(f"127.0.0.1:{port}", owner)
    link.connect()
    await until(lambda: link.condition is Condition.DOWN)
    assert owner.connections == 0
    assert link.problem
    await link.close()
    await server.stop(None)


async def test_only_who_goes_by_itself_is_lost() -> None:
    # or a client would begin to ask about the members while its event loop ends
    async with served(FakeNode(1)) as (server,):
        owner = Deaf()
        link = NodeLink(server.endpoint, owner)
        link.connect()
        await until(lambda: link.condition is Condition.READY)
        await link.close()
        assert (link.condition, owner.lost) == (Condition.DOWN, 0)
        link = NodeLink(server.endpoint, owner)
        link.connect()
        await until(lambda: link.condition is Condition.READY)
        await server.crash()
        await until(lambda: link.condition is Condition.DOWN)
        assert owner.lost == 1
        await link.close()
