"""``repair``, ``scrub``, ``fsck``, ``du --physical`` and what ``status`` and SQL say of stored data."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

import objmeta
from gateway.blobs.index import INDEX
from gateway.blobs.placement import PLACES, Said, decode_places
from tests.cli.conftest import Outcome, Run, Shell, eventually
from tests.cli.test_cluster import alive, announced
from tests.gateway.blobfiles import chunks

LARGE = 500_000
"""One chunk."""


def chunk_files(blobs: Path) -> list[Path]:
    """The files that hold chunks, the largest first."""
    return sorted(blobs.glob("packs/*.pack"), key=lambda path: path.stat().st_size, reverse=True)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# -- A directory ------------------------------------------------------------------------------------------------------


def test_a_directory_is_checked_and_scrubbed(gateway: Run, shell: Shell, bucket: str) -> None:
    Path("large").write_bytes(os.urandom(LARGE))
    Path("small").write_bytes(b"small")
    gateway("put", "large", "box/large")
    gateway("put", "small", "box/small")
    outcome = gateway("fsck", "--deep")
    assert outcome.lines[-1].endswith(": all well")
    assert outcome.lines[-1].startswith("checked 2 versions")
    (record,) = gateway("scrub", "--json").records
    assert (record["node_id"], record["left"], record["problem"]) == (1, 0, "")
    assert record["bytes"] >= LARGE
    damaged, *_ = chunk_files(shell.home / "blobs")
    flip(damaged)
    assert gateway("fsck").lines[-1].endswith(": all well")  # nobody has read it yet
    finding, summary = gateway("fsck", "--deep", "--json", code=8).records
    assert (finding["verdict"], finding["key"], finding["digest"]) == ("lost", "large", *chunks(shell.home / "blobs"))
    assert (finding["damaged"], summary["lost"], summary["versions"]) == ([1], 1, 2)
    (record,) = gateway("scrub", "--json", code=8).records
    assert (record["fixed"], record["left"]) == (0, 1)
    assert "lost: objmeta://box/large version" in gateway("fsck", code=8).out
    (status,) = gateway("status", "--json").records
    assert status["nodes"][0]["data"]["damaged"] == 1
    damaged.unlink()
    gateway("fsck", code=8)
    gateway("rm", "box/large")  # the version is kept, and so is what is wrong with it
    gateway("fsck", code=8)
    gateway("repair", "--no-wait", code=2)


def test_sizes_logical_and_physical(gateway: Run, bucket: str) -> None:
    Path("large").write_bytes(os.urandom(LARGE))
    Path("small").write_bytes(b"small")
    gateway("put", "large", "box/a")
    gateway("put", "large", "box/b")
    gateway("put", "small", "box/c")
    (record,) = gateway("du", "--physical", "--json", "box").records
    assert (record["size"], record["count"]) == (2 * LARGE + 5, 3)
    assert (record["unique_bytes"], record["stored_bytes"]) == (LARGE + 5, LARGE + 5)
    assert gateway("du", "--physical", "box/a").out.split() == [str(LARGE)] * 3 + ["1", "objmeta://box/a"]

    def ask(query: str) -> list[dict[str, Any]]:
        return gateway("sql", "--json", query).records

    assert ask("SELECT chunk_bytes, damaged, missing FROM places") == [
        {"chunk_bytes": LARGE, "damaged": 0, "missing": 0}
    ]
    assert ask("SELECT sum(bytes) AS bytes, min(copies) AS copies FROM stored") == [{"bytes": LARGE, "copies": 1}]
    (shared,) = ask("SELECT count(DISTINCT key) AS keys FROM chunks JOIN stored USING (digest)")
    assert shared == {"keys": 2}
    assert ask("SELECT DISTINCT node_id, damaged FROM copies") == [{"node_id": 1, "damaged": False}]


# -- Several disks ----------------------------------------------------------------------------------------------------


def test_disks_heal_each_other(gateway: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disks = [tmp_path / f"disk-{number}" for number in (1, 2, 3)]
    monkeypatch.delenv("OBJMETA_HOME")
    monkeypatch.setenv("OBJMETA_DISKS", os.pathsep.join(map(str, disks)))
    gateway("mb", "box")
    Path("large").write_bytes(os.urandom(LARGE))
    gateway("put", "large", "box/large")
    gateway("fsck", "--deep")
    flip(chunk_files(disks[0] / "blobs")[0])
    finding, _ = gateway("fsck", "--deep", "--json", code=8).records
    assert (finding["verdict"], finding["damaged"], finding["good"]) == ("damaged", [1], [2, 3])
    assert fixed(gateway("scrub", "--json")) == {1: 1, 2: 0, 3: 0}
    chunk_files(disks[1] / "blobs")[0].unlink()
    finding, _ = gateway("fsck", "--json", code=1).records
    assert (finding["verdict"], finding["missing"], finding["good"]) == ("too few copies", [2], [1, 3])
    assert fixed(gateway("repair", "--json")) == {1: 0, 2: 1, 3: 0}
    gateway("fsck", "--deep")


def fixed(outcome: Outcome) -> dict[int, int]:
    return {record["node_id"]: record["fixed"] for record in outcome.records}


# -- A cluster --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_cluster_repairs_what_fsck_finds(shell: Shell) -> None:
    data = shell.directory / "cluster"
    dev = shell.start("dev", "--nodes", "3", "--data", str(data), "--json")
    nodes = announced(dev)["nodes"]
    assert isinstance(nodes, list)
    endpoints = ",".join(node["address"] for node in nodes)
    blobs = {node["node_id"]: data / f"node-{node['node_id']}" / "data" / "blobs" for node in nodes}

    def gateway(*arguments: str, data: bytes = b"", code: int = 0) -> Any:
        return shell("--store", endpoints, *arguments, data=data, code=code)

    def rested() -> bool:
        """Whether every node has made the passes it makes by itself, once it has caught up after its start."""
        (status,) = gateway("status", "--json").records
        passes = [node["data"]["repair"] for node in status["nodes"]]
        return all(each["run"] and (each["ended_s"] or 0) > 2 for each in passes)

    gateway("mb", "box")
    gateway("put", "-", "box/large", data=os.urandom(LARGE))
    eventually(lambda: all((path / INDEX).exists() and chunks(path) for path in blobs.values()))
    assert gateway("fsck", "--deep").lines[-1].endswith(": all well")
    eventually(rested)
    chunk = chunk_files(blobs[2])[0]
    chunk.unlink()
    finding, summary = gateway("fsck", "--json", code=1).records
    assert (finding["verdict"], finding["digest"]) == ("too few copies", *chunks(blobs[1]))
    assert (finding["good"], finding["missing"], finding["wanted"]) == ([1, 3], [2], 3)
    assert summary["too_few_copies"] == 1
    repaired = {record["node_id"]: record["fixed"] for record in gateway("repair", "--json").records}
    assert repaired[2] == 1
    gateway("fsck", "--deep")

    flip(chunk_files(blobs[2])[0])
    assert "damaged: objmeta://box/large" in gateway("fsck", "--deep", code=8).out
    scrubbed = {record["node_id"]: record for record in gateway("scrub", "--json").records}
    assert (scrubbed[2]["fixed"], scrubbed[2]["left"]) == (1, 0)
    (status,) = gateway("status", "--json").records
    told = status["nodes"][1]["data"]
    assert (told["damaged"], told["missing"], told["trouble"], told["weight"]) == (0, 0, "", 1.0)
    assert told["scrub"]["fixed"] == 1
    lines = gateway("status").lines
    assert any(line.split()[:3] == ["DATA", "ZONE", "WEIGHT"] for line in lines)
    assert lines[-1] == "quorum: yes (3 of 3 nodes up)"
    (du,) = gateway("du", "--physical", "--json", "box").records
    assert (du["size"], du["unique_bytes"], du["stored_bytes"]) == (LARGE, LARGE, 3 * LARGE)
    (stored,) = gateway("sql", "--json", "SELECT min(copies) AS copies, sum(bytes) AS bytes FROM stored").records
    assert stored == {"copies": 3, "bytes": 3 * LARGE}

    pid = nodes[0]["pid"]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not alive(pid))
    outcome = gateway("fsck", code=1)
    assert "1 does not answer" in outcome.err
    for path in blobs.values():
        for file in chunk_files(path):
            file.unlink()
    assert "unreachable: objmeta://box/large" in gateway("fsck", code=5).out
    assert gateway("repair", code=1).err.startswith("gateway: ")


def test_a_node_registers_its_zone_and_weight(shell: Shell) -> None:
    serve = shell.start(
        *("serve", "--data", "node", "--listen", "127.0.0.1:0", "--zone", "rack 1", "--weight", "2.5", "--json")
    )
    address = str(announced(serve)["address"])

    def registered() -> bool:
        with objmeta.connect(address) as client:
            kept = client.get(PLACES)
        return kept is not None and decode_places(kept.value) == {1: Said(2.5, "rack 1")}

    eventually(registered)  # it says where it is before it is ready
    (status,) = shell("--store", address, "status", "--json").records
    assert (status["nodes"][0]["data"]["zone"], status["nodes"][0]["data"]["weight"]) == ("rack 1", 2.5)
    query = "SELECT zone, weight FROM places"
    assert shell("--store", address, "sql", "--json", query).records == [{"zone": "rack 1", "weight": 2.5}]
    serve.send_signal(signal.SIGTERM)
    _, err = serve.communicate(timeout=20)
    assert serve.returncode == 0, err
    for wrong in (["--weight", "-1"], ["--repair-rate", "0"], ["--zone", "x" * 65]):
        shell("serve", "--data", "other", *wrong, code=2)
