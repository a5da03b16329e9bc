"""Elections: a leader is who holds the lock of the election's name, for as long as it can be kept.

An old leader that was paused learns that it is none any more, but perhaps in the middle of a step, when its successor
has begun.  So elected work must be safe when it runs twice, or be guarded by the lease's token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final, TypeVar

from objmeta.errors import LockLost, Unavailable
from objmeta.objects.locks import AsyncLease, AsyncLock, LockHolder

T = TypeVar("T")

_OUTAGE_PAUSE_S: Final = 0.5


class AsyncElection:
    """An election that this process may stand for. ``candidate`` is the name others see if it wins."""

    def __init__(self, lock: AsyncLock) -> None:
        self.name = lock.name
        self.candidate = lock.owner
        self._lock = lock

    async def campaign(self) -> AsyncLease:
        """Wait until this process is the leader; it is until the lease is released or lost.

        Raises what :meth:`AsyncLock.acquire` raises.
        """
        return await self._lock.acquire()

    async def leader(self) -> LockHolder | None:
        """Who led just now, as far as is known: its lease may have run out. Raises NoQuorum."""
        return await self._lock.holder()

    async def run(self, work: Callable[[AsyncLease], Awaitable[T]]) -> T:
        """Run ``work`` as the leader, to its end; whenever leadership is lost it is cancelled, and begins anew later.

        A store that does not answer is waited for.  Raises what ``work`` raises, and LockHeld if the election was made
        with ``wait_s`` and that is over.
        """
        while True:
            try:
                lease = await self.campaign()
            except Unavailable:
                await asyncio.sleep(_OUTAGE_PAUSE_S)
                continue
            try:
                async with lease:
                    return await work(lease)
            except LockLost:
                if not lease.lost.is_set():
                    raise  # of another lock

    async def __aenter__(self) -> AsyncLease:
        return await self._lock.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._lock.__aexit__(kind, error, trace)
