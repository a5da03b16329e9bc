"""One catalog and several processes, some of which are killed; and a catalog of a cluster that loses a node."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import objmeta
from gateway.catalog.query import sql
from objmeta.node.dev import LocalCluster

ALL = "SELECT key, size FROM objects ORDER BY key"
QUERY = f"""
import sys
import objmeta
from gateway.catalog import kept
from gateway.catalog.query import sql

def halting(act):
    def halt(self, *given):
        found = act(self, *given)
        print("halted", flush=True)
        sys.stdin.read()
        return found
    return halt

if sys.argv[3] == "halting":  # in the middle of it, with rows that are not committed
    kept.Catalog.load, kept.Catalog.change = halting(kept.Catalog.load), halting(kept.Catalog.change)
with objmeta.connect(sys.argv[1]) as client:
    print(sql(client, {ALL!r}, catalog=sys.argv[2]).rows(), flush=True)
"""


class Processes:
    """Start queries of one store over one catalog; whatever runs at the end is killed."""

    def __init__(self, store: Path, catalog: Path) -> None:
        self.catalog = catalog
        self._store = store
        self._started: list[subprocess.Popen[str]] = []

    def start(self, how: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", QUERY, str(self._store), str(self.catalog), how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        if how == "halting":
            assert process.stdout is not None
            assert process.stdout.readline() == "halted\n"
        return process

    def beside(self, what: str) -> list[Path]:
        return [each for each in self.catalog.parent.iterdir() if each.name.startswith(f"{self.catalog.name}.{what}")]

    def stop_all(self) -> None:
        for process in self._started:
            process.kill()
            process.communicate()


@pytest.fixture
def client(home: Path) -> Iterator[objmeta.Client]:
    with objmeta.connect(home / "store") as client:
        client.create_bucket("demo")
        client.put_object("demo", "key", data=b"x")
        yield client


@pytest.fixture
def processes(home: Path, client: objmeta.Client) -> Iterator[Processes]:
    made = Processes(home / "store", home / "kept [1]*.duckdb")
    yield made
    made.stop_all()


def answer(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return out.strip()


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_one_is_killed_while_it_loads(processes: Processes, client: objmeta.Client) -> None:
    first = processes.start("halting")
    second = processes.start("going on")  # waits for the first, since its work would be as good
    assert processes.beside("building"), "it is in the middle of it"
    kill(first)
    assert answer(second) == "[('key', 1)]"
    client.put_object("demo", "more", data=b"xx")
    found = sql(client, ALL, catalog=processes.catalog)
    assert found.rows() == [("key", 1), ("more", 2)]
    assert not processes.beside("building")
    assert not processes.beside("private")
    assert sql(client, ALL, catalog=processes.catalog).looked_at == 0


def test_one_is_killed_while_it_takes_changes(processes: Processes, client: objmeta.Client) -> None:
    sql(client, ALL, catalog=processes.catalog)
    client.put_object("demo", "more", data=b"xx")
    first = processes.start("halting")
    second = processes.start("going on")
    kill(first)
    assert answer(second) == "[('key', 1), ('more', 2)]"
    client.put_object("demo", "key", data=b"xxx")
    assert sql(client, ALL, catalog=processes.catalog).rows() == [("key", 3), ("more", 2)]


def test_a_private_copy_goes_when_its_process_has_gone(processes: Processes, client: objmeta.Client) -> None:
    sql(client, ALL, catalog=processes.catalog)
    client.put_object("demo", "more", data=b"xx")
    with processes.catalog.with_name(f"{processes.catalog.name}.lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # as a query that reads
        working = processes.start("halting")
    expected = [("key", 1), ("more", 2)]
    assert len(processes.beside("private")) == 1
    assert sql(client, ALL, catalog=processes.catalog).rows() == expected
    assert len(processes.beside("private")) == 1, "somebody works in it"
    kill(working)
    assert sql(client, ALL, catalog=processes.catalog).rows() == expected
    assert processes.beside("private") == []


def test_a_node_dies_between_two_refreshes(home: Path) -> None:
    catalog = home / "kept.duckdb"

    def rows(query: str, through: objmeta.Client) -> tuple[list[tuple[Any, ...]], int]:
        found = sql(through, query, catalog=catalog)
        return found.rows(), found.looked_at

    with LocalCluster(home / "nodes", 3) as cluster, objmeta.connect(",".join(cluster.endpoints)) as client:
        client.create_bucket("demo")
        for number in range(50):
            client.put_object("demo", f"{number:02}", data=bytes(number))
        whole = "SELECT count(*), sum(size) FROM objects"
        assert rows(whole, client) == ([(50, 1225)], 50)
        client.put_object("demo", "00", data=bytes(100))
        cluster.kill(cluster.node_ids[0])
        client.delete_object("demo", "01")
        client.put_object("demo", "new", data=bytes(1000))
        found, looked_at = rows(whole, client)
        assert found == [(50, 1225 + 100 - 1 + 1000)]
        assert looked_at >= 3
        assert rows("SELECT action FROM changes WHERE key IN ('00', '01') ORDER BY ALL", client)[0] == [
            ("delete marker",),
            ("overwrite",),
            ("put",),
            ("put",),
        ]
        with objmeta.connect(",".join(reversed(cluster.endpoints))) as other:
            other.put_object("demo", "newer", data=bytes(10_000))
            assert rows(whole, other)[0] == [(51, 12_324)]
        expected = sql(client, "FROM versions ORDER BY ALL", catalog=":memory:").rows()
        assert sql(client, "FROM versions ORDER BY ALL", catalog=catalog).rows() == expected
