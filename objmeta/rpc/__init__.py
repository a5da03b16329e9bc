"""Messages between processes: gRPC streams of batches, encoded with msgspec.

Files: ``wire`` (what the messages hold), ``batching`` and ``streams`` (what queues up while a message is in flight
leaves in the next), ``options`` (settings of gRPC), ``peer`` (between nodes), ``service`` (a node's side of the client
stream), ``client`` (:class:`~objmeta.rpc.client.RemoteRegisters`, the clients' side) and ``link`` (its connection to
one node).

gRPC takes some settings only from the environment, when it is imported first; so that happens here, and the environment
is put back as it was.  What the user set stays in force.
"""

from __future__ import annotations

import os
from typing import Final

_SETTINGS: Final = {
    # With its fork handlers a busy parent's children crash now and then, even those that never touch gRPC: 49 of 200
    # with version 1.85, and none without.
    "GRPC_ENABLE_FORK_SUPPORT": "0",
    # A connection that ends is no news for somebody's terminal.
    "GRPC_VERBOSITY": "ERROR",
}


def _import_grpc() -> None:
    ours = {name: value for name, value in _SETTINGS.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        import grpc  # noqa: F401
    finally:
        for name in ours:
            del os.environ[name]


_import_grpc()
