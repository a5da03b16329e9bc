"""gateway: files, pandas and SQL on top of an objmeta store.

::

    cli          the command ``gateway``
    mount        a store as a directory (extra ``mount``)
    fs           objmeta:// paths for fsspec and universal_pathlib
    polars       Parquet in a store as Polars LazyFrames (extra ``polars``)
    catalog      SQL over buckets, objects and versions
    data         bytes and metadata joined: put, get, streams, copies
    blobs        where chunks live: locally, on several disks, on nodes
    collection   what nothing names any more is found and deleted; which versions go by the rules of their bucket
    upkeep       repair, scrub and checks of chunks that are stored
    server       a node that keeps chunks as well, and looks after them
    testing      the simulator of the data, for tests

Everything public is named in ``__all__`` here.  A name is loaded when it is first used: importing ``gateway`` imports
neither grpc nor duckdb, pyarrow, pandas or fsspec.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from gateway.catalog.query import sql, sql_async
    from gateway.catalog.results import Result
    from gateway.data.transfer import Store, open_store
    from gateway.data.uploading import Upload
    from gateway.fs.filesystem import ObjmetaFileSystem
    from gateway.fs.oserrors import os_error

__all__ = ["ObjmetaFileSystem", "Result", "Store", "Upload", "open_store", "os_error", "sql", "sql_async"]

_HOME: Final = {
    "ObjmetaFileSystem": "gateway.fs.filesystem",
    "Result": "gateway.catalog.results",
    "Store": "gateway.data.transfer",
    "Upload": "gateway.data.uploading",
    "open_store": "gateway.data.transfer",
    "os_error": "gateway.fs.oserrors",
    "sql": "gateway.catalog.query",
    "sql_async": "gateway.catalog.query",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
