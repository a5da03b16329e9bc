"""``gateway gc`` on a store in a directory, and on a cluster of which a node is away."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from gateway.data import parts
from gateway.data.transfer import open_store
from objmeta.node import LocalCluster
from tests.cli.conftest import Run, Shell


def test_what_was_removed_for_good_is_erased(gateway: Run, bucket: str, shell: Shell) -> None:
    (shell.directory / "f").write_bytes(b"content")
    gateway("put", "f", f"{bucket}/kept")
    gateway("put", "f", f"{bucket}/gone")
    gateway("rm", "--versions", f"{bucket}/gone")
    gateway("mb", "other")
    gateway("rb", "other")
    gateway("mv", f"{bucket}/kept", f"{bucket}/moved")
    gateway("mv", f"{bucket}/moved", f"{bucket}/kept")  # each of them leaves a trace of its own
    assert gateway("gc").lines == ["erased 4 registers", "deleted 0 copies of chunks, 0"]
    (record,) = gateway("--json", "gc").records
    assert record == {
        "versions_removed": 0,
        "versions_removed_bytes": 0,
        "versions_left": 0,
        "registers_erased": record["registers_erased"],
        "registers_left": 0,
        "copies_deleted": 0,
        "copies_deleted_bytes": 0,
        "copies_left": 0,
        "waiting_for": [],
        "problem": "",
    }
    assert gateway("cat", f"{bucket}/kept").raw == b"content"
    gateway("put", "f", f"{bucket}/gone")
    (version,) = gateway("--json", "versions", f"{bucket}/gone").records
    assert version["is_latest"]


def test_the_rules_of_a_bucket_are_applied(gateway: Run, bucket: str, shell: Shell) -> None:
    for content in (b"first", b"second", b"third"):
        (shell.directory / "f").write_bytes(content)
        gateway("put", "f", f"{bucket}/k")
    gateway("bucket", "set", bucket, "--keep-versions", "1")
    oldest = gateway("--json", "versions", f"{bucket}/k").records[-1]
    assert gateway("gc", "--dry-run").lines == [
        f"box/k  {oldest['version_id']}",
        "1 version, 5, would be removed",
        "0 copies of chunks, 0, that nothing uses any more, would be deleted",
    ]
    planned, _ = gateway("--json", "gc", "--dry-run").records
    assert planned["version_id"] == oldest["version_id"]
    assert len(gateway("--json", "versions", f"{bucket}/k").records) == 3
    assert gateway("gc").lines[0] == "removed 1 version, 5, by the rules of their buckets"
    assert len(gateway("--json", "versions", f"{bucket}/k").records) == 2
    assert gateway("gc", "--dry-run").lines[0] == "0 versions, 0, would be removed"
    assert gateway("cat", f"{bucket}/k").raw == b"third"


def test_the_space_of_what_was_removed_is_freed(gateway: Run, bucket: str, shell: Shell) -> None:
    kept, gone = os.urandom(100_000), os.urandom(100_000)
    for name, content in (("kept", kept), ("gone", gone)):
        (shell.directory / name).write_bytes(content)
        gateway("put", name, f"{bucket}/{name}")
    gateway("cp", f"{bucket}/kept", f"{bucket}/copy")
    gateway("rm", "--versions", f"{bucket}/gone")
    gateway("rm", "--versions", f"{bucket}/kept")
    assert "1 copy of a chunk, 97.7K, that nothing uses any more, would be deleted" in gateway("gc", "--dry-run").lines
    assert "deleted 1 copy of a chunk, 97.7K" in gateway("gc", "--grace", "0").lines
    assert gateway("cat", f"{bucket}/copy").raw == kept
    (record,) = gateway("--json", "gc", "--grace", "0").records
    assert (record["copies_deleted"], record["copies_left"]) == (0, 0)


def test_an_upload_in_parts_that_is_open_stays(gateway: Run, bucket: str, shell: Shell) -> None:
    pieces = [os.urandom(100_000) for _ in range(3)]

    async def begin() -> str:
        store = await open_store(shell.home)
        upload_id = await parts.begin(store, bucket, "k")
        for number, piece in enumerate(pieces):
            await parts.put_part(store, upload_id, number + 1, piece)
        await store.close()
        return upload_id

    async def complete(upload_id: str) -> None:
        store = await open_store(shell.home)
        await parts.complete(store, upload_id)
        await store.close()

    upload_id = asyncio.run(begin())
    for _ in range(2):
        (record,) = gateway("--json", "gc", "--grace", "0").records
        assert (record["copies_deleted"], record["copies_left"], record["problem"]) == (0, 0, "")
    asyncio.run(complete(upload_id))
    assert gateway("cat", f"{bucket}/k").raw == b"".join(pieces)


def test_a_node_that_is_away_is_waited_for(gateway: Run, tmp_path: Path) -> None:
    with LocalCluster(tmp_path / "cluster") as cluster:
        target = ",".join(cluster.endpoints)
        gateway("--store", target, "mb", "box")
        gateway("--store", target, "rb", "box")
        cluster.kill(3)
        away = gateway("--store", target, "gc", code=5)
        assert away.out == "erased 0 registers\n"
        assert "waiting for node 3:" in away.err
