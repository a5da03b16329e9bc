"""Versions column by column: for whoever loads very many, and for whom a struct for each would cost too much."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from objmeta.core.listing import ScanRow, decode_records, decode_rows
from objmeta.core.messages import TOMBSTONE, Record
from objmeta.model.values import Chunk
from objmeta.objects.history import History, by_ref, walk
from objmeta.objects.types import ObjectVersion, RemovedVersion

if TYPE_CHECKING:
    from objmeta import vectors


class VersionColumns(msgspec.Struct):
    """The fields of :class:`objmeta.ObjectVersion`, each as a list with one item for each version.

    Ids and digests are bytes here (``version_id``, ``parent_version_id``: 16, ``etag``: 32), where that has them in
    hex, since a whole column is turned into text sooner than one after another.  ``parent_version_id`` is None, and
    ``etag`` empty, where there is none.  The versions of an object follow one another, newest first.  Of ``removals``,
    which are rare, each comes with its object's key.
    """

    bucket: str
    key: list[str] = []
    version_id: list[bytes] = []
    sequence: list[int] = []
    is_latest: list[bool] = []
    is_delete_marker: list[bool] = []
    size: list[int] = []
    etag: list[bytes] = []
    content_type: list[str] = []
    modified_us: list[int] = []
    metadata: list[dict[str, str]] = []
    parent_version_id: list[bytes | None] = []
    chunks: list[tuple[Chunk, ...]] = []
    lists: list[tuple[Chunk, ...]] = []
    removals: list[tuple[str, RemovedVersion]] = []

    def add(self, version: ObjectVersion) -> None:
        """One more version."""
        self.key.append(version.key)
        self.version_id.append(bytes.fromhex(version.version_id))
        self.sequence.append(version.sequence)
        self.is_latest.append(version.is_latest)
        self.is_delete_marker.append(version.is_delete_marker)
        self.size.append(version.size)
        self.etag.append(bytes.fromhex(version.etag))
        self.content_type.append(version.content_type)
        self.modified_us.append(version.modified_us)
        self.metadata.append(version.metadata)
        parent = version.parent_version_id
        self.parent_version_id.append(None if parent is None else bytes.fromhex(parent))
        self.chunks.append(version.chunks)
        self.lists.append(version.lists)

    def __len__(self) -> int:
        return len(self.key)


@dataclass(frozen=True, slots=True)
class VersionArrays:
    """The same in arrays of numpy, for the versions of *plain* objects; the rest is in ``others``, as lists.

    An object is plain if what is held of it is its chain, nothing of that was removed, and no version of it has lists
    of chunks or very many chunks.  ``object`` says for each version which of the ``keys`` is its own, and ``columns``
    are those of the manifests (``etag``, ``chunks``, …) by the names of their fields.
    """

    bucket: str
    keys: vectors.Spans
    object: vectors.Numbers
    is_latest: vectors.Flags
    sequence: vectors.Numbers
    version_id: vectors.Spans
    columns: dict[str, Any]
    others: VersionColumns


class EncodedVersions(msgspec.Struct, frozen=True, array_like=True):
    """Versions as they were read; taking them apart is work that another process may do (it goes through MessagePack).

    The names of registers have ``base`` bytes before the key.  Rows and records are in order of name.
    """

    bucket: str
    base: int
    rows: bytes
    records: bytes

    def columns(self) -> VersionColumns:
        """The versions, object after object. Raises IntegrityError."""
        return self.lists(decode_rows(self.rows))

    def arrays(self) -> VersionArrays:
        """The versions, sooner. Raises IntegrityError."""
        from objmeta.objects.arrays import arrays  # numpy, which would be half of what importing this package costs

        return arrays(self)

    def histories(self, rows: list[ScanRow] | None = None) -> Iterator[tuple[str, History]]:
        """The key and history of each object, or of those with these rows. Raises IntegrityError."""
        wanted = decode_rows(self.rows) if rows is None else rows
        held: dict[bytes, list[Record]] = {row.name: [] for row in wanted}
        for each in decode_records(self.records) if wanted else ():
            if (own := held.get(each.name)) is not None:
                own.append(each.record)
        for row in wanted:
            yield row.name[self.base :].decode(), walk(row.state, by_ref(held[row.name]))

    def lists(self, rows: list[ScanRow]) -> VersionColumns:
        """The versions of the objects with these rows. Raises IntegrityError."""
        found = VersionColumns(self.bucket)
        for key, history in self.histories(rows):
            if history.state.flag != TOMBSTONE:
                for version in history.public(self.bucket, key):
                    found.add(version)
            found.removals.extend((key, removal) for removal in history.public_removals(self.bucket, key))
        return found
