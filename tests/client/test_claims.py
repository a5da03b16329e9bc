"""What a contender believes, step by step: lost answers, a clock turned by hand, others in between."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from objmeta import errors
from objmeta.client.embedded import EmbeddedRegisters
from objmeta.core.messages import TOMBSTONE
from objmeta.interfaces import ChangeReply, ChangeRequest
from objmeta.model.changes import SetValue
from objmeta.model.leases import HELD_BACK_US, NEVER_USED, standing_of
from objmeta.model.names import lock_register
from objmeta.objects.claims import KEPT, Claim, Sightings
from objmeta.objects.context import Context
from objmeta.objects.locks import Locks

TTL_S = 10.0
TIMEOUT_S = 5.0
REGISTER = lock_register("l")


class Forgetful:
    """The registers of a real store, some of whose answers are lost, before or after a change was made."""

    def __init__(self, registers: EmbeddedRegisters) -> None:
        self._registers = registers
        self.lose_requests = 0
        self.lose_answers = 0

    async def change(self, request: ChangeRequest, timeout_s: float) -> ChangeReply:
        if self.lose_requests:
            self.lose_requests -= 1
            raise errors.UnknownOutcome("lost on the way")
        reply = await self._registers.change(request, timeout_s)
        if self.lose_answers:
            self.lose_answers -= 1
            raise errors.UnknownOutcome("lost on the way back")
        return reply

    def __getattr__(self, name: str) -> Any:
        return getattr(self._registers, name)


class Hand:
    """A clock that is turned by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def registers(tmp_path: Path) -> AsyncIterator[Forgetful]:
    registers = await EmbeddedRegisters.open(tmp_path)
    yield Forgetful(registers)
    await registers.close()


def context(registers: Any) -> Context:
    return Context(registers, lambda: 0, lambda: os.urandom(16), TIMEOUT_S, True)


def claim(registers: Any, clock: Hand, sightings: Sightings | None = None) -> Claim:
    return Claim(context(registers), clock, sightings or Sightings(), REGISTER, TTL_S, "somebody")


async def test_a_holder_counts_from_before_it_asks_less_ten_percent(registers: Forgetful) -> None:
    clock = Hand()
    holder = claim(registers, clock)
    await holder.look(TIMEOUT_S)
    assert holder.patience_s() == 0
    asked = clock.now
    taking = asyncio.create_task(holder.take(TIMEOUT_S))
    await asyncio.sleep(0)
    clock.now += 3  # while the message is under way
    assert await taking
    assert holder.valid_until == asked + KEPT * TTL_S
    clock.now += 2
    asked = clock.now
    assert await holder.renew(TIMEOUT_S)
    assert holder.valid_until == asked + KEPT * TTL_S


async def test_a_renewal_counts_only_once_it_was_seen_and_from_when_it_was_sent_first(registers: Forgetful) -> None:
    clock = Hand()
    holder = claim(registers, clock)
    await holder.take(TIMEOUT_S)
    until = holder.valid_until

    clock.now += 1
    registers.lose_requests = 1
    with pytest.raises(errors.UnknownOutcome):
        await holder.renew(TIMEOUT_S)
    assert holder.valid_until == until

    clock.now += 1
    sent = clock.now
    registers.lose_answers = 1
    with pytest.raises(errors.UnknownOutcome):
        await holder.renew(TIMEOUT_S)
    assert holder.valid_until == until

    clock.now += 1
    assert not await holder.renew(TIMEOUT_S)  # it finds the one before, which had arrived
    assert holder.is_mine
    assert holder.valid_until == sent + KEPT * TTL_S
    assert await holder.renew(TIMEOUT_S)
    assert holder.valid_until == clock.now + KEPT * TTL_S


async def test_a_contender_counts_from_the_return_of_the_first_read_that_showed_it(registers: Forgetful) -> None:
    clock = Hand()
    holder, contender = claim(registers, Hand()), claim(registers, clock)
    await holder.take(TIMEOUT_S)
    looking = asyncio.create_task(contender.look(TIMEOUT_S))
    await asyncio.sleep(0)
    clock.now += 5  # while the answer is under way
    await looking
    assert contender.patience_s() == TTL_S
    clock.now += 7
    await contender.look(TIMEOUT_S)
    assert contender.patience_s() == TTL_S - 7
    await holder.renew(TIMEOUT_S)
    await contender.look(TIMEOUT_S)
    assert contender.patience_s() == TTL_S
    clock.now += TTL_S
    assert contender.patience_s() == 0
    assert await contender.take(TIMEOUT_S)
    assert contender.standing.token > holder.standing.token
    assert not await holder.renew(TIMEOUT_S)
    assert not holder.is_mine


async def test_the_time_to_live_is_that_of_the_holder(registers: Forgetful) -> None:
    clock = Hand()
    await claim(registers, Hand()).take(TIMEOUT_S)
    hasty = Claim(context(registers), clock, Sightings(), REGISTER, 1.0, "hasty")
    await hasty.look(TIMEOUT_S)
    assert hasty.patience_s() == TTL_S


async def test_who_took_it_without_hearing_so_finds_out(registers: Forgetful) -> None:
    locks = Locks(context(registers), Hand(), random.Random(1))
    registers.lose_answers = 1
    lease = await locks.acquire("l", TTL_S, 0, "me")
    lease.check()
    assert lease.token == 1
    await lease.release()
    registers.lose_requests = 1
    lease = await locks.acquire("l", TTL_S, 0, "me")
    assert lease.token == 3
    await lease.release()


async def test_who_gives_up_leaves_nothing_behind_that_may_come_late(registers: Forgetful) -> None:
    """A change that wants the version before it can never apply once that has gone."""
    clock = Hand()
    late = claim(registers, clock)
    await late.look(TIMEOUT_S)
    base = late.standing
    registers.lose_requests = 1
    with pytest.raises(errors.UnknownOutcome):
        await late.take(TIMEOUT_S)
    assert late.is_unsure
    await late.let_go(TIMEOUT_S)
    assert not late.is_unsure
    assert late.standing.version != base.version
    copy = SetValue(os.urandom(16), b"a late copy", base.version)
    assert (await registers.change(ChangeRequest(REGISTER, copy), TIMEOUT_S)).code
    await late.look(TIMEOUT_S)
    assert not late.standing.is_held


async def test_one_waiter_is_next(registers: Forgetful) -> None:
    clock = Hand()
    holder, first, second = (claim(registers, clock) for _ in range(3))
    await holder.take(TIMEOUT_S)
    for waiter in (first, second):
        await waiter.look(TIMEOUT_S)
        await waiter.line_up(TIMEOUT_S)
    assert first.is_next
    assert not second.is_next
    assert not await holder.renew(TIMEOUT_S)
    assert await holder.renew(TIMEOUT_S)
    token = holder.standing.token
    await holder.let_go(TIMEOUT_S)
    for waiter in (second, first):
        await waiter.look(TIMEOUT_S)
    assert first.patience_s() == 0
    assert second.patience_s() == HELD_BACK_US / 1e6
    await first.let_go(TIMEOUT_S)  # it wants it no more
    await second.look(TIMEOUT_S)
    assert second.patience_s() == 0
    assert await second.take(TIMEOUT_S)
    assert second.standing.token > token


async def test_somebody_else_took_it_over(registers: Forgetful) -> None:
    """A clock that jumps takes a lock too early; the holder hears of it at the next renewal, and its token is lower."""
    hasty_clock = Hand()
    holder = await Locks(context(registers)).acquire("l", TTL_S, 0, "slow")
    hasty = claim(registers, hasty_clock)
    await hasty.look(TIMEOUT_S)
    hasty_clock.now += TTL_S
    assert await hasty.take(TIMEOUT_S)
    holder.check()
    with pytest.raises(errors.LockLost, match="somebody else took it over"):
        await holder.renew()
    assert holder.lost.is_set()
    assert holder.token < hasty.standing.token
    await holder.release()
    await hasty.look(TIMEOUT_S)
    assert hasty.is_mine


async def test_a_released_lock_keeps_its_register_and_its_token(registers: Forgetful) -> None:
    locks = Locks(context(registers))
    lease = await locks.acquire("l", TTL_S, 0, "me")
    await lease.release()
    (state,) = await registers.read((REGISTER,), TIMEOUT_S)
    assert state is not None
    assert state.flag != TOMBSTONE
    standing = standing_of(state)
    assert not standing.is_held
    assert standing.token == lease.token
    assert standing_of(None) == NEVER_USED


async def test_a_register_that_holds_anything_else_is_damage(registers: Forgetful) -> None:
    await registers.change(ChangeRequest(REGISTER, SetValue(os.urandom(16), b"anything")), TIMEOUT_S)
    with pytest.raises(errors.IntegrityError, match="cannot be read"):
        await Locks(context(registers)).acquire("l", TTL_S, 0, "me")
    await registers.change(ChangeRequest(REGISTER, SetValue(os.urandom(16), None)), TIMEOUT_S)
    with pytest.raises(errors.IntegrityError, match="something else"):
        await Locks(context(registers)).holder("l")
