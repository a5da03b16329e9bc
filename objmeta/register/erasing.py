"""Erasing registers: tombstones, and promises without a value, go from all acceptors (PROTOCOL rules 8 and 9).

A pass, under one configuration that is not joint, with every acceptor answering::

    1.  if the pass before saw tombstones: read the generation g and, once it has been known here for ``grace_s``, raise
        the generation floor to g at all acceptors
    2.  go through the names: erase the tombstones that the pass before saw, remember the others
    3.  if there are others: read the generation h, and have a higher one begun

Why nothing applies twice.  Operation ids are forgotten with a register, so no operation that may be on a tombstone's
chain, or once tried to be, may come again.  A tombstone seen in step 2 was there before step 3 read h, so all these
operations had begun in h or before.  The next pass erases it only if its floor is above h (g > h in its step 1): by
then every acceptor refuses them for good, and whoever prepares hears of the floor first.  So an operation has a whole
cycle to finish, from step 3 of one pass to step 1 of the next.  Passes of several processes do not disturb one another:
each goes by what it has seen itself.

Why nothing comes back.  A tombstone is erased under a ballot b under which all acceptors have accepted it (seen in
their inventories, else brought about by :class:`~objmeta.core.erasure.Confirm`), and only where it still is what was
accepted last, with nothing higher promised.  b becomes a floor, so what is older is refused for good; what is newer was
prepared at acceptors that had accepted b, and builds on the tombstone, or on nothing.  Whoever erased nothing keeps the
tombstone, which means the same as no row.

Promises without a value, which reads of absent names leave, go where they have become many: first a ballot that is
above them all, and that nobody draws, becomes the floor of their scope at all acceptors.  From then on they say nothing
that the floor does not say.

What is left over (an acceptor did not answer, the register is in use) waits for a later pass.  If the configuration
changes in between, confirmations are void: nothing more is sent, and acceptors refuse what is on its way.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from blake3 import blake3

from objmeta.core.ballot import ZERO, Ballot
from objmeta.core.erasure import Confirm, Confirmation, Confirmed, InUse, NotConfirmed
from objmeta.core.home import scope_of
from objmeta.core.inventory import Inventory, InventoryRequest, InventoryRow
from objmeta.core.messages import (
    TOMBSTONE,
    Erase,
    Erased,
    Floors,
    RaiseFloors,
    RecordRef,
    Refusal,
    Refused,
    Reply,
    ScopeFloor,
)
from objmeta.core.proposer import Send
from objmeta.errors import NoQuorum, StoreError, Unavailable
from objmeta.interfaces import Collected
from objmeta.register.asking import ask, insist

if TYPE_CHECKING:
    from objmeta.register.engine import Engine

SYSTEM: Final = b"~"
"""What names begin with that belong to the store itself; they are never erased."""
_DIGEST_BYTES: Final = 16
_RESEND_S: Final = 0.5

_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ErasureSettings:
    """How the eraser works. None of these numbers matters for safety."""

    names_per_batch: int = 500
    """Erased together: they share messages and syncs, and a foreground operation waits behind one batch at most."""
    confirming_max: int = 128
    """Rounds to confirm tombstones at a time."""
    answer_s: float = 5.0
    """How long an acceptor is waited for."""
    grace_s: float = 2.0
    """How long operations under way have at least before a floor refuses them."""
    seen_max: int = 4_000_000
    """Tombstones remembered from one pass to the next, 16 bytes each; further ones are seen by later passes."""
    promises_min: int = 1000
    """Promises without a value in one scope that are worth a floor, which costs new registers there the short way."""
    rest: float = 1.0
    """In the background: pauses between batches, as a multiple of how long a batch takes."""


class _Stop(Exception):
    """The pass cannot go on."""

    def __init__(self, problem: str, unreachable: tuple[int, ...] = ()) -> None:
        super().__init__(problem)
        self.unreachable = unreachable


class Seen:
    """Tombstones as a digest each, by page of the listing they were seen in.

    A tombstone is known by its newest record, whose name covers the whole chain; its ballot moves when it is read or
    repaired.
    """

    def __init__(self) -> None:
        self.below = 0
        """All operations on the chains of these tombstones had begun in a lower generation."""
        self.count = 0
        self._starts: list[bytes] = []
        self._pages: list[bytes] = []
        self._open = (-1, frozenset[bytes]())

    def add(self, start: bytes, tombstones: Iterable[tuple[bytes, RecordRef]]) -> None:
        """Remember those of a page that begins at ``start``; pages come in order."""
        page = b"".join(_digest(name, tip) for name, tip in tombstones)
        if page:
            self._starts.append(start)
            self._pages.append(page)
            self.count += len(page) // _DIGEST_BYTES

    def has(self, name: bytes, tip: RecordRef) -> bool:
        """Whether it was there; quick for names in order."""
        at = bisect_right(self._starts, name) - 1
        if at < 0:
            return False
        if at != self._open[0]:
            page = self._pages[at]
            self._open = at, frozenset(page[i : i + _DIGEST_BYTES] for i in range(0, len(page), _DIGEST_BYTES))
        return _digest(name, tip) in self._open[1]


def _digest(name: bytes, tip: RecordRef) -> bytes:
    return blake3(tip.digest + name).digest(_DIGEST_BYTES)


@dataclass(slots=True)
class _Tally:
    """What a pass has come to so far."""

    erased: int = 0
    left: int = 0


def _is_confirmed(shown: dict[int, InventoryRow], ballot: Ballot, members: tuple[int, ...]) -> bool:
    """Whether every acceptor shows the tombstone under this ballot, and nothing higher promised."""
    return len(shown) == len(members) and all(
        row.accepted == ballot and row.promised <= ballot and row.flag == TOMBSTONE for row in shown.values()
    )


class Eraser:
    """The eraser of one engine; belongs to its event loop. At most one pass runs at a time."""

    def __init__(self, engine: Engine, settings: ErasureSettings | None = None) -> None:
        self.settings = settings or ErasureSettings()
        self._engine = engine
        self._seen = Seen()
        self._promises: dict[bytes, tuple[int, Ballot]] = {}
        self._running = asyncio.Lock()
        self._run = 0
        self._collecting: asyncio.Task[Collected] | None = None
        self._now = Collected(0, True)

    # -- On demand ----------------------------------------------------------------------------------------------------

    async def collect(self, run: int, timeout_s: float) -> Collected:
        """Erase all that can be erased now: see :meth:`objmeta.interfaces.Registers.collect`."""
        if self._collecting is None or (run != self._run and self._collecting.done()):
            self._run += 1
            self._now = Collected(self._run, False)
            self._collecting = self._engine.loop.create_task(self._collect(self._run), name="objmeta collection")
        await asyncio.wait((self._collecting,), timeout=timeout_s)
        return self._collecting.result() if self._collecting.done() else self._now

    async def close(self) -> None:
        """Stop what runs on demand."""
        if self._collecting is not None:
            self._collecting.cancel()
            await asyncio.gather(self._collecting, return_exceptions=True)

    async def _collect(self, run: int) -> Collected:
        """Two passes: what the first sees the second erases."""
        passed = await self.run_pass(run)
        if passed.problem or passed.unreachable or not (self._seen.count or self._promises):
            return passed
        return await self.run_pass(run, erased_before=passed.erased)

    # -- A pass -------------------------------------------------------------------------------------------------------

    async def run_pass(self, run: int = 0, erased_before: int = 0, resting: bool = False) -> Collected:
        """One pass. ``resting`` leaves room for others between batches; the rest is for the report."""
        async with self._running:
            tally = _Tally(erased=erased_before)
            try:
                await self._pass(run, tally, resting)
            except _Stop as stopped:
                problem = "" if stopped.unreachable else str(stopped)
                _LOG.info("erasing stopped: %s", stopped)
                return Collected(run, True, tally.erased, tally.left, stopped.unreachable, problem)
            except (Unavailable, StoreError) as failure:
                return Collected(run, True, tally.erased, tally.left, problem=str(failure))
            return Collected(run, True, tally.erased, tally.left)

    async def _pass(self, run: int, tally: _Tally, resting: bool) -> None:
        engine, settings, generations = self._engine, self.settings, self._engine.generations
        epoch = engine.configuration.epoch
        self._check(epoch)
        due, floor = Seen(), 0
        if self._seen.count:
            floor = await generations.newest(settings.answer_s)
            await asyncio.sleep(max(0.0, settings.grace_s - generations.age_s(floor)))
            due = self._seen if self._seen.below <= floor else due
        covered = {
            scope: Ballot(greatest.counter + 1, 0, 0)  # above all those promises, and drawn by nobody
            for scope, (count, greatest) in self._promises.items()
            if count >= settings.promises_min
        }
        if floor or covered:
            await self._raise_floors(epoch, floor, covered)
        seen = Seen()
        promises: dict[bytes, tuple[int, Ballot]] = {}
        start: bytes | None = b""
        while start is not None:
            began_s = engine.loop.time()
            rows, following = await self._page(epoch, start)
            left = await self._look_at(epoch, rows, due, covered, promises, tally)
            if seen.count < settings.seen_max:
                seen.add(start, left)
            start = following
            self._now = Collected(run, False, tally.erased, tally.left)
            if resting:
                await asyncio.sleep(settings.rest * (engine.loop.time() - began_s))
        self._seen, self._promises = Seen(), promises
        if seen.count:
            newest = await generations.newest(settings.answer_s)
            await generations.move_past(newest, settings.answer_s)
            seen.below = newest + 1
            self._seen = seen

    async def _page(self, epoch: int, start: bytes) -> tuple[dict[bytes, dict[int, InventoryRow]], bytes | None]:
        """What all acceptors show of the names from ``start`` on, and where to go on (None: done)."""
        engine = self._engine
        request = InventoryRequest(start, b"", self.settings.names_per_batch, erasable=True)

        async def question(acceptor: int) -> Inventory | None:
            try:
                return await insist(
                    engine, acceptor, lambda: engine.transport.inventory(acceptor, request), self.settings.answer_s
                )
            except NoQuorum:
                return None

        members = engine.quorums.members
        answers = dict(zip(members, await asyncio.gather(*map(question, members)), strict=True))
        self._check(epoch)
        silent = tuple(acceptor for acceptor, answer in answers.items() if answer is None)
        if silent:
            raise _Stop("an acceptor does not show what it holds", silent)
        horizon = min((answer.covered for answer in answers.values() if answer and answer.covered), default=b"")
        rows: dict[bytes, dict[int, InventoryRow]] = {}
        for acceptor, answer in answers.items():
            for row in answer.rows if answer else ():
                if (not horizon or row.name < horizon) and not row.name.startswith(SYSTEM):
                    rows.setdefault(row.name, {})[acceptor] = row
        return rows, horizon or None

    async def _look_at(
        self,
        epoch: int,
        rows: dict[bytes, dict[int, InventoryRow]],
        due: Seen,
        covered: dict[bytes, Ballot],
        promises: dict[bytes, tuple[int, Ballot]],
        tally: _Tally,
    ) -> list[tuple[bytes, RecordRef]]:
        """Erase what is due on a page; the tombstones that are still there, with their newest records."""
        left: dict[bytes, RecordRef] = {}
        tips: dict[bytes, RecordRef] = {}
        confirmed: dict[bytes, Ballot] = {}
        unconfirmed: dict[bytes, Ballot] = {}
        forgotten: dict[bytes, Ballot] = {}
        for name in sorted(rows):
            shown = rows[name]
            newest = max(shown.values(), key=lambda row: row.accepted)
            if newest.flag is None:
                scope, promised = scope_of(name), max(row.promised for row in shown.values())
                if promised < covered.get(scope, ZERO):
                    forgotten[name] = covered[scope]
                else:
                    count, greatest = promises.get(scope, (0, ZERO))
                    promises[scope] = count + 1, max(greatest, promised)
            elif newest.tip is not None:
                tips[name] = newest.tip
                if not due.has(name, newest.tip):
                    left[name] = newest.tip
                elif _is_confirmed(shown, newest.accepted, self._engine.quorums.members):
                    confirmed[name] = newest.accepted
                else:
                    unconfirmed[name] = newest.accepted
        for name, outcome in (await self._confirm_all(epoch, unconfirmed)).items():
            if isinstance(outcome, Confirmed):
                confirmed[name] = outcome.ballot
            elif isinstance(outcome, NotConfirmed):
                tally.left += 1
                left[name] = tips[name]
        still_there = await self._erase(epoch, confirmed)
        left.update((name, tips[name]) for name in still_there)
        tally.left += len(still_there)
        tally.erased += len(confirmed) - len(still_there)
        await self._erase(epoch, forgotten)
        return list(left.items())

    # -- Talking to all acceptors -------------------------------------------------------------------------------------

    async def _raise_floors(self, epoch: int, generation: int, covered: dict[bytes, Ballot]) -> None:
        engine = self._engine
        request = RaiseFloors(
            generation, tuple((scope, ScopeFloor(0, ballot, 0)) for scope, ballot in sorted(covered.items()))
        )
        members = engine.quorums.members
        questions = (ask(engine, acceptor, request, self.settings.answer_s) for acceptor in members)
        replies = await asyncio.gather(*questions)
        self._check(epoch)
        silent = tuple(
            acceptor
            for acceptor, reply in zip(members, replies, strict=True)
            if not (isinstance(reply, Floors) and reply.generation >= generation)
        )
        if silent:
            raise _Stop("an acceptor does not confirm the floor", silent)

    async def _confirm_all(self, epoch: int, tombstones: dict[bytes, Ballot]) -> dict[bytes, Confirmation]:
        room = asyncio.Semaphore(self.settings.confirming_max)

        async def confirm(name: bytes, expected: Ballot) -> Confirmation:
            async with room:
                self._check(epoch)
                return await self._confirm(name, expected)

        outcomes = await asyncio.gather(*(confirm(name, ballot) for name, ballot in tombstones.items()))
        return dict(zip(tombstones, outcomes, strict=True))

    async def _confirm(self, name: bytes, expected: Ballot) -> Confirmation:
        """Two attempts: the first may learn of a higher ballot."""
        outcome: Confirmation = InUse()
        for _ in range(2):
            attempt = Confirm(self._engine.quorums.members, name, self._engine.ballots.next(), expected)
            outcome = await self._drive(attempt)
            if not isinstance(outcome, NotConfirmed) or outcome.greatest == attempt.ballot:
                break
            self._engine.ballots.saw(outcome.greatest)
        return outcome

    async def _drive(self, attempt: Confirm) -> Confirmation:
        engine = self._engine
        over: asyncio.Future[None] = engine.loop.create_future()

        def perform(sends: Sequence[Send]) -> None:
            for send in sends:
                for acceptor in send.to:
                    engine.transport.send(acceptor, send.request, on_reply)
            if attempt.outcome is not None and not over.done():
                over.set_result(None)

        def on_reply(acceptor: int, reply: Reply) -> None:
            if isinstance(reply, Refused) and reply.reason is Refusal.CONFIGURATION:
                engine.bring_together(acceptor, reply)
            perform(attempt.on_reply(acceptor, reply))

        perform(attempt.start())
        await asyncio.wait((over,), timeout=engine.settings.round_timeout_s)
        attempt.on_timeout()
        assert attempt.outcome is not None, "a timeout ends an attempt"
        return attempt.outcome

    async def _erase(self, epoch: int, ballots: dict[bytes, Ballot]) -> list[bytes]:
        """Erase these registers everywhere; those that are not gone everywhere."""
        if not ballots:
            return []
        self._check(epoch)
        engine = self._engine
        members = engine.quorums.members
        open_: dict[tuple[bytes, int], None] = {(name, acceptor): None for name in ballots for acceptor in members}
        left: dict[bytes, None] = {}
        over: asyncio.Future[None] = engine.loop.create_future()

        def answered(name: bytes, acceptor: int, reply: Reply) -> None:
            if (name, acceptor) not in open_ or isinstance(reply, Refused):
                return
            del open_[name, acceptor]
            if not (isinstance(reply, Erased) and reply.gone):
                left[name] = None
            if not open_ and not over.done():
                over.set_result(None)

        deadline = engine.loop.time() + self.settings.answer_s
        while not over.done() and engine.loop.time() < deadline:
            for name, acceptor in list(open_):
                engine.transport.send(acceptor, Erase(name, ballots[name]), functools.partial(answered, name))
            await asyncio.wait((over,), timeout=_RESEND_S)
            self._check(epoch)
        left.update((name, None) for name, _ in open_)
        return list(left)

    def _check(self, epoch: int) -> None:
        configuration = self._engine.configuration
        if configuration.is_joint or configuration.epoch != epoch:
            raise _Stop("the members are being changed; try again when that is done")
