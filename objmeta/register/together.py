"""Changes that came together: those that may be first writes share one message to each acceptor, and one commit there.

Each is a :class:`~objmeta.core.firstwrite.FirstWrite` of its own, with votes, refusals and an outcome of its own; only
what carries them is shared.  One that does not end in its short way goes on by itself, as every other change does.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from objmeta.core.firstwrite import FirstWrite
from objmeta.core.messages import Accept, Refused, Reply, Request
from objmeta.core.proposer import Effect, Finish, Outcome, Send
from objmeta.interfaces import ChangeReply

_PARCEL_BYTES_MAX: Final = 4 << 20
"""Of the records sent in one message, beyond a single longer one: far below what may wait for a peer."""

if TYPE_CHECKING:
    from objmeta.register.engine import Engine

Answered = Callable[[int, ChangeReply | Exception], None]
"""Called once for each change, with its place among those that came together."""


class Answers:
    """Some changes until each has its answer; belongs to one event loop."""

    def __init__(self, count: int, answered: Answered) -> None:
        self._loop = asyncio.get_running_loop()
        self._answered = answered
        self._left = count
        self._all: asyncio.Future[None] = self._loop.create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        if not count:
            self._all.set_result(None)

    def give(self, place: int, answer: ChangeReply | Exception) -> None:
        """The answer of one of them."""
        if self._all.done():
            return  # nobody waits any more
        self._answered(place, answer)
        self._left -= 1
        if not self._left:
            self._all.set_result(None)

    def work(
        self, place: int, change: Coroutine[Any, Any, ChangeReply], ended: Callable[[], None] | None = None
    ) -> None:
        """See one of them to its end in a task of its own; ``ended`` is called then, also if it never began."""
        if self._all.done():
            change.close()
            if ended is not None:
                ended()
            return
        task = self._loop.create_task(self._work(place, change))
        if ended is not None:
            task.add_done_callback(lambda _: ended())
        self._tasks.add(task)

    async def wait(self) -> None:
        """Until all have their answers. Whoever is cancelled here gives up what is still under way."""
        try:
            await self._all
        except asyncio.CancelledError:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            raise

    async def _work(self, place: int, change: Coroutine[Any, Any, ChangeReply]) -> None:
        answer: ChangeReply | Exception
        try:
            answer = await change
        except Exception as error:
            answer = error
        self.give(place, answer)


@dataclass(slots=True)
class Tried:
    """A first write that did not take effect in its short way, or may not have."""

    name: bytes
    outcome: Outcome
    leads: bool = True
    """Whether it has the lead of its register still."""


def _parcels(sent: list[tuple[int, Request]]) -> Iterator[list[tuple[int, Request]]]:
    """``sent`` in parts none of which is too long."""
    begin = size = 0
    for at, (_, request) in enumerate(sent):
        assert isinstance(request, Accept), "first writes send nothing else"
        before = size
        for record in request.records:
            size += len(record.body) + len(record.data)
        if size > _PARCEL_BYTES_MAX and before:
            yield sent[begin:at]
            begin, size = at, size - before
    yield sent[begin:] if begin else sent


class FirstWrites:
    """First writes in flight, each under its place; ``limit`` and ``outcome`` are as of a :class:`changing.Run`."""

    __slots__ = ("_deadlines", "_ended", "_engine", "_last", "_to_send", "_writes", "limit", "outcome")

    def __init__(
        self,
        engine: Engine,
        writes: Mapping[int, FirstWrite],
        deadlines: Sequence[float],
        ended: Callable[[int, Outcome], None],
    ) -> None:
        self._engine = engine
        self._ended = ended
        self._deadlines = deadlines
        self._writes = dict(writes)
        self._to_send: dict[tuple[int, ...], list[tuple[int, Request]]] = {}
        self._last = engine.loop.time() + engine.settings.round_timeout_s
        self.limit = self._next_limit()
        self.outcome: asyncio.Future[None] = engine.loop.create_future()
        """Done when all have ended."""

    def start(self) -> None:
        """Propose them."""
        for place, write in list(self._writes.items()):
            self._perform(place, write.start())
        self._flush()

    def time_out(self) -> None:
        """No quorum in time for some of them, or for all."""
        if self.limit >= self._last:
            self._end(list(self._writes))
            return
        due = self.limit
        self._end([place for place in self._writes if self._deadlines[place] <= due])
        self.limit = self._next_limit()

    def abort(self) -> None:
        """End them now: the configuration they were begun in is no more, and what is not sent yet was meant for it."""
        self._to_send.clear()
        self._end(list(self._writes))

    def _next_limit(self) -> float:
        return min((self._last, *(self._deadlines[place] for place in self._writes)))

    def _end(self, places: Sequence[int]) -> None:
        for place in places:
            self._perform(place, self._writes[place].on_timeout())
        self._flush()

    def _perform(self, place: int, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self._to_send.setdefault(effect.to, []).append((place, effect.request))
            elif isinstance(effect, Finish):
                del self._writes[place]
                self._ended(place, effect.outcome)

    def _flush(self) -> None:
        """Send what the last replies led to, together."""
        to_send, self._to_send = self._to_send, {}
        send_all = self._engine.transport.send_all
        for acceptors, sent in to_send.items():
            for parcel in _parcels(sent):
                requests = [request for _, request in parcel]
                on_replies = functools.partial(self._on_replies, [place for place, _ in parcel])
                for acceptor in acceptors:
                    send_all(acceptor, requests, on_replies)
        if not self._writes and not self.outcome.done():
            self.outcome.set_result(None)

    def _on_replies(self, places: list[int], acceptor: int, replies: Sequence[tuple[int, Reply]]) -> None:
        writes = self._writes
        for at, reply in replies:
            place = places[at]
            write = writes.get(place)
            if write is None:
                continue  # over: a late reply carries nothing on
            if isinstance(reply, Refused):
                self._engine.learn(acceptor, reply)
                if place not in writes:
                    continue  # the configuration has moved, and all were ended
            effects = write.on_reply(acceptor, reply)
            if effects:
                self._perform(place, effects)
        self._flush()
