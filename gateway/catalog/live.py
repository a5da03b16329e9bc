"""``versions`` straight from the store, for queries that want no catalog: a pyarrow Dataset that DuckDB pushes down to.

DuckDB hands a Dataset the columns that it wants and a filter that it does not apply again.  What the filter says about
bucket and key decides what the store is asked for: which buckets, and which range of keys; the columns decide whether
the records of versions are needed at all, or the heads alone (for ``objects``, which has a dataset of its own).  The
filter itself is then applied by Arrow, so what is asked for may be too much, never too little.  DuckDB pushes
comparisons down, LIKE not.

An Arrow expression cannot be taken apart, but it can be asked: whether anything can match where the key, say, is below
``x`` (the same question by which Arrow leaves out files of a partitioned dataset).  The literals in its text are the
places at which asking is worth while, and no more than that.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs

from gateway.catalog import batches
from gateway.catalog.schema import VERSION_ROWS
from objmeta import Bucket, ObjectPage, ObjectVersion, VersionColumns, VersionPage
from objmeta.errors import NoSuchBucket, ObjmetaError

Ask = Callable[[Callable[[Any], Any]], Any]
"""Calls a client, blocking or not, and waits for the answer."""

_IN_HEADS: Final = frozenset(
    (
        "bucket",
        "key",
        "directory",
        "version_id",
        "is_latest",
        "is_delete_marker",
        "size",
        "etag",
        "last_modified",
        "sequence",
    )
)
_LIMITS: Final = (100, 1000, 5000)
"""Objects on the first pages: a query for one object must not fetch thousands."""
_NOWHERE: Final = pyarrow.fs.LocalFileSystem()
_FORMAT: Final = ds.ParquetFileFormat()


class LiveVersions(ds.Dataset):  # type: ignore[misc]
    """All versions, as rows of ``version_rows``; each object's from one instant, no earlier than the query.

    ``visible``: only those that are current and no delete markers (conditions on columns alone are not pushed down).

    ``failure`` is what the store has raised, which DuckDB tells as text only.
    """

    def __init__(self, ask: Ask, resolve: batches.Resolve, visible: bool = False) -> None:
        self._ask = ask
        self._visible = visible
        self._resolve = resolve
        self.failure: ObjmetaError | None = None
        self.looked_at = 0

    @property
    def schema(self) -> pa.Schema:
        """The columns."""
        return VERSION_ROWS

    def scanner(self, columns: Sequence[str] | None = None, filter: Any = None, **_: Any) -> ds.Scanner:
        """What DuckDB asks for."""
        wanted = set(VERSION_ROWS.names if columns is None else columns)
        if filter is not None:
            wanted |= {name for name in VERSION_ROWS.names if re.search(rf"\b{name}\b", str(filter))}
        found = pa.RecordBatchReader.from_batches(VERSION_ROWS, self._batches(_Scope(filter), wanted))
        chosen = VERSION_ROWS.names if columns is None else list(columns)
        return ds.Scanner.from_batches(found, columns=chosen, filter=filter)

    def _batches(self, scope: _Scope, wanted: set[str]) -> Iterator[pa.RecordBatch]:
        try:
            buckets: list[Bucket] = self._ask(lambda client: client.buckets())
            for bucket in buckets:
                if scope.may_match(pc.field("bucket") == bucket.name):
                    with contextlib.suppress(NoSuchBucket):  # removed meanwhile
                        yield from self._bucket(bucket.name, scope, heads=self._visible and wanted <= _IN_HEADS)
        except ObjmetaError as failure:
            self.failure = failure
            raise

    def _bucket(self, bucket: str, scope: _Scope, heads: bool) -> Iterator[pa.RecordBatch]:
        limits = iter(_LIMITS)
        limit = next(limits)
        continuation: str | None = None
        while True:
            given = {"continuation": continuation, "limit": limit, "start": scope.first}
            page = self._ask(functools.partial(_list, heads, bucket, scope.prefix, given))
            columns = _of_heads(bucket, page) if heads else _of_versions(bucket, page, self._visible)
            self.looked_at += len(set(columns.key))
            yield batches.versions(columns, self._resolve)
            continuation = page.continuation
            if continuation is None or scope.is_beyond(_last_key(page)):
                return
            limit = next(limits, limit)


def _last_key(page: ObjectPage | VersionPage) -> str:
    found = page.objects if isinstance(page, ObjectPage) else page.versions
    return found[-1].key if found else ""


def _list(heads: bool, bucket: str, prefix: str, given: dict[str, Any], client: Any) -> Any:
    return (client.list_objects if heads else client.list_versions)(bucket, prefix, **given)


class _Scope:
    """What a filter leaves of all keys and versions."""

    def __init__(self, filter: Any) -> None:
        self._filter = filter
        literals = sorted(set(re.findall(r'"((?:[^"\\]|\\.)*)"', str(filter)))) if filter is not None else []
        key = pc.field("key")
        below = [text for text in literals if not self.may_match(key < text)]
        above = [text for text in literals if not self.may_match(key >= text)]
        above_or_at = [text for text in literals if not self.may_match(key > text)]
        self.first = below[-1] if below else ""
        """No key below it matches."""
        self._beyond = above[0] if above else None
        self._last = above_or_at[0] if above_or_at else None
        self.prefix = self._common_prefix()

    def may_match(self, known: Any) -> bool:
        """Whether a row of which this is known may match; true if it cannot be told."""
        if self._filter is None:
            return True
        fragment = _FORMAT.make_fragment("nothing", _NOWHERE, partition_expression=known)
        pruned = ds.FileSystemDataset([fragment], VERSION_ROWS, _FORMAT, _NOWHERE)
        return any(True for _ in pruned.get_fragments(filter=self._filter))

    def is_beyond(self, key: str) -> bool:
        """Whether no key after this one matches."""
        return (self._beyond is not None and key >= self._beyond) or (self._last is not None and key >= self._last)

    def _common_prefix(self) -> str:
        end = self._last if self._last is not None else self._beyond
        if not self.first or end is None:
            return ""
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(self.first, end, strict=False))
        return "".join(letter for letter, _ in same)


def _of_versions(bucket: str, page: VersionPage, visible: bool) -> VersionColumns:
    columns = VersionColumns(bucket)
    for version in page.versions:
        if not visible or (version.is_latest and not version.is_delete_marker):
            columns.add(version)
    return columns


def _of_heads(bucket: str, page: ObjectPage) -> VersionColumns:
    columns = VersionColumns(bucket)
    for each in page.objects:
        fields = (each.bucket, each.key, each.version_id, each.sequence, each.size, each.etag, each.modified_us)
        columns.add(ObjectVersion(*fields))
    return columns
