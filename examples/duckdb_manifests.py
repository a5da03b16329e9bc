"""SQL twice: over what the store knows of its objects, and over what is in them.

python examples/duckdb_manifests.py
"""

from __future__ import annotations

import contextlib

import duckdb
import fsspec

import gateway
import objmeta
from objmeta import errors

with objmeta.connect() as client:
    with contextlib.suppress(errors.AlreadyExists):
        client.create_bucket("duckdb-example")
    for name, text in (("a.log", b"one\n"), ("b.log", b"two\n"), ("a.log", b"one\nthree\n")):
        client.put_object("duckdb-example", f"logs/{name}", data=text, content_type="text/plain", metadata={"by": "me"})

    # Manifests: tables buckets, objects, versions, chunks and nodes, with every change that finished before.
    print(
        gateway.sql(
            client,
            """
            SELECT key, count(*) AS versions, max(size) AS largest, any_value(metadata['by']) AS author
            FROM versions WHERE bucket = 'duckdb-example' AND key LIKE 'logs/%' GROUP BY key ORDER BY key
            """,
        )
    )

# Contents: DuckDB reads and writes objmeta:// paths through fsspec.
connection = duckdb.connect()
connection.register_filesystem(fsspec.filesystem("objmeta"))
connection.execute("COPY (SELECT i, i % 3 AS k FROM range(1000) r(i)) TO 'objmeta://duckdb-example/numbers.parquet'")
query = "SELECT k, count(*), sum(i) FROM read_parquet('objmeta://duckdb-example/*.parquet') GROUP BY k ORDER BY k"
for row in connection.execute(query).fetchall():
    print(row)
