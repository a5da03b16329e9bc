"""SQL over a store: every bucket, object, version, chunk, node and copy as a table.

Rules.
* A query runs in a private DuckDB in memory that is made for it and thrown away: it changes nothing in the store, and
  reaches neither files nor the network unless the caller says so.
* Tables are read through the client when the query begins, page by page and in batches through Arrow. So every change
  that finished before is in them, and each object's versions are from one instant.
* Only tables whose names occur in the query are read. A name inside a string costs time; a table too few would be a
  wrong answer, so the text is searched for words rather than parsed.
* The lists of chunks that are chunks themselves (of very long objects) are read with the versions that have them; where
  that fails, ``chunk_count`` is NULL, and ``chunks`` cannot be queried.
* Columns are named after S3's terms. A delete marker has no content: its size, etag and content type are NULL.
* ``_plan`` knows no client: it says which call it needs next and is given the answer, so that the blocking and the
  asynchronous door share it.
"""

from __future__ import annotations

import asyncio
import datetime
import functools
import json
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from gateway.upkeep import tables
from objmeta import AsyncClient, Bucket, Chunk, Client, ObjectVersion
from objmeta.client import Location
from objmeta.errors import IntegrityError, InvalidArgument, NoSuchBucket, ObjmetaError, StoreError, Unavailable

_BATCH_ROWS: Final = 10_000
_PAGE_OBJECTS: Final = 2_000

_TIME: Final = pa.timestamp("us", tz="UTC")
_TABLES: Final[dict[str, pa.Schema]] = {
    "buckets": pa.schema(
        [
            ("bucket", pa.string()),
            ("bucket_id", pa.string()),
            ("term", pa.int64()),
            ("creation_date", _TIME),
            ("replicas", pa.int64()),
            ("keep_versions", pa.int64()),
            ("keep_days", pa.float64()),
            ("expire_delete_markers", pa.bool_()),
        ]
    ),
    "versions": pa.schema(
        [
            ("bucket", pa.string()),
            ("key", pa.string()),
            ("version_id", pa.string()),
            ("is_latest", pa.bool_()),
            ("is_delete_marker", pa.bool_()),
            ("size", pa.int64()),
            ("etag", pa.string()),
            ("content_type", pa.string()),
            ("last_modified", _TIME),
            ("metadata", pa.map_(pa.string(), pa.string())),
            ("sequence", pa.int64()),
            ("parent_version_id", pa.string()),
            ("is_inline", pa.bool_()),
            ("chunk_count", pa.int64()),
        ]
    ),
    "chunks": pa.schema(
        [
            ("bucket", pa.string()),
            ("key", pa.string()),
            ("version_id", pa.string()),
            ("index", pa.int64()),
            ("digest", pa.string()),
            ("length", pa.int64()),
        ]
    ),
    "nodes": pa.schema(
        [
            ("node_id", pa.int64()),
            ("address", pa.string()),
            ("state", pa.string()),
            ("detail", pa.string()),
            ("version", pa.string()),
            ("registers", pa.int64()),
            ("changes", pa.int64()),
            ("disk_free", pa.int64()),
            ("uptime_s", pa.float64()),
        ]
    ),
    "places": tables.PLACES,
    "copies": tables.COPIES,
}
_OBJECTS: Final = """
CREATE VIEW objects AS
SELECT * EXCLUDE (is_latest, is_delete_marker) FROM versions WHERE is_latest AND NOT is_delete_marker
"""
_HUGEINT: Final = pa.decimal128(38, 0)

TABLES: Final = ("buckets", "objects", "versions", "chunks", "nodes", "places", "copies", "stored")
"""What a query may name."""
_OF_NODES: Final = frozenset({"nodes", "places", "copies", "stored"})


def sql(client: Client, query: str, *, external_access: bool = False) -> Result:
    """Run a query over the store's metadata.

    Tables: ``buckets``, ``objects`` (current and visible), ``versions`` (all, delete markers included), ``chunks`` and
    ``nodes``; of what is really stored ``places`` (where chunks are, with their sums), ``copies`` (each chunk at each
    place) and ``stored`` (each chunk once, with the number of its copies).  ``external_access`` lets the query read and
    write files and URLs, as DuckDB does by default.

    Raises InvalidArgument with DuckDB's message if the query is wrong; NoQuorum and whatever else the client raises.
    """
    plan = _plan(query, external_access, lambda: client.location)
    call, result = _advance(plan, None, None)
    while call is not None:
        answer: object = None
        error: ObjmetaError | None = None
        try:
            answer = call(client)
        except ObjmetaError as raised:
            error = raised
        call, result = _advance(plan, answer, error)
    assert result is not None, "a plan ends with a result"
    return result


async def sql_async(client: AsyncClient, query: str, *, external_access: bool = False) -> Result:
    """The same as :func:`sql` for coroutines; DuckDB works in another thread."""
    plan = _plan(query, external_access, lambda: client.location)
    call, result = await asyncio.to_thread(_advance, plan, None, None)
    while call is not None:
        answer: object = None
        error: ObjmetaError | None = None
        try:
            answer = await call(client)
        except ObjmetaError as raised:
            error = raised
        call, result = await asyncio.to_thread(_advance, plan, answer, error)
    assert result is not None, "a plan ends with a result"
    return result


class Result:
    """The rows a query gave."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    @property
    def columns(self) -> list[str]:
        """The names of the columns, in order."""
        return list(self._table.column_names)

    def rows(self) -> list[tuple[Any, ...]]:
        """The rows as Python values: times in UTC, maps as dicts."""
        if not self._table.num_columns:
            return []
        return list(zip(*(_values(column) for column in self._table.columns), strict=True))

    def arrow(self) -> pa.Table:
        """The rows as a ``pyarrow.Table``."""
        return self._table

    def df(self) -> Any:
        """The rows as a ``pandas.DataFrame`` (needs pandas)."""
        return self._table.to_pandas()

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.rows())

    def __repr__(self) -> str:
        return f"<{len(self)} rows of {', '.join(self.columns)}>"

    def __str__(self) -> str:
        names = self.columns
        numeric = [_is_number(field.type) for field in self._table.schema]
        cells = [[_shown(value) for value in row] for row in self.rows()]
        widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
        lines = [names, ["-" * width for width in widths], *cells]
        return "\n".join(
            "  ".join(
                cell.rjust(width) if right else cell.ljust(width)
                for cell, width, right in zip(line, widths, numeric, strict=True)
            ).rstrip()
            for line in lines
        )


# -- What is asked of the client --------------------------------------------------------------------------------------

_Call = Callable[[Any], Any]
"""A call of one method of a client, blocking or not."""
_Plan = Generator[_Call, Any, Result]


def _plan(query: str, external_access: bool, location: Callable[[], Location]) -> _Plan:
    catalog = _Catalog(external_access)
    try:
        catalog.check(query)
        named = _named(query)
        if named & _OF_NODES:
            status = yield lambda client: client.status()
            catalog.load_nodes(status.nodes)
            if named & {"places", "copies", "stored"}:
                # In a thread of its own, for it needs an event loop and the caller's may be running here.
                with ThreadPoolExecutor(1) as thread:
                    if "places" in named:
                        rows = thread.submit(tables.place_rows, location(), status).result()
                        catalog.load("places", rows)
                    if named & {"copies", "stored"}:
                        take = functools.partial(catalog.load, "copies")
                        thread.submit(tables.copy_rows, location(), status, take).result()
        if named - _OF_NODES:
            buckets: list[Bucket] = yield lambda client: client.buckets()
            catalog.load_buckets(buckets)
            if named - _OF_NODES - {"buckets"}:
                for bucket in buckets:
                    yield from _read_versions(catalog, bucket.name, "chunks" in named, location)
                catalog.flush()
        return catalog.run(query)
    finally:
        catalog.close()


def _read_versions(
    catalog: _Catalog, bucket: str, with_chunks: bool, location: Callable[[], Location]
) -> Generator[_Call, Any, None]:
    continuation: str | None = None
    while True:
        call = functools.partial(_list_versions, bucket=bucket, continuation=continuation)
        try:
            page = yield call
        except NoSuchBucket:
            return  # removed while the query ran
        catalog.add_versions([(each, _chunks(each, location, with_chunks)) for each in page.versions], with_chunks)
        continuation = page.continuation
        if continuation is None:
            return


def _chunks(version: ObjectVersion, location: Callable[[], Location], needed: bool) -> Sequence[Chunk] | None:
    """A version's chunks; None if they are listed in chunks that cannot be read, unless they are ``needed``."""
    if not version.lists:
        return version.chunks
    with ThreadPoolExecutor(1) as thread:  # as above
        try:
            return thread.submit(tables.listed_chunks, location(), version).result()
        except (Unavailable, IntegrityError):
            if needed:
                raise
            return None


def _list_versions(client: Any, *, bucket: str, continuation: str | None) -> Any:
    return client.list_versions(bucket, continuation=continuation, limit=_PAGE_OBJECTS)


def _advance(plan: _Plan, answer: object, error: ObjmetaError | None) -> tuple[_Call | None, Result | None]:
    """Give the plan an answer; what it asks next, or its result."""
    try:
        return (plan.send(answer) if error is None else plan.throw(error)), None
    except StopIteration as end:
        return None, end.value


def _named(query: str) -> set[str]:
    if re.search(r"\bquery(_table)?\b", query, re.IGNORECASE):
        return set(TABLES)  # these functions make names out of strings
    words = {word.lower() for word in re.findall(r"\w+", query)}
    return words.intersection(TABLES)


# -- The database of one query ----------------------------------------------------------------------------------------


class _Catalog:
    """A DuckDB in memory with the tables of a store."""

    def __init__(self, external_access: bool) -> None:
        self._database = duckdb.connect(
            config={
                "enable_external_access": external_access,
                "python_enable_replacements": False,  # a query must not see this module's variables
                "temp_directory": "",  # nothing is left behind in the caller's directory
            }
        )
        self._database.execute("SET TimeZone = 'UTC'")
        self._database.execute("SET lock_configuration = true")
        self._versions: list[tuple[object, ...]] = []
        self._chunks: list[tuple[object, ...]] = []
        for name, schema in _TABLES.items():
            self._database.register("empty", schema.empty_table())
            self._database.execute(f"CREATE TABLE {name} AS FROM empty")
            self._database.unregister("empty")
        self._database.execute(_OBJECTS)
        self._database.execute(tables.STORED)

    def check(self, query: str) -> None:
        """Refuse a wrong query before anything is read."""
        with _Refusing():
            statements = self._database.extract_statements(query)
            if not statements:
                raise InvalidArgument("the query is empty; an example: SELECT bucket, count(*) FROM objects GROUP BY 1")
            if len(statements) == 1 and statements[0].type == duckdb.StatementType.SELECT:
                self._database.execute(f"EXPLAIN {query}")

    def load_buckets(self, buckets: Iterable[Bucket]) -> None:
        """Fill ``buckets``."""
        self.load("buckets", [_bucket_row(bucket) for bucket in buckets])

    def load_nodes(self, nodes: Iterable[Any]) -> None:
        """Fill ``nodes`` from :class:`objmeta.client.NodeStatus`; NULL is what a node that is not up would tell."""
        names = _TABLES["nodes"].names
        told = frozenset(("version", "registers", "changes", "disk_free", "uptime_s"))
        rows = [
            tuple(None if name in told and node.state != "up" else getattr(node, name) for name in names)
            for node in nodes
        ]
        self.load("nodes", rows)

    def add_versions(self, versions: Sequence[tuple[ObjectVersion, Sequence[Chunk] | None]], with_chunks: bool) -> None:
        """Take a page for ``versions``, each with its chunks, and for ``chunks`` if they are asked for."""
        self._versions.extend(_version_row(version, chunks) for version, chunks in versions)
        if with_chunks:
            self._chunks.extend(
                (version.bucket, version.key, version.version_id, index, chunk.digest.hex(), chunk.length)
                for version, chunks in versions
                for index, chunk in enumerate(chunks or ())
            )
        if len(self._versions) >= _BATCH_ROWS or len(self._chunks) >= _BATCH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what was taken into the tables."""
        self.load("versions", self._versions)
        self._versions.clear()
        self.load("chunks", self._chunks)
        self._chunks.clear()

    def run(self, query: str) -> Result:
        """The query's rows."""
        with _Refusing():
            relation = self._database.sql(query)
            table = relation.to_arrow_table() if relation is not None else pa.table({})
        return Result(_with_plain_integers(table))

    def close(self) -> None:
        """Free the memory."""
        self._database.close()

    def load(self, table: str, rows: Sequence[tuple[object, ...]]) -> None:
        """Add rows to a table."""
        if not rows:
            return
        schema = _TABLES[table]
        columns = [
            pa.array(values, type=field.type) for values, field in zip(zip(*rows, strict=True), schema, strict=True)
        ]
        self._database.register("batch", pa.Table.from_arrays(columns, schema=schema))
        self._database.execute(f"INSERT INTO {table} FROM batch")
        self._database.unregister("batch")


class _Refusing:
    """Turns DuckDB's errors into ours, on one line."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, duckdb.OutOfMemoryException):
            raise StoreError("the query needs more memory than there is; ask for fewer rows or columns") from None
        if isinstance(error, duckdb.Error):
            message = " ".join(str(error).split("\n\nLINE")[0].split())
            raise InvalidArgument(f"the query cannot be run: {message}") from None


def _bucket_row(bucket: Bucket) -> tuple[object, ...]:
    settings = bucket.settings
    return (
        bucket.name,
        bucket.bucket_id.hex(),
        bucket.term,
        bucket.created_us,
        settings.replicas,
        settings.keep_versions,
        settings.keep_days,
        settings.expire_delete_markers,
    )


def _version_row(version: ObjectVersion, chunks: Sequence[Chunk] | None) -> tuple[object, ...]:
    content = not version.is_delete_marker
    return (
        version.bucket,
        version.key,
        version.version_id,
        version.is_latest,
        version.is_delete_marker,
        version.size if content else None,
        version.etag if content else None,
        version.content_type or None,
        version.modified_us,
        list(version.metadata.items()),
        version.sequence,
        version.parent_version_id,
        version.is_inline,
        len(chunks) if chunks is not None else None,
    )


# -- Values -----------------------------------------------------------------------------------------------------------


def _with_plain_integers(table: pa.Table) -> pa.Table:
    """DuckDB's sum() of integers is a HUGEINT, which Arrow knows only as a decimal: give integers where they fit."""
    for at, field in enumerate(table.schema):
        if field.type == _HUGEINT:
            try:
                whole = pc.cast(table.column(at), pa.int64())
            except pa.ArrowInvalid:
                continue
            table = table.set_column(at, field.name, whole)
    return table


def _values(column: pa.ChunkedArray) -> list[Any]:
    kind = column.type
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        # by way of naive times, which need no time zone database on this machine
        naive = column.cast(pa.timestamp(kind.unit)).to_pylist()
        return [value and value.replace(tzinfo=datetime.UTC) for value in naive]
    if pa.types.is_map(kind):
        return [value if value is None else dict(value) for value in column.to_pylist()]
    return list(column.to_pylist())


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _shown(value: object) -> str:
    match value:
        case None:
            return "NULL"
        case bool():
            return "true" if value else "false"
        case bytes():
            return value.hex()
        case dict() | list():
            return json.dumps(value, ensure_ascii=False, default=str)
        case _:
            return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in str(value))
