"""Intents: what whoever meets one does about it (docs/protocol.md, "Several objects at once").

An intent is never interpreted, it is removed: its transaction is asked for its outcome, or given one, and the intent is
replaced by what that makes of it.  All who read or change objects come here, so that the rule is in one place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec

from objmeta.core.change import Change
from objmeta.core.listing import ScanRequest, ScanRow, decode_rows
from objmeta.core.messages import Fence, State
from objmeta.errors import Fenced, NoQuorum, Unavailable, UnknownOutcome
from objmeta.interfaces import ChangeReply, ChangeRequest, ScanPage
from objmeta.model.changes import Conclude, Decide, Resolve
from objmeta.model.names import transaction_register
from objmeta.model.values import ABORTED, INTENT_MARK, Pending, Transaction, decode_value, holds_intent
from objmeta.objects.context import Context

GRACE_S: Final = 0.5
"""How long an undecided transaction is waited for before it is aborted, unless an operation has less than four times
as long: its owner needs a few round trips, and aborting one that is alive makes it begin anew."""
_GRACE_OBJECTS: Final = 100
"""Of transactions of more objects the owner is waited for longer, in proportion: one who lists again and again would
otherwise keep them from ever being committed."""
_POLL_S_MIN: Final = 0.002
_POLL_S_MAX: Final = 0.05
_PAGES_MAX: Final = 50
"""A page of which new intents are met this often is not to be had."""
STALE_TERM: Final = "stale_term"
"""Code of a change that was refused because its bucket has moved on."""


class Intents:
    """Settles intents."""

    def __init__(self, context: Context) -> None:
        self._context = context

    # -- Whoever meets one --------------------------------------------------------------------------------------------

    async def settled(self, name: bytes, state: State | None, fence: Fence) -> State | None:
        """The state of an object's register once no intent is in it; ``state`` is what was read.

        Raises Fenced if the bucket moved on, NoQuorum.
        """
        loop = asyncio.get_running_loop()
        asked, until, pause_s = b"", 0.0, _POLL_S_MIN
        while holds_intent(state):
            assert state is not None
            intent = decode_value(state.value)
            assert isinstance(intent, Pending)
            if intent.transaction != asked:
                asked, until, pause_s = intent.transaction, loop.time() + self.grace_s(intent), _POLL_S_MIN
            committed = await self.outcome(asked, loop.time() >= until)
            if committed is not None:
                state = await self.resolve(name, asked, committed, fence)
                continue
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _POLL_S_MAX)
            (state,) = await self._context.registers.read((name,), self._context.timeout_s, fence)
        return state

    def grace_s(self, intent: Pending) -> float:
        """How long the owner of an undecided transaction is waited for."""
        return min(GRACE_S * max(1.0, intent.objects / _GRACE_OBJECTS), self._context.timeout_s / 4)

    async def clear(self, name: bytes, fence: Fence) -> None:
        """Have no intent in the way of a change. Raises Fenced, NoQuorum."""
        (state,) = await self._context.registers.read((name,), self._context.timeout_s, fence)
        await self.settled(name, state, fence)

    async def scan(self, request: ScanRequest) -> ScanPage:
        """A page of objects in which there are no intents. Raises Fenced, NoQuorum."""
        for _ in range(_PAGES_MAX):
            page = await self._context.registers.scan(request, self._context.timeout_s)
            if INTENT_MARK not in page.rows:  # so nothing is decoded for it
                return page
            met = [row for row in decode_rows(page.rows) if holds_intent(row.state)]
            if not met:
                return page
            assert request.fence is not None, "whoever lists objects states the term of their bucket"
            by_transaction: dict[bytes, list[ScanRow]] = {}
            for row in met:
                intent = decode_value(row.state.value)
                assert isinstance(intent, Pending)
                by_transaction.setdefault(intent.transaction, []).append(row)
            await asyncio.gather(*(self._settle_all(rows, request.fence) for rows in by_transaction.values()))
            # What is there now is another page; a shorter one has fewer objects that are just being changed.
            request = msgspec.structs.replace(request, limit=max(1, request.limit // 2))
        raise Unavailable("objects are changed by transactions all the time; try again later")

    async def _settle_all(self, rows: Sequence[ScanRow], fence: Fence) -> None:
        """Settle the intents of one transaction: one of them is waited at, or all would ask for it all the time."""
        first, *others = rows
        await self.settled(first.name, first.state, fence)
        await asyncio.gather(*(self.settled(row.name, row.state, fence) for row in others))

    # -- Outcomes -----------------------------------------------------------------------------------------------------

    async def outcome(self, transaction: bytes, impatient: bool) -> bool | None:
        """Whether a transaction has committed; one that is undecided (None) is aborted if ``impatient``.

        Raises NoQuorum.
        """
        (state,) = await self._context.registers.read((transaction_register(transaction),), self._context.timeout_s)
        if state is not None:
            return is_committed(state)
        return await self.abort(transaction) if impatient else None

    async def abort(self, transaction: bytes, generation: int = 0) -> bool:
        """Abort a transaction unless it is decided; whether it has committed.

        Who asks to learn what became of a commit states the ``generation`` in which that began (0: it begins now): an
        empty register says nothing to him once that is refused, for it may have been "done" and been erased.  Raises
        NoQuorum, StaleGeneration.
        """
        change = Decide(self._context.new_id(), False)
        reply = await self._change(ChangeRequest(transaction_register(transaction), change, generation=generation))
        if reply.record is not None:
            return False  # this took effect
        assert reply.state is not None, "a transaction is aborted unless it is decided"
        return is_committed(reply.state)

    async def resolve(self, name: bytes, transaction: bytes, committed: bool, fence: Fence | None) -> State | None:
        """Replace an intent, if it is there still, by what is now; the register's state. Raises Fenced, NoQuorum."""
        change = self.resolution(transaction, committed)
        reply = await self._change(ChangeRequest(name, change, fence))
        if reply.code == STALE_TERM:
            raise Fenced("the bucket moved on while an intent in it was settled; look it up and begin anew")
        if reply.record is None or reply.state is not None:
            return reply.state
        (state,) = await self._context.registers.read((name,), self._context.timeout_s, fence)
        return state

    def resolution(self, transaction: bytes, committed: bool) -> Change:
        """The change that replaces an intent."""
        return Resolve(self._context.new_id(), transaction, committed)

    async def conclude(self, transaction: bytes) -> None:
        """Let a committed transaction be forgotten of whose participants none has its intent any more."""
        await self._change(ChangeRequest(transaction_register(transaction), Conclude(self._context.new_id())))

    async def _change(self, request: ChangeRequest) -> ChangeReply:
        """A change that anybody may make for anybody: not knowing whether it was made leaves nothing open."""
        try:
            return await self._context.registers.change(request, self._context.timeout_s)
        except UnknownOutcome as failure:
            raise NoQuorum(
                f"what a transaction has left behind could not be settled ({failure}); try again"
            ) from failure


def is_committed(state: State) -> bool:
    """What the register of a transaction says."""
    found = decode_value(state.value)
    assert isinstance(found, Transaction)
    return found.status != ABORTED
