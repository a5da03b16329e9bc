"""Polars over Parquet in the store: only the columns and rows that a query needs, and tables as they were.

python examples/polars_scan.py
"""

from __future__ import annotations

from datetime import UTC, datetime

import fsspec
import polars as pl

from gateway.polars import scan_parquet

fs = fsspec.filesystem("objmeta")
fs.makedirs("polars-example", exist_ok=True)
sales = pl.DataFrame({"day": range(1000), "shop": [f"shop {day % 3}" for day in range(1000)], "items": range(1000)})
with fs.open("polars-example/sales/0.parquet", "wb") as file:
    sales.write_parquet(file)
then = datetime.now(UTC)
with fs.open("polars-example/sales/1.parquet", "wb") as file:
    sales.write_parquet(file)

lazy = scan_parquet("objmeta://polars-example/sales/*.parquet", fs=fs)
print(lazy.filter(pl.col("day") < 100).group_by("shop").agg(pl.col("items").sum()).sort("shop").collect())

past = scan_parquet("objmeta://polars-example/sales/*.parquet", storage_options={"as_of": then})
print("as it was:", past.select(pl.len()).collect().item(), "rows")
