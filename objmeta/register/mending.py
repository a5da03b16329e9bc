"""Mending one register at one acceptor: what is chosen is found out, and repeated to it with the records it lacks.

What others accepted, or hold, is never copied as it is (``core.repair``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from objmeta.core.ballot import ZERO, Ballot, mending_ballot
from objmeta.core.change import Renewal
from objmeta.core.fastread import FastRead, Reading
from objmeta.core.messages import (
    TOMBSTONE,
    Accept,
    Accepted,
    Fetch,
    Fetched,
    Found,
    Read,
    Record,
    RecordRef,
    Refusal,
    Refused,
    Reply,
    Request,
    State,
)
from objmeta.core.records import is_intact
from objmeta.core.repair import Look, chain, off_chain, parcels
from objmeta.errors import IntegrityError, NoQuorum, NoSuchBucket, StoreError, Unavailable
from objmeta.interfaces import ChangeRequest
from objmeta.register.copying import FenceOf
from objmeta.register.engine import Engine
from objmeta.register.replies import STALE_TERM

PARCEL_BYTES_MAX: Final = 1 << 20
"""Records sent in one accept, beyond a single longer one: far below what may travel (``rpc.options.ITEM_BYTES_MAX``),
so that nothing waits long behind it."""
_FETCHED_TOGETHER_MAX: Final = 32
_SHORT_HISTORY: Final = 8
"""So many records may come along with an accept that is new to the acceptor."""
_REST_S_MAX: Final = 1.0
_DEFERRED_MAX: Final = 1000
_DEAD_REMEMBERED_MAX: Final = 100_000
_TRIES: Final = 4


@dataclass(frozen=True, slots=True)
class RepairSettings:
    """How hard repair works. None of these numbers matters for safety."""

    compared_per_s_max: float = 20_000.0
    """Registers compared, each second."""
    mended_per_s_max: float = 2_000.0
    """Registers looked at one by one, each second."""
    bytes_per_s_max: float = 32e6
    """Content of records moved, each second."""
    rest_min: float = 0.5
    """Seconds rested for each second of work while nothing else goes on."""
    rest_max: float = 4.0
    """The same while the loop is busy with others, which shows in rests that end late."""
    late_s: float = 0.005
    """From when on a rest has ended late."""
    defer_s: float = 1.0
    """What no quorum is seen to agree on may be a write under way, so it is looked at again after this, before a round
    of ours gets in its way."""
    at_once: int = 32
    """Registers being mended at a time; what clients ask waits behind no more than these."""
    lanes: int = 4
    """Parts of the names that are compared and mended at a time: while one waits for peers, another works."""
    page_names: int = 128
    """Registers in one page of an inventory."""
    timeout_s: float = 10.0
    """For one question, or one round."""
    period_s: float = 600.0
    """A pass is begun at least this often."""
    again_s: float = 5.0
    """A pass that left something undone is repeated after this, then after twice as long, up to ``period_s``."""
    watch_s: float = 0.25
    """How often connections are looked at."""
    mark_s: float = 2.0
    """How often peers in reach are asked how far their changes have come; what is older than this has arrived."""
    changed_max: int = 300_000
    """More changes than this while a peer was out of reach are not looked at one by one: all is compared.  Their names
    take some thirty megabytes."""
    start_s: float = 3.0
    """How long after its start a node first compares.  Before, there are connections to be made and clients that come
    back, and peers that are still missing may come, so as to be compared with in the same pass."""


@dataclass(slots=True)
class Progress:
    """How far repair has come. Times are the loop's."""

    running: bool = False
    began: float = 0.0
    compared: int = 0
    """Registers compared in this pass, or in the last one."""
    repaired: int = 0
    """Registers mended in it."""
    records: int = 0
    """Records brought in it."""
    left: int = 0
    """Registers it could not mend."""
    lost: int = 0
    """Registers in it with a record that nobody has."""
    complete: float | None = None
    """When the last pass ended that compared everything with everybody and left nothing."""
    passes: int = 0
    """Passes that were finished, complete or not."""
    problem: str = ""
    """Why the last pass did not finish."""
    peers: dict[int, str] = field(default_factory=dict)
    """Each peer in the last pass: "comparing", "compared" or "unreachable"."""


class Moved(Unavailable):
    """The configuration is another one than when the pass began."""


class Pace:
    """Lets so much through each second, a tenth of a second's worth at once."""

    def __init__(self, loop: asyncio.AbstractEventLoop, per_s: float) -> None:
        self._loop = loop
        self._per_s = per_s
        self._free_at = loop.time()

    async def take(self, amount: float) -> None:
        now = self._loop.time()
        self._free_at = max(self._free_at, now - 0.1) + amount / self._per_s
        if self._free_at > now:
            await asyncio.sleep(self._free_at - now)


class Mender:
    """Mends registers at one acceptor, for a :class:`~objmeta.register.repairing.Repairer`."""

    def __init__(
        self, engine: Engine, acceptor: int, settings: RepairSettings, progress: Progress, fence_of: FenceOf | None
    ) -> None:
        self._engine = engine
        self._loop = engine.loop
        self._acceptor = acceptor
        self._settings = settings
        self._progress = progress
        self._fence_of = fence_of
        self._mend_pace = Pace(self._loop, settings.mended_per_s_max)
        self._bytes_pace = Pace(self._loop, settings.bytes_per_s_max)
        self._rest = settings.rest_max  # gently at first
        self._deferred: list[Look] = []
        self._deferred_at = 0.0
        self._room = asyncio.Semaphore(settings.at_once)
        self._dead: dict[bytes, frozenset[RecordRef]] = {}
        self.configuration = engine.configuration
        """What the pass under way was begun in."""

    async def mend(self, looks: Sequence[Look]) -> None:
        """Mend these registers, as many as can be; some only with :meth:`finish`.

        Raises Moved if the configuration changed.
        """
        new = [look for look in looks if not self._is_known(look)]
        await self._mend_pace.take(len(new))
        began = self._loop.time()
        await asyncio.gather(*(self._mend(look) for look in new))
        await self.rest(began)
        if len(self._deferred) >= _DEFERRED_MAX:
            await self.finish()

    def begin(self) -> None:
        """A pass begins, under the engine's configuration."""
        self.configuration = self._engine.configuration
        self._deferred.clear()

    async def finish(self) -> None:
        """Mend what was deferred."""
        while self._deferred:
            deferred, self._deferred = self._deferred, []
            await asyncio.sleep(max(0.0, self._deferred_at + self._settings.defer_s - self._loop.time()))
            for at in range(0, len(deferred), self._settings.page_names):
                began = self._loop.time()
                some = deferred[at : at + self._settings.page_names]
                await asyncio.gather(*(self._mend(look, patient=False) for look in some))
                await self.rest(began)

    async def mend_damaged(self, names: Sequence[bytes]) -> int:
        """Mend registers whose rows were found damaged; how many of them were. Raises Moved."""
        await self._mend_pace.take(len(names))
        return sum(await asyncio.gather(*(self._mend_row(name) for name in names)))

    async def _mend_row(self, name: bytes) -> bool:
        async with self._room:
            self.check()
            return await self._settle(Look(name, ZERO, (), False, ZERO, frozenset(), {}, damaged=True))

    async def rest(self, began: float) -> None:
        """Rest from the work that began then: the longer, the busier the loop is with what clients want."""
        settings = self._settings
        now = self._loop.time()
        until = now + min(self._rest * (now - began), _REST_S_MAX)
        await asyncio.sleep(until - now)
        late = self._loop.time() - until > settings.late_s
        self._rest = min(self._rest * 1.5, settings.rest_max) if late else max(self._rest * 0.9, settings.rest_min)

    def _is_known(self, look: Look) -> bool:
        """Whether all that is lacking are records found dead before."""
        lacks_ballot = look.accepted != look.ballot or look.damaged
        return not lacks_ballot and look.strange <= self._dead.get(look.name, frozenset())

    async def _mend(self, look: Look, patient: bool = True) -> None:
        if patient and not look.chosen and not look.damaged:
            self._deferred.append(look)
            self._deferred_at = self._loop.time()
            return
        async with self._room:
            self.check()
            if await self._repeat(look) or await self._settle(look):
                self._progress.repaired += 1
            else:
                self._progress.left += 1

    async def _repeat(self, look: Look) -> bool:
        """Repeat what the inventories showed to be chosen; False if they did not, or it was refused."""
        if not look.chosen or look.damaged:
            return False
        sources = (self._acceptor,) if look.accepted == look.ballot else look.holders
        for source in sources:
            reply = await self._ask(source, Read(look.name))
            if isinstance(reply, Found) and reply.accepted == look.ballot and reply.state is not None:
                return await self._bring(look, look.ballot, reply.state, look.accepted)
        return False

    async def _settle(self, look: Look) -> bool:
        """Find out what is chosen now, by a round that mends everybody where that is not clear or was refused."""
        for attempt in range(_TRIES):
            if attempt == 1:  # it may have been a write under way
                await asyncio.sleep(self._engine.rng.uniform(0, self._engine.settings.backoff_s_max))
            elif attempt and not await self._renew(look.name):
                return False
            chosen, answers = await self._read(look.name)
            own = answers.get(self._acceptor)
            newest = max((found.accepted for found in answers.values()), default=ZERO)
            if chosen is not None and chosen[0] == newest and own is not None:
                ballot, state = chosen
                if state is None or await self._bring(look, ballot, state, own.accepted):
                    return True
        return False

    async def _read(self, name: bytes) -> tuple[tuple[Ballot, State | None] | None, dict[int, Found]]:
        """What a quorum agrees on, if any does, and the answers of those that can be reached."""
        engine = self._engine
        reading = FastRead(engine.quorums)
        answers: dict[int, Found] = {}
        answered: set[int] = set()
        decided = False
        over: asyncio.Future[None] = self._loop.create_future()

        def on_reply(acceptor: int, reply: Reply) -> None:
            nonlocal decided
            if over.done() or acceptor in answered or not isinstance(reply, Found | Refused):
                return
            answered.add(acceptor)
            if isinstance(reply, Found):
                answers[acceptor] = reply
            else:
                self._refused(acceptor, reply)
            decided = decided or reading.on_reply(acceptor, reply) is Reading.DECIDED
            if decided and self._acceptor in answered:
                self._loop.call_later(engine.settings.straggler_wait_s, finish)
            if len(answered) == len(engine.quorums.members):
                finish()

        def finish() -> None:
            if not over.done():
                over.set_result(None)

        timer = self._loop.call_later(engine.settings.round_timeout_s, finish)
        request = Read(name)
        for acceptor in engine.quorums.members:
            engine.transport.send(acceptor, request, on_reply)
        try:
            await over
        finally:
            timer.cancel()
        self.check()
        return (reading.ballot, reading.state) if decided else None, answers

    async def _renew(self, name: bytes) -> bool:
        """Have the register's state accepted anew by everybody; False where that cannot be done now."""
        again = False
        for _ in range(_TRIES):
            try:
                fence = await self._fence_of(name, again) if self._fence_of is not None else None
                request = ChangeRequest(name, Renewal(), fence)
                reply = await self._engine.change(request, self._settings.timeout_s)
            except (NoSuchBucket, Unavailable, StoreError):
                return False  # of a bucket that is gone nothing more can be chosen, and nobody asks for it
            if reply.code != STALE_TERM:
                return True
            again = True
        return False

    async def _bring(self, look: Look, ballot: Ballot, state: State, accepted: Ballot) -> bool:
        """Repeat the chosen accept to the acceptor, with what it lacks of the chain, oldest first."""
        links = await self._chain(look.name, state, dict(look.parents))
        if links is None:
            self._progress.lost += 1
            return False
        self._remember_dead(look, links)
        missing = [ref for ref in reversed(links) if ref not in look.held]
        if accepted != ballot:
            first = missing if len(missing) <= _SHORT_HISTORY else [ref for ref in missing if ref in state.refs]
            records = await self._fetch(look.name, first, look.holders)
            if records is None:
                return False
            if _size(records) > PARCEL_BYTES_MAX:
                records = [record for record in records if record.ref in state.refs]
            reply = await self._accept(look.name, ballot, state, records)
            if not isinstance(reply, Accepted):
                return accepted == ZERO and _is_erased(state, reply)
            brought = {record.ref for record in records}
            missing = [ref for ref in missing if ref not in brought]
            if not missing and look.held - set(links):
                missing = list(state.refs)  # what it held branched off: the repetition lets it see that all is there
        return await self._bring_history(look, ballot, state, missing)

    async def _bring_history(self, look: Look, ballot: Ballot, state: State, missing: Sequence[RecordRef]) -> bool:
        """Send the records along with repetitions of the accept, few at a time where they are long."""
        together = 1
        at = 0
        while at < len(missing):
            records = await self._fetch(look.name, missing[at : at + together], look.holders)
            if records is None and together > 1:
                together = 1  # they may be too long for a message
                continue
            if records is None:
                return False
            for parcel in parcels(records, PARCEL_BYTES_MAX):
                if not isinstance(await self._accept(look.name, ballot, state, parcel), Accepted):
                    return False
            at += len(records)
            together = min(together * 2, _FETCHED_TOGETHER_MAX) if _size(records) <= PARCEL_BYTES_MAX // 4 else 1
        return True

    async def _accept(self, name: bytes, ballot: Ballot, state: State, records: Sequence[Record]) -> Reply | None:
        """What the acceptor says to the accept with these records."""
        await self._bytes_pace.take(_size(records))
        reply = await self._ask(self._acceptor, Accept(name, ballot, state, tuple(records)))
        if isinstance(reply, Accepted):
            self._progress.records += len(records)
        return reply

    async def _chain(
        self, name: bytes, state: State, parents: dict[RecordRef, RecordRef | None]
    ) -> list[RecordRef] | None:
        """The state's chain, newest first; None if a record of it is nowhere to be found."""
        links, cursor = chain(state.refs, parents)
        while cursor is not None:
            try:
                (record,) = await self._engine.records(name, (cursor,), self._settings.timeout_s, with_data=False)
            except (NoQuorum, IntegrityError):
                return None
            parents[cursor] = record.parent
            further, cursor = chain((cursor,), parents)
            links += further
        return links

    def _remember_dead(self, look: Look, links: Collection[RecordRef]) -> None:
        dead = off_chain(look.strange, set(links))
        if dead:
            if len(self._dead) >= _DEAD_REMEMBERED_MAX:
                self._dead.clear()
            self._dead[look.name] = dead

    async def _fetch(self, name: bytes, refs: Sequence[RecordRef], holders: Iterable[int]) -> list[Record] | None:
        """These records, in order, from whoever holds them; None if they were not all found intact."""
        found: dict[RecordRef, Record] = {}
        sources = dict.fromkeys((*holders, *sorted(self._others())))
        for source in sources:
            wanted = tuple(ref for ref in refs if ref not in found)
            if not wanted:
                break
            reply = await self._ask(source, Fetch(name, wanted))
            if isinstance(reply, Fetched):
                found.update((record.ref, record) for record in reply.records if is_intact(record))
        return [found[ref] for ref in refs] if all(ref in found for ref in refs) else None

    # -- Questions ----------------------------------------------------------------------------------------------------

    def _others(self) -> list[int]:
        return [member for member in self._engine.quorums.members if member != self._acceptor]

    def check(self) -> None:
        """Raise Moved if the configuration is no longer that of the pass."""
        if self._engine.configuration != self.configuration:
            raise Moved("the configuration has changed; repair begins anew")

    def _refused(self, acceptor: int, reply: Refused) -> None:
        if reply.reason is Refusal.CONFIGURATION:
            self._engine.bring_together(acceptor, reply)
        damaged = reply.reason is Refusal.DAMAGED
        self._engine.ballots.saw(mending_ballot(reply.greatest) if damaged else reply.greatest)

    async def _ask(self, acceptor: int, request: Request) -> Reply | None:
        """The reply of one acceptor, None if there is none in time. Raises Moved."""
        engine = self._engine
        answer: asyncio.Future[Reply | None] = self._loop.create_future()

        def on_reply(acceptor: int, reply: Reply | None) -> None:
            if isinstance(reply, Refused):
                self._refused(acceptor, reply)
            if not answer.done():
                answer.set_result(reply)

        timer = self._loop.call_later(engine.settings.round_timeout_s, on_reply, acceptor, None)
        engine.transport.send(acceptor, request, on_reply)
        try:
            reply = await answer
        finally:
            timer.cancel()
        self.check()
        return reply


def _is_erased(state: State, reply: Reply | None) -> bool:
    """Of a register the acceptor has no row of: it is erased there already, or is just being erased."""
    return state.flag == TOMBSTONE and isinstance(reply, Refused) and reply.reason is Refusal.CONFLICT


def _size(records: Sequence[Record]) -> int:
    return sum(len(record.body) + len(record.data) for record in records)
