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
        found = await self.changed_versions(cursor, limit)
        there = {(each.bucket, each.key): each for page in found.pages for each in _objects(page)}
        objects = tuple(there.get(name) or ChangedObject(*name, ()) for name in found.objects)
        return ChangePage(objects, found.cursor, found.more, found.reload)

    async def changed_versions(self, cursor: str | None, limit: int) -> ChangedVersions:
        """The same, undecoded; see :meth:`objmeta.AsyncClient.changed_versions`."""
        if limit < 1:
            raise InvalidArgument(f"a page's limit must be at least 1, not {limit}")
        since = None if cursor is None else _decoded(cursor)
        registers, timeout_s = self._context.registers, self._context.timeout_s
        changed = await registers.changes(since, min(limit, LIMIT_MAX), timeout_s)
        if changed.reload or since is None:
            return ChangedVersions((), (), _encoded(changed.marks), reload=True)
        reached = dict(changed.marks.marks)
        objects: list[tuple[str, str]] = []
        pages: list[EncodedVersions] = []
        named = [name for name in changed.names if name.startswith(OBJECTS)]
        if named:
            by_bucket: dict[bytes, list[bytes]] = {}
            for name in named:
                by_bucket.setdefault(name[len(OBJECTS) : len(OBJECTS) + BUCKET_ID_BYTES], []).append(name)
            buckets = {bucket.bucket_id: bucket.name for bucket in await self._buckets.list()}
            for bucket_id, names in by_bucket.items():
                bucket = buckets.get(bucket_id)
                found = await self._look_at(bucket, bucket_id, names, reached) if bucket is not None else None
                if bucket is not None and found is not None:
                    base = len(object_prefix(bucket_id))
                    objects += ((bucket, name[base:].decode()) for name in names)
                    pages += found
        marks = dict(since.marks) | reached
        following = Watermarks(since.store_id, since.epoch, tuple(sorted(marks.items())))
        return ChangedVersions(tuple(objects), tuple(pages), _encoded(following), changed.more)

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
