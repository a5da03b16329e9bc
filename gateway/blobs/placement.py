"""Which nodes keep a chunk: weighted rendezvous hashing, spread over zones. Pure: values in, values out.

Every node has a score for every chunk, drawn from the chunk's digest and the node's id and stretched by its weight, so
that of all chunks each node comes first for a share that is its share of the weights.  The order of a chunk takes the
best node of every zone first, then the second best of every zone, and so on, each time by score.  So

* the first n of the order are its n homes, whatever n is: more replicas add homes and move nothing;
* copies lie in as many zones as there are, as evenly as they can;
* who follows the homes stands in for one that cannot be reached;
* a node that joins takes over at most one home of a chunk, and one that leaves gives its own to one other: nothing else
  moves.

Everybody works the order out by himself, from the members and what the register ``PLACES`` says of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from blake3 import blake3

from objmeta import errors

PLACES: Final = "~gateway/places"
"""The key-value register of what nodes say of themselves."""
REPLICAS: Final = 3
"""Copies of a chunk where nobody says how many."""
ZONE_LENGTH_MAX: Final = 64

_BITS: Final = 53
"""Of a draw: what a float holds exactly."""


@dataclass(frozen=True, slots=True)
class Place:
    """A node that may keep chunks. ``weight`` is its capacity in any unit, ``zone`` what it may fail together with.

    A node of weight 0 is nobody's home as long as others of its zone are left.
    """

    node_id: int
    address: str
    weight: float = 1.0
    zone: str = ""


class Said(msgspec.Struct, frozen=True, array_like=True):
    """What a node says of itself in the register."""

    weight: float = 1.0
    zone: str = ""

    def checked(self) -> Said:
        """Itself. Raises InvalidArgument."""
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise errors.InvalidArgument(f"the weight of a node is a number of at least 0, not {self.weight!r}")
        if len(self.zone) > ZONE_LENGTH_MAX or not self.zone.isprintable():
            raise errors.InvalidArgument(f"a zone is a word of at most {ZONE_LENGTH_MAX} characters")
        return self


def order(digest: bytes, places: Sequence[Place]) -> list[Place]:
    """All places, those first that are to keep the chunk of this digest."""
    by_score = sorted(places, key=lambda place: (_time(digest, place), place.node_id))
    seen: Counter[str] = Counter()
    rounds = []
    for place in by_score:
        rounds.append(seen[place.zone])
        seen[place.zone] += 1
    return [by_score[index] for index in sorted(range(len(rounds)), key=rounds.__getitem__)]


def homes(digest: bytes, places: Sequence[Place], replicas: int) -> list[Place]:
    """Those that are to keep it; ``replicas`` 0 stands for the default."""
    return order(digest, places)[: copies(replicas, len(places))]


def copies(replicas: int, nodes: int) -> int:
    """How many copies there are to be: never more than nodes."""
    return min(replicas or REPLICAS, nodes)


def enough(replicas: int, nodes: int) -> int:
    """How many durable copies a put waits for: all of them, or as many as make a majority of the nodes."""
    return min(copies(replicas, nodes), nodes // 2 + 1)


def _time(digest: bytes, place: Place) -> float:
    """When this place is drawn, in a race in which each has its weight as its rate: the least is first."""
    drawn = blake3(digest + place.node_id.to_bytes(8, "big")).digest(8)
    chance = ((int.from_bytes(drawn, "big") >> (64 - _BITS)) + 0.5) / 2**_BITS
    return -math.log(chance) / place.weight if place.weight > 0 else math.inf


# -- The register -----------------------------------------------------------------------------------------------------


def encode_places(said: Mapping[int, Said]) -> bytes:
    """The register's value."""
    return msgspec.msgpack.encode({node_id: said[node_id] for node_id in sorted(said)})


def decode_places(value: bytes | None) -> dict[int, Said]:
    """What the register says; of what cannot be read, nothing: a node that is not in it has weight 1 and no zone."""
    try:
        return msgspec.msgpack.decode(value, type=dict[int, Said]) if value else {}
    except msgspec.MsgspecError:
        return {}
