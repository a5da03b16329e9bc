"""SQL over a million objects with three versions each: the first load, the refresh after changes, and a query.

python -m bench.catalog [--objects N] [--nodes 0|3] [--rounds N] [--changes N] [--directory DIR]

With ``--nodes 0`` the store is a directory, used in this process.  It is filled by giving its acceptors accepts, all of
one object's versions in one, since putting that many objects would take an hour.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import objmeta
from bench.machine import describe, scratch
from gateway.catalog.query import sql_async
from objmeta.core.ballot import Ballot
from objmeta.core.messages import LIVE, Accept, State
from objmeta.interfaces import AcceptorStore
from objmeta.model.names import object_register
from objmeta.model.values import Chunk, Head, Manifest, Version, encode, make_record
from objmeta.node.dev import LocalCluster
from objmeta.store.rocks import RocksStore
from objmeta.store.sqlite import SqliteStore

BUCKET = "bench"
VERSIONS = 3
LOAD_TARGET = 100_000
"""Rows a second."""
REFRESH_TARGET_MS = 200.0
QUERY_TARGET_MS = 100.0
_BATCH = 2_000
_WRITERS = 64
_GROUP_BY = "SELECT bucket, key[:2] AS prefix, count(*), sum(size) FROM objects GROUP BY ALL ORDER BY ALL"
_BY_DIRECTORY = "SELECT bucket, directory, count(*), sum(size) FROM objects GROUP BY ALL ORDER BY ALL"


def _accepts(bucket_id: bytes, objects: int) -> Iterator[Accept]:
    ballot = Ballot(5, 1, 1)
    for number in range(objects):
        records = []
        tip = None
        for version in range(VERSIONS):
            chunks = (Chunk(os.urandom(32), 100_000),)
            manifest = Manifest(
                100_000 + number % 1000,
                os.urandom(32),
                1_700_000_000_000_000 + number * 1000 + version,
                "text/plain",
                {"number": str(number)},
                chunks,
                parent_version_id=tip.version_id if tip else b"",
            )
            record = make_record(tip, 0, os.urandom(16), manifest)
            records.append(record)
            tip = record.ref
        assert tip is not None
        head = Head(Version(tip, manifest.size, manifest.etag, manifest.modified_us))
        name = object_register(bucket_id, f"{number % 100:02d}/{number:08d}")
        yield Accept(name, ballot, State(encode(head), (tip,), LIVE), tuple(records))


def _fill(stores: Sequence[AcceptorStore], bucket_id: bytes, objects: int) -> None:
    batch: list[Accept] = []
    tag = stores[0].configuration.tag
    for accept in _accepts(bucket_id, objects):
        batch.append(accept)
        if len(batch) == _BATCH:
            for store in stores:
                store.apply([(tag, each) for each in batch])
            batch = []
    for store in stores:
        store.apply([(tag, each) for each in batch])


async def _change(client: objmeta.AsyncClient, numbers: range) -> None:
    left = iter(numbers)

    async def writer() -> None:
        for number in left:
            await client.put_object(BUCKET, f"{number % 100:02d}/{number:08d}", data=b"changed")

    await asyncio.gather(*(writer() for _ in range(_WRITERS)))


async def _measure(target: str, objects: int, rounds: int, changes: int, catalog: Path) -> bool:
    rows = objects * VERSIONS
    async with objmeta.connect_async(target, timeout_s=60) as client:
        start = time.perf_counter()
        found = (await sql_async(client, "SELECT count(*) FROM versions", catalog=catalog)).rows()
        rate = rows / (time.perf_counter() - start)
        assert found == [(rows,)], found
        size = os.stat(catalog).st_size
        print(f"first load: {rate:,.0f} rows/s (aim: {LOAD_TARGET:,}), {size / 1e6:.0f} MB kept")
        refreshes: list[float] = []
        queries: list[float] = []
        by_directory: list[float] = []
        following: list[float] = []
        for round_ in range(rounds):
            await _change(client, range(round_ * changes * 7, (round_ + 1) * changes * 7, 7))
            start = time.perf_counter()
            result = await sql_async(client, "SELECT count(*) FROM buckets", catalog=catalog)
            refreshes.append(1000 * (time.perf_counter() - start))
            assert result.looked_at >= changes, result.looked_at
            for asked, times in (
                ("SELECT 1 FROM buckets", following),
                (_GROUP_BY, queries),
                (_BY_DIRECTORY, by_directory),
            ):
                start = time.perf_counter()
                await sql_async(client, asked, catalog=catalog)
                times.append(1000 * (time.perf_counter() - start))
    refresh, query = statistics.median(refreshes), statistics.median(queries)
    print(f"refresh after {changes:,} changes, and a query: {refresh:.0f} ms (aim: {REFRESH_TARGET_MS:.0f})")
    print(f"the query that follows at once, and waits for the checkpoint: {statistics.median(following):.0f} ms")
    print(f"GROUP BY a part of the key, nothing changed, from end to end: {query:.0f} ms (aim: {QUERY_TARGET_MS:.0f})")
    print(f"the same by directory, which is kept: {statistics.median(by_directory):.0f} ms")
    return rate >= LOAD_TARGET and refresh <= REFRESH_TARGET_MS and query <= QUERY_TARGET_MS


def _prepare(target: str) -> bytes:
    with objmeta.connect(target) as client:
        return client.create_bucket(BUCKET).bucket_id


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=100_000)
    parser.add_argument("--nodes", type=int, default=0, choices=(0, 3))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--changes", type=int, default=1000)
    parser.add_argument("--directory")
    given = parser.parse_args()
    with scratch(given.directory) as directory, ExitStack() as running:
        print(describe(directory))
        start = time.perf_counter()
        stores: list[AcceptorStore]
        if given.nodes:
            with LocalCluster(directory, given.nodes) as cluster:
                bucket_id = _prepare(",".join(cluster.endpoints))
            stores = [RocksStore.open(directory / f"node-{node}" / "data" / "acceptor") for node in (1, 2, 3)]
        else:
            bucket_id = _prepare(str(directory / "store"))
            stores = [SqliteStore.open(directory / "store" / "acceptor")]
        _fill(stores, bucket_id, given.objects)
        for store in stores:
            store.close()
        os.sync()  # what the kernel has yet to write of this would be written during the first load
        target = str(directory / "store")
        if given.nodes:
            target = ",".join(running.enter_context(LocalCluster(directory, given.nodes)).endpoints)
        print(f"filled with {given.objects:,} objects in {time.perf_counter() - start:.1f} s")
        work = _measure(target, given.objects, given.rounds, given.changes, directory / "catalog.duckdb")
        return 0 if asyncio.run(work) else 1


if __name__ == "__main__":
    sys.exit(main())
