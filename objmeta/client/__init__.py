"""The one door to objmeta: ``connect("…")`` gives a client, embedded or of a cluster behind the same methods.

Files: ``asynchronous`` and ``synchronous`` (the clients), ``services`` (what they open), ``locks`` (locks and elections
of the synchronous client), ``locations`` (where a store can be), ``embedded`` (the store in a directory), ``disks``
(the store over several disks).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from objmeta.client.asynchronous import AsyncClient
from objmeta.client.locations import Cluster, Disks, Embedded, Location
from objmeta.client.locks import Election, Lease, Lock
from objmeta.client.synchronous import Client
from objmeta.config import resolve
from objmeta.core.configuration import Membership
from objmeta.interfaces import Collected, Cycle, MembersStatus, NodeStatus, StoreStatus

__all__ = [
    "AsyncClient",
    "Client",
    "Cluster",
    "Collected",
    "Cycle",
    "Disks",
    "Election",
    "Embedded",
    "Lease",
    "Location",
    "Lock",
    "MembersStatus",
    "Membership",
    "NodeStatus",
    "StoreStatus",
    "connect",
    "connect_async",
]


def connect(
    target: str | os.PathLike[str] | None = None,
    *,
    disks: Sequence[str | os.PathLike[str]] | None = None,
    timeout_s: float | None = None,
    failover_s: float | None = None,
) -> Client:
    """Open a store: a directory, or nodes given as ``"host:port,host:port"``.

    ``disks``, given instead, are at least three directories, best on as many disks, that hold a store together; it
    survives the loss of a minority of them.

    Without ``target`` the settings decide (``OBJMETA_ENDPOINTS``, ``OBJMETA_HOME``, the config file), and without those
    it is the store in the user's data directory, made at first use.  Nothing is opened before the first operation.

    Raises InvalidArgument if a setting is wrong.
    """
    overrides = {"target": target, "disks": disks, "timeout_s": timeout_s, "failover_s": failover_s}
    return Client(resolve(overrides).settings)


def connect_async(
    target: str | os.PathLike[str] | None = None,
    *,
    disks: Sequence[str | os.PathLike[str]] | None = None,
    timeout_s: float | None = None,
    failover_s: float | None = None,
) -> AsyncClient:
    """The same as :func:`connect` for coroutines."""
    overrides = {"target": target, "disks": disks, "timeout_s": timeout_s, "failover_s": failover_s}
    return AsyncClient(resolve(overrides).settings)
