"""What the object operations give back: immutable values for people and programs."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from objmeta.model.values import BucketSettings, Chunk

_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


class Bucket(msgspec.Struct, frozen=True):
    """A bucket. ``bucket_id`` (16 bytes) is never reused, also when the name is."""

    name: str
    bucket_id: bytes
    term: int
    created_us: int
    settings: BucketSettings = BucketSettings()

    @property
    def created(self) -> datetime.datetime:
        """When it was made, in UTC."""
        return _EPOCH + datetime.timedelta(microseconds=self.created_us)


class ObjectSummary(msgspec.Struct, frozen=True):
    """What a listing shows of one version of an object.

    ``version_id`` is 32 hexadecimal digits, ``etag`` the BLAKE3 of the content in hexadecimal, ``size`` in bytes.
    """

    bucket: str
    key: str
    version_id: str
    sequence: int
    size: int
    etag: str
    modified_us: int
    is_delete_marker: bool = False

    @property
    def modified(self) -> datetime.datetime:
        """When this version was committed, in UTC (for people; order comes from ``sequence``)."""
        return _EPOCH + datetime.timedelta(microseconds=self.modified_us)


class ObjectVersion(ObjectSummary, frozen=True, kw_only=True):
    """All of one version.

    Content is either inline in the record (``is_inline``; ``data`` holds it if it was asked for) or in ``chunks``, in
    order; where these are very many, ``chunks`` is empty and ``lists`` are chunks that hold them (see
    :class:`objmeta.Manifest`).  ``parent_version_id`` names the version that was current before this one, even if that
    was removed since.
    """

    is_latest: bool = True
    content_type: str = ""
    metadata: dict[str, str] = {}
    chunks: tuple[Chunk, ...] = ()
    data: bytes | None = None
    parent_version_id: str | None = None
    lists: tuple[Chunk, ...] = ()

    @property
    def is_inline(self) -> bool:
        """Whether the record itself holds the content."""
        return not (self.chunks or self.lists or self.is_delete_marker)


class PutObject(msgspec.Struct, frozen=True):
    """A version to commit together with other changes; what its fields say is in :meth:`AsyncClient.put_object`."""

    bucket: str
    key: str
    data: bytes | None = None
    chunks: Sequence[Chunk] = ()
    lists: Sequence[Chunk] = ()
    size: int | None = None
    etag: str | None = None
    content_type: str = ""
    metadata: Mapping[str, str] = {}
    if_absent: bool = False
    if_version: str | None = None


class DeleteObject(msgspec.Struct, frozen=True):
    """An object to hide behind a delete marker together with other changes; see :meth:`AsyncClient.delete_object`."""

    bucket: str
    key: str
    if_version: str | None = None


class ObjectPage(msgspec.Struct, frozen=True):
    """One page of a listing: objects and common prefixes in order; ``continuation`` None when it is the last."""

    objects: tuple[ObjectSummary, ...]
    prefixes: tuple[str, ...]
    continuation: str | None


class VersionPage(msgspec.Struct, frozen=True):
    """One page of a version listing: of each object newest first, delete markers included."""

    versions: tuple[ObjectVersion, ...]
    continuation: str | None


class RemovedVersion(msgspec.Struct, frozen=True):
    """A version that was removed for good; ``version`` is what it was, None where nobody knows that any more.

    ``sequence`` is the place of the removal in the object's history, and ``removed_us`` when its caller began it, in
    microseconds since the epoch (to the millisecond, by the caller's clock).
    """

    version_id: str
    sequence: int
    removed_us: int
    version: ObjectVersion | None = None


class ChangedObject(msgspec.Struct, frozen=True):
    """An object in which something has changed: all versions it has now, newest first, delete markers included.

    ``versions`` is empty when nothing is left of it.  ``removals`` are those that are known, newest first.
    """

    bucket: str
    key: str
    versions: tuple[ObjectVersion, ...]
    removals: tuple[RemovedVersion, ...] = ()


class ChangePage(msgspec.Struct, frozen=True):
    """What has changed since the cursor that was given (see :meth:`objmeta.AsyncClient.changes`).

    ``cursor`` is where to go on; with ``more`` there is more to be had at once.  ``reload``: what has changed since is
    not known any more, so whoever keeps something must read it anew.
    """

    objects: tuple[ChangedObject, ...]
    cursor: str
    more: bool = False
    reload: bool = False


class KeyValue(msgspec.Struct, frozen=True):
    """A plain register: its value and the id of the operation that wrote it (32 hexadecimal digits)."""

    key: bytes
    value: bytes
    version_id: str
    sequence: int
