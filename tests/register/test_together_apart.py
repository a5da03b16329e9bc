"""Changes that come together: where one of them, or a message, must not cost the others anything."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from objmeta.core.configuration import Configuration, Membership
from objmeta.core.messages import Accept, Accepted, Refusal, Refused, Request
from objmeta.errors import UnknownOutcome
from objmeta.interfaces import ChangeReply, ChangeRequest, OnReplies
from objmeta.model.changes import PutVersion
from objmeta.model.values import Manifest
from objmeta.register import together
from tests.register.test_together import CONFIGURATION, HOME, Trio, Wires, name, request, sequences, trio

__all__ = ["trio"]

_MESSAGE = tuple[int, Sequence[Request], OnReplies]


def held_up(trio: Trio, *acceptors: int) -> list[_MESSAGE]:
    """Messages to these acceptors, which wait there from now on."""
    held: list[_MESSAGE] = []

    def send_all(acceptor: int, requests: Sequence[Request], on_replies: OnReplies) -> None:
        if acceptor in acceptors:
            held.append((acceptor, requests, on_replies))
        else:
            Wires.send_all(trio.wires, acceptor, requests, on_replies)

    trio.wires.send_all = send_all  # type: ignore[method-assign]
    return held


async def test_one_that_has_little_time_takes_none_from_the_others(trio: Trio) -> None:
    others = {1, 2, 3} - {HOME}
    held = held_up(trio, *others)
    trio.wires.gone = others
    answers: dict[int, ChangeReply | Exception] = {}
    first = asyncio.Event()

    def answered(place: int, answer: ChangeReply | Exception) -> None:
        answers[place] = answer
        first.set()

    changing = asyncio.ensure_future(trio.engine.change_all([request(1), request(2)], [0.05, 10.0], answered))
    async with asyncio.timeout(10):
        await first.wait()
    assert isinstance(answers[0], UnknownOutcome), "the home has its value"
    trio.wires.gone = set()
    for message in held:
        Wires.send_all(trio.wires, *message)
    await changing
    assert sequences([answers[1]]) == [1]
    assert trio.wires.alone == 0, "its first write was not given up"


async def test_what_is_long_together_travels_in_parts(trio: Trio) -> None:
    messages = held_up(trio, HOME)
    trio.wires.gone = {1, 2, 3}
    data = bytes(together._PARCEL_BYTES_MAX // 3)
    put = PutVersion(b"v" * 16, Manifest(len(data), b"etag", 1), data)
    requests = [ChangeRequest(name(number), put, None, 1) for number in range(7)]
    changing = asyncio.ensure_future(trio.change_all(*requests, timeout_s=0.3))
    await asyncio.sleep(0)
    assert [len(sent) for _, sent, _ in messages] == [2, 2, 2, 1]
    await changing


async def test_nothing_is_sent_under_a_configuration_it_was_not_meant_for(trio: Trio) -> None:
    newer = Configuration(CONFIGURATION.store_id, CONFIGURATION.epoch + 2, ((1, 2, 3),))
    held = held_up(trio, 1, 2, 3)
    trio.wires.gone = {1, 2, 3}
    changing = asyncio.ensure_future(trio.change_all(request(1), request(2), timeout_s=0.3))
    await asyncio.sleep(0)
    ((_, (taken, other), on_replies),) = held
    assert isinstance(taken, Accept)
    assert isinstance(other, Accept)
    refused = Refused(other.ballot, Refusal.CONFIGURATION, membership=Membership(newer))
    on_replies(HOME, [(0, Accepted(taken.ballot)), (1, refused)])
    assert len(held) == 1, "what follows on the first one's was meant for the members before"
    await changing
