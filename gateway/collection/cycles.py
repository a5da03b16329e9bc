"""Cycles of collection: who runs them and when. The rules are in docs/collection.md, the work is done by workers.

A cycle needs the answer of every node.  It may be run by anybody, also by several at once; a lock keeps them apart, but
nothing depends on it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Final, TypeVar

import msgspec

from gateway.collection.collect import (
    PATIENCE_S,
    POLL_S_MAX,
    POLL_S_MIN,
    CycleName,
    Link,
    Marking,
    MarkOrder,
    Sweeping,
    SweepOrder,
)
from gateway.collection.retention import Retention
from gateway.data.parts import forget_old
from objmeta import AsyncClient, errors

Told = TypeVar("Told", Marking, Sweeping)

LOCK: Final = "~gateway/collector"
LAST: Final = "~gateway/collected"
GRACE_S: Final = 5.0
"""Between the cycles of one collection: writers see the generation move, and touch their chunks again."""
CYCLES_MAX: Final = 4
"""A chunk that was touched in the newest generation goes in the third; of one that an older version stored it is not
known when that was, so the first cycle dates it."""
INTERVAL_S: Final = 6 * 3600.0
LOOK_S: Final = 60.0
AGAIN_S: Final = 600.0
LOCK_TTL_S: Final = 10.0
LOCK_WAIT_S: Final = 1.5 * LOCK_TTL_S
"""What a runner that was killed leaves locked may be taken when it has stood still for its whole time-to-live, so
whoever waits for less never gets it."""

_log: Final = logging.getLogger(__name__)


class Workers(msgspec.Struct, frozen=True):
    """The workers of all acceptors of one configuration, by acceptor id, and where others reach them."""

    epoch: int
    links: Mapping[int, Link]
    addresses: Mapping[int, str]


Meet = Callable[[], Awaitable[Workers]]
"""Finds the workers there are now. Raises Unavailable."""


class Cycled(msgspec.Struct, frozen=True):
    """What a cycle, or a trial, came to. ``places``: by acceptor id, how its sweep ended."""

    generation: int
    objects: int
    places: dict[int, Sweeping]
    problem: str = ""
    unreachable: tuple[int, ...] = ()

    @property
    def deleted(self) -> int:
        """Copies that were deleted."""
        return sum(place.deleted for place in self.places.values())

    @property
    def deleted_bytes(self) -> int:
        """Their bytes."""
        return sum(place.deleted_bytes for place in self.places.values())

    @property
    def waiting(self) -> int:
        """Copies that nothing names and that a later cycle may delete."""
        return sum(place.waiting for place in self.places.values())

    @property
    def complete(self) -> bool:
        """Whether every place was swept to its end."""
        return not self.problem and not self.unreachable


class _Stopped(Exception):
    def __init__(self, problem: str, unreachable: tuple[int, ...] = ()) -> None:
        super().__init__(problem)
        self.unreachable = unreachable


async def run_cycle(
    client: AsyncClient, meet: Meet, *, rest: float = 0.0, trial: bool = False, patience_s: float = PATIENCE_S
) -> Cycled:
    """One cycle, to its end or as far as it gets; never raises what is an ObjmetaError.

    ``trial``: nothing is moved on and nothing deleted; what is told as deleted is what nothing names.
    """
    found: dict[int, Sweeping] = {}
    objects = generation = 0
    try:
        if trial:
            workers = await meet()
            name = CycleName(0, 0, workers.epoch, int.from_bytes(os.urandom(7)) + 1)
        else:
            begun = await client.begin_cycle(client.timeout_s)
            name = CycleName(begun.generation, begun.floor, begun.epoch)
            workers = await meet()
            generation = begun.generation
        _check(workers, name)
        replicas = {bucket.bucket_id: bucket.settings.replicas for bucket in await client.buckets()}
        first = min(workers.links)
        marks = {acceptor: MarkOrder(name, replicas, parts=acceptor == first, rest=rest) for acceptor in workers.links}
        marked = await _all(workers, lambda acceptor, link: link.mark(marks[acceptor]), patience_s)
        objects = max((told.objects for told in marked.values()), default=0)
        _check(await meet(), name)
        order = SweepOrder(name, dict(workers.addresses), rest)
        # A place that is away or fails does not keep the others from being swept.
        swept = await asyncio.gather(
            *(
                _finished(acceptor, lambda link=link: link.sweep(order), patience_s)  # type: ignore[misc]
                for acceptor, link in workers.links.items()
            ),
            return_exceptions=True,
        )
        problems: list[str] = []
        unreachable: list[int] = []
        for acceptor, told in zip(workers.links, swept, strict=True):
            if isinstance(told, Sweeping):
                found[acceptor] = told
                if told.problem:
                    problems.append(told.problem)
            elif isinstance(told, _Stopped):
                unreachable += told.unreachable
            else:
                raise told
        return Cycled(generation, objects, found, "; ".join(problems), tuple(unreachable))
    except _Stopped as stopped:
        return Cycled(generation, objects, found, "" if stopped.unreachable else str(stopped), stopped.unreachable)
    except errors.ObjmetaError as problem:
        return Cycled(generation, objects, found, str(problem))


async def run_cycles(
    client: AsyncClient,
    meet: Meet,
    *,
    grace_s: float = GRACE_S,
    lock_wait_s: float = LOCK_WAIT_S,
    on_cycle: Callable[[Cycled], None] = lambda _: None,
) -> Cycled:
    """As many cycles as it takes to delete all that nothing named when this began; what they came to together.

    Losing the lock, as when nodes are away, ends it early.  Raises LockHeld while somebody else collects, and what
    reading the uploads in parts raises.
    """
    total = Cycled(0, 0, {})
    try:
        async with client.lock(LOCK, ttl_s=LOCK_TTL_S, wait_s=lock_wait_s):
            await forget_old(client)
            for number in range(CYCLES_MAX):
                if number:
                    await asyncio.sleep(grace_s)
                cycle = await run_cycle(client, meet)
                on_cycle(cycle)
                total = _together(total, cycle)
                if not cycle.complete or not cycle.waiting:
                    break
            if total.complete:
                await _note(client, total)
    except errors.LockLost as lost:
        total = msgspec.structs.replace(total, problem=str(lost))
    return total


def _together(first: Cycled, then: Cycled) -> Cycled:
    places = dict(then.places)
    for acceptor, told in first.places.items():
        later = places.get(acceptor)
        if later is None:
            places[acceptor] = told
            continue
        places[acceptor] = msgspec.structs.replace(
            later, deleted=told.deleted + later.deleted, deleted_bytes=told.deleted_bytes + later.deleted_bytes
        )
    return msgspec.structs.replace(then, places=places)


# -- In the background ------------------------------------------------------------------------------------------------


class LastCycle(msgspec.Struct, frozen=True, array_like=True):
    """When the last complete cycle ended, by the clock of who ran it, and what it came to."""

    ended_us: int
    generation: int
    deleted: int
    deleted_bytes: int
    waiting: int


async def last_cycle(client: AsyncClient) -> LastCycle | None:
    """The last complete cycle; None if there was none. Raises NoQuorum."""
    kept = await client.get(LAST)
    if kept is None:
        return None
    with suppress(msgspec.MsgspecError):
        return msgspec.msgpack.decode(kept.value, type=LastCycle)
    return None


async def _note(client: AsyncClient, cycle: Cycled) -> None:
    last = LastCycle(time.time_ns() // 1000, cycle.generation, cycle.deleted, cycle.deleted_bytes, cycle.waiting)
    await client.put(LAST, msgspec.msgpack.encode(last))


async def is_due(client: AsyncClient, interval_s: float) -> bool:
    """Whether the last cycle is that long ago. Clocks that differ make it come sooner or later, nothing else."""
    last = await last_cycle(client)
    return last is None or abs(time.time_ns() // 1000 - last.ended_us) >= interval_s * 1e6


async def run_if_due(client: AsyncClient, meet: Meet, interval_s: float, rest: float = 1.0) -> Cycled | None:
    """One cycle if the last one was long ago and nobody else runs one; None if not. Raises NoQuorum.

    Before it, what the rules of buckets let go is removed, uploads in parts that are too old are forgotten, and what
    owners of committed transactions left undone is done.
    """
    if not await is_due(client, interval_s):
        return None
    try:
        async with client.lock(LOCK, ttl_s=LOCK_TTL_S, wait_s=0):
            if not await is_due(client, interval_s):
                return None
            await _let_go(client)
            cycle = await run_cycle(client, meet, rest=rest)
            if cycle.complete:
                await _note(client, cycle)
            return cycle
    except (errors.LockHeld, errors.LockLost):
        return None


async def _let_go(client: AsyncClient) -> None:
    """Remove what nobody wants any more. What keeps this from working does not keep the cycle from it."""
    try:
        await client.conclude_transactions()
    except errors.ObjmetaError as problem:  # of one object, it may be: no reason to keep all other versions for ever
        _log.warning("what owners of transactions left undone could not be done: %s", problem)
    try:
        await forget_old(client)
        retained = await Retention(client).apply()
    except errors.ObjmetaError as problem:
        _log.warning("the rules of buckets could not be applied: %s", problem)
        return
    if retained.failed:
        _log.warning("%d versions could not be removed by the rules of buckets: %s", retained.failed, retained.problem)


async def in_background(client: AsyncClient, meet: Meet, interval_s: float = INTERVAL_S) -> None:
    """A cycle every ``interval_s`` seconds, by whichever node finds it due first, until cancelled.

    One that could not be completed, as a node was away, is tried again soon, not at once.
    """
    while True:
        # Not all nodes look at the same moment.
        await asyncio.sleep(min(LOOK_S, interval_s) * (0.5 + random.random()))
        try:
            cycle = await run_if_due(client, meet, interval_s)
        except errors.ObjmetaError as problem:
            _log.info("no collection now: %s", problem)
            continue
        if cycle is not None and not cycle.complete:
            away = f"nodes {list(cycle.unreachable)} are away" if cycle.unreachable else cycle.problem
            _log.warning("cycle %d of collection is not complete: %s", cycle.generation, away)
            await asyncio.sleep(min(AGAIN_S, interval_s))


def _check(workers: Workers, name: CycleName) -> None:
    if workers.epoch != name.epoch:
        raise _Stopped("the members are being changed; try again when that is done")


async def _all(
    workers: Workers, order: Callable[[int, Link], Awaitable[Marking]], patience_s: float
) -> dict[int, Marking]:
    """Have all of them do it; everybody's answer when all are done. Raises _Stopped when one cannot."""
    tasks = {
        acceptor: asyncio.ensure_future(_finished(acceptor, lambda a=acceptor, link=link: order(a, link), patience_s))  # type: ignore[misc]
        for acceptor, link in workers.links.items()
    }
    try:
        await asyncio.gather(*tasks.values())
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
    told = {acceptor: task.result() for acceptor, task in tasks.items()}
    for marking in told.values():
        if marking.problem:
            raise _Stopped(marking.problem)
    return told


async def _finished(acceptor: int, ask: Callable[[], Awaitable[Told]], patience_s: float) -> Told:
    """Ask again and again, until it is done. Raises _Stopped when nobody answers for a while."""
    loop = asyncio.get_running_loop()
    pause_s = POLL_S_MIN
    heard_s = loop.time()
    while True:
        try:
            told = await ask()
        except errors.Unavailable as silence:
            if loop.time() - heard_s > patience_s:
                raise _Stopped(str(silence), (acceptor,)) from silence
        else:
            heard_s = loop.time()
            if told.done:
                return told
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, POLL_S_MAX)
