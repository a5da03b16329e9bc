"""Chunks on their way to one node: what waits together is sent together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, cast

from gateway.blobs.service import FRAME_BYTES, MANY_MAX
from objmeta import Chunk


class Unreachable(Exception):
    """A call failed for a reason that may pass."""


class Payload:
    """The bytes of a chunk on its way to several nodes, cut into frames once; they can be let go of.

    What fails or is cancelled inside gRPC stays in cycles until Python looks for those, and a traceback keeps all
    variables of its frames: they may hold this, but not megabytes.
    """

    def __init__(self, chunk: Chunk, data: bytes | memoryview) -> None:
        self.chunk = chunk
        if len(data) <= FRAME_BYTES:
            self.frames = [bytes(data)]
        else:
            view = memoryview(data)
            self.frames = [bytes(view[start : start + FRAME_BYTES]) for start in range(0, len(data), FRAME_BYTES)]

    def drop(self) -> None:
        """Let go."""
        self.frames = []


class Waiting(NamedTuple):
    """A chunk that waits to travel with others."""

    payload: Payload
    generation: int
    timeout_s: float
    done: asyncio.Future[None]


class Queue:
    """Chunks on their way to one node: what waits together, and states one generation, is sent together.

    ``send`` sends some and tells what went wrong with each; ``bytes_max`` is what goes together, unless one chunk alone
    is longer; ``at_once`` such batches are under way.
    """

    def __init__(
        self, send: Callable[[Sequence[Waiting]], Awaitable[list[Exception | None]]], bytes_max: int, at_once: int
    ) -> None:
        self._send = send
        self._bytes_max = bytes_max
        self._at_once = at_once
        self._waiting: deque[Waiting] = deque()
        self._running: set[asyncio.Task[None]] = set()

    async def put(self, payload: Payload, generation: int, timeout_s: float) -> None:
        """Send a chunk; raises what came of it."""
        waiting = Waiting(payload, generation, timeout_s, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if len(self._running) < self._at_once:
            task = asyncio.create_task(self._run())
            self._running.add(task)
        await waiting.done

    async def ended(self) -> None:
        """Wait for what is under way."""
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _run(self) -> None:
        try:
            while self._waiting:
                if batch := self._next():
                    await self._settle(batch)
        finally:  # not when the task is done: whoever puts before that would wait for the one after it
            self._running.remove(cast("asyncio.Task[None]", asyncio.current_task()))

    def _next(self) -> list[Waiting]:
        batch: list[Waiting] = []
        length = 0
        while self._waiting and len(batch) < MANY_MAX:
            first = self._waiting[0]
            length += first.payload.chunk.length
            if batch and (first.generation != batch[0].generation or length > self._bytes_max):
                break
            self._waiting.popleft()
            if not first.done.done() and first.payload.frames:
                batch.append(first)
            else:
                length -= first.payload.chunk.length
        return batch

    async def _settle(self, batch: list[Waiting]) -> None:
        sending = asyncio.ensure_future(self._send(batch))

        def given_up(_: object) -> None:
            if all(each.done.done() for each in batch):
                sending.cancel()

        for each in batch:
            each.done.add_done_callback(given_up)
        outcomes: list[Exception | None]
        try:
            await asyncio.wait((sending,))
            if sending.cancelled():
                return
            outcomes = sending.result()
        except Exception as error:  # also one that nobody expected: a put that was not cancelled must not look like it
            outcomes = [error] * len(batch)
        except BaseException:
            for each in batch:
                each.done.cancel()  # with the last of them what is sent is given up
            raise
        for each, outcome in zip(batch, outcomes, strict=True):
            if each.done.done():
                continue
            if outcome is None:
                each.done.set_result(None)
            else:
                each.done.set_exception(outcome)
