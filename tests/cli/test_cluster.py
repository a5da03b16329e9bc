"""``serve`` and ``dev``, and commands against real nodes of which some are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.conftest import PATIENCE_S, Run, Shell, eventually


def alive(pid: int) -> bool:
    """Whether a process that is not our child runs (one that ended and was not waited for does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def announced(process: subprocess.Popen[bytes]) -> dict[str, object]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.stderr.read().decode() if process.stderr else ""
    found: dict[str, object] = json.loads(line)
    return found


def test_a_cluster_lives_as_long_as_a_majority_does(shell: Shell) -> None:
    dev = shell.start("dev", "--nodes", "3", "--json")
    started = announced(dev)
    nodes = started["nodes"]
    assert isinstance(nodes, list)
    pids = [node["pid"] for node in nodes]
    endpoints = ",".join(node["address"] for node in nodes)

    def gateway(*arguments: str, data: bytes = b"", code: int = 0) -> bytes:
        return shell("--store", endpoints, *arguments, data=data, code=code).raw

    gateway("mb", "box")
    large = os.urandom(9_000_000)
    gateway("put", "-", "box/large", data=large)
    gateway("put", "-", "box/small", data=b"small")
    assert b"quorum: yes (3 of 3 nodes up)" in gateway("status")

    os.kill(pids[0], signal.SIGKILL)
    eventually(lambda: not alive(pids[0]))
    assert gateway("cat", "box/large") == large
    gateway("put", "-", "box/after", data=b"after")
    assert gateway("ls", "box").split() == [b"after", b"large", b"small"]
    assert b"quorum: yes (2 of 3 nodes up)" in gateway("status")

    os.kill(pids[1], signal.SIGKILL)
    eventually(lambda: not alive(pids[1]))
    for arguments in (["ls", "box"], ["put", "-", "box/never"], ["cat", "box/small"]):
        began = time.monotonic()
        gateway("--timeout", "1", *arguments, data=b"never", code=5)
        assert time.monotonic() - began < PATIENCE_S
    for command in (["status"], ["cluster", "status"]):
        process = shell.start("--store", endpoints, "--timeout", "10", *command)
        out, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 5
        assert out.splitlines()[-1] == b"quorum: no (1 of 3 nodes up)"

    dev.send_signal(signal.SIGINT)
    _, err = dev.communicate(timeout=20)
    assert dev.returncode == 0, err
    assert b"node 1 has ended; 2 of 3 nodes are running" in err
    assert not any(alive(pid) for pid in pids)
    assert not Path(str(started["data"])).exists()


def test_a_cluster_keeps_its_data_where_it_is_told_to(shell: Shell) -> None:
    for command in (["mb", "box"], ["ls", "box"]):
        dev = shell.start("dev", "--data", "kept", "--json")
        endpoints = announced(dev)["endpoints"]
        assert isinstance(endpoints, list)
        shell("--store", ",".join(endpoints), *command)
        dev.send_signal(signal.SIGTERM)
        assert dev.wait(20) == 0
    assert (shell.directory / "kept" / "node-1" / "data").is_dir()


def test_a_node_by_itself(shell: Shell) -> None:
    node = shell.start("serve", "--data", "data", "--listen", "127.0.0.1:0", "--json")
    endpoint = str(announced(node)["address"])
    shell("--store", endpoint, "mb", "box")
    shell("--store", endpoint, "put", "-", "box/k", data=b"x" * 50_000)
    assert shell("--store", endpoint, "cat", "box/k").raw == b"x" * 50_000
    assert "data" in shell("serve", "--data", "data", "--listen", "127.0.0.1:0", code=1).err
    assert endpoint in shell("serve", "--data", "other", "--listen", endpoint, code=1).err
    port = endpoint.rpartition(":")[2]
    taken = ("serve", "--data", "third", "--listen", "127.0.0.1:0", "--data-port", port)
    assert f"data port {port} of 127.0.0.1: " in shell(*taken, code=1).err
    node.send_signal(signal.SIGTERM)
    assert node.wait(20) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "missing option '--data'"),
        (["--data", "d", "--listen", "0.0.0.0:0"], "insecure"),
        (["--data", "d", "--listen", "nonsense"], "host:port"),
        (["--data", "d", "--node-id", "0"], "node id 0"),
        (["--data", "d", "--data-port", "70000"], "a number from 1 to 65535, or any, or none"),
        (["--data", "d", "--peers", "1=a:1,1=b:2"], "an id of its own"),
        (["--data", "d", "--peers", "a:1,b:2"], "ID=HOST:PORT"),
        (["--data", "d", "--peers", "1=nonsense"], "host:port"),
    ],
)
def test_wrong_settings_of_a_node(gateway: Run, arguments: list[str], says: str) -> None:
    found = gateway("serve", *arguments, code=2)
    assert says in found.err
    assert found.err.count("\n") == 1
    assert not Path("d").exists()


@pytest.mark.parametrize("count", ["0", "10", "three"])
def test_wrong_numbers_of_nodes(gateway: Run, count: str) -> None:
    gateway("dev", "--nodes", count, code=2)


def test_a_cluster_that_cannot_start(shell: Shell) -> None:
    (shell.directory / "kept").write_bytes(b"")
    assert "kept" in shell("dev", "--data", "kept", code=1).err


def test_the_members_of_a_cluster_are_changed(shell: Shell) -> None:
    def started(number: int, *arguments: str) -> str:
        options = ("--data", f"n{number}", "--listen", "127.0.0.1:0", "--node-id", str(number), "--json")
        return str(announced(shell.start("serve", *options, *arguments))["address"])

    first = started(1)
    shell("--store", first, "mb", "box")
    shell("--store", first, "put", "-", "box/k", data=b"one")
    shell("--store", first, "put", "-", "box/k", data=b"two")
    second = started(2, "--join", first)
    assert "name the node by host:port" in shell("--store", "n2", "ls", code=1).err
    assert not (shell.directory / "n2" / "acceptor").exists()
    (record,) = shell("--store", first, "--json", "cluster", "add", f"2={second}").records
    assert (record["epoch"], record["changing"], record["retired"]) == (3, False, [])
    assert [(node["node_id"], node["address"]) for node in record["members"]] == [(1, first), (2, second)]
    assert "member already" in shell("--store", first, "cluster", "add", f"2={second}", code=2).err

    third = started(3, "--join", second)
    (record,) = shell("--store", first, "--json", "cluster", "replace", "1", "--with", f"3={third}").records
    assert [node["node_id"] for node in record["members"]] == [2, 3]
    shell("--store", second, "cluster", "remove", "2")
    lines = shell("--store", third, "cluster", "status").lines
    assert lines[0].endswith("epoch 7")
    assert lines[2].split()[:4] == ["3", third, "member", "up"]
    assert lines[3:] == ["retired ids: 1, 2", "quorum: yes (1 of 1 node up)"]
    assert shell("--store", third, "cat", "box/k").raw == b"two"
    assert len(shell("--store", third, "versions", "box/k").lines) == 2
    assert "last member" in shell("--store", third, "cluster", "remove", "3", code=2).err
    assert "never used again" in shell("--store", third, "cluster", "add", f"1={first}", code=2).err


@pytest.mark.parametrize("node", ["4", "4=", "x=a:1", "0=a:1"])
def test_wrong_names_of_nodes(gateway: Run, node: str) -> None:
    assert "ID=HOST:PORT" in gateway("cluster", "add", node, code=2).err


def test_a_directory_has_no_members(gateway: Run) -> None:
    assert "has no members" in gateway("cluster", "status", code=2).err
