"""The usual questions, as table macros: ``SELECT * FROM largest_prefixes()``.

Each is one statement over the tables of ``schema``; arguments have defaults.  ``READS`` says which tables a macro
reads, since a query names only the macro.
"""

from __future__ import annotations

from typing import Final

MACROS: Final = {
    "largest_prefixes": """
        CREATE MACRO largest_prefixes(depth := 1) AS TABLE
        SELECT bucket, array_to_string(parts[:least(depth, len(parts) - 1)], '/') || '/' AS prefix,
            count(*) AS objects, sum(size) AS bytes
        FROM (SELECT bucket, size, string_split(directory, '/') AS parts FROM objects WHERE directory <> '')
        GROUP BY ALL ORDER BY bytes DESC, bucket, prefix
    """,
    "growth_per_day": """
        CREATE MACRO growth_per_day() AS TABLE
        SELECT bucket, day, versions, bytes, sum(bytes) OVER (PARTITION BY bucket ORDER BY day) AS bytes_so_far
        FROM (
            SELECT bucket, last_modified::DATE AS day, count(*) AS versions, coalesce(sum(size), 0) AS bytes
            FROM versions GROUP BY ALL
        ) ORDER BY bucket, day
    """,
    "duplicates": """
        CREATE MACRO duplicates(least_size := 1) AS TABLE
        SELECT etag, size, count(*) AS objects, size * (count(*) - 1) AS bytes_more_than_once,
            list(bucket || '/' || key ORDER BY bucket, key)[:10] AS examples
        FROM objects WHERE size >= least_size GROUP BY etag, size HAVING count(*) > 1
        ORDER BY bytes_more_than_once DESC, etag
    """,
    "versions_per_key": """
        CREATE MACRO versions_per_key() AS TABLE
        SELECT bucket, key, count(*) AS versions, count(*) FILTER (is_delete_marker) AS delete_markers,
            coalesce(sum(size), 0) AS bytes, coalesce(sum(size) FILTER (NOT is_latest), 0) AS bytes_not_current
        FROM versions GROUP BY ALL ORDER BY versions DESC, bucket, key
    """,
    "under_replicated": """
        CREATE MACRO under_replicated() AS TABLE
        WITH known AS (
            SELECT digest, max(length) AS length, count(*) FILTER (NOT damaged) AS copies,
                least(max(CASE replicas WHEN 0 THEN 3 ELSE replicas END), (SELECT count(*) FROM places)) AS wanted
            FROM copies GROUP BY digest
        )
        SELECT * FROM known WHERE copies < wanted ORDER BY copies, digest
    """,
}
READS: Final = {
    "largest_prefixes": {"objects"},
    "growth_per_day": {"versions"},
    "duplicates": {"objects"},
    "versions_per_key": {"versions"},
    "under_replicated": {"copies", "places"},
}
"""The tables each macro reads."""
