"""What the file system's paths name, and the entries (``info`` dictionaries) it answers with.

A path is ``bucket/key``.  A version is pinned at its end by ``?versionId=<id>`` (as s3fs writes it) or ``#<id>`` (as
gcsfs does), where ``<id>`` has 32 hexadecimal digits; every other ``?``, ``#``, ``%``, ``*`` or ``[`` is part of
the key, and with ``version_aware=False`` these are as well.  A key that ends with ``/`` is the marker of a directory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from objmeta import Bucket, ObjectSummary, ObjectVersion

DIRECTORY_TYPE: Final = "application/x-directory"
VERSION_MARK: Final = "?versionId="

_VERSION: Final = re.compile(r"(?:\?versionId=|#)([0-9a-f]{32})\Z")

Entry = dict[str, Any]
"""What ``info`` gives: always name, size (bytes) and type ("file" or "directory"); times in seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Name:
    """What a path names: everything ("" and ""), a bucket (key ""), or an object or directory in it."""

    bucket: str
    key: str
    version_id: str | None = None

    @property
    def path(self) -> str:
        """The path without a version."""
        return f"{self.bucket}/{self.key}" if self.key else self.bucket

    @property
    def prefix(self) -> str:
        """What the keys under this directory begin with."""
        return f"{self.key}/" if self.key else ""


def parse(stripped: str, version_id: str | None = None, version_aware: bool = True) -> Name:
    """Read a path without protocol; an explicit ``version_id`` goes before one in the path.

    Unless ``version_aware`` all of the path is bucket and key.
    """
    bucket, _, key = stripped.partition("/")
    pinned = _VERSION.search(key) if version_aware else None
    if pinned is not None:
        key = key[: pinned.start()]
        version_id = version_id or pinned[1]
    return Name(bucket, key, version_id)


def is_pinned(stripped: str) -> bool:
    """Whether a path names a version."""
    return _VERSION.search(stripped.partition("/")[2]) is not None


def directory(path: str, mtime: float | None = None) -> Entry:
    """The entry of a directory; ``mtime`` if it has a marker."""
    entry: Entry = {"name": path, "size": 0, "type": "directory"}
    return entry if mtime is None else {**entry, "mtime": mtime}


def bucket_entry(bucket: Bucket) -> Entry:
    """The entry of a bucket."""
    seconds = bucket.created_us / 1e6
    return {**directory(bucket.name, seconds), "created": seconds}


def file_entry(found: ObjectSummary) -> Entry:
    """The entry of one version of an object; of a whole version it says more than of a listing's summary.

    A version is made once and never changes, so ``created`` and ``mtime`` are the same.  Some things have two names:
    ours, and those under which s3fs has them.
    """
    seconds = found.modified_us / 1e6
    entry: Entry = {
        "name": f"{found.bucket}/{found.key}",
        "size": found.size,
        "type": "file",
        "etag": found.etag,
        "ETag": found.etag,
        "version_id": found.version_id,
        "VersionId": found.version_id,
        "sequence": found.sequence,
        "mtime": seconds,
        "created": seconds,
        "LastModified": found.modified,
    }
    if isinstance(found, ObjectVersion):
        entry |= {
            "is_latest": found.is_latest,
            "content_type": found.content_type,
            "metadata": dict(found.metadata),
        }
    return entry


def version_entry(found: ObjectVersion) -> Entry:
    """The entry of one of several versions. Its name opens it, but for a delete marker, which has no content."""
    entry = file_entry(found)
    return {
        **entry,
        "name": f"{entry['name']}{VERSION_MARK}{found.version_id}",
        "is_delete_marker": found.is_delete_marker,
        "IsDeleteMarker": found.is_delete_marker,
        "parent_version_id": found.parent_version_id,
    }


def implied_directories(key: str, base: int) -> list[str]:
    """The directories that a key implies below its first ``base`` characters, shortest first, without trailing slash.

    An empty segment (``a//b``) names no directory: it has no name of its own that a path could say.
    """
    found = []
    slash = key.find("/", base)
    while slash >= 0:
        if slash > base and key[slash - 1] != "/":
            found.append(key[:slash])
        slash = key.find("/", slash + 1)
    return found


def outermost(names: Iterable[Name]) -> list[Name]:
    """Those of the names that are not below another of them."""
    found: list[Name] = []
    for name in sorted(names, key=lambda name: f"{name.path}/"):
        if not found or not f"{name.path}/".startswith(f"{found[-1].path}/"):
            found.append(name)
    return found
