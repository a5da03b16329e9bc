"""Listing 100,000 keys from a quorum of three nodes, and SQL over them.

python -m bench.listing [--keys N] [--rounds N] [--directory DIR]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable

import objmeta
from bench.machine import describe, scratch
from gateway.catalog.query import sql_async
from objmeta.node.dev import LocalCluster

TARGET = 50_000
"""Keys a second."""
BUCKET = "bench"
_WRITERS = 256


async def _fill(client: objmeta.AsyncClient, keys: int) -> None:
    await client.create_bucket(BUCKET)
    numbers = iter(range(keys))

    async def writer() -> None:
        for number in numbers:
            key = f"{number % 100:02d}/{number:08d}"
            await client.put_object(BUCKET, key, data=b"", content_type="text/plain", metadata={"number": str(number)})

    await asyncio.gather(*(writer() for _ in range(_WRITERS)))


async def _list(client: objmeta.AsyncClient) -> int:
    found = 0
    async for _ in client.iter_objects(BUCKET):
        found += 1
    return found


async def _list_versions(client: objmeta.AsyncClient) -> int:
    found = 0
    continuation: str | None = None
    while True:
        page = await client.list_versions(BUCKET, continuation=continuation, limit=2000)
        found += len(page.versions)
        continuation = page.continuation
        if continuation is None:
            return found


async def _ask(client: objmeta.AsyncClient) -> int:
    ((found,),) = (await sql_async(client, "SELECT count(*) FROM versions")).rows()
    return int(found)


async def _measure(endpoints: str, keys: int, rounds: int) -> bool:
    async with objmeta.connect_async(endpoints, timeout_s=60) as client:
        start = time.perf_counter()
        await _fill(client, keys)
        print(f"stored {keys:,} objects in {time.perf_counter() - start:.1f} s")
        reached = False
        works: dict[str, Callable[[objmeta.AsyncClient], Awaitable[int]]] = {
            "list_objects": _list,
            "list_versions": _list_versions,
            "sql over versions": _ask,
        }
        for name, work in works.items():
            took = []
            for _ in range(rounds):
                start = time.perf_counter()
                found = await work(client)
                took.append(time.perf_counter() - start)
                assert found == keys, f"{name} shows {found} of {keys} objects"
            rate = keys / statistics.median(took)
            aim = ""
            if work is _list:
                reached = rate >= TARGET
                aim = f"target {TARGET:,}: {'reached' if reached else 'missed'}"
            print(f"{name:<20}{rate:>9,.0f} a second (median of {rounds})  {aim}".rstrip())
        start = time.perf_counter()
        page = await client.list_objects(BUCKET, delimiter="/")
        assert len(page.prefixes) == min(keys, 100)
        print(f"{'ls of the top level':<20}{1000 * (time.perf_counter() - start):>9.1f} ms, 100 common prefixes")
        return reached


def main() -> int:
    """The exit code: 1 if the target was missed."""
    parser = argparse.ArgumentParser(description="Listings from a quorum of three nodes.")
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", help="where the data goes (default: ./build)")
    arguments = parser.parse_args()
    with scratch(arguments.directory) as directory, LocalCluster(directory / "objmeta", nodes=3) as cluster:
        print(describe(directory))
        return 0 if asyncio.run(_measure(",".join(cluster.endpoints), arguments.keys, arguments.rounds)) else 1


if __name__ == "__main__":
    sys.exit(main())
