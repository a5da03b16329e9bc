"""A stream in use: batches out of an outbox, messages in, until one side ends it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from objmeta.grpcio import EOF, grpc
from objmeta.rpc.batching import Outbox

_FLUSH_S_MAX: Final = 1.0

Frame = Callable[[list[Any]], bytes]
OnMessage = Callable[[bytes], Awaitable[None]]


async def converse(stream: Any, outbox: Outbox[Any], frame: Frame, on_message: OnMessage) -> None:
    """Send what ``outbox`` holds and take what arrives, until the other side ends the stream.

    Raises what gRPC raises when the stream breaks, and MsgspecError if a message cannot be read.
    """
    writer = asyncio.ensure_future(outbox.drain_into(stream.write, frame))
    try:
        while (message := await stream.read()) is not EOF:
            await on_message(message)
    finally:
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)


class ServedStreams:
    """The open streams of a service, so that a node that stops can end them in good order."""

    def __init__(self) -> None:
        self._open: dict[asyncio.Task[None], Outbox[Any]] = {}

    async def serve(self, context: Any, outbox: Outbox[Any], frame: Frame, on_message: OnMessage) -> None:
        """Run one stream to its end."""
        task = asyncio.ensure_future(converse(context, outbox, frame, on_message))
        self._open[task] = outbox
        try:
            await asyncio.wait((task,))
        finally:
            del self._open[task]
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if not task.cancelled() and isinstance(problem := task.exception(), msgspec.MsgspecError):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"a message cannot be read: {problem}")

    async def close(self) -> None:
        """Write out what is queued and end all streams."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH_S_MAX):
                await asyncio.gather(*(outbox.idle() for outbox in self._open.values()))
        for task in self._open:
            task.cancel()
