"""The proposer of a process: linearizable registers over a transport.

Changes are made by ``changing``, listings by ``scanning``; here are reads, records, floors, health, and the change of
configuration that all of them follow.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from objmeta.core.ballot import BallotSource, mending_ballot
from objmeta.core.change import Identity
from objmeta.core.configuration import Configuration, Membership
from objmeta.core.fastread import FastRead, Reading
from objmeta.core.firstwrite import FirstWrite
from objmeta.core.listing import ScanRequest
from objmeta.core.messages import (
    Adopt,
    Fence,
    Fetch,
    Fetched,
    Found,
    Raised,
    RaiseTerm,
    Read,
    Record,
    RecordRef,
    Refusal,
    Refused,
    Reply,
    Request,
    State,
)
from objmeta.core.proposer import Round
from objmeta.core.records import is_intact
from objmeta.errors import Fenced, IntegrityError, NoQuorum, StaleGeneration, UnknownOutcome
from objmeta.interfaces import (
    ChangedNames,
    ChangeReply,
    ChangeRequest,
    Collected,
    Cycle,
    NodeStatus,
    ScanPage,
    StoreStatus,
    Transport,
    Watermarks,
)
from objmeta.register import following
from objmeta.register.changing import Changer, RoundFactory
from objmeta.register.erasing import Eraser
from objmeta.register.generations import Generations
from objmeta.register.replies import STALE_TERM
from objmeta.register.scanning import Scanner
from objmeta.register.together import Answered, Answers, Tried

_PROBE = b"~probe"
_PROBE_TIMEOUT_S_MAX = 1.0


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How patient a proposer is. None of these numbers matters for safety."""

    round_timeout_s: float = 2.0
    """Give up a round after this long and try a higher ballot."""
    straggler_wait_s: float = 0.005
    """Wait this long for the answers still out before an unsettled base is written back."""
    conflict_wait_s: float = 0.05
    """Wait this long for the answers still out when those of a quorum are there and one of them is a conflict: who is
    silent may be down, and then a round under the next ballot is the way on."""
    backoff_s_min: float = 0.002
    """First cap of the random wait after a conflict."""
    backoff_s_max: float = 0.1
    """Last cap of the random wait after a conflict."""
    fast_reads_max: int = 3
    """Fast reads tried before a read takes a full round."""
    names_remembered_max: int = 100_000
    """Registers remembered as not new, so that only the first change of one tries the first write's short way."""
    promises_kept_max: int = 10_000
    """Registers whose next ballot is kept promised, so that their next change takes one round trip."""


class Engine:
    """Linearizable registers with the proposer in this process; satisfies :class:`objmeta.interfaces.Registers`.

    Belongs to one event loop.  ``rng`` only spreads retries; ``ballots`` must be drawn from a proposer id and an
    incarnation that no other life of any proposer has.  ``own_acceptor`` is the acceptor of this process's own store,
    if it has one: for the registers it is home to, first writes take one round trip.  The factories exist for the
    simulator's broken variants.

    When a change of members comes to light (an acceptor says so), the engine adopts the new membership and
    ``on_adopt`` is called with it; rounds under way are given up, and their operations go on with new ones.
    """

    def __init__(
        self,
        membership: Membership,
        transport: Transport,
        ballots: BallotSource,
        rng: random.Random,
        settings: EngineSettings | None = None,
        *,
        own_acceptor: int | None = None,
        round_factory: RoundFactory = Round,
        first_write_factory: Callable[..., FirstWrite] = FirstWrite,
        on_adopt: Callable[[Membership], None] | None = None,
    ) -> None:
        self.membership = membership
        self.quorums = membership.configuration.quorums
        self.transport = transport
        self.settings = settings or EngineSettings()
        self.loop = asyncio.get_running_loop()
        self.ballots = ballots
        self.rng = rng
        self._on_adopt = on_adopt
        self.moved: asyncio.Future[None] = self.loop.create_future()
        """Done when the configuration in force now is no more; then there is another one of these."""
        self._changer = Changer(self, own_acceptor, round_factory, first_write_factory)
        self._scanner = Scanner(self)
        self.generations = Generations(self)
        self.eraser = Eraser(self)

    # -- Membership ---------------------------------------------------------------------------------------------------

    @property
    def configuration(self) -> Configuration:
        """The configuration in force, as far as is known here."""
        return self.membership.configuration

    def adopt(self, membership: Membership) -> bool:
        """Go on in this configuration, which was chosen, if its epoch is higher; whether it was."""
        if membership.configuration.epoch <= self.configuration.epoch:
            return False
        self.membership = membership
        self.quorums = membership.configuration.quorums
        self.transport.adopt(membership)
        self.moved.set_result(None)
        self.moved = self.loop.create_future()
        self._changer.on_adopt()
        if self._on_adopt is not None:
            self._on_adopt(membership)
        return True

    def bring_together(self, acceptor: int, refused: Refused) -> bool:
        """Learn the acceptor's newer configuration, or tell it ours; False if it is another store's."""
        if refused.membership is not None:
            self.adopt(refused.membership)
            return True
        if refused.behind:
            self.transport.send(acceptor, Adopt(self.membership), lambda acceptor, reply: None)
        return refused.behind

    def learn(self, acceptor: int, refused: Refused) -> bool:
        """Draw from a refusal what concerns more than its round; whether a configuration has moved for it."""
        if refused.reason is Refusal.DAMAGED:
            self.ballots.saw(mending_ballot(refused.greatest))
        return refused.reason is Refusal.CONFIGURATION and self.bring_together(acceptor, refused)

    # -- Changes ------------------------------------------------------------------------------------------------------

    async def change(self, request: ChangeRequest, timeout_s: float) -> ChangeReply:
        """Apply a change exactly once; see :class:`objmeta.interfaces.Registers`.

        A request that states no generation begins here, in the newest one known.  Raises NoQuorum (nothing changed;
        StaleGeneration if it was begun too long ago), UnknownOutcome, StoreFull or StoreError (the store refused,
        nothing changed), ConfigurationMismatch.
        """
        return await self._change(request, self.loop.time() + timeout_s)

    async def change_all(
        self, requests: Sequence[ChangeRequest], timeouts_s: Sequence[float], answered: Answered
    ) -> None:
        """Apply each of some changes, in no order; first writes among them share their messages.

        Each has so many seconds of its own.  ``answered`` is called with the answer of each, or with the error that
        :meth:`change` would raise, as soon as there is one.  Returns when all have theirs.
        """
        now = self.loop.time()
        deadlines = [now + timeout_s for timeout_s in timeouts_s]
        answers = Answers(len(requests), answered)

        def alone(place: int, tried: Tried | None) -> None:
            ended = None if tried is None else functools.partial(self._changer.let_go, tried)
            answers.work(place, self._change(requests[place], deadlines[place], tried), ended)

        self._changer.first_writes(requests, deadlines, answers.give, alone)
        await answers.wait()

    async def _change(self, request: ChangeRequest, deadline: float, tried: Tried | None = None) -> ChangeReply:
        begun = request
        if not request.generation:
            stated = await self.generations.stated(deadline - self.loop.time())
            begun = msgspec.structs.replace(request, generation=stated)
        try:
            return await self._changer.change(begun, deadline, tried)
        except StaleGeneration:
            newest = await self.generations.newest(deadline - self.loop.time())
            if request.generation or newest <= begun.generation:
                raise
        return await self._changer.change(msgspec.structs.replace(begun, generation=newest), deadline)

    # -- Reads --------------------------------------------------------------------------------------------------------

    async def read(self, names: Sequence[bytes], timeout_s: float, fence: Fence | None = None) -> list[State | None]:
        """The chosen states, each linearizable by itself. Raises NoQuorum, Fenced, ConfigurationMismatch."""
        deadline = self.loop.time() + timeout_s
        if len(names) == 1:
            return [await self._read(names[0], deadline, fence)]
        return list(await asyncio.gather(*(self._read(name, deadline, fence) for name in names)))

    async def settle(self, names: Sequence[bytes], timeout_s: float, fence: Fence | None) -> list[State | None]:
        """The same by full rounds only: no change that was under way below their ballots can be chosen afterwards."""
        deadline = self.loop.time() + timeout_s
        return list(await asyncio.gather(*(self._settle(name, deadline, fence) for name in names)))

    async def _read(self, name: bytes, deadline: float, fence: Fence | None) -> State | None:
        cap = self.settings.backoff_s_min
        for _ in range(self.settings.fast_reads_max):
            decided, state = await self._fast_read(name, deadline)
            if decided:
                return state
            await asyncio.sleep(self.rng.uniform(0, cap))
            cap *= 2
        return await self._settle(name, deadline, fence)

    async def _settle(self, name: bytes, deadline: float, fence: Fence | None) -> State | None:
        reply = await self._changer.change(ChangeRequest(name, Identity(), fence), deadline)
        if reply.code == STALE_TERM:
            raise Fenced("the bucket moved on while this was read; look it up and begin anew")
        return reply.state

    async def _fast_read(self, name: bytes, deadline: float) -> tuple[bool, State | None]:
        reading = FastRead(self.quorums)
        answer: asyncio.Future[bool] = self.loop.create_future()
        timers: list[asyncio.TimerHandle] = []

        def give_up() -> None:
            if not answer.done():
                answer.set_result(False)

        def on_reply(acceptor: int, reply: Reply) -> None:
            if answer.done() or not isinstance(reply, Found | Refused):
                return
            if isinstance(reply, Refused) and reply.reason is Refusal.CONFIGURATION:
                self.bring_together(acceptor, reply)
            match reading.on_reply(acceptor, reply):
                case Reading.DECIDED:
                    answer.set_result(True)
                case Reading.DIVIDED:
                    answer.set_result(False)
                case Reading.SPLIT:
                    timers.append(self.loop.call_later(self.settings.straggler_wait_s, give_up))
                case Reading.OPEN:
                    pass

        timers.append(self.loop.call_at(min(deadline, self.loop.time() + self.settings.round_timeout_s), give_up))
        request = Read(name)
        for acceptor in self.quorums.members:
            self.transport.send(acceptor, request, on_reply)
        try:
            decided = await answer
        finally:
            for timer in timers:
                timer.cancel()
        return decided, reading.state if decided else None

    async def records(
        self, name: bytes, refs: Sequence[RecordRef], timeout_s: float, with_data: bool = True
    ) -> list[Record]:
        """Fetch records by name from whoever holds them.

        Raises IntegrityError if every acceptor answered and one is nowhere (or damaged everywhere), else NoQuorum.
        """
        wanted = tuple(refs)
        found: dict[RecordRef, Record] = {}
        answered: set[int] = set()

        def take(acceptor: int, reply: Reply) -> bool:
            if isinstance(reply, Fetched):
                answered.add(acceptor)
                found.update((record.ref, record) for record in reply.records if is_intact(record))
            return all(ref in found for ref in wanted) or answered.issuperset(self.quorums.members)

        await self._ask(Fetch(name, wanted, with_data), take, timeout_s)
        if all(ref in found for ref in wanted):
            return [found[ref] for ref in wanted]
        if answered.issuperset(self.quorums.members):
            raise IntegrityError(f"a record of register {name!r} is missing or damaged on every node")
        raise NoQuorum(f"records of register {name!r} could not be fetched within {timeout_s:g} s; try again")

    async def scan(self, request: ScanRequest, timeout_s: float) -> ScanPage:
        """A decided page of registers. Raises NoQuorum, ConfigurationMismatch."""
        return await self._scanner.page(request, self.loop.time() + timeout_s)

    async def changes(self, since: Watermarks | None, limit: int, timeout_s: float) -> ChangedNames:
        """Which registers changed; see :class:`objmeta.interfaces.Registers`. Raises NoQuorum."""
        return await following.changes(self, since, limit, timeout_s)

    # -- Floors, erasure and health ------------------------------------------------------------------------------------

    async def raise_term(self, scope: bytes, term: int, timeout_s: float) -> None:
        """Raise a scope's floor on a majority. Raises UnknownOutcome if no majority confirmed it in time."""
        confirmed: set[int] = set()

        def take(acceptor: int, reply: Reply) -> bool:
            if isinstance(reply, Raised) and reply.term >= term:
                confirmed.add(acceptor)
            return self.quorums.is_quorum(confirmed)

        if not await self._ask(RaiseTerm(scope, term), take, timeout_s):
            raise UnknownOutcome(f"no majority of the nodes confirmed the new term within {timeout_s:g} s; try again")

    async def status(self, timeout_s: float) -> StoreStatus:
        """Which acceptors answer."""
        up: set[int] = set()

        def take(acceptor: int, reply: Reply) -> bool:
            if isinstance(reply, Found):
                up.add(acceptor)
            return len(up) == len(self.quorums.members)

        await self._ask(Read(_PROBE), take, min(timeout_s, _PROBE_TIMEOUT_S_MAX))
        nodes = tuple(NodeStatus(a, "", "up" if a in up else "down") for a in self.quorums.members)
        configuration = self.configuration
        return StoreStatus(configuration.store_id, configuration.epoch, nodes, self.quorums.is_quorum(up))

    async def _ask(self, request: Request, take: Callable[[int, Reply], bool], timeout_s: float) -> bool:
        """Ask everybody, again and again (the request is idempotent), until ``take`` is satisfied; False: never."""
        satisfied: asyncio.Future[None] = self.loop.create_future()
        again: asyncio.Future[None] = satisfied

        def ask_again() -> None:
            if not again.done():
                again.set_result(None)

        def on_reply(acceptor: int, reply: Reply) -> None:
            if satisfied.done():
                return
            if isinstance(reply, Refused) and reply.reason is Refusal.CONFIGURATION:
                if self.bring_together(acceptor, reply):
                    self.loop.call_later(self.settings.backoff_s_max, ask_again)
            elif take(acceptor, reply):
                satisfied.set_result(None)

        deadline = self.loop.time() + timeout_s
        while not satisfied.done() and self.loop.time() < deadline:
            again = self.loop.create_future()
            for acceptor in self.quorums.members:
                self.transport.send(acceptor, request, on_reply)
            patience_s = min(self.settings.round_timeout_s, deadline - self.loop.time())
            ends = (satisfied, self.moved, again)
            await asyncio.wait(ends, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
        return satisfied.done()

    async def collect(self, run: int, timeout_s: float) -> Collected:
        """Erase what can be erased now; see :class:`objmeta.interfaces.Registers`."""
        return await self.eraser.collect(run, timeout_s)

    async def begin_cycle(self, timeout_s: float) -> Cycle:
        """Have a generation begun, and the one before it made the floor everywhere. Raises NoQuorum."""
        return await self.generations.begin_cycle(timeout_s)

    async def close(self) -> None:
        """Stop erasing. Whoever made the transport closes it."""
        await self.eraser.close()
        self._changer.close()
