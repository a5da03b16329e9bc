"""The synchronous client: the asynchronous one, run on an event loop in a thread of its own.

It may be used from any thread.  In a forked child, where that thread does not exist, the first use starts a new one and
a new asynchronous client, so nothing of the parent's is touched.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

from objmeta.client.asynchronous import AsyncClient
from objmeta.client.locations import Cluster, Location
from objmeta.client.locks import Election, Lock
from objmeta.config import Settings
from objmeta.core.configuration import Membership
from objmeta.errors import ForkedClient
from objmeta.forking import tell_of_forks
from objmeta.interfaces import Collected, Cycle, MembersStatus, StoreStatus
from objmeta.model.values import Chunk
from objmeta.objects.feed import ChangedVersions, LoadedPage
from objmeta.objects.locks import TTL_S
from objmeta.objects.types import (
    Bucket,
    ChangePage,
    DeleteObject,
    KeyValue,
    ObjectPage,
    ObjectSummary,
    ObjectVersion,
    PutObject,
    VersionPage,
)

T = TypeVar("T")

_WIND_UP_S = 1.0


class _LoopThread:
    """An event loop that runs in a daemon thread of this process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="objmeta-client", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there and wait for it here; an interrupt cancels it."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """End what is left on the loop (closing connections), the thread and the loop."""
        self.run(_wind_up())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


async def _wind_up() -> None:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    if left:
        _, unfinished = await asyncio.wait(left, timeout=_WIND_UP_S)
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()


class Client:
    """A store's objects, buckets and key-value registers; the methods are those of :class:`AsyncClient`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._thread: _LoopThread | None = None
        self._inherited: list[object] = []
        self._client = AsyncClient(settings)
        tell_of_forks(self)

    def before_fork(self) -> None:
        """Nothing is waited for: what is under way is the parent's."""

    def after_fork(self, in_child: bool) -> None:
        """The lock may have been held by a thread that does not exist in the child."""
        if in_child:
            self._lock = threading.Lock()

    @property
    def location(self) -> Location:
        """Where the store is."""
        return self._client.location

    @property
    def timeout_s(self) -> float:
        """How long one operation may take, in seconds."""
        return self._client.timeout_s

    @property
    def settings(self) -> Settings:
        """What the client was opened with."""
        return self._settings

    def create_bucket(self, name: str) -> Bucket:
        """Create a bucket. Raises InvalidArgument (S3's naming rules), AlreadyExists."""
        return self._run(self._current().create_bucket(name))

    def remove_bucket(self, name: str) -> None:
        """Remove a bucket that holds no version any more. Raises NoSuchBucket, BucketNotEmpty."""
        self._run(self._current().remove_bucket(name))

    def bucket(self, name: str) -> Bucket:
        """Look a bucket up. Raises NoSuchBucket."""
        return self._run(self._current().bucket(name))

    def configure_bucket(
        self,
        name: str,
        *,
        replicas: int | None = None,
        keep_versions: int | None = None,
        keep_days: float | None = None,
        expire_delete_markers: bool | None = None,
    ) -> Bucket:
        """Change those settings of a bucket that are given; see :meth:`AsyncClient.configure_bucket`.

        Raises InvalidArgument, NoSuchBucket.
        """
        return self._run(
            self._current().configure_bucket(
                name,
                replicas=replicas,
                keep_versions=keep_versions,
                keep_days=keep_days,
                expire_delete_markers=expire_delete_markers,
            )
        )

    def buckets(self) -> list[Bucket]:
        """All buckets, by name."""
        return self._run(self._current().buckets())

    def put_object(
        self,
        bucket: str,
        key: str,
        *,
        data: bytes | None = None,
        chunks: Sequence[Chunk] = (),
        lists: Sequence[Chunk] = (),
        size: int | None = None,
        etag: str | None = None,
        content_type: str = "",
        metadata: Mapping[str, str] | None = None,
        if_absent: bool = False,
        if_version: str | None = None,
        generation: int = 0,
    ) -> ObjectVersion:
        """Commit a version of an object.

        Its content is ``data``, kept in the record (for small objects), or ``chunks`` that are durable already (or
        ``lists`` of them, see :class:`objmeta.Manifest`), with the content's ``size`` in bytes and ``etag`` (BLAKE3,
        hexadecimal).  ``if_absent`` requires that there is no object to see, ``if_version`` that this version is
        current; racing writers have exactly one winner.

        ``generation`` is the one under which the chunks were written or touched (:meth:`generation`): the commit is
        refused, by StaleGeneration, once they may have been collected.  0: the newest; then nothing is checked.

        Raises InvalidArgument, NoSuchBucket, AlreadyExists, PreconditionFailed, StaleGeneration (nothing was changed:
        read the generation, touch the chunks again under it, and commit anew).
        """
        return self._run(
            self._current().put_object(
                bucket,
                key,
                data=data,
                chunks=chunks,
                lists=lists,
                size=size,
                etag=etag,
                content_type=content_type,
                metadata=metadata,
                if_absent=if_absent,
                if_version=if_version,
                generation=generation,
            )
        )

    def head_object(self, bucket: str, key: str) -> ObjectSummary:
        """The current version's size, etag and times, in one round trip. Raises NoSuchBucket, NoSuchKey."""
        return self._run(self._current().head_object(bucket, key))

    def get_object(
        self, bucket: str, key: str, *, version_id: str | None = None, with_data: bool = True
    ) -> ObjectVersion:
        """One version with its manifest, and its content if that is inline and ``with_data``.

        Without ``version_id`` the current one.  Raises NoSuchBucket, NoSuchKey, NoSuchVersion, IntegrityError.
        """
        return self._run(self._current().get_object(bucket, key, version_id=version_id, with_data=with_data))

    def delete_object(self, bucket: str, key: str, *, if_version: str | None = None) -> ObjectVersion:
        """Hide an object behind a delete marker, which is returned; its versions stay.

        Raises NoSuchBucket, NoSuchKey (nothing to see), PreconditionFailed.
        """
        return self._run(self._current().delete_object(bucket, key, if_version=if_version))

    def copy_object(
        self,
        source_bucket: str,
        source_key: str,
        bucket: str,
        key: str,
        *,
        version_id: str | None = None,
        if_absent: bool = False,
        if_version: str | None = None,
        generation: int = 0,
    ) -> ObjectVersion:
        """Commit the content of a version under another name, or the same; no bytes are copied.

        ``generation`` as in :meth:`put_object`: the one under which the version's chunks were touched.
        """
        return self._run(
            self._current().copy_object(
                source_bucket,
                source_key,
                bucket,
                key,
                version_id=version_id,
                if_absent=if_absent,
                if_version=if_version,
                generation=generation,
            )
        )

    def versions(self, bucket: str, key: str) -> list[ObjectVersion]:
        """All versions of one object, newest first, delete markers included. Raises NoSuchBucket, NoSuchKey."""
        return self._run(self._current().versions(bucket, key))

    def restore_version(self, bucket: str, key: str, version_id: str, *, generation: int = 0) -> ObjectVersion:
        """Make an old version's content current again, as a new version; ``generation`` as in :meth:`put_object`.

        Raises NoSuchVersion, InvalidArgument (it is a delete marker), StaleGeneration.
        """
        return self._run(self._current().restore_version(bucket, key, version_id, generation=generation))

    def remove_version(
        self,
        bucket: str,
        key: str,
        version_id: str,
        *,
        only_if: Callable[[Sequence[ObjectVersion]], bool] | None = None,
    ) -> None:
        """Remove one version for good, if it may go; see :meth:`AsyncClient.remove_version`.

        Raises NoSuchVersion, PreconditionFailed.
        """
        self._run(self._current().remove_version(bucket, key, version_id, only_if=only_if))

    def commit(self, changes: Sequence[PutObject | DeleteObject], *, generation: int = 0) -> list[ObjectVersion]:
        """Make all of these changes, at one instant, or none; see :meth:`AsyncClient.commit`."""
        return self._run(self._current().commit(changes, generation=generation))

    def list_objects(
        self,
        bucket: str,
        prefix: str = "",
        *,
        delimiter: str = "",
        start: str = "",
        continuation: str | None = None,
        limit: int = 1000,
    ) -> ObjectPage:
        """One page of visible objects, and of common prefixes if there is a delimiter. Raises NoSuchBucket.

        Every change that finished before the call began is in it, through whichever node.  Keys below ``start`` are
        left out; with a ``continuation`` the page begins at the later of both.
        """
        return self._run(
            self._current().list_objects(
                bucket, prefix, delimiter=delimiter, start=start, continuation=continuation, limit=limit
            )
        )

    def list_versions(
        self, bucket: str, prefix: str = "", *, start: str = "", continuation: str | None = None, limit: int = 1000
    ) -> VersionPage:
        """One page of all versions of at most ``limit`` objects, each object as of one instant. Raises NoSuchBucket.

        Keys below ``start`` are left out; with a ``continuation`` the page begins at the later of both.
        """
        client = self._current()
        return self._run(client.list_versions(bucket, prefix, start=start, continuation=continuation, limit=limit))

    def changes(self, cursor: str | None = None, *, limit: int = 1000) -> ChangePage:
        """What changed since ``cursor``; see :meth:`AsyncClient.changes`. Raises InvalidArgument, NoQuorum."""
        return self._run(self._current().changes(cursor, limit=limit))

    def changed_versions(self, cursor: str | None = None, *, limit: int = 1000) -> ChangedVersions:
        """The same, column by column; see :meth:`AsyncClient.changed_versions`."""
        return self._run(self._current().changed_versions(cursor, limit=limit))

    def load_versions(
        self, bucket: Bucket, cursor: str, *, continuation: bytes | None = None, limit: int = 5000
    ) -> LoadedPage:
        """One page of versions, column by column; see :meth:`AsyncClient.load_versions`. Raises NoSuchBucket."""
        return self._run(self._current().load_versions(bucket, cursor, continuation=continuation, limit=limit))

    def get(self, key: bytes | str) -> KeyValue | None:
        """The value of a register, or None."""
        return self._run(self._current().get(key))

    def put(self, key: bytes | str, value: bytes) -> KeyValue:
        """Set a register."""
        return self._run(self._current().put(key, value))

    def compare_and_swap(self, key: bytes | str, value: bytes, *, expected: str | None) -> KeyValue:
        """Set a register if its last change was ``expected`` (a version id; None: if it has no value).

        Raises PreconditionFailed (AlreadyExists if ``expected`` is None).
        """
        return self._run(self._current().compare_and_swap(key, value, expected=expected))

    def change(self, key: bytes | str, function: Callable[[bytes | None], bytes | None]) -> KeyValue | None:
        """Replace a register's value by a function of it; the change takes effect exactly once.

        The function gets None where there is no value and returns None to delete it.  It may be called several times
        and must have no side effects; with a cluster it is a loop of compare-and-swap.
        """
        return self._run(self._current().change(key, function))

    def delete(self, key: bytes | str, *, if_version: str | None = None) -> bool:
        """Delete a register's value; False if there was none. Raises PreconditionFailed."""
        return self._run(self._current().delete(key, if_version=if_version))

    def scan(self, prefix: bytes | str = b"", *, start: bytes | str = b"", limit: int = 1000) -> list[KeyValue]:
        """At most ``limit`` registers whose keys begin with ``prefix`` and are not below ``start``, in order."""
        return self._run(self._current().scan(prefix, start=start, limit=limit))

    def lock(self, name: str, *, ttl_s: float = TTL_S, wait_s: float | None = None, owner: str | None = None) -> Lock:
        """A lock: ``with client.lock("name") as lease:``. It is not taken before that, or ``acquire()``.

        ``wait_s`` is how long to wait for it (None: for ever; 0: one try, else LockHeld).  A lock whose holder died can
        be taken by whoever has seen it unchanged for the holder's ``ttl_s``: a client that waits for less, once, does
        not get it.  ``owner`` is what others see (default: host and process).  A block cannot be
        stopped from outside: call ``lease.check()`` in it; leaving it raises LockLost if the lease was lost, and
        ``lease.token`` fences off whoever comes too late.  Raises InvalidArgument.
        """
        return Lock(self._run, lambda: self._current().lock(name, ttl_s=ttl_s, wait_s=wait_s, owner=owner))

    def election(
        self, name: str, *, ttl_s: float = TTL_S, wait_s: float | None = None, candidate: str | None = None
    ) -> Election:
        """An election, whose leader holds the lock ``name``. Raises InvalidArgument."""
        return Election(self.lock(name, ttl_s=ttl_s, wait_s=wait_s, owner=candidate))

    def generation(self) -> int:
        """The generation now; see :meth:`AsyncClient.generation`."""
        return self._run(self._current().generation())

    def begin_cycle(self, timeout_s: float | None = None) -> Cycle:
        """Begin a cycle of the collector; see :meth:`AsyncClient.begin_cycle`. Raises NoQuorum."""
        return self._run(self._current().begin_cycle(timeout_s))

    def conclude_transactions(self) -> int:
        """Finish what owners of transactions left undone; see :meth:`AsyncClient.conclude_transactions`."""
        return self._run(self._current().conclude_transactions())

    def collect(self, run: int = 0, timeout_s: float = 5.0) -> Collected:
        """Erase what was deleted and can be erased now; how far that has come within ``timeout_s``.

        Call again with the ``run`` of the answer until that is ``done``.
        """
        return self._run(self._current().collect(run, timeout_s))

    def status(self) -> StoreStatus:
        """Nodes, versions, health, quorum."""
        return self._run(self._current().status())

    def replace_disk(
        self, old: str | os.PathLike[str], new: str | os.PathLike[str], *, timeout_s: float = 3600.0
    ) -> None:
        """Put another directory in the place of a disk; see :meth:`AsyncClient.replace_disk`.

        Raises InvalidArgument, Conflict, StoreError, NoQuorum, UnknownOutcome.
        """
        self._run(self._current().replace_disk(old, new, timeout_s=timeout_s))

    def members(self) -> MembersStatus:
        """The members of a cluster, and the change of members under way. Raises InvalidArgument for a directory."""
        return self._run(self._current().members())

    def change_members(self, add: Mapping[int, str], remove: Sequence[int], *, epoch: int) -> Membership:
        """Begin to change the members; see :meth:`AsyncClient.change_members`. Raises InvalidArgument, Conflict."""
        return self._run(self._current().change_members(add, remove, epoch=epoch))

    @property
    def epoch(self) -> int:
        """Of the highest membership of a cluster that was heard of; 0 for none."""
        return self._current().epoch

    def iter_objects(self, bucket: str, prefix: str = "", *, delimiter: str = "") -> Iterator[ObjectSummary | str]:
        """All of a listing, page by page; common prefixes are strings. Of one page, objects come first."""
        continuation: str | None = None
        while True:
            page = self.list_objects(bucket, prefix, delimiter=delimiter, continuation=continuation, limit=5000)
            yield from page.objects
            yield from page.prefixes
            continuation = page.continuation
            if continuation is None:
                return

    def close(self) -> None:
        """Release files, threads and connections; the next use opens the store again. Leases that are held are lost."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None and thread.pid == os.getpid():
            thread.run(self._client.close())
            thread.stop()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _current(self) -> AsyncClient:
        self._ready()
        return self._client

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._ready().run(coroutine)

    def _ready(self) -> _LoopThread:
        thread = self._thread
        if thread is not None and thread.pid == os.getpid():
            return thread
        if thread is not None and isinstance(self.location, Cluster):
            raise ForkedClient(
                "this client's connections belong to the parent process; open a new one in the child: "
                "objmeta.connect(...)"
            )
        with self._lock:
            if self._thread is None or self._thread.pid != os.getpid():
                if self._thread is not None:
                    self._inherited += [self._thread, self._client]
                    self._client = AsyncClient(self._settings)
                self._thread = _LoopThread()
            return self._thread
