"""Versions column by column: for whoever loads very many, and for whom a struct for each would cost too much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import msgspec

from objmeta.core.listing import NamedRecord, ScanRow, decode_records, decode_rows
from objmeta.core.messages import TOMBSTONE, RecordRef
from objmeta.model.values import Chunk, Manifest, RecordBody, decode_body, tip_of
from objmeta.objects.history import by_ref, walk
from objmeta.objects.types import RemovedVersion


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

    def __len__(self) -> int:
        return len(self.key)


class EncodedVersions(msgspec.Struct, frozen=True, array_like=True):
    """Versions as they were read; taking them apart is work that another process may do (it goes through MessagePack).

    The names of registers have ``base`` bytes before the key.  Rows and records are in order of name.
    """

    bucket: str
    base: int
    rows: bytes
    records: bytes

    def columns(self) -> VersionColumns:
        """The versions; those of the few objects that are not plain come last. Raises IntegrityError.

        An object is *plain* if what is held of it is its chain, and nothing of that was removed: its tip is current.
        Whole lists are made and compared: a step of Python for each record would cost as much as all the rest.
        """
        rows, named = decode_rows(self.rows), decode_records(self.records)
        ranges = _newest_first(rows, named)
        records = [each.record for each in named]
        names = [record.ref for record in records]
        parents = [record.parent for record in records]
        bodies = [decode_body(record) for record in records]
        keys: list[str] = []
        refs: list[RecordRef] = []
        manifests: list[Manifest] = []
        latest: list[bool] = []
        others: list[tuple[ScanRow, range]] = []
        for row, held in zip(rows, ranges, strict=True):
            chain, contents = names[held.start : held.stop], bodies[held.start : held.stop]
            expected = [tip_of(row.state), *parents[held.start : held.stop]]
            if chain and expected == [*chain, None] and _is_plain(chain, contents):
                keys += [row.name[self.base :].decode()] * len(chain)
                refs += chain
                manifests += cast("list[Manifest]", contents)
                latest += [True, *[False] * (len(chain) - 1)]
            else:
                others.append((row, held))
        removals: list[tuple[str, RemovedVersion]] = []
        for row, held in others:
            key = row.name[self.base :].decode()
            history = walk(row.state, by_ref(records[held.start : held.stop]))
            if row.state.flag != TOMBSTONE:
                keys += [key] * len(history.entries)
                refs += [entry.ref for entry in history.entries]
                manifests += [entry.manifest for entry in history.entries]
                current = history.current.ref if history.current is not None else None
                latest += [entry.ref == current for entry in history.entries]
            removals += ((key, removal) for removal in history.public_removals(self.bucket, key))
        return VersionColumns(
            self.bucket,
            keys,
            [ref.version_id for ref in refs],
            [ref.sequence for ref in refs],
            latest,
            [manifest.delete_marker for manifest in manifests],
            [manifest.size for manifest in manifests],
            [manifest.etag for manifest in manifests],
            [manifest.content_type for manifest in manifests],
            [manifest.modified_us for manifest in manifests],
            [manifest.metadata for manifest in manifests],
            [manifest.parent_version_id or None for manifest in manifests],
            [manifest.chunks for manifest in manifests],
            [manifest.lists for manifest in manifests],
            removals,
        )


def _newest_first(rows: Sequence[ScanRow], named: list[NamedRecord]) -> list[range]:
    """Where the records of each row are among ``named``; there they are put in order, the newest first."""
    names = [each.name for each in named]
    count = len(names)
    found = []
    stop = 0
    for row in rows:
        name = row.name
        while stop < count and names[stop] < name:
            stop += 1
        start = stop
        while stop < count and names[stop] == name:
            stop += 1
        if stop - start > 1:
            named[start:stop] = sorted(named[start:stop], key=_sequence, reverse=True)
        found.append(range(start, stop))
    return found


def _is_plain(chain: Sequence[RecordRef], bodies: Sequence[RecordBody]) -> bool:
    """Whether a chain, sorted by sequence, has only versions and no sequence twice."""
    return len({ref.sequence for ref in chain}) == len(chain) and all(type(body) is Manifest for body in bodies)


def _sequence(named: NamedRecord) -> int:
    return named.record.ref.sequence
