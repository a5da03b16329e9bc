"""Reading handles: pinned to one version, any number of threads, ranges underneath.

A handle is pinned at open and keeps its entry, so it never shows half of one version and half of the next, and asks
nobody again.  Reads are stateless; what has a state is the position, and these are its rules:

* A thread that seeks gets a position of its own. DuckDB reads one handle from many threads by seek() and read(): with a
  shared position it would get bytes from elsewhere, and silently wrong sums.
* Threads that never seek share the handle's position, and every read and seek of any thread moves that one too. So a
  handle may be passed on from thread to thread, as pyarrow and thread pools do, and reads on where the last one ended.
* Such a shared read ends the private positions of all threads: they see the shared one until they seek again.
"""

from __future__ import annotations

import concurrent.futures
import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from fsspec.spec import AbstractBufferedFile

from gateway.fs.entries import file_entry
from objmeta import ObjectVersion

if TYPE_CHECKING:
    from gateway.fs.filesystem import ObjmetaFileSystem

CACHE_BYTES: Final = 16 << 20
"""How much of its content a handle keeps in memory: a few chunks, so that small reads hash a chunk once."""

LINE_BYTES: Final = 16 << 10
"""How much is looked at for the end of a line at a time."""


class Reader(AbstractBufferedFile):  # type: ignore[misc]
    """A file opened with ``rb``. Safe for several threads; picklable (it opens the same version again)."""

    def __init__(self, fs: ObjmetaFileSystem, path: str, version: ObjectVersion, block_size: int | None = None) -> None:
        self._shared_loc = 0
        self._shared_reads = 0
        self._own = threading.local()
        self._sharing = threading.RLock()
        self._pid = os.getpid()
        self.version = version
        super().__init__(fs, path, "rb", block_size, cache_type="none", size=version.size)
        self.details = {**file_entry(version), "name": path}
        self.kwargs = {"version_id": version.version_id}
        self.cache = Chunks(fs, version)

    # -- Position -----------------------------------------------------------------------------------------------------

    @property
    def loc(self) -> int:
        """Where this thread reads next, in bytes."""
        own = self._own_loc()
        return self._shared_loc if own is None else own

    @loc.setter
    def loc(self, value: int) -> None:
        self._own.at = (self._shared_reads, value)
        self._shared_loc = value

    def _own_loc(self) -> int | None:
        reads, value = getattr(self._own, "at", (-1, 0))
        return value if reads == self._shared_reads else None

    def read(self, length: int | None = -1) -> bytes:
        """At most ``length`` bytes (all that are left if negative) from the position on; short only at the end."""
        if self.closed:
            raise ValueError("I/O operation on closed file.")
        if self._pid != os.getpid():
            self._after_fork()
        wanted = -1 if length is None else int(length)
        own = self._own_loc()
        if own is not None:
            found = self._at(own, wanted)
            self.loc = own + len(found)
            return found
        with self._sharing:
            found = self._at(self._shared_loc, wanted)
            self._shared_loc += len(found)
            self._shared_reads += 1
            return found

    def _at(self, start: int, wanted: int) -> bytes:
        stop = self.size if wanted < 0 else min(start + wanted, self.size)
        found: bytes = self.cache._fetch(start, stop) if start < stop else b""
        return found

    def readline(self, size: int | None = -1) -> bytes:
        """The next line with its end, or what is left; at most ``size`` bytes unless negative."""
        limit = self.size if size is None or size < 0 else size
        begin, parts, got = self.tell(), [], 0
        while got < limit:
            part = self.read(min(LINE_BYTES, limit - got))
            end = part.find(b"\n") + 1
            parts.append(part[:end] if end else part)
            got += len(parts[-1])
            if end or not part:
                break
        if self.tell() != begin + got:
            self.seek(begin + got)
        return b"".join(parts)

    # -- The rest -----------------------------------------------------------------------------------------------------

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self.fs.read_version(self.version, start, end)  # type: ignore[no-any-return]

    def _after_fork(self) -> None:
        # locks and reads under way belong to threads that exist only in the parent
        self._pid = os.getpid()
        self._sharing = threading.RLock()
        if isinstance(self.cache, Chunks):
            self.cache = Chunks(self.fs, self.version)


class Chunks:
    """The content of one version, by chunks: parts of a chunk come from memory, whole ones straight from the store.

    A chunk is verified whole, so a part of it costs as much as all of it: keeping the last few makes small reads cheap.
    Content never changes, so there is nothing to invalidate.  A thread that goes through chunk after chunk has the next
    one fetched while it works on this one.  fsspec's name for this is a cache; it plugs in as one.
    """

    name = "chunks"

    def __init__(self, fs: ObjmetaFileSystem, version: ObjectVersion) -> None:
        self._fs = fs
        self._version = version
        self._starts = [0, *accumulate(chunk.length for chunk in version.chunks)]
        self._kept: OrderedDict[int, concurrent.futures.Future[bytes]] = OrderedDict()
        self._kept_bytes = 0
        self._lock = threading.Lock()
        self._last = threading.local()

    def _fetch(self, start: int | None, stop: int | None) -> bytes:
        start = start or 0
        stop = self._version.size if stop is None else min(stop, self._version.size)
        if start >= stop:
            return b""
        if self._version.data is not None:
            return self._version.data[start:stop]
        starts = self._starts
        first, last = bisect_right(starts, start) - 1, bisect_right(starts, stop - 1) - 1
        whole_from = first if starts[first] == start else first + 1
        whole_to = last + 1 if starts[last + 1] == stop else last
        if whole_from >= whole_to:
            return b"".join(self._part(index, start, stop) for index in range(first, last + 1))
        parts = [self._part(first, start, stop)] if first < whole_from else []
        parts.append(self._fs.read_version(self._version, starts[whole_from], starts[whole_to]))
        parts.extend([self._part(last, start, stop)] if whole_to <= last else [])
        return b"".join(parts) if len(parts) > 1 else parts[0]

    def _part(self, index: int, start: int, stop: int) -> bytes:
        begin = self._starts[index]
        chunk = self._fs.wait(self._chunk(index))
        if getattr(self._last, "index", None) == index - 1 and index + 2 < len(self._starts):
            self._chunk(index + 1)
        self._last.index = index
        return chunk[max(start - begin, 0) : stop - begin]

    def _chunk(self, index: int) -> concurrent.futures.Future[bytes]:
        with self._lock:
            found = self._kept.get(index)
            if found is not None and not (found.done() and (found.cancelled() or found.exception() is not None)):
                self._kept.move_to_end(index)
                return found
            if found is not None:
                self._drop(index)
            begin, end = self._starts[index], self._starts[index + 1]
            found = self._kept[index] = self._fs.submit(self._fs._read_version(self._version, begin, end))
            self._kept_bytes += end - begin
            while self._kept_bytes > CACHE_BYTES and len(self._kept) > 1:
                self._drop(next(iter(self._kept)))
            return found

    def _drop(self, index: int) -> None:
        del self._kept[index]
        self._kept_bytes -= self._starts[index + 1] - self._starts[index]

    def _log_stats(self) -> str:
        return ""

    def close(self) -> None:
        """Forget what is kept."""
        with self._lock:
            self._kept.clear()
            self._kept_bytes = 0
