"""Following changes: that nothing acknowledged is ever missed, over real acceptor stores in virtual time.

The engine's rule is held against a schedule that breaks the plain one (list from a quorum, then read), and against
random schedules, which must break it, too.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
import pytest

from objmeta.core.ballot import BallotSource
from objmeta.core.configuration import Membership, single_set
from objmeta.core.inventory import ChangesRequest
from objmeta.core.listing import ScanAnswer, ScanRequest
from objmeta.core.messages import Accept, Request
from objmeta.errors import NoQuorum, Unavailable
from objmeta.interfaces import ChangedNames, Changes, OnReplies, OnReply, ScanPage, Watermarks
from objmeta.objects.buckets import Buckets
from objmeta.objects.context import Context
from objmeta.objects.feed import Feed
from objmeta.objects.objects import Objects
from objmeta.register.engine import Engine, EngineSettings
from objmeta.store.memory import MemoryStore
from objmeta.testing.loop import run

CONFIGURATION: Final = single_set(b"store-id-16bytes", (1, 2, 3))
MEMBERS: Final = (1, 2, 3)
TIMEOUT_S: Final = 5.0


class Wires:
    """One proposer's way to acceptors; ``passes`` says which requests arrive, and which replies."""

    def __init__(self, stores: dict[int, MemoryStore], rng: random.Random) -> None:
        self._stores = stores
        self._rng = rng
        self.passes: Callable[[int, object], bool] = lambda acceptor, request: True
        self.holds: Callable[[int, object], bool] = lambda acceptor, request: False
        self.late = 0.0
        self.holding = asyncio.Event()
        self._held: list[tuple[int, Request, OnReply]] = []

    def _delay_s(self) -> float:
        return self._rng.uniform(0.05, 0.4) if self._rng.random() < self.late else self._rng.uniform(0.0005, 0.005)

    def send(self, acceptor: int, request: Request, on_reply: OnReply) -> None:
        loop = asyncio.get_running_loop()

        def arrive() -> None:
            (reply,) = self._stores[acceptor].apply([(CONFIGURATION.tag, request)])
            if self.passes(acceptor, reply):
                loop.call_later(self._delay_s(), on_reply, acceptor, reply)

        if self.holds(acceptor, request):
            self._held.append((acceptor, request, on_reply))
            self.holding.set()
        elif self.passes(acceptor, request):
            loop.call_later(self._delay_s(), arrive)

    def send_all(self, acceptor: int, requests: Sequence[Request], on_replies: OnReplies) -> None:
        raise AssertionError("changes come one by one here")

    def release(self) -> None:
        """What was held back travels on."""
        self.holds = lambda acceptor, request: False
        for acceptor, request, on_reply in self._held:
            self.send(acceptor, request, on_reply)

    async def scan(self, acceptor: int, request: ScanRequest) -> ScanAnswer:
        await self._reach(acceptor, request)
        return self._stores[acceptor].scan(CONFIGURATION.tag, request)

    async def changes(self, acceptor: int, request: ChangesRequest) -> Changes:
        await self._reach(acceptor, request)
        return self._stores[acceptor].changes(request.since, request.limit)

    async def _reach(self, acceptor: int, request: object) -> None:
        await asyncio.sleep(self._delay_s())
        if not self.passes(acceptor, request):
            raise Unavailable(f"acceptor {acceptor} is cut off")

    def adopt(self, membership: Membership) -> None:
        raise AssertionError("the members don't change here")

    async def inventory(self, acceptor: int, request: Any) -> Any:
        raise AssertionError("nothing is repaired here")

    digests = inventory


class Side:
    """A client with a proposer of its own."""

    def __init__(
        self, stores: dict[int, MemoryStore], proposer: int, rng: random.Random, covering: bool = True
    ) -> None:
        self.wires = Wires(stores, rng)
        settings = EngineSettings(round_timeout_s=1.0)
        self.engine = Engine(Membership(CONFIGURATION), self.wires, BallotSource(proposer, 7, 100), rng, settings)
        registers = self.engine if covering else Careless(self.engine)
        context = Context(registers, lambda: 0, lambda: rng.randbytes(16), TIMEOUT_S, True)
        buckets = Buckets(context)
        self.buckets, self.objects, self.feed = buckets, Objects(context, buckets), Feed(context, buckets)


class Careless:
    """The plain rule: what is listed by a quorum is read, linearizably, from any quorum."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def scan(self, request: ScanRequest, timeout_s: float) -> ScanPage:
        plain = msgspec.structs.replace(request, covering=())
        page = await self._engine.scan(plain, timeout_s)
        return msgspec.structs.replace(page, covering=request.covering)


class Kept:
    """What a follower keeps: of each object the etags of its versions."""

    def __init__(self, side: Side) -> None:
        self._side = side
        self.cursor: str | None = None
        self.sizes: dict[str, list[int]] = {}

    async def load(self, bucket: str) -> None:
        cursor = (await self._side.feed.changes(None, 10)).cursor
        found: dict[str, list[int]] = {}
        continuation: bytes | None = None
        while True:
            page = await self._side.feed.load(await self._side.buckets.get(bucket), cursor, continuation, 2)
            columns = page.columns()
            for key, size in zip(columns.key, columns.size, strict=True):
                found.setdefault(key, []).append(size)
            cursor, continuation = page.cursor, page.continuation
            if continuation is None:
                break
        self.sizes, self.cursor = found, cursor

    async def refresh(self, bucket: str) -> None:
        """Up to date, or NoQuorum."""
        more = True
        while more:
            page = await self._side.feed.changes(self.cursor, 3)
            if page.reload:
                await self.load(bucket)
                return
            for changed in page.objects:
                self.sizes[changed.key] = [version.size for version in changed.versions]
            self.cursor, more = page.cursor, page.more


def put_of(size: int) -> bytes:
    return bytes(size)


async def _late_vote(covering: bool) -> list[int]:
    """An accept that only acceptor 1 takes is followed; then acceptor 2 takes it, and 2 is not asked any more."""
    stores = {acceptor: MemoryStore(acceptor, CONFIGURATION) for acceptor in MEMBERS}
    writer = Side(stores, 7, random.Random(1))
    follower = Side(stores, 8, random.Random(2), covering)
    await writer.buckets.create("demo")
    await writer.objects.put("demo", "key", data=put_of(1))
    kept = Kept(follower)
    await kept.load("demo")
    writer.wires.holds = lambda acceptor, request: isinstance(request, Accept) and acceptor != 1
    putting = asyncio.ensure_future(writer.objects.put("demo", "key", data=put_of(2)))
    await writer.wires.holding.wait()
    await asyncio.sleep(1.0)  # of virtual time: it has arrived at 1
    # The page of this refresh is read from 2 and 3, if they are a quorum that may be asked alone.
    follower.wires.passes = lambda acceptor, request: acceptor != 1 or not isinstance(request, ScanRequest)
    await kept.refresh("demo")
    writer.wires.passes = lambda acceptor, request: acceptor != 3
    writer.wires.release()  # 2 votes for it, too: it is chosen, if nobody has shut it out meanwhile
    await putting
    follower.wires.passes = lambda acceptor, request: acceptor != 2
    await kept.refresh("demo")
    return kept.sizes["key"]


def test_a_vote_that_comes_late_is_not_missed() -> None:
    assert run(_late_vote(covering=True)) == [2, 1]


def test_without_covering_it_would_be() -> None:
    assert run(_late_vote(covering=False)) == [1]


async def _history(seed: int, covering: bool) -> str:
    """Writers and a follower over bad wires; what a refresh has missed, in words, else empty."""
    rng = random.Random(seed)
    stores = {
        acceptor: MemoryStore(acceptor, CONFIGURATION, changes_kept=rng.choice((5, 30, 1000))) for acceptor in MEMBERS
    }
    writers = [Side(stores, proposer, random.Random(rng.random())) for proposer in (7, 8)]
    follower = Side(stores, 9, random.Random(rng.random()), covering)
    await writers[0].buckets.create("demo")
    acknowledged: dict[str, set[int]] = {}
    numbers = iter(range(1, 10_000))
    loss = rng.choice((0.0, 0.0, 0.1))
    for side in writers:
        side.wires.late = rng.choice((0.0, 0.2, 0.4))

    def bad(cut: Sequence[int]) -> Callable[[int, object], bool]:
        return lambda acceptor, request: acceptor not in cut and rng.random() >= loss

    async def write(side: Side) -> None:
        for _ in range(12):
            side.wires.passes = bad(rng.choices(MEMBERS, k=rng.choice((0, 0, 1))))
            key, size = rng.choice("abc"), next(numbers)
            try:
                await side.objects.put("demo", key, data=put_of(size))
            except Unavailable:
                continue
            acknowledged.setdefault(key, set()).add(size)
            await asyncio.sleep(rng.choice((0.0, 0.02)))

    async def follow() -> str:
        kept = Kept(follower)
        while True:
            over = all(task.done() for task in writing)
            must = {key: set(sizes) for key, sizes in acknowledged.items()}
            follower.wires.passes = bad(rng.choices(MEMBERS, k=rng.choice((0, 1, 1))))
            try:
                await kept.refresh("demo")
            except NoQuorum:
                continue
            for key, sizes in must.items():
                if not sizes <= set(kept.sizes.get(key, ())):
                    return f"seed {seed}: {key} lacks {sorted(sizes - set(kept.sizes.get(key, ())))}"
            if over:
                return ""
            await asyncio.sleep(rng.uniform(0, 0.03))

    writing = [asyncio.ensure_future(write(side)) for side in writers]
    missed = await follow()
    for task in writing:
        task.cancel()
    await asyncio.gather(*writing, return_exceptions=True)
    return missed


@pytest.mark.parametrize("seed", range(25))
def test_no_acknowledged_write_is_ever_missed(seed: int) -> None:
    assert run(_history(seed, covering=True)) == ""


def test_the_plain_rule_is_caught() -> None:
    assert run(_history(29, covering=False))


def test_marks_of_another_store_or_epoch_say_reload() -> None:
    async def ask() -> list[ChangedNames]:
        stores = {acceptor: MemoryStore(acceptor, CONFIGURATION) for acceptor in MEMBERS}
        side = Side(stores, 7, random.Random(1))
        await side.buckets.create("demo")
        marks = ((1, 0), (2, 0), (3, 0))
        others = (
            None,
            Watermarks(b"another-16-bytes", 1, marks),
            Watermarks(CONFIGURATION.store_id, 2, marks),
            Watermarks(CONFIGURATION.store_id, 1, marks[:1]),
            Watermarks(CONFIGURATION.store_id, 1, ((1, 0), (2, 99), (3, 99))),
            Watermarks(CONFIGURATION.store_id, 1, marks),
        )
        return [await side.engine.changes(each, 10, TIMEOUT_S) for each in others]

    *reloading, followed = run(ask())
    for changed in reloading:
        assert changed.reload
        assert len(changed.marks.marks) == 3
    assert (followed.reload, followed.names) == (False, (b"b/demo",))
