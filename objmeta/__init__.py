"""objmeta: an object store whose metadata is replicated by CASPaxos.

::

    gateway   (a package of its own: file system, command line, SQL; imports only what is named here)
       |
    client    the one door
    node      the daemon               rpc      messages between processes
    objects   buckets, objects, versions, listings, key-value registers, locks, elections
    register | store | model           rounds and retries | durable acceptors | what is stored
    core      CASPaxos, pure
    interfaces, errors, config         forking: what must not be open while the process forks; channels: connections of
                                       gRPC (grpcio), or in a forked child the same without it (purechannel); vectors:
                                       many MessagePack values at once, by the column
    testing   (beside all of it) simulator, fakes, checkers; imported by tests and bench only

Everything public is named in ``__all__`` here; ``docs/architecture.md`` says where to look for what.
"""

from __future__ import annotations

from objmeta.client import (
    AsyncClient,
    Client,
    Cluster,
    Cycle,
    Disks,
    Election,
    Embedded,
    Lease,
    Lock,
    connect,
    connect_async,
)
from objmeta.model.values import BucketSettings, Chunk, Manifest
from objmeta.objects.columns import EncodedVersions, VersionArrays, VersionColumns
from objmeta.objects.elections import AsyncElection
from objmeta.objects.feed import ChangedVersions, LoadedPage
from objmeta.objects.locks import AsyncLease, AsyncLock, LockHolder
from objmeta.objects.marks import Marked, Named
from objmeta.objects.types import (
    Bucket,
    ChangedObject,
    ChangePage,
    DeleteObject,
    KeyValue,
    ObjectPage,
    ObjectSummary,
    ObjectVersion,
    PutObject,
    RemovedVersion,
    VersionPage,
)

__all__ = [
    "AsyncClient",
    "AsyncElection",
    "AsyncLease",
    "AsyncLock",
    "Bucket",
    "BucketSettings",
    "ChangePage",
    "ChangedObject",
    "ChangedVersions",
    "Chunk",
    "Client",
    "Cluster",
    "Cycle",
    "DeleteObject",
    "Disks",
    "Election",
    "Embedded",
    "EncodedVersions",
    "KeyValue",
    "Lease",
    "LoadedPage",
    "Lock",
    "LockHolder",
    "Manifest",
    "Marked",
    "Named",
    "ObjectPage",
    "ObjectSummary",
    "ObjectVersion",
    "PutObject",
    "RemovedVersion",
    "VersionArrays",
    "VersionColumns",
    "VersionPage",
    "connect",
    "connect_async",
]
