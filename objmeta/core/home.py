"""The home of a register: the member that proposes for it by preference (rendezvous hashing).

Where an operation is proposed never matters for safety, with one exception that is a matter of names and not of trust:
the zero ballot of a register belongs to its home alone (``firstwrite``).  So the home must be a function of the
configuration and the name, the same for everybody.

Names that begin alike have one home, so that a bucket's operations meet at one node and share messages and rounds
(docs/decisions/0006).  For the same reason floors are kept for each such beginning: erasing registers of one bucket
does not take the short way of first writes from the others.
"""

from __future__ import annotations

import functools
from typing import Final

from blake3 import blake3

_KIND_BYTES: Final = 2
_SCOPED_KIND: Final = b"o/"
_SCOPE_BYTES: Final = 16
NAME_BYTES_HASHED: Final = _KIND_BYTES + _SCOPE_BYTES
"""The kind of a register and a bucket's id: two and sixteen bytes."""


def scope_of(name: bytes) -> bytes:
    """The scope whose floors concern a register: the bucket's id for the heads of objects, else the kind."""
    return name[_KIND_BYTES:NAME_BYTES_HASHED] if name.startswith(_SCOPED_KIND) else name[:_KIND_BYTES]


def describe(name: bytes) -> str:
    """A register as people know it: by the key of the object that it is the head of, if it is one."""
    if name.startswith(_SCOPED_KIND) and len(name) > NAME_BYTES_HASHED:
        return f"object {name[NAME_BYTES_HASHED:].decode(errors='backslashreplace')!r}"
    return f"register {name.decode(errors='backslashreplace')!r}"


def home_of(name: bytes, members: tuple[int, ...]) -> int:
    """The member with the highest score for the beginning of ``name``; losing another member moves no name of its."""
    return members[0] if len(members) == 1 else _highest(name[:NAME_BYTES_HASHED], members)


@functools.lru_cache(maxsize=4096)
def _highest(hashed: bytes, members: tuple[int, ...]) -> int:
    return max(members, key=lambda member: (blake3(hashed + b"\x00" + member.to_bytes(8)).digest(8), member))
