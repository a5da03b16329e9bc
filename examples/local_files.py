"""Programs that want a path: DuckDB, numpy.memmap and others at the speed of the disk.

python examples/local_files.py
"""

from __future__ import annotations

import os

import duckdb
import fsspec
import numpy as np

fs = fsspec.filesystem("objmeta")
fs.makedirs("local-example", exist_ok=True)
connection = duckdb.connect()
connection.register_filesystem(fs)
numbers = "SELECT i, i % 3 AS k FROM range(1000) r(i)"
connection.execute(f"COPY ({numbers}) TO 'objmeta://local-example/numbers.parquet'")
with fs.open("local-example/numbers.npy", "wb") as file:
    np.save(file, np.arange(1000))

# A verified, read-only file with the object's content. It is made once and stays as long as it is referred to.
path = fs.local_path("local-example/numbers.parquet")
print(connection.execute(f"SELECT count(*), sum(i) FROM '{path}' WHERE k = 0").fetchone())

# What is mapped stays mapped, whatever becomes of the path; the block gives it back.
with fs.local_path("local-example/numbers.npy") as path:
    mapped = np.load(path, mmap_mode="r")
print(mapped[-1])

# A path is of one version for good: the object is replaced, and the old content has its file still.
old = fs.info("local-example/numbers.parquet")["VersionId"]
connection.execute(f"COPY ({numbers} LIMIT 10) TO 'objmeta://local-example/numbers.parquet'")
before = fs.local_path("local-example/numbers.parquet", version_id=old)
print("the old version:", connection.execute("SELECT count(*) FROM read_parquet(?)", [str(before)]).fetchone())
kept = [name for name in os.listdir(os.path.dirname(before)) if not name.startswith(".")]
print(f"kept: {len(kept)} files")
