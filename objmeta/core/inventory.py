"""What an acceptor holds, for those who copy or repair: inventories of names, and digests that find differences.

An inventory lists every register for which there is a row, promise-only rows included (PROTOCOL, "Changing the
members"), with the names of all records held.  It says what an acceptor holds and nothing about what is chosen.  A
digest covers the accepted ballots and the names of records of a range, so that two acceptors which agree on it need not
compare more; promises are left out, since they differ all the time and repair does not move them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
from blake3 import blake3

from objmeta.core.ballot import Ballot
from objmeta.core.messages import RecordRef

HeldRecord = tuple[RecordRef, RecordRef | None]
"""A record's name and its parent's."""

DIGEST_BYTES: Final = 16

HELD_PER_PAGE_MAX: Final = 4096
"""Names of records on one page of an inventory: half a megabyte."""

LOOKED_AT_MAX: Final = 20_000
"""Rows that are passed by for one page of what is erasable: a few tens of milliseconds of reading."""

LEAF_REGISTERS: Final = 16
"""Registers in one range of digests.  Few, so that a change in every hundredth register, at random, does not have all
of them listed; more would save no more than the digest itself, which costs less than reading one register."""
LEAF_ITEMS: Final = 64
"""Rows and records in one range of digests, unless a single register has more."""
DIGESTED_MAX: Final = 1024
"""Rows and records that one answer with digests covers: a few milliseconds of reading."""


class InventoryRequest(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Rows with ``start <= name < end`` (``end`` empty: no bound), at most ``limit`` of them, in order of name.

    With ``names``, which are in order, the page shows of these registers those that there are, and nothing else of the
    request counts.  ``held_after`` leaves out the records of the register ``start`` up to this one (see
    :class:`InventoryRow`).  With ``erasable`` the page shows only tombstones, with their newest record, and promises
    without a value.
    """

    start: bytes = b""
    end: bytes = b""
    limit: int = 1000
    held_after: RecordRef | None = None
    erasable: bool = False
    names: tuple[bytes, ...] = ()


class InventoryRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One register; ``flag`` is its state's, None where nothing was accepted.

    ``held`` is in order of version id, sequence and digest.  With ``more`` the register has further records, after the
    last of ``held``; a request that begins with this name and says ``held_after`` asks for them.  A damaged row shows
    ``damaged``, and ballot zero for what it hides.  ``tip`` is shown by a page of what is erasable alone.
    """

    name: bytes
    promised: Ballot
    accepted: Ballot
    flag: int | None
    held: tuple[HeldRecord, ...] = ()
    damaged: bool = False
    more: bool = False
    tip: RecordRef | None = None


class Inventory(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One page; ``covered`` is the exclusive end of what it answers for, empty: all that the request asks for."""

    rows: tuple[InventoryRow, ...]
    covered: bytes = b""


class ChangesRequest(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The registers that changed after change number ``since`` of the acceptor, at most ``limit`` of them."""

    since: int
    limit: int


class DigestRequest(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Digests of neighbouring ranges, the first of which begins at ``start``.

    ``bounds`` are their exclusive ends, in order; an empty one, which can only be the last, is no bound.  Without
    ``bounds`` the acceptor chooses them: a range ends after ``LEAF_REGISTERS`` registers or ``LEAF_ITEMS`` rows and
    records, and the last of all at no bound.
    """

    start: bytes = b""
    bounds: tuple[bytes, ...] = ()


class RangeDigest(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where a range ends, how many registers it has (with an accepted state), and a digest over them."""

    end: bytes
    registers: int
    digest: bytes


class Digests(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The first of the ranges asked for, all whole: those that fit ``DIGESTED_MAX``.

    There are none only if the first range given by the request is longer than that, which a range is that somebody else
    cut into leaves only if there is much more in it here.
    """

    ranges: tuple[RangeDigest, ...]


def row_digest(name: bytes, accepted: bytes, held: Iterable[tuple[int, bytes, bytes]]) -> bytes:
    """The digest of one register: its packed accepted ballot and its records as (sequence, version id, digest)."""
    parts = [len(name).to_bytes(2), name, accepted]
    for sequence, version_id, digest in held:
        parts += (sequence.to_bytes(8), version_id, digest)
    return blake3(b"".join(parts)).digest(DIGEST_BYTES)


def range_digest(end: bytes, rows: Sequence[bytes]) -> RangeDigest:
    """The digest of a range from those of its registers, in order of name."""
    return RangeDigest(end, len(rows), blake3(b"".join(rows)).digest(DIGEST_BYTES))
