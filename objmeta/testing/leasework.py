"""Clients that contend for one lock, each with a clock of its own, and that are paused anywhere.

What must hold (DESIGN section 4): as long as clocks differ by no more than 10 % in rate, no two clients believe at the
same instant that they hold the lock, and what is done under a valid lease is never refused by whoever compares tokens;
whatever the clocks do, tokens grow from one holder to the next; and once faults stop everybody gets a turn.

Run one seed by ``python -m objmeta.testing.leasework --seed N [--variant NAME] --trace``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextvars
import random
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from objmeta.core.messages import Fence, Record, RecordRef, State
from objmeta.errors import LockHeld, LockLost, NoQuorum, ObjmetaError, StoreFull, Unavailable, UnknownOutcome
from objmeta.interfaces import ChangeReply, ChangeRequest
from objmeta.model.leases import LeaseValue, standing_of, taken
from objmeta.model.names import lock_register
from objmeta.objects.claims import Claim
from objmeta.objects.context import Context
from objmeta.objects.locks import AsyncLease, Locks
from objmeta.testing import loop as simulated
from objmeta.testing.checkers import Violation
from objmeta.testing.mutations import NONE
from objmeta.testing.network import Trace
from objmeta.testing.processes import PROCESS, Process, task_of_a_process
from objmeta.testing.workload import NoProgress
from objmeta.testing.world import Interrupted, Proposer, World

T = TypeVar("T")

SAFETY = "safety"
LIVENESS = "liveness"

_NAME = "lock"
_PATIENCE_S = 10.0
_SAMPLE_S = 0.03
_FAULTY_TTLS_MAX = 30
"""For how many times-to-live things break."""


# -- Broken variants --------------------------------------------------------------------------------------------------


class _IgnoresRenewals(Claim):
    """A contender counts from when it first saw the holder, whatever that has renewed since."""

    def patience_s(self) -> float:
        now = self._clock()
        since = self._sightings.since(self._register + b"/", (self.standing.lease.holder, 0, 0), now)
        return max(0.0, since + self.standing.patience_us(self.holder) / 1e6 - now)


class _CountsFromTheQuestion(Claim):
    """A contender counts from before it sent the read."""

    async def look(self, timeout_s: float) -> None:
        asked = self._clock()
        (state,) = await self._context.registers.read((self._register,), timeout_s)
        clock, self._clock = self._clock, lambda: asked
        self._found(standing_of(state))
        self._clock = clock


class _CountsFromTheAnswer(Claim):
    """A holder counts from the return of its message."""

    async def _write(self, lease: LeaseValue, timeout_s: float) -> bool:
        written = await super()._write(lease, timeout_s)
        if written and self.is_mine:
            self._sent[self.standing.lease.renewal] = self._clock()
        return written


class _TokenStays(Claim):
    """A lock that is taken over keeps its token."""

    async def take(self, timeout_s: float) -> bool:
        lease = taken(self.holder, self._stamp(), self._ttl_us, self._owner)
        return await self._write(msgspec.structs.replace(lease, token=self.standing.token), timeout_s)


class _BelievesTheUnknown(Claim):
    """A renewal whose outcome is not known is taken for done."""

    async def renew(self, timeout_s: float) -> bool:
        try:
            return await super().renew(timeout_s)
        except UnknownOutcome:
            self._sent[self.standing.lease.renewal] = self._clock()
            return True


@dataclass(frozen=True, slots=True)
class Variant:
    """How the lock is broken."""

    name: str
    claim_type: type[Claim] = Claim
    clock_stands: bool = False
    """The clock doesn't count the time a process is paused."""


REAL = Variant("real")
VARIANTS = {
    variant.name: variant
    for variant in (
        REAL,
        Variant("ignores-renewals", _IgnoresRenewals),
        Variant("counts-from-the-question", _CountsFromTheQuestion),
        Variant("counts-from-the-answer", _CountsFromTheAnswer),
        Variant("token-stays", _TokenStays),
        Variant("believes-the-unknown", _BelievesTheUnknown),
        Variant("clock-stands", clock_stands=True),
    )
}
BROKEN = sorted(VARIANTS.keys() - {REAL.name})


# -- The clients ------------------------------------------------------------------------------------------------------


class _Remote:
    """The registers as a client's process reaches them, through any proposer, which is another process."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self._world = world
        self._rng = rng

    async def read(self, names: Sequence[bytes], timeout_s: float, fence: Fence | None = None) -> list[State | None]:
        proposer = await self._proposer()
        try:
            return await _elsewhere(proposer.run(proposer.engine.read(names, timeout_s)))
        except Interrupted:
            raise NoQuorum("the proposer crashed") from None

    async def change(self, request: ChangeRequest, timeout_s: float) -> ChangeReply:
        proposer = await self._proposer()
        try:
            return await _elsewhere(proposer.run(proposer.engine.change(request, timeout_s)))
        except Interrupted:
            raise UnknownOutcome("the proposer crashed") from None

    async def records(
        self, name: bytes, refs: Sequence[RecordRef], timeout_s: float, with_data: bool = True
    ) -> list[Record]:
        raise NotImplementedError("locks have no use for records")

    def __getattr__(self, name: str) -> Any:
        raise NotImplementedError(f"locks have no use for {name}")

    async def _proposer(self) -> Proposer:
        await asyncio.sleep(self._rng.choice((0.0, 0.001)))  # where a process can be paused with the message in hand
        up = [proposer for proposer in self._world.proposers if proposer.up]
        if not up:
            raise NoQuorum("no proposer is up")
        return self._rng.choice(up)


async def _elsewhere(work: Awaitable[T]) -> T:
    token = PROCESS.set(None)
    try:
        return await work
    finally:
        PROCESS.reset(token)


class LeaseWork:
    """The clients of one run."""

    def __init__(self, world: World, variant: Variant = REAL) -> None:
        self.world = world
        self.acquired = 0
        self.lost = 0
        self.acts = 0
        world.loop.set_task_factory(task_of_a_process)
        rng = self._rng = world.random("lease clients")
        self._ttl_s = rng.choice((0.3, 0.8))
        self._timeout_s = rng.choice((0.2, 0.4, 1.0))
        self._left = rng.randint(3, 6)
        self._pauses = rng.choice((0.0, 0.5, 1.0, 3.0))
        """Pauses in a time-to-live."""
        self._deaths = rng.choice((0.0, 0.1, 0.4))
        self._wild = rng.random() < 0.2
        """Whether clocks jump although no time passes, which nothing can be safe from but the tokens."""
        self._variant = variant
        self._processes = [
            Process(number, world.random(f"process {number}"), variant.clock_stands)
            for number in range(1, rng.choice((2, 2, 3, 4)) + 1)
        ]
        self._held: list[tuple[Process, AsyncLease]] = []
        self._greatest = 0
        self._resource = 0
        world.note(f"lease work: ttl {self._ttl_s} s, {len(self._processes)} clients, wild {self._wild}")

    @property
    def writes(self) -> int:
        """Changes that were chosen."""
        return len(self.world.watch.chain(lock_register(_NAME)))

    # -- Phases -------------------------------------------------------------------------------------------------------

    async def with_faults(self) -> None:
        """Everybody wants the lock, again and again, while things break."""
        background = [asyncio.create_task(self._disturb()), asyncio.create_task(self._sample())]
        await asyncio.gather(*(self._start(process, self._client(process)) for process in self._processes))
        for task in background:
            task.cancel()

    async def after_healing(self) -> None:
        """Everybody gets the lock once more, in a bounded time."""
        for process in self._processes:
            process.wake()
        sampling = asyncio.create_task(self._sample())
        limit_s = (len(self._processes) + 1) * (1.2 * self._ttl_s + 2.0) + _PATIENCE_S
        turns = asyncio.gather(*(self._start(process, self._turn(process)) for process in self._processes))
        try:
            await asyncio.wait_for(turns, limit_s)
        except TimeoutError:
            raise NoProgress(f"not everybody had the lock within {limit_s:g} s") from None
        except Unavailable as error:
            raise NoProgress(f"the lock could not be taken although all is well: {error}") from error
        sampling.cancel()

    def check(self) -> None:
        """Everything is checked as it happens."""

    def _start(self, process: Process, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        context = contextvars.copy_context()
        context.run(PROCESS.set, process)
        return context.run(self.world.loop.create_task, work)

    # -- A client -----------------------------------------------------------------------------------------------------

    def _locks(self, process: Process, timeout_s: float) -> Locks:
        remote: Any = _Remote(self.world, process.rng)
        context = Context(remote, lambda: 0, lambda: process.rng.randbytes(16), timeout_s, False)
        return Locks(context, process.clock, process.rng, self._variant.claim_type)

    async def _client(self, process: Process) -> None:
        rng = process.rng
        locks = self._locks(process, self._timeout_s)
        while self._left > 0 and self.world.loop.time() < _FAULTY_TTLS_MAX * self._ttl_s:
            wait_s = rng.choice((0.0, 1.0, 5.0, 5.0)) * self._ttl_s
            before = self._greatest
            try:
                lease = await locks.acquire(_NAME, self._ttl_s, wait_s, f"client {process.number}")
            except (LockHeld, Unavailable, StoreFull) as error:
                self.world.note(f"client {process.number}: {error!r}")
                await asyncio.sleep(rng.uniform(0.1, 0.5) * self._ttl_s)
                continue
            self._left -= 1
            self._took(process, lease, before)
            if rng.random() < self._deaths:
                await self._work(process, lease)
                await lease.close()  # it dies, and another process takes its place
                self.world.note(f"client {process.number} died with token {lease.token}")
                locks = self._locks(process, self._timeout_s)
            else:
                try:
                    async with lease:
                        await self._work(process, lease)
                except LockLost as error:
                    self.lost += 1
                    self.world.note(f"client {process.number}: {error}")
            await asyncio.sleep(rng.choice((0.0, 0.1, 0.5)) * rng.random() * self._ttl_s)

    async def _turn(self, process: Process) -> None:
        locks = self._locks(process, _PATIENCE_S)
        before = self._greatest
        lease = await locks.acquire(_NAME, self._ttl_s, None, f"client {process.number}")
        self._took(process, lease, before)
        async with lease:
            lease.check()

    async def _work(self, process: Process, lease: AsyncLease) -> None:
        with suppress(LockLost):
            for _ in range(process.rng.choice((1, 3, 6))):
                await asyncio.sleep(process.rng.random() * 0.4 * self._ttl_s)
                if process.rng.random() < 0.1:
                    with suppress(ObjmetaError):
                        await lease.renew()
                lease.check()
                self._act(process, lease)

    # -- What must hold -----------------------------------------------------------------------------------------------

    def _took(self, process: Process, lease: AsyncLease, before: int) -> None:
        """``before`` is the greatest token that anybody had got when this client asked."""
        self.acquired += 1
        self.world.note(f"client {process.number} took the lock with token {lease.token}")
        if lease.token <= (before if self._wild else self._greatest):
            raise Violation(f"client {process.number} got token {lease.token} after {self._greatest}")
        self._greatest = max(self._greatest, lease.token)
        self._held = [(holder, held) for holder, held in self._held if not held.is_over] + [(process, lease)]
        self._look_around()

    def _act(self, process: Process, lease: AsyncLease) -> None:
        """The lease was found valid this very moment: whoever compares tokens must agree."""
        self.acts += 1
        self._look_around()
        if lease.token < self._resource and not self._wild:
            raise Violation(f"client {process.number} was refused: token {lease.token} after {self._resource}")
        self._resource = max(self._resource, lease.token)

    def _look_around(self) -> None:
        valid = [(process.number, lease.token) for process, lease in self._held if lease.is_valid]
        if len(valid) > 1 and not self._wild:
            raise Violation(f"these clients hold the lock at the same time (client, token): {valid}")

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(_SAMPLE_S)
            self._look_around()

    # -- Trouble ------------------------------------------------------------------------------------------------------

    async def _disturb(self) -> None:
        """Pause processes, and let clocks jump."""
        rng = self._rng
        if not self._pauses:
            return
        while True:
            await asyncio.sleep(rng.expovariate(self._pauses / self._ttl_s))
            process = rng.choice(self._processes)
            if self._wild and rng.random() < 0.5:
                seconds = rng.random() * 2 * self._ttl_s
                self.world.note(f"the clock of client {process.number} jumps by {seconds:.3f} s")
                process.jump(seconds)
            else:
                seconds = rng.choice((0.1, 0.8, 2.5)) * rng.random() * self._ttl_s
                self.world.note(f"client {process.number} is paused for {seconds:.3f} s")
                process.pause(seconds)


# -- The command line -------------------------------------------------------------------------------------------------


class Report(msgspec.Struct, frozen=True):
    """What became of one seed. ``failure`` is empty, SAFETY or LIVENESS."""

    seed: int
    failure: str = ""
    message: str = ""
    acquired: int = 0
    lost: int = 0
    acts: int = 0
    virtual_s: float = 0.0


async def _main(seed: int, variant: Variant, trace: Trace | None) -> Report:
    world = World(seed, NONE, trace, watchful=False)
    work = LeaseWork(world, variant)
    chaos = world.loop.create_task(world.chaos())
    await work.with_faults()
    chaos.cancel()
    world.heal()
    await work.after_healing()
    return Report(seed, acquired=work.acquired, lost=work.lost, acts=work.acts, virtual_s=world.loop.time())


def run_seed(seed: int, variant: Variant = REAL, trace: Trace | None = None) -> Report:
    """Run one seed. What is neither a violation nor a standstill is raised."""
    try:
        return simulated.run(_main(seed, variant, trace))
    except Violation as error:
        return Report(seed, SAFETY, str(error))
    except (NoProgress, simulated.Deadlock) as error:
        return Report(seed, LIVENESS, str(error))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: exit code 1 if a seed failed."""
    parser = argparse.ArgumentParser(prog="python -m objmeta.testing.leasework", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this seed alone")
    parser.add_argument("--seeds", type=int, default=200, help="run this many seeds")
    parser.add_argument("--start", type=int, default=0, help="the first of them")
    parser.add_argument("--variant", choices=sorted(VARIANTS), default=REAL.name, help="run a broken variant")
    parser.add_argument("--trace", action="store_true", help="print everything that happens (with --seed)")
    options = parser.parse_args(arguments)
    variant = VARIANTS[options.variant]
    tell: Callable[[str], None] | None = print if options.trace and options.seed is not None else None
    first, count = (options.start, options.seeds) if options.seed is None else (options.seed, 1)
    reports = [run_seed(seed, variant, tell) for seed in range(first, first + count)]
    failed = [report for report in reports if report.failure]
    for report in failed:
        print(f"seed {report.seed}: {report.failure}: {report.message}")
    print(
        f"{len(reports)} seeds, {len(failed)} failed; {sum(r.acquired for r in reports)} leases, "
        f"{sum(r.lost for r in reports)} lost, {sum(r.acts for r in reports)} acts, "
        f"{sum(r.virtual_s for r in reports):.0f} s of virtual time"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
