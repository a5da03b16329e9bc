"""The coordinator of a membership change: old -> joint -> new, resumable after a crash anywhere.

The rules are in docs/protocol.md, "Changing the members".

::

    1  settle the configuration register under the configuration known here; a joint one found there is resumed
    2  make the stores of joining acceptors, outside the store's epochs: they have no vote
    3  compare-and-swap the register to joint: chosen by the old members
    4  have a majority of the old members adopt joint: they are fenced, nothing is chosen under old any more;
       hand the greatest of their floors to the joining acceptors, and only then joint itself
    5  copy (``copying``); then wait until those that leave are not needed for anything else (``may_leave``)
    6  compare-and-swap the register to new: chosen by majorities of both; hand new out

What the register says is all that counts.  Every step may be repeated, also by several coordinators at once; only the
register moves, by compare-and-swap on its epoch.  A coordinator that takes over begins with step 4 again.

Stores are made (step 2) before joint is chosen and never again afterwards: an acceptor that joined and lost its data
must not come back under its id.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Final

from objmeta.core.configuration import Configuration, Membership
from objmeta.core.messages import (
    Adopt,
    Adopted,
    Floors,
    RaiseFloors,
    ReadFloors,
    Refused,
    ScopeFloor,
)
from objmeta.core.quorum import Quorums
from objmeta.core.reconfiguration import (
    CONFIGURATION_REGISTER,
    MoveConfiguration,
    begin,
    complete,
    describe,
    leads_to,
    membership_in,
    outside,
)
from objmeta.errors import Conflict, NoQuorum, ObjmetaError, Unavailable
from objmeta.interfaces import ChangeRequest
from objmeta.register.asking import all_of, ask, gather
from objmeta.register.copying import Copier, CopySettings, FenceOf, Progress, Superseded

if TYPE_CHECKING:
    from objmeta.register.engine import Engine

Prepare = Callable[[int, str, Configuration], Coroutine[Any, Any, None]]
"""Have the acceptor of this id and address make its store with this configuration. Raises ObjmetaError."""

MayLeave = Callable[[Membership, Callable[[str], None]], Coroutine[Any, Any, None]]
"""Return when the members that leave, of a joint membership, may do so; tell meanwhile what is waited for.

Registers need nothing of the kind.  Whoever keeps other things on the nodes does: what only those that leave have.
Return as well when a later membership has been adopted.  May be called several times for one change.
"""

_FLOORS_PER_PAGE: Final = 1000
_PATIENCE_S: Final = 3.0
"""How long joining acceptors are waited for when a majority does without them."""
_HAND_OUT_LINGER_S: Final = 1.0
"""Those that leave, or are down, learn it later as well: the register says it."""
_FENCE_LINGER_S: Final = 0.2
_BACKOFF_S_MIN: Final = 0.05
_BACKOFF_S_MAX: Final = 2.0

_log = logging.getLogger(__name__)


class Coordinator:
    """Changes the members of one engine's store; belongs to the engine's event loop.

    ``rng`` draws operation ids.  ``fence_of`` says what write-backs in buckets state (see ``copying``).
    """

    def __init__(
        self,
        engine: Engine,
        rng: random.Random,
        fence_of: FenceOf | None = None,
        settings: CopySettings | None = None,
        may_leave: MayLeave | None = None,
    ) -> None:
        self._engine = engine
        self._rng = rng
        self._fence_of = fence_of
        self._may_leave = may_leave
        self._settings = settings or CopySettings()
        self.progress = Progress()

    # -- Beginning ----------------------------------------------------------------------------------------------------

    async def current(self, timeout_s: float) -> Membership:
        """The membership the register holds, adopted by the engine. Raises NoQuorum.

        While a change is under way it is the one that is known: the members that join may have no vote yet, and so the
        register no quorum.
        """
        if self._engine.configuration.is_joint:
            return self._engine.membership
        (state,) = await self._engine.settle((CONFIGURATION_REGISTER,), timeout_s, None)
        kept = membership_in(state)
        if kept is not None:
            self._engine.adopt(kept)
        return self._engine.membership

    async def begin(
        self,
        add: Mapping[int, str],
        remove: Collection[int],
        prepare: Prepare,
        timeout_s: float,
        *,
        epoch: int = 0,
        addresses: Mapping[int, str] | None = None,
    ) -> Membership:
        """Steps 1 to 3: from here on the change will be completed, by :meth:`finish` or whoever resumes it.

        ``epoch``, if given, is the one the caller decided under: a change that somebody made since is no reason to
        fail if it was this one.  ``addresses`` correct those that are kept.  Returns the membership that stands now.
        Raises Conflict, InvalidArgument, NoQuorum, UnknownOutcome, Unavailable (this node was away and does not know
        that epoch yet), and what ``prepare`` raises.
        """
        current = await self.current(timeout_s)
        if current.configuration.is_joint and current.configuration.epoch < epoch:
            raise Unavailable(f"that the members are those of epoch {epoch} is not known here yet")
        if epoch and current.configuration.epoch != epoch:
            members = leads_to(current)
            if all(node in members for node in add) and not any(node in members for node in remove):
                return current
            raise Conflict(f"the members were changed meanwhile ({describe(current.configuration)}); look again")
        known = current.address_of | dict(addresses or {})
        joint = begin(Membership(current.configuration, tuple(sorted(known.items()))), add, remove)
        store_id = current.configuration.store_id
        await all_of([prepare(node, address, outside(store_id, node)) for node, address in sorted(add.items())])
        if not await self._move(joint, timeout_s):
            raise Conflict("somebody else changed the members at the same time; look again")
        self._engine.adopt(joint)
        return joint

    async def _move(self, membership: Membership, timeout_s: float) -> bool:
        """Compare-and-swap; False if the register has moved."""
        generation = await self._generation(timeout_s)
        change = MoveConfiguration(self._rng.randbytes(16), membership)
        request = ChangeRequest(CONFIGURATION_REGISTER, change, None, generation)
        return (await self._engine.change(request, timeout_s)).code == ""

    async def _generation(self, timeout_s: float) -> int:
        """One that is not below any acceptor's floor, unless that is raised meanwhile."""
        answers = await gather(
            {a: ask(self._engine, a, ReadFloors(b"", 1), timeout_s) for a in self._engine.quorums.members},
            self._engine.quorums.is_quorum,
        )
        return max((answer.generation for answer in answers.values() if isinstance(answer, Floors)), default=0)

    # -- To the end ---------------------------------------------------------------------------------------------------

    async def finish(self) -> Membership:
        """Steps 4 to 6, again and again until no change is under way; the membership that stands then."""
        wait_s = _BACKOFF_S_MIN
        while True:
            try:
                membership = await self.current(self._settings.timeout_s)
                if not membership.configuration.is_joint:
                    return membership
                return await self._complete(membership)
            except Superseded:
                continue
            except ObjmetaError as problem:
                self.progress.problem = str(problem)
                _log.info("a change of members is delayed: %s", problem)
            await asyncio.sleep(self._rng.uniform(0, wait_s))
            wait_s = min(2 * wait_s, _BACKOFF_S_MAX)

    async def _complete(self, joint: Membership) -> Membership:
        self.progress.phase = "fencing"
        fenced = await self._fence(joint)
        self.progress.phase = "joining"
        await self._join(joint, fenced)
        await Copier(self._engine, joint, self.progress, self._fence_of, self._settings).run()
        if self._may_leave is not None:
            self.progress.phase = "moving data"
            await self._may_leave(joint, self._tell)
        self.progress.phase, self.progress.problem = "handing over", ""
        new = complete(joint)
        if not await self._move(new, self._settings.timeout_s):
            new = await self._moved_on(joint)
        await self._hand_out(new, joint.configuration.quorums.members)
        self._engine.adopt(new)
        return new

    def _tell(self, problem: str) -> None:
        self.progress.problem = problem

    async def _moved_on(self, joint: Membership) -> Membership:
        """What a coordinator before this one moved to, its move having been finished here. Raises Superseded."""
        (state,) = await self._engine.settle((CONFIGURATION_REGISTER,), self._settings.timeout_s, None)
        kept = membership_in(state)
        if kept is None or kept.configuration.epoch <= joint.configuration.epoch:
            raise Superseded
        return kept

    async def _fence(self, joint: Membership) -> tuple[int, ...]:
        """Have old members adopt joint; those that have, a majority."""
        old = Quorums(joint.configuration.member_sets[:1])
        questions = {a: self._adopted(a, Adopt(joint)) for a in old.members}
        answers = await gather(questions, old.is_quorum, _FENCE_LINGER_S)
        if not old.is_quorum(answers):
            raise NoQuorum("no majority of the old members follows yet")
        return tuple(answers)

    async def _adopted(self, acceptor: int, adopt: Adopt) -> bool | None:
        reply = await ask(self._engine, acceptor, adopt, self._settings.timeout_s)
        if isinstance(reply, Refused):
            self.progress.problem = f"node {acceptor} does not follow: {reply.detail}"
        if not isinstance(reply, Adopted):
            return None
        if reply.membership.configuration.epoch > adopt.membership.configuration.epoch:
            self._engine.adopt(reply.membership)
            raise Superseded
        return True

    # -- Joining ------------------------------------------------------------------------------------------------------

    async def _join(self, joint: Membership, fenced: tuple[int, ...]) -> None:
        """Let the new acceptors in: all that are up, and at least as many as a majority needs."""
        old, new = joint.configuration.member_sets
        majority = Quorums((new,))
        floors = await self._floors(Quorums((old,)), old)  # who answers under joint is fenced
        joiners = [node for node in new if node not in old]

        def enough(joined: dict[int, bool]) -> bool:
            return majority.is_quorum({*joined, *(node for node in new if node in fenced)})

        questions = {node: self._admitted(node, joint, floors) for node in joiners}
        if not enough(await gather(questions, enough, _PATIENCE_S)):
            self.progress.problem = self.progress.problem or "no majority of the new members is up"
            raise NoQuorum(self.progress.problem)

    async def admit(self, node: int) -> bool:
        """Let an acceptor in that was down when its configuration was handed out; whether it is in.

        It is a member already, but has no vote before it was given the floors.
        """
        membership = self._engine.membership
        quorums = membership.configuration.quorums
        if node not in quorums.members:
            return False
        floors = await self._floors(quorums, tuple(a for a in quorums.members if a != node))
        return bool(await self._admitted(node, membership, floors))

    async def _admitted(self, node: int, membership: Membership, floors: Floors) -> bool | None:
        scopes = floors.scopes
        for at in range(0, max(1, len(scopes)), _FLOORS_PER_PAGE):
            raised = RaiseFloors(floors.generation, scopes[at : at + _FLOORS_PER_PAGE])
            reply = await ask(self._engine, node, raised, self._settings.timeout_s)
            if not isinstance(reply, Floors):
                self.progress.problem = f"node {node} cannot be let in: " + (
                    reply.detail if isinstance(reply, Refused) else "it does not answer"
                )
                return None
        return await self._adopted(node, Adopt(membership, joining=True))

    async def _floors(self, quorums: Quorums, acceptors: Collection[int]) -> Floors:
        """The greatest of each floor among a quorum, as these acceptors state them. Raises NoQuorum."""
        answers = await gather({a: self._floors_of(a) for a in acceptors}, quorums.is_quorum)
        if not quorums.is_quorum(answers):
            raise NoQuorum("no majority of the members says what its floors are")
        generation = 0
        greatest: dict[bytes, ScopeFloor] = {}
        for floors in answers.values():
            generation = max(generation, floors.generation)
            for scope, floor in floors.scopes:
                greatest[scope] = floor.raised(greatest.get(scope, floor))
        return Floors(generation, tuple(sorted(greatest.items())))

    async def _floors_of(self, acceptor: int) -> Floors | None:
        generation = 0
        scopes: list[tuple[bytes, ScopeFloor]] = []
        after = b""
        while True:
            reply = await ask(self._engine, acceptor, ReadFloors(after, _FLOORS_PER_PAGE), self._settings.timeout_s)
            if not isinstance(reply, Floors):
                return None
            generation = max(generation, reply.generation)
            scopes.extend(reply.scopes)
            if not reply.more:
                return Floors(generation, tuple(scopes))
            after = reply.scopes[-1][0]

    # -- The end ------------------------------------------------------------------------------------------------------

    async def _hand_out(self, new: Membership, everybody: Collection[int]) -> None:
        """Tell everybody, those that leave too, while they are still within reach."""
        quorums = new.configuration.quorums
        await gather({a: self._adopted(a, Adopt(new)) for a in everybody}, quorums.is_quorum, _HAND_OUT_LINGER_S)
