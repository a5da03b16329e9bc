"""Many versions as arrays of numpy: the records of a page are read column by column, and chains compared so, too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import numpy as np

from objmeta import vectors
from objmeta.core.listing import NamedRecord, ScanRow
from objmeta.core.messages import TOMBSTONE, State
from objmeta.model.values import DIGEST_BYTES, Manifest
from objmeta.objects.columns import VersionArrays

if TYPE_CHECKING:
    from objmeta.objects.columns import EncodedVersions

_ROW: Final = msgspec.msgpack.Decoder(ScanRow)
_NO_ROW: Final = -1
_ID_BYTES: Final = 16


class _Ballot(NamedTuple):
    counter: msgspec.Raw
    proposer: msgspec.Raw
    incarnation: msgspec.Raw


class _Row(msgspec.Struct, array_like=True):
    """A :class:`ScanRow` whose ballot does not matter: its numbers may be of 64 bits."""

    name: bytes
    accepted: _Ballot
    state: State
    witness: bool


def arrays(encoded: EncodedVersions) -> VersionArrays:
    """See :meth:`EncodedVersions.arrays`. Raises IntegrityError."""
    found = vectors.items(encoded.rows)
    rows, sound = vectors.read(_Row, found)
    named, good = vectors.read(NamedRecord, vectors.items(encoded.records))
    of = _rows_of(named["name"], rows["name"])
    records = named["record"]
    # Newest first, as versions are shown; what has no row is not there any more.
    order = np.lexsort((-records["ref"]["sequence"], of))
    order = order[of[order] != _NO_ROW]
    plain = sound & _plain(rows["state"], of[order], records, good[order], order)
    while True:
        taken = order[plain[of[order]]]
        columns, good = vectors.read(Manifest, records["body"].take(taken))
        good &= columns["lists"].count == 0
        if good.all():
            break
        plain[of[taken[~good]]] = False
    others = encoded.lists([_ROW.decode(row) for row in found.take(~plain).values()])
    of = of[taken]
    return VersionArrays(
        encoded.bucket,
        rows["name"].after(encoded.base),
        of,
        np.diff(of, prepend=_NO_ROW) != 0,
        records["ref"]["sequence"][taken],
        records["ref"]["version_id"].take(taken),
        columns,
        others,
    )


def _rows_of(names: vectors.Spans, rows: vectors.Spans) -> vectors.Numbers:
    """For the name of each record the number of the row that has it, or that there is none."""
    if not len(names.start):
        return names.start
    is_first = np.ones(len(names.start), np.bool_)
    is_first[1:] = ~vectors.equal(names.take(slice(1, None)), names.take(slice(-1)))
    registers = names.take(is_first)
    if len(registers.start) == len(rows.start) and vectors.equal(registers, rows).all():
        number = np.arange(len(rows.start))
    else:
        at = {name: at for at, name in enumerate(rows.values())}
        number = np.array([at.get(name, _NO_ROW) for name in registers.values()], np.int64)
    found: vectors.Numbers = number[np.cumsum(is_first) - 1]
    return found


def _plain(
    states: dict[str, Any], of: vectors.Numbers, records: dict[str, Any], good: vectors.Flags, order: vectors.Numbers
) -> vectors.Flags:
    """Which rows' objects have all of their chain and nothing else, as far as the records' bodies don't matter.

    ``of`` and ``good`` are those of the records in this ``order``: by row, and newest first.
    """
    refs, sound = _refs(records["ref"], order)
    parents, sound_parents = _refs(records["parent"].value, order)
    has_parent = records["parent"].there[order]
    is_newest = np.diff(of, prepend=_NO_ROW) != 0
    is_oldest = np.diff(of, append=_NO_ROW) != 0
    # What stands below each record in its register must be its parent, and older.
    follows = np.zeros(len(of), np.bool_)
    follows[:-1] = sound_parents[:-1] & (parents[:-1] == refs[1:]).all(axis=1) & (refs[:-1, 0] > refs[1:, 0])
    good = good & sound & np.where(is_oldest, ~has_parent, has_parent & follows)
    tips, sound_tips = _tips(states)
    newest = of[is_newest]
    plain = np.zeros(len(tips), np.bool_)  # also what has no records
    plain[newest] = sound_tips[newest] & (tips[newest] == refs[is_newest]).all(axis=1)
    plain[of[~good]] = False
    return plain


def _refs(columns: dict[str, Any], which: vectors.Numbers) -> tuple[Any, vectors.Flags]:
    """References to records, as words that can be compared; which of them are as long as they must be."""
    version_id, digest = columns["version_id"].take(which), columns["digest"].take(which)
    sequence = columns["sequence"][which].astype(np.uint64)[:, np.newaxis]
    words = np.hstack((sequence, version_id.words(_ID_BYTES), digest.words(DIGEST_BYTES)))
    return words, (version_id.length == _ID_BYTES) & (digest.length == DIGEST_BYTES)


def _tips(states: dict[str, Any]) -> tuple[Any, vectors.Flags]:
    """The same for the tips of registers' chains; there is none where nothing is there."""
    count = states["refs"].count
    there = (count > 0) & (states["flag"] != TOMBSTONE)
    if not there.any():
        return np.zeros((len(count), 1), np.uint64), there
    last = np.where(there, np.cumsum(count) - 1, 0)
    tips, sound = _refs(states["refs"].items, last)
    return tips, sound & there
