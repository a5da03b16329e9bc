"""A store as it was at some time: time travel, read only.

An object is there as its newest version that was committed at that time or before; if that is a delete marker, or there
is none, it is not there.  A bucket that was made later does not exist.  This is exact for each object, whose versions
have times that only grow; across objects it is as good as the clocks of those who wrote them.

What is gone cannot be shown: a version that was removed for good (by its id, or by a rule of its bucket) is as if it
had never been, and so is a bucket that was removed, with all it held.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import msgspec

from objmeta import AsyncClient, Bucket, ObjectPage, ObjectSummary, ObjectVersion, VersionPage, errors

if TYPE_CHECKING:
    from objmeta.client import StoreStatus

AHEAD_S_MAX: Final = 60.0
"""How far ahead of this machine's clock a time may be: others' clocks may be, and so may what they wrote."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_PAGE_OBJECTS_MIN: Final = 100
_PAGE_OBJECTS_MAX: Final = 1000
_EPOCH_SECONDS: Final = re.compile(r"\d{9,}(?:\.\d*)?")
"""Fewer digits are no time of this century; eight are a date."""
_RELATIVE: Final = re.compile(
    r"(\d+(?:\.\d+)?)\s*(s(?:ec(?:ond)?s?)?|m(?:in(?:ute)?s?)?|h(?:ours?)?|d(?:ays?)?|w(?:eeks?)?)(?:\s+ago)?"
)
_T = TypeVar("_T")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


class ReadOnly(errors.InvalidArgument):
    """What was cannot be changed."""

    kind = "read_only"


# -- Times ------------------------------------------------------------------------------------------------------------


def parse_time(given: str | float | datetime, *, now: datetime | None = None) -> datetime:
    """Read a time: ISO 8601 (``2026-11-26T10:00:00+01:00``, ``2026-11-26``), a datetime, or seconds since the epoch.

    Without an offset it is UTC, as all times are that objmeta shows.  With ``now`` also relative to that: ``90m``, ``2h
    ago``, ``5 minutes ago``, ``3d``.  Raises InvalidArgument, also for a time that has not come yet.
    """
    found = _read(given, now)
    if found is None:
        more = ", or like '2h ago'" if now is not None else ""
        raise errors.InvalidArgument(
            f"{given!r} is not a time: give ISO 8601 such as 2026-11-26T10:00:00Z, or seconds since the epoch{more}"
        )
    if (found - (now or datetime.now(UTC))).total_seconds() > AHEAD_S_MAX:
        raise errors.InvalidArgument(f"{found.isoformat()} has not come yet (without an offset a time is UTC)")
    return found


def _read(given: Any, now: datetime | None) -> datetime | None:
    try:
        if isinstance(given, datetime):
            plain = datetime.fromisoformat(given.isoformat())  # pandas' may be finer, or no time at all (NaT)
            return plain.astimezone(UTC) if plain.tzinfo else plain.replace(tzinfo=UTC)
        if isinstance(given, int | float) and not isinstance(given, bool):
            return _EPOCH + timedelta(seconds=given)
        text = given.strip() if isinstance(given, str) else ""
        if _EPOCH_SECONDS.fullmatch(text):
            return _EPOCH + timedelta(seconds=float(text))
        if now is not None and (relative := _RELATIVE.fullmatch(text)):
            return now - timedelta(seconds=float(relative[1]) * _SECONDS[relative[2][0]])
        return _read(datetime.fromisoformat(text), now)
    except (ValueError, OverflowError):
        return None


# -- The client -------------------------------------------------------------------------------------------------------


class Past(AsyncClient):
    """What a client answers as of ``then``; whatever would change something, or has no past, raises ReadOnly."""

    def __init__(self, present: AsyncClient, then: datetime) -> None:
        self._present = present
        self.then = then
        self._then_us = (then - _EPOCH) // timedelta(microseconds=1)
        self.location = present.location

    @property
    def timeout_s(self) -> float:
        """As of the client that is asked."""
        return self._present.timeout_s

    @property
    def epoch(self) -> int:
        """As it is now."""
        return self._present.epoch

    async def status(self) -> StoreStatus:
        """As it is now."""
        return await self._present.status()

    async def close(self) -> None:
        """Close the client that is asked."""
        await self._present.close()

    # -- Buckets and objects ------------------------------------------------------------------------------------------

    async def bucket(self, name: str) -> Bucket:
        """Look a bucket up. Raises NoSuchBucket."""
        found = await self._present.bucket(name)
        if found.created_us > self._then_us:
            raise errors.NoSuchBucket(
                f"bucket {name!r} does not exist as of {self.then.isoformat()}: it was made later"
            )
        return found

    async def buckets(self) -> list[Bucket]:
        """All buckets, by name."""
        return [each for each in await self._present.buckets() if each.created_us <= self._then_us]

    async def versions(self, bucket: str, key: str) -> list[ObjectVersion]:
        """All versions there were, newest first. Raises NoSuchBucket, NoSuchKey."""
        _, found = await asyncio.gather(self.bucket(bucket), self._present.versions(bucket, key))
        versions = self._there(found)
        if not versions:
            raise self._missing(bucket, key)
        return versions

    async def head_object(self, bucket: str, key: str) -> ObjectSummary:
        """The version that was current. Raises NoSuchBucket, NoSuchKey."""
        return await self._current(bucket, key, self._present.head_object)

    async def get_object(
        self, bucket: str, key: str, *, version_id: str | None = None, with_data: bool = True
    ) -> ObjectVersion:
        """One version that there was, with its manifest. Raises NoSuchBucket, NoSuchKey, NoSuchVersion."""
        if version_id is None:

            async def now(bucket: str, key: str) -> ObjectVersion:
                return await self._present.get_object(bucket, key, with_data=with_data)

            there = await self._current(bucket, key, now)
            assert isinstance(there, ObjectVersion), "whole versions were asked for"
        else:
            there = await self._version(bucket, key, version_id)
        if not with_data or not there.is_inline or there.data is not None:
            return there
        found = await self._present.get_object(bucket, key, version_id=there.version_id)
        return msgspec.structs.replace(found, is_latest=there.is_latest)

    async def _version(self, bucket: str, key: str, version_id: str) -> ObjectVersion:
        for each in await self.versions(bucket, key):
            if each.version_id == version_id:
                return each
        raise errors.NoSuchVersion(
            f"object {key!r} in bucket {bucket!r} has no version {version_id} as of {self.then.isoformat()}"
        )

    async def _current(
        self, bucket: str, key: str, now: Callable[[str, str], Awaitable[ObjectSummary]]
    ) -> ObjectVersion | ObjectSummary:
        """What was current: what is current, if it was already, else found in the history."""
        _, found = await asyncio.gather(self.bucket(bucket), _or_none(now(bucket, key)))
        if found is not None and found.modified_us <= self._then_us:
            return found
        newest = (await self.versions(bucket, key))[0]
        if newest.is_delete_marker:
            raise self._missing(bucket, key)
        return newest

    def _there(self, history: Sequence[ObjectVersion]) -> list[ObjectVersion]:
        """Of all versions of an object those that there were, newest first."""
        there = [each for each in history if each.modified_us <= self._then_us]
        return [msgspec.structs.replace(each, is_latest=not index) for index, each in enumerate(there)]

    def _missing(self, bucket: str, key: str) -> errors.NoSuchKey:
        return errors.NoSuchKey(f"object {key!r} does not exist in bucket {bucket!r} as of {self.then.isoformat()}")

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
        """One page of the objects that there were to see. Raises NoSuchBucket.

        The histories of all objects in the range are read, but none below a common prefix after it was found.
        """
        if limit < 1:
            raise errors.InvalidArgument(f"a page's limit must be at least 1, not {limit}")
        await self.bucket(bucket)
        objects: list[ObjectSummary] = []
        prefixes: list[str] = []
        start = max(prefix, start) if continuation is None else max(start, _decoded(continuation))
        token: str | None = None
        at_a_time = min(max(limit, _PAGE_OBJECTS_MIN), _PAGE_OBJECTS_MAX)
        while True:
            page = await self._present.list_versions(bucket, prefix, start=start, continuation=token, limit=at_a_time)
            for version in self._visible(page.versions):
                if version.key < start:
                    continue
                cut = version.key.find(delimiter, len(prefix)) if delimiter else -1
                if cut >= 0:
                    common = version.key[: cut + len(delimiter)]
                    prefixes.append(common)
                    start = _above(common)
                else:
                    objects.append(_summary(version))
                    start = version.key + "\0"
                if len(objects) + len(prefixes) == limit:
                    return ObjectPage(tuple(objects), tuple(prefixes), _encoded(start))
            token = page.continuation
            if token is None:
                return ObjectPage(tuple(objects), tuple(prefixes), None)

    async def list_versions(
        self, bucket: str, prefix: str = "", *, start: str = "", continuation: str | None = None, limit: int = 1000
    ) -> VersionPage:
        """One page of all versions that there were of at most ``limit`` objects. Raises NoSuchBucket."""
        await self.bucket(bucket)
        page = await self._present.list_versions(bucket, prefix, start=start, continuation=continuation, limit=limit)
        return VersionPage(
            tuple(each for history in self._histories(page.versions) for each in history), page.continuation
        )

    def _histories(self, versions: Sequence[ObjectVersion]) -> Iterator[list[ObjectVersion]]:
        for _, history in groupby(versions, key=lambda each: each.key):
            if there := self._there(list(history)):
                yield there

    def _visible(self, versions: Sequence[ObjectVersion]) -> Iterator[ObjectVersion]:
        for history in self._histories(versions):
            if not history[0].is_delete_marker:
                yield history[0]

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise ReadOnly(f"this is the store as it was at {self.then.isoformat()}: it can only be read")


async def _or_none(asking: Awaitable[_T]) -> _T | None:
    try:
        return await asking
    except errors.NoSuchKey:
        return None


def _summary(version: ObjectVersion) -> ObjectSummary:
    return ObjectSummary(**{field: getattr(version, field) for field in ObjectSummary.__struct_fields__})


def _above(prefix: str) -> str:
    """The least text above everything that begins with ``prefix``, in the order of its UTF-8."""
    code = ord(prefix[-1]) + 1
    return prefix[:-1] + chr(code if code != 0xD800 else 0xE000)


def _encoded(start: str) -> str:
    return base64.urlsafe_b64encode(start.encode()).decode()


def _decoded(token: str) -> str:
    try:
        return base64.b64decode(token.encode(), b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise errors.InvalidArgument(f"{token!r} is not a continuation token of a listing") from None


# What is not answered above is refused: changes, and what has no history, such as plain registers.
for _name, _member in vars(AsyncClient).items():
    if not _name.startswith("_") and _name not in vars(Past) and _name != "iter_objects":
        setattr(Past, _name, Past._refuse)
