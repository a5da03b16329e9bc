"""Clients that change several objects at once, whose owners crash or fall asleep between any two steps.

What must hold (docs/protocol.md, "Several objects at once"): of each transaction either all intents became versions or
none did, as its register says and as its owner was told; nobody builds on an intent; whoever saw one version of a
transaction never again sees what was before another of its versions; and when all is well again, no intent is left, and
no register of a transaction.  The clients' requests are known, so that the chosen chains can be replayed.

Run one seed by ``python -m objmeta.testing.transactionwork --seed N [--variant NAME] --trace``.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import random
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import msgspec

from objmeta.core.listing import ScanRequest, decode_rows, successor
from objmeta.core.messages import TOMBSTONE, Fence, Record, RecordRef, State
from objmeta.errors import AlreadyExists, NoSuchKey, ObjmetaError, Unavailable, UnknownOutcome
from objmeta.interfaces import ChangeReply, ChangeRequest, ScanPage
from objmeta.model.changes import Conclude, Decide, Intend, PutVersion, Resolve
from objmeta.model.names import TRANSACTIONS, object_register
from objmeta.model.values import holds_intent
from objmeta.objects.buckets import Buckets
from objmeta.objects.context import Context
from objmeta.objects.listing import Listings
from objmeta.objects.objects import Objects
from objmeta.objects.transactions import Transactions, conclude_all
from objmeta.objects.types import DeleteObject, ObjectVersion, PutObject
from objmeta.testing import loop as simulated
from objmeta.testing.checkers import Violation
from objmeta.testing.mutations import NONE
from objmeta.testing.mutations_transactions import REAL, VARIANTS, Variant
from objmeta.testing.network import Trace
from objmeta.testing.transactioncheck import Saw, check_all
from objmeta.testing.upkeep import Stuck, Upkeep
from objmeta.testing.workload import NoProgress
from objmeta.testing.world import Interrupted, Proposer, World

T = TypeVar("T")

SAFETY = "safety"
LIVENESS = "liveness"

_BUCKET = "bucket"
_KEYS = ("a", "b", "c/d", "c/e")
_PATIENCE_S = 10.0
_SLEEP_S = 0.1
_SLEEPS_MAX = 50


class Style(NamedTuple):
    """How the clients of one run behave; drawn once, like the faults."""

    keys: tuple[str, ...]
    operations: int
    timeout_s: float
    pauses: float
    """How often a client falls asleep before a step; before it commits it does so three times as often."""
    pause_s: float
    oversleeps: float
    """How often an owner sleeps until its transaction was forgotten, if it is within a few seconds."""
    lost_answers: float
    forgotten_commits: float
    """How often the answer to a commit gets lost, and the owner asks what became of it when that was forgotten."""
    late_copies: float
    cancels: float

    @staticmethod
    def draw(rng: random.Random) -> Style:
        """The style of one run."""
        return Style(
            keys=_KEYS[: rng.choice((2, 2, 3, 4))],
            operations=rng.randint(14, 28),
            timeout_s=rng.choice((0.1, 0.4, 1.0)),
            pauses=rng.choice((0.0, 0.05, 0.15)),
            pause_s=rng.choice((0.05, 0.5, 2.0)),
            oversleeps=rng.choice((0.0, 0.3)),
            lost_answers=rng.choice((0.0, 0.05)),
            forgotten_commits=rng.choice((0.0, 0.2)),
            late_copies=rng.choice((0.0, 0.1)),
            cancels=rng.choice((0.0, 0.1, 0.3)),
        )


class Wire:
    """The registers as one client reaches them: it may fall asleep before a step, and answers may get lost."""

    def __init__(self, work: TransactionWork, proposer: Proposer, rng: random.Random, calm: bool) -> None:
        self._work = work
        self._proposer = proposer
        self._rng = rng
        self._style = (
            work.style._replace(pauses=0.0, oversleeps=0.0, lost_answers=0.0, forgotten_commits=0.0, late_copies=0.0)
            if calm
            else work.style
        )
        self.transactions: dict[bytes, None] = {}
        """Those that this client began."""

    async def _pause(self, often: float) -> None:
        if self._rng.random() < often:
            await asyncio.sleep(self._rng.random() * self._style.pause_s)

    async def _oversleep(self, name: bytes) -> None:
        watch = self._work.world.watch
        for _ in range(_SLEEPS_MAX):
            if watch.was_erased(name):
                return
            await asyncio.sleep(_SLEEP_S)

    async def read(self, names: Sequence[bytes], timeout_s: float, fence: Fence | None = None) -> list[State | None]:
        await self._pause(self._style.pauses)
        return await self._proposer.engine.read(names, timeout_s, fence)

    async def scan(self, request: ScanRequest, timeout_s: float) -> ScanPage:
        await self._pause(self._style.pauses)
        return await self._proposer.engine.scan(request, timeout_s)

    async def records(
        self, name: bytes, refs: Sequence[RecordRef], timeout_s: float, with_data: bool = True
    ) -> list[Record]:
        return await self._proposer.engine.records(name, refs, timeout_s, with_data)

    async def change(self, request: ChangeRequest, timeout_s: float) -> ChangeReply:
        change, rng, style = request.change, self._rng, self._style
        if isinstance(change, PutVersion | Resolve | Decide | Conclude):
            self._work.changes[change.version_id] = change
        if isinstance(change, Intend):
            self.transactions[change.transaction] = None
        commits = isinstance(change, Decide) and change.committed
        await self._pause(style.pauses * (3 if commits else 1))
        if commits and rng.random() < style.oversleeps:
            await self._oversleep(request.name)
        repeated = rng.random() < style.late_copies
        if repeated:
            generation = request.generation or self._proposer.engine.generations.known()
            request = msgspec.structs.replace(request, generation=generation)
            self._work.repeat_late(rng.uniform(0.01, 3.0), rng.choice(self._work.world.proposers), request)
        try:
            reply = await self._proposer.change(request, timeout_s)
        except ObjmetaError as failure:
            if repeated:  # as the client of a cluster says it: a copy is left that may still apply
                raise UnknownOutcome(f"{failure}, of one copy") from failure
            raise
        if repeated and reply.code:
            raise UnknownOutcome(f"{reply.code}, of one copy")
        if commits and rng.random() < style.forgotten_commits:
            with suppress(ObjmetaError):
                await self._work.conclude(self._proposer)
            await self._oversleep(request.name)
            raise UnknownOutcome("the answer got lost, and then it was forgotten")
        if rng.random() < style.lost_answers:
            raise UnknownOutcome("the answer got lost")
        return reply


class TransactionWork:
    """The clients of one run."""

    def __init__(self, world: World, variant: Variant) -> None:
        self.world = world
        self.changes: dict[bytes, PutVersion | Resolve | Decide | Conclude] = {}
        """Every change that was ever asked for, by its operation id."""
        self.saw: list[Saw] = []
        self.committed = 0
        """Transactions whose owners know that they have."""
        self.told: dict[bytes, str] = {}
        """What the owner of a transaction was told."""
        self._variant = variant
        self._rng = world.random("transaction clients")
        self.style = Style.draw(self._rng)
        self._left = self.style.operations
        self._late: list[asyncio.Task[None]] = []
        self._bucket_id = b""
        self._begun: dict[bytes, int] = {}
        world.note(f"{self.style}")

    # -- Phases -------------------------------------------------------------------------------------------------------

    async def prepare(self) -> None:
        """There is a bucket."""
        while not self._bucket_id:
            proposer = self._rng.choice(self.world.proposers)
            with suppress(Unavailable, Interrupted, ObjmetaError):
                buckets = self._services(proposer, self._rng, True).buckets
                with suppress(AlreadyExists):
                    await proposer.run(buckets.create(_BUCKET))
                self._bucket_id = (await proposer.run(buckets.get(_BUCKET))).bucket_id

    async def with_faults(self) -> None:
        """Everything the clients want to do, while things break."""
        await asyncio.gather(*(self._client(self.world.random(f"transaction client {i}")) for i in range(3)))

    async def after_healing(self) -> None:
        """Everybody can read and commit everything, and then nothing of a transaction is left. Raises NoProgress."""
        await asyncio.gather(*self._late)
        for proposer in self.world.proposers:
            services = self._services(proposer, self._rng, True)
            for key in self.style.keys:
                await self._must(lambda services=services, key=key: self._get(services, key), "get")  # type: ignore[misc]
            await self._must(lambda services=services: self._list(services), "list")  # type: ignore[misc]
            await self._must(lambda services=services: self._commit_all(services), "commit")  # type: ignore[misc]
            await self._must(lambda services=services: self._list(services), "list")  # type: ignore[misc]
        await self._must(lambda: conclude_all(services.context, services.buckets.intents), "conclude")
        page = await services.context.registers.scan(
            ScanRequest(TRANSACTIONS, successor(TRANSACTIONS), 1000, settle=True), _PATIENCE_S
        )
        left = [row.name for row in decode_rows(page.rows) if row.state.flag != TOMBSTONE]
        if left:
            raise Violation(f"transactions {left} are not concluded")

    async def conclude(self, proposer: Proposer) -> None:
        """What collection does about transactions. Raises NoQuorum."""
        services = self._services(proposer, self._rng, True)
        await conclude_all(services.context, services.buckets.intents)

    def check(self) -> None:
        """What was chosen, and what clients saw and were told. Raises Violation."""
        names = {key: self._register(key) for key in self.style.keys}
        for name in names.values():
            states = self.world.watch.states(name)
            if states and holds_intent(states[-1]):
                raise Violation(f"an intent is left in {name!r}")
        chains = {name: self.world.watch.chain(name) for name in self.world.watch.names()}
        check_all(chains, self.changes, self.saw, self.told)

    def repeat_late(self, after_s: float, proposer: Proposer, request: ChangeRequest) -> None:
        """Have a copy of a request wake up long after."""

        async def copy() -> None:
            await asyncio.sleep(after_s)
            if proposer.up:
                with suppress(ObjmetaError, Interrupted):
                    await proposer.run(proposer.engine.change(request, self.style.timeout_s))

        self._late.append(self.world.loop.create_task(copy()))

    # -- Clients ------------------------------------------------------------------------------------------------------

    async def _client(self, rng: random.Random) -> None:
        while self._left > 0:
            self._left -= 1
            await asyncio.sleep(rng.choice((0.0, 0.001, 0.02)) * rng.random())
            up = [proposer for proposer in self.world.proposers if proposer.up]
            if not up:
                await asyncio.sleep(0.01)
                continue
            proposer = rng.choice(up)
            services = self._services(proposer, rng, False)
            cancel_after_s = rng.random() * 0.1 if rng.random() < self.style.cancels else None
            work, what = self._draw(services, rng)
            self.world.note(f"P{proposer.number}: {what}")
            try:
                await proposer.run(work, cancel_after_s)
                self.world.note(f"P{proposer.number}: {what}: done")
            except (ObjmetaError, Interrupted) as error:
                self.world.note(f"P{proposer.number}: {what}: {error!r}")

    def _draw(self, services: _Services, rng: random.Random) -> tuple[Coroutine[Any, Any, object], str]:
        first, second = rng.sample(self.style.keys, 2)
        draw = rng.random()
        if draw < 0.2:
            return self._move(services, first, second, rng), f"move {first} to {second}"
        if draw < 0.45:
            keys = rng.sample(self.style.keys, rng.randint(2, len(self.style.keys)))
            return self._commit(services, [self._change(key, rng) for key in keys]), f"commit {keys}"
        if draw < 0.6:
            return self._plain(services, self._change(first, rng)), f"change {first}"
        if draw < 0.65:
            return conclude_all(services.context, services.buckets.intents), "conclude"
        if draw < 0.75:
            return self._list(services), "list"
        return self._observe(services, [first, second]), f"get {first}, {second}"

    def _change(self, key: str, rng: random.Random) -> PutObject | DeleteObject:
        if rng.random() < 0.15:
            return DeleteObject(_BUCKET, key)
        return PutObject(_BUCKET, key, data=rng.randbytes(4), if_absent=rng.random() < 0.1)

    async def _move(self, services: _Services, source: str, target: str, rng: random.Random) -> None:
        version = await self._get(services, source)
        if version is not None:
            put = PutObject(_BUCKET, target, data=version.data, if_absent=rng.random() < 0.3)
            await self._commit(services, [put, DeleteObject(_BUCKET, source, version.version_id)])

    async def _commit(self, services: _Services, wanted: Sequence[PutObject | DeleteObject]) -> None:
        began = self.world.tick()
        told = "unknown"
        try:
            versions = await services.transactions.commit(wanted)
            told = "committed"
        except UnknownOutcome:
            raise
        except ObjmetaError:
            told = "failed"
            raise
        finally:
            for transaction in services.wire.transactions:
                self.told[transaction] = "unknown" if told == "unknown" else "failed"
            if told == "committed":  # the last attempt has, and those before it have not
                self.told[list(services.wire.transactions)[-1]] = "committed"
        self.committed += 1
        for version in versions:
            self._saw(began, version.key, version)

    async def _commit_all(self, services: _Services) -> None:
        services.wire.transactions.clear()
        await self._commit(services, [PutObject(_BUCKET, key, data=self._rng.randbytes(4)) for key in self.style.keys])

    async def _plain(self, services: _Services, wanted: PutObject | DeleteObject) -> None:
        began = self.world.tick()
        objects = services.objects
        version = await objects.append(wanted, objects.change_for(wanted))
        self._saw(began, version.key, version)

    async def _observe(self, services: _Services, keys: Sequence[str]) -> None:
        for key in keys:
            await self._get(services, key)

    async def _get(self, services: _Services, key: str) -> ObjectVersion | None:
        began = self.world.tick()
        try:
            version = await services.objects.get(_BUCKET, key, version_id=None, with_data=True)
        except NoSuchKey:
            version = None
        self._saw(began, key, version)
        return version

    async def _list(self, services: _Services) -> None:
        began = self.world.tick()
        listings = Listings(services.buckets)
        delimiter = self._rng.choice(("", "/"))
        page = await listings.objects(_BUCKET, "", delimiter, None, 1000)
        found = {summary.key: summary.version_id for summary in page.objects}
        shown = [key for key in self.style.keys if not delimiter or "/" not in key]
        versions = {
            version.key: version for version in (await listings.versions(_BUCKET, "", None, 1000)).versions[::-1]
        }
        ended = self.world.tick()
        for key in shown:
            self.saw.append(Saw(began, ended, self._register(key), bytes.fromhex(found.get(key, ""))))
        for key, version in versions.items():
            seen = b"" if version.is_delete_marker else bytes.fromhex(version.version_id)
            self.saw.append(Saw(began, ended, self._register(key), seen))

    def _saw(self, began: float, key: str, version: ObjectVersion | None) -> None:
        seen = bytes.fromhex(version.version_id) if version is not None else b""
        self.saw.append(Saw(began, self.world.tick(), self._register(key), seen))

    def _register(self, key: str) -> bytes:
        return object_register(self._bucket_id, key)

    async def _must(self, work: Callable[[], Awaitable[object]], what: str) -> None:
        try:
            try:
                await work()
            except (UnknownOutcome, Unavailable):  # what an abandoned eraser or owner had begun came in between
                await work()
        except Unavailable as error:
            raise NoProgress(f"{what}: {error}") from error

    def _services(self, proposer: Proposer, rng: random.Random, calm: bool) -> _Services:
        wire = Wire(self, proposer, rng, calm)
        registers: Any = wire  # of the protocol, what these operations need

        def wall_clock() -> int:
            return self.world.wall_clock_us(proposer.number)

        timeout_s = _PATIENCE_S if calm else self.style.timeout_s
        context = Context(registers, wall_clock, lambda: rng.randbytes(16), timeout_s, True)
        buckets = Buckets(context, self._variant.intents(context))
        objects = Objects(context, buckets)
        return _Services(wire, context, buckets, objects, self._variant.transactions(context, buckets, objects))


class _Services(NamedTuple):
    wire: Wire
    context: Context
    buckets: Buckets
    objects: Objects
    transactions: Transactions


# -- The command line -------------------------------------------------------------------------------------------------


class Report(msgspec.Struct, frozen=True):
    """What became of one seed. ``failure`` is empty, SAFETY or LIVENESS."""

    seed: int
    failure: str = ""
    message: str = ""
    begun: int = 0
    committed: int = 0
    saw: int = 0
    erased: int = 0
    changes: int = 0
    virtual_s: float = 0.0


async def _main(seed: int, variant: Variant, trace: Trace | None) -> Report:
    world = World(seed, NONE, trace)
    upkeep = Upkeep(world, True)
    upkeep.faults = dataclasses.replace(upkeep.faults, erases=upkeep.faults.erases or seed % 2 == 0)
    work = TransactionWork(world, variant)
    await work.prepare()
    background = [world.loop.create_task(each) for each in (world.chaos(), upkeep.run())]
    await work.with_faults()
    for task in background:
        task.cancel()
    world.heal(all_up=upkeep.needs_all)
    await upkeep.settle_members()
    await work.after_healing()
    await upkeep.at_end()
    world.watch.at_end()
    work.check()
    return Report(
        seed,
        begun=len(work.told),
        committed=work.committed,
        saw=len(work.saw),
        erased=world.watch.erased,
        changes=upkeep.completed,
        virtual_s=world.loop.time(),
    )


def run_seed(seed: int, variant: Variant = REAL, trace: Trace | None = None) -> Report:
    """Run one seed. What is neither a violation nor a standstill is raised."""
    try:
        return simulated.run(_main(seed, variant, trace))
    except Violation as error:
        return Report(seed, SAFETY, str(error))
    except (NoProgress, Stuck, simulated.Deadlock) as error:
        return Report(seed, LIVENESS, str(error))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: exit code 1 if a seed failed."""
    parser = argparse.ArgumentParser(prog="python -m objmeta.testing.transactionwork", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this seed alone")
    parser.add_argument("--seeds", type=int, default=200, help="run this many seeds")
    parser.add_argument("--start", type=int, default=0, help="the first of them")
    parser.add_argument("--variant", choices=sorted(VARIANTS), default=REAL.name, help="run a broken variant")
    parser.add_argument("--trace", action="store_true", help="print everything that happens (with --seed)")
    options = parser.parse_args(arguments)
    variant = VARIANTS[options.variant]
    tell: Callable[[str], None] | None = print if options.trace and options.seed is not None else None
    first, count = (options.start, options.seeds) if options.seed is None else (options.seed, 1)
    reports: list[Report] = []
    for seed in range(first, first + count):
        reports.append(run_seed(seed, variant, tell))
        if reports[-1].failure:
            print(f"seed {seed}: {reports[-1].failure}: {reports[-1].message}", flush=True)
    failed = sum(bool(report.failure) for report in reports)
    print(
        f"{len(reports)} seeds, {failed} failed; {sum(r.begun for r in reports)} transactions begun, "
        f"{sum(r.committed for r in reports)} known to be committed, {sum(r.saw for r in reports)} things seen, "
        f"{sum(r.changes for r in reports)} changes of members, {sum(r.erased for r in reports)} registers erased, "
        f"{sum(r.virtual_s for r in reports):.0f} s of virtual time"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
