"""Changes that reach a node which is not their register's home are sent on to the home.

Clients send a change to the home of its register by themselves.  One that knows a single node only would have that node
compete with the home for the register; sent on, all changes of a register queue in one place and share rounds (DESIGN
section 3, "Home proposer").  It is a hint for speed: while the home is not in touch the node proposes by itself, and
when the home is silent another node, this one included, is asked as well, as by any client.  A change is sent on once.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from objmeta.core.home import home_of
from objmeta.interfaces import ChangeReply, ChangeRequest
from objmeta.register.engine import Engine
from objmeta.register.together import Answered, Answers
from objmeta.rpc.client import RemoteRegisters


class HomeBound:
    """The way of one node's changes; belongs to one event loop."""

    def __init__(self, node_id: int, engine: Engine, in_touch: Callable[[int], bool]) -> None:
        self._node_id = node_id
        self._engine = engine
        self._in_touch = in_touch
        self._remote: RemoteRegisters | None = None

    def change(self, request: ChangeRequest, timeout_s: float) -> Coroutine[Any, Any, ChangeReply]:
        """As :meth:`objmeta.interfaces.Registers.change`."""
        home = home_of(request.name, self._engine.quorums.members)
        if home == self._node_id or not self._in_touch(home):
            return self._engine.change(request, timeout_s)
        if self._remote is None:
            addresses = self._engine.membership.address_of
            if not addresses:
                return self._engine.change(request, timeout_s)
            self._remote = RemoteRegisters(tuple(addresses.values()), sent_on=True)
        return self._remote.change(request, timeout_s)

    async def change_all(
        self, requests: Sequence[ChangeRequest], timeouts_s: Sequence[float], answered: Answered
    ) -> None:
        """As :meth:`objmeta.register.engine.Engine.change_all`."""
        members = self._engine.quorums.members
        if all(home_of(request.name, members) == self._node_id for request in requests):
            await self._engine.change_all(requests, timeouts_s, answered)
            return
        answers = Answers(len(requests), answered)
        for place, (request, timeout_s) in enumerate(zip(requests, timeouts_s, strict=True)):
            answers.work(place, self.change(request, timeout_s))
        await answers.wait()

    async def close(self) -> None:
        """Close the connections."""
        if self._remote is not None:
            await self._remote.close()
