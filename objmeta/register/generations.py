"""The generation as a process knows it: read now and then, stated by operations, moved on by the collector.

What an operation states only has to be a generation that had begun when the operation did: so an old one is safe, and
at worst it is refused before anything is proposed.  Then the newest is read, and the operation begins anew.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from objmeta.core.erasure import FIRST_GENERATION, GENERATION_REGISTER, MoveGeneration, generation_in
from objmeta.core.fastread import FastRead, Reading
from objmeta.core.messages import Floors, Found, RaiseFloors, Read, Refused, Reply
from objmeta.errors import NoQuorum, UnknownOutcome
from objmeta.interfaces import ChangeRequest, Cycle
from objmeta.register.asking import ask

if TYPE_CHECKING:
    from objmeta.register.engine import Engine

REFRESH_S: Final = 2.0
"""Knowledge older than this is renewed when it is asked for next; nothing waits for that."""
_AGAIN_S: Final = 0.2


class Generations:
    """What one engine knows of the generation."""

    def __init__(self, engine: Engine, new_id: Callable[[], bytes] = lambda: os.urandom(16)) -> None:
        self._engine = engine
        self._new_id = new_id
        self._value = 0
        self._since_s = 0.0
        self._look_again_at_s = 0.0

    def known(self) -> int:
        """The greatest generation known to have begun, at once; looks for news if it is some time since the last."""
        engine = self._engine
        now = engine.loop.time()
        if now >= self._look_again_at_s:
            self._look_again_at_s = now + _AGAIN_S
            self._glance()
        return self._value or FIRST_GENERATION

    async def stated(self, timeout_s: float) -> int:
        """What an operation that begins now states. Raises NoQuorum if none is known yet and none can be read."""
        return self.known() if self._value else await self.newest(timeout_s)

    async def newest(self, timeout_s: float) -> int:
        """The generation now. Raises NoQuorum."""
        (state,) = await self._engine.read((GENERATION_REGISTER,), timeout_s)
        self._learn(generation_in(state))
        return self._value

    def age_s(self, generation: int) -> float:
        """For how long this process has known, at least, that ``generation`` had begun; 0 if it does not."""
        return self._engine.loop.time() - self._since_s if generation == self._value else 0.0

    async def move_past(self, generation: int, timeout_s: float) -> int:
        """Have a higher generation begun; the newest. Raises NoQuorum."""
        deadline = self._engine.loop.time() + timeout_s
        while (current := await self.newest(deadline - self._engine.loop.time())) <= generation:
            request = ChangeRequest(GENERATION_REGISTER, MoveGeneration(self._new_id(), current), generation=current)
            try:
                reply = await self._engine.change(request, deadline - self._engine.loop.time())
            except UnknownOutcome:
                continue  # a look at the register says what came of it
            if not reply.code:
                self._learn(current + 1)
        return current

    async def begin_cycle(self, timeout_s: float) -> Cycle:
        """See :meth:`objmeta.interfaces.Registers.begin_cycle`.

        All acceptors confirm while they are in one configuration that is not joint.  So whoever joins later is given
        this floor before it votes: the members it is told the floors by have it.
        """
        engine = self._engine
        deadline = engine.loop.time() + timeout_s
        configuration = engine.configuration
        if configuration.is_joint:
            raise NoQuorum("the members are being changed; try again when that is done")
        floor = await self.newest(timeout_s)
        generation = await self.move_past(floor, deadline - engine.loop.time())
        members = engine.quorums.members
        left_s = deadline - engine.loop.time()
        replies = await asyncio.gather(*(ask(engine, member, RaiseFloors(floor), left_s) for member in members))
        if engine.configuration.epoch != configuration.epoch:
            raise NoQuorum("the members are being changed; try again when that is done")
        silent = [
            f"node {member}{f' ({reply.detail})' if isinstance(reply, Refused) and reply.detail else ''}"
            for member, reply in zip(members, replies, strict=True)
            if not (isinstance(reply, Floors) and reply.generation >= floor)
        ]
        if silent:
            raise NoQuorum(f"nothing can be collected while a node is away: {', '.join(silent)} gave no answer")
        return Cycle(generation, floor, configuration.epoch)

    def _glance(self) -> None:
        """Look by one fast read; what comes of it, if anything, is there next time."""
        engine = self._engine
        reading = FastRead(engine.quorums)

        def on_reply(acceptor: int, reply: Reply) -> None:
            if isinstance(reply, Found | Refused) and reading.on_reply(acceptor, reply) is Reading.DECIDED:
                self._learn(generation_in(reading.state))

        for acceptor in engine.quorums.members:
            engine.transport.send(acceptor, Read(GENERATION_REGISTER), on_reply)

    def _learn(self, generation: int) -> None:
        now = self._engine.loop.time()
        self._look_again_at_s = now + REFRESH_S
        if generation > self._value:
            self._value = generation
            self._since_s = now
