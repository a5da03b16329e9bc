# ruff: noqa: PT012, PT031 - what happens in a block that an exception leaves is what is tested
"""Writing handles: all at a clean close, or nothing."""

from __future__ import annotations

import contextlib
import errno
import gc
import gzip
import io
import os
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pytest
from pyarrow.fs import FSSpecHandler, PyFileSystem

from gateway.fs.filesystem import ObjmetaFileSystem


class Oops(Exception):
    """What goes wrong in these tests."""


def versions(fs: ObjmetaFileSystem, path: str) -> int:
    try:
        return len(fs.object_version_info(path))
    except FileNotFoundError:
        return 0


def test_nothing_is_visible_before_the_close(fs: ObjmetaFileSystem) -> None:
    content = os.urandom(11 << 20)
    with fs.open("bucket/file", "wb") as file:
        assert (file.readable(), file.writable()) == (False, True)
        assert file.write(content[:100]) == 100
        file.write(memoryview(content)[100:])
        file.flush()
        assert file.tell() == len(content)
        assert not fs.exists("bucket/file")
        with pytest.raises(OSError, match="Seek"):
            file.seek(0)
    assert fs.cat_file("bucket/file") == content
    assert versions(fs, "bucket/file") == 1
    with pytest.raises(ValueError, match="closed"):
        file.write(b"x")
    file.close()


def test_memory_is_bounded(fs: ObjmetaFileSystem) -> None:
    block = os.urandom(1 << 20)
    tracemalloc.start()
    with fs.open("bucket/file", "wb") as file:
        for _ in range(128):
            file.write(block)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert fs.size("bucket/file") == 128 << 20
    assert peak < 80 << 20


# -- Whatever goes wrong, nothing is stored ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["wb", "xb", "ab"])
@pytest.mark.parametrize("size", [0, 10, 9 << 20])
def test_a_block_left_by_an_exception_stores_nothing(fs: ObjmetaFileSystem, mode: str, size: int) -> None:
    with pytest.raises(Oops), fs.open("bucket/file", mode) as file:
        file.write(b"x" * size)
        raise Oops
    assert versions(fs, "bucket/file") == 0


@pytest.mark.parametrize("mode", ["w", "wb", "wt", "x", "a"])
@pytest.mark.parametrize("compression", [None, "gzip", "bz2", "xz", "zip"])
def test_so_do_text_and_compression(fs: ObjmetaFileSystem, mode: str, compression: str | None) -> None:
    content = b"text" if "b" in mode else "text"
    with pytest.raises(Oops), fs.open("bucket/file", mode, compression=compression) as file:
        file.write(content)
        raise Oops
    assert versions(fs, "bucket/file") == 0


@pytest.mark.parametrize("mode", ["w", "wb"])
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_so_does_fsspec_open_although_it_closes_the_file(
    fs: ObjmetaFileSystem, home: Path, mode: str, compression: str | None
) -> None:
    with (
        pytest.raises(Oops),
        fsspec.open("objmeta://bucket/file", mode, compression=compression, path=str(home)) as file,
    ):
        file.write(b"text" if "b" in mode else "text")
        raise Oops
    assert versions(fs, "bucket/file") == 0
    with fsspec.open("objmeta://bucket/file", mode, compression=compression, path=str(home)) as file:
        file.write(b"text" if "b" in mode else "text")
    assert versions(fs, "bucket/file") == 1


def test_so_do_other_context_managers(fs: ObjmetaFileSystem) -> None:
    with pytest.raises(Oops), contextlib.closing(fs.open("bucket/file", "wb")) as file:
        file.write(b"x")
        raise Oops
    with pytest.raises(Oops), contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(fs.open("bucket/file", "wb"))).write(b"x")
        raise Oops
    assert versions(fs, "bucket/file") == 0


WRAPPERS: dict[str, Callable[[ObjmetaFileSystem], Any]] = {
    "BufferedWriter": lambda fs: io.BufferedWriter(fs.open("bucket/file", "wb")),
    "pyarrow": lambda fs: PyFileSystem(FSSpecHandler(fs)).open_output_stream("bucket/file"),
    "pyarrow.gz": lambda fs: pyarrow.CompressedOutputStream(WRAPPERS["pyarrow"](fs), "gzip"),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_so_do_those_that_are_no_python(fs: ObjmetaFileSystem, wrapper: str) -> None:
    with pytest.raises(Oops), WRAPPERS[wrapper](fs) as file:
        file.write(b"half")
        raise Oops
    with pytest.raises(Oops), io.TextIOWrapper(fs.open("bucket/file", "wb")) as text:
        text.write("half")
        raise Oops
    assert versions(fs, "bucket/file") == 0
    try:
        raise Oops
    except Oops:
        with WRAPPERS[wrapper](fs) as file:
            file.write(b"whole")
    assert versions(fs, "bucket/file") == 1


def test_a_close_on_purpose_stores_also_while_an_error_is_handled(fs: ObjmetaFileSystem) -> None:
    file = fs.open("bucket/one", "wb")
    file.write(b"kept")
    try:
        raise Oops
    except Oops:
        file.close()
    assert fs.cat_file("bucket/one") == b"kept"

    class Reporting:
        def __enter__(self) -> None:
            return None

        def __exit__(self, *error: object) -> None:
            with fs.open("bucket/report", "w") as report:
                report.write("what happened")

    with pytest.raises(Oops), Reporting():
        raise Oops
    assert fs.cat_file("bucket/report") == b"what happened"


@pytest.mark.parametrize("mode", ["wb", "w"])
@pytest.mark.parametrize("compression", [None, "gzip", "zip"])
def test_a_handle_that_is_dropped_stores_nothing_and_warns(
    fs: ObjmetaFileSystem, mode: str, compression: str | None
) -> None:
    def drop() -> None:
        file = fs.open("bucket/file", mode, compression=compression)
        file.write("x" * 100 if mode == "w" else os.urandom(5 << 20))

    with pytest.warns(RuntimeWarning, match="never closed"):
        drop()
        gc.collect()
    assert versions(fs, "bucket/file") == 0


def test_a_write_that_failed_cannot_be_closed_into_success(
    fs: ObjmetaFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    store = asyncio.run_coroutine_threadsafe(fs.store(), fs.loop).result()

    async def full(data: bytes, *, generation: int, replicas: int, chunk: object) -> None:
        raise OSError(errno.ENOSPC, "the disk is full")

    monkeypatch.setattr(store.blobs, "put", full)
    file = fs.open("bucket/file", "wb")
    with pytest.raises(OSError, match="full"):
        for _ in range(20):
            file.write(b"x" * (4 << 20))
    with pytest.raises(OSError, match="nothing was stored"):
        file.write(b"x")
    with pytest.raises(OSError, match="nothing was stored"):
        file.close()
    assert file.closed
    assert versions(fs, "bucket/file") == 0


# -- x and a ----------------------------------------------------------------------------------------------------------


def test_exclusive_fails_at_open_and_again_at_commit(fs: ObjmetaFileSystem) -> None:
    for content in (b"", b"mine"):
        path = f"bucket/{len(content)}"
        file = fs.open(path, "xb")
        file.write(content)
        fs.pipe_file(path, b"theirs")
        with pytest.raises(FileExistsError):
            file.close()
        with pytest.raises(FileExistsError):
            fs.open(path, "xb")
        with pytest.raises(FileExistsError):
            fs.open(path, "x")
        assert fs.cat_file(path) == b"theirs"
        assert versions(fs, path) == 1
    with fs.open("bucket/empty", "xb"):
        pass
    assert fs.cat_file("bucket/empty") == b""


def test_of_racing_exclusive_writers_one_wins(fs: ObjmetaFileSystem) -> None:
    outcomes: list[str] = []

    def work(index: int) -> None:
        try:
            with fs.open("bucket/file", "xb") as file:
                file.write(b"%d" % index)
            outcomes.append(str(index))
        except FileExistsError:
            outcomes.append("late")

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("late") == 7
    assert fs.cat_file("bucket/file").decode() in outcomes


@pytest.mark.parametrize("size", [0, 100, (4 << 20) + 5])
def test_appending(fs: ObjmetaFileSystem, size: int) -> None:
    first, second = os.urandom(size), os.urandom(100)
    with fs.open("bucket/file", "ab", content_type="text/x") as file:
        file.write(first)
    with fs.open("bucket/file", "ab") as file:
        assert file.tell() == size
        file.write(second)
        assert file.tell() == size + 100
    with fs.open("bucket/file") as file:
        assert file.read() == first + second
        assert file.info()["content_type"] == "text/x"
    with fs.open("bucket/file", "ab"):
        pass
    assert versions(fs, "bucket/file") == 2
    with fs.open("bucket/file", "a") as text:
        text.write("é")
    assert fs.tail("bucket/file", 2) == "é".encode()


def test_appending_loses_no_update(fs: ObjmetaFileSystem) -> None:
    fs.pipe_file("bucket/file", b"1")
    file = fs.open("bucket/file", "ab")
    file.write(b"3")
    fs.pipe_file("bucket/file", b"2")
    with pytest.raises(OSError, match="current version") as caught:
        file.close()
    assert caught.value.errno == errno.ESTALE
    assert fs.cat_file("bucket/file") == b"2"
    new = fs.open("bucket/new", "ab")
    new.write(b"mine")
    fs.pipe_file("bucket/new", b"theirs")
    with pytest.raises(FileExistsError):
        new.close()


# -- Early refusals, text, compression, transactions ------------------------------------------------------------------


def test_a_place_where_no_file_can_be_is_refused_at_open(fs: ObjmetaFileSystem) -> None:
    with pytest.raises(FileNotFoundError):
        fs.open("nowhere/file", "wb")
    for path in ("bucket", ""):
        with pytest.raises(IsADirectoryError):
            fs.open(path, "wb")
    fs.pipe_file("bucket/file", b"1")
    version = fs.info("bucket/file")["version_id"]
    with pytest.raises(PermissionError, match="version"):
        fs.open(f"bucket/file?versionId={version}", "wb")
    fs.pipe_file("bucket/file", b"2")
    with pytest.raises(OSError, match="current version"):
        fs.open("bucket/file", "wb", if_match=version)


def test_text_modes(fs: ObjmetaFileSystem) -> None:
    with fs.open("bucket/file", "w", encoding="cp1252", newline="\r\n") as file:
        file.write("äöü\n€")
    assert fs.cat_file("bucket/file").decode("cp1252") == "äöü\r\n€"
    with fs.open("bucket/file", "rt", encoding="cp1252") as file:
        assert file.read() == "äöü\n€"
    fs.write_text("bucket/file", "ß")
    assert fs.read_text("bucket/file") == "ß"


@pytest.mark.parametrize("compression", ["gzip", "bz2", "xz", "zip"])
@pytest.mark.parametrize("mode", ["", "b"])
def test_compression(fs: ObjmetaFileSystem, compression: str, mode: str) -> None:
    content = b"text\n" * 10_000 if mode else "text\n" * 10_000
    with fs.open("bucket/file", f"w{mode}", compression=compression) as file:
        file.write(content)
    assert fs.size("bucket/file") < 1000 or compression == "zip"
    with fs.open("bucket/file", f"r{mode}", compression=compression) as file:
        assert file.read() == content
    file = fs.open("bucket/file", f"w{mode}", compression=compression)
    file.write(content[:5])
    file.close()
    with fs.open("bucket/file", f"r{mode}", compression=compression) as file:
        assert file.read() == content[:5]


def test_compression_by_name(fs: ObjmetaFileSystem) -> None:
    with fs.open("bucket/file.gz", "wb", compression="infer") as file:
        file.write(b"x" * 1000)
    assert gzip.decompress(fs.cat_file("bucket/file.gz")) == b"x" * 1000


def test_a_raw_handle_may_be_wrapped(fs: ObjmetaFileSystem) -> None:
    with io.BufferedWriter(fs.open("bucket/file", "wb")) as buffered:
        buffered.write(b"buffered")
    assert fs.cat_file("bucket/file") == b"buffered"
