"""The copy of a membership change: what the old members hold comes to be held by the new ones (PROTOCOL, "Changing the
members").

Theory of operation.  A majority of the old members is fenced: it answers under the joint configuration only.  Asked
under that, it lists every register it has a row of, promises alone included.  Each of these completes an identity round
under joint, so that what is chosen is chosen by majorities of both sets and nothing older can be chosen any more.
Then every record on the chain of a chosen state is brought to a majority of the new members: as a duplicate of the very
accept that was chosen, with the records along.  Sending that again is always safe, it needs neither fence nor
generation.  An acceptor that has promised more refuses it, and the register gets a fresh round.

An identity round writes back what the new members lack, and in a bucket a write-back states the bucket's term
(docs/decisions/0005), which ``fence_of`` knows.  Of a bucket that is gone nothing more can be chosen, so nothing is
settled there: what a majority of the old members agrees on was chosen, and is handed on as a duplicate.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from objmeta.core.ballot import ZERO, Ballot
from objmeta.core.configuration import Membership
from objmeta.core.inventory import Inventory, InventoryRequest
from objmeta.core.messages import Accept, Accepted, Fence, Found, Read, Record, RecordRef, State
from objmeta.core.quorum import Quorums
from objmeta.errors import Fenced, IntegrityError, NoQuorum, NoSuchBucket
from objmeta.register.asking import all_of, ask, gather, insist

if TYPE_CHECKING:
    from objmeta.register.engine import Engine

FenceOf = Callable[[bytes, bool], Awaitable[Fence | None]]
"""What a write-back of a register states. With True: what it said last was refused, look again (and let the bucket
live, if somebody is removing it).  Raises NoSuchBucket if the bucket is gone."""

_FETCHED_TOGETHER: Final = 256
_MESSAGE_BYTES_MAX: Final = 1 << 20
_LINGER_S: Final = 0.02
"""How long the answers of those are waited for that are not needed: a node that is up is worth filling at once."""
_PAGE_LINGER_S: Final = 0.1
"""The same for what an acceptor holds of a page: whoever is not heard of seems to lack all of it."""
_ATTEMPTS_IN_DEAD_BUCKETS: Final = 3
_ATTEMPTS_AT_ONCE: Final = 20
"""Of a register that changes all the time the chosen state is caught after a few."""
_ATTEMPTS_MAX: Final = 200
_ATTEMPTS_BEFORE_LOST: Final = 4

_log = logging.getLogger(__name__)


class Superseded(Exception):
    """The configuration moved on: somebody else completed the change."""


@dataclass(slots=True)
class Progress:
    """How far a change of members has come, for people."""

    phase: str = "waiting"
    names: int = 0
    """Registers settled in this copy."""
    records: int = 0
    """Records sent to new members, beside those that rounds carry."""
    problem: str = ""
    """What it is waiting for, or why the last attempt failed."""


@dataclass(frozen=True, slots=True)
class CopySettings:
    """How hard a copy works. None of these numbers matters for safety."""

    page_names: int = 256
    """Registers listed at a time."""
    at_once: int = 32
    """Rounds in flight."""
    names_per_s_max: float = 4000.0
    """So that clients keep most of the nodes' time."""
    timeout_s: float = 10.0
    """For one question or round; then the copy begins anew."""


class _Row(NamedTuple):
    accepted: Ballot
    held: frozenset[RecordRef]


class _Holdings:
    """Of one register: what each acceptor holds, and the parents of all records anybody holds."""

    def __init__(self) -> None:
        self.rows: dict[int, _Row] = {}
        self.parents: dict[RecordRef, RecordRef | None] = {}

    def held_by(self, acceptor: int) -> frozenset[RecordRef]:
        row = self.rows.get(acceptor)
        return row.held if row is not None else frozenset()

    def chain(self, state: State) -> tuple[list[RecordRef], bool]:
        """The records of the state's chain that somebody holds, newest first, and whether that is all of them."""
        found: list[RecordRef] = []
        cursor = state.refs[-1] if state.refs else None
        while cursor is not None:
            if cursor not in self.parents:
                return found, False
            found.append(cursor)
            cursor = self.parents[cursor]
        return found, True


class _Settled(NamedTuple):
    """The state that is chosen; ``live`` unless nothing can be chosen there any more."""

    state: State | None
    live: bool


async def _no_fence(name: bytes, again: bool) -> Fence | None:
    return None


class Copier:
    """One pass through everything, under one joint configuration."""

    def __init__(
        self,
        engine: Engine,
        joint: Membership,
        progress: Progress,
        fence_of: FenceOf | None = None,
        settings: CopySettings | None = None,
    ) -> None:
        old, new = joint.configuration.member_sets
        self._engine = engine
        self._joint = joint.configuration
        self._old = Quorums((old,))
        self._new = Quorums((new,))
        self._progress = progress
        self._fence_of = fence_of or _no_fence
        self._settings = settings or CopySettings()
        self._room = asyncio.Semaphore(self._settings.at_once)

    async def run(self) -> None:
        """Return when everything is copied. Raises NoQuorum, UnknownOutcome (begin anew), Superseded."""
        self._progress.phase = "copying"
        self._progress.names = self._progress.records = 0
        began = self._engine.loop.time()
        start = b""
        while True:
            names, following = await self._list(start)
            settled = await all_of([self._settle(name) for name in names])
            if names:
                await self._spread(dict(zip(names, settled, strict=True)), start, following)
            self._progress.names += len(names)
            self._progress.problem = ""
            if not following:
                return
            start = following
            ahead_s = began + self._progress.names / self._settings.names_per_s_max - self._engine.loop.time()
            if ahead_s > 0:
                await asyncio.sleep(ahead_s)

    def _check(self) -> None:
        if self._engine.configuration != self._joint:
            raise Superseded

    # -- What there is ------------------------------------------------------------------------------------------------

    async def _list(self, start: bytes) -> tuple[list[bytes], bytes]:
        """A page of all names a fenced majority of the old members has rows of, and where the next one begins."""
        request = InventoryRequest(start, b"", self._settings.page_names)
        pages = await gather(
            {acceptor: self._inventory(acceptor, request) for acceptor in self._old.members}, self._old.is_quorum
        )
        self._check()
        if not self._old.is_quorum(pages):
            raise NoQuorum("no majority of the old members lists what it holds")
        horizon = min((page.covered for page in pages.values() if page.covered), default=b"")
        names = {row.name for page in pages.values() for row in page.rows if not horizon or row.name < horizon}
        return sorted(names), horizon

    async def _inventory(self, acceptor: int, request: InventoryRequest) -> Inventory:
        """One page, answered under the joint configuration. Raises NoQuorum, Superseded."""
        self._check()
        transport = self._engine.transport
        return await insist(
            self._engine, acceptor, lambda: transport.inventory(acceptor, request), self._settings.timeout_s
        )

    async def _holdings(self, names: Iterable[bytes], start: bytes, end: bytes) -> dict[bytes, _Holdings]:
        """What a quorum of the joint configuration holds of ``names``, which lie in the range."""
        wanted = set(names)
        answers = await gather(
            {acceptor: self._all_rows(acceptor, wanted, start, end) for acceptor in self._joint.quorums.members},
            self._joint.quorums.is_quorum,
            _PAGE_LINGER_S,
        )
        self._check()
        if not self._joint.quorums.is_quorum(answers):
            raise NoQuorum("no majority of the members says what it holds")
        found: dict[bytes, _Holdings] = {name: _Holdings() for name in wanted}
        for acceptor, rows in answers.items():
            for name, holdings in found.items():
                accepted, parents = rows.get(name, (ZERO, {}))
                holdings.rows[acceptor] = _Row(accepted, frozenset(parents))
                holdings.parents.update(parents)
        return found

    async def _all_rows(
        self, acceptor: int, wanted: set[bytes], start: bytes, end: bytes
    ) -> dict[bytes, tuple[Ballot, dict[RecordRef, RecordRef | None]]]:
        rows: dict[bytes, tuple[Ballot, dict[RecordRef, RecordRef | None]]] = {}
        request = InventoryRequest(start, end, self._settings.page_names)
        while True:
            page = await self._inventory(acceptor, request)
            for row in page.rows:
                if row.name in wanted:
                    _, parents = rows.setdefault(row.name, (row.accepted, {}))
                    parents.update(row.held)
            if page.rows and page.rows[-1].more:
                last = page.rows[-1]
                request = InventoryRequest(last.name, end, self._settings.page_names, last.held[-1][0])
            elif page.covered:
                request = InventoryRequest(page.covered, end, self._settings.page_names)
            else:
                return rows

    # -- Registers ----------------------------------------------------------------------------------------------------

    async def _settle(self, name: bytes) -> _Settled:
        """Complete an identity round, unless nothing can be chosen there any more (a bucket that is gone)."""
        again = False
        async with self._room:
            while True:
                self._check()
                try:
                    fence = await self._fence_of(name, again)
                    (state,) = await self._engine.settle((name,), self._settings.timeout_s, fence)
                    return _Settled(state, True)
                except NoSuchBucket:
                    chosen = await self._chosen(name, self._old)
                    return _Settled(chosen[1] if chosen is not None else None, False)
                except Fenced:
                    again = True

    # -- Records ------------------------------------------------------------------------------------------------------

    async def _spread(self, names: dict[bytes, _Settled], start: bytes, end: bytes) -> None:
        """Have a majority of the new members hold the chains of these states; what comes after them is there already,
        since it was chosen under joint."""
        found = await self._holdings(names, start, end)
        waiting = [name for name, holdings in found.items() if names[name].state and not self._is_spread(holdings)]
        lacking = waiting + [name for name, settled in names.items() if settled.state and not settled.live]
        await all_of([self._carry(name, found[name], names[name]) for name in sorted(set(lacking))])

    def _is_spread(self, holdings: _Holdings) -> bool:
        """Whether a majority of the new members holds every record there is; repair brings them to the others."""
        everything = len(holdings.parents)
        return self._new.is_quorum([a for a in holdings.rows if len(holdings.held_by(a)) == everything])

    async def _carry(self, name: bytes, holdings: _Holdings, settled: _Settled) -> None:
        """Bring the records of the settled state's chain to a majority of the new members.

        Any state that is chosen by then can take them along; when it moves on meanwhile, the next one does.
        """
        assert settled.state is not None, "what has no state has no records"
        async with self._room:
            chain = await self._chain(name, holdings, settled.state)
            lacking = {a: set(chain) - holdings.held_by(a) for a in holdings.rows if a in self._new.members}
            records: dict[RecordRef, Record] = {}
            done: set[int] = set()
            if settled.live:
                done.update(a for a in lacking if not lacking[a])
            for attempt in range(_ATTEMPTS_MAX):
                if self._new.is_quorum(done):
                    return
                wanted = {ref for refs in lacking.values() for ref in refs} | set(settled.state.refs)
                await self._fetch(name, sorted(wanted - records.keys()), records)
                chosen = await self._chosen(name, self._joint.quorums if settled.live else self._old)
                if chosen is not None and chosen[1] is not None:
                    again = Accept(name, chosen[0], chosen[1])
                    needy = {a: self._send(a, again, lacking[a], records, done) for a in lacking if a not in done}
                    await gather(needy, lambda _: self._new.is_quorum(done), _LINGER_S)
                elif settled.live:
                    fence = await self._fence_of(name, False)
                    await self._engine.settle((name,), self._settings.timeout_s, fence)
                if attempt >= _ATTEMPTS_AT_ONCE:
                    await asyncio.sleep(self._engine.rng.uniform(0, self._engine.settings.backoff_s_max))
                if not settled.live and attempt >= _ATTEMPTS_IN_DEAD_BUCKETS:
                    return
            if not self._new.is_quorum(done):
                raise NoQuorum(f"no majority of the new members takes the records of register {name!r}")

    async def _chain(self, name: bytes, holdings: _Holdings, state: State) -> list[RecordRef]:
        for _ in range(_ATTEMPTS_BEFORE_LOST):
            chain, whole = holdings.chain(state)
            if whole:
                return chain
            found = (await self._holdings((name,), name, name + b"\0"))[name]
            holdings.rows.update(found.rows)
            holdings.parents.update(found.parents)
        _log.warning("of register %r older records are nowhere: they cannot be copied", name)
        return chain

    async def _chosen(self, name: bytes, quorums: Quorums) -> tuple[Ballot, State | None] | None:
        """What is chosen, if a quorum agrees on it at this moment."""
        found = await gather(
            {acceptor: self._read(acceptor, name) for acceptor in quorums.members}, quorums.is_quorum, _LINGER_S
        )
        self._check()
        ballots: dict[Ballot, list[int]] = {}
        for acceptor, answer in found.items():
            ballots.setdefault(answer.accepted, []).append(acceptor)
        for ballot, acceptors in ballots.items():
            if quorums.is_quorum(acceptors):
                return ballot, found[acceptors[0]].state
        return None

    async def _read(self, acceptor: int, name: bytes) -> Found | None:
        reply = await ask(self._engine, acceptor, Read(name), self._engine.settings.round_timeout_s)
        return reply if isinstance(reply, Found) else None

    async def _send(
        self, acceptor: int, again: Accept, lacking: set[RecordRef], records: dict[RecordRef, Record], done: set[int]
    ) -> bool | None:
        """Send a chosen accept again with the records that are lacking, in several messages if there are many."""
        # Whoever has not accepted yet does so with the first message, and needs the records the state names.
        named = [records[ref] for ref in again.state.refs if ref in records]
        others = [records[ref] for ref in sorted(lacking) if ref in records and ref not in again.state.refs]
        messages = [named] if not others else [named + first if not at else first for at, first in _messages(others)]
        for along in messages:
            accept = msgspec.structs.replace(again, records=tuple(along))
            reply = await ask(self._engine, acceptor, accept, self._engine.settings.round_timeout_s)
            if not isinstance(reply, Accepted):
                return None
            lacking.difference_update(record.ref for record in along)
            self._progress.records += len(along)
        done.add(acceptor)
        return True

    async def _fetch(self, name: bytes, refs: list[RecordRef], into: dict[RecordRef, Record]) -> None:
        """Fetch many at a time, or one by one where they are too long together."""
        at_once = _FETCHED_TOGETHER
        while refs:
            try:
                found = await self._engine.records(name, refs[:at_once], self._settings.timeout_s)
            except (NoQuorum, IntegrityError):
                if at_once == 1:
                    raise
                at_once = 1
                continue
            into.update((record.ref, record) for record in found)
            refs = refs[at_once:]


def _messages(records: list[Record]) -> Iterator[tuple[int, list[Record]]]:
    """The records in messages of some length, numbered."""
    number = start = size = 0
    for at, record in enumerate(records):
        length = len(record.body) + len(record.data)
        if at > start and size + length > _MESSAGE_BYTES_MAX:
            yield number, records[start:at]
            number, start, size = number + 1, at, 0
        size += length
    yield number, records[start:]
