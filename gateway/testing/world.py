"""One run: a simulated cluster with data, clients, and collectors that race them."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import ExitStack, aclosing, suppress
from typing import Any
from unittest import mock

import msgspec
from blake3 import blake3

from gateway.blobs.placement import homes
from gateway.collection.collect import CycleName
from gateway.collection.cycles import Cycled, Workers, run_cycle
from gateway.testing.data import CHUNK_BYTES, DataClient, Habits, sized
from gateway.testing.keeping import Keeping, may_leave, place, wanted
from gateway.testing.mutations import DataMutation
from gateway.testing.named import Named, Run
from gateway.testing.nodes import SILENCE_S, DataNetwork, DataNode, link
from gateway.upkeep.repairing import Want
from objmeta import Chunk, Marked, errors
from objmeta.core.configuration import ConfigurationTag
from objmeta.core.listing import ScanAnswer, ScanRequest
from objmeta.model.changes import ConfigureBucket
from objmeta.objects.marks import marks
from objmeta.register.membership import MayLeave
from objmeta.testing.checkers import Violation
from objmeta.testing.network import Trace
from objmeta.testing.upkeep import Upkeep
from objmeta.testing.workload import NoProgress
from objmeta.testing.world import Interrupted, Node, Proposer, World

BUCKET = "bucket"
KEYS = tuple("abcdefgh")
CHECK_S = 0.05
PATIENCE_S = 10.0
CYCLES_AT_END_MAX = 6


class DataWorld:
    """Everything in one run; made inside its event loop."""

    def __init__(self, seed: int, mutation: DataMutation, trace: Trace | None = None) -> None:
        self.mutation = mutation
        self.world = World(seed, mutation.metadata, trace, watchful=mutation.metadata.name == "none")
        world = self.world
        self.upkeep = Upkeep(world, True)
        self.upkeep.faults = dataclasses.replace(self.upkeep.faults, loses_disks=False)
        self.upkeep.may_leave = self._may_leave
        self.network = DataNetwork(world)
        self.named = Named(world, self.network.nodes)
        self._keeps = True
        for acceptor in sorted(world.nodes):
            self._make(acceptor)
        world.on_made = self._make
        self._rng = world.random("data clients")
        self._habits = Habits.draw(self._rng)
        self._contents = [self._rng.randbytes(CHUNK_BYTES) for _ in range(self._habits.contents)]
        self._keys = KEYS[: self._rng.choice((2, 4, 8))]
        self._left = self._habits.operations
        self._versions: list[tuple[str, bytes]] = []
        self._clients: dict[tuple[int, int, float], DataClient] = {}
        """By proposer, its life, and how long its operations may take."""
        self._patches = ExitStack()
        self.attempts = self.answered = self.cycles = 0
        self.leaves_out: set[int] = set()
        """Of a broken variant, where that is not to be drawn."""
        self.marking = 0
        """How many acceptors are being asked for their marks."""
        self.breaking = True
        """Whether there still are faults."""
        self.mark_s_max = self._rng.choice((0.0, 0.002, 0.1))
        self.marking_rng = world.random("marking")
        if self._rng.random() < 0.5:
            # Where less breaks, more cycles come to their end, and more is deleted.
            faults = world.network.faults
            world.network.faults = dataclasses.replace(
                faults,
                lose_request=min(faults.lose_request, 0.02),
                lose_reply=min(faults.lose_reply, 0.02),
                sync_s_max=min(faults.sync_s_max, 0.005),
                minority_accepts=min(faults.minority_accepts, 0.2),
                chaos_interval_s=faults.chaos_interval_s and max(faults.chaos_interval_s, 0.7),
            )
        world.note(f"{self._habits}, {world.network.faults}")

    def __enter__(self) -> DataWorld:
        self._patches.enter_context(sized(self.world.random("sizes")))
        for name, other in self.mutation.patches.items():
            self._patches.enter_context(mock.patch(name, other))
        return self

    def __exit__(self, *_: object) -> None:
        self._patches.close()

    def _make(self, acceptor: int) -> None:
        node = DataNode(acceptor, self.world, self.network, self._marks, self.mutation)
        node.on_asked = self.named.on_asked
        node.on_touched = lambda chunk, generation: self.named.on_touched(node, chunk, generation)
        node.place.on_delete = lambda digest, row, sweep: self.named.on_delete(node, digest, row, sweep)
        node.place.on_gone = self.named.on_gone
        self.network.nodes[acceptor] = node

        async def generation() -> int:
            return await self._neighbour(acceptor).engine.generations.newest(1.0)

        node.keeping = Keeping(node, self.network, generation, lambda: self._wanted(acceptor))
        if not self._keeps:
            node.keeping.stop()

    def _neighbour(self, acceptor: int) -> Proposer:
        """Who proposes for an acceptor. Raises Unavailable."""
        proposer = self.world.proposers[acceptor % len(self.world.proposers)]
        if not proposer.up:
            raise errors.Unavailable("the node's proposer is down")
        return proposer

    async def _wanted(self, acceptor: int) -> AsyncGenerator[Sequence[Want], None]:
        """Everything that an acceptor names, for the node's repair."""
        context = self.client_of(self._neighbour(acceptor), 1.0).client.context()
        node = self.world.nodes[acceptor]
        tag = node.store.disk.durable.membership.configuration.tag
        async with aclosing(marks(context, _AtOnce(node), tag)) as marked:
            yield await wanted(marked, self._habits.replicas)

    def _may_leave(self, proposer: Proposer) -> MayLeave | None:
        if self.mutation.leaves_at_once:
            return None
        return functools.partial(may_leave, self.network, lambda: proposer.engine.configuration.epoch)

    # -- Phases -------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """All of it. Raises Violation, NoProgress, Stuck."""
        world = self.world
        await self.ensure_bucket()  # before members change: a change that is abandoned may leave no quorum
        await self._configure_bucket()
        background = [world.loop.create_task(work) for work in (world.chaos(), self.upkeep.run())]
        await self.with_faults()
        for task in background:
            task.cancel()
        world.heal(all_up=True)
        self.breaking = False
        for node in self.network.nodes.values():
            node.full = False
        await self.upkeep.settle_members()
        self.stop_keeping()
        for proposer in world.proposers:
            await self._settle_all(self.client_of(proposer))
        await self._write_all()
        await self.upkeep.mend_all(world.proposers[0])
        await self.upkeep.at_end()
        await self.after_healing()
        world.watch.at_end()

    def stop_keeping(self) -> None:
        """No node repairs any more, nor any that is made later."""
        self._keeps = False
        for node in self.network.nodes.values():
            node.keeping.stop()

    def begin_keeping(self) -> None:
        """All nodes repair."""
        self._keeps = True
        for node in self.network.nodes.values():
            node.keeping.begin()

    async def with_faults(self) -> None:
        """Clients and collectors, while things break."""
        clients = self.world.loop.create_task(self._all_clients())
        works = (self._collector(0), self._collector(1), self._repairer(), self._observer(), self._hurt())
        tasks = [clients, *(self.world.loop.create_task(work) for work in works)]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()  # other than clients, none ends but by a violation
            await clients
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _all_clients(self) -> None:
        rngs = [self.world.random(f"data client {number}") for number in range(self._habits.clients)]
        await asyncio.gather(*map(self._client, rngs))

    async def after_healing(self) -> None:
        """Every live version can be read; when all is quiet, what nothing names is gone."""
        proposer = self.world.proposers[0]
        client = self.client_of(proposer)
        self.named.check()
        for number in range(CYCLES_AT_END_MAX):
            cycle = await self.run_cycle(proposer, PATIENCE_S)
            self.world.note(f"cycle at the end: {cycle}")
            self.named.check()
            if not cycle.complete:
                await asyncio.sleep(1.0)
            elif number >= 2 and not cycle.waiting:
                break
        else:
            raise NoProgress(f"collection does not come to its end: {cycle}")
        self.named.check_nothing_else(proposer.engine.quorums.members)
        await self._read_all(client)

    async def _settle_all(self, client: DataClient) -> None:
        for key in self._keys:
            try:
                await client.objects().versions(BUCKET, key)
            except errors.NoSuchKey:
                continue
            except errors.Unavailable as error:
                raise NoProgress(f"the versions of {key} cannot be read: {error}") from error

    async def _write_all(self) -> None:
        """Once more, so that the places of records that were left beside the chains are taken, and they are dead."""
        client = self.client_of(self.world.proposers[0])
        for key in self._keys:
            for _ in range(2):
                try:
                    await client.objects().put(BUCKET, key, data=b"last")
                except errors.UnknownOutcome as late:  # a message of before may have made it so
                    self.world.note(f"the last write of {key}: {late}")

    async def _read_all(self, client: DataClient) -> None:
        for key in self._keys:
            try:
                versions = await client.objects().versions(BUCKET, key)
            except errors.NoSuchKey:
                continue
            for version in versions:
                if version.is_delete_marker or version.is_inline:
                    continue
                data = await client.get(version, 0.0)
                if blake3(data).hexdigest() != version.etag:
                    raise Violation(f"version {version.version_id[:8]} of {key} has other bytes")

    # -- Clients ------------------------------------------------------------------------------------------------------

    async def _client(self, rng: random.Random) -> None:
        while self._left > 0:
            self._left -= 1
            await asyncio.sleep(rng.expovariate(1 / self._habits.pause_s))
            up = [proposer for proposer in self.world.proposers if proposer.up]
            if not up:
                await asyncio.sleep(0.02)
                continue
            proposer = rng.choice(up)
            client = self.client_of(proposer, self._habits.timeout_s)
            await self._try(proposer, *self._draw(client, rng))

    def _draw(self, client: DataClient, rng: random.Random) -> tuple[str, Coroutine[Any, Any, object]]:
        habits = self._habits
        key = rng.choice(self._keys)
        sleep_s = rng.random() * habits.sleep_s_max if rng.random() < habits.sleeps else 0.0
        draw = rng.random()
        if draw < habits.removals and self._versions:
            key, version_id = self._versions.pop(rng.randrange(len(self._versions)))
            return f"remove version {version_id.hex()[:8]} of {key}", client.remove_version(BUCKET, key, version_id)
        draw -= habits.removals
        if draw < habits.copies and self._versions:
            source, version_id = rng.choice(self._versions)
            named = rng.choice((None, version_id.hex()))
            work = self._copied(client, source, named, key, sleep_s)
            return f"copy {source} {named and named[:8]} to {key}", work
        draw -= habits.copies
        if draw < 0.05:
            return f"delete {key}", client.objects().delete(BUCKET, key, None)
        if draw < 0.15:
            return f"get {key}", self._read(client, key, rng.choice((0.0, 0.05)))
        contents = rng.choices(self._contents, k=rng.choice((1, 1, 2, 3)))
        between_s = rng.choice((0.0, 0.0, habits.sleep_s_max / 3))
        return f"put {key}", self._put(client, key, contents, sleep_s, between_s)

    async def _put(
        self, client: DataClient, key: str, contents: Sequence[bytes], sleep_s: float, between_s: float
    ) -> None:
        self._versions.append((key, await client.put(BUCKET, key, contents, sleep_s, between_s)))

    async def _copied(self, client: DataClient, source: str, version_id: str | None, key: str, sleep_s: float) -> None:
        self._versions.append((key, await client.copy(BUCKET, source, version_id, key, sleep_s)))

    async def _read(self, client: DataClient, key: str, pause_s: float) -> None:
        version = await client.objects().get(BUCKET, key, version_id=None, with_data=False)
        begun_s = self.world.loop.time()
        try:
            data = await client.get(version, pause_s)
        except errors.IntegrityError as hole:
            if self.named.is_live(bytes.fromhex(version.version_id)):
                raise Violation(f"a read of live version {version.version_id[:8]} of {key}: {hole}") from hole
            if self.named.is_young(begun_s):
                raise Violation(f"a reader of {version.version_id[:8]} was cut off within a cycle: {hole}") from hole
            return
        if blake3(data).hexdigest() != version.etag:
            raise Violation(f"a read of version {version.version_id[:8]} of {key} gave other bytes")

    async def ensure_bucket(self) -> None:
        """Have the bucket, through whatever happens."""
        while True:
            proposer = self.world.proposers[0]
            try:
                await self.client_of(proposer).buckets.create(BUCKET)
            except errors.AlreadyExists:
                return
            except (errors.Unavailable, errors.StoreFull):
                await asyncio.sleep(0.1)

    async def _configure_bucket(self) -> None:
        change = ConfigureBucket(self._rng.randbytes(16), replicas=self._habits.replicas)
        with suppress(errors.Unavailable, errors.StoreFull):  # then it stays at the default, or may be changed later
            await self.client_of(self.world.proposers[0]).buckets.configure(BUCKET, change)

    async def _try(self, proposer: Proposer, what: str, work: Coroutine[Any, Any, object]) -> None:
        self.attempts += 1
        self.world.note(f"P{proposer.number}: {what}")
        try:
            await proposer.run(work)
        except (errors.ObjmetaError, Interrupted) as error:
            self.world.note(f"P{proposer.number}: {what}: {error!r}")
        else:
            self.answered += 1
            self.world.note(f"P{proposer.number}: {what}: done")

    def client_of(self, proposer: Proposer, timeout_s: float = PATIENCE_S) -> DataClient:
        """A client of this proposer."""
        life = (proposer.number, proposer.lives, timeout_s)
        client = self._clients.get(life)
        if client is None:
            rng = self.world.random(f"gateway {life}")
            client = self._clients[life] = DataClient(
                self.world, self.network, self.named, proposer, rng, self._habits, timeout_s, self.mutation
            )
        return client

    def left_out(self, acceptors: Sequence[int]) -> set[int]:
        """Of a broken variant: a minority whose marks are not asked for."""
        minority = (len(acceptors) - 1) // 2
        return self.leaves_out or set(self.world.random("left out").sample(acceptors, minority if self.breaking else 0))

    # -- Disks --------------------------------------------------------------------------------------------------------

    async def _hurt(self) -> None:
        """Now and then a copy is damaged or lost, or a disk is full for a while."""
        rng = self.world.random("disks of data")
        damages, fills = rng.choice((0.0, 0.05, 0.3)), rng.random() < 0.2
        while damages or fills:
            await asyncio.sleep(rng.expovariate(1 / 0.05))
            if fills and rng.random() < 0.1:
                node = self.network.nodes[rng.choice(sorted(self.network.nodes))]
                node.full = not node.full
                self.world.note(f"disk of D{node.node_id} is {'full' if node.full else 'empty'}")
            if rng.random() < damages:
                self._damage(rng)
        await asyncio.Event().wait()

    def _damage(self, rng: random.Random) -> None:
        node_id = rng.choice(self.world.watch.newest.quorums.members)
        place = self.network.nodes[node_id].place
        digests = [digest for digest in sorted(place.rows) if place.is_settled(digest)]
        digest = rng.choice(digests) if digests else b""
        if digest and node_id in self.named.spare(digest):
            # A change to one member takes its word that it has all: what it does not know to be damaged is gone then.
            lost = rng.random() < 0.3 or self.upkeep.faults.changes > 0
            self.world.note(f"D{node_id} has {digest.hex()[:8]} {'lost' if lost else 'damaged'}")
            self.named.on_hurt(node_id, digest)
            (place.lose if lost else place.damage)(digest)

    # -- Repair -------------------------------------------------------------------------------------------------------

    async def _repairer(self) -> None:
        """Now and then a member that should have a chunk is given it, whether anything names it or not."""
        rng = self.world.random("data repair")
        if rng.random() < 0.5:
            return
        while True:
            await asyncio.sleep(rng.expovariate(1 / 0.1))
            up = [proposer for proposer in self.world.proposers if proposer.up]
            if up:
                await self._repair(rng, rng.choice(up))

    async def _repair(self, rng: random.Random, proposer: Proposer) -> None:
        giver = self.network.nodes[rng.choice(sorted(self.network.nodes))]
        if not giver.place.rows:
            return
        digest = rng.choice(sorted(giver.place.rows))
        home = rng.choice(homes(digest, list(map(place, proposer.engine.quorums.members)), 0)).node_id
        if digest not in self.network.nodes[home].place.rows:
            with suppress(errors.ObjmetaError, Interrupted):
                await proposer.run(self.bring(proposer, digest, giver.node_id, home))

    async def bring(self, proposer: Proposer, digest: bytes, giver: int, home: int) -> None:
        """Have a copy made, as repair and healing do (M1). Raises Unavailable, StaleGeneration."""
        chunk = Chunk(digest, len(self.network.nodes[giver].place.rows[digest].data))
        data = await self.network.call(giver, lambda node: node.place.get(chunk))
        generation = 0 if self.mutation.repairs_untouched else await proposer.engine.generations.newest(1.0)
        await self.network.call(home, lambda node: node.put(chunk, data, generation))
        self.world.note(f"D{home} has {digest.hex()[:8]} from D{giver}, in generation {generation}")

    # -- Collectors ---------------------------------------------------------------------------------------------------

    async def _observer(self) -> None:
        while True:
            self.named.check()
            await asyncio.sleep(CHECK_S)

    async def _collector(self, number: int) -> None:
        """Cycle after cycle; the second collector runs now and then, beside the first."""
        rng = self.world.random(f"collector {number}")
        pause_s = rng.choice((0.01, 0.05)) * (20 if number else 1)
        while True:
            await asyncio.sleep(rng.expovariate(1 / pause_s))
            up = [proposer for proposer in self.world.proposers if proposer.up]
            if not up:
                continue
            proposer = rng.choice(up)
            crash_after_s = rng.random() * 0.5 if rng.random() < 0.2 else None
            try:
                cycle = await proposer.run(self.run_cycle(proposer, 1.0), crash_after_s)
            except Interrupted:
                continue
            self.world.note(f"P{proposer.number}: {cycle}")

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something, in virtual time."""
        while not condition():  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.001)

    async def run_cycle(self, proposer: Proposer, timeout_s: float) -> Cycled:
        """One cycle, run beside this proposer."""
        collector: Any = _Collector(self, proposer, timeout_s)
        run = Run(self.world.loop.time())
        self.named.runs.append(run)
        try:
            cycle = await run_cycle(collector, collector.meet, patience_s=SILENCE_S)
        finally:
            run.ended_s = self.world.loop.time()
        self.cycles += cycle.complete
        return cycle

    async def _marks(self, acceptor: int, cycle: CycleName) -> AsyncIterator[Marked]:
        """What objmeta says that an acceptor names; read slowly, as if there were much more of it."""
        proposer = self._neighbour(acceptor)
        source = _Slowly(self, acceptor, cycle)
        context = self.client_of(proposer, 1.0).client.context()
        tag = self.world.nodes[acceptor].store.disk.durable.membership.configuration.tag
        if tag.epoch != cycle.epoch:
            raise errors.Unavailable("the members are being changed")
        async with aclosing(self.mutation.marks(context, source, tag)) as pages:
            async for page in pages:
                yield page


class _AtOnce:
    """An acceptor whose node reads what it names."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def scan(self, tag: ConfigurationTag, request: ScanRequest) -> ScanAnswer:
        await asyncio.sleep(0)
        return self._node.store.scan(tag, request)


class _Slowly:
    """An acceptor whose marks are read page by page, with pauses."""

    def __init__(self, data: DataWorld, acceptor: int, cycle: CycleName) -> None:
        self._data = data
        self._node = data.world.nodes[acceptor]
        self._cycle = cycle

    async def scan(self, tag: ConfigurationTag, request: ScanRequest) -> ScanAnswer:
        data = self._data
        data.marking += 1
        try:
            await asyncio.sleep(data.marking_rng.random() * data.mark_s_max)
        finally:
            data.marking -= 1
        if not self._node.up:
            raise errors.Unavailable("the acceptor is down")
        if self._node.store.disk.durable.generation_floor < self._cycle.floor:
            raise Violation(f"acceptor {self._node.store.acceptor_id} is asked for marks before its floor is raised")
        limit = data.marking_rng.choice((1, 2, request.limit))
        return self._node.store.scan(tag, msgspec.structs.replace(request, limit=limit))


class _Collector:
    """What :func:`run_cycle` needs of a client."""

    def __init__(self, data: DataWorld, proposer: Proposer, timeout_s: float) -> None:
        self._data = data
        self._engine = proposer.engine
        self.timeout_s = timeout_s

    async def begin_cycle(self, timeout_s: float) -> Any:
        return await self._engine.begin_cycle(timeout_s)

    async def buckets(self) -> list[Any]:
        return []

    async def meet(self) -> Workers:
        configuration = self._engine.configuration
        acceptors = configuration.quorums.members
        links = {acceptor: link(self._data.network, acceptor) for acceptor in acceptors}
        left_out = self._data.left_out(acceptors) if self._data.mutation.marks_of_majority else set()
        return Workers(configuration.epoch, links, {a: str(a) for a in acceptors if a not in left_out})
