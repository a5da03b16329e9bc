"""What an acceptor holds, for those who copy or repair: inventories of names, and digests that find differences cheaply.

An inventory lists every register for which there is a row, promise-only rows included (PROTOCOL, "Changing the
members"), with the names of all records held.  It says what an acceptor holds and nothing about what is chosen.  A
digest covers the accepted ballots and the names of records of a range, so that two acceptors which agree on it need not
compare more; promises are left out, since they differ all the time and repair does not move them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec
from blake3 import blake3

from objmeta.core.ballot import Ballot
from objmeta.core.messages import RecordRef

HeldRecord = tuple[RecordRef, RecordRef | None]
"""A record's name and its parent's."""

DIGEST_BYTES: Final = 16


class InventoryRequest(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Rows with ``start <= name < end`` (``end`` empty: no bound), at most ``limit`` of them, in order of name."""

    start: bytes = b""
    end: bytes = b""
    limit: int = 1000


class InventoryRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One register; ``flag`` is its state's, None where nothing was accepted.

    A damaged row shows ``damaged`` and otherwise nothing.
    """

    name: bytes
    promised: Ballot
    accepted: Ballot
    flag: int | None
    held: tuple[HeldRecord, ...] = ()
    damaged: bool = False


class Inventory(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One page; ``covered`` is the exclusive end of what it answers for, empty: up to ``end`` of the request."""

    rows: tuple[InventoryRow, ...]
    covered: bytes = b""


class DigestRequest(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Digests of the ranges between neighbouring ``bounds``, which are in order; a last bound that is empty: no end."""

    bounds: tuple[bytes, ...]


class RangeDigest(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How many registers a range has (with an accepted state) and a digest over them."""

    registers: int
    digest: bytes


class Digests(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One :class:`RangeDigest` for each range asked for."""

    ranges: tuple[RangeDigest, ...]


def row_digest(name: bytes, accepted: bytes, held: Iterable[tuple[int, bytes, bytes]]) -> bytes:
    """The digest of one register: its packed accepted ballot and its records as (sequence, version id, digest)."""
    hasher = blake3(len(name).to_bytes(2))
    hasher.update(name)
    hasher.update(accepted)
    for sequence, version_id, digest in sorted(held):
        hasher.update(sequence.to_bytes(8) + version_id + digest)
    return hasher.digest(DIGEST_BYTES)


def range_digest(rows: Iterable[bytes]) -> RangeDigest:
    """The digest of a range from those of its registers, in order of name."""
    hasher = blake3()
    registers = 0
    for digest in rows:
        hasher.update(digest)
        registers += 1
    return RangeDigest(registers, hasher.digest(DIGEST_BYTES))
