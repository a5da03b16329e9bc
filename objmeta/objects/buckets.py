"""Buckets: creation, removal, and the terms that keep removal and everything else apart (DESIGN section 4).

A bucket is active under a term, and whatever is accepted in it states that term: puts, and also what a read or a
listing writes back (docs/decisions/0005).  Removal moves the bucket to *removing* under the next term and raises that
term as a floor on a majority: from then on nothing can be chosen that states the old one.  It looks whether anything is
left, asking only acceptors that have the floor and settling what they disagree on; if so, the bucket becomes active
again under the new term and the removal is refused, else it is *gone*.

Every attempt at removal takes a term of its own, also when it finds another under way: else what a remover writes back
could be chosen after a faster one has declared the bucket gone.

Whoever is refused for the old term while the bucket is *removing* moves it back to active: the remover then finds that
the bucket moved, and starts over.  So a removal that was abandoned in the middle blocks nobody.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import msgspec

from objmeta.core.listing import ScanRequest, decode_rows, successor
from objmeta.core.messages import TOMBSTONE, Fence, State
from objmeta.errors import AlreadyExists, BucketNotEmpty, Fenced, InvalidArgument, NoSuchBucket, Unavailable
from objmeta.interfaces import ChangeRequest
from objmeta.model.changes import EXISTS, MISSING, ConfigureBucket, CreateBucket, MoveBucket
from objmeta.model.names import BUCKETS, bucket_register, object_prefix
from objmeta.model.values import BucketHead, decode_value
from objmeta.objects.context import Context
from objmeta.objects.intents import Intents
from objmeta.objects.types import Bucket

T = TypeVar("T")

ACTIVE = "active"
REMOVING = "removing"
GONE = "gone"
REPLICAS_MAX: Final = 64
KEEP_VERSIONS_MAX: Final = 1_000_000
KEEP_DAYS_MAX: Final = 36_500
_PAGE_ROWS = 1000
_ATTEMPTS_MAX = 20
"""A removal that was overtaken this often has lost to a steady stream of writers."""


class Buckets:
    """Bucket operations, and a cache of bucket ids and terms that is only ever a hint."""

    def __init__(self, context: Context, intents: Intents | None = None) -> None:
        """``intents`` is for the simulator's broken variants."""
        self.intents = intents or Intents(context)
        self._context = context
        self._known: dict[str, BucketHead] = {}

    # -- For users ----------------------------------------------------------------------------------------------------

    async def create(self, name: str) -> Bucket:
        """Create a bucket. Raises InvalidArgument, AlreadyExists."""
        register = bucket_register(name)
        change = CreateBucket(self._context.new_id(), self._context.wall_clock())
        reply = await self._context.registers.change(ChangeRequest(register, change), self._context.timeout_s)
        if reply.code == EXISTS:
            raise AlreadyExists(f"bucket {name!r} exists already")
        return Bucket(name, change.version_id, 1, change.created_us)

    async def get(self, name: str) -> Bucket:
        """Raises InvalidArgument, NoSuchBucket."""
        head = await self.look_up(name)
        return _bucket(name, head)

    async def configure(self, name: str, change: ConfigureBucket) -> Bucket:
        """Change settings. Raises InvalidArgument, NoSuchBucket."""
        _check_settings(change)
        register = bucket_register(name)
        reply = await self._context.registers.change(ChangeRequest(register, change), self._context.timeout_s)
        if reply.code == MISSING:
            raise NoSuchBucket(f"bucket {name!r} does not exist")
        head = _head(reply.state)
        return await self.get(name) if head is None else _bucket(name, self.learn(name, reply.state))

    async def list(self) -> list[Bucket]:
        """All buckets, by name."""
        found: list[Bucket] = []
        start = BUCKETS
        while True:
            request = ScanRequest(start, successor(BUCKETS), _PAGE_ROWS)
            page = await self._context.registers.scan(request, self._context.timeout_s)
            for row in decode_rows(page.rows):
                head = _head(row.state)
                if head is not None:
                    found.append(_bucket(row.name[len(BUCKETS) :].decode(), head))
            if not page.next:
                return found
            start = page.next

    async def remove(self, name: str) -> None:
        """Remove an empty bucket. Raises InvalidArgument, NoSuchBucket, BucketNotEmpty, UnknownOutcome."""
        for _ in range(_ATTEMPTS_MAX):
            head = await self.look_up(name)
            try:
                if await self._holds_anything(head):
                    raise _not_empty(name)
            except Fenced:
                pass  # somebody else removes it too: overtake
            removing = await self._move(name, head, REMOVING, head.term + 1)
            if removing is None:
                continue
            head = removing
            await self._context.registers.raise_term(head.bucket_id, head.term, self._context.timeout_s)
            try:
                anything = await self._holds_anything(head, settle=True)
            except Fenced:
                continue  # overtaken by another removal
            if anything:
                await self._move(name, head, ACTIVE, head.term)
                raise _not_empty(name)
            if await self._move(name, head, GONE, head.term) is not None:
                self._known.pop(name, None)
                return
        raise Unavailable(f"bucket {name!r} is being written to all the time; try to remove it later")

    # -- For operations on objects ------------------------------------------------------------------------------------

    async def look_up(self, name: str) -> BucketHead:
        """The bucket as it is now. Raises InvalidArgument, NoSuchBucket."""
        (state,) = await self._context.registers.read((bucket_register(name),), self._context.timeout_s)
        return self.learn(name, state)

    def learn(self, name: str, state: State | None) -> BucketHead:
        """Remember what a read of the bucket's register gave. Raises NoSuchBucket."""
        head = _head(state)
        if head is None:
            self._known.pop(name, None)
            raise NoSuchBucket(f"bucket {name!r} does not exist")
        self._known[name] = head
        return head

    def guess(self, name: str) -> BucketHead | None:
        """What the bucket was when last seen."""
        return self._known.get(name)

    async def writable(self, name: str) -> BucketHead:
        """The bucket with the term that a put must state. Raises NoSuchBucket."""
        head = self._known.get(name)
        for _ in range(_ATTEMPTS_MAX):
            if head is None:
                head = await self.look_up(name)
            if head.status == ACTIVE:
                return head
            await self._move(name, head, ACTIVE, head.term)
            head = None
        raise Unavailable(f"bucket {name!r} is being removed again and again; try later")

    def forget(self, name: str) -> None:
        """The bucket has moved on: look it up next time."""
        self._known.pop(name, None)

    async def under_term(self, name: str, act: Callable[[BucketHead], Awaitable[T]]) -> T:
        """Run a read or a listing of the bucket's objects, again if the bucket moved on. Raises NoSuchBucket."""
        head = self._known.get(name) or await self.look_up(name)
        for _ in range(_ATTEMPTS_MAX):
            try:
                return await act(head)
            except Fenced:
                self.forget(name)
                head = await self.writable(name)
        raise Unavailable(f"bucket {name!r} is being removed again and again; try later")

    # -- Helpers ------------------------------------------------------------------------------------------------------

    async def _move(self, name: str, expected: BucketHead, status: str, term: int) -> BucketHead | None:
        change = MoveBucket(self._context.new_id(), expected, status, term)
        request = ChangeRequest(bucket_register(name), change)
        reply = await self._context.registers.change(request, self._context.timeout_s)
        if reply.code:
            self.forget(name)
            return None
        moved = msgspec.structs.replace(expected, status=status, term=term)
        self._known[name] = moved
        return moved

    async def _holds_anything(self, head: BucketHead, settle: bool = False) -> bool:
        prefix = object_prefix(head.bucket_id)
        start = prefix
        stated = Fence(head.bucket_id, head.term) if settle else fence(head)
        while True:
            request = ScanRequest(start, successor(prefix), _PAGE_ROWS, fence=stated, settle=settle)
            if settle:  # an intent that came since the first look is something
                page = await self._context.registers.scan(request, self._context.timeout_s)
            else:
                page = await self.intents.scan(request)
            if any(row.state.flag != TOMBSTONE for row in decode_rows(page.rows)):
                return True
            if not page.next:
                return False
            start = page.next


def fence(head: BucketHead) -> Fence:
    """What is stated by everybody but the remover: while the bucket is being removed, the term before that."""
    return Fence(head.bucket_id, head.term if head.status == ACTIVE else head.term - 1)


def _not_empty(name: str) -> BucketNotEmpty:
    return BucketNotEmpty(f"bucket {name!r} is not empty; remove its objects and their versions first")


def _head(state: State | None) -> BucketHead | None:
    if state is None:
        return None
    value = decode_value(state.value)
    assert isinstance(value, BucketHead)
    return None if value.status == GONE else value


def _bucket(name: str, head: BucketHead) -> Bucket:
    return Bucket(name, head.bucket_id, head.term, head.created_us, head.settings)


def _check_settings(change: ConfigureBucket) -> None:
    for name, most in (("replicas", REPLICAS_MAX), ("keep_versions", KEEP_VERSIONS_MAX)):
        count = getattr(change, name)
        if count is not None and not (type(count) is int and 0 <= count <= most):
            raise InvalidArgument(f"{name} must be a whole number from 0 to {most}, not {count!r}")
    days = change.keep_days
    if days is not None and not (type(days) in (int, float) and 0 <= days <= KEEP_DAYS_MAX):
        raise InvalidArgument(f"keep_days must be a number of days from 0 to {KEEP_DAYS_MAX}, not {days!r}")
    if change.expire_delete_markers not in (None, True, False):
        raise InvalidArgument(f"expire_delete_markers must be true or false, not {change.expire_delete_markers!r}")
