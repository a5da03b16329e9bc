"""One simulated cluster: acceptors on virtual disks, proposers with the real engine, and what happens to them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

import msgspec

from objmeta.core.ballot import BallotSource
from objmeta.core.configuration import Configuration, ConfigurationTag, Membership, single_set
from objmeta.core.inventory import ChangesRequest, DigestRequest, Digests, Inventory, InventoryRequest
from objmeta.core.listing import ScanAnswer, ScanRequest
from objmeta.core.messages import WRITES, Accept, Prepare, RaiseTerm, Refusal, Reply, Request, Row
from objmeta.errors import StaleGeneration
from objmeta.interfaces import ChangeReply, ChangeRequest, Changes
from objmeta.register.engine import Engine, EngineSettings
from objmeta.register.erasing import ErasureSettings
from objmeta.register.generations import Generations
from objmeta.store.steps import refusal
from objmeta.testing.disk import SimStore
from objmeta.testing.mutations import Mutation, keep_promises
from objmeta.testing.network import Faults, Network, Port, Trace
from objmeta.testing.telling import tell_configuration
from objmeta.testing.watch import Watch

T = TypeVar("T")

_BY_ITSELF = 0.3
_AT_ONCE = 0.5
_GATHERED_S = 0.02
"""Shares of the changes that come by themselves, and of those that start a message of their own; how long others gather
what comes."""
_DISK_FULL = "store_full: the simulated disk is full"


class Interrupted(Exception):
    """A piece of work was cancelled, or its proposer crashed."""


class Beside(Protocol):
    """Something that runs in the same process as an acceptor, and crashes with it."""

    def crash(self, rng: random.Random, lossy: bool) -> None: ...

    def restart(self) -> None: ...


class Node:
    """An acceptor: up or down, syncing or not. Satisfies :class:`objmeta.testing.network.Peer`."""

    def __init__(self, store: SimStore, world: World) -> None:
        self.store = store
        self.up = True
        self.full = False
        self.lost = False
        """Whether its disk was lost: it never comes back under this id."""
        self.slow_s = 0.0
        """How long a sync may take beyond the usual."""
        self.beside: list[Beside] = []
        self._world = world
        self._life = 0
        self._syncing = False
        self._unsent: list[tuple[Request, Reply, Callable[[Reply], None]]] = []

    def receive(self, tag: ConfigurationTag, request: Request, answer: Callable[[Reply], None]) -> None:
        """Run a step; the reply leaves after the sync that covers it."""
        if not self.up:
            return
        if not isinstance(request, WRITES):
            answer(self.store.read(tag, request))
            return
        if self.full and not isinstance(request, RaiseTerm):
            answer(refusal(request, Refusal.FAILED, _DISK_FULL))
            return
        reply = self._step(tag, request)
        if self.store.hooks.replies_before_sync:
            self._tell(request, reply, answer)
            self._unsent.append((request, reply, lambda _reply: None))
        else:
            self._unsent.append((request, reply, answer))
        if not self._syncing:
            self._sync()

    def scan(self, tag: ConfigurationTag, request: ScanRequest) -> ScanAnswer | None:
        """One page of durable state."""
        return self.store.scan(tag, request) if self.up else None

    def inventory(self, tag: ConfigurationTag, request: InventoryRequest) -> Inventory | None:
        """One page of what is durable."""
        return self.store.inventory(tag, request) if self.up else None

    def digests(self, tag: ConfigurationTag, request: DigestRequest) -> Digests | None:
        """Digests of what is durable."""
        return self.store.digests(tag, request) if self.up else None

    def changes(self, request: ChangesRequest) -> Changes | None:
        """It keeps no list of them, so whoever asks must read everything."""
        return Changes((), 0, reload=True) if self.up else None

    def crash(self, rng: random.Random, lossy: bool) -> None:
        """Stop; unless ``lossy``, everything written reaches the disk though nobody was told."""
        disk = self.store.disk
        waiting = len(disk.waiting)
        survivors = rng.choice((0, 0, rng.randint(0, waiting))) if lossy else waiting
        self.up = False
        self._life += 1
        self._syncing = False
        self._unsent.clear()
        self._world.watch.on_durable(self.store.acceptor_id, disk.crash(survivors))
        self._world.watch.on_restart(self.store.acceptor_id)
        for each in self.beside:
            each.crash(rng, lossy)

    def restart(self) -> None:
        """Come back with what is durable, if anything is."""
        self.up = not self.lost
        for each in self.beside if self.up else ():
            each.restart()

    def _step(self, tag: ConfigurationTag, request: Request) -> Reply:
        if not isinstance(request, Prepare | Accept):
            return self.store.apply(tag, request)
        table = self.store.disk.volatile
        before = table.row(request.name) or Row()
        reply = self.store.apply(tag, request)
        after = table.row(request.name) or Row()
        self._world.watch.on_step(self.store.acceptor_id, table.membership.configuration, request, reply, before, after)
        return reply

    def _sync(self) -> None:
        self._syncing = True
        delay = self._world.disk_rng.uniform(0.0001, self._world.network.faults.sync_s_max + self.slow_s)
        self._world.loop.call_later(delay, self._synced, self._life, len(self.store.disk.waiting))

    def _synced(self, life: int, steps: int) -> None:
        if life != self._life:
            return
        self._world.watch.on_durable(self.store.acceptor_id, self.store.disk.sync(steps))
        leaving, self._unsent = self._unsent[:steps], self._unsent[steps:]
        for request, reply, answer in leaving:
            self._tell(request, reply, answer)
        self._syncing = False
        if self.store.disk.waiting:
            self._sync()

    def _tell(self, request: Request, reply: Reply, answer: Callable[[Reply], None]) -> None:
        self._world.watch.on_told(self.store.acceptor_id, request, reply)
        answer(reply)


class Proposer:
    """A process with an engine; it can crash, which ends everything it was doing, and come back as another life."""

    def __init__(self, number: int, world: World, settings: EngineSettings, own_acceptor: int | None) -> None:
        self.number = number
        self._own_acceptor = own_acceptor
        self._world = world
        self._settings = settings
        self._membership = Membership(world.configuration)
        self._rng = world.random(f"proposer {number}")
        self._ways = world.random(f"ways of proposer {number}")
        self._message: list[tuple[ChangeRequest, float, asyncio.Future[ChangeReply]]] = []
        """Changes that will come together."""
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self.lives = 0
        self.start()

    def start(self) -> None:
        """A new life: new incarnation, nothing remembered."""
        self.up = True
        self.lives += 1
        self.port = Port(self._world.network, self.number)
        incarnation = self._rng.getrandbits(64)
        if self._world.mutation.incarnations_repeat:
            incarnation = 1
        self.engine = Engine(
            self._membership,
            self.port,
            BallotSource(self.number, incarnation),
            random.Random(self._rng.getrandbits(64)),
            self._settings,
            own_acceptor=self._own_acceptor,
            round_factory=self._world.mutation.rounds(),
            first_write_factory=self._world.mutation.first_write,
            on_adopt=self._on_adopt,
        )
        self.port.adopt(self._membership)
        ids = self._world.random(f"generations {self.number} {self.lives}")
        if self._world.mutation.keeps_promises:
            keep_promises(self.engine)
        self.engine.generations = Generations(self.engine, lambda: ids.randbytes(16))
        self.engine.eraser = self._world.mutation.eraser(self.engine, self._world.erasure)

    def _on_adopt(self, membership: Membership) -> None:
        self._world.note(f"P{self.number} adopts {tell_configuration(membership.configuration)}")
        self._membership = membership

    def crash(self) -> None:
        """End this life; whoever waits for it gets no answer."""
        self.up = False
        self.port.open = False
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()
        self._message.clear()

    async def change(self, request: ChangeRequest, timeout_s: float) -> ChangeReply:
        """A change as it comes to a node: by itself, or in one message with what others ask for meanwhile."""
        way = self._ways.random()
        generation = request.generation or self.engine.generations.known()
        if way < _BY_ITSELF or not generation:
            return await self.engine.change(request, timeout_s)
        answer: asyncio.Future[ChangeReply] = self._world.loop.create_future()
        self._message.append((msgspec.structs.replace(request, generation=generation), timeout_s, answer))
        if len(self._message) == 1:
            self._world.loop.call_later(0.0 if way < _AT_ONCE else _GATHERED_S, self._send_on)
        try:
            return await answer
        except StaleGeneration:
            if request.generation:
                raise
        return await self.engine.change(request, timeout_s)

    def _send_on(self) -> None:
        message, self._message = self._message, []
        requests, timeouts_s = [request for request, _, _ in message], [timeout_s for _, timeout_s, _ in message]

        def answered(place: int, result: ChangeReply | Exception) -> None:
            answer = message[place][2]
            if answer.done():
                return  # whoever asked has gone
            if isinstance(result, Exception):
                answer.set_exception(result)
            else:
                answer.set_result(result)

        if self.up and message:
            task = self._world.loop.create_task(self.engine.change_all(requests, timeouts_s, answered))
            self._tasks[task] = None
            task.add_done_callback(lambda _: self._tasks.pop(task, None))

    async def run(self, work: Coroutine[Any, Any, T], cancel_after_s: float | None = None) -> T:
        """Do something in this life; raises Interrupted if the life, or ``cancel_after_s``, ends first."""
        task = self._world.loop.create_task(work)
        self._tasks[task] = None
        if cancel_after_s is not None:
            self._world.loop.call_later(cancel_after_s, task.cancel)
        try:
            return await task
        except asyncio.CancelledError:
            me = asyncio.current_task()
            if task.cancelled() and me is not None and not me.cancelling():
                raise Interrupted from None
            raise
        finally:
            task.cancel()
            self._tasks.pop(task, None)


class World:
    """Everything in one run; made inside its event loop."""

    def __init__(self, seed: int, mutation: Mutation, trace: Trace | None = None, watchful: bool = True) -> None:
        self.seed = seed
        self.mutation = mutation
        self.loop = asyncio.get_running_loop()
        self.trace: Trace | None = None
        if trace is not None:
            write = trace
            self.trace = lambda line: write(f"{self.loop.time():12.6f} {line}")
        rng = self.random("world")
        self.disk_rng = self.random("disk")
        faults = Faults.draw(rng)
        members = tuple(range(1, rng.choice((3, 3, 3, 3, 3, 4, 5, 1)) + 1))
        self.configuration: Configuration = single_set(rng.randbytes(16), members)
        self.nodes = {a: Node(SimStore(a, self.configuration, mutation.acceptor()), self) for a in members}
        self.network = Network(self.configuration, self.nodes, self.random("network"), faults, self.trace)
        self._tables = {a: node.store.disk.durable for a, node in self.nodes.items()}
        self.watch = Watch(self.configuration, self._tables, watchful)
        self.erasure = ErasureSettings()
        settings = EngineSettings(
            round_timeout_s=rng.choice((0.05, 0.2)),
            straggler_wait_s=rng.choice((0.0, 0.005)),
            conflict_wait_s=0.01,
            backoff_s_min=0.002,
            backoff_s_max=0.05,
            fast_reads_max=rng.choice((0, 1, 3)),
        )
        # Proposers without an acceptor of their own; nodes; several processes in front of one acceptor.
        homes: Callable[[int], int | None] = rng.choice((lambda _: None, lambda number: number, lambda _: 1))
        self.proposers = [
            Proposer(number, self, settings, homes(number) if homes(number) in members else None)
            for number in range(1, rng.choice((2, 2, 3)) + 1)
        ]
        self.clock_offsets_s: dict[int, float] = {}
        self._chaos_rng = self.random("chaos")
        self._ticks = 0
        self.on_made: Callable[[int], None] = lambda acceptor: None
        """Told of every acceptor that is made later."""
        self.note(f"seed {seed}, {faults}, {len(members)} acceptors, {len(self.proposers)} proposers, {settings}")

    def random(self, purpose: str) -> random.Random:
        """A stream of its own for each purpose, so that one more draw here changes nothing there."""
        return random.Random(f"{self.seed}/{purpose}")

    def make_node(self, configuration: Configuration, acceptor: int) -> None:
        """A new acceptor with an empty store, unless it has been made before."""
        if acceptor not in self.nodes:
            self.note(f"A{acceptor} is made")
            node = self.nodes[acceptor] = Node(SimStore(acceptor, configuration, self.mutation.acceptor()), self)
            self._tables[acceptor] = node.store.disk.durable
            self.on_made(acceptor)

    def wall_clock_us(self, process: int) -> int:
        """What the clock of a process shows: time for people, which jumps."""
        return int((self.loop.time() + self.clock_offsets_s.get(process, 0.0)) * 1e6)

    def tick(self) -> float:
        """The order of what clients see; finer than time, in which much happens at once."""
        self._ticks += 1
        return float(self._ticks)

    def note(self, line: str) -> None:
        """A line of the trace."""
        if self.trace is not None:
            self.trace(line)

    # -- Chaos --------------------------------------------------------------------------------------------------------

    async def chaos(self) -> None:
        """Break and mend things until cancelled."""
        rng, faults = self._chaos_rng, self.network.faults
        actions: list[Callable[[], None]] = []
        if faults.crash_acceptors:
            actions.append(self._crash_acceptor)
        if faults.crash_proposers:
            actions.append(self._crash_proposer)
        if faults.cut_links:
            actions.append(self._cut_links)
        if faults.full_disks:
            actions.append(self._fill_disk)
        if not actions or not faults.chaos_interval_s:
            return
        while True:
            await asyncio.sleep(rng.expovariate(1 / faults.chaos_interval_s))
            rng.choice(actions)()

    def heal(self, all_up: bool = False) -> None:
        """No more faults; sometimes a minority stays down, which must not matter."""
        self.note("heal")
        self.network.heal()
        down = [a for a, node in self.nodes.items() if not node.up]
        spared = (len(self.nodes) - 1) // 2 if self._chaos_rng.random() < 0.5 and not all_up else 0
        if spared and not down:
            down = self._chaos_rng.sample(sorted(self.nodes), spared)
            for a in down:
                self.nodes[a].crash(self._chaos_rng, True)
        for a in down[spared:]:
            self.nodes[a].restart()
        self.note(f"acceptors {down[:spared]} stay down")
        for node in self.nodes.values():
            node.full = False
            node.slow_s = 0.0
        for proposer in self.proposers:
            if not proposer.up:
                proposer.start()

    def _crash_acceptor(self) -> None:
        a = self._chaos_rng.choice(sorted(self.nodes))
        node = self.nodes[a]
        if not node.up:
            return
        lossy = self.network.faults.lossy_crashes and self._chaos_rng.random() < 0.8
        self.note(f"crash A{a} {'lossy' if lossy else 'kept'}")
        node.crash(self._chaos_rng, lossy)
        self.loop.call_later(self._pause(), self._restart_acceptor, a)

    def _restart_acceptor(self, a: int) -> None:
        # A minority that is to stay down after the faults stays down.
        if self.network.faults.chaos_interval_s and not self.nodes[a].up:
            self.note(f"restart A{a}")
            self.nodes[a].restart()

    def _crash_proposer(self) -> None:
        proposer = self._chaos_rng.choice(self.proposers)
        if proposer.up:
            self.note(f"crash P{proposer.number}")
            proposer.crash()
            self.loop.call_later(self._pause(), self._restart_proposer, proposer)

    def _restart_proposer(self, proposer: Proposer) -> None:
        if not proposer.up:
            self.note(f"restart P{proposer.number}")
            proposer.start()

    def _cut_links(self) -> None:
        rng = self._chaos_rng
        links = [(p.number, a, way) for p in self.proposers for a in sorted(self.nodes) for way in (True, False)]
        cut = rng.sample(links, rng.randint(1, max(1, len(links) // 3)))
        self.note(f"cut {cut}")
        self.network.cuts.update(cut)
        self.loop.call_later(self._pause(), self.network.cuts.difference_update, cut)

    def _fill_disk(self) -> None:
        a = self._chaos_rng.choice(sorted(self.nodes))
        self.note(f"disk of A{a} is full")
        self.nodes[a].full = True
        self.loop.call_later(self._pause(), self._empty_disk, a)

    def _empty_disk(self, a: int) -> None:
        self.nodes[a].full = False

    def _pause(self) -> float:
        return self._chaos_rng.choice((0.001, 0.05, 0.5)) * self._chaos_rng.random()
