"""``gateway gc`` with real nodes beside restores, versions that a minority accepted, and changes of members."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from gateway.data.transfer import Store, open_store
from objmeta import Chunk, errors
from objmeta.node import LocalCluster
from tests.gateway.test_collect_cluster import (
    BUCKET,
    COMMAND,
    PATIENCE_S,
    Progress,
    Writer,
    check_all,
    check_quiet,
    patiently,
    until,
)

OLD, NEW = 1, 4
"""A node, and the one that takes its place."""
LEFT = (2, 3, 4)
GIVEN_UP_S = 5.0
BEFORE = b"the version before"
ATTEMPTS_MAX = 3


async def run_gc(endpoints: Sequence[str], progress: Progress) -> None:
    """``gateway gc`` again and again; one that came to its end did three cycles or more."""
    store = ("--store", ",".join(endpoints))
    while not progress.over:
        command = (sys.executable, "-m", "gateway", *store, "--json", "gc", "--grace", "0.1")
        process = await asyncio.create_subprocess_exec(*command, stdout=-1, stderr=-1)
        try:
            out, err = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        progress.problem = err.decode()
        # 5: a node is away, or members change; 6: a node collects by itself, as nobody has for long
        assert process.returncode in (0, 5, 6), progress.problem
        if process.returncode == 0:
            await progress.note(cycles=3, deleted=json.loads(out)["copies_deleted"])


async def accepted_by_one(cluster: LocalCluster, alone: int, contents: dict[str, bytes]) -> bytes:
    """Versions whose chunks all have, but only ``alone`` hears of the commits: the others die with them unread.

    The home of the bucket accepts before it hears from others if it wrote the object before and nobody else had a part
    in that since, so it does that first.  Returns what is then read of the first of them where ``alone`` is needed for
    a majority.
    """
    store = await open_store(cluster.endpoint(alone), timeout_s=GIVEN_UP_S)
    for key in contents:
        for _ in range(2):
            await patiently(lambda key=key: store.client.put_object(BUCKET, key, data=BEFORE))  # type: ignore[misc]
    generation, chunks = await patiently(lambda: put_all(store, contents.values()))
    late, last = [node_id for node_id in cluster.node_ids if node_id != alone]
    for node_id in (late, last):
        cluster.pause(node_id)
    puts = [
        store.client.put_object(
            BUCKET, key, chunks=[chunk], size=chunk.length, etag=chunk.digest.hex(), generation=generation
        )
        for key, chunk in zip(contents, chunks, strict=True)
    ]
    ended = await asyncio.gather(*puts, return_exceptions=True)
    assert all(isinstance(each, errors.Unavailable) for each in ended), ended
    for node_id in (late, last):
        await asyncio.to_thread(cluster.kill, node_id)
    await start(cluster, late)
    first = await read(store, next(iter(contents)))
    await start(cluster, last)
    await store.close()
    return first


async def put_all(store: Store, contents: Iterable[bytes]) -> tuple[int, list[Chunk]]:
    """Store each as a chunk, under one generation. Raises StaleGeneration if that took too long."""
    generation = await store.client.generation()
    return generation, [await store.blobs.put(content, generation=generation) for content in contents]


async def start(cluster: LocalCluster, node_id: int) -> None:
    cluster.start(node_id)
    await asyncio.to_thread(cluster.wait_ready, (node_id,), PATIENCE_S)


async def read(store: Store, key: str) -> bytes:
    """All of an object; nodes that are away are waited for. Raises IntegrityError if there is a hole."""

    async def once() -> bytes:
        return await store.read(await store.client.get_object(BUCKET, key))

    return await patiently(once)


async def replace(cluster: LocalCluster, store: Store) -> None:
    """Have a new node take the place of an old one, which ends by itself."""
    cluster.start(NEW)
    await asyncio.to_thread(cluster.wait_up, NEW, PATIENCE_S)

    async def epoch() -> int:
        return (await store.client.members()).membership.configuration.epoch

    before = await patiently(epoch)

    async def begin() -> None:
        with contextlib.suppress(errors.Conflict):  # a try whose answer was lost has begun it
            await store.client.change_members({NEW: cluster.endpoint(NEW)}, [OLD], epoch=before)

    await patiently(begin)
    await until(lambda: patiently(epoch), lambda found: found >= before + 2)
    await until(lambda: asyncio.to_thread(cluster.pid, OLD), lambda pid: pid is None)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_restores_minorities_and_changes_of_members_beside_gateway_gc(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path / "cluster", nodes=3, command=COMMAND)
    with contextlib.closing(cluster):
        await asyncio.to_thread(cluster.open, PATIENCE_S)
        stores = [await open_store(",".join(cluster.endpoints)) for _ in range(2)]
        await stores[0].client.create_bucket(BUCKET)
        progress, unsure = Progress(), set[str]()
        writers = [Writer(f"writer-{number}", store, progress, number) for number, store in enumerate(stores)]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(run_gc(cluster.endpoints, progress))
            for writer in writers:
                tasks.create_task(writer.run())
            accepted = 0
            for attempt in range(ATTEMPTS_MAX):
                for alone in cluster.node_ids:
                    await progress.more(writes=5)
                    contents = {f"minority-{alone}-{attempt}/{number}": os.urandom(50_000) for number in range(2)}
                    unsure |= contents.keys()
                    first, left = contents
                    accepted += await accepted_by_one(cluster, alone, contents) == contents[first]
                    await progress.more(cycles=3)  # nobody looks at the other one meanwhile
                    assert await read(stores[0], left) in (contents[left], BEFORE)
                if accepted:  # not where gc has looked at the object between its last write and this one
                    break
            assert accepted, "none of the nodes accepted what the others never heard of"
            await progress.more(writes=10)
            await replace(cluster, stores[0])
            await progress.more(writes=20, cycles=3)
            await progress.note(over=True)
        assert progress.deleted > 0
        await check_all(stores[0], writers)
        unsure |= {key for writer in writers for key in writer.unsure}
        await check_quiet(cluster, stores[1], unsure, LEFT)
        for store in stores:
            await store.close()
