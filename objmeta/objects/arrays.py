"""Many versions as arrays of numpy: the records of a page are read column by column, and chains compared so, too."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from objmeta import vectors
from objmeta.core.listing import ScanRow, decode_rows
from objmeta.core.messages import TOMBSTONE, Record, RecordRef
from objmeta.model.values import DIGEST_BYTES, Manifest, tip_of
from objmeta.objects.columns import VersionArrays

if TYPE_CHECKING:
    from objmeta.objects.columns import EncodedVersions

_NAMED: Final = msgspec.msgpack.Decoder(list[tuple[bytes, msgspec.Raw]])
_NO_ROW: Final = -1
_ID_BYTES: Final = 16
_NO_TIP: Final = RecordRef(0, bytes(_ID_BYTES), bytes(DIGEST_BYTES))
_NONE: Final = np.empty(0, np.int64)


def arrays(encoded: EncodedVersions) -> VersionArrays:
    """See :meth:`EncodedVersions.arrays`. Raises IntegrityError."""
    rows = decode_rows(encoded.rows)
    number = {row.name: at for at, row in enumerate(rows)}
    names, found = _named_records(encoded.records)
    of = np.fromiter(map(number.get, names, repeat(_NO_ROW)), np.int64, len(names))
    records, good = vectors.read(Record, found)
    # Newest first, as versions are shown; what has no row is not there any more.
    order = np.lexsort((-records["ref"]["sequence"], of))
    order = order[of[order] != _NO_ROW]
    plain = _plain(rows, of[order], records, good[order], order)
    while True:
        taken = order[plain[of[order]]]
        columns, good = vectors.read(Manifest, records["body"].take(taken))
        good &= columns["lists"].count == 0
        if good.all():
            break
        plain[of[taken[~good]]] = False
    others = encoded.lists([row for row, is_plain in zip(rows, plain, strict=True) if not is_plain])
    of = of[taken]
    return VersionArrays(
        encoded.bucket,
        [row.name[encoded.base :].decode() for row in rows],
        of,
        np.diff(of, prepend=_NO_ROW) != 0,
        records["ref"]["sequence"][taken],
        records["ref"]["version_id"].take(taken),
        columns,
        others,
    )


def _plain(
    rows: list[ScanRow], of: vectors.Numbers, records: dict[str, Any], good: vectors.Flags, order: vectors.Numbers
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
    tips = _tips(rows)
    plain = np.zeros(len(rows), np.bool_)  # also what has no records
    plain[of[is_newest]] = (tips[of[is_newest]] == refs[is_newest]).all(axis=1)
    plain[of[~good]] = False
    return plain


def _refs(columns: dict[str, Any], order: vectors.Numbers) -> tuple[Any, vectors.Flags]:
    """References to records, as words that can be compared; which of them are as long as they must be."""
    version_id, digest = columns["version_id"].take(order), columns["digest"].take(order)
    sequence = columns["sequence"][order].astype(np.uint64)[:, np.newaxis]
    words = np.hstack((sequence, version_id.words(_ID_BYTES), digest.words(DIGEST_BYTES)))
    return words, (version_id.length == _ID_BYTES) & (digest.length == DIGEST_BYTES)


def _tips(rows: list[ScanRow]) -> Any:
    """The same for the tips of registers' chains; what no record can be where there is none."""
    tips = [_NO_TIP if row.state.flag == TOMBSTONE else tip_of(row.state) or _NO_TIP for row in rows]
    tips = [tip if len(tip.version_id) == _ID_BYTES and len(tip.digest) == DIGEST_BYTES else _NO_TIP for tip in tips]
    sequences = np.array([tip.sequence for tip in tips], np.uint64)[:, np.newaxis]
    version_ids = np.frombuffer(b"".join([tip.version_id for tip in tips]), np.uint64).reshape(-1, _ID_BYTES // 8)
    digests = np.frombuffer(b"".join([tip.digest for tip in tips]), np.uint64).reshape(-1, DIGEST_BYTES // 8)
    return np.hstack((sequences, version_ids, digests))


def _named_records(records: bytes) -> tuple[Sequence[bytes], vectors.Spans]:
    """The register of each record of a page, and the records."""
    named = _NAMED.decode(records)
    if not named:
        return (), vectors.column(b"", _NONE, _NONE)
    names, encoded = zip(*named, strict=True)
    length = np.fromiter(map(len, encoded), np.int64, len(encoded))
    # A record is the second and last of a pair whose first is its name, and the pairs lie one after another.
    before = np.fromiter(map(len, names), np.int64, len(names))
    before += np.where(before < 256, 3, 4)
    end = np.cumsum(before + length)
    return names, vectors.column(records, end + (len(records) - end[-1]) - length, length)
