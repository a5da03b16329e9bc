"""Listings of objects and versions: pages of decided registers, shown as S3 shows them.

Nothing here is an index: every page comes from a quorum's registers (core.listing), so a change that finished before
the listing began is in it, through whichever node.
"""

from __future__ import annotations

import base64
import binascii
from collections import defaultdict

from objmeta.core.listing import (
    NamedRecord,
    ScanRequest,
    common_prefix,
    decode_records,
    decode_rows,
    successor,
)
from objmeta.core.messages import LIVE, TOMBSTONE, Record, RecordRef
from objmeta.errors import InvalidArgument, NoSuchBucket
from objmeta.interfaces import ScanPage
from objmeta.model.names import object_prefix
from objmeta.model.values import BucketHead, Head, decode_value
from objmeta.objects.buckets import Buckets, fence
from objmeta.objects.history import walk
from objmeta.objects.types import ObjectPage, ObjectSummary, ObjectVersion, VersionPage

LIMIT_MAX = 5000


class Listings:
    """Pages of a bucket."""

    def __init__(self, buckets: Buckets) -> None:
        self._buckets = buckets

    async def objects(
        self, bucket: str, prefix: str, delimiter: str, continuation: str | None, limit: int, begin: str = ""
    ) -> ObjectPage:
        """Current, visible objects whose keys begin with ``prefix``, from ``begin`` on."""
        limit = _checked_limit(limit)
        base = object_prefix((await self._buckets.look_up(bucket)).bucket_id)
        objects: list[ObjectSummary] = []
        prefixes: list[str] = []
        first = base + _start(prefix, continuation, begin)
        if (end := successor(base + prefix.encode())) and first >= end:
            return ObjectPage((), (), None)
        start: bytes | None = first
        while start is not None and len(objects) + len(prefixes) < limit:
            page = await self._page(bucket, base, start, prefix, delimiter, limit - len(objects) - len(prefixes), False)
            for row in decode_rows(page.rows):
                if row.state.flag != LIVE:
                    continue
                if row.witness:
                    shown = common_prefix(row.name, delimiter.encode(), len(base) + len(prefix.encode()))
                    assert shown is not None, "a witness stands for a common prefix"
                    prefixes.append(shown[len(base) :].decode())
                    continue
                head = decode_value(row.state.value)
                assert isinstance(head, Head)
                assert head.current is not None, "a live object has a current version"
                version = head.current
                objects.append(
                    ObjectSummary(
                        bucket,
                        row.name[len(base) :].decode(),
                        version.ref.version_id.hex(),
                        version.ref.sequence,
                        version.size,
                        version.etag.hex(),
                        version.modified_us,
                    )
                )
            start = page.next or None
        return ObjectPage(tuple(objects), tuple(prefixes), _token(start, base))

    async def versions(
        self, bucket: str, prefix: str, continuation: str | None, limit: int, begin: str = ""
    ) -> VersionPage:
        """All versions of the objects whose keys begin with ``prefix``, from ``begin`` on; ``limit`` counts objects."""
        base = object_prefix((await self._buckets.look_up(bucket)).bucket_id)
        start = base + _start(prefix, continuation, begin)
        if start >= (end := successor(base + prefix.encode())) and end:
            return VersionPage((), None)
        page = await self._page(bucket, base, start, prefix, "", _checked_limit(limit), True)
        records: defaultdict[bytes, dict[RecordRef, Record]] = defaultdict(dict)
        named: NamedRecord
        for named in decode_records(page.records):
            records[named.name][named.record.ref] = named.record
        versions: list[ObjectVersion] = []
        for row in decode_rows(page.rows):
            if row.state.flag != TOMBSTONE:
                history = walk(row.state, records[row.name])
                versions.extend(history.public(bucket, row.name[len(base) :].decode()))
        return VersionPage(tuple(versions), _token(page.next or None, base))

    async def _page(
        self, bucket: str, base: bytes, start: bytes, prefix: str, delimiter: str, limit: int, with_records: bool
    ) -> ScanPage:
        async def ask(head: BucketHead) -> ScanPage:
            if object_prefix(head.bucket_id) != base:
                raise NoSuchBucket(f"bucket {bucket!r} was removed while it was listed")
            whole = base + prefix.encode()
            stated = fence(head)
            request = ScanRequest(
                start, successor(whole), limit, delimiter.encode(), len(whole), with_records, fence=stated
            )
            return await self._buckets.intents.scan(request)

        return await self._buckets.under_term(bucket, ask)


def _checked_limit(limit: int) -> int:
    if limit < 1:
        raise InvalidArgument(f"a page's limit must be at least 1, not {limit}")
    return min(limit, LIMIT_MAX)


def _start(prefix: str, continuation: str | None, begin: str) -> bytes:
    try:
        earliest = max(prefix.encode(), begin.encode())
    except UnicodeEncodeError:
        raise InvalidArgument(
            f"prefix {prefix + begin!r} is not valid Unicode and cannot be written as UTF-8, so no key has it"
        ) from None
    if continuation is None:
        return earliest
    try:
        return max(base64.urlsafe_b64decode(continuation.encode()), earliest)
    except (binascii.Error, ValueError):
        raise InvalidArgument(f"{continuation!r} is not a continuation token of a listing") from None


def _token(start: bytes | None, base: bytes) -> str | None:
    return None if start is None else base64.urlsafe_b64encode(start[len(base) :]).decode()
