"""One contender's dealings with the register of a lock: what it wrote and when, and what it has seen since when.

Time is an injected clock of this process, compared only with itself, so no two clocks need to agree on more than how
fast time goes (10 % apart at most).  A contender counts from the *return* of the first read that showed a mark, a
holder from *before* it sent the message that is in the register, and the holder counts 10 % less.  So whatever was slow
or lost on the way, and however long either of them was paused, the holder's time is over first.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from objmeta.errors import ObjmetaError, UnknownOutcome
from objmeta.interfaces import ChangeRequest
from objmeta.model.changes import SetValue
from objmeta.model.leases import (
    FREE,
    NEVER_USED,
    LeaseValue,
    Standing,
    encode,
    released,
    renewed,
    reserved,
    standing_of,
    taken,
)
from objmeta.objects.context import Context

Clock = Callable[[], float]
"""Seconds that pass also while the process is paused or the machine sleeps; the origin does not matter."""

KEPT: Final = 0.9
"""How much of the time-to-live a holder counts on."""
_SIGHTINGS_MAX: Final = 10_000
_TRIES: Final = 4
"""Compare-and-swaps in a row; each that fails has learned what is in the register."""


def boot_time() -> float:
    """CLOCK_BOOTTIME, which counts the time a machine sleeps; where there is none, the monotonic clock."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class Sightings:
    """Since when each lock has looked as it did last. What is forgotten is only waited for once more."""

    def __init__(self) -> None:
        self._first: dict[bytes, tuple[tuple[bytes, int, int], float]] = {}

    def since(self, register: bytes, mark: tuple[bytes, int, int], now: float) -> float:
        """When ``mark`` was first seen; ``now`` is a time after the read that shows it now."""
        known = self._first.get(register)
        if known is None or known[0] != mark:
            self._first.pop(register, None)
            if len(self._first) >= _SIGHTINGS_MAX:
                del self._first[next(iter(self._first))]
            known = self._first[register] = (mark, now)
        return known[1]


class Claim:
    """What one try to take a lock, and the lease that comes of it, know of the register.

    Every method that writes is a compare-and-swap on ``standing``, which it brings up to date.  When the outcome of one
    is unknown, the next look or compare-and-swap tells: until then nothing is believed of it.
    """

    def __init__(
        self, context: Context, clock: Clock, sightings: Sightings, register: bytes, ttl_s: float, owner: str
    ) -> None:
        self.holder = context.new_id()
        self.standing: Standing = NEVER_USED
        self.is_unsure = False
        """Whether a change made here may yet apply."""
        self._context = context
        self._clock = clock
        self._sightings = sightings
        self._register = register
        self._ttl_us = round(ttl_s * 1e6)
        self._owner = owner
        self._number = 0
        self._sent: dict[int, float] = {}

    # -- What is known ------------------------------------------------------------------------------------------------

    @property
    def is_mine(self) -> bool:
        """Whether the register names this claim as the holder."""
        return self.standing.lease.holder == self.holder

    @property
    def is_next(self) -> bool:
        """Whether the register names this claim as the next holder."""
        return self.standing.lease.next_holder == self.holder

    @property
    def valid_until(self) -> float:
        """Until when, by the clock, nobody else can take the lock that is mine."""
        return self._sent[self.standing.lease.renewal] + KEPT * self._ttl_us / 1e6

    def patience_s(self) -> float:
        """In how many seconds this claim may take the lock from whoever has it, if nothing happens; 0 for now."""
        now = self._clock()
        since = self._sightings.since(self._register, self.standing.mark, now)
        return max(0.0, since + self.standing.patience_us(self.holder) / 1e6 - now)

    # -- Steps --------------------------------------------------------------------------------------------------------

    async def look(self, timeout_s: float) -> None:
        """Read the register. Raises NoQuorum."""
        (state,) = await self._context.registers.read((self._register,), timeout_s)
        self._found(standing_of(state))

    async def take(self, timeout_s: float) -> bool:
        """Become the holder, if the lock still is as it was seen. Raises NoQuorum, UnknownOutcome."""
        number = self._stamp()
        return await self._write(taken(self.holder, number, self._ttl_us, self._owner), timeout_s)

    async def renew(self, timeout_s: float) -> bool:
        """Stay the holder for another time-to-live; False if the register was not as it was seen last."""
        number = self._stamp()
        return await self._write(renewed(self.standing, number), timeout_s)

    async def line_up(self, timeout_s: float) -> bool:
        """Be put down as the next holder, if nobody is."""
        if self.standing.lease.next_holder != FREE or not self.standing.is_held:
            return False
        return await self._write(reserved(self.standing, self.holder), timeout_s)

    async def let_go(self, timeout_s: float) -> None:
        """See to it that nothing of this claim is in the register, now or later."""
        for _ in range(_TRIES):
            if self.is_mine or self.is_unsure:
                after = released(self.standing)
                if self.is_unsure and not self.is_mine and self.standing.is_held and self.patience_s() > 0:
                    after = reserved(self.standing, self.standing.lease.next_holder)
            elif self.is_next:
                after = reserved(self.standing, FREE)
            else:
                return
            await self._write(after, timeout_s)

    def _stamp(self) -> int:
        self._number += 1
        self._sent[self._number] = self._clock()
        return self._number

    async def _write(self, lease: LeaseValue, timeout_s: float) -> bool:
        change = SetValue(self._context.new_id(), encode(lease), self.standing.version)
        before, self.is_unsure = self.is_unsure, True
        try:
            reply = await self._context.registers.change(ChangeRequest(self._register, change), timeout_s)
        except UnknownOutcome:
            raise
        except ObjmetaError:
            self.is_unsure = before
            raise
        if reply.code:
            self._found(standing_of(reply.state))
            return False
        assert reply.record is not None, "a change that took effect names its record"
        self._found(Standing(lease, change.version_id, lease.token or reply.record.ref.sequence))
        return True

    def _found(self, standing: Standing) -> None:
        if standing.version != self.standing.version:
            self.is_unsure = False  # all that is under way wants the version that is gone
        self.standing = standing
        self._sightings.since(self._register, standing.mark, self._clock())
        if self.is_mine:
            newest = standing.lease.renewal
            self._sent = {number: sent for number, sent in self._sent.items() if number >= newest}
