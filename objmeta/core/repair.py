"""Bringing one acceptor up to date: which ranges and registers to look at, and what it lacks of a chain.

Theory of operation.  Digests of the same ranges at two acceptors differ where one of them has accepted, or holds,
something else.  There, inventories are compared name by name.  What they show is a hint where to look, and never what
to copy: a record that somebody holds may be dead, or may have been removed, and a ballot that somebody accepted may
never be chosen.  What is brought to the acceptor is what is *chosen* (a quorum accepted it under one ballot), as a
repetition of that very accept, and of records those on the chain of the chosen state.

Inventories are taken at different instants.  A quorum of them that shows one ballot for a register still proves that
it was chosen: each of these acceptors has accepted it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from objmeta.core.ballot import ZERO, Ballot
from objmeta.core.inventory import Digests, InventoryRow
from objmeta.core.messages import Record, RecordRef
from objmeta.core.quorum import Quorums


class Span(msgspec.Struct, frozen=True, gc=False):
    """Names with ``start <= name < end`` (``end`` empty: no bound); these acceptors hold some otherwise than we."""

    start: bytes
    end: bytes
    acceptors: frozenset[int]


class Look(msgspec.Struct, frozen=True, gc=False):
    """A register to look at.

    ``ballot`` is the greatest one that somebody accepted, ``holders`` who of the others did; ``chosen`` says that a
    quorum did.  ``accepted`` and ``held`` are the acceptor's own; ``parents`` has every record that anybody holds.
    """

    name: bytes
    ballot: Ballot
    holders: tuple[int, ...]
    chosen: bool
    accepted: Ballot
    held: frozenset[RecordRef]
    parents: dict[RecordRef, RecordRef | None]
    damaged: bool = False

    @property
    def strange(self) -> frozenset[RecordRef]:
        """Records that others hold and the acceptor does not."""
        return frozenset(self.parents) - self.held


def differing(start: bytes, own: Digests, others: Mapping[int, Digests]) -> tuple[list[Span], int]:
    """Where the others' digests of the same ranges differ from our own, and how many ranges that is known of.

    Neighbouring ranges in which anybody differs make one span.  An acceptor that answered for none of the
    ranges has so much in the first one that it differs.
    """
    answered = min((len(theirs.ranges) for theirs in others.values()), default=len(own.ranges))
    compared = own.ranges[: max(1, answered)]
    spans: list[Span] = []
    low = start
    for at, each in enumerate(compared):
        acceptors = frozenset(
            acceptor for acceptor, theirs in others.items() if at >= len(theirs.ranges) or theirs.ranges[at] != each
        )
        if acceptors and spans and spans[-1].end == low:
            spans[-1] = Span(spans[-1].start, each.end, spans[-1].acceptors | acceptors)
        elif acceptors:
            spans.append(Span(low, each.end, acceptors))
        low = each.end
    return spans, len(compared)


def to_look_at(
    acceptor: int, inventories: Mapping[int, Sequence[InventoryRow]], end: bytes, quorums: Quorums
) -> list[Look]:
    """The registers below ``end`` (empty: all) of which this acceptor lacks what another one shows, by name.

    It lacks a ballot that is higher than its own, or a record; or its row is damaged.  A register that it has and
    others lack, because they were erased there or are behind, is theirs to look at.
    """
    rows: dict[bytes, dict[int, InventoryRow]] = {}
    for other, inventory in inventories.items():
        for row in inventory:
            if not end or row.name < end:
                rows.setdefault(row.name, {})[other] = row
    looks = (_look(acceptor, name, rows[name], quorums) for name in sorted(rows))
    return [look for look in looks if look is not None]


def _look(acceptor: int, name: bytes, rows: Mapping[int, InventoryRow], quorums: Quorums) -> Look | None:
    newest = max(row.accepted for row in rows.values())
    own = rows.get(acceptor)
    accepted = own.accepted if own is not None else ZERO
    damaged = own is not None and own.damaged
    held = frozenset(ref for ref, _ in own.held) if own is not None else frozenset()
    parents = {ref: parent for row in rows.values() for ref, parent in row.held}
    if newest == ZERO or (accepted == newest and len(parents) == len(held) and not damaged):
        return None
    holders = [each for each, row in rows.items() if row.accepted == newest]
    others = tuple(each for each in holders if each != acceptor)
    return Look(name, newest, others, quorums.is_quorum(holders), accepted, held, parents, damaged)


def chain(
    refs: Sequence[RecordRef], parents: Mapping[RecordRef, RecordRef | None]
) -> tuple[list[RecordRef], RecordRef | None]:
    """The chain that ends in the last of ``refs``, newest first, as far as ``parents`` knows it.

    Also the record that comes next and is not known; None at the chain's beginning.
    """
    found: list[RecordRef] = []
    cursor = refs[-1] if refs else None
    while cursor is not None and cursor in parents:
        found.append(cursor)
        cursor = parents[cursor]
    return found, cursor


def off_chain(strange: Collection[RecordRef], chain: Collection[RecordRef]) -> frozenset[RecordRef]:
    """Those of the records that are dead: their place in the ``chain`` of a chosen state, all of it, is taken."""
    tip = max((ref.sequence for ref in chain), default=0)
    return frozenset(ref for ref in strange if ref.sequence <= tip and ref not in chain)


def parcels(records: Iterable[Record], bytes_max: int) -> list[tuple[Record, ...]]:
    """The records in messages of at most ``bytes_max`` bytes of content each, or of a single record."""
    made: list[list[Record]] = []
    size = 0
    for record in records:
        size += len(record.body) + len(record.data)
        if not made or size > bytes_max:
            made.append([])
            size = len(record.body) + len(record.data)
        made[-1].append(record)
    return [tuple(parcel) for parcel in made]
