"""The daemon: one acceptor, a proposer for clients, and what makes three of them a cluster.

Files: ``settings`` (what a node is told), ``data`` (its directory), ``bootstrap`` (how a cluster comes to be),
``background`` (what it does by itself), ``positions`` (who has lost what it had promised is found out),
``kept`` (small things remembered over restarts), ``members`` (its part in changes of members), ``others`` (how the
others are, seen from here), ``forwarding`` (changes go to the home of their register), ``node`` (the wiring),
``process`` (a node as a process of its own), ``dev`` (several of those on this machine).
"""

from __future__ import annotations

from objmeta.node.dev import LocalCluster
from objmeta.node.node import Node
from objmeta.node.process import run, serve
from objmeta.node.settings import NodeSettings, parse_peers

__all__ = ["LocalCluster", "Node", "NodeSettings", "parse_peers", "run", "serve"]
