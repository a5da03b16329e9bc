"""Room for a bounded amount of something."""

from __future__ import annotations

import asyncio

from gateway.blobs.room import Room
from tests.node.fakes import until


async def test_room_is_given_in_order_and_back() -> None:
    room = Room(4)
    held: list[int] = []

    async def hold(units: int, until: asyncio.Event) -> None:
        async with room.share(units):
            held.append(units)
            await until.wait()

    done = asyncio.Event()
    first = asyncio.create_task(hold(3, done))
    big, small = (asyncio.create_task(hold(units, asyncio.Event())) for units in (2, 1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert held == [3]
    big.cancel()
    await asyncio.wait((big,))
    await until(lambda: held == [3, 1])
    done.set()
    await first
    small.cancel()
    await asyncio.wait((small,))
    async with asyncio.timeout(1), room.share(4):
        pass
