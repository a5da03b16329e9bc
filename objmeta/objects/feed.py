"""The change feed: which objects changed, and loading all of them so that nothing falls between the two.

Theory of operation.  A cursor holds the number of the last change seen at each acceptor that is followed
(``register.following``).  Whoever keeps something of a store begins a cursor, reads everything by pages that *cover*
it, and then asks for changes from time to time.  The promise, kept for each object by itself: an operation on it that
was acknowledged before a call of :meth:`Feed.changes` began is in what was kept after that call (once ``more`` is
false).

A page covers what the followed acceptors have accepted: an accept may be listed long before it is chosen, by a last
vote that only an acceptor sees which nobody asks next time.  So an acceptor that does not answer a page is followed no
further (in a load) or its number does not move (among changes): see docs/protocol.md, "Following changes".
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Final

import msgspec

from objmeta.core.listing import ScanRequest, successor
from objmeta.core.messages import TOMBSTONE
from objmeta.errors import InvalidArgument, NoSuchBucket
from objmeta.interfaces import ScanPage, Watermarks
from objmeta.model.names import BUCKET_ID_BYTES, OBJECTS, object_prefix
from objmeta.model.values import BucketHead
from objmeta.objects.buckets import Buckets, fence
from objmeta.objects.columns import EncodedVersions, VersionColumns
from objmeta.objects.context import Context
from objmeta.objects.types import Bucket, ChangedObject, ChangePage

LIMIT_MAX: Final = 5000
_NAMES_A_SCAN: Final = 1000
_FORMAT: Final = 1


class _Cursor(msgspec.Struct, frozen=True, array_like=True):
    format: int
    watermarks: Watermarks


class LoadedPage(msgspec.Struct, frozen=True):
    """One page of :meth:`Feed.load`: ``continuation`` None when it is the last one of its bucket.

    ``cursor`` takes the place of the one that was given.
    """

    versions: EncodedVersions
    continuation: bytes | None
    cursor: str

    def columns(self) -> VersionColumns:
        """What is on the page. Raises IntegrityError."""
        return self.versions.columns()


class ChangedObjects(msgspec.Struct, frozen=True):
    """Which objects changed, by bucket and key; the rest is as in :class:`ChangePage`.

    ``cursor`` goes on behind them, which is right only for who has read what they are by then.  ``since``, ``reached``
    and ``registers`` (bucket, its id, and names in it) are for that reading.
    """

    objects: tuple[tuple[str, str], ...]
    cursor: str
    more: bool = False
    reload: bool = False
    since: Watermarks | None = None
    reached: tuple[tuple[int, int], ...] = ()
    registers: tuple[tuple[str, bytes, tuple[bytes, ...]], ...] = ()


class ChangedVersions(msgspec.Struct, frozen=True):
    """What :class:`ChangePage` tells, as it was read: ``objects`` by bucket and key, and all versions they have now.

    A page of them has some of the objects; those that are on none have no versions any more.
    """

    objects: tuple[tuple[str, str], ...]
    pages: tuple[EncodedVersions, ...]
    cursor: str
    more: bool = False
    reload: bool = False


class Feed:
    """What changes in a store."""

    def __init__(self, context: Context, buckets: Buckets) -> None:
        self._context = context
        self._buckets = buckets

    async def changes(self, cursor: str | None, limit: int) -> ChangePage:
        """What has changed since ``cursor``; see :meth:`objmeta.AsyncClient.changes`."""
        found = await self.changed_versions(await self.changed_objects(cursor, limit))
        there = {(each.bucket, each.key): each for page in found.pages for each in _objects(page)}
        objects = tuple(there.get(name) or ChangedObject(*name, ()) for name in found.objects)
        return ChangePage(objects, found.cursor, found.more, found.reload)

    async def changed_objects(self, cursor: str | None, limit: int) -> ChangedObjects:
        """The same without the versions; see :meth:`objmeta.AsyncClient.changed_objects`."""
        if limit < 1:
            raise InvalidArgument(f"a page's limit must be at least 1, not {limit}")
        since = None if cursor is None else _decoded(cursor)
        registers, timeout_s = self._context.registers, self._context.timeout_s
        changed = await registers.changes(since, min(limit, LIMIT_MAX), timeout_s)
        if changed.reload or since is None:
            return ChangedObjects((), _encoded(changed.marks), reload=True)
        by_bucket: dict[bytes, list[bytes]] = {}
        for name in changed.names:
            if name.startswith(OBJECTS):
                by_bucket.setdefault(name[len(OBJECTS) : len(OBJECTS) + BUCKET_ID_BYTES], []).append(name)
        buckets = {bucket.bucket_id: bucket.name for bucket in await self._buckets.list()} if by_bucket else {}
        found = tuple(
            (buckets[bucket_id], bucket_id, tuple(names))
            for bucket_id, names in by_bucket.items()
            if bucket_id in buckets  # if it is gone they are with it: ids are never used again
        )
        objects = tuple(_named(*each) for each in found)
        reached = changed.marks.marks
        following = _following(since, dict(reached))
        return ChangedObjects(tuple(chain(*objects)), following, changed.more, False, since, reached, found)

    async def changed_versions(self, changed: ChangedObjects) -> ChangedVersions:
        """What these objects are now; see :meth:`objmeta.AsyncClient.changed_versions`."""
        if changed.since is None:
            return ChangedVersions((), (), changed.cursor, changed.more, changed.reload)
        reached = dict(changed.reached)
        objects: list[tuple[str, str]] = []
        pages: list[EncodedVersions] = []
        for bucket, bucket_id, names in changed.registers:
            found = await self._look_at(bucket, bucket_id, names, reached)
            if found is not None:
                objects += _named(bucket, bucket_id, names)
                pages += found
        return ChangedVersions(tuple(objects), tuple(pages), _following(changed.since, reached), changed.more)

    async def load(self, bucket: Bucket, cursor: str, continuation: bytes | None, limit: int) -> LoadedPage:
        """All versions of at most ``limit`` objects of a bucket. Raises NoSuchBucket once it is gone, NoQuorum."""
        marks = _decoded(cursor)
        base = object_prefix(bucket.bucket_id)
        request = ScanRequest(
            base + (continuation or b""),
            successor(base),
            min(max(1, limit), LIMIT_MAX),
            with_records=True,
            covering=tuple(acceptor for acceptor, _ in marks.marks),
        )
        page = await self._page(bucket.name, bucket.bucket_id, request)
        left = tuple((acceptor, number) for acceptor, number in marks.marks if acceptor in page.covering)
        return LoadedPage(
            EncodedVersions(bucket.name, len(base), page.rows, page.records),
            page.next[len(base) :] if page.next else None,
            _encoded(Watermarks(marks.store_id, marks.epoch, left)),
        )

    async def _look_at(
        self, bucket: str, bucket_id: bytes, names: Sequence[bytes], reached: dict[int, int]
    ) -> list[EncodedVersions] | None:
        """What is left of these objects; None if their bucket is gone, and they with it: ids are never used again.

        Takes those out of ``reached`` that did not answer.
        """
        base = len(object_prefix(bucket_id))
        found: list[EncodedVersions] = []
        at = 0
        while at < len(names):
            some = tuple(names[at : at + _NAMES_A_SCAN])
            request = ScanRequest(
                some[0], limit=len(some), with_records=True, names=some, covering=tuple(sorted(reached))
            )
            try:
                page = await self._page(bucket, bucket_id, request)
            except NoSuchBucket:
                return None
            for acceptor in reached.keys() - set(page.covering):
                del reached[acceptor]
            found.append(EncodedVersions(bucket, base, page.rows, page.records))
            at += _before(some, page.next)
        return found

    async def _page(self, bucket: str, bucket_id: bytes, request: ScanRequest) -> ScanPage:
        async def ask(head: BucketHead) -> ScanPage:
            if head.bucket_id != bucket_id:
                raise NoSuchBucket(f"bucket {bucket!r} was removed")
            stated = msgspec.structs.replace(request, fence=fence(head))
            return await self._buckets.intents.scan(stated)

        return await self._buckets.under_term(bucket, ask)


def _objects(page: EncodedVersions) -> Iterator[ChangedObject]:
    for key, history in page.histories():
        versions = () if history.state.flag == TOMBSTONE else history.public(page.bucket, key)
        yield ChangedObject(page.bucket, key, tuple(versions), tuple(history.public_removals(page.bucket, key)))


def _named(bucket: str, bucket_id: bytes, names: Sequence[bytes]) -> list[tuple[str, str]]:
    base = len(object_prefix(bucket_id))
    return [(bucket, name[base:].decode()) for name in names]


def _following(since: Watermarks, reached: dict[int, int]) -> str:
    marks = dict(since.marks) | reached
    return _encoded(Watermarks(since.store_id, since.epoch, tuple(sorted(marks.items()))))


def _before(names: Sequence[bytes], horizon: bytes) -> int:
    """How many of the names a page has answered for."""
    return len(names) if not horizon else sum(name < horizon for name in names)


def _encoded(marks: Watermarks) -> str:
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(_Cursor(_FORMAT, marks))).decode()


def _decoded(cursor: str) -> Watermarks:
    try:
        decoded = msgspec.msgpack.decode(base64.urlsafe_b64decode(cursor.encode()), type=_Cursor)
    except (binascii.Error, ValueError, msgspec.MsgspecError, AttributeError):
        decoded = None
    if decoded is None or decoded.format != _FORMAT:
        raise InvalidArgument(f"{cursor!r} is not a cursor of a change feed; begin anew without one")
    return decoded.watermarks
