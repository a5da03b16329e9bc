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
    """All an acceptor keeps for one register; changed in one durable step (rule 2)."""

    promised: Ballot = ZERO
    accepted: Ballot = ZERO
    state: State | None = None


class Fence(NamedTuple):
    """States under which term of which scope (a bucket id) a new value is proposed (DESIGN section 1, floors)."""

    scope: bytes
    term: int


# -- Requests ---------------------------------------------------------------------------------------------------------


class Prepare(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """Phase one. ``version_id`` asks the acceptor to say where it holds records of that operation, if anywhere."""

    name: bytes
    ballot: Ballot
    version_id: bytes = b""


class Accept(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """Phase two.

    A new value states its ``fence`` and the ``generation`` its operation began in.  A write-back of a value somebody
    already accepted states no generation, and the fence of whoever writes it back (docs/decisions/0005).  ``dead``
    names records proven to lie on no chain: the acceptor drops them in the same step and does not hold them against
    the operation.
    """

    name: bytes
    ballot: Ballot
    state: State
    records: tuple[Record, ...] = ()
    fence: Fence | None = None
    generation: int | None = None
    dead: tuple[RecordRef, ...] = ()


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


Request = Prepare | Accept | Read | Fetch | RaiseTerm
WRITES: Final = (Prepare, Accept, RaiseTerm)
"""Requests whose reply may leave only after a durable step."""


# -- Replies ----------------------------------------------------------------------------------------------------------


class Refusal(enum.IntEnum):
    """Why an acceptor gave no vote."""

    CONFLICT = 1
    """A greater ballot (or the ballot floor) stands in the way; ``greatest`` says which to jump past."""
    HELD_ELSEWHERE = 2
    """A record of that operation is held under another sequence; ``held`` says where."""
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


class Promise(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """Phase one granted: what was accepted so far, and where records of the asked operation are held."""

    ballot: Ballot
    accepted: Ballot
    state: State | None
    held: tuple[RecordRef, ...] = ()
    sequence_floor: int = 0


class Accepted(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """Phase two granted, durably."""

    ballot: Ballot


class Refused(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """No vote, and why. To a proposer it is never worse than a lost message."""

    ballot: Ballot
    reason: Refusal
    greatest: Ballot = ZERO
    held: tuple[RecordRef, ...] = ()
    detail: str = ""


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


Reply = Promise | Accepted | Refused | Found | Fetched | Raised
