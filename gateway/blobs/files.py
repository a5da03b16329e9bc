"""Files and hashing off the event loop, so that a caller may be cancelled at any time and nothing leaks or is torn."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, ParamSpec, TypeVar, cast

import aiofiles

if TYPE_CHECKING:
    from aiofiles.threadpool.binary import AsyncBufferedIOBase

HASH_INLINE_MAX: Final = 64 << 10
"""Up to this many bytes hashing (10 µs) costs less than asking another thread to do it."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


def recycle_buffers() -> None:
    """Let the C library keep the memory of freed chunks for the next ones.

    glibc returns large blocks to the system as soon as they are freed, until it has seen a larger one freed: then it
    keeps blocks of up to that size, twice as much in each thread.  Without it every chunk of 4 MiB costs a thousand
    page faults, and a get takes up to twice as long (measured: 16 MiB is as fast as 31 and takes 60 MiB less memory; 8
    has more faults).  Elsewhere this does nothing.  The block itself is not touched.
    """
    bytes(16 << 20)


def in_thread(function: Callable[_P, _T], *arguments: _P.args, **options: _P.kwargs) -> asyncio.Future[_T]:
    """Start a call in the event loop's thread pool."""
    return asyncio.get_running_loop().run_in_executor(None, lambda: function(*arguments, **options))


async def update(hasher: Any, data: bytes | memoryview) -> None:
    """Feed a BLAKE3 hasher; no other update of it may be under way."""
    if len(data) <= HASH_INLINE_MAX:
        hasher.update(data)
    else:
        await in_thread(hasher.update, data)


@asynccontextmanager
async def reading(path: Path) -> AsyncIterator[AsyncBufferedIOBase]:
    """A file to read."""
    file = await _open(path, "rb")
    try:
        yield file
    finally:
        await asyncio.shield(file.close())


@asynccontextmanager
async def writing(path: Path) -> AsyncIterator[AsyncBufferedIOBase]:
    """Something that is there to write to, such as a pipe."""
    file = await _open(path, "wb")
    try:
        yield file
    finally:
        await asyncio.shield(file.close())


@asynccontextmanager
async def creating(path: Path) -> AsyncIterator[AsyncBufferedIOBase]:
    """A new file to write, removed at the end unless it got another name.

    Python's buffered files have a lock, so that closing waits for a write whose caller was cancelled.
    """
    file = await _open(path, "xb")
    try:
        yield file
    finally:
        try:
            await asyncio.shield(file.close())
        finally:
            with suppress(OSError):
                os.unlink(path)


@asynccontextmanager
async def created(path: Path, fill: Callable[[int], None]) -> AsyncIterator[int]:
    """The descriptor of a new file that ``fill`` wrote, in a thread; removed at the end unless it got another name.

    When the caller is cancelled, what the thread made goes when the thread is done with it.
    """
    making = in_thread(_make, path, fill)
    try:
        descriptor = await asyncio.shield(making)
    except asyncio.CancelledError:
        making.add_done_callback(partial(_unmake, path))
        with suppress(asyncio.CancelledError):
            await asyncio.wait((making,))
        raise
    try:
        yield descriptor
    finally:
        os.close(descriptor)
        with suppress(OSError):
            os.unlink(path)


def _make(path: Path, fill: Callable[[int], None]) -> int:
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666)
    try:
        fill(descriptor)
    except BaseException:
        os.close(descriptor)
        os.unlink(path)
        raise
    return descriptor


def _unmake(path: Path, making: asyncio.Future[int]) -> None:
    if not making.cancelled() and making.exception() is None:
        os.close(making.result())
        with suppress(OSError):
            os.unlink(path)


async def _open(path: Path, mode: Literal["rb", "wb", "xb"]) -> AsyncBufferedIOBase:
    """Open a file. When the caller is cancelled, what the thread opened is closed, also if cancelled again."""
    opening = asyncio.ensure_future(_open_in_thread(path, mode))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(partial(_abandon, path if mode == "xb" else None))
        with suppress(asyncio.CancelledError):
            await asyncio.wait((opening,))
        raise


async def _open_in_thread(path: Path, mode: Literal["rb", "wb", "xb"]) -> AsyncBufferedIOBase:
    return cast("AsyncBufferedIOBase", await aiofiles.open(path, mode))


def _abandon(made: Path | None, opening: asyncio.Future[AsyncBufferedIOBase]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        if made is not None:
            with suppress(OSError):
                os.unlink(made)
        opening.result().detach().close()
