"""The loop with virtual time."""

from __future__ import annotations

import asyncio
import time

import pytest

from objmeta.testing import loop


def test_time_is_virtual() -> None:
    async def main() -> float:
        await asyncio.sleep(3600)
        await asyncio.gather(asyncio.sleep(60), asyncio.sleep(30))
        return asyncio.get_running_loop().time()

    started = time.monotonic()
    assert loop.run(main()) == pytest.approx(3660)
    assert time.monotonic() - started < 360


def test_timers_run_in_order_of_time_and_ties_in_order_of_call() -> None:
    async def main() -> list[str]:
        order: list[str] = []
        running = asyncio.get_running_loop()
        for delay, name in ((2.0, "c"), (1.0, "a"), (1.0, "b")):
            running.call_later(delay, order.append, name)
        await asyncio.sleep(3)
        return order

    assert loop.run(main()) == ["a", "b", "c"]


def test_waiting_for_what_never_comes_is_a_deadlock() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(loop.Deadlock):
        loop.run(main())


def test_an_exception_in_a_callback_ends_the_run() -> None:
    def fail() -> None:
        raise ValueError("in a callback")

    async def main() -> None:
        asyncio.get_running_loop().call_later(1, fail)
        await asyncio.sleep(10)

    with pytest.raises(ValueError, match="in a callback"):
        loop.run(main())


def test_there_are_no_threads() -> None:
    async def main() -> None:
        await asyncio.to_thread(time.monotonic)

    with pytest.raises(RuntimeError, match="no threads"):
        loop.run(main())


def test_tasks_left_over_are_cancelled() -> None:
    ended: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.sleep(1e6)
        finally:
            ended.append("yes")

    async def main() -> None:
        task = asyncio.ensure_future(forever())
        await asyncio.sleep(1)
        assert not task.done()

    loop.run(main())
    assert ended == ["yes"]
