"""The client service by itself: what a stream may have under way."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from objmeta.interfaces import ChangeReply, ChangeRequest
from objmeta.rpc import service, wire
from objmeta.rpc.service import ClientService
from tests.node.fakes import FakeNode, change


class Picky(FakeNode):
    """Leaves changes of names that begin with "slow" without an answer."""

    async def change(self, request: ChangeRequest, timeout_s: float) -> ChangeReply:
        if request.name.startswith(b"slow"):
            await asyncio.Event().wait()
        return await super().change(request, timeout_s)


def message(*names: bytes) -> bytes:
    items = []
    for number, name in enumerate(names):
        request = change(name)
        operation = wire.encode(wire.ChangeName(name, request.change, None, 1))
        items.append((number, 10.0, msgspec.Raw(operation)))
    return wire.encode((items,))


async def test_one_slow_change_does_not_keep_a_stream_from_being_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_IN_FLIGHT_MAX", 4)
    client = service._Client(ClientService(Picky()))
    async with asyncio.timeout(5):
        for _ in range(4):
            await client.take(message(b"slow", b"a", b"b"))
        assert client.in_flight == 4
        reading = asyncio.ensure_future(client.take(message(b"slow", b"a")))
        done, _ = await asyncio.wait((reading,), timeout=0.05)
        assert not done, "more than it may have under way"
        await client.cancel()
        await reading
