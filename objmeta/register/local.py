"""Acceptors in this process: what the embedded store's proposer sends to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from objmeta.core.configuration import ConfigurationTag, Membership
from objmeta.core.inventory import ChangesRequest, DigestRequest, Digests, Inventory, InventoryRequest
from objmeta.core.listing import ScanAnswer, ScanRequest
from objmeta.core.messages import Reply, Request
from objmeta.interfaces import Changes, OnReplies, OnReply


class Acceptor(Protocol):
    """An acceptor that takes requests on the event loop and answers there (``store.lane.Lane``)."""

    def submit(self, tag: ConfigurationTag, request: Request, on_reply: Callable[[Reply], None]) -> None:
        """Queue a request."""
        ...

    def submit_all(
        self, tag: ConfigurationTag, requests: Sequence[Request], on_replies: Callable[[list[Reply]], None]
    ) -> None:
        """Queue requests, all of which write or none, that are answered together."""
        ...

    async def scan(self, tag: ConfigurationTag, request: ScanRequest) -> ScanAnswer:
        """One page."""
        ...

    async def inventory(self, tag: ConfigurationTag, request: InventoryRequest) -> Inventory:
        """One page of what is held."""
        ...

    async def digests(self, tag: ConfigurationTag, request: DigestRequest) -> Digests:
        """Digests of ranges."""
        ...

    async def changes(self, since: int, limit: int) -> Changes:
        """What changed after a change number."""
        ...


class LocalTransport:
    """Satisfies :class:`objmeta.interfaces.Transport`."""

    def __init__(self, tag: ConfigurationTag, acceptors: Mapping[int, Acceptor]) -> None:
        self._tag = tag
        self._acceptors = acceptors

    def send(self, acceptor: int, request: Request, on_reply: OnReply) -> None:
        self._acceptors[acceptor].submit(self._tag, request, lambda reply: on_reply(acceptor, reply))

    def send_all(self, acceptor: int, requests: Sequence[Request], on_replies: OnReplies) -> None:
        def answered(replies: list[Reply]) -> None:
            on_replies(acceptor, list(enumerate(replies)))

        self._acceptors[acceptor].submit_all(self._tag, requests, answered)

    def adopt(self, membership: Membership) -> None:
        self._tag = membership.configuration.tag

    async def scan(self, acceptor: int, request: ScanRequest) -> ScanAnswer:
        return await self._acceptors[acceptor].scan(self._tag, request)

    async def inventory(self, acceptor: int, request: InventoryRequest) -> Inventory:
        return await self._acceptors[acceptor].inventory(self._tag, request)

    async def digests(self, acceptor: int, request: DigestRequest) -> Digests:
        return await self._acceptors[acceptor].digests(self._tag, request)

    async def changes(self, acceptor: int, request: ChangesRequest) -> Changes:
        return await self._acceptors[acceptor].changes(request.since, request.limit)
