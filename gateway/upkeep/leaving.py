"""When members that leave may do so: when others have taken over what they hold. Asked for by who coordinates that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from gateway.upkeep.runs import LOOK_S
from gateway.upkeep.service import REPAIR, DataStatus
from gateway.upkeep.views import Tag
from objmeta import errors
from objmeta.client import Membership

ASK_TIMEOUT_S: Final = 5.0
LEAVE_LOOK_S_MAX: Final = 10.0
GONE_S: Final = 10.0
"""A node that leaves and has not answered for so long is not waited for: it is the one that is to be replaced."""


class Leaver(Protocol):
    """The upkeep of a node that leaves (:class:`gateway.upkeep.asking.Upkeep`)."""

    async def start(self, what: str, timeout_s: float) -> int: ...
    async def status(self, timeout_s: float) -> DataStatus: ...


class Leaving:
    """Waits for nodes that leave; belongs to one event loop.

    ``tag`` names the newest view that is known here, ``leaver`` reaches the node at an address.
    """

    def __init__(self, tag: Callable[[], Tag], leaver: Callable[[str], Leaver]) -> None:
        self._tag = tag
        self._leaver = leaver

    async def may_leave(self, joint: Membership, tell: Callable[[str], None]) -> None:
        """Return when nobody relies on the members that leave, as far as they answer (MayLeave)."""
        old, new = map(set, joint.configuration.member_sets)
        addresses = joint.address_of
        leaving, pause_s = {node_id for node_id in old - new if node_id in addresses}, LOOK_S
        heard_at = dict.fromkeys(leaving, asyncio.get_running_loop().time())
        while leaving and self._tag()[0] == joint.configuration.epoch:
            for node_id in sorted(leaving):
                try:
                    left = await self._left_at(addresses[node_id], joint.configuration.epoch)
                    heard_at[node_id] = asyncio.get_running_loop().time()
                except errors.Unavailable:
                    gone = asyncio.get_running_loop().time() >= heard_at[node_id] + GONE_S
                    left = 0 if gone else -1
                if not left:
                    leaving.discard(node_id)
                else:
                    some = f"{left} chunks" if left > 0 else "perhaps chunks"
                    tell(f"node {node_id} has {some} that others have not taken over yet")
            await asyncio.sleep(pause_s if leaving else 0)
            pause_s = min(2 * pause_s, LEAVE_LOOK_S_MAX)

    async def _left_at(self, address: str, epoch: int) -> int:
        """Of a node that leaves: how many chunks others have to take over; -1 if it cannot tell. Raises Unavailable.

        One that has not heard of the change yet, which is of ``epoch``, finds all that it keeps in good order.
        """
        node = self._leaver(address)
        try:
            number = await node.start(REPAIR, ASK_TIMEOUT_S)
            seen = number - 1
            while True:
                status = await node.status(ASK_TIMEOUT_S)
                if status.repair.number < seen:
                    return -1  # it was started anew
                seen = status.repair.number
                if seen >= number and not status.repair.running:
                    knows = status.epoch >= epoch and not status.repair.problem
                    return status.surplus if knows else -1
                await asyncio.sleep(LOOK_S)
        except errors.StoreError:
            return -1
