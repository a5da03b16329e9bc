"""The one door to objmeta: ``connect("…")`` gives a client, embedded or of a cluster behind the same methods.

Files: ``asynchronous`` and ``synchronous`` (the clients), ``embedded`` (the store in a directory).
"""

from __future__ import annotations

import os

from objmeta.client.asynchronous import AsyncClient, Cluster, Embedded, Location
from objmeta.client.synchronous import Client
from objmeta.config import resolve
from objmeta.interfaces import NodeStatus, StoreStatus

__all__ = [
    "AsyncClient",
    "Client",
    "Cluster",
    "Embedded",
    "Location",
    "NodeStatus",
    "StoreStatus",
    "connect",
    "connect_async",
]


def connect(
    target: str | os.PathLike[str] | None = None, *, timeout_s: float | None = None, failover_s: float | None = None
) -> Client:
    """Open a store: a directory, or nodes given as ``"host:port,host:port"``.

    Without ``target`` the settings decide (``OBJMETA_ENDPOINTS``, ``OBJMETA_HOME``, the config file), and without those
    it is the store in the user's data directory, made at first use.  Nothing is opened before the first operation.

    Raises InvalidArgument if a setting is wrong.
    """
    overrides = {"target": target, "timeout_s": timeout_s, "failover_s": failover_s}
    return Client(resolve(overrides).settings)


def connect_async(
    target: str | os.PathLike[str] | None = None, *, timeout_s: float | None = None, failover_s: float | None = None
) -> AsyncClient:
    """The same as :func:`connect` for coroutines."""
    overrides = {"target": target, "timeout_s": timeout_s, "failover_s": failover_s}
    return AsyncClient(resolve(overrides).settings)
