"""A node that was down catches up: afterwards it agrees with another one about everything, without a round."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from objmeta.client import Client, connect
from objmeta.core.inventory import DigestRequest, RangeDigest
from objmeta.interfaces import RepairStatus
from objmeta.node import LocalCluster
from objmeta.node.kept import KeptMarks
from objmeta.rpc import wire
from objmeta.rpc.options import ask_blocking

TIMEOUT_S = 60.0


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path) as made:
        yield made


def agree(cluster: LocalCluster, one: int, other: int) -> bool:
    """Whether what the acceptors of both nodes hold has equal digests."""
    start = b""
    while True:
        own = digests(cluster, one, DigestRequest(start))
        theirs = digests(cluster, other, DigestRequest(start, tuple(each.end for each in own)))
        if not theirs or own[: len(theirs)] != theirs:
            return False
        start = theirs[-1].end
        if not start:
            return True


def digests(cluster: LocalCluster, node_id: int, request: DigestRequest) -> tuple[RangeDigest, ...]:
    endpoint = cluster.endpoint(node_id)
    hello = wire.decode_hello(ask_blocking(endpoint, wire.path(wire.PEER_SERVICE, wire.HELLO), b"", TIMEOUT_S))
    assert hello.configuration is not None
    question = wire.PeerQuestion(hello.configuration.tag, node_id, msgspec.Raw(wire.encode(request)))
    path = wire.path(wire.PEER_SERVICE, wire.DIGESTS)
    answer = wire.decode_peer_answer(ask_blocking(endpoint, path, wire.encode(question), TIMEOUT_S))
    assert answer.failure is None
    return wire.decode_digests(answer.answer).ranges


def caught_up(client: Client, node_id: int) -> RepairStatus:
    """Wait until the node's status says so."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        (node,) = (each for each in client.status().nodes if each.node_id == node_id)
        repair = node.repair
        if repair is not None and repair.complete_s is not None and not repair.running:
            return repair
        assert time.monotonic() < deadline, f"node {node_id} has not caught up: {repair}"
        time.sleep(0.05)


def test_a_node_that_was_down_catches_up(cluster: LocalCluster) -> None:
    everybody = connect(",".join(cluster.endpoints), timeout_s=TIMEOUT_S)
    everybody.create_bucket("box")
    for number in range(20):
        everybody.put_object("box", f"o{number}", data=b"first")
        everybody.put(f"k{number}", b"first")
    cluster.kill(3)
    for number in range(0, 20, 2):
        for content in (b"second", b"third" * 500):
            everybody.put_object("box", f"o{number}", data=content)
            everybody.put(f"k{number}", content)
    for number in range(0, 20, 4):
        oldest = everybody.versions("box", f"o{number}")[-1]
        everybody.remove_version("box", f"o{number}", oldest.version_id)
        everybody.delete_object("box", f"o{number + 1}")
        everybody.delete(f"k{number + 1}")
    for number in range(20):
        everybody.put_object("box", f"new{number}", data=b"new")
    everybody.create_bucket("later")
    expected = {f"o{number}": everybody.versions("box", f"o{number}") for number in range(20)}
    listed = everybody.list_versions("box")

    cluster.start(3)
    cluster.wait_ready([3])
    done = caught_up(everybody, 3)
    assert done.repaired >= 20 + 10 + 10 + 5 + 1
    assert done.left == 0
    assert dict(done.peers) == {1: "compared", 2: "compared"}
    everybody.close()

    cluster.kill(1)
    assert agree(cluster, 2, 3)
    rest = connect(f"{cluster.endpoint(2)},{cluster.endpoint(3)}", timeout_s=TIMEOUT_S)
    assert {key: rest.versions("box", key) for key in expected} == expected
    assert rest.list_versions("box") == listed
    for number in range(20):
        value = rest.get(f"k{number}")
        assert (value.value if value else None) == (
            b"third" * 500 if number % 2 == 0 else None if number % 4 == 1 else b"first"
        )
    assert [bucket.name for bucket in rest.buckets()] == ["box", "later"]
    assert agree(cluster, 2, 3), "nothing had to be written back for any of this"
    rest.close()


def test_who_was_never_away_has_nothing_to_repair(cluster: LocalCluster) -> None:
    client = connect(",".join(cluster.endpoints), timeout_s=TIMEOUT_S)
    client.put("k", b"v")
    for node_id in cluster.node_ids:
        assert caught_up(client, node_id).left == 0
    client.close()


def test_what_is_kept_of_peers_outlives_the_process_and_damage_is_nothing(tmp_path: Path) -> None:
    marks = KeptMarks(tmp_path)
    assert marks.kept() == {}
    asyncio.run(marks.keep({1: 10, 2: 20}))
    asyncio.run(marks.keep({2: 30}))
    assert KeptMarks(tmp_path).kept() == {2: 30}
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    assert KeptMarks(tmp_path).kept() == {}
