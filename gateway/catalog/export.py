"""What a query sees of versions and buckets as Parquet, for Spark, Dask, Trino and whoever else reads that.

``DIR/versions/bucket=NAME/*.parquet`` (hive partitions) and ``DIR/buckets.parquet``.  Everything is written beside the
directory and renamed to it at the end: it is there whole, or not at all.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Final

import pyarrow.dataset as ds
import pyarrow.parquet as pq

from gateway.catalog.query import OnRead, sql_async
from gateway.catalog.results import Result
from objmeta import AsyncClient
from objmeta.errors import AlreadyExists, StoreError

_WRITTEN: Final = frozenset({"versions", "buckets.parquet"})
_VERSIONS: Final = "SELECT * FROM versions ORDER BY bucket, key, sequence"


async def export(
    client: AsyncClient,
    directory: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    catalog: str | None = None,
    on_read: OnRead | None = None,
) -> Result:
    """Write ``directory``, which may be empty or not exist; what was written of versions is given back.

    With ``overwrite`` an earlier export is replaced as a whole, once the new one is complete.  Raises AlreadyExists
    without it, and if the directory holds anything else; StoreError if the disk fails, and what a query raises.
    """
    target = _place(directory, overwrite)
    versions = await sql_async(client, _VERSIONS, catalog=catalog, on_read=on_read)
    buckets = await sql_async(client, "SELECT * FROM buckets ORDER BY bucket", catalog=catalog)
    try:
        _write(target, versions, buckets, overwrite)
    except OSError as problem:
        raise StoreError(f"{target} cannot be written: {problem.strerror or problem}") from problem
    return versions


def _place(directory: str | os.PathLike[str], overwrite: bool) -> Path:
    target = Path(directory).expanduser().absolute()
    if target.exists() and not target.is_dir():
        raise AlreadyExists(f"{target} is a file; name a directory")
    if target.exists() and any(target.iterdir()) and not overwrite:
        raise AlreadyExists(f"{target} is not empty; name another directory, or say --overwrite")
    others = sorted(each.name for each in target.iterdir() if each.name not in _WRITTEN) if target.exists() else []
    if others:
        raise AlreadyExists(f"{target} holds {others[0]!r}, which is of no export; name another directory")
    return target


def _write(target: Path, versions: Result, buckets: Result, overwrite: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    mark = f"{os.getpid()}-{os.urandom(4).hex()}"
    made, old = (target.with_name(f".{target.name}.{mark}.{what}") for what in ("tmp", "old"))
    try:
        made.mkdir()
        ds.write_dataset(
            versions.arrow(),
            made / "versions",
            format="parquet",
            partitioning=["bucket"],
            partitioning_flavor="hive",
            max_partitions=1_000_000,
        )
        if not len(versions):  # a file without rows says what the columns are
            (made / "versions").mkdir()
            pq.write_table(versions.arrow(), made / "versions" / "part-0.parquet")
        pq.write_table(buckets.arrow(), made / "buckets.parquet")
        if overwrite and target.exists():
            target.rename(old)
        try:
            made.rename(target)
        except OSError as problem:
            if old.exists():
                old.rename(target)
            if problem.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise AlreadyExists(f"{target} was written meanwhile; nothing of it was changed") from None
            raise
    finally:
        for each in (made, old):
            shutil.rmtree(each, ignore_errors=True)
