"""Nodes that have lost what they promised: rolled back, and met again by members that remember them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from pathlib import Path

import pytest
from rocksdict import DBCompressionType, Options, Rdict

from objmeta.core.listing import ScanRequest, decode_rows
from objmeta.errors import StoreError
from objmeta.node import LocalCluster
from objmeta.node.positions import FILE_NAME, Positions
from objmeta.rpc.client import RemoteRegisters
from objmeta.rpc.wire import Life
from objmeta.store.rocks_files import DATABASE_NAME
from tests.node.test_cluster import TIMEOUT_S, put, value_of

A, B = b"life-one", b"life-two"


def data(cluster: LocalCluster, node_id: int) -> Path:
    return cluster.directory / f"node-{node_id}" / "data"


async def test_a_node_put_back_from_a_copy_is_refused_and_the_others_go_on(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path)
    await asyncio.to_thread(cluster.open)
    client = RemoteRegisters([cluster.endpoint(1), cluster.endpoint(3)])
    try:
        await client.change(put(b"a", b"1"), TIMEOUT_S)
        assert await asyncio.to_thread(cluster.stop, 2) == 0
        shutil.copytree(data(cluster, 2), tmp_path / "copy")
        cluster.start(2)
        await asyncio.to_thread(cluster.wait_ready, (2,))
        cluster.kill(3)  # so that node 2 votes on everything that follows
        for number in range(20):
            await client.change(put(b"a", b"%d" % number), TIMEOUT_S)
        cluster.start(3)
        await asyncio.to_thread(cluster.wait_ready, (3,))
        cluster.kill(2)
        shutil.rmtree(data(cluster, 2))
        (tmp_path / "copy").rename(data(cluster, 2))
        cluster.start(2)
        with pytest.raises(
            StoreError, match=r"older than what node \d has seen of this node .*'gateway cluster replace'"
        ):
            await asyncio.to_thread(cluster.wait_ready, (2,))
        assert str(data(cluster, 2)) in cluster.log(2)
        await client.change(put(b"a", b"last"), TIMEOUT_S)
        assert await value_of(client, b"a") == b"last"
    finally:
        await client.close()
        await asyncio.to_thread(cluster.close)


async def test_what_is_remembered_survives_and_a_cluster_starts_again_at_once(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path)
    await asyncio.to_thread(cluster.open)
    client = RemoteRegisters(cluster.endpoints)
    try:
        for number in range(10):
            await client.change(put(b"a", b"%d" % number), TIMEOUT_S)
        deadline = time.monotonic() + TIMEOUT_S
        while not all(Positions(data(cluster, 1)).remembered(peer)[1] for peer in (2, 3)):
            assert time.monotonic() < deadline, "node 1 wrote down nothing of the others"
            await asyncio.sleep(0.05)
        for node_id in cluster.node_ids:
            cluster.kill(node_id)
        for node_id in cluster.node_ids:
            cluster.start(node_id)
        await asyncio.to_thread(cluster.wait_ready)
        assert await value_of(client, b"a") == b"9"
    finally:
        await client.close()
        await asyncio.to_thread(cluster.close)


async def test_a_life_that_begins_below_what_was_told_is_refused(tmp_path: Path) -> None:
    positions = Positions(tmp_path)
    assert positions.met(2, Life(A, 10, 10)) == ""
    positions.heard(2, 30)
    assert positions.met(2, Life(A, 10, 10)) == ""  # the same life over a new connection
    assert positions.remembered(2) == (A, 30)
    assert "lost data" in positions.met(2, Life(B, 29, 29))
    assert positions.problem(2)
    assert positions.met(2, Life(B, 30, 30)) == ""
    assert not positions.problem(2)


async def test_positions_are_kept_and_a_damaged_file_says_nothing(tmp_path: Path) -> None:
    positions = Positions(tmp_path)
    positions.met(2, Life(A, 10, 10))
    positions.heard(2, 30)
    await positions.keep_now()
    kept = Positions(tmp_path)
    assert kept.remembered(2) == (A, 30)
    assert kept.met(2, Life(A, 10, 10)) == ""  # it went on while this node was down
    assert "lost data" in kept.met(2, Life(B, 29, 29))
    file = tmp_path / FILE_NAME
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert Positions(tmp_path).remembered(2) == (b"", 0)


async def test_a_flipped_bit_costs_a_node_its_vote_on_that_row_and_nothing_else(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path)
    await asyncio.to_thread(cluster.open)
    client = RemoteRegisters(cluster.endpoints)
    value = os.urandom(400)
    try:
        for number in range(40):
            await client.change(put(b"%02d" % number, value if number == 39 else b"v" * 400), TIMEOUT_S)
        assert await asyncio.to_thread(cluster.stop, 2) == 0
        flip_row(data(cluster, 2) / "acceptor" / DATABASE_NAME, value)
        cluster.start(2)
        await asyncio.to_thread(cluster.wait_ready, (2,))
        assert await value_of(client, b"39") == value
        page = await client.scan(ScanRequest(b"k/", b"k0"), TIMEOUT_S)
        assert len(decode_rows(page.rows)) == 40
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            assert await value_of(client, b"39") == value
            (node,) = [node for node in (await client.status(TIMEOUT_S)).nodes if node.node_id == 2]
            if "mended so far: 1" in node.detail:
                break
            assert time.monotonic() < deadline, f"the damage was not reported, or not mended: {node.detail}"
            await asyncio.sleep(0.05)
        assert node.state == "up"
        assert node.detail.startswith("damaged: ")
        cluster.kill(1)  # its vote counts again where it is whole, and where it was mended
        await client.change(put(b"08", b"new"), TIMEOUT_S)
        assert await value_of(client, b"08") == b"new"
        assert await value_of(client, b"39") == value
    finally:
        await client.close()
        await asyncio.to_thread(cluster.close)


def flip_row(database: Path, value: bytes) -> None:
    """Flip a bit inside the row with this value in a table of a RocksDB, whose log has been written out to tables."""
    options = Options(raw_mode=True)
    options.set_compression_type(DBCompressionType.none())
    options.set_bottommost_compression_type(DBCompressionType.none())
    with contextlib.closing(Rdict(str(database), options, {"default": options})) as opened:
        opened.flush()
        opened.compact_range(None, None)
    for table in sorted(database.glob("*.sst")):
        content = bytearray(table.read_bytes())
        at = content.rfind(value)
        if at >= 0:
            content[at + 40] ^= 1
            table.write_bytes(content)
            return
    pytest.fail("no table holds the value in plain")
