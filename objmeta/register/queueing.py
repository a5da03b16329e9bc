"""The queue of a register: changes that wait while one is under way go along in the next round, together.

Whoever finds nobody at work on a register leads: it runs rounds for its own change and those it took along.  What comes
meanwhile waits; when the leader is done it hands the lead to the first in the queue, which takes along whoever waits
with it and may share its round (the same fence and generation).  So a process never competes with itself for a
register.  Other processes may; ballots settle that.  Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import collections
from typing import Final

import msgspec

from objmeta.errors import NoQuorum, UnknownOutcome
from objmeta.interfaces import ChangeReply, ChangeRequest

ROUND_CHANGES_MAX: Final = 128
"""More in one round would gain little, and its failure concerns them all."""


class Waiting(msgspec.Struct, eq=False):
    """One change on its way to an answer."""

    request: ChangeRequest
    deadline: float
    proposed: bool = False
    """Whether a value of it may be with some acceptor."""
    answer: asyncio.Future[ChangeReply | None] | None = None
    """None: to lead is its turn now."""
    timer: asyncio.TimerHandle | None = None

    def give(self, reply: ChangeReply) -> None:
        """Answer it, if somebody else leads and it still waits."""
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(reply)

    def fail(self, error: Exception) -> None:
        """The same with an error."""
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(error)


class Queues:
    """A queue for each register that somebody works on."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queues: dict[bytes, collections.deque[Waiting] | None] = {}
        """None: nobody has waited yet."""

    def is_free(self, name: bytes) -> bool:
        """Whether nobody works on a register."""
        return name not in self._queues

    def lead(self, name: bytes) -> bool:
        """Take the lead of a register that nobody works on (then :meth:`hand_on` must follow); whether that was so."""
        if name in self._queues:
            return False
        self._queues[name] = None
        return True

    async def wait(self, waiting: Waiting) -> ChangeReply | None:
        """Wait for an answer by another leader, or (None) for the lead; then :meth:`hand_on` must follow.

        Raises NoQuorum if the deadline came while it was in the queue and nothing of it was ever proposed.
        """
        name = waiting.request.name
        queue = self._queues[name]
        if queue is None:
            queue = self._queues[name] = collections.deque()
        waiting.answer = self._loop.create_future()
        waiting.timer = self._loop.call_at(waiting.deadline, _expire, queue, waiting)
        queue.append(waiting)
        try:
            return await waiting.answer
        except asyncio.CancelledError:
            if waiting.answer.done() and not waiting.answer.cancelled() and _leads(waiting.answer):
                self.hand_on(name)  # the lead had come already
            raise
        finally:
            waiting.timer.cancel()

    def is_awaited(self, name: bytes) -> bool:
        """Whether somebody waits behind the leader."""
        return bool(self._queues.get(name))

    def take_along(self, leader: Waiting) -> list[Waiting]:
        """The leader, and of those behind it whoever may share its rounds; they are in its care from now on.

        A second copy of an operation waits for the next round, which finds the first one's record.
        """
        taken = [leader]
        queue = self._queues[leader.request.name]
        if not queue:
            return taken
        operations = set(leader.request.change.operations)
        terms = (leader.request.fence, leader.request.generation)
        while queue and len(taken) < ROUND_CHANGES_MAX:
            first = queue[0]
            if first.answer is not None and not first.answer.done():
                own = first.request.change.operations
                if (first.request.fence, first.request.generation) != terms or not operations.isdisjoint(own):
                    break
                operations.update(own)
                taken.append(first)
            queue.popleft()
        return taken

    def give_back(self, name: bytes, taken: list[Waiting]) -> None:
        """A leader leaves before those it took along have their answers: they are first in the queue again."""
        queue = self._queues[name]
        if queue is not None:  # else nobody waited whom it could have taken along
            queue.extendleft(reversed([each for each in taken if each.answer is not None]))

    def hand_on(self, name: bytes) -> None:
        """Give the lead to the next one who still waits."""
        queue = self._queues[name]
        while queue:
            waiting = queue.popleft()
            if waiting.answer is not None and not waiting.answer.done():
                waiting.answer.set_result(None)
                return
        del self._queues[name]


def _leads(answer: asyncio.Future[ChangeReply | None]) -> bool:
    return answer.exception() is None and answer.result() is None


def _expire(queue: collections.deque[Waiting], waiting: Waiting) -> None:
    if waiting not in queue:
        return  # whoever leads minds the time
    if waiting.proposed:
        waiting.fail(UnknownOutcome("no majority of the nodes confirmed the change in time; it may or may not apply"))
    else:
        waiting.fail(NoQuorum("too many changes of the same register were waiting; nothing was changed, try again"))
