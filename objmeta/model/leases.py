"""What a lock's register holds, and what each step writes into it.

Rules (DESIGN section 4, "Locks and leaders").
* A lease names its holder, which is drawn anew for every try to take the lock, and a renewal number.  Holder and number
  together stand for one message of one holder: a message that is sent again takes another number.
* A contender may take a lease once it has seen the same holder and number for the whole time-to-live.
* The token is the register's sequence at the change that took the lock, so it grows with every holder.  A register that
  is made anew starts above its scope's sequence floor; and a released lock keeps its register, with the last token.
* Every step is a compare-and-swap on the change that was last seen (``SetValue.if_version``).
* One waiter may put itself down as next.  A lock that is released for it is held back from others for a moment. That is
  for fairness only; nothing depends on it.
"""

from __future__ import annotations

from typing import Final

import msgspec

from objmeta.core.messages import State
from objmeta.errors import IntegrityError
from objmeta.model.changes import NO_VERSION
from objmeta.model.values import Value, decode_value, tip_of

HELD_BACK_US: Final = 1_000_000
"""How long a contender must have seen a released lock before it may take it in place of the waiter put down as next."""

FREE: Final = b""
"""The holder of a lock that nobody holds."""


class LeaseValue(msgspec.Struct, frozen=True, array_like=True, tag="lease1", gc=False):
    """The value of a lock's register.

    ``token`` is 0 in the change that takes the lock, whose sequence is the token.  ``owner`` is for people.
    """

    holder: bytes
    renewal: int
    ttl_us: int
    token: int
    owner: str = ""
    next_holder: bytes = FREE


class Standing(msgspec.Struct, frozen=True):
    """A lock as one read showed it. ``version`` is the ``if_version`` of whoever wants to change just this."""

    lease: LeaseValue
    version: bytes
    token: int

    @property
    def is_held(self) -> bool:
        """Whether it names a holder, whose lease may have run out."""
        return self.lease.holder != FREE

    @property
    def mark(self) -> tuple[bytes, int, int]:
        """What stays the same as long as nobody takes, renews or releases the lock."""
        return self.lease.holder, self.lease.renewal, self.token

    def patience_us(self, contender: bytes) -> int:
        """For how long ``contender`` must have seen this mark before it may take the lock."""
        if self.is_held:
            return self.lease.ttl_us
        return 0 if self.lease.next_holder in (FREE, contender) else HELD_BACK_US


NEVER_USED: Final = Standing(LeaseValue(FREE, 0, 0, 0), NO_VERSION, 0)
"""A lock without a register."""

_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(LeaseValue)


def standing_of(state: State | None) -> Standing:
    """Read a lock's register. Raises IntegrityError if it holds anything else."""
    tip = tip_of(state)
    if state is None or tip is None:
        return NEVER_USED
    value = decode_value(state.value)
    if not isinstance(value, Value) or value.value is None:
        raise IntegrityError("a lock's register holds something else")
    try:
        lease = _DECODER.decode(value.value)
    except msgspec.MsgspecError as damage:
        raise IntegrityError(f"a lock's register holds bytes that cannot be read: {damage}") from damage
    return Standing(lease, tip.version_id, lease.token or tip.sequence)


def encode(lease: LeaseValue) -> bytes:
    """The bytes for ``SetValue``."""
    return _ENCODER.encode(lease)


def taken(holder: bytes, renewal: int, ttl_us: int, owner: str) -> LeaseValue:
    """The lock taken by ``holder``."""
    return LeaseValue(holder, renewal, ttl_us, 0, owner)


def renewed(standing: Standing, renewal: int) -> LeaseValue:
    """The same lease under another number."""
    return msgspec.structs.replace(standing.lease, renewal=renewal, token=standing.token)


def reserved(standing: Standing, next_holder: bytes) -> LeaseValue:
    """The same, with another waiter put down as next (FREE: nobody)."""
    return msgspec.structs.replace(standing.lease, token=standing.token, next_holder=next_holder)


def released(standing: Standing) -> LeaseValue:
    """The lock held by nobody."""
    return LeaseValue(FREE, 0, 0, standing.token, "", standing.lease.next_holder)
