"""Turns: the operations of one process on one register run one after the other, in the order they came.

So a process never competes with itself for a register.  Other processes may; ballots settle that.
"""

from __future__ import annotations

import asyncio
import collections

from objmeta.errors import NoQuorum


class Turns:
    """A queue for each register that somebody works on; belongs to one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: dict[bytes, collections.deque[asyncio.Future[None]]] = {}

    async def take(self, name: bytes, deadline: float) -> None:
        """Wait for the turn, and call :meth:`hand_on` after it. Raises NoQuorum at the deadline; nothing was begun."""
        waiting = self._waiting.get(name)
        if waiting is None:
            self._waiting[name] = collections.deque()
            return
        turn: asyncio.Future[None] = self._loop.create_future()
        waiting.append(turn)
        timer = self._loop.call_at(deadline, _expire, turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.hand_on(name)  # the turn had come already
            raise
        finally:
            timer.cancel()

    def hand_on(self, name: bytes) -> None:
        """Give the turn to the next one who still waits."""
        waiting = self._waiting[name]
        while waiting:
            turn = waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        del self._waiting[name]


def _expire(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_exception(
            NoQuorum("too many changes of the same register were waiting; nothing was changed, try again")
        )
