"""``with fs.transaction:``: all files at one instant, or none."""

from __future__ import annotations

import errno
import gzip
import os
import threading
from typing import Any

import pytest

from gateway.fs.filesystem import ObjmetaFileSystem


class Oops(Exception):
    """What goes wrong in these tests."""


def write(fs: ObjmetaFileSystem, path: str, content: bytes, mode: str = "wb", **options: Any) -> None:
    with fs.open(path, mode, **options) as file:
        file.write(content)


def test_a_transaction_publishes_at_its_end_and_belongs_to_its_thread(fs: ObjmetaFileSystem) -> None:
    def elsewhere() -> None:
        fs.pipe_file("bucket/piped", b"1")
        write(fs, "bucket/other", b"2")

    with fs.transaction:
        write(fs, "bucket/a", b"a")
        write(fs, "bucket/b", b"b")
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert fs.find("bucket") == ["bucket/other", "bucket/piped"]
    assert fs.find("bucket") == ["bucket/a", "bucket/b", "bucket/other", "bucket/piped"]
    with pytest.raises(Oops), fs.transaction:  # noqa: PT012
        write(fs, "bucket/c", b"c")
        raise Oops
    assert not fs.exists("bucket/c")
    write(fs, "bucket/d", b"d")
    assert fs.cat_file("bucket/d") == b"d"


def test_all_files_are_of_one_instant(fs: ObjmetaFileSystem) -> None:
    large = os.urandom(9 << 20)
    fs.pipe({"bucket/log": b"1", "bucket/same": b"1"})
    fs.mkdir("another")
    with fs.transaction:
        write(fs, "bucket/small", b"x", content_type="text/plain", metadata={"by": "me"})
        write(fs, "another/large", large)
        write(fs, "bucket/zipped.gz", b"y" * 1000, compression="infer")
        write(fs, "bucket/empty", b"")
        write(fs, "bucket/log", b"2", "ab")
        write(fs, "bucket/same", b"", "ab")
        with fs.open("bucket/text", "w") as text:
            text.write("ö")
        with pytest.raises(Oops), fs.open("bucket/broken", "wb") as broken:  # noqa: PT012
            broken.write(b"half")
            raise Oops
        assert fs.find("bucket") == ["bucket/log", "bucket/same"]
    assert fs.find("bucket") == [f"bucket/{each}" for each in ("empty", "log", "same", "small", "text", "zipped.gz")]
    assert fs.cat_file("another/large") == large
    assert gzip.decompress(fs.cat_file("bucket/zipped.gz")) == b"y" * 1000
    assert (fs.cat_file("bucket/log"), fs.cat_file("bucket/text")) == (b"12", "ö".encode())
    assert fs.metadata("bucket/small") == {"by": "me"}
    assert fs.info("bucket/same")["sequence"] == 1
    made = ["another/large", *(f"bucket/{each}" for each in ("empty", "log", "small", "text", "zipped.gz"))]
    assert len({fs.modified(path) for path in made}) == 1


def test_what_one_file_is_refused_none_gets(fs: ObjmetaFileSystem) -> None:
    fs.pipe_file("bucket/file", b"1")
    for mode, options in [("xb", {}), ("wb", {"if_match": fs.info("bucket/file")["VersionId"]}), ("ab", {})]:
        path = "bucket/new" if mode == "xb" else "bucket/file"
        with pytest.raises(OSError, match="bucket") as caught, fs.transaction:  # noqa: PT012
            write(fs, "bucket/first", os.urandom(1 << 20))
            write(fs, path, b"mine", mode, **options)
            write(fs, "bucket/last", b"x")
            fs.pipe_file(path, b"theirs")
        assert caught.value.errno == (errno.EEXIST if mode == "xb" else errno.ESTALE)
        assert fs.cat_file(path) == b"theirs"
        assert not fs.exists("bucket/first")
        assert not fs.exists("bucket/last")
        with pytest.raises(FileNotFoundError):
            fs.object_version_info("bucket/first")
        write(fs, "bucket/after", b"no transaction is left behind")
        assert fs.exists("bucket/after")


def test_what_is_still_open_or_named_twice_is_refused_with_all_others(fs: ObjmetaFileSystem) -> None:
    with pytest.raises(OSError, match="still open") as caught, fs.transaction:  # noqa: PT012
        write(fs, "bucket/closed", b"x")
        opened = fs.open("bucket/open", "w", compression="gzip")
        opened.write("x")
    assert (caught.value.errno, caught.value.filename) == (errno.EINVAL, "bucket/open")
    with pytest.raises(OSError, match=r"twice|once"), fs.transaction:  # noqa: PT012
        write(fs, "bucket/twice", b"1")
        write(fs, "bucket/twice", b"2")
    assert fs.find("bucket") == []
    fs.start_transaction()
    write(fs, "bucket/file", b"x")
    assert fs.find("bucket") == []
    fs.end_transaction()
    assert fs.find("bucket") == ["bucket/file"]
    with fs.transaction:
        pass
