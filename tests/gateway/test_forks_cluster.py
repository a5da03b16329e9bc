"""Children that are forked by a process which is connected to a cluster: each opens its own file system there."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pandas as pd
import pytest

import objmeta
from gateway.fs.filesystem import ObjmetaFileSystem
from objmeta.errors import ForkedClient
from objmeta.node import LocalCluster
from objmeta.rpc import wire
from objmeta.rpc.options import ask_blocking, new_server
from tests.gateway.forks import in_fork

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

COMMAND = (sys.executable, "-m", "gateway.server")
LONG = 6 << 20


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("cluster"), command=COMMAND) as made:
        yield made


@pytest.fixture
def endpoints(cluster: LocalCluster) -> str:
    return ",".join(cluster.endpoints)


@pytest.fixture
def parent(endpoints: str, no_settings: None) -> Iterator[ObjmetaFileSystem]:
    """A file system that is connected, with the one bucket ``bucket``, empty."""
    fs = fsspec.filesystem("objmeta", endpoints=endpoints)
    fs.makedirs("bucket", exist_ok=True)
    if found := fs.find("bucket"):
        fs.rm(found)
    yield fs
    fs.close()
    ObjmetaFileSystem.clear_instance_cache()


@pytest.fixture
def busy(parent: ObjmetaFileSystem) -> Iterator[None]:
    """Threads that use the parent's file system all the time, so that locks are held when it forks."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            while not stop.is_set():
                parent.pipe_file(f"bucket/busy-{number}", os.urandom(100))
                parent.cat_file(f"bucket/busy-{number}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    yield
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures


def used(endpoints: str, name: str) -> ObjmetaFileSystem:
    """A new file system, which was written to and read from."""
    fs: ObjmetaFileSystem = fsspec.filesystem("objmeta", endpoints=endpoints)
    for length in (0, 10, LONG):
        path, content = f"bucket/{name} {length} größer 📦", os.urandom(length)
        fs.pipe_file(path, content)
        assert fs.cat_file(path) == content
        assert path in fs.find("bucket")
        with fs.open(path) as file:
            file.seek(length // 2)
            assert file.read() == content[length // 2 :]
    return fs


def test_new_file_systems_work_in_children_of_a_busy_parent(
    endpoints: str, parent: ObjmetaFileSystem, busy: None
) -> None:
    content = os.urandom(LONG)
    parent.pipe_file("bucket/parent", content)

    def work() -> str:
        fs = used(endpoints, f"child {os.getpid()}")
        assert fs is not parent
        assert fs.cat_file("bucket/parent") == content
        gc.collect()  # what the parent left
        with pytest.raises(OSError, match="open a new one in the child"):
            parent.cat_file("bucket/parent")
        return "worked"

    assert [in_fork(work) for _ in range(8)] == ["worked"] * 8
    assert len(parent.glob("bucket/child *")) == 3 * 8
    assert parent.cat_file("bucket/parent") == content


def test_children_fork_too(endpoints: str, parent: ObjmetaFileSystem, busy: None) -> None:
    def grandchild() -> str:
        fs = used(endpoints, "grandchild")
        gc.collect()
        return str(len(fs.glob("bucket/grandchild *")))

    def child() -> str:
        fs = used(endpoints, "child")
        answer = in_fork(grandchild)
        # a grandchild that closed what it inherited would have taken it out of the loop that both share
        return f"{answer} and {len(fs.glob('bucket/grandchild *'))}"

    assert [in_fork(child) for _ in range(3)] == ["3 and 3"] * 3


def doubled(arguments: tuple[ObjmetaFileSystem, str]) -> str:
    fs, path = arguments
    fs.pipe_file(path + " twice", fs.cat_file(path) * 2)
    return path


def test_pools_of_forked_workers(parent: ObjmetaFileSystem, busy: None) -> None:
    paths = [f"bucket/{number}" for number in range(8)]
    parent.pipe({path: path.encode() for path in paths})
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        assert pool.map(doubled, [(parent, path) for path in paths]) == paths
    with concurrent.futures.ProcessPoolExecutor(2, context) as executor:
        assert list(executor.map(parent.cat_file, [path + " twice" for path in paths])) == [
            path.encode() * 2 for path in paths
        ]


def test_pandas_in_a_child(endpoints: str, parent: ObjmetaFileSystem) -> None:
    table = pd.DataFrame({"number": range(100_000), "text": [f"größer {number}" for number in range(100_000)]})
    options = {"endpoints": endpoints}

    def work() -> str:
        table.to_parquet("objmeta://bucket/table.parquet", storage_options=options)
        return str(pd.read_parquet("objmeta://bucket/table.parquet", storage_options=options).equals(table))

    assert in_fork(work) == "True"
    pd.testing.assert_frame_equal(pd.read_parquet("objmeta://bucket/table.parquet", storage_options=options), table)


def test_clients_in_a_child(endpoints: str) -> None:
    with objmeta.connect(endpoints) as client:
        client.put("key", b"parent")

        def work() -> str:
            with pytest.raises(ForkedClient, match=r"objmeta\.connect"):
                client.get("key")
            with objmeta.connect(endpoints) as new, new.lock("lock", ttl_s=10):
                new.put("key", b"child")
                return f"{new.status().quorum}"

        assert in_fork(work) == "True"
        found = client.get("key")
        assert found is not None
        assert found.value == b"child"
        with client.lock("lock", ttl_s=10):
            pass


async def test_asynchronous_clients_in_a_child(endpoints: str) -> None:
    async with objmeta.connect_async(endpoints) as client:
        await client.put("asynchronous", b"parent")

        async def use() -> str:
            with pytest.raises(ForkedClient, match=r"objmeta\.connect_async"):
                await client.get("asynchronous")
            async with objmeta.connect_async(endpoints) as new:
                return str(await new.get("asynchronous"))

        assert "parent" in await asyncio.to_thread(in_fork, lambda: asyncio.run(use()))
        assert "parent" in in_fork(lambda: asyncio.run(use()))  # from the loop's own thread
        assert await client.get("asynchronous") is not None


def test_a_child_outlives_a_node(cluster: LocalCluster, endpoints: str, parent: ObjmetaFileSystem) -> None:
    def work() -> str:
        fs = fsspec.filesystem("objmeta", endpoints=endpoints)
        content = os.urandom(LONG)
        for number in range(30):
            if number == 10:
                os.kill(victim, signal.SIGKILL)
            fs.pipe_file(f"bucket/file {number}", content)
            assert fs.cat_file(f"bucket/file {number}") == content
        return str(len(fs.find("bucket")))

    victim = cluster.pid(2) or pytest.fail("node 2 does not run")
    assert in_fork(work) == "30"
    cluster.start(2)
    cluster.wait_ready()


def test_no_node_runs_in_a_child(cluster: LocalCluster, parent: ObjmetaFileSystem) -> None:
    assert "ForkedClient: no node can run" in in_fork(lambda: str(new_server()))
    hello = wire.path(wire.PEER_SERVICE, wire.HELLO)

    def ask() -> str:
        return str(wire.decode_hello(ask_blocking(cluster.endpoints[0], hello, b"", 5.0)).node_id)

    assert in_fork(ask) == "1"


def test_a_local_cluster_is_started_by_a_child(parent: ObjmetaFileSystem, tmp_path: Path) -> None:
    def work() -> str:
        with LocalCluster(tmp_path, command=COMMAND) as own, objmeta.connect(",".join(own.endpoints)) as client:
            client.put("key", b"value")
            return str(client.status().quorum)

    assert in_fork(work) == "True"
