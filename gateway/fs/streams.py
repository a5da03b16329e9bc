"""Handles for coroutines, as ``open_async`` gives them: the rules of ``readers`` and ``writers``, without threads.

A handle belongs to the event loop it was opened on, and to one task at a time: it has one position.
"""

from __future__ import annotations

import io
import warnings
from types import TracebackType
from typing import Any, Self

from gateway.fs.conditions import Terms
from gateway.fs.entries import Entry, Name, file_entry
from gateway.fs.writers import Sink
from objmeta import ObjectVersion


class _Stream:
    """What both kinds share."""

    def __init__(self, path: str, mode: str) -> None:
        self.path = path
        self.mode = mode
        self.closed = False
        self._position = 0

    def tell(self) -> int:
        """The position, in bytes."""
        return self._position

    def readable(self) -> bool:
        """Whether it was opened for reading."""
        return self.mode == "rb"

    def writable(self) -> bool:
        """Whether it was opened for writing."""
        return not self.readable()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file.")

    async def close(self) -> None:
        """End it."""
        self.closed = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class AsyncReader(_Stream):
    """A version of a file, to read. ``size`` is in bytes."""

    def __init__(self, fs: Any, path: str, version: ObjectVersion) -> None:
        super().__init__(path, "rb")
        self._fs = fs
        self.version = version
        self.size = version.size

    def info(self) -> Entry:
        """The entry of the version that is read."""
        return {**file_entry(self.version), "name": self.path}

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go elsewhere; where that is. Nothing is read, so it is no coroutine."""
        self._check_open()
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError(f"a position is 0 or more, not {base + offset}")
        self._position = base + offset
        return self._position

    async def read(self, length: int | None = -1) -> bytes:
        """At most ``length`` bytes (all that are left if negative); short only at the end."""
        self._check_open()
        wanted = self.size if length is None or length < 0 else length
        begin, stop = self._position, min(self._position + wanted, self.size)
        if begin >= stop:
            return b""
        found: bytes = await self._fs._read_version(self.version, begin, stop)
        self._position = begin + len(found)
        return found


class AsyncWriter(_Stream):
    """A file to write. It appears at a clean close; a block left by an exception publishes nothing."""

    def __init__(self, fs: Any, name: Name, mode: str, asked: Terms, base: ObjectVersion | None) -> None:
        super().__init__(name.path, mode)
        self._sink = Sink(fs, name, asked, base)
        self._base = base
        self._begun = False
        self._broken: BaseException | None = None
        self._position = base.size if base else 0
        self.version: ObjectVersion | None = None
        """What was committed, once it was."""

    async def write(self, data: bytes | bytearray | memoryview) -> int:
        """Take bytes; their number. Waits while much is under way."""
        self._check_open()
        self._check_whole()
        self._begun = True
        block = bytes(memoryview(data).cast("B"))
        try:
            await self._sink.write(block)
        except BaseException as failure:
            self._broken = failure
            raise
        self._position += len(block)
        return len(block)

    async def flush(self, force: bool = False) -> None:
        """Nothing to do: what is written becomes visible at the close, not before."""
        self._check_open()

    async def close(self) -> None:
        """Publish what was written. If that fails, nothing is stored."""
        if self.closed:
            return
        try:
            self._check_whole()
            if self._base is None or self._begun:
                self._begun = True
                self.version = await self._sink.commit()
            self.closed = True
        except BaseException:
            await self.discard()
            raise

    async def discard(self) -> None:
        """Close without publishing anything."""
        self.closed = True
        await self._sink.discard(None)

    def _check_whole(self) -> None:
        if self._broken is not None:
            raise OSError("an earlier write failed, so nothing was stored") from self._broken

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            await self.close()
        else:
            await self.discard()

    def __del__(self) -> None:
        if not getattr(self, "closed", True):
            self.closed = True
            warnings.warn(f"{self.path} was never closed, so nothing was stored", RuntimeWarning, stacklevel=2)
