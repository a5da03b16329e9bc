"""Who keeps what: the members of one epoch, with the weights and zones they gave themselves.

A view is made from the configuration that a node has adopted and from the register ``~gateway/places``.  Views are
ordered by (epoch, sequence of the register), and no node goes back to an older one; two nodes with the same tag see the
same.  While members are changed, what counts is where the chunks are to be: with the members that join and stay.  Those
that leave are asked for what they have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from gateway.blobs.placement import PLACES, Place, Said, decode_places, encode_places
from objmeta import KeyValue, errors
from objmeta.client import Membership

Tag = tuple[int, int]
"""Names a view; later ones are greater."""


class Values(Protocol):
    """Key-value registers, as AsyncClient has them."""

    async def get(self, key: str) -> KeyValue | None: ...
    async def compare_and_swap(self, key: str, value: bytes, *, expected: str | None) -> KeyValue: ...


@dataclass(frozen=True, slots=True)
class View:
    """``places`` are to keep the chunks, ``leaving`` may still have some."""

    tag: Tag
    places: tuple[Place, ...]
    leaving: tuple[Place, ...] = ()


class Views:
    """The newest view a node knows; belongs to one event loop.

    ``membership`` gives what the node has adopted, None before it belongs to a store.
    """

    def __init__(self, client: Callable[[], Values], membership: Callable[[], Membership | None]) -> None:
        self._client = client
        self._membership = membership
        self._said: dict[int, Said] = {}
        self._sequence = 0

    def tag(self) -> Tag:
        """Of the newest view, without asking anybody."""
        membership = self._membership()
        return (membership.configuration.epoch if membership is not None else 0, self._sequence)

    def newest(self) -> View:
        """The same with its places. Raises Unavailable before the node belongs to a store."""
        membership = self._membership()
        if membership is None:
            raise errors.Unavailable("this node does not belong to a store yet")
        staying = set(membership.configuration.member_sets[-1])
        places = [self._place(node_id, address) for node_id, address in membership.addresses]
        return View(
            self.tag(),
            tuple(place for place in places if place.node_id in staying),
            tuple(place for place in places if place.node_id not in staying),
        )

    async def refreshed(self) -> View:
        """Look the register up first. Raises what AsyncClient.get raises."""
        kept = await self._client().get(PLACES)
        if kept is not None and kept.sequence > self._sequence:
            self._said, self._sequence = decode_places(kept.value), kept.sequence
        return self.newest()

    def said(self, node_id: int) -> Said:
        """What a node says of itself."""
        return self._said.get(node_id, Said())

    def _place(self, node_id: int, address: str) -> Place:
        said = self.said(node_id)
        return Place(node_id, address, said.weight, said.zone)


async def register(client: Values, node_id: int, said: Said) -> None:
    """Write a node's own entry, if it is another one than there is. Raises what AsyncClient's calls raise.

    An entry that says nothing special is not made: without one, that is what a node is taken for.
    """
    while True:
        kept = await client.get(PLACES)
        places = decode_places(kept.value) if kept is not None else {}
        if places.get(node_id, Said()) == said:
            return
        places[node_id] = said
        try:
            await client.compare_and_swap(
                PLACES, encode_places(places), expected=kept.version_id if kept is not None else None
            )
        except (errors.Conflict, errors.UnknownOutcome):
            continue
        return
