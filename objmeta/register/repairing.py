"""Repair: an acceptor that was away is brought up to date, in the background and at a bounded rate.

Theory of operation.  A pass goes through all names in order.  The acceptor's own digests of some ranges are compared
with the same of each peer; where they differ, inventories are compared, and each register of which something is lacking
is mended (``core.repair`` says what counts as lacking, and why that is only a hint).  A register is mended by repeating
to the acceptor the very accept that was chosen, which needs neither fence nor generation, with the records that it
lacks; what it refuses, or what no quorum agrees on, gets a round that has the state accepted anew by everybody.

Writes go on all the time.  A difference that vanishes costs a look; one that cannot be mended now is left to the next
pass.  When the configuration changes, a pass begins anew.  No span without an end is looked through, or who is behind
would follow those who write, for ever; nor one in which a peer has very many registers, so that all lanes have work.
An erased register is nothing to mend: what its peers do not have is never asked for, and a tombstone that the acceptor
has forgotten is refused there, and left alone.

After an absence, of a peer or of this node, it is enough to look at the registers that the peers list as changed since:
how far each had come is remembered, by the node also over its own restarts.  Where a peer answers "reload", or lists
too many, everything is compared.  What has not arrived although the connection was there is not listed: such gaps, of
which fast reads and listings know nothing either, are found by the passes over everything from time to time.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Final, Protocol, TypeVar

import msgspec

from objmeta.core.ballot import ZERO
from objmeta.core.inventory import ChangesRequest, DigestRequest, Inventory, InventoryRequest
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
_CUT_NAMES: Final = 512
"""Of a span that must be cut, so many registers at a time: what one answer with digests covers elsewhere."""
_NEWEST: Final = 2**62
"""As ``since``: only the watermark is wanted."""
_Answer = TypeVar("_Answer")


class Marks(Protocol):
    """Where it is remembered, over restarts, how far peers had come: all up to that number has arrived here."""

    def kept(self) -> Mapping[int, int]:
        """The change numbers last kept, by peer."""
        ...

    async def keep(self, marks: Mapping[int, int]) -> None:
        """Replace them durably; a failure is not raised, but leaves nothing newer than what was kept before."""
        ...


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
    after every new connection; without it all are taken to be in reach always.  Without ``marks`` everything is
    compared at the start.
    """

    def __init__(
        self,
        engine: Engine,
        acceptor: int,
        settings: RepairSettings | None = None,
        *,
        fence_of: FenceOf | None = None,
        connections: Callable[[], Mapping[int, int]] | None = None,
        marks: Marks | None = None,
    ) -> None:
        self._engine = engine
        self._loop = engine.loop
        self._acceptor = acceptor
        self._settings = settings or RepairSettings()
        self._connections = connections or (lambda: dict.fromkeys(self._peers(), 0))
        self._compare_pace = Pace(self._loop, self._settings.compared_per_s_max)
        self._compared_at: dict[int, int] = {}
        self._kept = marks
        self._marks = {peer: (number, number) for peer, number in (marks.kept() if marks else {}).items()}
        self._marked_at = 0.0
        self._agreed: set[int] = set()
        """Peers with which the last pass that compared with them left nothing."""
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
        again_s = settings.again_s
        due = not_before = self._loop.time() + settings.start_s
        if self._peers() <= self._marks.keys():
            due += settings.period_s
        while True:
            now, reached, peers = self._loop.time(), dict(self._connections()), self._peers()
            here = {peer for peer in peers if peer in reached}
            new = here if now >= due else {peer for peer in here if self._compared_at.get(peer) != reached[peer]}
            if new and now >= not_before:
                if await self._pass(new, reached, everything=now >= due):
                    again_s = settings.again_s
                    if now >= due and new == here:
                        due = self._loop.time() + settings.period_s
                else:
                    due = not_before = self._loop.time() + again_s
                    again_s = min(again_s * 2, settings.period_s)
            if now >= self._marked_at + settings.mark_s:
                self._marked_at = now
                await self._mark({peer for peer in here if self._compared_at.get(peer) == reached[peer]} & self._agreed)
            await asyncio.sleep(settings.watch_s)

    async def _pass(self, peers: set[int], reached: Mapping[int, int], everything: bool) -> bool:
        """One pass; whether nothing is left to do, as far as these peers go."""
        marked = peers <= self._marks.keys()
        self._mender.configuration = self._engine.configuration
        try:
            before = await self._newest(peers)
            complete: bool | None = None
            if marked and not everything:
                complete = await self.catch_up({peer: self._marks[peer][0] for peer in peers}, before)
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
                if complete and peer in before:
                    self._marks[peer] = (before[peer], before[peer])
                else:
                    self._marks.pop(peer, None)
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
        if self._kept is not None:
            await self._kept.keep({peer: since for peer, (since, _) in sorted(self._marks.items())})

    async def catch_up(self, since: Mapping[int, int], upto: Mapping[int, int]) -> bool | None:
        """Look at what changed at these peers after their changes of those numbers; None if that is not known, or is
        too much, else whether that was all there was to do.

        Raises as :meth:`repair` does.
        """
        names = await self._changed(since, upto)
        if names is None:
            return None
        self._begin(since.keys())
        parts = iter(range(0, len(names), self._settings.page_names))

        async def lane() -> None:
            for at in parts:
                await self._look_at(names[at : at + self._settings.page_names], since.keys())

        try:
            await all_of([lane() for _ in range(self._settings.lanes)])
            await self._mender.finish()
        finally:
            self.progress.running = False
        return self._end()

    async def _changed(self, marks: Mapping[int, int], upto: Mapping[int, int]) -> list[bytes] | None:
        """The names of what changed, in order."""
        names: set[bytes] = set()
        for peer, mark in sorted(marks.items()):
            since, until = mark, upto.get(peer, _NEWEST)
            if since > until:
                return None
            while since < until:
                found = await self._one(peer, functools.partial(self._changes, ChangesRequest(since, _CHANGES_PAGE)))
                if found is None or found.reload or found.watermark <= since:
                    return None
                names.update(found.names)
                if len(names) > self._settings.changed_max:
                    return None
                since = found.watermark
        return sorted(names)

    async def _look_at(self, names: Sequence[bytes], peers: Collection[int]) -> None:
        """Compare these registers, which are in order, and mend what is lacking."""
        rest = tuple(names)
        while rest:
            covered = await self._look(InventoryRequest(names=rest), peers)
            looked_at = bisect_left(rest, covered) if covered else len(rest)
            rest = rest[looked_at:]
            self.progress.compared += looked_at
            await self._compare_pace.take(looked_at)

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
        self._agreed.difference_update(peers)
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
        if complete:
            self._agreed |= progress.peers.keys()
        if complete and self._agreed >= self._peers():
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
        end = own.ranges[ranges - 1].end
        if spans and (not spans[-1].end or not all(digests.ranges for digests in theirs.values())):
            last = spans[-1]
            cut, end = await self._cut(last)
            spans[-1] = Span(last.start, cut, last.acceptors)
        return spans, end, sum(each.registers for each in own.ranges[:ranges])

    async def _cut(self, span: Span) -> tuple[bytes, bytes]:
        """Where to end a span that has no end, or very much in it at a peer, and where the next ranges begin."""
        question = functools.partial(self._inventory, InventoryRequest(span.start, span.end, _CUT_NAMES))
        pages = await self._all(self._comparing(span.acceptors), question)
        pages[self._acceptor] = await self._own(question)
        covered = min((page.covered for page in pages.values() if page.covered), default=b"")
        if covered or span.end:
            return covered or span.end, covered or span.end
        last = max((page.rows[-1].name for page in pages.values() if page.rows), default=span.start)
        return last + b"\0", b""  # no names were above it; what is above it now was written after the pass began

    async def _look_through(self, start: bytes, end: bytes, peers: Collection[int]) -> None:
        """Compare the inventories of a span, page by page, and mend what is lacking."""
        while covered := await self._look(InventoryRequest(start, end, self._settings.page_names), peers):
            start = covered

    async def _look(self, request: InventoryRequest, peers: Collection[int]) -> bytes:
        """Compare one page and mend what is lacking; up to where it went, empty: to the end of what is requested."""
        began = self._loop.time()
        question = functools.partial(self._inventory, request)
        pages = await self._all(self._comparing(peers), question)
        own = await self._own(question)  # last, or whatever is written meanwhile would look as if it lacked it
        await self._mender.rest(began)
        self._mender.check()
        pages[self._acceptor] = own
        covered = min((page.covered for page in pages.values() if page.covered), default=b"")
        inventories = {acceptor: page.rows for acceptor, page in pages.items()}
        looks = to_look_at(self._acceptor, inventories, covered, self._engine.quorums)
        if not request.names:
            self.progress.compared += sum(look.accepted == ZERO for look in looks)
        await self._mender.mend(looks)
        return covered

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
