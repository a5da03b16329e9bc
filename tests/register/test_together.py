"""Changes that come together: what they share, and that each has its own end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence

import pytest

from objmeta.core.ballot import BallotSource
from objmeta.core.configuration import Membership, single_set
from objmeta.core.home import home_of
from objmeta.core.messages import Fence, RaiseTerm, Request
from objmeta.errors import NoQuorum
from objmeta.interfaces import ChangeReply, ChangeRequest, OnReplies, OnReply
from objmeta.model.changes import SetValue
from objmeta.register.engine import Engine, EngineSettings
from objmeta.register.local import LocalTransport
from objmeta.register.replies import STALE_TERM
from objmeta.store.lane import Lane
from objmeta.store.memory import MemoryStore

CONFIGURATION = single_set(b"store-id-16bytes", (1, 2, 3))
BEGINNING = b"k/what the home is chosen by"
HOME = home_of(BEGINNING, (1, 2, 3))
TIMEOUT_S = 10.0


class Wires(LocalTransport):
    """Counts what is sent, together and alone; acceptors in ``gone`` get nothing."""

    def __init__(self, lanes: dict[int, Lane]) -> None:
        super().__init__(CONFIGURATION.tag, lanes)
        self.groups: list[tuple[int, int]] = []
        self.alone = 0
        self.gone: set[int] = set()

    def send(self, acceptor: int, request: Request, on_reply: OnReply) -> None:
        self.alone += 1
        if acceptor not in self.gone:
            super().send(acceptor, request, on_reply)

    def send_all(self, acceptor: int, requests: Sequence[Request], on_replies: OnReplies) -> None:
        self.groups.append((acceptor, len(requests)))
        if acceptor not in self.gone:
            super().send_all(acceptor, requests, on_replies)


class Trio:
    """Three acceptors in memory and a proposer at the home of all names."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.stores = {acceptor: MemoryStore(acceptor, CONFIGURATION) for acceptor in (1, 2, 3)}
        self.lanes = {acceptor: Lane(store, loop) for acceptor, store in self.stores.items()}
        self.wires = Wires(self.lanes)
        self.engine = Engine(
            Membership(CONFIGURATION),
            self.wires,
            BallotSource(7, 1, 100),
            random.Random(7),
            EngineSettings(round_timeout_s=0.2, straggler_wait_s=0.001),
            own_acceptor=HOME,
        )

    async def change_all(
        self, *requests: ChangeRequest, timeout_s: float = TIMEOUT_S
    ) -> list[ChangeReply | Exception | None]:
        answers: list[ChangeReply | Exception | None] = [None] * len(requests)

        def answered(place: int, answer: ChangeReply | Exception) -> None:
            assert answers[place] is None, "one answer each"
            answers[place] = answer

        await self.engine.change_all(requests, [timeout_s] * len(requests), answered)
        return answers


@pytest.fixture
async def trio() -> AsyncIterator[Trio]:
    made = Trio()
    yield made
    await made.engine.close()
    await asyncio.gather(*(lane.close() for lane in made.lanes.values()))


def name(number: int) -> bytes:
    return BEGINNING + b"%d" % number


def request(number: int, operation: int = 0, fence: Fence | None = None) -> ChangeRequest:
    return ChangeRequest(name(number), SetValue((operation or number + 1).to_bytes(16), b"x"), fence, generation=1)


def sequences(answers: list[ChangeReply | Exception | None]) -> list[int]:
    found = []
    for answer in answers:
        assert isinstance(answer, ChangeReply)
        assert answer.code == ""
        assert answer.record is not None
        found.append(answer.record.ref.sequence)
    return found


async def test_first_writes_share_a_message_to_each_acceptor(trio: Trio) -> None:
    answers = await trio.change_all(*(request(number) for number in range(20)))
    assert sequences(answers) == [1] * 20
    assert sorted(trio.wires.groups) == [(1, 20), (2, 20), (3, 20)]
    assert trio.wires.groups[0] == (HOME, 20), "the home has them durable before anybody else is asked"
    assert trio.wires.alone == 0
    states = await trio.engine.read([name(number) for number in range(20)], TIMEOUT_S)
    assert all(state is not None for state in states)


async def test_one_that_is_not_first_goes_on_by_itself(trio: Trio) -> None:
    assert sequences([await trio.engine.change(request(3, 99), TIMEOUT_S)]) == [1]
    elsewhere = Engine(
        Membership(CONFIGURATION), trio.wires, BallotSource(8, 1, 100), random.Random(8), own_acceptor=HOME
    )  # the one above remembers that register, and would not try
    trio.engine, before = elsewhere, trio.engine
    assert sequences(await trio.change_all(*(request(number) for number in range(5)))) == [1, 1, 1, 2, 1]
    await before.close()


async def test_changes_of_one_register_queue_behind_each_other(trio: Trio) -> None:
    answers = await trio.change_all(request(1, 11), request(1, 12), request(2), request(1, 13))
    assert sorted(sequences(answers)) == [1, 1, 2, 3]
    assert sequences([answers[2]]) == [1]
    assert sequences([await trio.engine.change(request(1, 14), TIMEOUT_S)]) == [4], "nobody has kept the lead"


async def test_one_that_a_term_refuses_costs_the_others_nothing(trio: Trio) -> None:
    for store in trio.stores.values():
        store.apply([(CONFIGURATION.tag, RaiseTerm(b"scope", 5))])
    answers = await trio.change_all(
        request(1), request(2, fence=Fence(b"scope", 4)), request(3, fence=Fence(b"scope", 5))
    )
    assert sequences([answers[0], answers[2]]) == [1, 1]
    refused = answers[1]
    assert isinstance(refused, ChangeReply)
    assert (refused.code, refused.proposed) == (STALE_TERM, False)


async def test_without_the_home_they_go_the_long_way(trio: Trio) -> None:
    trio.wires.gone = {HOME}
    assert sequences(await trio.change_all(request(1), request(2))) == [1, 1]
    assert trio.wires.alone > 0


async def test_without_a_majority_nothing_is_said_to_be_done_and_the_lead_is_free_again(trio: Trio) -> None:
    trio.wires.gone = {1, 2, 3}
    answers = await trio.change_all(request(1), request(2), timeout_s=0.5)
    assert all(isinstance(answer, Exception) for answer in answers)
    trio.wires.gone = set()
    assert sequences([await trio.engine.change(request(1, 50), TIMEOUT_S)])[0] in (1, 2)


async def test_nothing_is_sent_when_the_time_is_up(trio: Trio) -> None:
    answers = await trio.change_all(request(1), request(2), timeout_s=0.0)
    assert [type(answer) for answer in answers] == [NoQuorum, NoQuorum]
    assert (trio.wires.groups, trio.wires.alone) == ([], 0)


@pytest.mark.parametrize("gone", [{1, 2, 3}, {HOME}, set[int]()])
async def test_who_gives_up_leaves_every_register_free(trio: Trio, gone: set[int]) -> None:
    trio.wires.gone = gone
    for turns in range(6):
        waiting = asyncio.ensure_future(trio.change_all(request(1, 100 + turns), request(2, 200 + turns)))
        for _ in range(turns):
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    trio.wires.gone = set()
    for number in (1, 2):
        async with asyncio.timeout(TIMEOUT_S):
            reply = await trio.engine.change(request(number, 300 + number), TIMEOUT_S)
        assert reply.code == ""
