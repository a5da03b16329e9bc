"""Retention: versions that the rules of their bucket let go are removed for good.

The rules are a bucket's settings (:class:`objmeta.BucketSettings`).  Of one object, its versions newest first:

* ``keep_versions`` lets a version go that has that many, or more, between it and the current one;
* ``keep_days`` lets one go when that many days have passed since the next newer one of those that there are was
  written.  With both given both must let it go; the current version always stays;
* ``expire_delete_markers`` lets a delete marker go when it is all that is left.

What goes is decided again in the very change that removes it, on all versions of the object as they are then.  So a
version that became current meanwhile stays, and a writer who races loses nothing.  Any number of runs may work at once.

Days are counted by this machine's clock from times that other machines wrote: what is removed early or late by them is
what their clocks are wrong by.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Final

import msgspec

from objmeta import AsyncClient, Bucket, BucketSettings, ObjectVersion, errors

REMOVED_PER_S_MAX: Final = 200.0
"""Removals a second: a small part of what a store can do, so that work in the foreground is not held up."""
_PAGE_OBJECTS: Final = 500
_DAY_US: Final = 86_400_000_000


class Retained(msgspec.Struct):
    """What a run came to: versions removed, the bytes of their contents, and what failed, in words (the last of it)."""

    removed: int = 0
    removed_bytes: int = 0
    failed: int = 0
    problem: str = ""


def due(settings: BucketSettings, versions: Sequence[ObjectVersion], now_us: int) -> list[ObjectVersion]:
    """Those of all ``versions`` of an object, newest first, that may go at ``now_us``; in the order to remove them."""
    if not versions:
        return []
    going = [
        version
        for place, (newer, version) in enumerate(itertools.pairwise(versions))
        if _may_go(settings, place, newer, version, now_us)
    ]
    going.reverse()  # the oldest first: what is left is always a history that was
    left = [version for version in versions if version not in going]
    if settings.expire_delete_markers and len(left) == 1 and left[0].is_delete_marker:
        going += left
    return going


def _may_go(settings: BucketSettings, place: int, newer: ObjectVersion, version: ObjectVersion, now_us: int) -> bool:
    """Whether a version may go that has ``place`` others between it and the current one."""
    if version.is_latest or not (settings.keep_versions or settings.keep_days):
        return False
    by_count = not settings.keep_versions or place >= settings.keep_versions
    by_days = not settings.keep_days or now_us - newer.modified_us > settings.keep_days * _DAY_US
    return by_count and by_days


class Retention:
    """Applies the rules of all buckets of a store, at a bounded rate; belongs to the client's event loop."""

    def __init__(
        self,
        client: AsyncClient,
        *,
        removed_per_s_max: float = REMOVED_PER_S_MAX,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._client = client
        self._pause_s = 1 / removed_per_s_max
        self._now_us = now_us

    async def plan(self) -> AsyncGenerator[ObjectVersion, None]:
        """What would be removed now, bucket by bucket and object by object. Raises what reading the store raises."""
        for bucket in await self._client.buckets():
            if _has_rules(bucket.settings):
                async with aclosing(self._plan_of(bucket)) as planned:
                    async for version in planned:
                        yield version

    async def apply(self, retained: Retained | None = None) -> Retained:
        """Remove what may go. What fails for one object is left to the next run; raises when nothing can be read.

        ``retained`` is where it counts, for whoever wants to see that meanwhile.
        """
        retained = Retained() if retained is None else retained
        async with aclosing(self.plan()) as planned:
            async for version in planned:
                began_s = time.monotonic()
                try:
                    await self._remove(version)
                except (errors.NotFound, errors.PreconditionFailed):
                    continue  # it is gone already, or may stay after all
                except (errors.Unavailable, errors.IntegrityError) as failure:
                    retained.failed += 1
                    retained.problem = str(failure)
                else:
                    retained.removed += 1
                    retained.removed_bytes += version.size
                await asyncio.sleep(max(0.0, self._pause_s - (time.monotonic() - began_s)))
        return retained

    async def _plan_of(self, bucket: Bucket) -> AsyncGenerator[ObjectVersion, None]:
        continuation: str | None = None
        while True:
            try:
                page = await self._client.list_versions(bucket.name, continuation=continuation, limit=_PAGE_OBJECTS)
            except errors.NoSuchBucket:
                return  # removed meanwhile
            for versions in _by_object(page.versions):
                for version in due(bucket.settings, versions, self._now_us()):
                    yield version
            continuation = page.continuation
            if continuation is None:
                return

    async def _remove(self, version: ObjectVersion) -> None:
        """Remove one if its bucket's rules still let it go. Raises PreconditionFailed, NotFound, Unavailable."""
        settings = (await self._client.bucket(version.bucket)).settings

        def may_go(versions: Sequence[ObjectVersion]) -> bool:
            return any(each.version_id == version.version_id for each in due(settings, versions, self._now_us()))

        await self._client.remove_version(version.bucket, version.key, version.version_id, only_if=may_go)


def _has_rules(settings: BucketSettings) -> bool:
    return bool(settings.keep_versions or settings.keep_days or settings.expire_delete_markers)


def _by_object(versions: Sequence[ObjectVersion]) -> list[list[ObjectVersion]]:
    """The versions of a page, those of one object together, as they come."""
    objects: list[list[ObjectVersion]] = []
    for version in versions:
        if not objects or objects[-1][0].key != version.key:
            objects.append([])
        objects[-1].append(version)
    return objects
