"""The asynchronous client: every operation as a coroutine."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from objmeta.client.locations import Cluster, Location, location
from objmeta.client.services import Services, new_id, open_services
from objmeta.config import Settings
from objmeta.core.configuration import Membership
from objmeta.core.erasure import GENERATION_REGISTER, generation_in
from objmeta.errors import ForkedClient, InvalidArgument, Unavailable
from objmeta.interfaces import Collected, Cycle, MembersStatus, StoreStatus
from objmeta.model.changes import ConfigureBucket
from objmeta.model.names import check_bucket, check_key
from objmeta.model.values import Chunk
from objmeta.objects.elections import AsyncElection
from objmeta.objects.feed import ChangedVersions, LoadedPage
from objmeta.objects.locks import TTL_S, AsyncLock, Locks
from objmeta.objects.marks import Marked, marks
from objmeta.objects.transactions import conclude_all
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

if TYPE_CHECKING:
    from objmeta.rpc.client import RemoteRegisters


class AsyncClient:
    """A store's objects, buckets and key-value registers.

    Opens at first use and belongs to the event loop of that use.  After a fork, a client of an embedded store opens the
    store again in the child; one that is connected to a cluster raises ForkedClient, so open a new one there.  Every
    operation may raise NoQuorum (nothing was changed) and every change UnknownOutcome (it may yet apply), at the latest
    after ``timeout_s`` seconds.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._services: Services | None = None
        self._inherited: list[Services] = []
        self._opening = asyncio.Lock()
        self._pid = os.getpid()
        self.location: Location = location(settings)

    @property
    def timeout_s(self) -> float:
        """How long one operation may take, in seconds."""
        return self._settings.timeout_s

    # -- Buckets ------------------------------------------------------------------------------------------------------

    async def create_bucket(self, name: str) -> Bucket:
        """Create a bucket. Raises InvalidArgument (S3's naming rules), AlreadyExists."""
        check_bucket(name)
        return await (await self._open()).buckets.create(name)

    async def remove_bucket(self, name: str) -> None:
        """Remove a bucket that holds no version any more. Raises NoSuchBucket, BucketNotEmpty."""
        check_bucket(name)
        await (await self._open()).buckets.remove(name)

    async def bucket(self, name: str) -> Bucket:
        """Look a bucket up. Raises NoSuchBucket."""
        check_bucket(name)
        return await (await self._open()).buckets.get(name)

    async def configure_bucket(
        self,
        name: str,
        *,
        replicas: int | None = None,
        keep_versions: int | None = None,
        keep_days: float | None = None,
        expire_delete_markers: bool | None = None,
    ) -> Bucket:
        """Change those settings of a bucket that are given; racing calls change each its own. Zero is the default.

        Of a chunk there are ``replicas`` copies (0: three, or as many as there are nodes).  Versions that are not
        current are all kept for ever unless ``keep_versions`` says how many, or ``keep_days`` for how many days after
        another one took its place; with both, a version is removed when both allow it.  With ``expire_delete_markers``
        a delete marker goes when it is all that is left of an object.  Background work applies this (``gateway gc``).

        Raises InvalidArgument, NoSuchBucket.
        """
        check_bucket(name)
        change = ConfigureBucket(new_id(), replicas, keep_versions, keep_days, expire_delete_markers)
        return await (await self._open()).buckets.configure(name, change)

    async def buckets(self) -> list[Bucket]:
        """All buckets, by name."""
        return await (await self._open()).buckets.list()

    # -- Objects ------------------------------------------------------------------------------------------------------

    async def put_object(
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
        _check(bucket, key)
        return await (await self._open()).objects.put(
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

    async def head_object(self, bucket: str, key: str) -> ObjectSummary:
        """The current version's size, etag and times, in one round trip. Raises NoSuchBucket, NoSuchKey."""
        _check(bucket, key)
        return await (await self._open()).objects.head(bucket, key)

    async def get_object(
        self, bucket: str, key: str, *, version_id: str | None = None, with_data: bool = True
    ) -> ObjectVersion:
        """One version with its manifest, and its content if that is inline and ``with_data``.

        Without ``version_id`` the current one.  Raises NoSuchBucket, NoSuchKey, NoSuchVersion, IntegrityError.
        """
        _check(bucket, key)
        return await (await self._open()).objects.get(bucket, key, version_id=version_id, with_data=with_data)

    async def delete_object(self, bucket: str, key: str, *, if_version: str | None = None) -> ObjectVersion:
        """Hide an object behind a delete marker, which is returned; its versions stay.

        Raises NoSuchBucket, NoSuchKey (nothing to see), PreconditionFailed.
        """
        _check(bucket, key)
        return await (await self._open()).objects.delete(bucket, key, if_version)

    async def copy_object(
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
        _check(source_bucket, source_key)
        _check(bucket, key)
        return await (await self._open()).objects.copy(
            (source_bucket, source_key),
            (bucket, key),
            version_id=version_id,
            if_absent=if_absent,
            if_version=if_version,
            generation=generation,
        )

    async def versions(self, bucket: str, key: str) -> list[ObjectVersion]:
        """All versions of one object, newest first, delete markers included. Raises NoSuchBucket, NoSuchKey."""
        _check(bucket, key)
        return await (await self._open()).objects.versions(bucket, key)

    async def restore_version(self, bucket: str, key: str, version_id: str, *, generation: int = 0) -> ObjectVersion:
        """Make an old version's content current again, as a new version; ``generation`` as in :meth:`put_object`.

        Raises NoSuchVersion, InvalidArgument (it is a delete marker), StaleGeneration.
        """
        return await self.copy_object(bucket, key, bucket, key, version_id=version_id, generation=generation)

    async def remove_version(
        self,
        bucket: str,
        key: str,
        version_id: str,
        *,
        only_if: Callable[[Sequence[ObjectVersion]], bool] | None = None,
    ) -> None:
        """Remove one version for good; if it was current, the one before it becomes current.

        ``only_if`` is asked, with all versions newest first, whether it may go; perhaps several times: the answer that
        counts is about the versions that there are at the very removal.  It must have no side effects.

        Raises NoSuchVersion, PreconditionFailed (``only_if`` said no).
        """
        _check(bucket, key)
        await (await self._open()).objects.remove_version(bucket, key, version_id, only_if)

    # -- Several objects at once --------------------------------------------------------------------------------------

    async def commit(self, changes: Sequence[PutObject | DeleteObject], *, generation: int = 0) -> list[ObjectVersion]:
        """Make all of these changes, at one instant, or none; the new versions, in the order of ``changes``.

        The objects may be in any buckets, each is named once, and there may be 1,000 of them.  Who reads one of them
        waits while it is undecided, so whoever saw one change sees all others from then on; a page of a listing, and
        several calls, are not of one instant.  ``generation`` is the oldest under which chunks of any were touched
        (see :meth:`put_object`).

        Raises InvalidArgument, and what :meth:`put_object` and :meth:`delete_object` raise, of the first object for
        which it does not go: unless that is UnknownOutcome, nothing was changed.  Raises NoQuorum also when others,
        who waited for it, have aborted it again and again.
        """
        return await (await self._open()).transactions.commit(changes, generation)

    # -- Listings -----------------------------------------------------------------------------------------------------

    async def list_objects(
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
        check_bucket(bucket)
        return await (await self._open()).listings.objects(bucket, prefix, delimiter, continuation, limit, start)

    async def iter_objects(
        self, bucket: str, prefix: str = "", *, delimiter: str = ""
    ) -> AsyncIterator[ObjectSummary | str]:
        """All of a listing, page by page; common prefixes are strings. Of one page, objects come first."""
        continuation: str | None = None
        while True:
            page = await self.list_objects(
                bucket, prefix, delimiter=delimiter, continuation=continuation, limit=_ITER_PAGE
            )
            for summary in page.objects:
                yield summary
            for common in page.prefixes:
                yield common
            continuation = page.continuation
            if continuation is None:
                return

    async def list_versions(
        self, bucket: str, prefix: str = "", *, start: str = "", continuation: str | None = None, limit: int = 1000
    ) -> VersionPage:
        """One page of all versions of at most ``limit`` objects, each object as of one instant. Raises NoSuchBucket.

        Keys below ``start`` are left out; with a ``continuation`` the page begins at the later of both.
        """
        check_bucket(bucket)
        return await (await self._open()).listings.versions(bucket, prefix, continuation, limit, start)

    # -- Following changes ---------------------------------------------------------------------------------------------

    async def changes(self, cursor: str | None = None, *, limit: int = 1000) -> ChangePage:
        """The objects that changed since the call that gave ``cursor``, with all versions they have now.

        Without a cursor: where to begin, and no objects.  Every change that finished before the call began is in its
        pages, through whichever node.  An object may be listed without need.  ``limit`` bounds the changes looked at,
        at each node; call again at once while the page says ``more``.  The order within a page says nothing: times
        and sequences do.

        ``reload``: the cursor is too old (nodes keep their last 100,000 changes), the members of the cluster have
        changed, or it is another store; go on from the page's cursor, after reading anew whatever is kept.  Of
        operations that were under way just then, some may not be listed later; :meth:`load_versions` leaves no such
        gap.  Raises InvalidArgument (not a cursor), NoQuorum.
        """
        return await (await self._open()).feed.changes(cursor, limit)

    async def changed_versions(self, cursor: str | None = None, *, limit: int = 1000) -> ChangedVersions:
        """What :meth:`changes` says, column by column, for who keeps very many versions. Raises as that does."""
        return await (await self._open()).feed.changed_versions(cursor, limit)

    async def load_versions(
        self, bucket: Bucket, cursor: str, *, continuation: bytes | None = None, limit: int = 5000
    ) -> LoadedPage:
        """One page of all versions of at most ``limit`` objects, column by column, for who then follows the changes.

        ``cursor`` is that of a call of :meth:`changes` that said ``reload``, or of the page before, also of another
        bucket; the last one is where to go on with :meth:`changes`, and then nothing falls between.  Raises
        NoSuchBucket once the bucket is gone, NoQuorum.
        """
        return await (await self._open()).feed.load(bucket, cursor, continuation, limit)

    # -- Key-value registers ------------------------------------------------------------------------------------------

    async def get(self, key: bytes | str) -> KeyValue | None:
        """The value of a register, or None."""
        return await (await self._open()).values.get(_bytes(key))

    async def put(self, key: bytes | str, value: bytes) -> KeyValue:
        """Set a register."""
        return await (await self._open()).values.put(_bytes(key), value)

    async def compare_and_swap(self, key: bytes | str, value: bytes, *, expected: str | None) -> KeyValue:
        """Set a register if its last change was ``expected`` (a version id; None: if it has no value).

        Raises PreconditionFailed (AlreadyExists if ``expected`` is None).
        """
        return await (await self._open()).values.compare_and_swap(_bytes(key), value, expected)

    async def change(self, key: bytes | str, function: Callable[[bytes | None], bytes | None]) -> KeyValue | None:
        """Replace a register's value by a function of it; the change takes effect exactly once.

        The function gets None where there is no value and returns None to delete it.  It may be called several times
        and must have no side effects; with a cluster it is a loop of compare-and-swap.
        """
        return await (await self._open()).values.change(_bytes(key), function)

    async def delete(self, key: bytes | str, *, if_version: str | None = None) -> bool:
        """Delete a register's value; False if there was none. Raises PreconditionFailed."""
        return await (await self._open()).values.delete(_bytes(key), if_version)

    async def scan(self, prefix: bytes | str = b"", *, start: bytes | str = b"", limit: int = 1000) -> list[KeyValue]:
        """At most ``limit`` registers whose keys begin with ``prefix`` and are not below ``start``, in order."""
        return await (await self._open()).values.scan(_bytes(prefix), _bytes(start), limit)

    # -- Locks --------------------------------------------------------------------------------------------------------

    def lock(
        self, name: str, *, ttl_s: float = TTL_S, wait_s: float | None = None, owner: str | None = None
    ) -> AsyncLock:
        """A lock: ``async with client.lock("name") as lease:``. It is not taken before that, or ``acquire()``.

        ``wait_s`` is how long to wait for it (None: for ever; 0: one try, else LockHeld).  A lock whose holder died can
        be taken by whoever has seen it unchanged for the holder's ``ttl_s``: a client that waits for less, once, does
        not get it.  ``owner`` is what others see (default: host and process).  The block is
        cancelled when the lease is lost, and raises LockLost; ``lease.token`` fences off whoever comes too late.
        Raises InvalidArgument.
        """
        return AsyncLock(self._locks, name, ttl_s, wait_s, owner)

    def election(
        self, name: str, *, ttl_s: float = TTL_S, wait_s: float | None = None, candidate: str | None = None
    ) -> AsyncElection:
        """An election, whose leader holds the lock ``name``. Raises InvalidArgument."""
        return AsyncElection(AsyncLock(self._locks, name, ttl_s, wait_s, candidate))

    # -- The store ----------------------------------------------------------------------------------------------------

    async def generation(self) -> int:
        """The generation now (DESIGN section 1): what an operation states that writes or reuses chunks from here on.

        Read it before the first chunk is written or touched, and state it with each of them and with the commit.
        """
        services = await self._open()
        (state,) = await services.registers.read((GENERATION_REGISTER,), self.timeout_s)
        return generation_in(state)

    async def begin_cycle(self, timeout_s: float | None = None) -> Cycle:
        """Begin a cycle of the collector: a new generation, with the one before it as the floor at all acceptors.

        Operations that state a generation below the floor are refused from then on, whoever is asked.  Raises NoQuorum
        if an acceptor did not confirm that, naming it, or while members change: then no chunk may be removed.
        """
        allowed_s = self.timeout_s if timeout_s is None else timeout_s
        return await (await self._open()).registers.begin_cycle(allowed_s)

    async def local_marks(self, epoch: int) -> dict[int, AsyncGenerator[Marked, None]]:
        """For each acceptor of a store in directories, by its id: every chunk that it names, page by page.

        All of it is of the configuration of ``epoch`` (see :meth:`begin_cycle`), else Unavailable is raised.  A page
        raises Unavailable if the acceptor's disk is away, ConfigurationMismatch if a disk is being replaced, NoQuorum,
        and IntegrityError where something is damaged: then nothing can be said of what the acceptor names as a whole.
        The nodes of a cluster are asked one by one instead (:meth:`objmeta.node.Node.marks`): raises InvalidArgument.
        """
        from objmeta.client.disks import DiskRegisters
        from objmeta.client.embedded import EmbeddedRegisters

        services = await self._open()
        if not isinstance(services.registers, EmbeddedRegisters | DiskRegisters):
            raise InvalidArgument("the acceptors of a cluster are on its nodes: each says itself what it names")
        configuration, acceptors = services.registers.acceptors()
        if configuration.epoch != epoch or configuration.is_joint:
            raise Unavailable(f"the disks have changed: the epoch is {configuration.epoch} now")
        alone = len(acceptors) == 1
        return {
            acceptor_id: marks(services.context, acceptor, configuration.tag, alone)
            for acceptor_id, acceptor in sorted(acceptors.items())
        }

    async def conclude_transactions(self) -> int:
        """Finish what owners of committed transactions left undone, so that it can be forgotten; of how many.

        Part of collection (``gateway gc``): nobody who reads or writes needs it.  Raises NoQuorum.
        """
        services = await self._open()
        return await conclude_all(services.context, services.buckets.intents)

    async def collect(self, run: int = 0, timeout_s: float = 5.0) -> Collected:
        """Erase what was deleted and can be erased now; how far that has come within ``timeout_s``.

        Call again with the ``run`` of the answer until that is ``done``.
        """
        return await (await self._open()).registers.collect(run, timeout_s)

    async def status(self) -> StoreStatus:
        """Nodes, versions, health, quorum."""
        return await (await self._open()).registers.status(self.timeout_s)

    async def members(self) -> MembersStatus:
        """The members of a cluster, and the change of members under way. Raises InvalidArgument for a directory."""
        return await (await self._nodes()).members(self.timeout_s)

    async def change_members(self, add: Mapping[int, str], remove: Sequence[int], *, epoch: int) -> Membership:
        """Begin to change the members of a cluster, as :meth:`members` showed them in ``epoch``.

        ``add`` gives the addresses of new nodes, which run already and wait to join, by their ids.  What is given back
        is joint while everything is copied, which the nodes do by themselves; :meth:`members` shows how far they are.

        Raises InvalidArgument (an id is unknown, used or retired), Conflict (another change is under way, or was made).
        """
        return await (await self._nodes()).change_members(add, remove, epoch, self.timeout_s)

    async def replace_disk(
        self, old: str | os.PathLike[str], new: str | os.PathLike[str], *, timeout_s: float = 3600.0
    ) -> None:
        """Have the empty directory ``new`` take the place of ``old``, which may be lost; returns when all is copied.

        The store can be used meanwhile, by any process.  What was interrupted is gone on with by the same call.  The
        setting ``disks`` should name the new directory from then on.

        Raises InvalidArgument (this store has no such disk), Conflict, StoreError, NoQuorum, UnknownOutcome.
        """
        from objmeta.client.disks import DiskRegisters

        registers = (await self._open()).registers
        if not isinstance(registers, DiskRegisters):
            raise InvalidArgument("this store is not over several disks: name them by the setting disks")
        await registers.replace(_directory(old), _directory(new), timeout_s)

    @property
    def epoch(self) -> int:
        """Of the highest membership of a cluster that was heard of; 0 for none."""
        if self._services is None or not isinstance(self.location, Cluster):
            return 0
        from objmeta.rpc.client import RemoteRegisters

        registers = self._services.registers
        return registers.epoch if isinstance(registers, RemoteRegisters) else 0

    async def _nodes(self) -> RemoteRegisters:
        from objmeta.rpc.client import RemoteRegisters

        registers = (await self._open()).registers
        if not isinstance(registers, RemoteRegisters):
            raise InvalidArgument("this store is a directory and has no members; name the nodes of a cluster")
        return registers

    async def close(self) -> None:
        """Release files, threads and connections; the next use opens the store again. Leases that are held are lost."""
        services, self._services = self._services, None
        if services is not None and services.pid == os.getpid():
            await services.locks.close()
            await services.registers.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _open(self) -> Services:
        services = self._services
        if services is not None and services.pid == os.getpid():
            return services
        if self._pid != os.getpid():  # a task of the parent may hold it for good
            self._opening, self._pid = asyncio.Lock(), os.getpid()
        async with self._opening:
            services = self._services
            if services is not None and services.pid != os.getpid():
                if isinstance(self.location, Cluster):
                    raise ForkedClient(
                        "this client's connections belong to the parent process; open a new one in the child: "
                        "objmeta.connect_async(...)"
                    )
                self._inherited.append(services)  # kept, never closed: its files and locks are the parent's
                services = None
            if services is None:
                services = await open_services(self._settings, self.location)
                self._services = services
            return services

    async def _locks(self) -> Locks:
        return (await self._open()).locks


_ITER_PAGE = 5000


def _directory(path: str | os.PathLike[str]) -> Path:
    return Path(path).expanduser().absolute()


def _check(bucket: str, key: str) -> None:
    check_bucket(bucket)
    check_key(key)


def _bytes(key: bytes | str) -> bytes:
    return key.encode() if isinstance(key, str) else key
