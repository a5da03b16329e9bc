"""Clients that work on buckets: removal racing puts, through the real object operations.

What must hold (DESIGN section 4): an acknowledged put is found until somebody removes that version; a bucket that is
gone holds nothing that was acknowledged; what failed for certain never appears.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from objmeta.core.messages import TOMBSTONE
from objmeta.errors import NoSuchBucket, ObjmetaError, StoreFull, Unavailable, UnknownOutcome
from objmeta.model.names import bucket_register, object_prefix
from objmeta.model.values import BucketHead, decode_value
from objmeta.objects.buckets import GONE, Buckets
from objmeta.objects.context import Context
from objmeta.objects.listing import Listings
from objmeta.objects.objects import Objects
from objmeta.testing.checkers import Violation
from objmeta.testing.workload import NoProgress
from objmeta.testing.world import Interrupted, Proposer, World

T = TypeVar("T")

_NAMES = ("bucket", "second")
_KEYS = ("a", "b/c", "b/d")
_PATIENCE_S = 10.0


@dataclass(slots=True)
class _Put:
    """A put or delete marker: what became of it, and whether anybody tried to remove its version."""

    bucket: str
    key: str
    outcome: str = "unknown"
    error: str = ""
    removal: str = "none"


@dataclass(slots=True)
class _Known:
    """What one client remembers."""

    versions: list[tuple[str, str, str]] = field(default_factory=list)


class BucketWork:
    """The clients of one run; see :class:`objmeta.testing.workload.Workload`."""

    undecided = 0

    def __init__(self, world: World) -> None:
        self.world = world
        self.attempts = 0
        self.answered = 0
        self._rng = world.random("bucket clients")
        self._names = _NAMES[: self._rng.choice((1, 1, 2))]
        self._keys = _KEYS[: self._rng.choice((1, 2, 3))]
        self._left = self._rng.randint(16, 40)
        self._removals = self._rng.choice((0.15, 0.3))
        self._timeout_s = self._rng.choice((0.2, 1.0))
        self._puts: dict[str, _Put] = {}
        self._caches: dict[tuple[int, int], Buckets] = {}
        world.note(f"buckets {self._names}, keys {self._keys}")

    @property
    def writes(self) -> int:
        """Changes that were chosen."""
        return sum(len(self.world.watch.chain(name)) for name in self.world.watch.names())

    # -- Phases -------------------------------------------------------------------------------------------------------

    async def with_faults(self) -> None:
        """Everything the clients want to do, while things break."""
        await asyncio.gather(*(self._client(self.world.random(f"bucket client {i}")) for i in range(3)))

    async def after_healing(self) -> None:
        """Every bucket can be written through every proposer, and its listings are complete."""
        for name in self._names:
            for proposer in self.world.proposers:
                await self._must(proposer, name, self._create, "create")
                await self._must(proposer, name, self._put_plain, "put")
            for proposer in self.world.proposers:
                await self._must(proposer, name, self._compare, "list")
        for name in self._names:
            await self._must(self._rng.choice(self.world.proposers), name, self._empty_and_remove, "remove")

    def check(self) -> None:
        """Nothing acknowledged is left under the id of a bucket that is gone. Raises Violation."""
        self._check_once()
        watch = self.world.watch
        for bucket in self._names:
            for state in watch.states(bucket_register(bucket)):
                head = decode_value(state.value)
                assert isinstance(head, BucketHead)
                if head.status == GONE:
                    self._check_gone(object_prefix(head.bucket_id))

    def _check_gone(self, prefix: bytes) -> None:
        watch = self.world.watch
        for name in watch.names():
            states = watch.states(name) if name.startswith(prefix) else []
            if states and states[-1].flag != TOMBSTONE:
                tip = states[-1].refs[-1].version_id
                put = self._puts.get(tip.hex())
                if put is None or put.outcome == "applied":
                    raise Violation(f"a put was lost: {name!r} holds {tip.hex()[:8]} and its bucket is gone")

    def _check_once(self) -> None:
        """No operation is on two chains, whatever became of buckets, and none that failed is on any."""
        watch = self.world.watch
        found: dict[bytes, bytes] = {}
        for name in watch.names():
            for ref in watch.chain(name):
                if ref.version_id in found:
                    raise Violation(
                        f"{ref.version_id.hex()[:8]} is on the chains of {found[ref.version_id]!r} and {name!r}"
                    )
                found[ref.version_id] = name
        for version_id, put in self._puts.items():
            if put.outcome == "failed" and bytes.fromhex(version_id) in found:
                raise Violation(f"put {version_id[:8]} failed ({put.error}), and it was chosen")

    # -- Clients ------------------------------------------------------------------------------------------------------

    async def _client(self, rng: random.Random) -> None:
        known = _Known()
        while self._left > 0:
            self._left -= 1
            await asyncio.sleep(rng.choice((0.0, 0.001, 0.02)) * rng.random())
            up = [proposer for proposer in self.world.proposers if proposer.up]
            if not up:
                await asyncio.sleep(0.01)
                continue
            await self._one(rng, rng.choice(up), known)

    async def _one(self, rng: random.Random, proposer: Proposer, known: _Known) -> None:
        bucket, key = rng.choice(self._names), rng.choice(self._keys)
        draw = rng.random()
        if draw < self._removals:
            await self._try(proposer, self._buckets(proposer).remove(bucket), f"remove bucket {bucket}")
        elif draw < self._removals + 0.15:
            await self._try(proposer, self._buckets(proposer).create(bucket), f"create bucket {bucket}")
        elif draw < 0.75:
            version_id = await self._put(proposer, rng, bucket, key, rng.random() < 0.2)
            known.versions.append((bucket, key, version_id))
        elif known.versions and draw < 0.95:
            await self._remove_version(proposer, rng, *known.versions.pop(rng.randrange(len(known.versions))))
        else:
            objects = self._objects(proposer, rng)
            await self._try(proposer, objects.get(bucket, key, version_id=None, with_data=True), f"get {key}")

    async def _put(self, proposer: Proposer, rng: random.Random, bucket: str, key: str, delete: bool) -> str:
        operation = rng.randbytes(16)
        version_id = operation.hex()
        put = self._puts[version_id] = _Put(bucket, key)
        objects = self._objects(proposer, rng, operation)
        work: Coroutine[Any, Any, object]
        if delete:
            work = objects.delete(bucket, key, None)
        else:
            work = objects.put(bucket, key, data=operation, if_absent=rng.random() < 0.2)
        put.outcome, put.error = await self._try(proposer, work, f"put {version_id[:8]} as {key} in {bucket}")
        return version_id

    async def _remove_version(
        self, proposer: Proposer, rng: random.Random, bucket: str, key: str, version_id: str
    ) -> None:
        objects = self._objects(proposer, rng)
        put = self._puts[version_id]
        put.removal = "unknown"
        work = objects.remove_version(bucket, key, version_id)
        outcome, _ = await self._try(proposer, work, f"remove version {version_id[:8]} of {key} in {bucket}")
        put.removal = "none" if outcome == "failed" else outcome

    async def _try(self, proposer: Proposer, work: Coroutine[Any, Any, object], what: str) -> tuple[str, str]:
        """Run something; "applied", "failed" (certainly did nothing) or "unknown", and the error."""
        self.attempts += 1
        self.world.note(f"P{proposer.number}: {what}")
        try:
            await proposer.run(work)
        except (UnknownOutcome, Interrupted) as error:
            self.world.note(f"P{proposer.number}: {what}: unknown ({error})")
            return "unknown", repr(error)
        except ObjmetaError as error:
            self.world.note(f"P{proposer.number}: {what}: failed ({error})")
            self.answered += not isinstance(error, Unavailable | StoreFull)
            return "failed", repr(error)
        self.world.note(f"P{proposer.number}: {what}: done")
        self.answered += 1
        return "applied", ""

    # -- After healing ------------------------------------------------------------------------------------------------

    async def _must(
        self, proposer: Proposer, bucket: str, work: Callable[[Proposer, str], Awaitable[None]], what: str
    ) -> None:
        try:
            try:
                await work(proposer, bucket)
            except UnknownOutcome:  # a floor that an abandoned eraser was raising came between prepare and accept
                await work(proposer, bucket)
            except NoSuchBucket:  # a removal whose proposer crashed had its last message still under way
                await self._create(proposer, bucket)
                await work(proposer, bucket)
        except Unavailable as error:
            raise NoProgress(f"{what} of bucket {bucket} through proposer {proposer.number}: {error}") from error

    async def _create(self, proposer: Proposer, bucket: str) -> None:
        outcome, error = await self._try(proposer, self._buckets(proposer, _PATIENCE_S).create(bucket), "create")
        if outcome == "unknown":
            raise UnknownOutcome(error)
        if outcome != "applied" and "exists" not in error:
            raise NoProgress(f"create of bucket {bucket} through proposer {proposer.number}: {error}")

    async def _put_plain(self, proposer: Proposer, bucket: str) -> None:
        for key in self._keys:
            operation = self._rng.randbytes(16)
            put = self._puts[operation.hex()] = _Put(bucket, key)
            await self._objects(proposer, self._rng, operation, _PATIENCE_S).put(bucket, key, data=operation)
            put.outcome = "applied"

    async def _compare(self, proposer: Proposer, bucket: str) -> None:
        """What is there against what was said about each put."""
        page = await Listings(self._buckets(proposer)).versions(bucket, "", None, 1000)
        there = {version.version_id for version in page.versions}
        bucket_ids = [
            head.bucket_id
            for state in self.world.watch.states(bucket_register(bucket))
            if isinstance(head := decode_value(state.value), BucketHead)
        ]
        prefix = object_prefix(bucket_ids[-1])
        for version_id, put in self._puts.items():
            if put.bucket != bucket:
                continue
            if put.outcome == "failed" and version_id in there:
                raise Violation(f"put {version_id[:8]} failed ({put.error}), and here it is")
            if put.removal == "applied" and version_id in there:
                raise Violation(f"version {version_id[:8]} was removed, and here it is")
            chain = self.world.watch.chain(prefix + put.key.encode())
            under_this_id = any(ref.version_id.hex() == version_id for ref in chain)
            if put.outcome == "applied" and put.removal == "none" and under_this_id and version_id not in there:
                raise Violation(f"put {version_id[:8]} was acknowledged and is not listed")
        prefixes = await Listings(self._buckets(proposer)).objects(bucket, "", "/", None, 1000)
        expected = {key.split("/")[0] + "/" for key in self._keys if "/" in key}
        if set(prefixes.prefixes) != expected or {o.key for o in prefixes.objects} != set(self._keys) & {"a"}:
            raise Violation(f"a listing by delimiter shows {prefixes}")

    async def _empty_and_remove(self, proposer: Proposer, bucket: str) -> None:
        """A bucket whose versions are all removed can be removed."""
        buckets = self._buckets(proposer, _PATIENCE_S)
        page = await Listings(buckets).versions(bucket, "", None, 1000)
        for version in page.versions:
            objects = self._objects(proposer, self._rng, None, _PATIENCE_S)
            await objects.remove_version(bucket, version.key, version.version_id)
        await buckets.remove(bucket)

    # -- The store, as one proposer offers it -------------------------------------------------------------------------

    def _context(self, proposer: Proposer, ids: Callable[[int], bytes], timeout_s: float) -> Context:
        def wall_clock() -> int:
            return self.world.wall_clock_us(proposer.number)

        return Context(proposer.engine, wall_clock, lambda: ids(16), timeout_s, True)

    def _buckets(self, proposer: Proposer, timeout_s: float | None = None) -> Buckets:
        """One cache for each life of a proposer (and, after healing, one that is patient)."""
        if timeout_s is not None:
            return Buckets(self._context(proposer, self._rng.randbytes, timeout_s))
        life = (proposer.number, proposer.lives)
        if life not in self._caches:
            self._caches[life] = Buckets(self._context(proposer, self._rng.randbytes, self._timeout_s))
        return self._caches[life]

    def _objects(
        self, proposer: Proposer, rng: random.Random, operation: bytes | None = None, timeout_s: float | None = None
    ) -> Objects:
        ids = rng.randbytes if operation is None else lambda _size: operation
        context = self._context(proposer, ids, timeout_s or self._timeout_s)
        return Objects(context, self._buckets(proposer, timeout_s))
