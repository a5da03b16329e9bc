"""What proposers and acceptors say to each other, and the facts they say it about.

All are immutable.  A *register* is one CASPaxos instance under a name.  Each change of a register appends one immutable
*record* to its chain; the accepted *state* names the records that its round added, so that head and records are stored,
fetched and written back together (rule 7).
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

import msgspec

from objmeta.core.ballot import ZERO, Ballot
from objmeta.core.configuration import Membership


class RecordRef(NamedTuple):
    """The name of a record within its register: place in the chain, operation id (16 bytes), digest of the content."""

    sequence: int
    version_id: bytes
    digest: bytes


class Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One immutable fact in the history of a register.

    ``parent`` is the record before it in the chain; ``body`` is opaque here; ``data`` is what is too bulky for scans
    (the bytes of a small object) and is bound to the body by a digest inside the body.
    """

    ref: RecordRef
    parent: RecordRef | None
    body: bytes
    data: bytes = b""


LIVE: Final = 0
"""State flag: what a plain listing shows."""
HIDDEN: Final = 1
"""State flag: there, but not shown by a plain listing (a delete marker)."""
TOMBSTONE: Final = 2
"""State flag: nothing is left but the register itself."""


class State(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The value of a register: opaque bytes, the records its round added (the last one is the tip), and a flag."""

    value: bytes
    refs: tuple[RecordRef, ...]
    flag: int = LIVE


class Row(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """All an acceptor keeps for one register; changed in one durable step (rule 2).

    ``whole``: every record on the chain of ``state`` is held here.
    """

    promised: Ballot = ZERO
    accepted: Ballot = ZERO
    state: State | None = None
    whole: bool = False


class Fence(NamedTuple):
    """States under which term of which scope (a bucket id) a new value is proposed (DESIGN section 1, floors)."""

    scope: bytes
    term: int


class ScopeFloor(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What only grows for the registers of one scope (DESIGN section 1, floors).

    ``term``: accepts that state a lower one are refused.  ``ballot``: rounds at or below it are refused, so that an
    erased register's old messages mean nothing.  ``sequence``: a register made anew starts above it.
    """

    term: int = 0
    ballot: Ballot = ZERO
    sequence: int = 0

    def raised(self, other: ScopeFloor) -> ScopeFloor:
        """The higher of both, each by itself."""
        return ScopeFloor(
            max(self.term, other.term), max(self.ballot, other.ballot), max(self.sequence, other.sequence)
        )


NO_FLOOR: Final = ScopeFloor()


# -- Requests ---------------------------------------------------------------------------------------------------------


class Prepare(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """Phase one. The acceptor says where it holds records of the ``operations`` (ids), if anywhere."""

    name: bytes
    ballot: Ballot
    operations: tuple[bytes, ...] = ()


class Accept(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """Phase two.

    A new value states its ``fence`` and the ``generation`` its operation began in.  A write-back of a value somebody
    already accepted states no generation, and the fence of whoever writes it back (docs/decisions/0005).  ``dead``
    names records proven to lie on no chain: the acceptor drops them in the same step and does not hold them against
    the operation.  ``following`` (above ``ballot``, else none) asks for the promise of the next round too (rule 10);
    ``based_on`` (else zero) says that this ballot was promised so, along with an accept under that one.

    Records of the chain beyond those the state names may come along, also with a duplicate: that is how history reaches
    an acceptor that lacks it.
    """

    name: bytes
    ballot: Ballot
    state: State
    records: tuple[Record, ...] = ()
    fence: Fence | None = None
    generation: int | None = None
    dead: tuple[RecordRef, ...] = ()
    following: Ballot = ZERO
    based_on: Ballot = ZERO


class Read(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """The fast read's question: what have you accepted? (rule 4)"""

    name: bytes


class Fetch(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """Ask for records by name; ``with_data`` false leaves their bulky part out."""

    name: bytes
    refs: tuple[RecordRef, ...]
    with_data: bool = True


class RaiseTerm(msgspec.Struct, frozen=True, array_like=True, tag=5, gc=False):
    """Raise the floor of a scope: accepts that state a lower term are refused from now on."""

    scope: bytes
    term: int


class Erase(msgspec.Struct, frozen=True, array_like=True, tag=6, gc=False):
    """Forget a register whose tombstone every acceptor has accepted under ``ballot`` (rule 8).

    Also one that was only ever promised to somebody, where the ballot floor covers that promise; before this is sent
    with a ``ballot`` that nobody ever drew, that floor must stand at all acceptors.
    The configuration in the envelope is the one whose acceptors all confirmed it; a joint one is refused (rule 9).
    """

    name: bytes
    ballot: Ballot


class RaiseFloors(msgspec.Struct, frozen=True, array_like=True, tag=7, gc=False):
    """Raise the generation floor and those of some scopes.

    An acceptor that has not joined yet (epoch OUTSIDE) takes them from a member of its store: it needs them before it
    may vote (rule 9).
    """

    generation: int = 0
    scopes: tuple[tuple[bytes, ScopeFloor], ...] = ()


class ReadFloors(msgspec.Struct, frozen=True, array_like=True, tag=8, gc=False):
    """Ask for the floors: those of scopes above ``after``, at most ``limit`` of them."""

    after: bytes = b""
    limit: int = 1000


class Adopt(msgspec.Struct, frozen=True, array_like=True, tag=9, gc=False):
    """Take this membership, which was chosen, if its epoch is higher than the acceptor's own.

    The envelope's configuration does not matter.  An acceptor that has not joined yet takes it only with ``joining``,
    which says that it was given the floors of a fenced majority.
    """

    membership: Membership
    joining: bool = False


Request = Prepare | Accept | Read | Fetch | RaiseTerm | Erase | RaiseFloors | ReadFloors | Adopt
WRITES: Final = (Prepare, Accept, RaiseTerm, Erase, RaiseFloors, Adopt)
"""Requests whose reply may leave only after a durable step."""


# -- Replies ----------------------------------------------------------------------------------------------------------


class Refusal(enum.IntEnum):
    """Why an acceptor gave no vote."""

    CONFLICT = 1
    """A greater ballot (or the ballot floor) stands in the way; ``greatest`` says which to jump past."""
    HELD_ELSEWHERE = 2
    """A record of that operation is held under a lower sequence; ``held`` says where."""
    RECORD_MISSING = 3
    """The state names a record that neither came along nor is held."""
    STALE_TERM = 4
    """The fence's term is below the scope's floor."""
    STALE_GENERATION = 5
    """The operation began in a generation that has been closed."""
    CONFIGURATION = 6
    """Store id, epoch or digest differ."""
    FAILED = 7
    """The acceptor could not make the step durable (disk full, I/O error); ``detail`` is "kind: message"."""
    DAMAGED = 8
    """What is stored of the register cannot be read: no vote, until a write-back mends it."""


class Promise(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """Phase one granted: what was accepted so far, and where records of the operations asked about are held."""

    ballot: Ballot
    accepted: Ballot
    state: State | None
    held: tuple[RecordRef, ...] = ()
    sequence_floor: int = 0
    generation_floor: int = 0


class Accepted(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """Phase two granted, durably; ``promised`` is the accept's ``following`` if that is promised now, else zero.

    Zero as well where what is based on that promise would be refused, since the chain is not whole.
    """

    ballot: Ballot
    promised: Ballot = ZERO


class Refused(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """No vote, and why. To a proposer it is never worse than a lost message."""

    ballot: Ballot
    reason: Refusal
    greatest: Ballot = ZERO
    held: tuple[RecordRef, ...] = ()
    detail: str = ""
    membership: Membership | None = None
    """With CONFIGURATION: the acceptor's own membership if its epoch is the higher one."""
    behind: bool = False
    """With CONFIGURATION: whether the acceptor is of the same store and its epoch is the lower one."""


class Found(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """Answer to :class:`Read`."""

    accepted: Ballot
    state: State | None


class Fetched(msgspec.Struct, frozen=True, array_like=True, tag=5, gc=False):
    """Answer to :class:`Fetch`: those of the records that are held."""

    records: tuple[Record, ...]


class Raised(msgspec.Struct, frozen=True, array_like=True, tag=6, gc=False):
    """Answer to :class:`RaiseTerm`: the floor that now stands."""

    term: int


class Erased(msgspec.Struct, frozen=True, array_like=True, tag=7, gc=False):
    """Answer to :class:`Erase`: whether the register is gone here."""

    ballot: Ballot
    gone: bool


class Floors(msgspec.Struct, frozen=True, array_like=True, tag=8, gc=False):
    """Answer to :class:`ReadFloors`, and without scopes to :class:`RaiseFloors`: what stands now."""

    generation: int
    scopes: tuple[tuple[bytes, ScopeFloor], ...] = ()
    more: bool = False


class Adopted(msgspec.Struct, frozen=True, array_like=True, tag=9, gc=False):
    """Answer to :class:`Adopt`: the membership that stands now, durably."""

    membership: Membership


Reply = Promise | Accepted | Refused | Found | Fetched | Raised | Erased | Floors | Adopted
