"""Repair: an acceptor that was away is brought up to date, in the background and at a bounded rate.

Theory of operation.  A pass goes through all names in order.  The acceptor's own digests of some ranges are compared
with the same of each peer; where they differ, inventories are compared, and each register of which something is lacking
is mended (``core.repair`` says what counts as lacking, and why that is only a hint).  A register is mended by repeating
to the acceptor the very accept that was chosen, which needs neither fence nor generation, with the records that it
lacks; what it refuses, or what no quorum agrees on, gets a round that has the state accepted anew by everybody.

Writes go on all the time.  A difference that vanishes costs a look; one that cannot be mended now is left to the next
pass.  When the configuration changes, a pass begins anew.  After a short break of a connection it is enough to look at
the registers that the peer lists as changed since; where it answers "reload", or lists too many, everything is
compared.  An erased register is nothing to mend: what its peers do not
have is never asked for, and a tombstone that the acceptor has forgotten is refused there, and left alone.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Final, TypeVar

import msgspec

from objmeta.core.ballot import ZERO
from objmeta.core.inventory import ChangesRequest, DigestRequest, Inventory, InventoryRequest, InventoryRow
from objmeta.core.repair import Span, differing, to_look_at
from objmeta.errors import ConfigurationMismatch, ObjmetaError, StoreError, Unavailable
from objmeta.interfaces import Changes, RepairStatus
from objmeta.register.asking import all_of, meet
from objmeta.register.copying import FenceOf
from objmeta.register.engine import Engine
from objmeta.register.mending import Mender, Pace, Progress, RepairSettings

_log = logging.getLogger(__name__)

_TRIES: Final = 3
_CHANGES_PAGE: Final = 2000
_NEWEST: Final = 2**62
"""As ``since``: only the watermark is wanted."""
_Answer = TypeVar("_Answer")


class _Places:
    """Where a pass goes on."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.next: bytes | None = b""
        """Where the next ranges to be compared begin; None at the end."""


class Repairer:
    """Keeps one acceptor up to date; belongs to the engine's event loop.

    All acceptors, this one included, are reached through the engine's transport.  ``fence_of`` says what a write-back
    states in a bucket (``copying``).  ``connections`` gives the peers in reach, each with a number that is another one
    after every new connection; without it all are taken to be in reach always.
    """

    def __init__(
        self,
        engine: Engine,
        acceptor: int,
        settings: RepairSettings | None = None,
        *,
        fence_of: FenceOf | None = None,
        connections: Callable[[], Mapping[int, int]] | None = None,
    ) -> None:
        self._engine = engine
        self._loop = engine.loop
        self._acceptor = acceptor
        self._settings = settings or RepairSettings()
        self._connections = connections or (lambda: dict.fromkeys(self._peers(), 0))
        self._compare_pace = Pace(self._loop, self._settings.compared_per_s_max)
        self._compared_at: dict[int, int] = {}
        self._marks: dict[int, tuple[int, int]] = {}
        self._marked_at = 0.0
        self.progress = Progress()
        self._mender = Mender(engine, acceptor, self._settings, self.progress, fence_of)

    def status(self) -> RepairStatus:
        """The progress as a node tells it."""
        progress, now = self.progress, self._loop.time()
        complete_s = None if progress.complete is None else now - progress.complete
        if not self._peers():
            complete_s = 0.0  # there is nobody to catch up with
        return RepairStatus(
            running=progress.running,
            compared=progress.compared,
            repaired=progress.repaired,
            records=progress.records,
            left=progress.left,
            running_s=now - progress.began if progress.running else 0.0,
            complete_s=complete_s,
            passes=progress.passes,
            problem=progress.problem,
            peers=tuple(sorted(progress.peers.items())),
        )

    async def mend_damaged(self, names: Sequence[bytes]) -> int:
        """Mend registers whose rows at this acceptor were found damaged; how many of them were. Raises Unavailable."""
        self._mender.configuration = self._engine.configuration
        return await self._mender.mend_damaged(names)

    # -- When ---------------------------------------------------------------------------------------------------------

    async def run_forever(self) -> None:
        """Repair at the start, after a peer has come back, and from time to time; ends only by cancellation."""
        settings = self._settings
        patient_until = self._loop.time() + settings.patience_s
        again_s = settings.again_s
        due = not_before = self._loop.time()
        while True:
            now, reached, peers = self._loop.time(), dict(self._connections()), self._peers()
            here = {peer for peer in peers if peer in reached}
            new = here if now >= due else {peer for peer in here if self._compared_at.get(peer) != reached[peer]}
            patient = now < patient_until and here != peers
            if new and not patient and now >= not_before:
                if await self._pass(new, reached, everything=now >= due):
                    again_s = settings.again_s
                    if new == here:
                        due = self._loop.time() + settings.period_s
                else:
                    due = not_before = self._loop.time() + again_s
                    again_s = min(again_s * 2, settings.period_s)
            if now >= self._marked_at + settings.mark_s:
                self._marked_at = now
                await self._mark({peer for peer in here if self._compared_at.get(peer) == reached[peer]})
            await asyncio.sleep(settings.watch_s)

    async def _pass(self, peers: set[int], reached: Mapping[int, int], everything: bool) -> bool:
        """One pass; whether nothing is left to do, as far as these peers go."""
        marked = peers <= self._compared_at.keys() & self._marks.keys()
        self._mender.configuration = self._engine.configuration
        try:
            before = await self._newest(peers)
            complete = marked and not everything and await self._catch_up(peers, before)
            if not complete:
                complete = await self.repair(peers)
        except ObjmetaError as problem:
            self.progress.problem = str(problem)
            return False
        except Exception as defect:
            _log.exception("repair failed in an unforeseen way")
            self.progress.problem = f"{type(defect).__name__}: {defect}"
            return False
        for peer in peers:
            if self.progress.peers[peer] == "compared":
                self._compared_at[peer] = reached[peer]
                if peer in before:
                    self._marks[peer] = (before[peer], before[peer])
        return complete

    def _peers(self) -> set[int]:
        members = self._engine.quorums.members
        return set(members) - {self._acceptor} if self._acceptor in members else set()

    # -- What changed -------------------------------------------------------------------------------------------------

    async def _newest(self, peers: Collection[int]) -> dict[int, int]:
        """The numbers of the newest changes of those peers that say so."""
        question = functools.partial(self._changes, ChangesRequest(_NEWEST, 1))
        answers = await asyncio.gather(*(self._one(peer, question) for peer in sorted(peers)))
        return {
            peer: answer.watermark for peer, answer in zip(sorted(peers), answers, strict=True) if answer is not None
        }

    async def _mark(self, peers: Collection[int]) -> None:
        """Remember how far the peers had come when they were last asked: that much has arrived here."""
        self._mender.configuration = self._engine.configuration
        try:
            newest = await self._newest(peers)
        except Unavailable:
            return
        for peer, number in newest.items():
            self._marks[peer] = (self._marks.get(peer, (number, number))[1], number)

    async def _catch_up(self, peers: Collection[int], upto: Mapping[int, int]) -> bool:
        """Look at what changed at these peers since they were last in reach; False if that is not known, or too much.

        Raises as :meth:`repair` does.
        """
        names: set[bytes] = set()
        for peer in sorted(peers):
            since = self._marks[peer][0]
            while since < upto.get(peer, _NEWEST):
                found = await self._one(peer, functools.partial(self._changes, ChangesRequest(since, _CHANGES_PAGE)))
                if found is None or found.reload or found.watermark <= since:
                    return False
                names.update(found.names)
                if len(names) > self._settings.changed_max:
                    return False
                since = found.watermark
        self._begin(peers)
        try:
            ordered = sorted(names)
            for at in range(0, len(ordered), self._settings.page_names):
                some = ordered[at : at + self._settings.page_names]
                await self._mender.look_at({name: await self._own_row(name) for name in some})
            await self._mender.finish()
        finally:
            self.progress.running = False
        return self._end()

    async def _own_row(self, name: bytes) -> InventoryRow | None:
        page = await self._own(functools.partial(self._inventory, InventoryRequest(name, name + b"\0", 1)))
        return page.rows[0] if page.rows else None

    async def _changes(self, request: ChangesRequest, acceptor: int) -> Changes:
        return await self._engine.transport.changes(acceptor, request)

    # -- One pass -----------------------------------------------------------------------------------------------------

    async def repair(self, peers: Collection[int]) -> bool:
        """Compare everything with these peers and mend what is lacking here; whether that was all there was to do.

        Raises Unavailable if the own acceptor does not answer or none of the peers does, or the configuration changes.
        """
        self._begin(peers)
        places = _Places()
        try:
            await all_of([self._lane(places, peers) for _ in range(self._settings.lanes)])
            await self._mender.finish()
        finally:
            self.progress.running = False
        return self._end()

    def _begin(self, peers: Collection[int]) -> None:
        progress = self.progress
        self._mender.begin()
        progress.running, progress.began, progress.problem = True, self._loop.time(), ""
        progress.compared = progress.repaired = progress.records = progress.left = progress.lost = 0
        progress.peers = dict.fromkeys(sorted(peers), "comparing")

    def _end(self) -> bool:
        progress = self.progress
        progress.passes += 1
        for peer, state in progress.peers.items():
            if state == "comparing":
                progress.peers[peer] = "compared"
        complete = progress.left == 0 and "unreachable" not in progress.peers.values()
        if complete and progress.peers.keys() >= self._peers():
            progress.complete = self._loop.time()
        return complete

    async def _lane(self, places: _Places, peers: Collection[int]) -> None:
        """Compare and mend where others have not yet begun to, until the end. Raises as :meth:`repair` does."""
        while True:
            async with places.turn:
                if places.next is None:
                    return
                began = self._loop.time()
                spans, end, registers = await self._compare(places.next, peers)
                places.next = end or None
            await self._mender.rest(began)
            for span in spans:
                await self._look_through(span.start, span.end, span.acceptors)
            self.progress.compared += registers
            await self._compare_pace.take(registers)

    async def _compare(self, start: bytes, peers: Collection[int]) -> tuple[list[Span], bytes, int]:
        """What differs in the ranges that begin at ``start``, where the next ones begin (empty: at the end), and how
        many registers the ranges have."""
        transport = self._engine.transport
        own = await self._own(functools.partial(transport.digests, request=DigestRequest(start)))
        request = DigestRequest(start, tuple(each.end for each in own.ranges))
        theirs = await self._all(self._comparing(peers), functools.partial(transport.digests, request=request))
        if not theirs:
            raise Unavailable("none of the peers that were to be compared with can be reached any more")
        spans, ranges = differing(start, own, theirs)
        return spans, own.ranges[ranges - 1].end, sum(each.registers for each in own.ranges[:ranges])

    async def _look_through(self, start: bytes, end: bytes, peers: Collection[int]) -> None:
        """Compare the inventories of a span, page by page, and mend what is lacking."""
        while True:
            began = self._loop.time()
            question = functools.partial(self._inventory, InventoryRequest(start, end, self._settings.page_names))
            pages = await self._all(self._comparing(peers), question)
            own = await self._own(question)  # last, or whatever is written meanwhile would look as if it lacked it
            await self._mender.rest(began)
            self._mender.check()
            pages[self._acceptor] = own
            covered = min((page.covered for page in pages.values() if page.covered), default=b"")
            inventories = {acceptor: page.rows for acceptor, page in pages.items()}
            looks = to_look_at(self._acceptor, inventories, covered, self._engine.quorums)
            self.progress.compared += sum(look.accepted == ZERO for look in looks)
            await self._mender.mend(looks)
            if not covered:
                return
            start = covered

    async def _inventory(self, request: InventoryRequest, acceptor: int) -> Inventory:
        """One page, its last register with all of its records."""
        transport = self._engine.transport
        page = await transport.inventory(acceptor, request)
        rows = list(page.rows)
        while rows and rows[-1].more:
            last = rows[-1]
            rest = InventoryRequest(last.name, last.name + b"\0", 1, last.held[-1][0])
            further = (await transport.inventory(acceptor, rest)).rows
            held, more = (further[0].held, further[0].more) if further else ((), False)
            rows[-1] = msgspec.structs.replace(last, held=last.held + held, more=more)
        return Inventory(tuple(rows), page.covered)

    # -- Questions ----------------------------------------------------------------------------------------------------

    def _comparing(self, peers: Collection[int]) -> list[int]:
        return [peer for peer in sorted(peers) if self.progress.peers[peer] == "comparing"]

    async def _own(self, question: Callable[[int], Awaitable[_Answer]]) -> _Answer:
        """Our own acceptor's answer. Raises Unavailable, Moved."""
        answer = await self._one(self._acceptor, question)
        if answer is None:
            raise Unavailable("the node's own acceptor does not answer")
        return answer

    async def _all(self, peers: Collection[int], question: Callable[[int], Awaitable[_Answer]]) -> dict[int, _Answer]:
        """The answers of those peers that can be reached; the others have no part in this pass any more."""
        answers = await asyncio.gather(*(self._one(peer, question) for peer in peers))
        for peer, answer in zip(peers, answers, strict=True):
            if answer is None:
                self.progress.peers[peer] = "unreachable"
        return {peer: answer for peer, answer in zip(peers, answers, strict=True) if answer is not None}

    async def _one(self, acceptor: int, question: Callable[[int], Awaitable[_Answer]]) -> _Answer | None:
        for _ in range(_TRIES):
            self._mender.check()
            try:
                async with asyncio.timeout(self._settings.timeout_s):
                    return await question(acceptor)
            except ConfigurationMismatch:
                if not await meet(self._engine, acceptor):
                    return None
            except (TimeoutError, Unavailable, StoreError):
                await asyncio.sleep(self._settings.watch_s)
        self._mender.check()
        return None
