"""Several processes on one embedded store, forks, and the synchronous client."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import objmeta
from objmeta import errors
from objmeta.client import synchronous
from objmeta.client.services import open_services

INCREMENT = """
import sys, objmeta
client = objmeta.connect(sys.argv[1])
for _ in range(int(sys.argv[2])):
    client.change("counter", lambda value: b"%d" % (int(value or 0) + 1))
"""


@pytest.mark.slow
def test_eight_processes_on_one_key(tmp_path: Path) -> None:
    store = tmp_path / "store"
    processes = [subprocess.Popen([sys.executable, "-c", INCREMENT, str(store), "25"]) for _ in range(8)]
    assert [process.wait(timeout=100) for process in processes] == [0] * 8
    with objmeta.connect(store) as client:
        counter = client.get("counter")
    assert counter is not None
    assert counter.value == b"200"


def test_a_forked_child_goes_on_with_the_same_client(tmp_path: Path) -> None:
    with objmeta.connect(tmp_path / "store") as client:
        client.put("before", b"parent")
        child = os.fork()
        if child == 0:
            status = 1
            try:
                found = client.get("before")
                client.put("child", found.value if found else b"")
                client.change("both", lambda value: (value or b"") + b"c")
                status = 0
            finally:
                os._exit(status)
        client.change("both", lambda value: (value or b"") + b"p")
        _, result = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(result) == 0
        written = client.get("child")
        assert written is not None
        assert written.value == b"parent"
        both = client.get("both")
        assert both is not None
        assert sorted(both.value) == sorted(b"cp")


def test_a_fork_while_a_thread_opens_the_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opens, may_open = threading.Event(), threading.Event()

    class Slow(synchronous._LoopThread):
        def __init__(self) -> None:
            opens.set()
            assert may_open.wait(30)
            super().__init__()

    monkeypatch.setattr(synchronous, "_LoopThread", Slow)
    with objmeta.connect(tmp_path / "store") as client:
        thread = threading.Thread(target=client.put, args=("key", b"value"))
        thread.start()
        assert opens.wait(30)
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            status = 1
            try:
                may_open.set()
                client.put("child", b"value")
                client.close()
                status = 0
            finally:
                os._exit(status)
        _, result = os.waitpid(child, 0)
        may_open.set()
        thread.join()
        assert os.waitstatus_to_exitcode(result) == 0
        assert client.get("child") is not None


async def test_a_fork_while_a_task_opens_the_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opens = asyncio.Event()

    async def slow(*settings: Any) -> Any:
        opens.set()
        await asyncio.sleep(1)
        return await open_services(*settings)

    monkeypatch.setattr("objmeta.client.asynchronous.open_services", slow)
    async with objmeta.connect_async(tmp_path / "store") as client:
        first = asyncio.ensure_future(client.put("key", b"value"))
        await opens.wait()
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            status = 1
            try:
                asyncio.run(client.put("child", b"value"))
                status = 0
            finally:
                os._exit(status)
        _, result = await asyncio.to_thread(os.waitpid, child, 0)
        await first
        assert os.waitstatus_to_exitcode(result) == 0
        assert await client.get("child") is not None


def test_one_client_in_many_threads(target: str, fresh: str) -> None:
    with objmeta.connect(target) as client:

        def work() -> None:
            for _ in range(5):
                client.change(fresh, lambda value: b"%d" % (int(value or 0) + 1))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = client.get(fresh)
        assert found is not None
        assert found.value == b"40"


def test_the_synchronous_client_has_every_method(target: str, fresh: str) -> None:
    public = {name for name in dir(objmeta.AsyncClient) if not name.startswith("_")}
    assert public - set(dir(objmeta.Client)) == {"local_marks"}  # asynchronous generators, for the collector
    with objmeta.connect(target) as client:
        client.create_bucket(fresh)
        put = client.put_object(fresh, "a/b", data=b"x")
        assert client.get_object(fresh, "a/b") == put
        assert client.head_object(fresh, "a/b").version_id == put.version_id
        assert list(client.iter_objects(fresh, delimiter="/")) == ["a/"]
        status = client.status()
        assert status.quorum
        assert all(node.registers > 0 and node.changes > 0 for node in status.nodes)
        client.remove_version(fresh, "a/b", put.version_id)
        client.remove_bucket(fresh)


def test_a_closed_client_opens_again(tmp_path: Path) -> None:
    client = objmeta.connect(tmp_path / "store")
    client.put("k", b"v")
    client.close()
    found = client.get("k")
    assert found is not None
    assert found.value == b"v"
    client.close()


def test_nobody_listens(tmp_path: Path) -> None:
    with (
        objmeta.connect("127.0.0.1:1", timeout_s=2) as client,
        pytest.raises(errors.NoQuorum, match=r"127\.0\.0\.1:1"),
    ):
        client.get("k")


def test_the_store_is_where_the_settings_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OBJMETA_HOME", str(tmp_path / "home"))
    with objmeta.connect() as client:
        client.put("k", b"v")
        assert client.location == objmeta.Embedded(tmp_path / "home")
    assert (tmp_path / "home" / "acceptor").is_dir()
