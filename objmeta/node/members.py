"""A node's part in changes of members: it coordinates one when asked to, and takes over one without coordinator.

Rules.  Every node looks at the configuration register twice a second: so it learns of changes that it missed.  A change
on which nobody works is taken over, by the lowest of those that stay if it can: the next one looks half as often, and
so on.  Two who do so at once do no harm, but each has all the work, and they are in each other's way: on a busy
machine, where those that are up seem to be down, that could keep a change from its end.  The lowest member that is up
also lets in members that were down when they should have joined.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from objmeta.core.configuration import OUTSIDE, Configuration, Membership
from objmeta.core.reconfiguration import CONFIGURATION_REGISTER, membership_in
from objmeta.errors import ConfigurationMismatch, NoQuorum, ObjmetaError, Unavailable
from objmeta.interfaces import ChangeProgress
from objmeta.register.copying import FenceOf
from objmeta.register.engine import Engine
from objmeta.register.membership import Coordinator, MayLeave
from objmeta.rpc import wire
from objmeta.rpc.peer import ask

_LOOK_S: Final = 0.5
_LOOK_TIMEOUT_S: Final = 2.0
_ORPHANED_LOOKS: Final = 2
_ADMIT_EVERY_LOOKS: Final = 10
_JOIN_TIMEOUT_S: Final = 10.0

_log = logging.getLogger(__name__)

Statuses = Callable[[], Awaitable[dict[int, wire.PeerStatus]]]
"""Asks the other members; those that do not answer are left out."""


class Members:
    """Belongs to one event loop; :meth:`close` must be awaited."""

    def __init__(
        self,
        node_id: int,
        engine: Engine,
        rng: random.Random,
        fence_of: FenceOf,
        statuses: Statuses,
        may_leave: MayLeave | None = None,
    ) -> None:
        self._may_leave = may_leave
        self._node_id = node_id
        self._engine = engine
        self._rng = rng
        self._fence_of = fence_of
        self._statuses = statuses
        self._coordinator: Coordinator | None = None
        self._working: asyncio.Task[None] | None = None
        self._looking = asyncio.create_task(self._look(), name=f"objmeta members of node {node_id}")

    async def change(self, request: wire.ChangeMembers, addresses: Mapping[int, str], timeout_s: float) -> Membership:
        """Begin a change; it goes on by itself. Raises as Coordinator.begin."""
        coordinator = self._new_coordinator()
        try:
            membership = await coordinator.begin(
                dict(request.add), request.remove, self._prepare, timeout_s, epoch=request.epoch, addresses=addresses
            )
        except TimeoutError:
            raise NoQuorum("the change of members did not begin in time; look again") from None
        if membership.configuration.is_joint:
            self._work(coordinator)
        return membership

    def progress(self) -> ChangeProgress | None:
        """Of the change this node coordinates."""
        if self._coordinator is None:
            return None
        made = self._coordinator.progress
        return ChangeProgress(self._node_id, made.phase, made.names, made.records, made.problem)

    async def done(self) -> None:
        """Wait until this node coordinates nothing."""
        if self._working is not None:
            await asyncio.wait((self._working,))

    async def close(self) -> None:
        """Stop; somebody else takes over what is under way."""
        tasks = [task for task in (self._looking, self._working) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- Coordinating -------------------------------------------------------------------------------------------------

    def _new_coordinator(self) -> Coordinator:
        return Coordinator(self._engine, self._rng, self._fence_of, may_leave=self._may_leave)

    def _work(self, coordinator: Coordinator) -> None:
        if self._working is None:
            self._coordinator = coordinator
            self._working = asyncio.create_task(self._finish(coordinator))

    async def _finish(self, coordinator: Coordinator) -> None:
        try:
            membership = await coordinator.finish()
            _log.info("the members are now %s", membership.configuration.quorums.members)
        except Exception:
            _log.exception("a change of members was given up; it will be taken up again")
        finally:
            self._coordinator = self._working = None

    async def _prepare(self, node_id: int, address: str, configuration: Configuration) -> None:
        try:
            message = wire.encode(configuration)
            hello = await ask(address, wire.JOIN, message, wire.decode_hello, _JOIN_TIMEOUT_S)
        except Unavailable as gone:
            raise NoQuorum(
                f"node {node_id} does not answer ({gone}): start it first, with --node-id {node_id} and --join"
            ) from None
        if hello.node_id != node_id:
            raise ConfigurationMismatch(f"at {address} there is node {hello.node_id}, not node {node_id}")
        if hello.problem:
            raise ConfigurationMismatch(hello.problem)

    # -- Looking after things -----------------------------------------------------------------------------------------

    async def _look(self) -> None:
        orphaned = looks = 0
        while True:
            await asyncio.sleep(_LOOK_S)
            looks += 1
            with contextlib.suppress(ObjmetaError):
                (state,) = await self._engine.read((CONFIGURATION_REGISTER,), _LOOK_TIMEOUT_S)
                kept = membership_in(state)
                if kept is not None:
                    self._engine.adopt(kept)
            if self._engine.configuration.is_joint:
                if not self._has_turn(looks):
                    continue
                orphaned = 0 if await self._somebody_coordinates() else orphaned + 1
                if orphaned >= _ORPHANED_LOOKS:
                    _log.info("a change of members has no coordinator: going on with it")
                    self._work(self._new_coordinator())
            else:
                orphaned = 0
                if looks % _ADMIT_EVERY_LOOKS == 0:
                    await self._admit()

    async def _somebody_coordinates(self) -> bool:
        if self._working is not None:
            return True
        return any(status.change is not None for status in (await self._statuses()).values())

    def _has_turn(self, looks: int) -> bool:
        """Whether this node sees to it now that somebody works on a change; one that leaves never does."""
        staying = sorted(self._engine.configuration.member_sets[-1])
        return self._node_id in staying and looks % (1 + staying.index(self._node_id)) == 0

    async def _is_lowest(self) -> bool:
        """Whether this node is the first of those that stay which is up."""
        staying = self._engine.configuration.member_sets[-1]
        statuses = await self._statuses()
        up = {node for node, status in statuses.items() if status.hello.serving} | {self._node_id}
        return self._node_id == min((node for node in staying if node in up), default=0)

    async def _admit(self) -> None:
        if self._node_id != min(self._engine.quorums.members) and not await self._is_lowest():
            return
        for node, status in (await self._statuses()).items():
            theirs = status.hello.configuration
            if (
                theirs is not None
                and theirs.epoch == OUTSIDE
                and theirs.store_id == self._engine.configuration.store_id
            ):
                with contextlib.suppress(ObjmetaError):
                    await self._new_coordinator().admit(node)
