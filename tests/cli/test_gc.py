"""``gateway gc`` on a store in a directory, and on a cluster of which a node is away."""

from __future__ import annotations

from pathlib import Path

from objmeta.node import LocalCluster
from tests.cli.conftest import Run, Shell


def test_what_was_removed_for_good_is_erased(gateway: Run, bucket: str, shell: Shell) -> None:
    (shell.directory / "f").write_bytes(b"content")
    gateway("put", "f", f"{bucket}/kept")
    gateway("put", "f", f"{bucket}/gone")
    gateway("rm", "--versions", f"{bucket}/gone")
    gateway("mb", "other")
    gateway("rb", "other")
    assert gateway("gc").out == "erased 2 registers\n"
    assert gateway("--json", "gc").records == [
        {"registers_erased": 0, "registers_left": 0, "waiting_for": [], "problem": ""}
    ]
    assert gateway("cat", f"{bucket}/kept").raw == b"content"
    gateway("put", "f", f"{bucket}/gone")
    (version,) = gateway("--json", "versions", f"{bucket}/gone").records
    assert version["is_latest"]


def test_a_node_that_is_away_is_waited_for(gateway: Run, tmp_path: Path) -> None:
    with LocalCluster(tmp_path / "cluster") as cluster:
        target = ",".join(cluster.endpoints)
        gateway("--store", target, "mb", "box")
        gateway("--store", target, "rb", "box")
        cluster.kill(3)
        away = gateway("--store", target, "gc", code=5)
        assert away.out == "erased 0 registers\n"
        assert "waiting for node 3:" in away.err
