"""A batch of requests against one view: what every store does between the beginning and the end of its transaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from objmeta.core.acceptor import AcceptorView, step
from objmeta.core.ballot import ZERO
from objmeta.core.configuration import OUTSIDE, ConfigurationTag
from objmeta.core.listing import ScanRequest
from objmeta.core.messages import (
    WRITES,
    Accept,
    Adopt,
    Erase,
    Prepare,
    RaiseFloors,
    Refusal,
    Refused,
    Reply,
    Request,
)
from objmeta.errors import ConfigurationMismatch, InvalidArgument, Unavailable
from objmeta.interfaces import Envelope

_View = TypeVar("_View", bound=AcceptorView)


def answer(view: _View, batch: Sequence[Envelope], step: Callable[[_View, Request], Reply] = step) -> list[Reply]:
    """Run the steps in order; a request under another configuration than the view's is refused and touches nothing.

    ``step`` is how a step is made, by a store that guards it or by the simulator's broken variants.
    """
    own = view.membership.configuration.tag
    replies: list[Reply] = []
    for sent, request in batch:
        if sent == own or _concerns(view, sent, request):
            replies.append(step(view, request))
            if isinstance(request, Adopt):
                own = view.membership.configuration.tag
        else:
            replies.append(_stranger(view, sent, request))
    return replies


def refusal(request: Request, reason: Refusal, detail: str) -> Refused:
    """No vote for ``request``; requests without a ballot are refused under ballot zero."""
    ballot = request.ballot if isinstance(request, (Prepare, Accept, Erase)) else ZERO
    return Refused(ballot, reason, detail=detail)


def _concerns(view: AcceptorView, sent: ConfigurationTag, request: Request) -> bool:
    """Whether a request is for this acceptor though it names another configuration."""
    if isinstance(request, Adopt):
        return True
    own = view.membership.configuration
    return isinstance(request, RaiseFloors) and own.epoch == OUTSIDE and own.store_id == sent.store_id


def _stranger(view: AcceptorView, sent: ConfigurationTag, request: Request) -> Refused:
    membership = view.membership
    own = membership.configuration.tag
    refused = refusal(request, Refusal.CONFIGURATION, describe_mismatch(own, sent))
    if own.store_id != sent.store_id or own.epoch == sent.epoch:
        return refused
    if own.epoch < sent.epoch:
        return msgspec.structs.replace(refused, behind=True)
    return msgspec.structs.replace(refused, membership=membership)


def check_reads(batch: Sequence[Envelope]) -> None:
    """Raise InvalidArgument unless every request is one that changes nothing."""
    for _, request in batch:
        if isinstance(request, WRITES):
            raise InvalidArgument(f"{type(request).__name__} changes the store: give it to apply(), not to read()")


def check_tag(own: ConfigurationTag, sent: ConfigurationTag) -> None:
    """Raise ConfigurationMismatch unless ``sent`` is the store's own."""
    if sent != own:
        raise ConfigurationMismatch(describe_mismatch(own, sent))


def check_term(view: AcceptorView, request: ScanRequest) -> None:
    """Raise Unavailable while a scan that settles asks for a term this acceptor has not been raised to."""
    if request.settle and request.fence is not None and view.scope_floor(request.fence.scope).term < request.fence.term:
        raise Unavailable("the bucket's new term has not reached this acceptor yet")


def describe_mismatch(own: ConfigurationTag, sent: ConfigurationTag) -> str:
    """One sentence on how two configurations differ."""
    if own.store_id != sent.store_id:
        return f"this acceptor belongs to store {own.store_id.hex()}, not to {sent.store_id.hex()}"
    if own.epoch != sent.epoch:
        return f"this acceptor is at epoch {own.epoch} of the configuration, the request at {sent.epoch}"
    return f"this acceptor knows other members for epoch {own.epoch} than the request"
