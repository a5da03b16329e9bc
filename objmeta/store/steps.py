"""A batch of requests against one view: what every store does between the beginning and the end of its transaction."""

from __future__ import annotations

from collections.abc import Sequence

from objmeta.core.acceptor import AcceptorView, step
from objmeta.core.ballot import ZERO
from objmeta.core.configuration import ConfigurationTag
from objmeta.core.listing import ScanRequest
from objmeta.core.messages import WRITES, Accept, Prepare, Refusal, Refused, Reply, Request
from objmeta.errors import ConfigurationMismatch, InvalidArgument, Unavailable
from objmeta.interfaces import Envelope


def answer(view: AcceptorView, tag: ConfigurationTag, batch: Sequence[Envelope]) -> list[Reply]:
    """Run the steps in order; a request under another configuration than ``tag`` is refused and touches nothing."""
    return [
        step(view, request) if sent == tag else refusal(request, Refusal.CONFIGURATION, describe_mismatch(tag, sent))
        for sent, request in batch
    ]


def refusal(request: Request, reason: Refusal, detail: str) -> Refused:
    """No vote for ``request``; requests without a ballot are refused under ballot zero."""
    return Refused(request.ballot if isinstance(request, (Prepare, Accept)) else ZERO, reason, detail=detail)


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
    if request.settle and request.fence is not None and view.term(request.fence.scope) < request.fence.term:
        raise Unavailable("the bucket's new term has not reached this acceptor yet")


def describe_mismatch(own: ConfigurationTag, sent: ConfigurationTag) -> str:
    """One sentence on how two configurations differ."""
    if own.store_id != sent.store_id:
        return f"this acceptor belongs to store {own.store_id.hex()}, not to {sent.store_id.hex()}"
    if own.epoch != sent.epoch:
        return f"this acceptor is at epoch {own.epoch} of the configuration, the request at {sent.epoch}"
    return f"this acceptor knows other members for epoch {own.epoch} than the request"
