"""Changes that get no answer: what their error says, and that each ends by its own deadline."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
import uvloop

import objmeta
from objmeta.core.ballot import BallotSource
from objmeta.core.configuration import Membership, single_set
from objmeta.core.home import home_of
from objmeta.core.messages import Accept, Accepted, Request
from objmeta.errors import NoQuorum, ObjmetaError, UnknownOutcome
from objmeta.interfaces import ChangeRequest, OnReply
from objmeta.model.changes import SetValue
from objmeta.register.engine import Engine
from objmeta.register.local import LocalTransport

CONFIGURATION = single_set(b"store-id-16bytes", (1, 2, 3))
BEGINNING = b"k/what the home is chosen by"
HOME = home_of(BEGINNING, (1, 2, 3))


class Silence(LocalTransport):
    """Only the home's own acceptor answers, and only if it is to."""

    def __init__(self, home_answers: bool) -> None:
        super().__init__(CONFIGURATION.tag, {})
        self.home_answers = home_answers
        self.sent: list[tuple[int, Request]] = []

    def send(self, acceptor: int, request: Request, on_reply: OnReply) -> None:
        self.sent.append((acceptor, request))
        if self.home_answers and acceptor == HOME and isinstance(request, Accept):
            asyncio.get_running_loop().call_soon(on_reply, acceptor, Accepted(request.ballot))


def engine(transport: Silence) -> Engine:
    return Engine(Membership(CONFIGURATION), transport, BallotSource(7, 1, 100), random.Random(7), own_acceptor=HOME)


def request(operation: int) -> ChangeRequest:
    return ChangeRequest(BEGINNING + b"%d" % operation, SetValue(operation.to_bytes(16), b"x"), generation=1)


async def test_a_first_write_that_was_sent_on_and_not_answered_may_have_applied() -> None:
    silence = Silence(home_answers=True)
    with pytest.raises(UnknownOutcome):
        await engine(silence).change(request(1), 0.05)
    assert {acceptor for acceptor, sent in silence.sent if isinstance(sent, Accept)} == {1, 2, 3}


async def test_nothing_is_sent_for_a_change_whose_time_is_up() -> None:
    silence = Silence(home_answers=True)
    with pytest.raises(NoQuorum):
        await engine(silence).change(request(1), 0.0)
    assert silence.sent == []


async def test_a_change_with_less_time_ends_before_one_that_began_earlier() -> None:
    changer = engine(Silence(home_answers=False))
    ended: list[int] = []

    async def change(operation: int, timeout_s: float) -> None:
        with pytest.raises(ObjmetaError):
            await changer.change(request(operation), timeout_s)
        ended.append(operation)

    await asyncio.gather(change(1, 0.3), change(2, 0.02), change(3, 0.1))
    assert ended == [2, 3, 1]


def test_changes_with_hardly_any_time_left_end_by_it_on_any_event_loop() -> None:
    """uvloop gives no timer for what is due at once."""

    async def changes() -> None:
        changer = engine(Silence(home_answers=False))
        ended = await asyncio.gather(
            *(changer.change(request(operation), 0.0002 + operation * 1e-5) for operation in range(1, 50)),
            return_exceptions=True,
        )
        assert {type(error) for error in ended} <= {NoQuorum, UnknownOutcome}

    for loop_factory in (asyncio.new_event_loop, uvloop.new_event_loop):
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(changes())


async def test_a_leader_that_has_its_answer_hands_on_what_did_not_fit_its_round(tmp_path: Path) -> None:
    """Records of 600 KiB: two are too long for one round, so the second leader leaves the third put unanswered."""
    async with objmeta.connect_async(tmp_path) as client:
        await client.create_bucket("bucket")
        puts = (client.put_object("bucket", "key", data=bytes(600 << 10)) for _ in range(3))
        async with asyncio.timeout(9):
            made = await asyncio.gather(*puts)
        assert sorted(version.sequence for version in made) == [1, 2, 3]
