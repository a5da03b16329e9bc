"""Names in put, get, cp, mv and rm: what exists is no pattern, also on this machine; versions; many at a time."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from fsspec.callbacks import Callback

from gateway.fs.filesystem import ObjmetaFileSystem

ODD = ["plain", "d[1]", "q?", "s*"]


def tree(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", ODD)
def test_a_local_file_that_exists_is_no_pattern(fs: ObjmetaFileSystem, tmp_path: Path, name: str) -> None:
    for each in (name, "q1", "star", "d1"):
        (tmp_path / each).write_text(each)
    fs.mkdir("bucket/there")
    for target, found in [("new", "new"), ("into/", f"into/{name}"), ("there", f"there/{name}"), (name, name)]:
        fs.put(str(tmp_path / name), f"bucket/{target}")
        assert fs.cat_file(f"bucket/{found}") == name.encode()
    assert len(fs.find("bucket")) == 4
    fs.put(str(tmp_path / "[dq]1"), "bucket/some/")  # there is none of that name, so it is one
    assert fs.find("bucket/some") == ["bucket/some/d1", "bucket/some/q1"]
    with pytest.raises(FileNotFoundError):
        fs.put(str(tmp_path / "none*"), "bucket/none")


@pytest.mark.parametrize("name", ODD)
def test_a_directory_that_exists_is_no_pattern(fs: ObjmetaFileSystem, tmp_path: Path, name: str) -> None:
    """All names come out as those of a plain one do."""
    whole = {"a", "c", "sub/b"}
    inside = {f"{name}/{each}" for each in whole}
    fs.pipe(dict.fromkeys([*(f"bucket/{each}" for each in inside), "bucket/s1/x", "bucket/d1/x"], b""))
    fs.mkdir("bucket/there")
    (tmp_path / "there").mkdir()
    for source, target, found in [("", "new", whole), ("", "there", inside), ("/", "there2/", whole)]:
        fs.get(f"bucket/{name}{source}", str(tmp_path / target), recursive=True)
        assert set(tree(tmp_path / target)) == found
        fs.cp(f"bucket/{name}{source}", f"bucket/{target}", recursive=True)
        assert {each.split("/", 2)[2] for each in fs.find(f"bucket/{target}")} == found
    fs.get(f"bucket/{name}", str(tmp_path / "flat"), recursive=True, maxdepth=1)
    assert tree(tmp_path / "flat") == ["a", "c"]
    local = tmp_path / name
    (local / "sub").mkdir(parents=True)
    for each in whole:
        (local / each).touch()
    fs.mkdir("bucket/up")
    for source, target, found in [("", "up", inside), ("", "up2", whole), ("/", "up3/", whole)]:
        fs.put(f"{local}{source}", f"bucket/{target}", recursive=True)
        assert {each.split("/", 2)[2] for each in fs.find(f"bucket/{target}")} == found
    fs.mv(f"bucket/{name}", "bucket/moved", recursive=True)
    assert fs.find("bucket/moved") == [f"bucket/moved/{each}" for each in sorted(whole)]
    assert not fs.exists(f"bucket/{name}")
    fs.mv("bucket/moved", f"bucket/{name}", recursive=True)
    fs.rm(f"bucket/{name}", recursive=True)
    assert fs.find("bucket/s1") == ["bucket/s1/x"]
    assert not fs.exists(f"bucket/{name}")


def test_no_key_leads_out_of_the_directory_it_is_fetched_into(fs: ObjmetaFileSystem, tmp_path: Path) -> None:
    for key in ("d[1]/../../../out", "d/../../../out"):
        fs.pipe_file(f"bucket/{key}", b"x")
        with pytest.raises(ValueError, match="outside"):
            fs.get(f"bucket/{key.partition('/')[0]}", str(tmp_path / "a" / "b"), recursive=True)
    assert tree(tmp_path) == []


@pytest.mark.parametrize("mark", ["?versionId=", "#"])
def test_a_version_goes_alone_and_its_copies_have_the_name_without_it(
    fs: ObjmetaFileSystem, tmp_path: Path, mark: str
) -> None:
    fs.pipe_file("bucket/file", b"old")
    old = f"bucket/file{mark}{fs.info('bucket/file')['VersionId']}"
    fs.pipe_file("bucket/file", b"new")
    fs.pipe_file("bucket/file/below", b"below")
    fs.mkdir("bucket/there")
    fs.get(old, f"{tmp_path}/into/")
    assert (tmp_path / "into" / "file").read_bytes() == b"old"
    fs.cp(old, "bucket/there")
    assert fs.cat_file("bucket/there/file") == b"old"
    fs.rm(old, recursive=True, versions=True)
    assert [each["size"] for each in fs.object_version_info("bucket/file")] == [3]
    assert fs.cat("bucket/file") == b"new"
    assert fs.cat("bucket/file/below") == b"below"


class Progress(Callback):  # type: ignore[misc]
    """Remembers what each file was said to have, and what was done of it."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, Progress] = {}

    def branched(self, path_1: str, path_2: str, **kwargs: Any) -> Progress:
        return self.files.setdefault(path_1.rpartition("/")[2], Progress())

    @property
    def sizes(self) -> dict[str, tuple[int | None, int]]:
        return {name: (each.size, each.value) for name, each in self.files.items()}


def test_progress_has_true_totals(fs: ObjmetaFileSystem, tmp_path: Path) -> None:
    sizes = {"empty": 0, "small": 10, "large": 9 << 20}
    for name, size in sizes.items():
        (tmp_path / "d").mkdir(exist_ok=True)
        (tmp_path / "d" / name).write_bytes(bytes(size))
    up, down = Progress(), Progress()
    fs.put(str(tmp_path / "d"), "bucket/d", recursive=True, callback=up)
    fs.get(fs.find("bucket/d"), str(tmp_path / "back"), callback=down)
    for seen in (up, down):
        assert (seen.size, seen.value) == (3, 3)
        assert seen.sizes == {name: (size, size) for name, size in sizes.items()}


async def test_what_is_fetched_is_the_version_whose_size_was_said(
    home: Path, no_settings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = ObjmetaFileSystem(path=home, asynchronous=True, skip_instance_cache=True)
    await fs._mkdir("bucket")
    await fs._pipe_file("bucket/file", b"old")
    real = fs._version

    async def replaced_meanwhile(*args: Any) -> Any:
        found = await real(*args)
        await fs._pipe_file("bucket/file", b"newer")
        return found

    monkeypatch.setattr(fs, "_version", replaced_meanwhile)
    progress = Progress()
    await fs._get_file("bucket/file", str(tmp_path / "file"), callback=progress)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert (progress.size, progress.value) == (3, 3)
    await fs._close()


def test_what_is_not_there_is_said_with_its_reason(fs: ObjmetaFileSystem, tmp_path: Path) -> None:
    fs.pipe_file("bucket/file", b"x")
    gone = f"bucket/file?versionId={'0' * 32}"
    calls: list[Callable[[str], Any]] = [
        fs.cat,
        fs.rm,
        lambda path: fs.get(path, str(tmp_path / "x")),
        lambda path: fs.cp(path, "bucket/y"),
        lambda path: fs.get(path, str(tmp_path / "x"), recursive=True),
    ]
    for path, reason in [("bucket/none*", "nothing matches"), ("bucket/none", "exist|no such"), (gone, "version")]:
        for call in calls:
            with pytest.raises(FileNotFoundError, match=reason) as caught:
                call(path)
            assert caught.value.errno == errno.ENOENT
            assert caught.value.filename in (path, "bucket/file")
    assert tree(tmp_path) == []


@pytest.mark.parametrize("options", [{}, {"recursive": True}, {"versions": True}])
def test_many_names_are_removed_at_a_time(
    fs: ObjmetaFileSystem, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    client = asyncio.run_coroutine_threadsafe(fs.store(), fs.loop).result().client
    under_way, most = 0, 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            try:
                return await real(*args, **kwargs)
            finally:
                under_way -= 1

        return call

    paths = [f"bucket/d/{number:02}" for number in range(60)]
    fs.pipe(dict.fromkeys([*paths, "bucket/kept"], b""))
    for name in ("delete_object", "remove_version"):
        monkeypatch.setattr(client, name, counted(getattr(client, name)))
    with pytest.raises(FileNotFoundError):
        fs.rm([*paths[:40], "bucket/none"], batch_size=20, **options)
    fs.rm("bucket/d/*", batch_size=20, **options)
    assert fs.find("bucket") == ["bucket/kept"]
    assert 1 < most <= 20


def test_a_tree_is_removed_once_however_often_it_is_named(fs: ObjmetaFileSystem) -> None:
    fs.pipe(dict.fromkeys(["bucket/d/a", "bucket/d/s/b", "bucket/d.x", "bucket/d-x/y", "bucket/d/s.x"], b""))
    fs.rm("bucket/d/**", recursive=True)
    assert fs.find("bucket") == ["bucket/d-x/y", "bucket/d.x"]
    fs.rm(["bucket/d-x/y", "bucket/d-x", "bucket/d.x"], recursive=True)
    assert fs.find("bucket") == []
    fs.pipe(dict.fromkeys(["bucket/d/a", "bucket/d/s/b"], b""))
    fs.delete("bucket/d", recursive=True, maxdepth=1)
    assert fs.find("bucket") == ["bucket/d/s/b"]
    fs.rm(["bucket/d", "bucket/d/s"], recursive=True, maxdepth=2)
    assert fs.find("bucket") == []


def test_a_path_object_is_the_name_that_it_says(fs: ObjmetaFileSystem, tmp_path: Path) -> None:
    (tmp_path / "d" / "sub").mkdir(parents=True)
    (tmp_path / "d" / "sub" / "file").write_text("x")
    fs.put(tmp_path / "d" / "sub" / "file", "bucket/one")
    fs.put(tmp_path / "d", PurePosixPath("bucket/tree"), recursive=True)
    fs.cp(PurePosixPath("bucket/one"), PurePosixPath("bucket/two"))
    fs.mv(PurePosixPath("bucket/two"), PurePosixPath("bucket/three"))
    assert fs.find("bucket") == ["bucket/one", "bucket/three", "bucket/tree/sub/file"]
    assert fs.glob(PurePosixPath("bucket/t*e")) == ["bucket/three", "bucket/tree"]
    fs.get(PurePosixPath("bucket/one"), tmp_path / "back")
    assert (tmp_path / "back").read_text() == "x"
    fs.get(PurePosixPath("bucket/tree"), tmp_path / "copy", recursive=True)
    assert tree(tmp_path / "copy") == ["sub/file"]
