"""pandas reads and writes objmeta:// paths as it does local ones.

    python examples/pandas_roundtrip.py

Installing objmeta registers the protocol with fsspec, so nothing has to be imported for the paths to work.
"""

from __future__ import annotations

import fsspec
import pandas as pd

fs = fsspec.filesystem("objmeta")
fs.makedirs("pandas-example", exist_ok=True)  # the first part of a path is the bucket

weather = pd.DataFrame(
    {
        "city": ["Oslo", "Lima", "Oslo", "Lima"],
        "day": pd.to_datetime(["2026-03-01", "2026-03-01", "2026-03-02", "2026-03-02"]),
        "degrees": [-1.5, 24.0, 0.5, 23.0],
    }
)

weather.to_parquet("objmeta://pandas-example/weather.parquet")
weather.to_csv("objmeta://pandas-example/weather.csv", index=False)

parquet = pd.read_parquet("objmeta://pandas-example/weather.parquet")
csv = pd.read_csv("objmeta://pandas-example/weather.csv", parse_dates=["day"])
assert parquet.equals(weather)
assert csv.assign(day=csv["day"].astype(weather["day"].dtype)).equals(weather)

# Parquet is read by column: only the bytes of this one are fetched.
print(pd.read_parquet("objmeta://pandas-example/weather.parquet", columns=["degrees"])["degrees"].mean())

# A partitioned data set is a directory of objects.
weather.to_parquet("objmeta://pandas-example/by-city", partition_cols=["city"])
print(pd.read_parquet("objmeta://pandas-example/by-city", filters=[("city", "==", "Oslo")])["degrees"].tolist())
print(sorted(path.rpartition("/")[2] for path in fs.ls("pandas-example", detail=False)))
