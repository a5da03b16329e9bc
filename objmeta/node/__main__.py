"""``python -m objmeta.node``: a bare node, without blobs (``gateway serve`` runs one with them)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from objmeta.config import parse_endpoints
from objmeta.errors import ObjmetaError
from objmeta.node.node import Node
from objmeta.node.process import run, serve
from objmeta.node.settings import NodeSettings, parse_peers


def main() -> int:
    """Run until SIGTERM or SIGINT; 0 when stopped, 1 when the node cannot serve."""
    parser = argparse.ArgumentParser(prog="python -m objmeta.node", description="Run one node of a cluster.")
    parser.add_argument("--data", type=Path, required=True, help="directory of everything the node keeps")
    parser.add_argument("--listen", default="127.0.0.1:0", help="host:port; port 0 takes a free one")
    parser.add_argument("--node-id", type=int, default=1)
    parser.add_argument("--peers", default="", help="1=host:port,2=host:port,3=host:port")
    parser.add_argument("--join", default="", help="host:port,… of members of the cluster to join")
    parser.add_argument("--insecure", action="store_true", help="listen beyond this machine, without encryption")
    given = parser.parse_args()
    try:
        settings = NodeSettings(
            data=given.data,
            listen=given.listen,
            node_id=given.node_id,
            peers=parse_peers(given.peers),
            join=parse_endpoints(given.join) if given.join else (),
            insecure=given.insecure,
        )
        run(serve(Node(settings), lambda node: print(f"node {settings.node_id} listens on {node.address}", flush=True)))
    except ObjmetaError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
