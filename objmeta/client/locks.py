"""Locks and elections for the synchronous client: those of :mod:`objmeta.objects.locks`, from any thread.

The leases are renewed on the client's event loop, in its own thread, while the caller's thread is at work.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Final, Protocol, TypeVar

from objmeta.errors import LockLost, Unavailable
from objmeta.objects.locks import AsyncLease, AsyncLock, LockHolder

T = TypeVar("T")

_OUTAGE_PAUSE_S: Final = 0.5


class _Runner(Protocol):
    def __call__(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the client's loop and wait for it here."""
        ...


class Lease:
    """A lock that is held; see :class:`AsyncLease`. May be used from any thread of the process that took it."""

    def __init__(self, run: _Runner, lease: AsyncLease, loop: asyncio.AbstractEventLoop) -> None:
        self.name = lease.name
        self.ttl_s = lease.ttl_s
        self.token = lease.token
        """Greater than that of every lease on this name that came before."""
        self.lost = threading.Event()
        """Set once the lease is lost (not when it is released)."""
        self._run = run
        self._lease = lease
        self._loop = loop

    @property
    def valid_until(self) -> float:
        """When the lease is over unless it is renewed: seconds on this process's lock clock (CLOCK_BOOTTIME)."""
        return self._lease.valid_until

    @property
    def valid_for_s(self) -> float:
        """How many seconds are left until then; 0 if the lease is over."""
        return self._lease.valid_for_s

    @property
    def is_valid(self) -> bool:
        """Whether nobody else can hold the lock now."""
        return self._lease.is_valid

    def check(self) -> None:
        """Return if nobody else can hold the lock now. Raises LockLost. Asks only the clock, so it costs little."""
        if self._lease.is_valid:
            return
        if not self._lease.is_over:
            self._run(_lose(self._lease))
        raise self._lease.why_lost()

    def when_lost(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once the lease is lost, at once if it is.

        It runs in the client's own thread, so it must be short and not use the client.
        """
        if self._lease.is_over:
            if self.lost.is_set():
                callback()
        else:
            self._run(_listen(self._lease, callback))

    def renew(self) -> None:
        """Make the lease good for another time-to-live from now; it happens by itself as well.

        Raises LockLost, or Unavailable if the store does not answer: then the lease stays good as long as it was.
        """
        self.check()
        self._run(self._lease.renew())

    def release(self) -> None:
        """Give the lock back; does nothing if it was released or taken over.

        Raises Unavailable if the store does not answer: the lease then runs out by itself.
        """
        if self._is_reachable():
            self._run(self._lease.release())

    def __enter__(self) -> Lease:
        self.check()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_reachable():
            self._run(self._lease.__aexit__(kind, error, trace))
        elif kind is None:
            self.check()

    def _is_reachable(self) -> bool:
        """Whether the loop it lives on still runs, in this process."""
        return not self._lease.is_foreign and not self._loop.is_closed()


async def _lose(lease: AsyncLease) -> None:
    lease.lose("it could not be renewed in time")


async def _listen(lease: AsyncLease, callback: Callable[[], None]) -> None:
    lease.when_lost(callback)


class Lock:
    """A lock that may be taken, by any number of threads one after the other.

    ``with client.lock("name") as lease:`` runs the block while the lock is held.
    """

    def __init__(self, run: _Runner, make: Callable[[], AsyncLock]) -> None:
        self.name = make().name
        self._run = run
        self._make = make
        self._inside: dict[int, Lease | None] = {}

    def acquire(self) -> Lease:
        """Take the lock; its lease is renewed until it is released or lost.

        Raises LockHeld when ``wait_s`` is over, NoQuorum (nothing was changed), UnknownOutcome (it may be held until it
        runs out).
        """
        return self._run(self._acquire(self._make()))

    def holder(self) -> LockHolder | None:
        """Who held the lock just now, or None. Raises NoQuorum."""
        return self._run(self._make().holder())

    async def _acquire(self, lock: AsyncLock) -> Lease:
        lease = await lock.acquire()
        found = Lease(self._run, lease, asyncio.get_running_loop())
        lease.when_lost(found.lost.set)
        return found

    def __enter__(self) -> Lease:
        thread = threading.get_ident()
        if thread in self._inside:
            raise RuntimeError(f"this thread holds or awaits the lock {self.name!r} already; locks are not reentrant")
        self._inside[thread] = None
        try:
            lease = self._inside[thread] = self.acquire()
            return lease.__enter__()
        except BaseException:
            del self._inside[thread]
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lease = self._inside.pop(threading.get_ident())
        assert lease is not None, "the block was entered"
        lease.__exit__(kind, error, trace)


class Election:
    """An election that this process may stand for; see :class:`AsyncElection`."""

    def __init__(self, lock: Lock) -> None:
        self.name = lock.name
        self._lock = lock

    def campaign(self) -> Lease:
        """Wait until this process is the leader; it is until the lease is released or lost.

        Raises what :meth:`Lock.acquire` raises.
        """
        return self._lock.acquire()

    def leader(self) -> LockHolder | None:
        """Who led just now, as far as is known: its lease may have run out. Raises NoQuorum."""
        return self._lock.holder()

    def run(self, work: Callable[[Lease], T]) -> T:
        """Run ``work`` as the leader, to its end; when leadership is lost meanwhile it begins anew later.

        It is not stopped from outside: it must call ``lease.check()``.  A store that does not answer is waited for.
        Raises what ``work`` raises, and LockHeld if the election was made with ``wait_s`` and that is over.
        """
        while True:
            try:
                lease = self.campaign()
            except Unavailable:
                time.sleep(_OUTAGE_PAUSE_S)
                continue
            try:
                with lease:
                    return work(lease)
            except LockLost:
                if not lease.lost.is_set():
                    raise  # of another lock

    def __enter__(self) -> Lease:
        return self._lock.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.__exit__(kind, error, trace)
