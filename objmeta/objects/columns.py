"""Versions column by column: for whoever loads very many, and for whom a struct for each would cost too much."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import attrgetter, gt
from typing import Final, cast

import msgspec

from objmeta.core.listing import ScanRow, decode_rows
from objmeta.core.messages import TOMBSTONE, Record, RecordRef
from objmeta.model.values import Chunk, Manifest, RecordBody, decode_bodies, tip_of
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
        rows, held = decode_rows(self.rows), _Held(_RECORDS.decode(self.records))
        odd = held.odd(rows)
        others: list[tuple[ScanRow, list[Record]]] = []
        if odd:
            apart = _by_name(each for each in held.named if each.name in odd)
            others = [(row, apart.get(row.name, [])) for row in rows if row.name in odd]
            rows = [row for row in rows if row.name not in odd]
            held = _Held(each for each in held.named if each.name not in odd)
        keys: list[str] = []
        latest: list[bool] = []
        for row, count in zip(rows, held.counts, strict=True):
            keys += [row.name[self.base :].decode()] * count
            latest += _LATEST if count == 1 else [True, *[False] * (count - 1)]
        refs: list[_Ref | RecordRef] = [*held.refs]
        manifests = cast("list[Manifest]", held.bodies)
        removals: list[tuple[str, RemovedVersion]] = []
        for row, records in others:
            key = row.name[self.base :].decode()
            history = walk(row.state, by_ref(records))
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


class _Ref(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a RecordRef is, read in less time, and nothing that Python's cycle collector goes through."""

    sequence: int
    version_id: bytes
    digest: bytes


class _Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A Record without its data."""

    ref: _Ref
    parent: _Ref | None
    body: bytes


class _Named(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A NamedRecord of these."""

    name: bytes
    record: _Record


_RECORDS: Final = msgspec.msgpack.Decoder(list[_Named])
_NAME: Final = attrgetter("name")
_SEQUENCE: Final = attrgetter("record.ref.sequence")
_LATEST: Final = (True,)
_NONE: Final = -1
"""Before every sequence."""


class _Held:
    """Records in order of their registers, those of each newest first, and what is in them, each in a list of its own.

    ``counts``: how many each register has, in the same order.
    """

    def __init__(self, named: Iterable[_Named]) -> None:
        self.named: list[_Named] = []
        self.names: list[bytes] = []
        self.counts: list[int] = []
        for name, group in groupby(named, _NAME):
            own = list(group)
            if len(own) > 1:
                own.sort(key=_SEQUENCE, reverse=True)
            self.named += own
            self.names.append(name)
            self.counts.append(len(own))
        records = [each.record for each in self.named]
        self.refs = [record.ref for record in records]
        self.bodies: list[RecordBody] = decode_bodies([record.body for record in records])
        self._parents = [record.parent for record in records]

    def odd(self, rows: Sequence[ScanRow]) -> set[bytes]:
        """Of all registers, with a row or with records, those that are not plain; of the others both are in order."""
        sequences = [ref.sequence for ref in self.refs]
        # What stands below each record in its register: that must be its parent, and older.
        below: list[_Ref | None] = [*self.refs, None][1:]
        older = [*sequences, _NONE][1:]
        tips = []
        at = 0
        for count in self.counts:
            tips.append(self.refs[at])
            at += count
            below[at - 1] = None
            older[at - 1] = _NONE
        named = [(name, tip.sequence, tip.version_id, tip.digest) for name, tip in zip(self.names, tips, strict=True)]
        stated = [(row.name, *(tip_of(row.state) or ())) for row in rows]
        if (
            named == stated
            and self._parents == below
            and all(map(gt, sequences, older))
            and set(map(type, self.bodies)) <= {Manifest}
        ):
            return set()
        odd = {name for name, *_ in set(named).symmetric_difference(stated)}
        found = zip(self.named, self._parents, below, sequences, older, self.bodies, strict=True)
        for each, parent, ref, sequence, other, content in found:
            if parent != ref or sequence <= other or type(content) is not Manifest:
                odd.add(each.name)
        return odd


def _by_name(named: Iterable[_Named]) -> dict[bytes, list[Record]]:
    found: dict[bytes, list[Record]] = {}
    for each in named:
        record = each.record
        parent = None if record.parent is None else _public(record.parent)
        found.setdefault(each.name, []).append(Record(_public(record.ref), parent, record.body))
    return found


def _public(ref: _Ref) -> RecordRef:
    return RecordRef(ref.sequence, ref.version_id, ref.digest)
