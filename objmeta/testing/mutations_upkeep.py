"""Broken variants of what changes members, erases and repairs (see :mod:`objmeta.testing.mutations`).

Each is a variant of the real class, or of what acceptors do with its requests.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from objmeta.core.acceptor import AcceptorView, step
from objmeta.core.configuration import Membership
from objmeta.core.inventory import Inventory, InventoryRequest
from objmeta.core.messages import Accept, Accepted, Fence, Floors, Reply, Request, Row
from objmeta.core.reconfiguration import complete
from objmeta.core.repair import Look
from objmeta.errors import ConfigurationMismatch, Unavailable
from objmeta.register.copying import Copier
from objmeta.register.erasing import Eraser
from objmeta.register.membership import Coordinator
from objmeta.register.mending import Mender
from objmeta.register.repairing import Repairer
from objmeta.testing.disk import AcceptorHooks
from objmeta.testing.explorer_variants import VARIANTS
from objmeta.testing.mutations import Mutation

# -- Acceptors --------------------------------------------------------------------------------------------------------


def _stepping(variant: str) -> Callable[[], AcceptorHooks]:
    """Hooks that take the step of one of the explorer's variants."""

    class Hooks(AcceptorHooks):
        def step(self, view: AcceptorView, request: Request) -> Reply:
            return VARIANTS[variant].step(view, request)

    return Hooks


# -- Change of members ------------------------------------------------------------------------------------------------


class _AcceptedOnly(Copier):
    """Rows without an accepted value are not listed."""

    async def _inventory(self, acceptor: int, request: InventoryRequest) -> Inventory:
        page = await super()._inventory(acceptor, request)
        return msgspec.structs.replace(page, rows=tuple(row for row in page.rows if row.flag is not None))


class _SkipsCopy(Coordinator):
    """The new members take over at once."""

    copier: Callable[..., Copier] | None = None

    async def _complete(self, joint: Membership) -> Membership:
        await self._join(joint, await self._fence(joint))
        if self.copier is not None:
            await self.copier(self._engine, joint, self.progress, self._fence_of, self._settings).run()
        new = complete(joint)
        if not await self._move(new, self._settings.timeout_s):
            new = await self._moved_on(joint)
        await self._hand_out(new, joint.configuration.quorums.members)
        self._engine.adopt(new)
        return new


class _CopiesAcceptedOnly(_SkipsCopy):
    copier = _AcceptedOnly


class _ListsEarly(_SkipsCopy):
    """The list of registers is taken before the old members are fenced."""

    async def begin(self, add: Mapping[int, str], remove: Collection[int], *rest: Any, **more: Any) -> Membership:
        old = await self.current(1.0)
        names: set[bytes] = set()
        for acceptor in old.configuration.quorums.members:
            with suppress(Unavailable, ConfigurationMismatch):
                page = await self._engine.transport.inventory(acceptor, InventoryRequest())
                names.update(row.name for row in page.rows)
        early = sorted(names)

        class Early(Copier):
            async def _list(self, start: bytes) -> tuple[list[bytes], bytes]:
                return early, b""

        self.copier = Early
        return await super().begin(add, remove, *rest, **more)

    async def _complete(self, joint: Membership) -> Membership:
        if self.copier is None:
            self.copier = Copier
        return await super()._complete(joint)


class _GivesNoFloors(Coordinator):
    """Joining acceptors are not told what lies below the floors."""

    async def _floors(self, *_: Any) -> Floors:
        return Floors(0)


# -- Erasure and repair -----------------------------------------------------------------------------------------------


class _IgnoresMembers(Eraser):
    """Goes on with what it confirmed when the members have changed meanwhile."""

    def _check(self, epoch: int) -> None:
        return None


_RAW = Fence(b"raw", 0)


class _RawMender(Mender):
    """Takes what somebody accepted last for chosen, and wants it stored as it is."""

    async def mend(self, looks: Sequence[Look]) -> None:
        await super().mend([msgspec.structs.replace(look, chosen=True) for look in looks])

    async def _ask(self, acceptor: int, request: Request) -> Reply | None:
        if isinstance(request, Accept):
            request = msgspec.structs.replace(request, fence=_RAW)
        return await super()._ask(acceptor, request)


class _StoresRaw(AcceptorHooks):
    """What repair brings is stored whatever was promised."""

    def step(self, view: AcceptorView, request: Request) -> Reply:
        if not isinstance(request, Accept) or request.fence != _RAW:
            return step(view, request)
        view.put_records(request.name, request.records)
        view.put_row(request.name, Row(request.ballot, request.ballot, request.state), True)
        return Accepted(request.ballot)


class _CopiesRaw(Repairer):
    """Repairs by raw copies."""

    def __init__(self, engine: Any, acceptor: int, settings: Any, **more: Any) -> None:
        super().__init__(engine, acceptor, settings, **more)
        self._mender = _RawMender(engine, acceptor, settings, self.progress, more.get("fence_of"))


UPKEEP_MUTATIONS: dict[str, Mutation] = {
    mutation.name: mutation
    for mutation in (
        Mutation(
            "erase-in-spite-of-promises",
            "rule 8: erased although something higher is promised",
            acceptor=_stepping("erase-in-spite-of-promises"),
        ),
        Mutation(
            "erase-without-floor",
            "rule 8: the erased ballot does not become a floor",
            acceptor=_stepping("erase-without-floor"),
        ),
        Mutation("erase-by-value", "rule 8: any tombstone is erased", acceptor=_stepping("erase-by-value")),
        Mutation("erase-under-other-members", "rule 9: erases what other members confirmed", eraser=_IgnoresMembers),
        Mutation(
            "generation-not-checked",
            "acceptors take operations of generations that are closed",
            acceptor=_stepping("generation-not-checked"),
        ),
        Mutation("copy-skipped", "members change without the copy step", coordinator=_SkipsCopy),
        Mutation("list-before-fence", "the list of what to copy is stale", coordinator=_ListsEarly),
        Mutation("accepted-rows-only", "promises alone are not copied", coordinator=_CopiesAcceptedOnly),
        Mutation("floors-not-given", "joining acceptors are given no floors", coordinator=_GivesNoFloors),
        Mutation(
            "raw-repair", "repair copies rows instead of sending accepts", acceptor=_StoresRaw, repairer=_CopiesRaw
        ),
        Mutation("promise-kept-over-change", "rule 10: a kept promise outlives its configuration", keeps_promises=True),
    )
}
