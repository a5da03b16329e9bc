"""How the other members are, as one node sees them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import msgspec

from objmeta.core.configuration import Configuration
from objmeta.errors import ConfigurationMismatch, Unavailable
from objmeta.interfaces import NodeStatus
from objmeta.rpc import wire
from objmeta.rpc.peer import ask


class Others:
    """Asks them. ``addresses`` says where they are, ``own`` this node's configuration, if it has one.

    ``distrust`` gives the reason not to believe one that answers, or nothing.
    """

    def __init__(
        self,
        addresses: Callable[[], Mapping[int, str]],
        own: Callable[[], Configuration | None],
        distrust: Callable[[int], str],
    ) -> None:
        self._addresses = addresses
        self._own = own
        self._distrust = distrust

    async def look(self, timeout_s: float) -> dict[int, wire.PeerStatus | NodeStatus]:
        """What each says of itself, and where one says nothing, or is a stranger, why."""
        others = self._addresses()
        asked = (self._status_of(node_id, address, timeout_s) for node_id, address in others.items())
        return dict(zip(others, await asyncio.gather(*asked), strict=True))

    async def statuses(self, timeout_s: float) -> dict[int, wire.PeerStatus]:
        """What those say that answer and may be believed."""
        found = await self.look(timeout_s)
        return {node_id: status for node_id, status in found.items() if isinstance(status, wire.PeerStatus)}

    async def _status_of(self, node_id: int, address: str, timeout_s: float) -> wire.PeerStatus | NodeStatus:
        try:
            answer = await ask(address, wire.STATUS, b"", wire.decode_peer_status, timeout_s)
        except Unavailable as gone:
            return NodeStatus(node_id, address, "down", str(gone))
        except ConfigurationMismatch as stranger:
            return NodeStatus(node_id, address, "refused", str(stranger))
        own, theirs = self._own(), answer.hello.configuration
        if answer.hello.node_id != node_id:
            return NodeStatus(node_id, address, "refused", f"this is node {answer.hello.node_id}")
        if own is not None and theirs is not None and own.store_id != theirs.store_id:
            return NodeStatus(node_id, address, "refused", "it belongs to another store")
        if problem := self._distrust(node_id):
            return NodeStatus(node_id, address, "refused", problem)
        return msgspec.structs.replace(answer, status=msgspec.structs.replace(answer.status, address=address))
