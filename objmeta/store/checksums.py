"""Checksums over what a SQLite store keeps, since SQLite itself has none over its pages.

CRC-32 each: any one to three flipped bits of a row are found, and of other damage all but one case in 2**32.  A row of
a register has two of them, eight bytes together: of its name, and of everything.  So of a row that is damaged it is
known whether its name can be believed.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import error as struct_error
from struct import pack
from typing import Any, Final
from zlib import crc32

import msgspec
from blake3 import blake3

_NONE: Final = -1
_encode: Final = msgspec.msgpack.Encoder().encode


def row_sum(
    name: bytes, promised: bytes, accepted: bytes | None, flag: int | None, whole: int, state: bytes | None
) -> bytes:
    """The checksum of a register's row."""
    named = crc32(name)
    rest = pack(">qq", _NONE if flag is None else flag, whole) + promised
    if accepted is not None and state is not None:
        rest += accepted + state
    return pack(">II", named, crc32(rest, named))


def is_sound(
    name: bytes,
    promised: bytes,
    accepted: bytes | None,
    flag: int | None,
    whole: int,
    state: bytes | None,
    checksum: bytes,
) -> bool:
    """Whether a row, as it was read, is as it was written."""
    try:
        return row_sum(name, promised, accepted, flag, whole, state) == checksum and (accepted is None) is (
            state is None
        )
    except (TypeError, struct_error):  # a damaged row may hold anything
        return False


def is_name_sound(name: object, checksum: object) -> bool:
    """Whether the name of a row can be believed, whatever the rest of it is."""
    return isinstance(name, bytes) and isinstance(checksum, bytes) and pack(">I", crc32(name)) == checksum[:4]


def floor_sum(scope: bytes, term: int, ballot: bytes, sequence: int) -> int:
    """The checksum of a scope's floors."""
    return crc32(b"%d %d " % (term, sequence) + ballot + scope)


def store_sum(acceptor_id: int, membership: bytes, generation_floor: int, greatest_ballot: bytes) -> int:
    """The checksum of what is kept about the store itself."""
    return crc32(b"%d %d " % (acceptor_id, generation_floor) + greatest_ballot + membership)


def agrees(checksum: object, compute: Callable[..., int], *fields: Any) -> bool:
    """Whether ``checksum`` is what ``compute`` gives of the fields, which may be anything if they are damaged."""
    try:
        return bool(compute(*fields) == checksum)
    except (TypeError, struct_error):
        return False


class Proofs:
    """Tells of many records, one after another, whether each is what its digest names.

    One hasher serves them all, since making one costs more than a record does.  Not for several threads at once.
    """

    def __init__(self) -> None:
        self._hasher = blake3()

    def hold(self, sequence: int, version_id: bytes, digest: bytes, parent: bytes, body: bytes) -> bool:
        """Whether it is (:func:`objmeta.core.records.record_digest`); ``parent`` is encoded."""
        hasher = self._hasher
        hasher.reset()
        try:
            hasher.update(_encode((sequence, version_id, msgspec.Raw(parent), body)))
        except (TypeError, OverflowError):
            return False
        return bool(hasher.digest() == digest)
