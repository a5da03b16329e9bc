"""Files, directories, copies and listings through fsspec's names for them."""

from __future__ import annotations

import errno
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.callbacks import Callback

from gateway.fs.filesystem import ObjmetaFileSystem
from objmeta.client.embedded import EmbeddedRegisters


def names(fs: ObjmetaFileSystem, path: str) -> list[str]:
    found: list[str] = fs.ls(path, detail=False)
    return found


# -- Content ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 8192, 8193, (4 << 20) - 1, 4 << 20, (9 << 20) + 7])
def test_what_is_piped_is_what_is_read(fs: ObjmetaFileSystem, size: int) -> None:
    content = os.urandom(size)
    fs.pipe_file("bucket/file", content)
    assert fs.cat_file("bucket/file") == content
    assert fs.info("bucket/file")["size"] == size
    assert fs.size("objmeta://bucket/file") == size


@pytest.mark.parametrize(
    ("start", "end"), [(None, None), (3, 7), (-4, None), (-6, -2), (0, 0), (8, 100), (100, 200), (5, 2), (None, -1)]
)
def test_a_range_is_a_slice(fs: ObjmetaFileSystem, start: int | None, end: int | None) -> None:
    fs.pipe_file("bucket/file", b"0123456789")
    assert fs.cat_file("bucket/file", start=start, end=end) == b"0123456789"[start:end]


def test_a_range_over_chunks(fs: ObjmetaFileSystem) -> None:
    content = os.urandom(10 << 20)
    fs.pipe_file("bucket/file", content)
    for start, end in [(0, 10 << 20), ((4 << 20) - 3, (4 << 20) + 3), (1, (8 << 20) + 1), (9 << 20, 11 << 20)]:
        assert fs.cat_file("bucket/file", start=start, end=end) == content[start:end]


def test_ranges_of_one_file_are_of_one_version_and_errors_stay_in_their_place(fs: ObjmetaFileSystem) -> None:
    fs.pipe_file("bucket/file", b"0123456789")
    found = fs.cat_ranges(["bucket/file", "bucket/none", "bucket/file"], [0, 0, 5], [2, 1, 7])
    assert found[0] == b"01"
    assert isinstance(found[1], FileNotFoundError)
    assert found[2] == b"56"
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges(["bucket/none"], 0, 1, on_error="raise")
    for several in (list, tuple, iter, np.array):
        assert fs.cat_ranges(["bucket/file"] * 2, several([0, 8]), several([2, 10]), max_gap=8) == [b"01", b"89"]


def test_ranges_close_to_each_other_are_read_as_one(fs: ObjmetaFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    content = os.urandom(3 << 20)
    fs.pipe({"bucket/a": content, "bucket/b": b"0123456789"})
    reads: list[tuple[str, int, int]] = []
    real = fs._read_version

    async def counted(version: Any, start: int, stop: int) -> bytes:
        reads.append((version.key, start, stop))
        return await real(version, start, stop)

    monkeypatch.setattr(fs, "_read_version", counted)
    starts = [1000, 0, 150, None, -10, 5, 7]
    ends = [2000, 100, 300, 10, None, 5, 3]
    paths = ["bucket/a"] * 5 + ["bucket/b"] * 2
    wanted = [(content if path == "bucket/a" else b"0123456789")[slice(start, end)]
              for path, start, end in zip(paths, starts, ends, strict=True)]  # fmt: skip
    for max_gap, expected in [(None, 5), (0, 4), (50, 3), (700, 2), (4 << 20, 1)]:
        reads.clear()
        assert fs.cat_ranges(paths, starts, ends, max_gap=max_gap) == wanted
        assert len([each for each in reads if each[0] == "a"]) == expected, max_gap
        assert not [each for each in reads if each[0] == "b"]
    with pytest.raises(ValueError, match="max_gap"):
        fs.cat_ranges(paths, starts, ends, max_gap=-1)


def test_pipe_create_refuses_to_replace(fs: ObjmetaFileSystem) -> None:
    fs.pipe_file("bucket/file", b"old", mode="create")
    with pytest.raises(FileExistsError):
        fs.pipe_file("bucket/file", b"new", mode="create")
    assert fs.cat_file("bucket/file") == b"old"


def test_content_is_bytes(fs: ObjmetaFileSystem) -> None:
    for content in (b"ab", bytearray(b"ab"), memoryview(b"axbx")[::2], np.frombuffer(b"ab", dtype="u1")):
        fs.pipe_file("bucket/file", content)
        assert fs.cat_file("bucket/file") == b"ab"
    for nothing in (5, [1, 2], "ab", None):
        with pytest.raises(TypeError, match="bytes, not"):
            fs.pipe_file("bucket/file", nothing)
    with pytest.raises(ValueError, match="'ab'"):
        fs.pipe_file("bucket/file", b"x", mode="append")
    with pytest.raises(ValueError, match="'ab'"):
        fs.put_file(__file__, "bucket/file", mode="a")
    assert fs.cat_file("bucket/file") == b"ab"


def test_writes_on_a_condition(fs: ObjmetaFileSystem) -> None:
    fs.pipe_file("bucket/file", b"1")
    version = fs.info("bucket/file")["version_id"]
    fs.pipe_file("bucket/file", b"2", if_match=version)
    with pytest.raises(OSError, match="not") as caught:
        fs.pipe_file("bucket/file", b"3", if_match=version)
    assert caught.value.errno == errno.ESTALE
    with pytest.raises(FileExistsError):
        fs.pipe_file("bucket/file", b"3", if_none_match="*")
    with pytest.raises(ValueError, match=r"\*"):
        fs.pipe_file("bucket/file", b"3", if_none_match=version)
    assert fs.cat_file("bucket/file") == b"2"


def test_content_type_and_metadata_are_kept(fs: ObjmetaFileSystem) -> None:
    with fs.open("bucket/file", "wb", content_type="text/x", metadata={"who": "me"}) as file:
        file.write(b"x")
    with fs.open("bucket/file") as file:
        entry = file.info()
    assert (entry["content_type"], entry["metadata"]) == ("text/x", {"who": "me"})


def test_files_to_and_from_the_disk(fs: ObjmetaFileSystem, tmp_path: Path) -> None:
    class Progress(Callback):  # type: ignore[misc]
        done = 0

        def relative_update(self, inc: int = 1) -> None:
            self.done += inc

    content = os.urandom(5 << 20)
    (tmp_path / "up").write_bytes(content)
    up, down = Progress(), Progress()
    fs.put_file(tmp_path / "up", "bucket/deep/file", callback=up)
    fs.get_file("bucket/deep/file", tmp_path / "new" / "down", callback=down)
    assert (tmp_path / "new" / "down").read_bytes() == content
    assert up.done == down.done == up.size == down.size == len(content)
    with open(tmp_path / "object", "wb") as file:
        fs.get_file("bucket/deep/file", file)
    assert (tmp_path / "object").read_bytes() == content
    with pytest.raises(FileExistsError):
        fs.put_file(tmp_path / "up", "bucket/deep/file", mode="create")


def test_a_get_that_fails_leaves_the_old_file(fs: ObjmetaFileSystem, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(FileNotFoundError):
        fs.get_file("bucket/none", tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("file")] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_tree_goes_up_and_down(fs: ObjmetaFileSystem, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub" / "empty").mkdir(parents=True)
    (source / "a").write_bytes(b"a")
    (source / "sub" / "b").write_bytes(b"b")
    fs.put(str(source), "bucket", recursive=True)
    assert fs.find("bucket") == ["bucket/source/a", "bucket/source/sub/b"]
    assert fs.isdir("bucket/source/sub/empty")
    fs.get("bucket/source", str(tmp_path / "target"), recursive=True)
    assert (tmp_path / "target" / "sub" / "b").read_bytes() == b"b"
    assert (tmp_path / "target" / "sub" / "empty").is_dir()


def test_a_tree_may_become_a_new_bucket(fs: ObjmetaFileSystem, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b").write_bytes(b"b")
    fs.put(str(tmp_path), "newer", recursive=True)
    assert fs.find("newer") == ["newer/sub/b"]
    fs.cp("newer", "newest", recursive=True)
    assert fs.find("newest") == ["newest/sub/b"]


# -- Directories ------------------------------------------------------------------------------------------------------


def test_buckets_are_the_first_directories(fs: ObjmetaFileSystem) -> None:
    fs.mkdir("other")
    assert names(fs, "") == names(fs, "objmeta://") == ["bucket", "other"]
    assert fs.isdir("other")
    assert fs.info("other")["type"] == "directory"
    with pytest.raises(FileExistsError):
        fs.mkdir("other")
    with pytest.raises(FileExistsError):
        fs.mkdir("other", create_parents=False)
    fs.makedirs("other", exist_ok=True)
    fs.rmdir("other")
    assert not fs.exists("other")
    with pytest.raises(FileNotFoundError):
        fs.rmdir("other")


def test_empty_directories_are_real(fs: ObjmetaFileSystem) -> None:
    fs.makedirs("bucket/a/b")
    assert names(fs, "bucket") == ["bucket/a"]
    assert names(fs, "bucket/a/b") == []
    assert fs.find("bucket") == []
    assert fs.find("bucket", withdirs=True) == ["bucket", "bucket/a", "bucket/a/b"]
    with pytest.raises(FileExistsError):
        fs.makedirs("bucket/a/b")
    fs.makedirs("bucket/a/b", exist_ok=True)
    fs.rmdir("bucket/a/b")
    assert names(fs, "bucket/a") == []
    fs.rmdir("bucket/a")
    with pytest.raises(FileNotFoundError):
        fs.ls("bucket/a")


def test_keys_imply_directories(fs: ObjmetaFileSystem) -> None:
    fs.pipe_file("bucket/a/b/c", b"x")
    assert fs.isdir("bucket/a/b")
    assert fs.info("bucket/a") == {"name": "bucket/a", "size": 0, "type": "directory"}
    with pytest.raises(FileExistsError):
        fs.mkdir("bucket/a")
    fs.rm("bucket/a/b/c")
    assert not fs.exists("bucket/a")


def test_a_directory_that_is_not_empty_stays(fs: ObjmetaFileSystem) -> None:
    fs.mkdir("bucket/a")
    fs.pipe_file("bucket/a/b", b"x")
    for path in ("bucket/a", "bucket"):
        with pytest.raises(OSError, match=r"empty|holds") as caught:
            fs.rmdir(path)
        assert caught.value.errno == errno.ENOTEMPTY
    with pytest.raises(NotADirectoryError):
        fs.rmdir("bucket/a/b")


def test_mkdir_without_parents_needs_a_parent(fs: ObjmetaFileSystem) -> None:
    for path in ("bucket/a/b", "nowhere/a"):
        with pytest.raises(FileNotFoundError):
            fs.mkdir(path, create_parents=False)
    fs.mkdir("bucket/a", create_parents=False)
    fs.mkdir("bucket/a/b", create_parents=False)
    fs.mkdir("nowhere/a/b")
    assert fs.isdir("nowhere/a")
    fs.pipe_file("bucket/file", b"")
    with pytest.raises(FileExistsError):
        fs.mkdir("bucket/file")


def test_a_file_and_a_directory_may_have_one_name(fs: ObjmetaFileSystem) -> None:
    fs.pipe({"bucket/a": b"file", "bucket/a/b": b"below"})
    assert fs.isfile("bucket/a")
    assert fs.cat_file("bucket/a") == b"file"
    assert names(fs, "bucket") == ["bucket/a", "bucket/a"]
    assert {entry["type"] for entry in fs.ls("bucket")} == {"file", "directory"}
    assert names(fs, "bucket/a") == ["bucket/a/b"]
    assert fs.find("bucket") == ["bucket/a", "bucket/a/b"]
    assert fs.find("bucket", maxdepth=1) == ["bucket/a"]
    fs.rm("bucket/a")
    assert fs.find("bucket") == ["bucket/a/b"]
    fs.pipe_file("bucket/a", b"again")
    fs.rm("bucket/a", recursive=True)
    assert fs.find("bucket") == []


def test_the_base_class_finds_what_the_range_scan_finds(fs: ObjmetaFileSystem) -> None:
    for path in ("a", "b/c", "b/d/e", "b/d/f", "b-x", "b0", "ü/é", "z/empty/"):
        if path.endswith("/"):
            fs.makedirs(f"bucket/{path}")
        else:
            fs.pipe_file(f"bucket/{path}", path.encode())
    for start in ("bucket", "bucket/b", "bucket/b/d", "bucket/z", "bucket/a", "bucket/none"):
        for depth in (None, 1, 2, 3):
            for withdirs in (False, True):
                walked: dict[str, Any] = {}
                if withdirs and fs.isdir(start):
                    walked[start] = None
                for _, dirs, files in fs.walk(start, maxdepth=depth, detail=True):
                    entries = [*files.values(), *(dirs.values() if withdirs else ())]
                    walked |= {entry["name"]: entry["type"] for entry in entries}
                found = fs.find(start, maxdepth=depth, withdirs=withdirs)
                assert found == sorted(walked), (start, depth, withdirs)


def test_du_and_walk(fs: ObjmetaFileSystem) -> None:
    fs.pipe({"bucket/a/1": b"x" * 10, "bucket/a/b/2": b"x" * 5, "bucket/3": b"x"})
    assert fs.du("bucket") == 16
    assert fs.du("bucket/a", total=False) == {"bucket/a/1": 10, "bucket/a/b/2": 5}
    walked = list(fs.walk("bucket"))
    assert walked == [("bucket", ["a"], ["3"]), ("bucket/a", ["b"], ["1"]), ("bucket/a/b", [], ["2"])]
    assert list(fs.walk("bucket/none")) == [("bucket/none", [], [])]


def test_depth_and_directories(fs: ObjmetaFileSystem) -> None:
    fs.pipe({"bucket/a.x": b"", "bucket/d/b.x": b"", "bucket/d/e/c.x": b"", "bucket/d/e/f/g.x": b""})
    assert list(fs.walk("bucket", maxdepth=1)) == [("bucket", ["d"], ["a.x"])]
    assert [root for root, _, _ in fs.walk("bucket", maxdepth=2)] == ["bucket", "bucket/d"]
    assert [root for root, _, _ in fs.walk("bucket/d", topdown=False)] == ["bucket/d/e/f", "bucket/d/e", "bucket/d"]
    assert fs.glob("bucket/**/*.x") == ["bucket/a.x", "bucket/d/b.x", "bucket/d/e/c.x", "bucket/d/e/f/g.x"]
    assert fs.glob("bucket/d/**", maxdepth=1) == ["bucket/d", "bucket/d/b.x", "bucket/d/e"]
    assert fs.glob("bucket/*") == ["bucket/a.x", "bucket/d"]
    assert fs.glob("bucket/*", withdirs=False) == ["bucket/a.x"]
    assert fs.glob("bucket/d/**", withdirs=False) == ["bucket/d/b.x", "bucket/d/e/c.x", "bucket/d/e/f/g.x"]
    for call in (fs.find, fs.glob, lambda path, maxdepth: list(fs.walk(path, maxdepth=maxdepth))):
        with pytest.raises(ValueError, match="maxdepth"):
            call("bucket", maxdepth=0)


def test_find_of_ten_thousand_keys_is_a_few_pages(fs: ObjmetaFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    client = asyncio.run_coroutine_threadsafe(fs.store(), fs.loop).result().client

    async def fill() -> None:
        for start in range(0, 10_000, 1000):
            await asyncio.gather(
                *(client.put_object("bucket", f"d/{i // 100}/{i:05}", data=b"") for i in range(start, start + 1000))
            )

    asyncio.run_coroutine_threadsafe(fill(), fs.loop).result()
    pages = []
    real = client.list_objects

    async def counted(*args: Any, **kwargs: Any) -> Any:
        pages.append(args)
        return await real(*args, **kwargs)

    monkeypatch.setattr(client, "list_objects", counted)
    assert len(fs.find("bucket/d")) == 10_000
    assert len(pages) <= 4


def test_info_of_a_file_is_one_round_trip(fs: ObjmetaFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    fs.pipe_file("bucket/file", b"x")
    trips, under_way = [], 0

    def counted(name: str) -> None:
        real = getattr(EmbeddedRegisters, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal under_way
            if not under_way:  # what is asked at the same time travels together
                trips.append(name)
            under_way += 1
            try:
                return await real(*args, **kwargs)
            finally:
                under_way -= 1

        monkeypatch.setattr(EmbeddedRegisters, name, call)

    for name in ("read", "records", "scan", "change"):
        counted(name)
    assert fs.info("bucket/file")["size"] == 1
    assert trips == ["read"]


# -- Copying, moving, removing ----------------------------------------------------------------------------------------


def test_copying_moves_no_bytes(fs: ObjmetaFileSystem, home: Path) -> None:
    fs.pipe_file("bucket/a", os.urandom(5 << 20))
    before = {path.name for path in (home / "blobs").rglob("*") if path.is_file()}
    fs.cp_file("bucket/a", "bucket/b")
    fs.mv("bucket/b", "bucket/c")
    fs.mkdir("other")
    fs.copy("bucket/c", "other/")
    assert {path.name for path in (home / "blobs").rglob("*") if path.is_file()} == before
    assert fs.find("bucket") == ["bucket/a", "bucket/c"]
    assert fs.cat_file("other/c") == fs.cat_file("bucket/a")
    with pytest.raises(FileNotFoundError):
        fs.cp_file("bucket/none", "bucket/x")
    with pytest.raises(FileNotFoundError):
        fs.cp_file("bucket/a", "nowhere/x")


def test_moving_directories(fs: ObjmetaFileSystem) -> None:
    fs.pipe({"bucket/d/a": b"a", "bucket/d/sub/b": b"b"})
    fs.mkdir("bucket/d/empty")
    with pytest.raises(IsADirectoryError):
        fs.mv("bucket/d", "bucket/e")
    fs.mv("bucket/d", "bucket/e", recursive=True)
    assert fs.find("bucket") == ["bucket/e/a", "bucket/e/sub/b"]
    assert fs.isdir("bucket/e/empty")
    assert not fs.exists("bucket/d")
    with pytest.raises(OSError, match="itself"):
        fs.mv("bucket/e", "bucket/e/inside", recursive=True)
    fs.mv("bucket/e", "bucket/e", recursive=True)
    with pytest.raises(FileNotFoundError):
        fs.mv("bucket/none", "bucket/x")
    fs.mv("bucket/e/*", "bucket/f/")
    assert fs.find("bucket") == ["bucket/e/sub/b", "bucket/f/a"]


def test_removing_keeps_history_until_it_is_told_to_go(fs: ObjmetaFileSystem) -> None:
    fs.pipe_file("bucket/d/a", b"1")
    version = fs.info("bucket/d/a")["version_id"]
    fs.rm("bucket/d/a")
    assert fs.cat_file("bucket/d/a", version_id=version) == b"1"
    with pytest.raises(OSError, match="bucket") as caught:
        fs.rm("bucket", recursive=True)
    assert caught.value.errno == errno.ENOTEMPTY
    fs.rm("bucket/d/a", versions=True)
    with pytest.raises(FileNotFoundError):
        fs.cat_file("bucket/d/a", version_id=version)
    fs.pipe({"bucket/x": b"1", "bucket/y/z": b"2"})
    fs.rm("bucket", recursive=True, versions=True)
    assert names(fs, "") == []


def test_a_tree_is_removed_in_batches(fs: ObjmetaFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    client = asyncio.run_coroutine_threadsafe(fs.store(), fs.loop).result().client
    real, under_way, most = client.delete_object, 0, 0

    async def fill() -> None:
        await asyncio.gather(*(client.put_object("bucket", f"d/{i:04}", data=b"") for i in range(1200)))

    async def counted(*args: Any, **options: Any) -> Any:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        try:
            return await real(*args, **options)
        finally:
            under_way -= 1

    asyncio.run_coroutine_threadsafe(fill(), fs.loop).result()
    fs.pipe_file("bucket/kept", b"")
    monkeypatch.setattr(client, "delete_object", counted)
    fs.rm("bucket/d", recursive=True, batch_size=50)
    assert fs.find("bucket") == ["bucket/kept"]
    assert 1 < most <= 50


def test_removing_what_is_not_a_file(fs: ObjmetaFileSystem) -> None:
    fs.pipe({"bucket/d/a": b"1", "bucket/e": b"2"})
    with pytest.raises(IsADirectoryError):
        fs.rm("bucket/d")
    with pytest.raises(IsADirectoryError):
        fs.rm("bucket")
    with pytest.raises(PermissionError):
        fs.rm("", recursive=True)
    for path in ("bucket/none", "nowhere/none"):
        for recursive in (False, True):
            with pytest.raises(FileNotFoundError):
                fs.rm(path, recursive=recursive)
    fs.rm(["bucket/d/a", "bucket/e"])
    assert fs.find("bucket") == []


# -- Times and identity -----------------------------------------------------------------------------------------------


def test_times_and_identity(fs: ObjmetaFileSystem) -> None:
    fs.touch("bucket/file")
    first = fs.modified("bucket/file")
    assert abs(first - datetime.now(UTC)) < timedelta(minutes=1)
    ukey, checksum = fs.ukey("bucket/file"), fs.checksum("bucket/file")
    assert (ukey, checksum) == (fs.ukey("bucket/file"), fs.checksum("bucket/file"))
    fs.pipe_file("bucket/file", b"x")
    assert fs.ukey("bucket/file") != ukey
    assert fs.checksum("bucket/file") != checksum
    assert first < fs.created("bucket/file") == fs.modified("bucket/file")
    before = fs.modified("bucket/file")
    fs.touch("bucket/file", truncate=False)
    assert fs.modified("bucket/file") > before
    assert fs.cat_file("bucket/file") == b"x"
    fs.touch("bucket/file")
    assert fs.cat_file("bucket/file") == b""
    assert fs.created("bucket") <= first
    fs.touch("bucket/new", truncate=False)
    assert fs.size("bucket/new") == 0


def test_there_is_nothing_to_sign(fs: ObjmetaFileSystem) -> None:
    with pytest.raises(NotImplementedError, match="URL"):
        fs.sign("bucket/file")


# -- The ways in ------------------------------------------------------------------------------------------------------


def test_urls_reach_the_store_by_options_or_by_the_environment(
    fs: ObjmetaFileSystem, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with fsspec.open("objmeta://bucket/file.txt", "w", path=str(home)) as file:
        file.write("ä")
    monkeypatch.setenv("OBJMETA_HOME", str(home))
    with fsspec.open("objmeta://bucket/file.txt", "r") as file:
        assert file.read() == "ä"
    assert fsspec.filesystem("objmeta").find("bucket") == ["bucket/file.txt"]
    monkeypatch.setenv("OBJMETA_HOME", str(tmp_path / "other"))
    assert fsspec.filesystem("objmeta").ls("") == []
    mapper = fsspec.get_mapper("objmeta://bucket/map", path=str(home))
    mapper["x/y"] = b"1"
    assert dict(mapper) == {"x/y": b"1"}


def test_contradictory_or_bad_settings_are_refused() -> None:
    with pytest.raises(OSError, match="only one of them"):
        ObjmetaFileSystem(path="/somewhere", endpoints="127.0.0.1:1")
    with pytest.raises(OSError, match="host:port"):
        ObjmetaFileSystem(endpoints=["127.0.0.1:1", "nonsense"])
    with pytest.raises(OSError, match="timeout_s"):
        ObjmetaFileSystem(path="/somewhere", timeout_s=-1)


async def test_coroutines_on_a_loop_of_ones_own(home: Path, no_settings: None) -> None:
    fs = ObjmetaFileSystem(path=home, asynchronous=True, skip_instance_cache=True)
    await fs._mkdir("bucket")
    await fs._pipe_file("bucket/file", b"x")
    assert await fs._cat("bucket/*") == {"bucket/file": b"x"}
    with pytest.raises(RuntimeError, match="coroutines"):
        fs.open("bucket/file")
    await fs._close()


def test_a_closed_instance_opens_again(fs: ObjmetaFileSystem) -> None:
    fs.pipe_file("bucket/file", b"x")
    fs.close()
    fs.close()
    assert fs.cat_file("bucket/file") == b"x"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # blockcache never closes its file
def test_a_cache_in_front_works(fs: ObjmetaFileSystem, home: Path, tmp_path: Path) -> None:
    content = os.urandom(6 << 20)
    fs.pipe_file("bucket/file", content)
    for kind in ("simplecache", "filecache", "blockcache"):
        options: dict[str, Any] = {kind: {"cache_storage": str(tmp_path / kind)}, "objmeta": {"path": str(home)}}
        with fsspec.open(f"{kind}::objmeta://bucket/file", "rb", **options) as file:
            file.seek(100)
            assert file.read(5 << 20) == content[100 : 100 + (5 << 20)]
