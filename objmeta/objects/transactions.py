"""Several objects at once: all of a set of changes or none of it (docs/protocol.md, "Several objects at once").

The owner of a transaction leaves an *intent* in each object, then writes "committed" into the transaction's own
register, which is the one step that counts, then replaces the intents.  Everybody else who meets an intent asks that
register, and writes "aborted" into it if nothing is there after a while (``intents``).  So an owner may vanish between
any two steps, or be slow for however long: its commit states the generation in which it began, and the "aborted" it
would have to override is forgotten only when that generation is refused everywhere.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from objmeta.core.erasure import GENERATION_REGISTER, generation_in
from objmeta.core.listing import ScanRequest, decode_rows, successor
from objmeta.core.messages import LIVE
from objmeta.errors import (
    Fenced,
    IntegrityError,
    InvalidArgument,
    NoQuorum,
    NoSuchBucket,
    ObjmetaError,
    StaleGeneration,
    Unavailable,
    UnknownOutcome,
)
from objmeta.interfaces import ChangeRequest
from objmeta.model.changes import Decide
from objmeta.model.names import TRANSACTIONS, check_bucket, check_key, object_prefix, transaction_register
from objmeta.model.values import BucketHead, Transaction, decode_value
from objmeta.objects.buckets import Buckets, fence
from objmeta.objects.context import Context
from objmeta.objects.fences import BucketFences
from objmeta.objects.intents import Intents, is_committed
from objmeta.objects.objects import Objects
from objmeta.objects.types import DeleteObject, ObjectVersion, PutObject

CHANGES_MAX: Final = 1000
ATTEMPTS_MAX: Final = 10
"""So often a transaction begins anew because somebody was in its way, or lost patience with it."""
_STEPS_MAX: Final = 16
"""Intents are left one after the other, so that no two transactions wait for each other; of very many so many at a
time that there are so many steps, and then the patience of who meets them helps."""
_PAUSE_S_MIN: Final = 0.01
_PAUSE_S_MAX: Final = 0.2
_PATIENCE_S: Final = 2.0
"""What only makes things neater keeps nobody for longer than this when nodes do not answer."""
_PAGE_ROWS: Final = 1000

Wanted = PutObject | DeleteObject


class Placed(NamedTuple):
    """An intent that was left: in which register, and the version it will be."""

    bucket: str
    register: bytes
    version: ObjectVersion


class _Interrupted(Exception):
    """Somebody aborted the transaction."""


class _Behind(Exception):
    """A clock is behind an object's newest version: the changes would not be of one time, ``time_us`` at least."""

    def __init__(self, time_us: int) -> None:
        super().__init__(time_us)
        self.time_us = time_us


class Transactions:
    """Commits, as the owner."""

    def __init__(self, context: Context, buckets: Buckets, objects: Objects) -> None:
        self._context = context
        self._buckets = buckets
        self._objects = objects

    async def commit(self, changes: Sequence[Wanted], generation: int = 0) -> list[ObjectVersion]:
        """See :meth:`objmeta.AsyncClient.commit`."""
        order = _in_order(changes)
        if generation < 0:
            raise InvalidArgument(f"a generation is at least 1, or 0 for the newest, not {generation}")
        if not changes:
            return []
        if len(changes) == 1:
            (wanted,) = changes
            return [await self._objects.append(wanted, self._objects.change_for(wanted), generation)]
        pause_s, earliest_us = _PAUSE_S_MIN, 0
        for _ in range(ATTEMPTS_MAX):
            try:
                versions = await self._attempt([changes[place] for place in order], generation, earliest_us)
            except _Behind as failure:
                earliest_us = failure.time_us
                continue
            except (_Interrupted, StaleGeneration) as failure:
                if generation and isinstance(failure, StaleGeneration):
                    raise
                spread = int.from_bytes(self._context.new_id()[-2:]) / 2**16
                await asyncio.sleep(spread * pause_s)
                pause_s = min(2 * pause_s, _PAUSE_S_MAX)
                continue
            by_place = dict(zip(order, versions, strict=True))
            return [by_place[place] for place in range(len(changes))]
        raise NoQuorum(
            "others who met the transaction aborted it again and again, as it took too long; nothing was changed"
        )

    async def _attempt(self, changes: Sequence[Wanted], generation: int, earliest_us: int) -> list[ObjectVersion]:
        transaction = self._context.new_id()
        # Before the first intent, so that whatever is decided about this transaction is decided in it, or later.
        begun = generation or await self._generation()
        placed: list[Placed] = []
        now_us = max(self._context.wall_clock(), earliest_us)
        try:
            await self._leave_all(transaction, changes, begun, now_us, placed)
        except ObjmetaError as failure:
            # Nobody else commits it, so it can be taken back without a word in its register.
            await self._replace(transaction, placed, False)
            if isinstance(failure, UnknownOutcome):  # of an intent: it comes to nothing, whoever meets it
                raise NoQuorum(f"{failure.args[0]}; nothing was changed, try again") from failure
            raise
        times = {each.version.modified_us for each in placed}
        if len(times) > 1:  # else time travel would show, in between, one change without the other
            await self._replace(transaction, placed, False)
            raise _Behind(max(times))
        try:
            committed = await self._decide(transaction, [each.register for each in placed], begun)
        except UnknownOutcome:
            raise
        except ObjmetaError:
            await self._replace(transaction, placed, False)
            raise
        whole = await self._replace(transaction, placed, committed)
        if not committed:
            raise _Interrupted
        if whole:
            with suppress(ObjmetaError):
                await self._buckets.intents.conclude(transaction)
        return [each.version for each in placed]

    async def _generation(self) -> int:
        (state,) = await self._context.registers.read((GENERATION_REGISTER,), self._context.timeout_s)
        return generation_in(state)

    async def _leave_all(
        self, transaction: bytes, changes: Sequence[Wanted], generation: int, now_us: int, placed: list[Placed]
    ) -> None:
        """Leave all intents; those that were left are in ``placed``, also when this raises what one of them does."""
        at_once = -(-len(changes) // _STEPS_MAX) if len(changes) > _STEPS_MAX else 1
        # The first one alone, also of very many: those who want the same objects wait for each other there.
        for start, end in itertools.pairwise([0, *range(1, len(changes), at_once), len(changes)]):
            left = await asyncio.gather(
                *(self._leave(transaction, wanted, generation, now_us, len(changes)) for wanted in changes[start:end]),
                return_exceptions=True,
            )
            placed += (each for each in left if isinstance(each, Placed))
            for each in left:
                if isinstance(each, BaseException):
                    raise each

    async def _leave(
        self, transaction: bytes, wanted: Wanted, generation: int, now_us: int | None = None, objects: int = 1
    ) -> Placed:
        change = self._objects.change_for(wanted, transaction, now_us, objects)
        register, version = await self._objects.placed(wanted, change, generation)
        return Placed(wanted.bucket, register, version)

    async def _decide(self, transaction: bytes, participants: Sequence[bytes], generation: int) -> bool:
        """Commit, unless it was aborted; whether it has. Raises UnknownOutcome, StaleGeneration, NoQuorum."""
        change = Decide(transaction, True, tuple(participants))
        request = ChangeRequest(transaction_register(transaction), change, generation=generation)
        try:
            reply = await self._context.registers.change(request, self._context.timeout_s)
        except UnknownOutcome as failure:
            try:  # whatever this finds, or does, is the outcome; unless the outcome may be forgotten, which refuses it
                async with asyncio.timeout(min(_PATIENCE_S, self._context.timeout_s)):
                    return await self._buckets.intents.abort(transaction, generation)
            except (ObjmetaError, TimeoutError):
                raise failure from None
        if reply.record is not None:
            return True
        assert reply.state is not None, "a commit that was refused met an outcome"
        return is_committed(reply.state)

    async def _replace(self, transaction: bytes, placed: Sequence[Placed], committed: bool) -> bool:
        """Replace all intents; whether none is left. What fails, or takes long, is left to whoever meets the intent."""
        try:
            async with asyncio.timeout(min(_PATIENCE_S + len(placed) / 100, self._context.timeout_s)):
                done = await asyncio.gather(
                    *(self._replace_one(transaction, each, committed) for each in placed), return_exceptions=True
                )
        except TimeoutError:
            return False
        for each in done:
            if isinstance(each, BaseException) and not isinstance(each, ObjmetaError):
                raise each
        return not any(isinstance(each, BaseException) for each in done)

    async def _replace_one(self, transaction: bytes, intent: Placed, committed: bool) -> None:
        async def act(head: BucketHead) -> None:
            if not intent.register.startswith(object_prefix(head.bucket_id)):
                head = await self._buckets.look_up(intent.bucket)  # what was remembered may be older than the intent
                if not intent.register.startswith(object_prefix(head.bucket_id)):
                    return  # its bucket is gone, and was empty
            await self._buckets.intents.resolve(intent.register, transaction, committed, fence(head))

        with suppress(NoSuchBucket):
            await self._buckets.under_term(intent.bucket, act)


async def conclude_all(context: Context, intents: Intents) -> int:
    """Do for committed transactions what their owners left undone, so that their registers go; how many there were.

    What is damaged keeps its own transaction alone from that.  Raises NoQuorum, and IntegrityError in the end.
    """
    fences = BucketFences(context)
    start, count = TRANSACTIONS, 0
    damaged: IntegrityError | None = None
    while start:
        request = ScanRequest(start, successor(TRANSACTIONS), _PAGE_ROWS)
        page = await context.registers.scan(request, context.timeout_s)
        for row in decode_rows(page.rows):
            found = decode_value(row.state.value)
            if row.state.flag == LIVE and isinstance(found, Transaction):
                transaction = row.name[len(TRANSACTIONS) :]
                try:
                    for name in found.participants:
                        await _settle_one(intents, transaction, name, fences)
                except IntegrityError as damage:
                    damaged = damage
                    continue
                await intents.conclude(transaction)
                count += 1
        start = page.next
    if damaged is not None:
        raise damaged
    return count


async def _settle_one(intents: Intents, transaction: bytes, name: bytes, fences: BucketFences) -> None:
    for attempt in range(ATTEMPTS_MAX):
        try:
            await intents.resolve(name, transaction, True, await fences.fence_of(name, attempt > 0))
            return
        except NoSuchBucket:
            return  # it was empty when it went, so there was no intent in it
        except Fenced:
            continue
    raise Unavailable("a bucket is being removed again and again; try again later")


def _in_order(changes: Sequence[Wanted]) -> list[int]:
    """The places of the changes in the order that all transactions keep. Raises InvalidArgument."""
    if len(changes) > CHANGES_MAX:
        raise InvalidArgument(f"{len(changes)} changes are too many to be committed at once: at most {CHANGES_MAX}")
    names: list[tuple[str, bytes]] = []
    for wanted in changes:
        if not isinstance(wanted, PutObject | DeleteObject):
            raise InvalidArgument(
                f"a transaction is made of PutObject and DeleteObject, not {type(wanted).__name__}: {wanted!r:.80}"
            )
        names.append((check_bucket(wanted.bucket), check_key(wanted.key).encode()))
    order = sorted(range(len(names)), key=names.__getitem__)
    for before, place in itertools.pairwise(order):
        if names[before] == names[place]:
            wanted = changes[place]
            raise InvalidArgument(
                f"object {wanted.key!r} in bucket {wanted.bucket!r} is named twice: a transaction changes it once"
            )
    return order
