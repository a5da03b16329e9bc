"""Parquet in an objmeta store as Polars LazyFrames, with columns, filters and row limits pushed down.

Polars does not ask fsspec for its URLs.  ``scan_parquet`` gives it files on this machine (``local_path``), which it
reads itself at the speed of the disk; or, where whole files would have to travel (a cluster), it has pyarrow read the
ranges that a query needs.  Either way the versions are those that were current when the scan was made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from fsspec.asyn import _run_coros_in_chunks

from gateway.fs.entries import VERSION_MARK
from gateway.fs.filesystem import ObjmetaFileSystem
from objmeta import Cluster

try:
    import polars as pl
    from polars.io.plugins import register_io_source
except ImportError as missing:
    raise ImportError("gateway.polars needs polars: pip install 'objmeta[polars]'") from missing

if TYPE_CHECKING:
    from gateway.data.localfiles import LocalFile

__all__ = ["scan_parquet"]

FILES_AT_ONCE: Final = 64
"""Each that is leased is an open file, and of those a process may have a thousand."""


def scan_parquet(
    source: str | Sequence[str],
    *,
    storage_options: dict[str, Any] | None = None,
    fs: ObjmetaFileSystem | None = None,
    local: bool | None = None,
    hive_partitioning: bool = False,
) -> pl.LazyFrame:
    """Scan a file, a directory, a pattern, or several of them: ``scan_parquet("objmeta://bucket/table/*.parquet")``.

    ``fs`` is the file system, else one with these ``storage_options`` (with ``as_of`` a table is read as it was).  With
    ``local`` the files are brought to this machine once and read there; the default is to do so unless the store is a
    cluster.  ``hive_partitioning`` takes columns from directories such as ``year=2026``; then ranges are read.

    Raises FileNotFoundError, and ValueError for ``local`` with ``hive_partitioning``.
    """
    if local and hive_partitioning:
        raise ValueError(
            "files on this machine lie in one directory, so local and hive_partitioning exclude each other"
        )
    files = ObjmetaFileSystem(**(storage_options or {})) if fs is None else fs
    names = _pinned(files, [source] if isinstance(source, str) else source)
    if hive_partitioning or not (local or (local is None and not isinstance(files.location, Cluster))):
        return _ranges(files, names, hive_partitioning)
    return register_io_source(
        _Local(files, names), schema=lambda: _schema(files, names[0]), is_pure=True, explain_name="objmeta"
    )


def _pinned(fs: ObjmetaFileSystem, sources: Sequence[str]) -> list[str]:
    """The files that names, directories and patterns stand for, each with its version."""
    found: dict[str, str] = {}
    for source in sources:
        names = fs.expand_path(source, recursive=False)
        below = [each for name in names for each in ([name] if fs.isfile(name) else fs.find(name))]
        for name in below:
            found[name] = name if fs.info(name)["name"] != name else f"{name}{VERSION_MARK}{fs.ukey(name)}"
    if not found:
        raise FileNotFoundError(f"there is no file in {', '.join(sources)}")
    return list(found.values())


def _schema(fs: ObjmetaFileSystem, name: str) -> dict[str, pl.DataType]:
    with fs.open(name) as file:
        return pl.read_parquet_schema(file)


def _ranges(fs: ObjmetaFileSystem, names: list[str], hive_partitioning: bool) -> pl.LazyFrame:
    import pyarrow.dataset

    dataset = pyarrow.dataset.dataset(
        names, filesystem=fs, format="parquet", partitioning="hive" if hive_partitioning else None
    )
    return pl.scan_pyarrow_dataset(dataset)


class _Local:
    """What Polars asks for rows: a scan of its own over files on this machine."""

    def __init__(self, fs: ObjmetaFileSystem, names: list[str]) -> None:
        self._fs = fs
        self._names = names

    def __call__(
        self, with_columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        # of files of which perhaps only the first is needed, only that is fetched
        left = n_rows
        at_a_time = FILES_AT_ONCE if left is None else 1
        for start in range(0, len(self._names), at_a_time):
            if left == 0:
                return
            leases = self._leased(self._names[start : start + at_a_time])
            try:
                frame = pl.scan_parquet([str(lease) for lease in leases], glob=False, hive_partitioning=False)
                if left is not None:
                    frame = frame.head(left)
                    left -= frame.select(pl.len()).collect().item()
                if predicate is not None:
                    frame = frame.filter(predicate)
                if with_columns is not None:
                    frame = frame.select(with_columns)
                yield from frame.collect_batches(chunk_size=batch_size)
            finally:
                for lease in leases:
                    lease.close()

    def _leased(self, names: list[str]) -> list[LocalFile]:
        async def lease() -> list[LocalFile]:
            jobs = [self._fs._local_path(name) for name in names]
            found: list[LocalFile] = await _run_coros_in_chunks(jobs, batch_size=8, nofiles=True)
            return found

        return self._fs.wait(self._fs.submit(lease()))
