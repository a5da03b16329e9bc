"""Real nodes, killed and started again, while clients write and collection runs all the time.

No live version ever lacks a byte, and in the end there is what live versions need and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest
from blake3 import blake3

from gateway.collection.collectors import workers_of
from gateway.collection.cycles import Cycled, run_cycles
from gateway.data import parts
from gateway.data.transfer import Store, open_store
from gateway.upkeep.asking import Upkeep
from gateway.upkeep.service import REPAIR
from objmeta import Chunk, ObjectVersion, errors
from objmeta.node import LocalCluster

COMMAND = (sys.executable, "-m", "gateway.server", "--collect-interval", "86400")
BUCKET = "bucket"
POOL = [random.Random(seed).randbytes(size) for seed, size in enumerate((30_000, 100_000, 400_000))]
"""Contents that many put, at times when nothing else names them."""
LONG = 1_500_000
KEYS = 4
WRITERS = 3
PATIENCE_S = 120.0

T = TypeVar("T")


class Progress:
    """What happened until now, and waiting for more of it."""

    def __init__(self) -> None:
        self.writes = self.cycles = self.deleted = self.slow = 0
        self.over = False
        self.problem = ""
        self._news = asyncio.Condition()

    async def more(self, writes: int = 0, cycles: int = 0, slow: int = 0) -> None:
        """Wait until so many more of each were seen (or all is over)."""
        goal = (self.writes + writes, self.cycles + cycles, self.slow + slow)

        def reached() -> bool:
            seen = (self.writes, self.cycles, self.slow)
            return self.over or all(count >= wanted for count, wanted in zip(seen, goal, strict=True))

        try:
            async with asyncio.timeout(PATIENCE_S), self._news:
                await self._news.wait_for(reached)
        except TimeoutError:
            seen = (self.writes, self.cycles, self.slow)
            raise AssertionError(f"waited for {goal} in vain; there are {seen}; last: {self.problem}") from None

    async def note(self, writes: int = 0, slow: int = 0, cycles: int = 0, deleted: int = 0, over: bool = False) -> None:
        """Something happened."""
        async with self._news:
            self.writes, self.slow = self.writes + writes, self.slow + slow
            self.cycles, self.deleted = self.cycles + cycles, self.deleted + deleted
            self.over = self.over or over
            self._news.notify_all()


class Writer:
    """Changes keys of its own, one thing after the other.

    ``acknowledged`` are the versions, with the digests of their contents, that must be there; ``unsure`` are keys for
    which something did not end well.
    """

    def __init__(self, name: str, store: Store, progress: Progress, seed: int) -> None:
        self.store = store
        self.acknowledged: dict[tuple[str, str], str] = {}
        self.unsure: set[str] = set()
        self._keys = [f"{name}/{number}" for number in range(KEYS)]
        self._progress = progress
        self._rng = random.Random(seed)

    async def run(self) -> None:
        """Until all is over. What finds a hole raises IntegrityError."""
        steps = (
            *(self._put, self._put, self._reuse, self._reuse, self._copy, self._restore, self._restore),
            *(self._move, self._delete, self._remove),
        )
        while not self._progress.over:
            key = self._rng.choice(self._keys)
            try:
                await self._rng.choice(steps)(key)
                await self._read()
            except (errors.NotFound, IndexError):  # of a version that is to be copied, or restored
                pass
            except errors.Unavailable:
                self.unsure.add(key)
            await self._progress.note(writes=1)

    async def run_slowly(self) -> None:
        """The same with writes that sleep through two cycles before they commit, some of them in parts."""
        while not self._progress.over:
            key = self._rng.choice(self._keys)
            try:
                await self._rng.choice((self._upload, self._parts))(key)
                await self._read()
            except errors.Unavailable:
                self.unsure.add(key)  # it may be told that it was too slow
            else:
                await self._progress.note(slow=1)

    def _made(self, version: ObjectVersion) -> None:
        self.acknowledged[version.key, version.version_id] = version.etag

    async def _put(self, key: str) -> None:
        data = self._rng.randbytes(self._rng.choice((9_000, 20_000, 300_000)))
        self._made(await self.store.put_stream(BUCKET, key, data))

    async def _reuse(self, key: str) -> None:
        self._made(await self.store.put_stream(BUCKET, key, self._rng.choice(POOL)))

    async def _copy(self, key: str) -> None:
        version = await self._any()
        self._made(await self.store.copy(BUCKET, version.key, BUCKET, key, version_id=version.version_id))

    async def _restore(self, key: str) -> None:
        old = self._rng.choice([v for v in await self.store.client.versions(BUCKET, key) if not v.is_delete_marker])
        self._made(await self.store.restore(BUCKET, key, old.version_id))

    async def _move(self, key: str) -> None:
        source = self._rng.choice(self._keys)
        if source != key:
            self._made(await self.store.copy(BUCKET, source, BUCKET, key))
            self.unsure.add(source)
            await self._remove_all(source)

    async def _delete(self, key: str) -> None:
        await self.store.client.delete_object(BUCKET, key)

    async def _remove(self, key: str) -> None:
        version = self._rng.choice(await self.store.client.versions(BUCKET, key))
        await self._remove_one(version)

    async def _remove_all(self, key: str) -> None:
        for version in await self.store.client.versions(BUCKET, key):
            await self._remove_one(version)

    async def _remove_one(self, version: ObjectVersion) -> None:
        self.unsure.add(version.key)
        self.acknowledged.pop((version.key, version.version_id), None)
        await self.store.client.remove_version(BUCKET, version.key, version.version_id)

    async def _upload(self, key: str) -> None:
        async with self.store.upload(BUCKET, key) as upload:
            await upload.write(self._rng.randbytes(LONG))
            await self._progress.more(cycles=2)
            await upload.write(self._rng.choice(POOL))
            self._made(await upload.commit())

    async def _parts(self, key: str) -> None:
        pieces = [self._rng.randbytes(300_000), self._rng.choice(POOL), self._rng.randbytes(LONG)]
        upload_id = await parts.begin(self.store, BUCKET, key)
        for number, piece in enumerate(pieces):
            await parts.put_part(self.store, upload_id, number + 1, piece)
            if number < 2:
                await self._progress.more(cycles=2)
        self._made(await parts.complete(self.store, upload_id))

    async def _any(self) -> ObjectVersion:
        key = self._rng.choice(self._keys)
        return self._rng.choice([v for v in await self.store.client.versions(BUCKET, key) if not v.is_delete_marker])

    async def _read(self) -> None:
        try:
            version = await self._any()
        except (errors.NotFound, IndexError):
            return
        try:
            await read_all(self.store, version)
        except errors.IntegrityError:
            # A removal whose outcome was unknown may have taken effect since, and two cycles passed.
            if await self._is_there(version):
                raise

    async def _is_there(self, version: ObjectVersion) -> bool:
        async def look() -> bool:
            with contextlib.suppress(errors.NotFound):
                await self.store.client.get_object(BUCKET, version.key, version_id=version.version_id)
                return True
            return False

        return await patiently(look)


async def read_all(store: Store, version: ObjectVersion) -> None:
    """Read and verify all of a version; nodes that are away are waited for. Raises IntegrityError."""

    async def read() -> None:
        hasher = blake3()
        async for piece in store.stream(version):
            hasher.update(piece)
        assert hasher.hexdigest() == version.etag

    await patiently(read)


async def until(ask: Callable[[], Awaitable[T]], true: Callable[[T], bool]) -> T:
    """Ask again and again until the answer is what is waited for."""
    deadline = time.monotonic() + PATIENCE_S
    while not true(found := await ask()):
        assert time.monotonic() < deadline, f"waited in vain; last: {found}"
        await asyncio.sleep(0.05)
    return found


async def patiently(work: Callable[[], Awaitable[T]]) -> T:
    """Try again and again while nodes are away, or too busy to answer in time; what comes of it."""

    async def once() -> tuple[T] | str:
        try:
            return (await work(),)
        except errors.Unavailable as problem:
            return repr(problem)

    found = await until(once, lambda found: isinstance(found, tuple))
    assert isinstance(found, tuple)
    return found[0]


async def collect(store: Store, progress: Progress) -> None:
    """One collection after the other until all is over."""
    while not progress.over:
        cycles: list[Cycled] = []
        try:
            async with workers_of(store) as meet:
                await run_cycles(store.client, meet, grace_s=0.1, on_cycle=cycles.append)
        except errors.ObjmetaError as problem:
            progress.problem = repr(problem)  # a node is away
        for cycle in cycles:
            if not cycle.complete:
                progress.problem = f"{cycle.problem} {cycle.unreachable}"
            await progress.note(cycles=cycle.complete, deleted=cycle.deleted)


async def versions_of(store: Store) -> list[ObjectVersion]:
    """All versions that have content."""
    page = await patiently(lambda: store.client.list_versions(BUCKET, limit=1000))
    assert page.continuation is None
    return [version for version in page.versions if not version.is_delete_marker]


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_nothing_that_is_named_is_collected_while_nodes_are_killed_and_all_else_is(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path / "cluster", nodes=3, command=COMMAND)
    with contextlib.closing(cluster):
        await asyncio.to_thread(cluster.open, PATIENCE_S)
        stores = [await open_store(",".join(cluster.endpoints)) for _ in range(3)]
        await stores[0].client.create_bucket(BUCKET)
        progress = Progress()
        writers = [Writer(f"writer-{number}", stores[number % 2], progress, number) for number in range(WRITERS)]
        slow = [Writer(f"slow-{number}", stores[number % 2], progress, 100 + number) for number in range(2)]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(collect(stores[2], progress))
            for writer in writers:
                tasks.create_task(writer.run())
            for writer in slow:
                tasks.create_task(writer.run_slowly())
            for node_id in cluster.node_ids:
                await progress.more(writes=20, cycles=3)
                await asyncio.to_thread(cluster.kill, node_id)
                await progress.more(writes=10)
                cluster.start(node_id)
                await asyncio.to_thread(cluster.wait_ready, (node_id,), PATIENCE_S)
            await progress.more(writes=10, cycles=3, slow=1)
            await progress.note(over=True)
        assert progress.deleted > 0
        await check_all(stores[0], [*writers, *slow])
        await check_quiet(cluster, stores[2], {key for writer in (*writers, *slow) for key in writer.unsure})
        for store in stores:
            await store.close()


async def check_all(store: Store, writers: list[Writer]) -> None:
    """Every version that was acknowledged is there, and every one that is there can be read."""
    there = {(version.key, version.version_id): version for version in await versions_of(store)}
    for writer in writers:
        for name, etag in writer.acknowledged.items():
            assert there[name].etag == etag
    for version in there.values():
        await read_all(store, version)


async def check_quiet(
    cluster: LocalCluster, store: Store, unsure: set[str], node_ids: tuple[int, ...] = (1, 2, 3)
) -> None:
    """In the end each of these nodes, the members, has what live versions need, and nothing else."""
    await patiently(lambda: parts.forget_old(store.client, age_s=0))
    for key in unsure:
        # What a minority accepted last keeps its chunks until the object is written again (docs/collection.md).
        await patiently(lambda key=key: store.put_stream(BUCKET, key, b""))  # type: ignore[misc]
    for node_id in node_ids:
        # A node that missed a removal names what it still has until its registers are repaired: every ten minutes, and
        # at its start.
        await asyncio.to_thread(cluster.stop, node_id)
        cluster.start(node_id)
        await asyncio.to_thread(cluster.wait_ready, (node_id,), PATIENCE_S)
    nodes = [Upkeep(cluster.endpoint(node_id)) for node_id in node_ids]
    live = await versions_of(store)
    wanted: set[Chunk] = {chunk for version in live for chunk in await store.chunks_of(version)}

    async def wrong() -> list[str]:
        try:
            async with workers_of(store) as meet:
                done = await run_cycles(store.client, meet, grace_s=0.0)
            for node in nodes:
                await node.start(REPAIR, 5.0)
            held = [{each.digest for each in await node.held(b"", 5000, 5.0)} for node in nodes]
        except errors.Unavailable as problem:
            return [repr(problem)]
        need = {chunk.digest for chunk in wanted}
        return [f"{len(need - has)} missing, {len(has - need)} too many; {done}" for has in held if has != need]

    assert await until(wrong, lambda found: not found) == []
    length = sum(chunk.length for chunk in wanted)
    for node in nodes:
        told = await patiently(lambda node=node: node.status(5.0))  # type: ignore[misc]
        assert (told.chunks, told.chunk_bytes, told.damaged) == (len(wanted), length, 0)
        assert length <= told.stored_bytes <= 2 * length + (1 << 20)  # packs may be half empty
        await node.close()
    fsck = [sys.executable, "-m", "gateway", "--store", ",".join(map(cluster.endpoint, node_ids)), "fsck", "--deep"]

    async def check() -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(subprocess.run, fsck, capture_output=True, text=True, check=False)

    # It counts no copies of a node that is too busy to answer in time, and says so.
    checked = await until(check, lambda done: "does not answer" not in done.stderr)
    assert checked.returncode == 0, checked.stdout + checked.stderr
