"""What a node is told. Settings locate acceptors, they do not define them: identity is in the data directory."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from objmeta.config import parse_endpoints
from objmeta.errors import InvalidArgument

_NODE_ID_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """Settings of one node. Raises InvalidArgument if one is wrong."""

    data: Path
    """Directory of everything the node keeps; one node at a time may use it."""

    listen: str = "127.0.0.1:0"
    """``host:port`` to listen on; port 0 takes a free one."""

    node_id: int = 1
    """Which member of the cluster this is, from 1."""

    peers: Mapping[int, str] = field(default_factory=lambda: MappingProxyType({}))
    """Where the members are, by node id; this node may be among them. Empty: a cluster of one."""

    join: tuple[str, ...] = ()
    """``host:port`` of members of a cluster that this node is to join; then ``peers`` need not be given."""

    erase_interval_s: float = 3600.0
    """How often deleted names are erased; a name goes in the second pass after its deletion."""

    insecure: bool = False
    """Listen beyond this machine although nothing is encrypted and anybody may ask."""

    def __post_init__(self) -> None:
        host, _ = split_address(self.listen)
        if not self.insecure and not _is_loopback(host):
            raise InvalidArgument(
                f"{self.listen} can be reached from other machines and nothing is encrypted or checked yet; "
                "listen on 127.0.0.1, or say that insecure is meant"
            )
        if not self.erase_interval_s > 0:
            raise InvalidArgument(f"the interval of erasing must be above 0 seconds, not {self.erase_interval_s:g}")
        for node_id in (self.node_id, *self.peers):
            if not 1 <= node_id <= _NODE_ID_MAX:
                raise InvalidArgument(f"node id {node_id} must be 1 to {_NODE_ID_MAX}")
        parse_endpoints(list(self.peers.values()))
        parse_endpoints(list(self.join))
        others = [address for node_id, address in self.peers.items() if node_id != self.node_id]
        if len(set(others)) < len(others):
            raise InvalidArgument("two peers have the same address; every node needs one of its own")

    @property
    def members(self) -> tuple[int, ...]:
        """Ids of all members, this node included, in order."""
        return tuple(sorted({self.node_id, *self.peers}))

    @property
    def others(self) -> dict[int, str]:
        """Where the other members are."""
        return {node_id: address for node_id, address in sorted(self.peers.items()) if node_id != self.node_id}


def parse_peers(text: str) -> dict[int, str]:
    """Read ``1=host:port,2=host:port``. Raises InvalidArgument."""
    peers: dict[int, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        number, equals, address = part.partition("=")
        if not equals or not number.strip().isdecimal():
            raise InvalidArgument(f"{part!r} is not ID=HOST:PORT, such as 1=127.0.0.1:7401")
        node_id = int(number)
        if node_id in peers:
            raise InvalidArgument(f"node {node_id} is named twice among the peers")
        peers[node_id] = parse_endpoints(address)[0] if address.strip() else ""
        if not peers[node_id]:
            raise InvalidArgument(f"{part!r} is not ID=HOST:PORT, such as 1=127.0.0.1:7401")
    return peers


def split_address(address: str) -> tuple[str, int]:
    """``host:port`` in its parts. Raises InvalidArgument."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise InvalidArgument(f"{address!r} is not host:port, such as 127.0.0.1:7401 or [::1]:0")
    return host, int(port)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
