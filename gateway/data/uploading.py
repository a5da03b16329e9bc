"""Objects on their way in.

Rules.  Content is cut into chunks by itself (``chunking``), at most ``IN_FLIGHT_BYTES`` of them are under way, and the
metadata is committed only when all are durable; content of up to ``INLINE_BYTES_MAX`` goes into the record.  The store
is asked which of the chunks it has before they are sent: what an interrupted upload left, or another object has, is
not sent again.  An upload that fails leaves nothing but chunks that nobody names.

An upload states one generation with all it does: the one it read when it began, or an older one that the store
remembers.  About once a second it looks whether there is a newer one, and touches under that what was stored, so that
it may last as long as it likes.  Where its generation is refused for its age all the same, the newest is taken, and
everything is touched again before the commit, as where the members of the cluster have changed since; what has been
deleted by then cannot be committed, and the upload has to be begun anew.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from blake3 import blake3

from gateway.blobs.files import HASH_INLINE_MAX
from gateway.blobs.places import digest_now
from gateway.data.chunking import WINDOW_BYTES, Cutter
from gateway.data.commits import Commits, Content, Prepared
from objmeta import Chunk, ObjectVersion, PutObject, errors

if TYPE_CHECKING:
    from gateway.data.transfer import Store

INLINE_BYTES_MAX: Final = 8 << 10
IN_FLIGHT_BYTES: Final = 32 << 20
"""Chunks on their way: enough that hashing, sending, writing and syncing overlap."""
LOOK_S: Final = 1.0
"""Between two looks whether the generation has moved: less than a cycle takes, and what is between two of them."""
ASK_BYTES_MIN: Final = 64 << 10
"""Asking whether a shorter chunk is there costs as much as sending it."""

Progress = Callable[[int], None]
"""Called with the number of bytes that are done since the last call."""


class Upload:
    """An object on its way in; nothing is visible before :meth:`commit`. A ``with`` block that fails discards it."""

    def __init__(
        self,
        store: Store,
        bucket: str,
        key: str,
        *,
        content_type: str = "",
        metadata: Mapping[str, str] | None = None,
        if_absent: bool = False,
        if_version: str | None = None,
        expected_etag: str | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._store = store
        self._bucket = bucket
        self._key = key
        self._options: dict[str, Any] = {
            "content_type": content_type,
            "metadata": metadata,
            "if_absent": if_absent,
            "if_version": if_version,
        }
        self._expected_etag = expected_etag
        self._chunks = ChunkWriter(store.commits, bucket, progress or _ignore)
        self._checking: asyncio.Task[None] | None = None
        self._ended = False

    async def __aenter__(self) -> Upload:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            await self.discard()
        elif not self._ended:
            await self.commit()

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Add content. Waits while much is under way; may raise what storing earlier content raised."""
        self._check_open()
        if self._checking is not None and self._checking.done():
            await self._checking
        await self._chunks.write(data)
        if self._checking is None and self._chunks.begun:
            self._checking = asyncio.create_task(self._check_target())

    async def commit(self) -> ObjectVersion:
        """Make the content the object's current version.

        Raises what AsyncClient.put_object and BlobStore.put raise, IntegrityError if the content is not what was
        expected, and Unavailable if it was deleted before it could be committed; unless that is UnknownOutcome nothing
        was changed.
        """
        put, content = await self.prepare()
        if content is not None:
            return await self._store.commits.commit(self._bucket, self._key, content, **self._options)
        version = await self._store.client.put_object(self._bucket, self._key, data=put.data, **self._options)
        self._chunks.progress(version.size)
        return version

    async def prepare(self) -> Prepared:
        """End the upload without a commit, for :meth:`Commits.commit_together`. Raises as :meth:`commit`."""
        self._check_open()
        self._ended = True
        options = {**self._options, "metadata": self._options["metadata"] or {}}
        try:
            if not self._chunks.begun and self._chunks.buffered <= INLINE_BYTES_MAX:
                data = self._chunks.rest()
                self._check_etag(blake3(data).hexdigest())
                return Prepared(PutObject(self._bucket, self._key, data=data, **options), None)
            content = await self._chunks.finish()
            if self._checking is not None:
                await self._checking
            self._check_etag(content.etag)
            put = PutObject(self._bucket, self._key, size=content.size, etag=content.etag, **options)
            return Prepared(put, content)
        finally:
            await self._stop()

    async def discard(self) -> None:
        """Give up; nothing becomes visible."""
        self._ended = True
        await self._stop()

    async def leave(self) -> None:
        """The store is being closed: discard what was not ended, and wait for the writes of what was."""
        if not self._ended:
            await self.discard()
        else:
            await self._chunks.settle()

    def _check_open(self) -> None:
        if self._ended:
            raise errors.InvalidArgument(f"the upload of {self._bucket}/{self._key} has ended; begin another")

    def _check_etag(self, etag: str) -> None:
        if self._expected_etag is not None and etag != self._expected_etag.lower():
            raise errors.IntegrityError(
                f"the content for {self._bucket}/{self._key} has BLAKE3 {etag}, not the expected "
                f"{self._expected_etag}; nothing was stored"
            )

    async def _check_target(self) -> None:
        """Refuse early what the commit would refuse, before gigabytes are sent; the commit decides all the same."""
        try:
            current = await self._store.client.head_object(self._bucket, self._key)
        except errors.NoSuchKey:
            return
        name = f"{self._bucket}/{self._key}"
        if self._options["if_absent"]:
            raise errors.AlreadyExists(f"{name} exists already")
        wanted = self._options["if_version"]
        if wanted is not None and wanted != current.version_id:
            raise errors.PreconditionFailed(f"the current version of {name} is {current.version_id}, not {wanted}")

    async def _stop(self) -> None:
        if self._checking is not None:
            self._checking.cancel()
            await asyncio.gather(self._checking, return_exceptions=True)
        await self._chunks.stop()


class ChunkWriter:
    """Content on its way into chunks of a bucket."""

    def __init__(self, commits: Commits, bucket: str, progress: Progress) -> None:
        self.progress = progress
        self._commits = commits
        self._bucket = bucket
        self._cutter = Cutter()
        self._cutting: ThreadPoolExecutor | None = None
        self._window: asyncio.Task[None] | None = None
        self._hasher = blake3()
        self._under_way: deque[tuple[Chunk, asyncio.Task[int]]] = deque()
        self._in_flight = 0
        self._chunks: list[Chunk] = []
        self._generations: list[int] = []
        """Under which each of them was stored."""
        self._renewed: dict[Chunk, int] = {}
        """Under which they were touched since."""
        self._begun_in = 0
        self._epoch = 0
        self._replicas = 0
        self._timer: asyncio.TimerHandle | None = None
        self._keeping: asyncio.Task[None] | None = None

    @property
    def begun(self) -> bool:
        """Whether anything was sent, or is about to be."""
        return bool(self._window or self._chunks or self._under_way)

    @property
    def buffered(self) -> int:
        """Bytes that wait to be cut."""
        return self._cutter.buffered

    def rest(self) -> bytes:
        """What waits to be cut."""
        return self._cutter.rest()

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Add content. What came before is cut and sent meanwhile, a window at a time."""
        view = memoryview(data if isinstance(data, bytes) else bytes(data))
        if len(view) <= WINDOW_BYTES:
            if self._cutter.add(data if isinstance(data, bytes) else view):
                await self._begin_window()
            return
        for start in range(0, len(view), WINDOW_BYTES):
            if self._cutter.add(view[start : start + WINDOW_BYTES]):
                await self._begin_window()

    async def finish(self) -> Content:
        """Store the rest, and wait until all is durable."""
        if self._window is not None:
            await self._window
        await self._send(ended=True)
        while self._under_way:
            await self._take()
        await self._stop_watching()
        size = sum(chunk.length for chunk in self._chunks)
        stored = zip(self._chunks, self._generations, strict=True)
        oldest = min((self._newest(chunk, generation) for chunk, generation in stored), default=self._begun_in)
        return Content(self._chunks, size, self._hasher.hexdigest(), oldest, self._epoch)

    async def settle(self) -> None:
        """Wait for what is under way, whatever comes of it."""
        if self._window is not None:
            await asyncio.gather(self._window, return_exceptions=True)
        await asyncio.gather(*(task for _, task in self._under_way), return_exceptions=True)

    async def stop(self) -> None:
        """Give up what is under way."""
        if self._window is not None:
            self._window.cancel()
            await asyncio.gather(self._window, return_exceptions=True)
        for _, task in self._under_way:
            task.cancel()
        await self._stop_watching()
        await self.settle()
        self._cutter = Cutter()
        if self._cutting is not None:
            self._cutting.shutdown(wait=False)

    async def _begin_window(self) -> None:
        """Have what was added cut and sent, after what came before."""
        if self._window is not None:
            await self._window
        if self._cutter.buffered >= WINDOW_BYTES:
            self._window = asyncio.create_task(self._send(ended=False))

    async def _send(self, ended: bool) -> None:
        window = self._cutter.take()
        if not self._begun_in:
            self._replicas = await self._commits.replicas(self._bucket)
            self._begun_in = await self._commits.generation()
            self._epoch = self._commits.epoch
            self._watch()
        if sum(map(len, window)) <= HASH_INLINE_MAX:
            pieces, chunks = self._cut(window, ended)
        else:
            if self._cutting is None:  # one thread of its own: each thread's allocator keeps some of what was freed
                self._cutting = ThreadPoolExecutor(1, thread_name_prefix="objmeta-cut")
            cutting = asyncio.get_running_loop().run_in_executor(self._cutting, self._cut, window, ended)
            pieces, chunks = await cutting
        generation, there = await self._ask(chunks)
        pieces.reverse()
        for chunk, is_there in zip(chunks, there, strict=True):
            while self._under_way and self._in_flight + chunk.length > IN_FLIGHT_BYTES:
                await self._take()
            piece = pieces.pop()  # whoever stores it is the only one who holds it
            if is_there:
                storing = _given(generation)
            else:
                storing = self._commits.put_chunk(chunk, piece, generation, self._replicas)
            del piece
            self._under_way.append((chunk, asyncio.create_task(storing)))
            self._in_flight += chunk.length

    def _cut(self, window: list[bytes | memoryview], ended: bool) -> tuple[list[bytes], list[Chunk]]:
        pieces = self._cutter.cut(window, ended)
        for piece in pieces:
            self._hasher.update(piece)
        return pieces, [Chunk(digest_now(piece), len(piece)) for piece in pieces]

    async def _ask(self, chunks: Sequence[Chunk]) -> tuple[int, list[bool]]:
        """Under which generation, and for each chunk whether it need not be sent."""
        long = [chunk for chunk in chunks if chunk.length > ASK_BYTES_MIN]
        generation, answers = await self._commits.touch(long, self._replicas) if long else (self._begun_in, [])
        there = {chunk for chunk, is_there in zip(long, answers, strict=True) if is_there}
        return generation, [chunk in there for chunk in chunks]

    async def _take(self) -> None:
        chunk, task = self._under_way[0]
        generation = await task
        self._under_way.popleft()
        self._in_flight -= chunk.length
        self._generations.append(generation)
        self._chunks.append(chunk)
        self.progress(chunk.length)

    # -- While it lasts -----------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        # One that its owner has dropped is to end, so the timer does not keep it.
        self._timer = asyncio.get_running_loop().call_later(LOOK_S, _look, weakref.ref(self))

    async def _stop_watching(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
            self._keeping = None

    def look(self) -> None:
        """Touch again what was sent, if the generation has moved on, so that no cycle deletes it before the commit."""
        self._keeping = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        with suppress(errors.ObjmetaError):  # the next look, or the commit, tries again
            newest = await self._commits.generation(LOOK_S)
            stored = [*zip(self._chunks, self._generations, strict=True)]
            stored += [(chunk, task.result()) for chunk, task in self._under_way if _is_stored(task)]
            old = [chunk for chunk, generation in stored if self._newest(chunk, generation) < newest]
            if old:
                touched, there = await self._commits.touch(old, self._replicas)
                self._renewed |= {chunk: touched for chunk, is_there in zip(old, there, strict=True) if is_there}
        self._watch()

    def _newest(self, chunk: Chunk, generation: int) -> int:
        return max(generation, self._renewed.get(chunk, 0))


def _is_stored(task: asyncio.Task[int]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


def _look(writer: weakref.ref[ChunkWriter]) -> None:
    found = writer()
    if found is not None:
        found.look()


async def _given(generation: int) -> int:
    return generation


def _ignore(count: int) -> None:
    return None
