"""The store over several disks: one acceptor in each of some directories, the proposer in this process.

Any number of processes may open the same directories, as with a single one.  A majority of the disks is enough for
everything.  One that is missing or failing answers each request by a refusal, at once, and is looked at again every few
seconds; when it is back, reads and writes bring it up to date where they meet it, and a collection does so for all.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import uuid_utils

from objmeta.config import version
from objmeta.core.configuration import OUTSIDE, Configuration, ConfigurationTag, Membership
from objmeta.core.inventory import DigestRequest, Digests, Inventory, InventoryRequest
from objmeta.core.listing import ScanAnswer, ScanRequest
from objmeta.core.messages import Fence, Record, RecordRef, Refusal, Reply, Request, State
from objmeta.errors import Conflict, InvalidArgument, ObjmetaError, StoreError, Unavailable, UnknownOutcome
from objmeta.interfaces import (
    ChangedNames,
    ChangeReply,
    ChangeRequest,
    Changes,
    Collected,
    Cycle,
    NodeStatus,
    ScanPage,
    StoreStatus,
    Watermarks,
)
from objmeta.objects.context import Context
from objmeta.register.engine import Engine
from objmeta.register.life import new_ballots
from objmeta.register.local import Acceptor, LocalTransport
from objmeta.store import disks as places
from objmeta.store.lane import Lane
from objmeta.store.sqlite import SqliteStore
from objmeta.store.steps import refusal

_LOOK_AGAIN_S: Final = 5.0
_OPENING_S: Final = 1.0
_NEWEST: Final = sys.maxsize
_BACKGROUND_TIMEOUT_S: Final = 10.0

_log = logging.getLogger(__name__)


class _Missing:
    """Stands for an acceptor whose disk cannot be used; refuses at once."""

    def __init__(self, problem: str, look_again: Callable[[], None]) -> None:
        self.problem = problem
        self._look_again = look_again

    def submit(self, tag: ConfigurationTag, request: Request, on_reply: Callable[[Reply], None]) -> None:
        self._look_again()
        refused = refusal(request, Refusal.FAILED, f"{StoreError.kind}: {self.problem}")
        asyncio.get_running_loop().call_soon(on_reply, refused)

    def submit_all(
        self, tag: ConfigurationTag, requests: Sequence[Request], on_replies: Callable[[list[Reply]], None]
    ) -> None:
        self._look_again()
        detail = f"{StoreError.kind}: {self.problem}"
        refused: list[Reply] = [refusal(request, Refusal.FAILED, detail) for request in requests]
        asyncio.get_running_loop().call_soon(on_replies, refused)

    async def scan(self, tag: ConfigurationTag, request: ScanRequest) -> ScanAnswer:
        raise Unavailable(self.problem)

    async def inventory(self, tag: ConfigurationTag, request: InventoryRequest) -> Inventory:
        raise Unavailable(self.problem)

    async def digests(self, tag: ConfigurationTag, request: DigestRequest) -> Digests:
        raise Unavailable(self.problem)

    async def changes(self, since: int, limit: int) -> Changes:
        raise Unavailable(self.problem)


class _Transport(LocalTransport):
    """Reaches the acceptors in ``acceptors``, which may change; ``on_adopt`` sees to those of a new membership."""

    def __init__(
        self, tag: ConfigurationTag, acceptors: dict[int, Acceptor], on_adopt: Callable[[Membership], None]
    ) -> None:
        super().__init__(tag, acceptors)
        self._on_adopt = on_adopt

    def adopt(self, membership: Membership) -> None:
        super().adopt(membership)
        self._on_adopt(membership)


class DiskRegisters:
    """Satisfies :class:`objmeta.interfaces.Registers`; belongs to one event loop of one process."""

    def __init__(self, directories: Sequence[Path], opened: places.Disks) -> None:
        self._opened_s = time.monotonic()
        self._given = tuple(directories)
        self._problems = dict(opened.problems)
        self._acceptors: dict[int, Acceptor] = {}
        self._stores: dict[int, SqliteStore] = {}
        self._paths: dict[int, Path] = {}
        self._looked_at: dict[int, float] = {}
        self._work: set[asyncio.Task[None]] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._mended = 0
        self._loop = asyncio.get_running_loop()
        self._rng = random.Random(os.urandom(16))
        membership = opened.membership
        for acceptor, store in opened.stores.items():
            if acceptor in membership.configuration.quorums.members:
                self._take(acceptor, store)
            else:  # a disk that was replaced
                store.close()
        self._see_to(membership)
        self._engine = Engine(
            membership,
            _Transport(membership.configuration.tag, self._acceptors, self._see_to),
            new_ballots(),
            random.Random(os.urandom(16)),
        )

    @classmethod
    async def open(cls, directories: Sequence[Path]) -> DiskRegisters:
        """Open the store in ``directories``, making it if none of them holds anything of one.

        Raises NoQuorum if too few can be used, ConfigurationMismatch, StoreError, StoreFull.
        """
        return cls(directories, await asyncio.to_thread(places.open_or_create, directories))

    # -- Registers ----------------------------------------------------------------------------------------------------

    async def read(self, names: Sequence[bytes], timeout_s: float, fence: Fence | None = None) -> list[State | None]:
        try:
            return await self._engine.read(names, timeout_s, fence)
        finally:
            self._mend()

    async def change(self, request: ChangeRequest, timeout_s: float) -> ChangeReply:
        try:
            return await self._engine.change(request, timeout_s)
        finally:
            self._mend()

    async def records(
        self, name: bytes, refs: Sequence[RecordRef], timeout_s: float, with_data: bool = True
    ) -> list[Record]:
        return await self._engine.records(name, refs, timeout_s, with_data)

    async def scan(self, request: ScanRequest, timeout_s: float) -> ScanPage:
        return await self._engine.scan(request, timeout_s)

    async def changes(self, since: Watermarks | None, limit: int, timeout_s: float) -> ChangedNames:
        return await self._engine.changes(since, limit, timeout_s)

    async def raise_term(self, scope: bytes, term: int, timeout_s: float) -> None:
        await self._engine.raise_term(scope, term, timeout_s)

    async def status(self, timeout_s: float) -> StoreStatus:
        """Each disk, as a node."""
        if self._opening:  # disks that a newer membership than that of the settings has
            await asyncio.wait(tuple(self._opening), timeout=min(timeout_s, _OPENING_S))
        status = await self._engine.status(timeout_s)
        nodes = [await self._described(node) for node in status.nodes]
        return StoreStatus(status.store_id, status.epoch, tuple(nodes), status.quorum)

    async def collect(self, run: int, timeout_s: float) -> Collected:
        """Erase what can be erased, bring every disk up to date, and give the space back."""
        collected = await self._engine.collect(run, timeout_s)
        if collected.done:
            await self._admit()
            await self._repair()
            for store in list(self._stores.values()):
                await asyncio.to_thread(store.tidy)
        return collected

    async def begin_cycle(self, timeout_s: float) -> Cycle:
        """All disks must answer."""
        return await self._engine.begin_cycle(timeout_s)

    def acceptors(self) -> tuple[Configuration, dict[int, Acceptor]]:
        """The configuration in force, and its acceptors; one whose disk is away refuses everything."""
        members = self._engine.quorums.members
        return self._engine.configuration, {member: self._acceptors[member] for member in members}

    async def close(self) -> None:
        """Stop the lanes' threads and close the files."""
        for task in list(self._work):
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)
        await self._engine.close()
        await asyncio.gather(*(lane.close() for lane in self._lanes.values()))
        await asyncio.gather(*(asyncio.to_thread(store.close) for store in self._stores.values()))

    # -- Replacing a disk ---------------------------------------------------------------------------------------------

    async def replace(self, old: Path, new: Path, timeout_s: float) -> None:
        """Have the empty directory ``new`` take the place of ``old``; goes on with what was interrupted.

        Raises InvalidArgument, Conflict, StoreError, NoQuorum (try again), UnknownOutcome (look, then try again).
        """
        from objmeta.register.membership import Coordinator

        coordinator = Coordinator(self._engine, self._rng, self._fences())
        try:
            async with asyncio.timeout(timeout_s):
                current = await coordinator.current(timeout_s)
                if current.configuration.is_joint:
                    await coordinator.finish()
                    current = self._engine.membership
                acceptor, joining = await self._pair(current, old, new)
                if acceptor:
                    known = {member: str(path) for member, path in self._paths.items()}
                    await coordinator.begin({joining: str(new)}, [acceptor], self._prepare, timeout_s, addresses=known)
                    if self._opening:  # the new one is let in with the others only if it answers by then
                        await asyncio.wait(tuple(self._opening), timeout=_OPENING_S)
                    await coordinator.finish()
                await self._admit()
        except TimeoutError:
            raise UnknownOutcome(f"{new} has not taken over within {timeout_s:g} s: replace {old} once more") from None

    async def _pair(self, current: Membership, old: Path, new: Path) -> tuple[int, int]:
        """The ids of the acceptors that leave and join; zeros if that is done already."""
        configuration = current.configuration
        members = configuration.quorums.members
        leaving = [member for member, path in self._paths.items() if path == old and member in members]
        if not leaving:
            leaving = [m for m, place in current.addresses if Path(place) == old and m in members]
        if any(path == new and member in members for member, path in self._paths.items()):
            if leaving:
                raise Conflict(f"{new} is in use by the store already: name an empty directory")
            return 0, 0
        if not leaving:
            raise InvalidArgument(f"{old} is none of the store's disks: they are {self._listed(members)}")
        waiting = await asyncio.to_thread(places.acceptor_id_in, new, configuration.store_id)
        return leaving[0], waiting or max((*members, *configuration.retired)) + 1

    async def _prepare(self, acceptor: int, place: str, configuration: Configuration) -> None:
        await asyncio.to_thread(places.prepare, Path(place), configuration)

    def _listed(self, members: Sequence[int]) -> str:
        return ", ".join(str(self._paths[member]) for member in members if member in self._paths)

    # -- Disks that come and go ---------------------------------------------------------------------------------------

    @property
    def _lanes(self) -> dict[int, Lane]:
        return {acceptor: lane for acceptor, lane in self._acceptors.items() if isinstance(lane, Lane)}

    def _take(self, acceptor: int, store: SqliteStore) -> None:
        self._stores[acceptor] = store
        self._paths[acceptor] = store.path.parent
        self._acceptors[acceptor] = Lane(store, self._loop)

    def _see_to(self, membership: Membership) -> None:
        """Every member has a lane, or something in its place."""
        for acceptor, place in membership.addresses:
            self._paths.setdefault(acceptor, Path(place))
        for acceptor in membership.configuration.quorums.members:
            if acceptor not in self._acceptors:
                path = self._paths.get(acceptor)
                problem = self._problems.get(path, "") if path else f"where disk {acceptor} is is not known"
                missing = _Missing(problem or f"{path} has not been opened yet", lambda a=acceptor: self._look_at(a))  # type: ignore[misc]
                self._acceptors[acceptor] = missing
                if not problem:
                    self._look_at(acceptor)

    def _look_at(self, acceptor: int) -> None:
        """Try to open a disk that could not be used, unless that was tried a moment ago."""
        now = self._loop.time()
        if now - self._looked_at.get(acceptor, -_LOOK_AGAIN_S) >= _LOOK_AGAIN_S:
            self._looked_at[acceptor] = now
            task = self._do(self._open_again(acceptor))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open_again(self, acceptor: int) -> None:
        missing = self._acceptors[acceptor]
        assert isinstance(missing, _Missing), "a lane is not opened again"
        for path in dict.fromkeys((*filter(None, (self._paths.get(acceptor),)), *self._given)):
            try:
                store = await asyncio.to_thread(places.open_one, path)
            except StoreError as problem:
                if path == self._paths.get(acceptor):
                    missing.problem = str(problem)
                continue
            same = store.configuration.store_id == self._engine.configuration.store_id
            if same and store.acceptor_id == acceptor:
                self._take(acceptor, store)
                await self._admit()
                return
            await asyncio.to_thread(store.close)

    async def _admit(self) -> None:
        """Let members in that were not open yet when their configuration was handed out; they have no vote before."""
        from objmeta.register.membership import Coordinator

        for acceptor in self._engine.quorums.members:
            store = self._stores.get(acceptor)
            if self._engine.configuration.is_joint:  # whoever makes that change lets them in
                return
            if store is not None and store.configuration.epoch == OUTSIDE:
                with suppress(ObjmetaError):
                    await Coordinator(self._engine, self._rng, self._fences()).admit(acceptor)

    def _do(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task

    # -- Up to date ---------------------------------------------------------------------------------------------------

    def _mend(self) -> None:
        """Damaged rows that were met are mended beside what goes on."""
        met = sum(lane.damage.met for lane in self._lanes.values())
        if met > self._mended:
            self._mended = met
            self._do(self._mend_damaged())

    async def _mend_damaged(self) -> None:
        from objmeta.register.repairing import Repairer

        for acceptor, lane in self._lanes.items():
            if names := lane.damage.take():
                with suppress(ObjmetaError):
                    repairer = Repairer(self._engine, acceptor, fence_of=self._fences())
                    lane.damage.mended += await repairer.mend_damaged(names)

    async def _repair(self) -> None:
        """Bring each disk up to date with the others."""
        from objmeta.register.repairing import Repairer

        lanes = self._lanes
        members = [member for member in self._engine.quorums.members if member in lanes]
        for acceptor in members:
            others = [member for member in members if member != acceptor]
            try:
                await Repairer(self._engine, acceptor, fence_of=self._fences()).repair(others)
            except ObjmetaError as problem:
                _log.warning("%s was not compared with the other disks: %s", self._paths[acceptor], problem)

    def _fences(self) -> Callable[[bytes, bool], Coroutine[Any, Any, Fence | None]]:
        from objmeta.objects.fences import BucketFences

        context = Context(
            self._engine,
            lambda: time.time_ns() // 1000,
            lambda: uuid_utils.uuid7().bytes,
            _BACKGROUND_TIMEOUT_S,
            True,
        )
        return BucketFences(context).fence_of

    async def _described(self, node: NodeStatus) -> NodeStatus:
        path = self._paths.get(node.node_id)
        lane = self._acceptors.get(node.node_id)
        if isinstance(lane, Lane) and path is not None:
            with suppress(StoreError, OSError):
                return NodeStatus(
                    node.node_id,
                    str(path),
                    node.state,
                    str(lane.damage) or "disk",
                    version(),
                    registers=await lane.count(),
                    changes=(await lane.changes(_NEWEST, 1)).watermark,
                    disk_free=shutil.disk_usage(path).free,
                    uptime_s=time.monotonic() - self._opened_s,
                )
        problem = lane.problem if isinstance(lane, _Missing) else "its disk fails"
        return NodeStatus(node.node_id, str(path or "unknown"), "down", problem)
