"""The tables a query may name, and how the kept catalog holds what they are made from.

What is kept are three tables of its own (schema ``kept``): buckets, a row for each version, and removals of versions.
Everything that a query names are views over these, and tables that are filled for the query (nodes, places, copies).
Columns are named after S3's terms.  A delete marker has no content: its size, etag and content type are NULL.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import pyarrow as pa

from gateway.upkeep import tables

TIME: Final = pa.timestamp("us", tz="UTC")
CHUNKS: Final = pa.list_(pa.struct([("digest", pa.string()), ("length", pa.int64())]))
_SQL_TYPES: Final = {
    pa.string(): "VARCHAR",
    pa.int64(): "BIGINT",
    pa.float64(): "DOUBLE",
    pa.bool_(): "BOOLEAN",
    pa.binary(): "BLOB",
    TIME: "TIMESTAMPTZ",
    pa.map_(pa.string(), pa.string()): "MAP(VARCHAR, VARCHAR)",
    CHUNKS: "STRUCT(digest VARCHAR, length BIGINT)[]",
}

BUCKETS: Final = pa.schema(
    [
        ("bucket", pa.string()),
        ("bucket_id", pa.string()),
        ("term", pa.int64()),
        ("creation_date", TIME),
        ("replicas", pa.int64()),
        ("keep_versions", pa.int64()),
        ("keep_days", pa.float64()),
        ("expire_delete_markers", pa.bool_()),
    ]
)
VERSIONS: Final = pa.schema(
    [
        ("bucket", pa.string()),
        ("key", pa.string()),
        ("directory", pa.string()),
        ("version_id", pa.string()),
        ("is_latest", pa.bool_()),
        ("is_delete_marker", pa.bool_()),
        ("size", pa.int64()),
        ("etag", pa.string()),
        ("content_type", pa.string()),
        ("last_modified", TIME),
        ("metadata", pa.map_(pa.string(), pa.string())),
        ("sequence", pa.int64()),
        ("parent_version_id", pa.string()),
        ("is_inline", pa.bool_()),
        ("chunk_count", pa.int64()),
    ]
)
"""As a query sees it.

``directory`` is the key up to its last slash, with that; empty where there is none.  It is kept, since to group by it
takes DuckDB a third of the time that cutting every key does.
"""
VERSION_ROWS: Final = pa.schema([*list(VERSIONS)[:-1], ("chunks", CHUNKS), ("lists", pa.binary())])
"""As it is kept, behind a number for the object.

``chunks`` is NULL where a version's lists of chunks, which are chunks themselves, could not be read yet; then ``lists``
has these in MessagePack.
"""
REMOVALS: Final = pa.schema(
    [
        ("bucket", pa.string()),
        ("key", pa.string()),
        ("version_id", pa.string()),
        ("sequence", pa.int64()),
        ("removed", TIME),
        ("put_sequence", pa.int64()),
        ("put", TIME),
        ("is_delete_marker", pa.bool_()),
        ("size", pa.int64()),
        ("etag", pa.string()),
    ]
)
"""A version that was removed for good; what it was is NULL where that is forgotten."""
NODES: Final = pa.schema(
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
)

KEPT: Final = frozenset({"buckets", "objects", "versions", "chunks", "changes"})
"""Tables made from what is kept."""
OF_NODES: Final = {"nodes": NODES, "places": tables.PLACES, "copies": tables.COPIES}
"""Tables that are filled for each query that names them; ``stored`` is a view over ``copies``."""
TABLES: Final = ("buckets", "objects", "versions", "chunks", "changes", "nodes", "places", "copies", "stored")
"""What a query may name."""

FORMAT: Final = 4
"""Of the kept file; another one is built anew."""

_LEFT_AS_THEY_ARE: Final = frozenset(
    ("object", "object_low", "key", "version_id", "is_latest", "etag", "metadata", "parent_version_id", "chunks")
)
"""Finding out that random ids and digests hardly compress is most of what a load would cost, and how ``is_latest`` does
most of a checkpoint, as a change turns it everywhere.  What repeats (buckets, directories, content types) is kept once
and grouped soon."""

KEPT_TABLES: Final = {"buckets": BUCKETS, "version_rows": VERSION_ROWS, "removals": REMOVALS}
_OBJECT: Final = "(hash(bucket, key) >> 32)::UINTEGER"
"""A number for an object, by which its rows are found soon: to find some all are read, so it is a short one.

DuckDB may change it, so its version is kept, too.
"""
_OBJECT_LOW: Final = "(hash(bucket, key) & 4294967295)::UINTEGER"
"""The rest of that number: what both are the same of is the same object, as nearly as a hash of 64 bits can tell."""
_NUMBERED: Final = f"{_OBJECT} AS object, {_OBJECT_LOW} AS object_low"

_VERSION_COLUMNS: Final = ", ".join(VERSION_ROWS.names[:-2])
LIVE: Final = "live_version_rows"
LIVE_VISIBLE: Final = "live_object_rows"
"""What takes the place of the kept rows of versions in a query that is live: all, and those of objects."""
_SEEN: Final = f"SELECT {_VERSION_COLUMNS}, len(chunks) AS chunk_count"
_OF_OBJECTS: Final = "SELECT * EXCLUDE (is_latest, is_delete_marker)"
_CHUNKS: Final = """
SELECT bucket, key, version_id, place - 1 AS index, chunks[place].digest AS digest, chunks[place].length AS length
FROM (SELECT bucket, key, version_id, chunks, unnest(range(1, len(chunks) + 1)) AS place FROM"""
VIEWS: Final = (
    "CREATE VIEW buckets AS FROM kept.buckets",
    f"CREATE VIEW versions AS {_SEEN} FROM kept.version_rows",
    f"CREATE VIEW objects AS {_OF_OBJECTS} FROM versions WHERE is_latest AND NOT is_delete_marker",
    f"CREATE VIEW chunks AS {_CHUNKS} kept.version_rows)",
    # A restore is told by its content: it is that of an earlier version, and not of the one before it.
    """
    CREATE VIEW changes AS
    WITH written AS (
        SELECT bucket, key, sequence, last_modified AS time, is_delete_marker, version_id, size, etag
        FROM kept.version_rows
        UNION ALL
        SELECT bucket, key, put_sequence, put, is_delete_marker, version_id, size, etag
        FROM kept.removals WHERE put_sequence IS NOT NULL
    ), told AS (
        SELECT *,
            lag(is_delete_marker) OVER before AS after_marker,
            lag(etag) OVER before AS etag_before,
            count(*) OVER (PARTITION BY bucket, key, etag, size ORDER BY sequence) AS times
        FROM written WINDOW before AS (PARTITION BY bucket, key ORDER BY sequence)
    )
    SELECT bucket, key, time,
        CASE
            WHEN is_delete_marker THEN 'delete marker'
            WHEN times > 1 AND etag_before IS DISTINCT FROM etag THEN 'restore'
            WHEN after_marker THEN 'put'
            WHEN after_marker IS NULL THEN 'put'
            ELSE 'overwrite'
        END AS action,
        version_id, size, etag, sequence
    FROM told
    UNION ALL
    SELECT bucket, key, removed, 'version removed', version_id, size, etag, sequence FROM kept.removals
    """,
    tables.STORED,
)


def live_views() -> list[str]:
    """The views over versions, made anew over what is live; ``changes`` is not, for removals are not listed."""
    return [
        "DROP VIEW IF EXISTS changes",
        f"CREATE OR REPLACE VIEW versions AS {_SEEN} FROM {LIVE}",
        f"CREATE OR REPLACE VIEW objects AS {_OF_OBJECTS} FROM ({_SEEN} FROM {LIVE_VISIBLE})",
        f"CREATE OR REPLACE VIEW chunks AS {_CHUNKS} {LIVE})",
    ]


def kept_statements(schema: str) -> list[str]:
    """What makes the kept tables, empty, in an attached database."""
    made = [f"CREATE TABLE {schema}.{name} ({declared(KEPT_TABLES[name])})" for name in ("buckets", "removals")]
    columns = [f"{name} UINTEGER{_compressed(name)}" for name in ("object", "object_low")]
    columns += (f"{declared([each])}{_compressed(each.name)}" for each in VERSION_ROWS)
    rows = f"CREATE TABLE {schema}.version_rows ({', '.join(columns)})"
    about = f"CREATE TABLE {schema}.about (format INTEGER, duckdb VARCHAR, cursor VARCHAR, buckets BLOB)"
    return [*made, rows, about]


def _compressed(column: str) -> str:
    return " USING COMPRESSION uncompressed" if column in _LEFT_AS_THEY_ARE else ""


def declared(columns: Iterable[pa.Field]) -> str:
    """The same columns as SQL declares them (handing DuckDB an empty table takes several times as long)."""
    return ", ".join(f'"{field.name}" {_SQL_TYPES[field.type]}' for field in columns)


def insert_versions(schema: str) -> str:
    """Adds the rows of ``batch``."""
    return f"INSERT INTO {schema}.version_rows SELECT {_NUMBERED}, * FROM batch"


KNOWN_ROWS: Final = f"""
WITH near AS MATERIALIZED (
    SELECT rowid AS known, object, object_low, sequence, last_modified, is_latest FROM kept.version_rows
    WHERE object IN (SELECT {_OBJECT} FROM changed)
)
FROM near SEMI JOIN (SELECT {_NUMBERED} FROM changed) USING (object, object_low)
"""
"""Rows of the objects in ``changed`` (bucket, key); reads no text, which would cost more than all the rest."""
COMPARED: Final = ("bucket", "key", "sequence", "last_modified", "is_latest")
"""Columns that tell whether a version's row is known, and the one that may have changed.

In a chain each version has a sequence of its own; the time is to tell apart those of two chains, one after the other.
"""
COMPARE_ROWS: Final = f"""
SELECT place, known, new.is_latest IS DISTINCT FROM rows_known.is_latest AS differs
FROM (SELECT {_NUMBERED}, * FROM batch) AS new
LEFT JOIN rows_known USING (object, object_low, sequence, last_modified) ORDER BY place
"""
"""For each row of ``batch`` the one of ``rows_known`` that is the same version, if any is."""
TURN_LATEST: Final = "UPDATE kept.version_rows SET is_latest = NOT is_latest WHERE rowid IN (FROM rows_turned)"
DELETE_ROWS: Final = """
DELETE FROM kept.version_rows WHERE rowid IN (FROM rows_gone) AND (bucket, key) IN (SELECT bucket, key FROM changed)
"""
DELETE_REMOVALS: Final = "DELETE FROM kept.removals WHERE (bucket, key) IN (SELECT bucket, key FROM changed)"
