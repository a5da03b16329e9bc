"""The ports of a local cluster."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from objmeta.errors import Unavailable
from objmeta.node.dev import LocalCluster, _free_addresses


def test_processes_that_look_at_once_find_other_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = os.getpid()
    found = []
    for pid in (mine, mine + 1):
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        found += _free_addresses(40)
    assert len(set(found)) == 80


def test_a_port_that_is_taken_is_left_out() -> None:
    taken, *_ = _free_addresses(1)
    with socket.create_server(("127.0.0.1", int(taken.rpartition(":")[2]))):
        assert all(taken not in _free_addresses(3) for _ in range(30))
    with pytest.raises(Unavailable, match="65 are free"):
        _free_addresses(65)


def test_two_clusters_have_addresses_of_their_own(tmp_path: Path) -> None:
    one, other = (LocalCluster(tmp_path, 3) for _ in range(2))
    assert len({*one.endpoints, *other.endpoints}) == 6
