"""gateway: files, pandas and SQL on top of an objmeta store.

::

    cli                             the command ``gateway``
    filesystem, upath               objmeta:// paths for fsspec and universal_pathlib
        (fs*, entries, readers, writers, blocking, instances)
    catalog                         SQL over buckets, objects and versions
    transfer                        bytes and metadata joined: put, get, streams, copies
        (uploading, parts, commits)
    blobs                           where chunks live: locally, on several disks, on nodes
        (blob*, packs, groupsync, files, room)
    chunking, placement             where content is cut, and on which nodes its chunks belong
    retention                       the rules of buckets, by which versions go
    cycles, collect*                what nothing names any more is found and deleted (docs/collection.md)
    upkeep                          repair, scrub and checks of chunks that are stored (marks: what is named)
    server                          a node that keeps chunks as well, and looks after them
    oserrors                        objmeta's errors as OSErrors
    testing                         the simulator of the data, for tests

Everything public is named in ``__all__`` here.  A name is loaded when it is first used: importing ``gateway`` imports
neither grpc nor duckdb, pyarrow, pandas or fsspec.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from gateway.catalog import Result, sql, sql_async
    from gateway.filesystem import ObjmetaFileSystem
    from gateway.oserrors import os_error
    from gateway.transfer import Store, open_store
    from gateway.uploading import Upload

__all__ = ["ObjmetaFileSystem", "Result", "Store", "Upload", "open_store", "os_error", "sql", "sql_async"]

_HOME: Final = {
    "ObjmetaFileSystem": "gateway.filesystem",
    "Result": "gateway.catalog",
    "Store": "gateway.transfer",
    "Upload": "gateway.uploading",
    "open_store": "gateway.transfer",
    "os_error": "gateway.oserrors",
    "sql": "gateway.catalog",
    "sql_async": "gateway.catalog",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
