"""Broken transactions that the simulator must catch (see :mod:`objmeta.testing.transactionwork`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from objmeta.core.change import Change, Decision
from objmeta.core.listing import ScanRequest
from objmeta.core.messages import Fence, State
from objmeta.interfaces import ScanPage
from objmeta.model.changes import Resolve
from objmeta.model.names import transaction_register
from objmeta.model.values import Head, Pending, decode_value, encode, flag_of
from objmeta.objects.buckets import Buckets
from objmeta.objects.context import Context
from objmeta.objects.intents import Intents, is_committed
from objmeta.objects.objects import Objects
from objmeta.objects.transactions import Placed, Transactions, Wanted


@dataclass(frozen=True, slots=True)
class Variant:
    """What one variant changes."""

    name: str
    breaks: str
    intents: Callable[[Context], Intents] = Intents
    transactions: Callable[[Context, Buckets, Objects], Transactions] = Transactions


# -- Owners -----------------------------------------------------------------------------------------------------------


class _CommitsTooEarly(Transactions):
    """Commits when all intents but the last are there."""

    async def _leave_all(
        self, transaction: bytes, changes: Sequence[Wanted], generation: int, now_us: int, placed: list[Placed]
    ) -> None:
        await super()._leave_all(transaction, changes[:-1], generation, now_us, placed)
        await self._decide(transaction, [each.register for each in placed], generation)
        await super()._leave_all(transaction, changes[-1:], generation, now_us, placed)


class _StatesNoGeneration(Transactions):
    """The commit begins in whatever generation it is by then."""

    async def _decide(self, transaction: bytes, participants: Sequence[bytes], generation: int) -> bool:
        return await super()._decide(transaction, participants, 0)


class _AsksAnew(Intents):
    """An owner that does not know whether it committed asks as everybody does, in the newest generation."""

    async def abort(self, transaction: bytes, generation: int = 0) -> bool:
        return await super().abort(transaction)


# -- Whoever meets an intent ------------------------------------------------------------------------------------------


class _AsksNobody(Intents):
    """Takes every transaction for aborted, without a look at its register."""

    async def outcome(self, transaction: bytes, impatient: bool) -> bool | None:
        return False


class _AbortsInSecret(Intents):
    """Writes no "aborted", or deletes it at once."""

    async def abort(self, transaction: bytes, generation: int = 0) -> bool:
        (state,) = await self._context.registers.read((transaction_register(transaction),), self._context.timeout_s)
        return state is not None and is_committed(state)


class _AnyIntent(Resolve, frozen=True, tag="any"):
    """Does not look whose intent it is."""

    def apply(self, name: bytes, state: State | None, sequence_floor: int) -> Decision:
        found = decode_value(state.value) if state else None
        transaction = found.transaction if isinstance(found, Pending) else self.transaction
        return Resolve(self.version_id, transaction, self.committed).apply(name, state, sequence_floor)


class _ReplacesAny(Intents):
    """Replaces whatever intent is there by then."""

    def resolution(self, transaction: bytes, committed: bool) -> Change:
        return _AnyIntent(self._context.new_id(), transaction, committed)


class _BelievesIntents(Intents):
    """Who reads an object takes the version that is only intended."""

    async def settled(self, name: bytes, state: State | None, fence: Fence) -> State | None:
        found = decode_value(state.value) if state else None
        if state is None or not isinstance(found, Pending):
            return state
        head = Head(found.current)
        return State(encode(head), state.refs, flag_of(head))

    async def clear(self, name: bytes, fence: Fence) -> None:
        await Intents(self._context).clear(name, fence)

    async def scan(self, request: ScanRequest) -> ScanPage:
        return await Intents(self._context).scan(request)


REAL = Variant("none", "nothing")

VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        REAL,
        Variant("commits-too-early", "the owner commits before all intents are there", transactions=_CommitsTooEarly),
        Variant(
            "states-no-generation",
            "the owner commits in the newest generation, after its aborted transaction was forgotten",
            transactions=_StatesNoGeneration,
        ),
        Variant("asks-anew", "an owner takes a transaction that was done and forgotten for aborted", _AsksAnew),
        Variant("asks-nobody", "an intent is taken back although its transaction has committed", _AsksNobody),
        Variant("aborts-in-secret", "that a transaction was aborted is forgotten at once", _AbortsInSecret),
        Variant("replaces-any", "an intent of one transaction is replaced by the outcome of another", _ReplacesAny),
        Variant("believes-intents", "a reader takes the version that is only intended", _BelievesIntents),
    )
}
BROKEN = VARIANTS.keys() - {REAL.name}
