"""Broken variants of the protocol for the explorer, and for transcripts that name members and erasure.

They test the tests, as those of :mod:`objmeta.testing.mutations` do.  The numbers are the rules of PROTOCOL.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from objmeta.core.acceptor import AcceptorView, step
from objmeta.core.messages import TOMBSTONE, Accept, Erase, Promise, Reply, Request, Row
from objmeta.core.proposer import Round
from objmeta.testing.disk import Table
from objmeta.testing.mutations import KeepingRounds, ShortAccepts


@dataclass(frozen=True, slots=True)
class Variant:
    """What one variant changes; the defaults are the real protocol."""

    name: str
    breaks: str
    step: Callable[[AcceptorView, Request], Reply] = step
    rounds: Callable[[], Callable[..., Round]] = lambda: Round
    first_under_joint: bool = False
    fenced: bool = True
    """Whether acceptors refuse what comes under another configuration."""
    copies: bool = True
    lists_before_fence: bool = False
    lists_accepted_only: bool = False
    gives_floors: bool = True
    erases_by_newest_tag: bool = False
    moves_generation: bool = True


def _erases_in_spite_of_promises(view: AcceptorView, request: Request) -> Reply:
    if isinstance(request, Erase):
        row = view.row(request.name)
        if row is not None and row.accepted == request.ballot and row.promised > request.ballot:
            view.put_row(request.name, Row(request.ballot, row.accepted, row.state), False)
    return step(view, request)


def _erases_without_floor(view: AcceptorView, request: Request) -> Reply:
    row = view.row(request.name) if isinstance(request, Erase) else None
    if row is None:
        return step(view, request)
    alone = Table(view.membership)
    alone.rows[request.name] = row  # type: ignore[union-attr]
    reply = step(alone, request)
    if not alone.rows:
        view.erase(request.name)  # type: ignore[union-attr]
    return reply


def _erases_by_value(view: AcceptorView, request: Request) -> Reply:
    if isinstance(request, Erase):
        row = view.row(request.name)
        if row is not None and row.state is not None and row.state.flag == TOMBSTONE:
            view.put_row(request.name, Row(request.ballot, request.ballot, row.state), False)
    return step(view, request)


def _takes_any_generation(view: AcceptorView, request: Request) -> Reply:
    if isinstance(request, Accept):
        request = msgspec.structs.replace(request, generation=None)
    reply = step(view, request)
    return msgspec.structs.replace(reply, generation_floor=0) if isinstance(reply, Promise) else reply


REAL: Final = Variant("real", "nothing")

VARIANTS: Final[dict[str, Variant]] = {
    variant.name: variant
    for variant in (
        Variant("short-quorum", "2 of 3 prepares with 1 of 3 accepts", rounds=lambda: ShortAccepts),
        Variant("ballot-reused", "rule 1: a ballot is used again after a timeout", rounds=KeepingRounds),
        Variant("erase-in-spite-of-promises", "rule 8: no `promised <= b`", step=_erases_in_spite_of_promises),
        Variant("erase-without-floor", "rule 8: the ballot is not kept as a floor", step=_erases_without_floor),
        Variant("erase-by-value", "rule 8: any tombstone is erased", step=_erases_by_value),
        Variant("erase-under-stale-configuration", "rule 9: erase names no configuration", erases_by_newest_tag=True),
        Variant("generation-not-checked", "acceptors take operations of any generation", step=_takes_any_generation),
        Variant("generation-not-moved", "the eraser does not move the generation on", moves_generation=False),
        Variant("not-fenced", "acceptors answer under any configuration", fenced=False),
        Variant("copy-skipped", "no identity rounds before the new members take over", copies=False),
        Variant("list-before-fence", "the inventory is taken before the fence", lists_before_fence=True),
        Variant("accepted-rows-only", "rows without an accepted value are not copied", lists_accepted_only=True),
        Variant("floors-not-given", "a joining acceptor is not given the floors", gives_floors=False),
        Variant("first-write-under-joint", "a zero ballot while members change", first_under_joint=True),
    )
}
