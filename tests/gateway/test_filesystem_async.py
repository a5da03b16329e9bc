"""The coroutines: all of fsspec's, on any event loop, with handles of their own."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import threading
from pathlib import Path

import pytest
from fsspec.asyn import AsyncFileSystem
from fsspec.generic import GenericFileSystem
from fsspec.spec import AbstractFileSystem

from gateway.fs.filesystem import ObjmetaFileSystem


def test_every_coroutine_of_fsspec_is_there_with_its_twin(fs: ObjmetaFileSystem) -> None:
    ours_are_made_of = {"_pipe", "_cat", "_size", "_sizes", "_process_limits"}
    for name, method in inspect.getmembers(AsyncFileSystem, inspect.isfunction):
        if not (inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method)):
            continue
        assert (getattr(ObjmetaFileSystem, name) is method) == (name in ours_are_made_of), name
        if name.startswith("_") and hasattr(AbstractFileSystem, name[1:]):
            twin = getattr(fs, name[1:])
            assert not inspect.iscoroutinefunction(twin), name
    for name in ("mv", "touch", "rmdir", "modified", "created", "ukey", "checksum", "sign", "setxattrs", "getxattr"):
        assert not inspect.iscoroutinefunction(getattr(fs, name)), name


async def test_handles_for_coroutines(home: Path, no_settings: None) -> None:
    fs = ObjmetaFileSystem(path=home, asynchronous=True, skip_instance_cache=True)
    await fs._mkdir("bucket")
    content = os.urandom((5 << 20) + 3)
    async with await fs.open_async("bucket/file", "wb", content_type="text/x") as file:
        for start in range(0, len(content), 1 << 20):
            await file.write(content[start : start + (1 << 20)])
        assert file.tell() == len(content)
        assert not await fs._exists("bucket/file")
    async with await fs.open_async("bucket/file") as file:
        assert (file.size, file.info()["content_type"], file.readable(), file.writable()) == (
            len(content), "text/x", True, False,
        )  # fmt: skip
        await fs._pipe_file("bucket/file", b"replaced meanwhile")
        assert await file.read(10) == content[:10]
        assert file.seek(-5, 2) == len(content) - 5
        assert await file.read() == content[-5:]
        assert await file.read() == b""
        file.seek(4 << 20)
        assert await file.read(100) == content[4 << 20 : (4 << 20) + 100]
        with pytest.raises(ValueError, match="0 or more"):
            file.seek(-1)
    with pytest.raises(ValueError, match="closed"):
        await file.read()
    async with await fs.open_async("bucket/file", "ab") as file:
        await file.write(b"!")
    assert await fs._cat_file("bucket/file") == b"replaced meanwhile!"
    with pytest.raises(FileExistsError):
        await fs.open_async("bucket/file", "xb")
    for mode, reason in [("r", "'b'"), ("r+b", "not offered")]:
        with pytest.raises((ValueError, OSError), match=reason):
            await fs.open_async("bucket/file", mode)
    await fs._close()


async def test_a_block_left_by_an_exception_stores_nothing(home: Path, no_settings: None) -> None:
    fs = ObjmetaFileSystem(path=home, asynchronous=True, skip_instance_cache=True)
    await fs._mkdir("bucket")
    for size in (0, 100, 9 << 20):
        with pytest.raises(KeyError):  # noqa: PT012
            async with await fs.open_async("bucket/file", "wb") as file:
                await file.write(bytes(size))
                raise KeyError
    racing = await fs.open_async("bucket/late", "xb")
    await fs._pipe_file("bucket/late", b"theirs")
    with pytest.raises(FileExistsError):
        await racing.close()
    dropped = await fs.open_async("bucket/file", "wb")
    await dropped.write(b"x")
    with pytest.warns(RuntimeWarning, match="never closed"):  # noqa: PT031
        del dropped
        gc.collect()
    assert await fs._find("bucket") == ["bucket/late"]
    await fs._close()


def test_one_instance_on_several_event_loops_and_threads(fs: ObjmetaFileSystem) -> None:
    async def work(number: int) -> bytes:
        await fs._pipe_file(f"bucket/{number}", b"%d" % number)
        async with await fs.open_async(f"bucket/{number}") as file:
            found: bytes = await file.read()
        await fs._close()
        return found

    found: dict[int, bytes] = {}
    threads = [
        threading.Thread(target=lambda number=number: found.update({number: asyncio.run(work(number))}))
        for number in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: b"%d" % number for number in range(4)}
    assert fs.find("bucket") == [f"bucket/{number}" for number in range(4)]


def test_event_loops_that_end_leave_no_threads(fs: ObjmetaFileSystem, home: Path) -> None:
    async def read() -> bytes:
        found: bytes = await ObjmetaFileSystem(path=home, asynchronous=True)._cat_file("bucket/file")
        return found

    fs.pipe_file("bucket/file", b"x")
    before = set(threading.enumerate())
    assert [asyncio.run(read()) for _ in range(5)] == [b"x"] * 5
    ObjmetaFileSystem.clear_instance_cache()
    gc.collect()  # the instance, which lets go of its store
    gc.collect()
    left = set(threading.enumerate()) - before
    for thread in left:
        thread.join(timeout=20)
    assert not [thread.name for thread in left if thread.is_alive()]


def test_the_generic_file_system_copies_in_and_out(fs: ObjmetaFileSystem, home: Path, tmp_path: Path) -> None:
    content = os.urandom(6 << 20)
    (tmp_path / "file").write_bytes(content)
    generic = GenericFileSystem(default_method="current", skip_instance_cache=True)
    generic.copy(f"file://{tmp_path}/file", "objmeta://bucket/file")
    assert fs.cat_file("bucket/file") == content
    generic.copy("objmeta://bucket/file", f"file://{tmp_path}/back")
    assert (tmp_path / "back").read_bytes() == content
