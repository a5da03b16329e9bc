"""Writing handles: bytes go out as they come, the object appears at a clean close, all at once.

Rules, each with a test:
* Memory is bounded by a few blocks; a block is uploaded while the next one is filled.
* A ``with`` block left by an exception, and a handle that is dropped unclosed, publish nothing.  fsspec's own wrappers
  (``fsspec.open``, text, compression) close the handle in such a case without saying why; :func:`_left_by_exception`
  and the wrappers here find out.  A dropped handle says so by a RuntimeWarning, which is shown, unlike a
  ResourceWarning: content is lost that Python's own files would have kept.
* One exception: DuckDB's ``EXPORT DATABASE`` never closes the two scripts that it writes, each at once, and takes them
  for stored.  They are.
* Another: where DuckDB's ``COPY`` fails right after it opened its file, one thread looks for the file (``isfile``), to
  remove it, before another has closed it.  On a disk it would be there by then.  So what no Python code opened, and
  nothing was written to, is not published if ``isfile`` was asked for it meanwhile.
* ``xb`` fails at open, and again at commit by compare-and-swap, also for an empty file.
* ``ab`` writes the old content and the new as one new version, on condition that nobody else wrote in between.
* In an fsspec transaction (``autocommit=False``) closing uploads, and its end publishes (``transactions``).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import io
import os
import sys
import warnings
from contextlib import suppress
from opcode import opmap
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Final

from fsspec.spec import AbstractBufferedFile

from gateway.fs.conditions import Terms
from gateway.fs.entries import Name
from gateway.fs.oserrors import oserrors
from objmeta import ObjectVersion
from objmeta.errors import ObjmetaError

if TYPE_CHECKING:
    from gateway.data.commits import Prepared
    from gateway.data.uploading import Upload
    from gateway.fs.filesystem import ObjmetaFileSystem

_WITH_EXCEPT_START: Final = opmap.get("WITH_EXCEPT_START")  # a Python without it is missing one way to tell
_NEVER_CLOSED_BY_DUCKDB: Final = ("schema.sql", "load.sql")


class Sink:
    """What a handle's coroutines work on. They know no handle, so that one which is dropped is seen to go at once."""

    def __init__(self, fs: ObjmetaFileSystem, name: Name, terms: Terms, base: ObjectVersion | None) -> None:
        self._fs = fs
        self._name = name
        self._terms = terms
        self._base = base
        self._upload: Upload | None = None
        self._ending = asyncio.Lock()
        self._looked_for = False

    async def look_for(self) -> None:
        """Somebody asks whether the file is there: an empty one is not published any more. Waits for a commit."""
        async with self._ending:
            self._looked_for = True

    async def write(self, block: bytes) -> None:
        """Add content."""
        with oserrors(self._name.path):
            await (await self._begun()).write(block)

    async def commit(self) -> ObjectVersion | None:
        """Publish it. None if nothing was written, and it was looked for: then there is none."""
        async with self._ending:
            if self._looked_for and self._upload is None:
                return None
            with oserrors(self._name.path):
                return await (await self._begun()).commit()

    async def prepare(self) -> Prepared:
        """End it without a commit, for a transaction."""
        with oserrors(self._name.path):
            return await (await self._begun()).prepare()

    async def discard(self, writing: concurrent.futures.Future[None] | None) -> None:
        """Give up; ``writing`` is the write that is under way, if there is one."""
        if self._upload is not None:
            await self._upload.discard()
        if writing is not None:
            await asyncio.wait([asyncio.wrap_future(writing)])
            if self._upload is not None:  # made by that write
                await self._upload.discard()

    async def _begun(self) -> Upload:
        if self._upload is None:
            store = await self._fs.store()
            self._upload = store.upload(self._name.bucket, self._name.key, **self._terms.arguments)
            if self._base is not None and self._base.size:
                async for piece in store.stream(self._base):
                    await self._upload.write(piece)
        return self._upload


class Writer(AbstractBufferedFile):  # type: ignore[misc]
    """A file opened with ``wb``, ``xb`` or ``ab`` (then ``base`` is the version to append to, if there is one)."""

    buffer: io.BytesIO

    def __init__(
        self,
        fs: ObjmetaFileSystem,
        name: Name,
        mode: str,
        terms: Terms,
        *,
        base: ObjectVersion | None = None,
        block_size: int | None = None,
        autocommit: bool = True,
    ) -> None:
        self._closed = True  # so that __del__ has nothing to do if the next line fails
        super().__init__(fs, name.path, mode, block_size, autocommit=autocommit)
        self._sink = Sink(fs, name, terms, base)
        self._base = base
        self._begun = False
        self._writes = 0
        self._pid = os.getpid()
        self._sending: concurrent.futures.Future[None] | None = None
        self._broken: BaseException | None = None
        self._dropping = False
        self.opened_during = sys.exception()
        """The exception that was being handled when the file was opened."""
        self.loc = base.size if base else 0
        self.version: ObjectVersion | None = None
        """What was committed, once it was."""

    # -- Writing ------------------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Take bytes (anything with a buffer); returns their number. Nothing is visible before the close."""
        view = memoryview(data).cast("B")
        if self._dropping:
            return len(view)
        if self.closed:
            raise ValueError("I/O operation on closed file.")
        self._check_usable()
        self._writes += 1
        for start in range(0, len(view), self.blocksize):
            piece = view[start : start + self.blocksize]
            self.buffer.write(piece)
            self.loc += len(piece)
            if self.buffer.tell() >= self.blocksize:
                self._send()
        return len(view)

    def flush(self, force: bool = False) -> None:
        """Nothing to do: what is written becomes visible at the close, not before."""
        if self.closed and not self._dropping:
            raise ValueError("I/O operation on closed file.")

    def _send(self) -> None:
        block, self.buffer = self.buffer.getvalue(), io.BytesIO()
        self._settle()
        self._begun = True
        self._sending = self.fs.submit(self._sink.write(block))

    def _settle(self) -> None:
        sending, self._sending = self._sending, None
        if sending is None:
            return
        try:
            self.fs.wait(sending)
        except BaseException as failure:
            self._broken = failure
            raise

    def _check_usable(self) -> None:
        if self._pid != os.getpid():
            raise OSError(
                errno.ENOTCONN, "a file opened for writing before a fork cannot be written after it", self.path
            )
        if self._broken is not None:
            failed = OSError(errno.EIO, "an earlier write failed, so nothing was stored", self.path)
            raise failed from self._broken

    # -- The end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Publish what was written (or upload it, in a transaction). If that fails, nothing is stored."""
        if self.closed:
            return
        if self._dropping or _left_by_exception(self.opened_during):
            self.discard()
            return
        try:
            self._check_usable()
            if self.buffer.tell():
                self._send()
            self._settle()
            if self.autocommit:
                self._publish()
        except BaseException:
            self.discard()
            raise
        finally:
            self._closed = True

    def commit(self) -> None:
        """Publish a file that was closed in a transaction, by itself."""
        if not self.autocommit and self.has_content and self.version is None:
            self._publish()

    @property
    def has_content(self) -> bool:
        """Whether a file that was closed is to be published: not if it was discarded, or nothing was appended."""
        return not self._dropping and (self._base is None or self._begun)

    @property
    def sink(self) -> Sink:
        """What a transaction commits."""
        self._begun = True
        return self._sink

    @property
    def publisher(self) -> Sink:
        """What publishes it at the close."""
        return self._sink

    def drop(self) -> None:
        """Take no more bytes: whatever closes this file from now on discards it."""
        self._dropping = True

    def discard(self) -> None:
        """Close without publishing anything. What was uploaded is no object's, and is swept in time."""
        self._dropping = True
        self._closed = True
        self.buffer = io.BytesIO()
        discarding = self._start_discarding()
        if discarding is not None:
            with suppress(OSError, RuntimeError, ObjmetaError, concurrent.futures.CancelledError):
                self.fs.wait(discarding)

    def _start_discarding(self) -> concurrent.futures.Future[None] | None:
        if not self._begun or self._pid != os.getpid() or sys.is_finalizing():
            return None
        with suppress(OSError, RuntimeError):
            return self.fs.submit(self._sink.discard(self._sending))  # type: ignore[no-any-return]
        return None

    def _publish(self) -> None:
        if self._base is not None and not self._begun:
            return  # nothing was appended
        self._begun = True
        self.version = self.fs.wait(self.fs.submit(self._sink.commit()))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def __del__(self) -> None:
        if self.closed or self._pid != os.getpid():
            return
        if self._is_of_an_export():
            self.close()
            return
        self._dropping = self._closed = True
        self._start_discarding()  # not waited for: this may be the loop's own thread
        warnings.warn(f"{self.path} was never closed, so nothing was stored", RuntimeWarning, stacklevel=2)

    def _is_of_an_export(self) -> bool:
        return (
            self._writes == 1
            and self.path.rpartition("/")[2] in _NEVER_CLOSED_BY_DUCKDB
            and "duckdb" in sys.modules
            and sys.exception() is None
        )


# -- Wrappers that pass on how they are left --------------------------------------------------------------------------


class TextWriter(io.TextIOWrapper):
    """Text over a handle. Left by an exception, or dropped, it publishes nothing."""

    def discard(self) -> None:
        """Close without publishing anything."""
        self.buffer.discard()  # type: ignore[attr-defined]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def __del__(self) -> None:
        """Do not close, as the base class would; the handle below notices that it was dropped."""


class CompressedWriter(io.BufferedIOBase):
    """A codec's file over a handle; closing closes both, in order."""

    def __init__(self, codec: Any, handle: Writer) -> None:
        self._codec = codec
        self._handle = handle

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        written: int | None = self._codec.write(data)
        return memoryview(data).nbytes if written is None else written

    def tell(self) -> int:
        found: int = self._codec.tell()
        return found

    def flush(self) -> None:
        if not self.closed and not self._codec.closed:  # closing a base class flushes once more
            self._codec.flush()

    def close(self) -> None:
        if self.closed:
            return
        try:
            if _left_by_exception(self._handle.opened_during):
                self._handle.drop()
            self._codec.close()
        except BaseException:
            self._handle.discard()
            raise
        finally:
            super().close()
        self._handle.close()

    def discard(self) -> None:
        """Close without publishing anything."""
        self._handle.drop()
        self.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def __del__(self) -> None:
        """Quieten the codec; the handle below notices that it was dropped."""
        if not self.closed:
            with suppress(Exception):
                self._handle.drop()
                self._codec.close()


def _left_by_exception(already: BaseException | None) -> bool:
    """Whether this close is the doing of a context manager that an exception is leaving.

    ``fsspec.open`` and pandas close the handle in their ``__exit__`` whatever happened.  The frames tell it: either one
    named ``__exit__`` that was given the exception under way, or, where that is no Python (pyarrow, ``io``), one that
    is leaving a ``with`` block by it.  ``already`` is the one that was under way at open: a report written while an
    error is being handled is not half-written.
    """
    error = sys.exception()
    if error is None or error is already:
        return False
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_name in ("__exit__", "__aexit__"):
            for value in frame.f_locals.values():
                if value is error or (isinstance(value, tuple) and any(part is error for part in value)):
                    return True
        if _leaves_with_block(frame, error):
            return True
        frame = frame.f_back
    return False


def _leaves_with_block(frame: FrameType, error: BaseException) -> bool:
    # the traceback of an exception begins in the frame that it has reached
    reached = error.__traceback__ is not None and error.__traceback__.tb_frame is frame
    return reached and frame.f_code.co_code[frame.f_lasti] == _WITH_EXCEPT_START
