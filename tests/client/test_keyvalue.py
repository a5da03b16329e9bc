"""Plain key-value registers."""

from __future__ import annotations

import asyncio

import pytest

from objmeta import AsyncClient, connect_async, errors


async def test_put_get_delete(client: AsyncClient, fresh: str) -> None:
    assert await client.get(fresh) is None
    put = await client.put(fresh, b"1")
    assert await client.get(fresh.encode()) == put
    assert await client.delete(fresh)
    assert await client.get(fresh) is None
    assert not await client.delete(fresh)


async def test_compare_and_swap(client: AsyncClient, fresh: str) -> None:
    first = await client.compare_and_swap(fresh, b"1", expected=None)
    with pytest.raises(errors.AlreadyExists):
        await client.compare_and_swap(fresh, b"2", expected=None)
    second = await client.compare_and_swap(fresh, b"2", expected=first.version_id)
    with pytest.raises(errors.PreconditionFailed):
        await client.compare_and_swap(fresh, b"3", expected=first.version_id)
    with pytest.raises(errors.PreconditionFailed):
        await client.delete(fresh, if_version=first.version_id)
    assert await client.delete(fresh, if_version=second.version_id)


async def test_a_value_must_be_bytes(client: AsyncClient, fresh: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="bytes"):
        await client.put(fresh, "text")  # type: ignore[arg-type]


async def test_change_by_a_function_counts_right(target: str, client: AsyncClient, fresh: str) -> None:
    def increment(value: bytes | None) -> bytes:
        return b"%d" % (int(value or 0) + 1)

    async with connect_async(target) as other:
        await asyncio.gather(*(c.change(fresh, increment) for c in (client, other) for _ in range(15)))
    value = await client.get(fresh)
    assert value is not None
    assert value.value == b"30"


async def test_change_may_delete_and_may_raise(client: AsyncClient, fresh: str) -> None:
    await client.put(fresh, b"1")

    def fail(value: bytes | None) -> bytes:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        await client.change(fresh, fail)
    assert await client.change(fresh, lambda value: None) is None
    assert await client.get(fresh) is None


async def test_change_may_leave_nothing_as_it_is(client: AsyncClient, fresh: str) -> None:
    assert await client.change(fresh, lambda value: None) is None
    assert await client.get(fresh) is None


async def test_the_id_of_no_change_is_refused(client: AsyncClient, fresh: str) -> None:
    await client.put(fresh, b"1")
    with pytest.raises(errors.InvalidArgument, match="pass None"):
        await client.delete(fresh, if_version="0" * 32)
    with pytest.raises(errors.InvalidArgument, match="pass None"):
        await client.compare_and_swap(fresh, b"2", expected="0" * 32)


async def test_scan(client: AsyncClient, fresh: str) -> None:
    for i in range(5):
        await client.put(f"{fresh}/{i}", b"%d" % i)
    await client.delete(f"{fresh}/3")
    assert [pair.value for pair in await client.scan(f"{fresh}/")] == [b"0", b"1", b"2", b"4"]
    assert [pair.value for pair in await client.scan(f"{fresh}/", start=f"{fresh}/2", limit=1)] == [b"2"]


@pytest.mark.parametrize("key", [b"", b"x" * 1025])
async def test_bad_keys_are_refused(client: AsyncClient, key: bytes) -> None:
    with pytest.raises(errors.InvalidArgument):
        await client.put(key, b"")
