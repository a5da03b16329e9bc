"""Instances in other processes: forked, spawned, pickled; and what importing costs."""

from __future__ import annotations

import concurrent.futures
import gc
import inspect
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import fsspec
import pytest
from fsspec.spec import AbstractFileSystem

from gateway.fs.filesystem import ObjmetaFileSystem
from tests.gateway.forks import in_fork

# the threads are on purpose: a fork must work although the IO loop's thread is there
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def test_an_embedded_instance_works_in_a_forked_child(fs: ObjmetaFileSystem) -> None:
    content = os.urandom(5 << 20)
    fs.pipe_file("bucket/parent", content)

    def work() -> str:
        assert fs.cat_file("bucket/parent") == content
        with fs.open("bucket/child", "w") as file:
            file.write("from the child")
        return ",".join(fs.find("bucket"))

    assert in_fork(work) == "bucket/child,bucket/parent"
    assert fs.cat_file("bucket/child") == b"from the child"
    assert in_fork(lambda: in_fork(work)) == "bucket/child,bucket/parent"


def test_a_reading_handle_works_in_a_forked_child(fs: ObjmetaFileSystem) -> None:
    content = os.urandom(9 << 20)
    fs.pipe_file("bucket/file", content)
    with fs.open("bucket/file") as file:
        file.read(10)

        def work() -> str:
            assert file.read(5) == content[10:15]
            file.seek(8 << 20)
            assert file.read() == content[8 << 20 :]
            return "read"

        assert in_fork(work) == "read"
        assert file.read(5) == content[10:15]


def test_a_fork_while_threads_read(fs: ObjmetaFileSystem) -> None:
    content = os.urandom(9 << 20)
    fs.pipe_file("bucket/file", content)
    stop = threading.Event()

    def busy() -> None:
        with fs.open("bucket/file") as file:
            while not stop.is_set():
                file.seek(0)
                file.read(100)

    threads = [threading.Thread(target=busy) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        answers = [in_fork(lambda: str(len(fs.cat_file("bucket/file")))) for _ in range(5)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert answers == [str(len(content))] * 5


def test_a_writing_handle_belongs_to_its_process(fs: ObjmetaFileSystem) -> None:
    with fs.open("bucket/file", "wb") as file:
        file.write(b"x")

        def work() -> str:
            file.write(b"y")
            return "written"

        assert "fork" in in_fork(work)
        assert not fs.exists("bucket/file")
    assert fs.cat_file("bucket/file") == b"x"


def test_an_instance_of_a_cluster_refuses_in_a_forked_child(no_settings: None) -> None:
    fs = ObjmetaFileSystem(endpoints="127.0.0.1:1", timeout_s=0.2, skip_instance_cache=True)
    with pytest.raises(TimeoutError):
        fs.exists("bucket/file")
    assert "open a new one in the child" in in_fork(lambda: str(fs.exists("bucket/file")))
    # a new one gets as far as here (test_forks_cluster.py has nodes that answer)
    answer = in_fork(lambda: str(ObjmetaFileSystem(endpoints="127.0.0.1:1", timeout_s=0.2).exists("bucket/file")))
    assert answer.startswith("TimeoutError: ")
    assert "Connection refused" in answer
    fs.close()


FORKING = """
import fsspec, os
try:
    fsspec.filesystem("objmeta", endpoints="127.0.0.1:1", timeout_s=0.2).exists("bucket/file")
except TimeoutError:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
"""


def said_of_forks(code: str, **environment: str) -> str:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
    done = subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=True)
    return "\n".join(line for line in done.stderr.splitlines() if "fork" in line)


def test_a_fork_is_none_of_grpcs_business() -> None:
    # with its handlers on it would say that it skips them, and children would crash now and then
    assert said_of_forks(FORKING, GRPC_VERBOSITY="INFO") == ""


def test_where_grpc_was_imported_before_a_fork_is_warned_of() -> None:
    assert "GRPC_ENABLE_FORK_SUPPORT=0" in said_of_forks("import grpc" + FORKING)
    assert said_of_forks("import grpc" + FORKING, GRPC_ENABLE_FORK_SUPPORT="0", GRPC_VERBOSITY="INFO") == ""


def test_a_new_instance_of_a_directory_works_beside_a_refused_one_of_a_cluster(home: Path, no_settings: None) -> None:
    fs = ObjmetaFileSystem(endpoints="127.0.0.1:1", timeout_s=0.2, skip_instance_cache=True)
    with pytest.raises(TimeoutError):
        fs.exists("bucket/file")

    def work() -> str:
        new = ObjmetaFileSystem(path=home)
        new.mkdir("bucket")
        new.pipe_file("bucket/file", b"from the child")
        return str(new.find("bucket"))

    assert in_fork(work) == "['bucket/file']"
    fs.close()


def test_a_forked_child_does_not_collect_what_a_closed_cluster_left(no_settings: None) -> None:
    # it would go through the C core of gRPC, and crash
    gc.collect()
    gc.disable()
    try:
        fs = ObjmetaFileSystem(endpoints="127.0.0.1:1", timeout_s=0.2, skip_instance_cache=True)
        with pytest.raises(TimeoutError):
            fs.exists("bucket/file")
        fs.close()
        del fs
        assert in_fork(lambda: str(gc.collect())) == "0"
        assert gc.collect() > 0
    finally:
        gc.enable()


def double(arguments: tuple[ObjmetaFileSystem, str]) -> str:
    fs, path = arguments
    fs.pipe_file(path + "-twice", fs.cat_file(path) * 2)
    return path


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_instances_travel_to_worker_processes(fs: ObjmetaFileSystem, method: str) -> None:
    paths = [f"bucket/{index}" for index in range(4)]
    fs.pipe({path: path.encode() for path in paths})
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(double, [(fs, path) for path in paths]) == paths
    assert fs.cat_file("bucket/3-twice") == b"bucket/3" * 2


def test_blocking_methods_travel_too(fs: ObjmetaFileSystem) -> None:
    fs.pipe_file("bucket/file", b"x")
    for name in ("ukey", "modified", "touch", "local_path", "metadata", "cat_file", "info", "walk"):
        assert pickle.loads(pickle.dumps(getattr(fs, name))) == getattr(fs, name)
    assert pickle.loads(pickle.dumps(fs.ukey))("bucket/file") == fs.ukey("bucket/file")
    assert list(pickle.loads(pickle.dumps(fs.walk))("bucket")) == [("bucket", [], ["file"])]
    assert next(iter(inspect.signature(fs.cat_file).parameters)) == "path"
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert list(pool.map(fs.cat_file, ["bucket/file"] * 2)) == [b"x", b"x"]


def test_pickle_json_and_the_instance_cache(fs: ObjmetaFileSystem, home: Path) -> None:
    fs.pipe_file("bucket/file", b"x")
    assert fsspec.filesystem("objmeta", path=home) is fs
    assert pickle.loads(pickle.dumps(fs)) is fs
    assert AbstractFileSystem.from_json(fs.to_json()).cat_file("bucket/file") == b"x"
    assert json.loads(fs.to_json())["protocol"] == "objmeta"
    nodes = ObjmetaFileSystem(endpoints=["127.0.0.1:1", "127.0.0.1:2"], timeout_s=5)
    assert nodes.fsid == ObjmetaFileSystem(endpoints="127.0.0.1:1,127.0.0.1:2").fsid != fs.fsid
    assert pickle.loads(pickle.dumps(nodes)) == nodes
    assert AbstractFileSystem.from_json(nodes.to_json()).location == nodes.location


@pytest.mark.parametrize("statement", ["import gateway", "import gateway.fs.filesystem", "import gateway.cli"])
def test_importing_is_light(statement: str) -> None:
    code = f"{statement}; import sys; print([m for m in ('grpc', 'duckdb', 'pyarrow', 'pandas') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"[]\n"


def test_the_public_names_are_those_that_are_named() -> None:
    import gateway

    for name in gateway.__all__:
        assert getattr(gateway, name).__name__ == name
    assert set(gateway.__all__) <= set(dir(gateway))
    with pytest.raises(AttributeError):
        _ = gateway.nonsense


def test_the_protocol_is_found_by_its_entry_point() -> None:
    code = "import fsspec; print(fsspec.get_filesystem_class('objmeta').__name__)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert found.stdout == b"ObjmetaFileSystem\n"
