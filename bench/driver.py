"""One load process: a number of writers, each with one put in flight, for as long as it is told.

Started by ``bench/puts.py`` as ``python -m bench.driver KIND --endpoints … --writers N``.  It connects, makes one put,
prints ``ready``, and then answers each line ``run SECONDS`` on standard input with one line of JSON: how many puts were
acknowledged, in how many seconds, and the latencies at the 50th and 99th percentile in milliseconds.  ``pace SECONDS
RATE`` has that many puts fall due each second instead, and answers with all latencies, counted from when they were due.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable

import objmeta
from bench import http2
from bench.etcd import PUT, put_request
from gateway.data.transfer import open_store
from objmeta.errors import Unavailable
from objmeta.grpcio import grpc

Put = Callable[[int], Awaitable[object]]
"""Makes the put of that number durable."""

OBJECT_BYTES = 1024
CHUNK_BYTES = 20_480
"""Of an object that is too long for its record, so that it is a chunk at nodes."""
ETCD_VALUE_BYTES = 300
BUCKET = "bench"
_CONNECTIONS_PER_DRIVER = 4


async def _etcd(endpoints: list[str]) -> Put:
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(endpoints[0], options=options) for _ in range(_CONNECTIONS_PER_DRIVER)]
    calls = [channel.unary_unary(PUT, request_serializer=bytes, response_deserializer=bytes) for channel in channels]
    value = os.urandom(ETCD_VALUE_BYTES)
    lane = os.urandom(8).hex().encode()

    async def put(number: int) -> object:
        return await calls[number % len(calls)](put_request(b"%s/%012d" % (lane, number), value))

    return put


async def _etcd_bare(endpoints: list[str]) -> Put:
    connection = await http2.connect(endpoints[0], PUT)
    loop = asyncio.get_running_loop()
    value = os.urandom(ETCD_VALUE_BYTES)
    lane = os.urandom(8).hex().encode()

    async def put(number: int) -> object:
        answer: asyncio.Future[bool] = loop.create_future()
        connection.call(put_request(b"%s/%012d" % (lane, number), value), answer.set_result)
        if not await answer:
            raise ConnectionError(connection.failure or "etcd refused a put")
        return None

    return put


async def _objmeta(endpoints: list[str]) -> Put:
    client = objmeta.connect_async(",".join(endpoints))
    data = os.urandom(OBJECT_BYTES)
    lane = os.urandom(8).hex()

    async def put(number: int) -> object:
        return await client.put_object(BUCKET, f"{lane}/{number:012d}", data=data)

    return put


async def _objects(endpoints: list[str]) -> Put:
    store = await open_store(",".join(endpoints))
    data = os.urandom(CHUNK_BYTES)
    lane = os.urandom(8).hex()

    async def put(number: int) -> object:
        content = number.to_bytes(8, "big") + data[8:]  # no two objects share a chunk
        return await store.put_stream(BUCKET, f"{lane}/{number:012d}", content)

    return put


_KINDS = {"etcd-grpc": _etcd, "etcd-bare": _etcd_bare, "objmeta": _objmeta, "objects": _objects}


async def _run(put: Put, writers: int, seconds: float, numbers: itertools.count[int]) -> dict[str, float]:
    latencies: list[float] = []
    start = time.perf_counter()
    end = start + seconds

    async def writer() -> None:
        while (before := time.perf_counter()) < end:
            await put(next(numbers))
            latencies.append(time.perf_counter() - before)

    await asyncio.gather(*(writer() for _ in range(writers)))
    took = time.perf_counter() - start
    latencies.sort()
    return {
        "puts": len(latencies),
        "seconds": took,
        "p50_ms": 1000 * latencies[len(latencies) // 2],
        "p99_ms": 1000 * latencies[len(latencies) * 99 // 100],
    }


async def _pace(
    put: Put, writers: int, seconds: float, rate: float, numbers: itertools.count[int]
) -> dict[str, list[float]]:
    latencies: list[float] = []
    room = asyncio.Semaphore(writers)

    async def one(due: float) -> None:
        async with room:
            with contextlib.suppress(Unavailable):  # a put that failed took as long as it took
                await put(next(numbers))
        latencies.append(1000 * (time.perf_counter() - due))

    start = time.perf_counter()
    puts = []
    for number in range(int(seconds * rate)):
        due = start + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        puts.append(asyncio.ensure_future(one(due)))
    await asyncio.gather(*puts)
    return {"latencies_ms": latencies}


async def _main() -> None:
    parser = argparse.ArgumentParser(description="One load process of bench/puts.py.")
    parser.add_argument("kind", choices=tuple(_KINDS))
    parser.add_argument("--endpoints", required=True)
    parser.add_argument("--writers", type=int, required=True)
    arguments = parser.parse_args()
    put = await _KINDS[arguments.kind](arguments.endpoints.split(","))
    numbers = itertools.count()
    await put(next(numbers))
    print("ready", flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        what, *figures = line.split()
        if what == "pace":
            seconds, rate = map(float, figures)
            print(json.dumps(await _pace(put, arguments.writers, seconds, rate, numbers)), flush=True)
        else:
            print(json.dumps(await _run(put, arguments.writers, float(figures[0]), numbers)), flush=True)


if __name__ == "__main__":
    asyncio.run(_main())
