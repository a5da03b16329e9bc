"""Reading handles: pinned, seekable, and right under many threads."""

from __future__ import annotations

import io
import os
import pickle
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from gateway.fs.filesystem import ObjmetaFileSystem


@pytest.fixture
def content(fs: ObjmetaFileSystem) -> bytes:
    """What ``bucket/big`` holds: a little over two chunks."""
    found = os.urandom((9 << 20) + 17)
    fs.pipe_file("bucket/big", found)
    return found


def test_a_handle_is_a_seekable_file(fs: ObjmetaFileSystem, content: bytes) -> None:
    with fs.open("bucket/big", "rb") as file:
        assert (file.readable(), file.seekable(), file.writable()) == (True, True, False)
        assert file.size == len(content)
        assert file.read(10) == content[:10]
        assert file.tell() == 10
        assert file.seek(-5, os.SEEK_END) == len(content) - 5
        assert file.read(100) == content[-5:]
        assert file.read() == b""
        assert file.seek(1 << 30) == 1 << 30
        assert file.read(1) == b""
        with pytest.raises(ValueError, match="before start"):
            file.seek(-1)
        with pytest.raises(ValueError, match="not in write mode"):
            file.write(b"x")
        file.seek(3)
        buffer = bytearray(7)
        assert file.readinto(buffer) == 7
        assert bytes(buffer) == content[3:10]
        file.seek(0)
        assert file.read() == content
    with pytest.raises(ValueError, match="closed"):
        file.read(1)


def test_random_ranges(fs: ObjmetaFileSystem, content: bytes) -> None:
    rng = random.Random(5)
    with fs.open("bucket/big") as file:
        for _ in range(200):
            start = rng.randrange(len(content))
            length = rng.choice([1, 100, 70_000, 5 << 20])
            file.seek(start)
            assert file.read(length) == content[start : start + length]


def test_lines(fs: ObjmetaFileSystem) -> None:
    lines = [b"\n", b"a\n", b"x" * 50_000 + b"\n", b"", b"last"]
    fs.pipe_file("bucket/lines", b"".join(lines))
    with fs.open("bucket/lines") as file:
        assert list(file) == [b"\n", b"a\n", b"x" * 50_000 + b"\n", b"last"]
        file.seek(0)
        assert file.readline(1) == b"\n"
        assert file.readline(1) == b"a"
        assert file.readline() == b"\n"
    with fs.open("bucket/lines", "r") as text:
        assert [line for line in text if len(line) < 9] == ["\n", "a\n", "last"]


def test_a_handle_is_pinned_to_its_version(fs: ObjmetaFileSystem) -> None:
    old = os.urandom(9 << 20)
    fs.pipe_file("bucket/file", old)
    with fs.open("bucket/file") as file:
        assert file.read(5) == old[:5]
        fs.pipe_file("bucket/file", b"new")
        file.seek(8 << 20)
        assert file.read() == old[8 << 20 :]
        entry = file.info()
        fs.rm("bucket/file")
        file.seek(0)
        assert file.read() == old
    assert (entry["size"], entry["name"]) == (9 << 20, "bucket/file")
    with fs.open("bucket/file", version_id=entry["version_id"]) as file:
        assert file.read(4) == old[:4]


def in_threads(count: int, work: Callable[[int], None]) -> None:
    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(work, index) for index in range(count)]:
            done.result()


def test_threads_that_seek_and_read_do_not_disturb_each_other(fs: ObjmetaFileSystem, content: bytes) -> None:
    barrier = threading.Barrier(8)
    with fs.open("bucket/big") as file:

        def work(index: int) -> None:
            rng = random.Random(index)
            for _ in range(60):
                start, length = rng.randrange(len(content)), rng.choice([10, 3000, 1 << 20])
                if rng.random() < 0.1:
                    barrier.wait()
                file.seek(start)
                assert file.tell() == start
                is_right = file.read(length) == content[start : start + length]
                assert is_right  # a megabyte is not shown

        def run(index: int) -> None:
            try:
                work(index)
            except threading.BrokenBarrierError:
                return
            finally:
                barrier.abort()

        in_threads(8, run)


def test_a_handle_passed_from_thread_to_thread_reads_on(fs: ObjmetaFileSystem, content: bytes) -> None:
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as two, fs.open("bucket/big") as file:
        file.seek(100)
        pieces = [pool.submit(file.read, 1000).result() for pool in (one, two, one, one, two)]
        assert b"".join(pieces) == content[100:5100]
        assert file.read(10) == content[5100:5110]
        two.submit(file.seek, 7).result()
        assert two.submit(file.read, 3).result() == content[7:10]
        assert one.submit(file.read, 3).result() == content[10:13]


def test_threads_that_share_a_position_get_every_byte_once(fs: ObjmetaFileSystem, content: bytes) -> None:
    found: list[bytes] = []
    with fs.open("bucket/big") as file:

        def work(index: int) -> None:
            while piece := file.read(100_000):
                found.append(piece)

        in_threads(4, work)
    assert sorted(found) == sorted(content[at : at + 100_000] for at in range(0, len(content), 100_000))


def test_a_handle_may_be_pickled(fs: ObjmetaFileSystem, content: bytes) -> None:
    with fs.open("bucket/big") as file:
        file.seek(50)
        with pickle.loads(pickle.dumps(file)) as copy:
            fs.pipe_file("bucket/big", b"other")
            assert copy.read(10) == content[50:60]


def test_equal_files_are_equal(fs: ObjmetaFileSystem, content: bytes) -> None:
    with fs.open("bucket/big") as one, fs.open("bucket/big") as two:
        assert one == two
        assert hash(one) == hash(two)


def test_what_cannot_be_opened(fs: ObjmetaFileSystem) -> None:
    fs.mkdir("bucket/made")
    fs.pipe_file("bucket/implied/x", b"")
    for path in ("bucket/none", "nowhere/none", "bucket/implied/x/y"):
        with pytest.raises(FileNotFoundError) as caught:
            fs.open(path)
        assert caught.value.filename == path
        assert caught.value.__cause__ is not None
    for path in ("bucket", "bucket/made", "bucket/implied", ""):
        with pytest.raises(IsADirectoryError):
            fs.open(path)
        with pytest.raises(IsADirectoryError):
            fs.cat_file(path)
    for mode in ("r+b", "w+b", "rb+", "r+", "rw", "wx", ""):
        with pytest.raises((io.UnsupportedOperation, ValueError)):
            fs.open("bucket/implied/x", mode)


def test_an_empty_file(fs: ObjmetaFileSystem) -> None:
    fs.touch("bucket/empty")
    with fs.open("bucket/empty") as file:
        assert (file.read(), file.read(5), file.readline(), list(file)) == (b"", b"", b"", [])


def test_head_tail_and_blocks(fs: ObjmetaFileSystem, content: bytes) -> None:
    assert fs.head("bucket/big", 10) == content[:10]
    assert fs.tail("bucket/big", 10) == content[-10:]
    assert fs.read_block("bucket/big", 5, 10) == content[5:15]
