"""A node with everything: objmeta's node and, on the same port, the chunks in ``DIR/blobs``.

``gateway serve`` runs it, ``gateway dev`` and the tests as ``python -m gateway.server``.  When it listens it prints one
line, ``node ID listens on HOST:PORT``, and the port is the real one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gateway.bloblocal import LocalBlobs
from gateway.blobservice import BlobService
from objmeta import errors
from objmeta.config import parse_endpoints
from objmeta.node import Node, NodeSettings, parse_peers, run
from objmeta.node import serve as serve_node
from objmeta.node.dev import LocalCluster

__all__ = ["LocalCluster", "local_cluster", "run", "serve"]


def local_cluster(directory: Path, nodes: int = 3) -> LocalCluster:
    """Nodes of this kind as processes on this machine, not started yet."""
    return LocalCluster(directory, nodes, (sys.executable, "-m", "gateway.server"))


async def serve(
    data: Path,
    listen: str = "127.0.0.1:0",
    node_id: int = 1,
    peers: Mapping[int, str] | None = None,
    insecure: bool = False,
    join: Sequence[str] = (),
    announce: Callable[[int, str], None] | None = None,
    erase_interval_s: float = 3600.0,
) -> None:
    """Run a node until SIGTERM or SIGINT, then stop it cleanly.

    ``peers`` maps node ids to ``host:port`` (none: a cluster of one); ``join`` names members, by ``host:port``, of a
    cluster that the node is to join.  ``announce`` is called with the node's id and
    address when it listens; without it, a line is printed.

    Raises InvalidArgument, StoreError, StoreFull, ConfigurationMismatch: what keeps the node from serving.
    """
    settings = NodeSettings(
        data=data,
        listen=listen,
        node_id=node_id,
        peers=dict(peers or {}),
        join=tuple(join),
        insecure=insecure,
        erase_interval_s=erase_interval_s,
    )
    blobs = LocalBlobs(data / "blobs")

    def check() -> None:
        node.registers()

    service = BlobService(blobs, check, node_id)
    node = Node(settings, (service.handler(),))
    told = announce or _print
    try:
        await serve_node(node, lambda started: told(node_id, started.address))
    finally:
        await blobs.close()


def _print(node_id: int, address: str) -> None:
    print(f"node {node_id} listens on {address}", flush=True)


def main() -> int:
    """Run until SIGTERM or SIGINT; 0 when stopped, 1 when the node cannot serve."""
    parser = argparse.ArgumentParser(prog="python -m gateway.server", description="Run one node of a cluster.")
    parser.add_argument("--data", type=Path, required=True, help="directory of everything the node keeps")
    parser.add_argument("--listen", default="127.0.0.1:0", help="host:port; port 0 takes a free one")
    parser.add_argument("--node-id", type=int, default=1)
    parser.add_argument("--peers", default="", help="1=host:port,2=host:port,3=host:port")
    parser.add_argument("--join", default="", help="host:port,… of members of the cluster to join")
    parser.add_argument("--insecure", action="store_true", help="listen beyond this machine, without encryption")
    given = parser.parse_args()
    try:
        join = parse_endpoints(given.join) if given.join else ()
        run(serve(given.data, given.listen, given.node_id, parse_peers(given.peers), given.insecure, join))
    except errors.ObjmetaError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
