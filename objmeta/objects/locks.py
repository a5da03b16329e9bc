"""Locks: leases on a name, with fencing tokens that only grow.

A lease is good until ``valid_until`` by this process's clock and is renewed in the background every third of its
time-to-live.  A holder that was paused, or cut off, finds that it is over by looking at its clock, before anybody else
can have the lock (:mod:`objmeta.objects.claims` says why).  Between that look and what the holder does next it can be
paused again: what must never happen twice is guarded by the token, which whoever is written to compares with the
greatest it has seen.

Waiters look again and again, at most twice a second each.  One of them may be put down as next, and comes before those
who ask later; among the others chance decides.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import Final

import msgspec

from objmeta.errors import InvalidArgument, LockHeld, LockLost, ObjmetaError, Unavailable, UnknownOutcome
from objmeta.model.leases import standing_of
from objmeta.model.names import lock_register
from objmeta.objects.claims import KEPT, Claim, Clock, Sightings, boot_time
from objmeta.objects.context import Context

TTL_S: Final = 10.0
TTL_S_MIN: Final = 0.1
TTL_S_MAX: Final = 86_400.0
_POLL_S_MIN: Final = 0.02
_POLL_S_MAX: Final = 0.5
_RELEASE_S_MIN: Final = 1.0
_LOOK_S_MIN: Final = 0.001
_LOOK_S_MAX: Final = 1.0
_TRIES: Final = 4


class LockHolder(msgspec.Struct, frozen=True):
    """Who held a lock when it was read; the lease may have run out since. ``owner`` is what the holder calls itself."""

    name: str
    owner: str
    token: int
    ttl_s: float


class AsyncLease:
    """A lock that is held. Belongs to the event loop and the process that took it.

    As a context manager it cancels the block when the lease is lost, as ``asyncio.timeout`` does, and raises LockLost
    when the block is left; leaving it gives the lock back.
    """

    def __init__(
        self, claim: Claim, clock: Clock, rng: random.Random, name: str, ttl_s: float, timeout_s: float
    ) -> None:
        self.name = name
        self.ttl_s = ttl_s
        self.token = claim.standing.token
        """Greater than that of every lease on this name that came before."""
        self.lost = asyncio.Event()
        """Set once the lease is lost (not when it is released)."""
        self._claim = claim
        self._clock = clock
        self._rng = rng
        self._timeout_s = timeout_s
        self._valid_until = claim.valid_until
        self._pid = os.getpid()
        self._over = ""
        self._is_settled = False
        self._problem: Exception | None = None
        self._turn = asyncio.Lock()
        self._listeners: list[Callable[[], None]] = []
        self._body: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._cancelled = False
        self._tasks = [asyncio.create_task(self._keep()), asyncio.create_task(self._watch())]

    # -- Is it still good? --------------------------------------------------------------------------------------------

    @property
    def valid_until(self) -> float:
        """When the lease is over unless it is renewed: seconds on this process's lock clock (CLOCK_BOOTTIME)."""
        return self._valid_until

    @property
    def valid_for_s(self) -> float:
        """How many seconds are left until then; 0 if the lease is over."""
        return max(0.0, self._valid_until - self._clock()) if self._is_here() else 0.0

    @property
    def is_valid(self) -> bool:
        """Whether nobody else can hold the lock now. Changes nothing, and may be asked from any thread."""
        return self.valid_for_s > 0.0

    @property
    def is_over(self) -> bool:
        """Whether it was lost or released, as far as was noticed."""
        return not self._is_here()

    @property
    def is_foreign(self) -> bool:
        """Whether this process is a fork of the one that took the lock."""
        return self._pid != os.getpid()

    def check(self) -> None:
        """Return if nobody else can hold the lock now. Raises LockLost."""
        if self._is_here() and self._clock() >= self._valid_until:
            self.lose("it could not be renewed in time")
        if not self._is_here():
            raise self.why_lost()

    def when_lost(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` on the event loop once the lease is lost; at once if it is."""
        if self.lost.is_set():
            callback()
        else:
            self._listeners.append(callback)

    def why_lost(self) -> LockLost:
        """The error that says why the lease is over."""
        why = self._over or "it belongs to another process; this one is a fork of it"
        error = LockLost(f"the lock {self.name!r} (token {self.token}) was lost: {why}")
        error.__cause__ = self._problem
        return error

    # -- Steps --------------------------------------------------------------------------------------------------------

    async def renew(self) -> None:
        """Make the lease good for another time-to-live from now; it happens by itself as well.

        Raises LockLost, or Unavailable if the store does not answer: then the lease stays good as long as it was.
        """
        async with self._turn:
            for _ in range(_TRIES):
                self.check()
                written = await self._claim.renew(min(self._timeout_s, self.valid_for_s))
                if not self._claim.is_mine:
                    self.lose("somebody else took it over")
                else:
                    self._valid_until = max(self._valid_until, self._claim.valid_until)
                self.check()
                if written:
                    self._problem = None
                    return
        raise Unavailable(f"the lock {self.name!r} could not be renewed: others change its register all the time")

    async def release(self) -> None:
        """Give the lock back; does nothing if it was released or taken over.

        Raises Unavailable if the store does not answer: the lease then runs out by itself.
        """
        if self._is_settled or self.is_foreign:
            return
        self._is_settled = True
        self._end("it was released")
        async with self._turn:
            await self._claim.let_go(_release_s(self._timeout_s, self.ttl_s))

    async def __aenter__(self) -> AsyncLease:
        self.check()
        self._body = asyncio.current_task()
        self._cancelling = self._body.cancelling() if self._body is not None else 0
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lost: LockLost | None = None
        body, self._body = self._body, None
        try:
            self.check()
        except LockLost as found:
            lost = found
        if self._cancelled and body is not None:
            self._cancelled = False
            ours = body.uncancel() <= self._cancelling and kind is asyncio.CancelledError
        else:
            ours = False
        with suppress(ObjmetaError):  # it runs out by itself
            await self.release()
        if lost is not None and (kind is None or ours):
            raise lost from error

    def lose(self, why: str) -> None:
        """The lease is over against the holder's will. Called on the event loop."""
        if self._over:
            return
        self._end(why)
        self.lost.set()
        for callback in self._listeners:
            callback()
        body = self._body
        if body is not None and body is not asyncio.current_task():
            self._cancelled = True
            body.cancel()

    async def close(self) -> None:
        """The client closes: nothing is renewed any more, and nothing given back, as somebody may still be at work."""
        self._is_settled = True
        self.lose("its client was closed")
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- In the background --------------------------------------------------------------------------------------------

    def _is_here(self) -> bool:
        return not self._over and not self.is_foreign

    def _end(self, why: str) -> None:
        self._over = self._over or why
        current = asyncio.current_task()
        for task in self._tasks:
            if task is not current:
                task.cancel()

    async def _keep(self) -> None:
        while not self._over:
            pause_s = self.valid_for_s - (KEPT - 1 / 3) * self.ttl_s
            if self._problem is not None:
                pause_s = self.ttl_s / 20 * self._rng.uniform(0.5, 1.5)
            await asyncio.sleep(max(0.0, pause_s))
            try:
                await self.renew()
            except LockLost:
                return
            except Exception as problem:  # whatever it is, the lease lasts as long as it lasts
                self._problem = problem

    async def _watch(self) -> None:
        while not self._over:
            # an event loop does not count the time its machine sleeps, so look often
            await asyncio.sleep(min(_LOOK_S_MAX, max(_LOOK_S_MIN, self.valid_for_s)))
            with suppress(LockLost):
                self.check()


class Locks:
    """The locks of one client: takes them, and remembers what it saw of those of others."""

    def __init__(
        self,
        context: Context,
        clock: Clock = boot_time,
        rng: random.Random | None = None,
        claim_type: type[Claim] = Claim,
    ) -> None:
        self._context = context
        self._clock = clock
        self._rng = rng or random.Random(os.urandom(16))
        self._claim_type = claim_type
        self._sightings = Sightings()
        self._leases: set[AsyncLease] = set()

    async def acquire(self, name: str, ttl_s: float, wait_s: float | None, owner: str) -> AsyncLease:
        """Take a lock, waiting for it at most ``wait_s`` seconds (None: for ever; 0: one try)."""
        register = lock_register(name)
        claim = self._claim_type(self._context, self._clock, self._sightings, register, ttl_s, owner)
        try:
            await self._contend(claim, name, ttl_s, wait_s)
        except (Exception, asyncio.CancelledError):
            with suppress(ObjmetaError):
                await claim.let_go(_release_s(self._context.timeout_s, ttl_s))
            raise
        self._leases = {lease for lease in self._leases if not lease.is_over}
        lease = AsyncLease(claim, self._clock, self._rng, name, ttl_s, self._context.timeout_s)
        self._leases.add(lease)
        return lease

    async def holder(self, name: str) -> LockHolder | None:
        """Who holds a lock; None if it is free. Raises NoQuorum."""
        (state,) = await self._context.registers.read((lock_register(name),), self._context.timeout_s)
        standing = standing_of(state)
        if not standing.is_held:
            return None
        return LockHolder(name, standing.lease.owner, standing.token, standing.lease.ttl_us / 1e6)

    async def close(self) -> None:
        """All leases of this client are lost."""
        leases, self._leases = self._leases, set()
        await asyncio.gather(*(lease.close() for lease in leases))

    async def _contend(self, claim: Claim, name: str, ttl_s: float, wait_s: float | None) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        poll_s_max = min(_POLL_S_MAX, ttl_s / 4)
        poll_s = min(_POLL_S_MIN, poll_s_max)
        looks = 0
        while True:
            await claim.look(self._context.timeout_s)
            if await self._try(claim):
                return
            left_s = float("inf") if wait_s is None else began + wait_s - loop.time()
            if left_s <= 0:
                raise _not_taken(claim, name, ttl_s, wait_s or 0.0)
            looks += 1
            if looks > 1:
                with suppress(UnknownOutcome):  # nothing depends on it
                    await claim.line_up(self._context.timeout_s)
            pause_s = poll_s * self._rng.uniform(0.5, 1.5)
            poll_s = min(poll_s * 1.5, poll_s_max)
            if not claim.is_mine:
                pause_s = min(pause_s, max(_LOOK_S_MIN, claim.patience_s()))
            await asyncio.sleep(min(pause_s, max(0.0, left_s)))

    async def _try(self, claim: Claim) -> bool:
        """Take the lock if it may be taken; what is in the register afterwards counts, whatever the answers were."""
        for _ in range(_TRIES):
            if claim.is_mine and claim.valid_until > self._clock():
                return True
            if not claim.is_mine and claim.patience_s() > 0:
                return False
            step = claim.renew if claim.is_mine else claim.take
            try:
                await step(self._context.timeout_s)
            except UnknownOutcome as unknown:
                try:
                    await claim.look(self._context.timeout_s)
                except Unavailable:
                    raise unknown from None
        return False


def _release_s(timeout_s: float, ttl_s: float) -> float:
    """How long giving a lock back is worth trying: it runs out by itself."""
    return min(timeout_s, max(ttl_s, _RELEASE_S_MIN))


def _not_taken(claim: Claim, name: str, ttl_s: float, wait_s: float) -> ObjmetaError:
    waited = f" after {wait_s:g} s" if wait_s else ""
    lease = claim.standing.lease
    if claim.is_unsure:
        return UnknownOutcome(f"whether the lock {name!r} was taken is not known{waited}; if it was, it is given back")
    if claim.is_mine:
        return LockHeld(f"the store is too slow to hold the lock {name!r} with a time-to-live of {ttl_s:g} s")
    if not claim.standing.is_held:
        return LockHeld(f"the lock {name!r} was released and is held back for another waiter{waited}")
    return LockHeld(f"the lock {name!r} is still held by {lease.owner} (token {claim.standing.token}){waited}")


class AsyncLock:
    """A lock that may be taken, by any number of tasks one after the other.

    ``async with client.lock("name") as lease:`` runs the block while the lock is held.
    """

    def __init__(
        self,
        locks: Callable[[], Awaitable[Locks]],
        name: str,
        ttl_s: float = TTL_S,
        wait_s: float | None = None,
        owner: str | None = None,
    ) -> None:
        lock_register(name)
        if not TTL_S_MIN <= ttl_s <= TTL_S_MAX:
            raise InvalidArgument(f"a lock's time-to-live is {TTL_S_MIN:g} to {TTL_S_MAX:g} seconds, not {ttl_s!r}")
        if wait_s is not None and not wait_s >= 0:
            raise InvalidArgument(f"the time to wait for a lock is 0 or more seconds, or None, not {wait_s!r}")
        self.name = name
        self.ttl_s = ttl_s
        self.wait_s = wait_s
        self.owner = owner if owner is not None else f"{socket.gethostname()}:{os.getpid()}"
        self._locks = locks
        self._inside: dict[asyncio.Task[object] | None, AsyncLease | None] = {}

    async def acquire(self) -> AsyncLease:
        """Take the lock; its lease is renewed until it is released or lost.

        Raises LockHeld when ``wait_s`` is over, NoQuorum (nothing was changed), UnknownOutcome (it may be held until it
        runs out).
        """
        return await (await self._locks()).acquire(self.name, self.ttl_s, self.wait_s, self.owner)

    async def holder(self) -> LockHolder | None:
        """Who held the lock just now, or None. Raises NoQuorum."""
        return await (await self._locks()).holder(self.name)

    async def __aenter__(self) -> AsyncLease:
        task = asyncio.current_task()
        if task in self._inside:
            raise RuntimeError(f"this task holds or awaits the lock {self.name!r} already; locks are not reentrant")
        self._inside[task] = None
        try:
            lease = await self.acquire()
            self._inside[task] = lease
            return await lease.__aenter__()
        except BaseException:
            del self._inside[task]
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lease = self._inside.pop(asyncio.current_task())
        assert lease is not None, "the block was entered"
        await lease.__aexit__(kind, error, trace)
