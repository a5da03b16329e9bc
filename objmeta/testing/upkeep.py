"""What a store does to itself while clients use it: its members change, deleted registers are erased, gaps are mended.

The real coordinator, eraser and repairer run here, on the engines of the simulated proposers, several at once and each
cancelled at any message, as when its process crashes; what one of them leaves half done another takes up.  Which of
them a run has, and which faults that belong to them (lost disks, slow disks, clocks that jump), is drawn once per seed.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from objmeta.core.ballot import ZERO
from objmeta.core.configuration import OUTSIDE, Configuration
from objmeta.core.messages import TOMBSTONE, Row
from objmeta.errors import Conflict, ObjmetaError
from objmeta.model.names import OBJECTS
from objmeta.objects.context import Context
from objmeta.objects.fences import BucketFences
from objmeta.register.copying import CopySettings, FenceOf
from objmeta.register.erasing import ErasureSettings
from objmeta.register.membership import Coordinator, MayLeave
from objmeta.register.mending import RepairSettings
from objmeta.testing.checkers import Violation
from objmeta.testing.world import Interrupted, Proposer, World

_PATIENCE_S = 60.0
"""In which each of these must come to its end once all faults are gone."""
_PASSES_MAX = 12


class Stuck(Exception):
    """Upkeep did not come to its end although everything was well again."""


@dataclass(frozen=True, slots=True)
class UpkeepFaults:
    """What one run has."""

    changes: int = 0
    """Changes of members that are begun."""
    erases: bool = False
    repairs: bool = False
    loses_disks: bool = False
    slow_disks: bool = False
    clocks_jump: bool = False
    interval_s: float = 0.1
    """Mean time between two beginnings of the same kind."""
    grace_s: float = 0.0

    @staticmethod
    def draw(rng: random.Random) -> UpkeepFaults:
        """Of one run."""
        changes = rng.choice((0, 0, 0, 1, 2, 4))
        return UpkeepFaults(
            changes=changes,
            erases=rng.random() < 0.45,
            repairs=rng.random() < 0.3,
            loses_disks=changes > 0 and rng.random() < 0.4,
            slow_disks=rng.random() < 0.25,
            clocks_jump=rng.random() < 0.3,
            interval_s=rng.choice((0.02, 0.1, 0.3)),
            grace_s=rng.choice((0.0, 0.0, 0.2)),
        )


class Upkeep:
    """The upkeep of one world."""

    def __init__(self, world: World, has_buckets: bool) -> None:
        self.world = world
        self._has_buckets = has_buckets
        self._rng = world.random("upkeep")
        self.faults = UpkeepFaults.draw(self._rng)
        self._next_id = max(world.nodes) + 1
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._changing = 0
        self._drawn: list[tuple[int, frozenset[int]]] = []
        """The epoch and the new members of each change that was ever begun: it may be chosen while the epoch lasts."""
        self.may_leave: Callable[[Proposer], MayLeave | None] = lambda proposer: None
        """Says when members that leave may do so, for a coordinator of this proposer."""
        self.completed = 0
        """Changes of members that came to their end."""
        world.erasure = ErasureSettings(
            names_per_batch=self._rng.choice((1, 2, 100)),
            answer_s=self._rng.choice((0.3, 1.0)),
            grace_s=self.faults.grace_s,
            promises_min=self._rng.choice((1, 1000)),
        )
        for proposer in world.proposers:
            proposer.engine.eraser.settings = world.erasure
        world.note(f"{self.faults}, {world.erasure}")

    # -- While things break -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Go on until cancelled."""
        faults = self.faults
        loops: list[Coroutine[Any, Any, None]] = []
        if faults.changes:
            loops.append(self._repeat(self._change_members, faults.changes))
        if faults.erases:
            loops.append(self._repeat(self._erase))
        if faults.repairs:
            loops.append(self._repeat(self._repair))
        if faults.slow_disks:
            loops.append(self._repeat(self._slow_down))
        if faults.clocks_jump:
            loops.append(self._repeat(self._jump))
        try:
            await asyncio.gather(*loops)
        finally:
            for task in list(self._tasks):
                task.cancel()

    async def _repeat(self, work: Callable[[], Awaitable[object]], times: int = 1_000_000) -> None:
        """Begin ``work`` again and again, at most two at a time: the one before may be a zombie."""
        mine: list[asyncio.Task[None]] = []
        for _ in range(times):
            await asyncio.sleep(self._rng.expovariate(1 / self.faults.interval_s))
            mine = [task for task in mine if not task.done()]
            if len(mine) < 2:
                task = self.world.loop.create_task(self._attempt(work))
                mine.append(task)
                self._tasks[task] = None
                task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)

    async def _attempt(self, work: Callable[[], Awaitable[object]]) -> None:
        try:
            await work()
        except (ObjmetaError, Interrupted) as error:
            self.world.note(f"upkeep: {error!r}")

    def _proposer(self) -> Proposer | None:
        up = [proposer for proposer in self.world.proposers if proposer.up]
        return self._rng.choice(up) if up else None

    def _crash_after_s(self) -> float | None:
        """When the process that does the work is gone, None for never."""
        draw = self._rng.random()
        return None if draw < 0.4 else self._rng.random() * (0.01 if draw < 0.6 else 0.3)

    # -- Members ------------------------------------------------------------------------------------------------------

    def _coordinator(self, proposer: Proposer, timeout_s: float) -> Coordinator:
        settings = CopySettings(page_names=self._rng.choice((1, 2, 100)), timeout_s=timeout_s)
        fence_of = self._fence_of(proposer, timeout_s)
        return self.world.mutation.coordinator(
            proposer.engine, self._rng, fence_of, settings, may_leave=self.may_leave(proposer)
        )

    def _fence_of(self, proposer: Proposer, timeout_s: float) -> FenceOf | None:
        if not self._has_buckets:
            return None
        context = Context(proposer.engine, lambda: 0, lambda: self._rng.randbytes(16), timeout_s, True)
        return BucketFences(context).fence_of

    async def _change_members(self) -> None:
        proposer = self._proposer()
        if proposer is None:
            return
        if self.faults.loses_disks and self._rng.random() < 0.5:
            self._lose_disk()
        self._changing += 1
        coordinator = self._coordinator(proposer, 1.0)
        try:
            await proposer.run(self._change_and_finish(coordinator), self._crash_after_s())
            self.completed += 1
        finally:
            self._changing -= 1

    async def _change_and_finish(self, coordinator: Coordinator) -> None:
        if self._rng.random() < 0.8:
            current = await coordinator.current(1.0)
            if not current.configuration.is_joint:
                add, remove = self._draw_change(current.configuration)
                await coordinator.begin(add, remove, self._prepare, 1.0)
        await coordinator.finish()

    def _draw_change(self, configuration: Configuration) -> tuple[dict[int, str], tuple[int, ...]]:
        (members,) = configuration.member_sets
        lost = [a for a in members if self.world.nodes[a].lost]
        size = self._rng.choice((1, 2, 3, 3, 4, 5))
        keep = self._rng.sample([a for a in members if a not in lost], self._rng.randint(0, len(members) - len(lost)))
        keep = keep[:size]
        remove = tuple(a for a in members if a not in keep)
        add = range(self._next_id, self._next_id + size - len(keep))
        self._next_id += len(add)
        self._drawn.append((configuration.epoch, frozenset((*keep, *add))))
        self.world.note(f"upkeep: members {members}: add {list(add)}, remove {remove}")
        return {node: f"node{node}:1" for node in add}, remove

    async def _prepare(self, node: int, address: str, configuration: Configuration) -> None:
        await asyncio.sleep(self.world.network.delay())
        assert configuration.epoch == OUTSIDE
        self.world.make_node(configuration, node)

    def _lose_disk(self) -> None:
        """Of a member, if no other is lost and nobody is just choosing new members, so that a majority remains.

        A majority must also remain of the members that a change would have which was begun under this epoch by a
        process that is gone: some acceptor may hold it, and whoever comes next completes it.
        """
        newest = self.world.watch.newest
        if self._changing or newest.is_joint:
            return
        for members in newest.member_sets:
            if len(members) < 3 or any(self.world.nodes[a].lost for a in members):
                return
        node = self._rng.choice([a for a, node in self.world.nodes.items() if node.up] or [0])
        begun = [members for epoch, members in self._drawn if epoch == newest.epoch]
        if any(node in members and len(members) < 3 for members in begun):
            return
        if node and all(node in members for members in newest.member_sets):
            self.world.note(f"A{node} loses its disk")
            self.world.nodes[node].lost = True
            self.world.nodes[node].crash(self._rng, True)

    # -- Erasure, repair, clocks, disks -------------------------------------------------------------------------------

    async def _erase(self) -> None:
        proposer = self._proposer()
        if proposer is not None:
            eraser = proposer.engine.eraser
            for _ in range(self._rng.choice((1, 2, 3))):
                await proposer.run(eraser.run_pass(), self._crash_after_s())

    async def _repair(self) -> None:
        proposer = self._proposer()
        if proposer is not None:
            members = proposer.engine.quorums.members
            acceptor = self._rng.choice(members)
            others = [a for a in members if a != acceptor]
            if not others:
                return
            repairer = self._repairer(proposer, acceptor, 0.5)
            if self._rng.random() < 0.5:  # one page has all changes of a run
                work = repairer.catch_up(dict.fromkeys(others, 0), dict.fromkeys(others, 1))
            else:
                work = repairer.repair(others)
            await proposer.run(work, self._crash_after_s())

    def _repairer(self, proposer: Proposer, acceptor: int, timeout_s: float) -> Any:
        settings = RepairSettings(page_names=self._rng.choice((1, 2, 100)), timeout_s=timeout_s)
        fence_of = self._fence_of(proposer, timeout_s)
        return self.world.mutation.repairer(proposer.engine, acceptor, settings, fence_of=fence_of)

    async def _slow_down(self) -> None:
        node = self.world.nodes[self._rng.choice(sorted(self.world.nodes))]
        node.slow_s = self._rng.choice((0.05, 0.5))
        await asyncio.sleep(self._rng.random() * 0.5)
        node.slow_s = 0.0

    async def _jump(self) -> None:
        process = self._rng.choice((0, *(proposer.number for proposer in self.world.proposers)))
        self.world.clock_offsets_s[process] = self._rng.choice((0.0, 1e-3, -1e-3, 3600.0, -3600.0, 1e8))

    # -- When all is well again ---------------------------------------------------------------------------------------

    @property
    def needs_all(self) -> bool:
        """Whether all acceptors must come back, for something to come to its end."""
        return bool(self.faults.changes) or self.faults.erases or self.faults.repairs

    async def settle_members(self) -> None:
        """The change under way is completed, and members whose disks were lost are replaced. Raises Stuck."""
        if not self.faults.changes:
            return
        proposer = self.world.proposers[0]
        coordinator = self._coordinator(proposer, 10.0)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                current = await coordinator.finish()
                while lost := [a for a in current.configuration.quorums.members if self.world.nodes[a].lost]:
                    add = {self._next_id + i: f"node{self._next_id + i}:1" for i in range(len(lost))}
                    with contextlib.suppress(Conflict):  # what an abandoned coordinator had begun may show up now
                        await coordinator.begin(add, lost, self._prepare, 10.0)
                    current = await coordinator.finish()
                for node in current.configuration.quorums.members:
                    if self.world.nodes[node].store.disk.durable.membership.configuration.epoch == OUTSIDE:
                        await coordinator.admit(node)
        except (TimeoutError, ObjmetaError) as error:
            raise Stuck(f"the change of members does not come to its end: {error!r}; {coordinator.progress}") from error

    async def at_end(self) -> None:
        """Nobody works any more: gaps are mended, and what is deleted is erased everywhere. Raises Stuck, Violation."""
        proposer = self.world.proposers[-1]
        if self.faults.repairs:
            await self.mend_all(proposer)
        if self.faults.erases:
            await self._erase_all(proposer)

    async def mend_all(self, proposer: Proposer) -> None:
        """Every acceptor is brought up to date. Raises Stuck, Violation."""
        members = proposer.engine.quorums.members
        for acceptor in members if len(members) > 1 else ():
            repairer = self._repairer(proposer, acceptor, 10.0)
            for _ in range(_PASSES_MAX):
                try:
                    complete = await repairer.repair([a for a in members if a != acceptor])
                    if complete or self._has_buckets:
                        break  # under the id of a bucket that is gone nothing can be mended any more
                except ObjmetaError as error:
                    self.world.note(f"repair: {error!r}")
                await asyncio.sleep(1.0)
            else:
                raise Stuck(f"acceptor {acceptor} is not brought up to date: {repairer.progress}")
            self._has_all(acceptor)

    def _has_all(self, acceptor: int) -> None:
        table = self.world.nodes[acceptor].store.disk.durable
        for name, ballot in self.world.watch.current():
            row = table.row(name)
            is_gone = self._has_buckets and name.startswith(OBJECTS)
            unknown = row is None or row.accepted == ZERO
            if unknown and self.world.watch.states(name)[-1].flag == TOMBSTONE:
                continue  # refused by the floor that another erasure has left: to be erased, it lacks nothing
            if not is_gone and (row is None or row.accepted < ballot):
                raise Violation(f"acceptor {acceptor} was brought up to date and lacks {name!r}")

    async def _erase_all(self, proposer: Proposer) -> None:
        members = proposer.engine.quorums.members
        for _ in range(_PASSES_MAX):
            collected = await proposer.engine.eraser.run_pass()
            self.world.note(f"erasing: {collected}")
            if not self._tombstones(members):
                return
            await asyncio.sleep(1.0)
        raise Stuck(f"tombstones are left although nothing stands in the way: {collected}")

    def _tombstones(self, members: tuple[int, ...]) -> list[bytes]:
        """Registers whose newest state is a tombstone; one with something above it, if on a minority, is in use."""
        newest: dict[bytes, Row] = {}
        for acceptor in members:
            for name, row in self.world.nodes[acceptor].store.disk.durable.rows.items():
                if name not in newest or row.accepted > newest[name].accepted:
                    newest[name] = row
        return [
            name
            for name, row in newest.items()
            if not name.startswith(b"~") and row.state is not None and row.state.flag == TOMBSTONE
        ]
