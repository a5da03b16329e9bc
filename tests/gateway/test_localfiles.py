"""Files that are handed out by their paths: whole, verified, immutable, bounded, and there while they are leased."""

from __future__ import annotations

import gc
import mmap
import multiprocessing
import os
import pickle
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest
from blake3 import blake3

from gateway.data import localfiles
from gateway.data.localfiles import LocalFile, LocalFiles
from gateway.fs.filesystem import ObjmetaFileSystem


def kept(fs: ObjmetaFileSystem) -> list[str]:
    """Names of the files that are there, in order."""
    return sorted(path.name for path in fs.local_files.directory.iterdir() if not path.name.startswith("."))


def held(home: Path, **options: Any) -> ObjmetaFileSystem:
    return ObjmetaFileSystem(path=home, skip_instance_cache=True, **options)


@pytest.mark.parametrize("size", [0, 1, 8192, 100_000, (9 << 20) + 7])
def test_a_path_has_the_content(fs: ObjmetaFileSystem, home: Path, size: int) -> None:
    content = os.urandom(size)
    fs.pipe_file("bucket/d/file.csv.gz", content)
    path = fs.local_path("objmeta://bucket/d/file.csv.gz")
    assert Path(path).read_bytes() == content
    assert os.path.basename(path) == blake3(content).hexdigest() + ".csv.gz"
    assert os.path.dirname(path) == str(home / "local")
    assert path.version.version_id == fs.ukey("bucket/d/file.csv.gz")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o444
    assert isinstance(path, str)
    assert pickle.loads(pickle.dumps(path)) == str(path)


def test_it_is_of_one_version(fs: ObjmetaFileSystem, home: Path) -> None:
    fs.pipe_file("bucket/file", b"old")
    old, time = fs.info("bucket/file")["VersionId"], datetime.now(UTC)
    path = fs.local_path("bucket/file")
    fs.pipe_file("bucket/file", b"new")
    assert Path(path).read_bytes() == b"old"
    assert Path(fs.local_path("bucket/file")).read_bytes() == b"new"
    for again in (
        fs.local_path("bucket/file", version_id=old),
        fs.local_path(f"bucket/file#{old}"),
        held(home, as_of=time).local_path("bucket/file"),
    ):
        assert again == path
    fs.cp("bucket/file", "bucket/copy")
    assert fs.local_path("bucket/copy") == fs.local_path("bucket/file")
    for missing, error in [("bucket/none", FileNotFoundError), ("bucket", IsADirectoryError)]:
        with pytest.raises(error):
            fs.local_path(missing)


@pytest.mark.parametrize(
    "key", ["a b", "ü/ö.txt", "a?b#c%d*[e].parquet", "x.y z", ".hidden", "e.😀", "d/..e", "a.b.c.d"]
)
def test_odd_names(fs: ObjmetaFileSystem, key: str) -> None:
    fs.pipe_file(f"bucket/{key}", key.encode())
    path = fs.local_path(f"bucket/{key}")
    assert Path(path).read_bytes() == key.encode()
    assert Path(path).parent == fs.local_files.directory
    assert os.path.basename(path).replace(".", "").isalnum()


def test_it_is_of_one_path(fs: ObjmetaFileSystem) -> None:
    with pytest.raises(TypeError, match="the path of one file, not list"):
        fs.local_path(["bucket/x"])


def test_it_is_made_once(fs: ObjmetaFileSystem, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fs.pipe_file("bucket/file", os.urandom(5 << 20))
    made = []
    real = LocalFiles._make

    async def counted(self: Any, *args: Any) -> Any:
        made.append(args)
        return await real(self, *args)

    monkeypatch.setattr(LocalFiles, "_make", counted)
    monkeypatch.setattr(localfiles, "_digest", lambda descriptor: pytest.fail("it was verified when it was made"))
    other = held(home)
    paths: list[str] = []
    threads = [threading.Thread(target=lambda: paths.append(fs.local_path("bucket/file"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {other.local_path("bucket/file"), *paths} == {str(fs.local_files.directory / kept(fs)[0])}
    assert len(made) == 1


def test_processes_that_race_get_one_file(fs: ObjmetaFileSystem) -> None:
    fs.pipe_file("bucket/file", os.urandom(5 << 20))
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        paths = pool.map(fs.local_path, ["bucket/file"] * 6)
    assert len(set(paths)) == 1
    assert Path(paths[0]).read_bytes() == fs.cat_file("bucket/file")
    assert [path.name for path in fs.local_files.directory.iterdir() if path.name.startswith(".part-")] == []


def damage(path: str) -> None:
    os.chmod(path, 0o644)
    with open(path, "r+b") as file:
        file.seek(5)
        file.write(b"!")


def shorten(path: str) -> None:
    os.chmod(path, 0o644)
    os.truncate(path, 10)


def restore_times(path: str) -> None:
    status = os.stat(path)
    damage(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("change", [damage, shorten, restore_times, os.unlink])
def test_what_somebody_changed_is_made_anew(fs: ObjmetaFileSystem, change: Callable[[str], None]) -> None:
    content = os.urandom(100_000)
    fs.pipe_file("bucket/file", content)
    path = fs.local_path("bucket/file")
    change(path)
    assert Path(fs.local_path("bucket/file")).read_bytes() == content
    assert len(kept(fs)) == 1


def test_it_is_verified_again_after_two_weeks(fs: ObjmetaFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    fs.pipe_file("bucket/file", b"x" * 100_000)
    fs.local_path("bucket/file")
    real, verified = localfiles._digest, []

    def counted(descriptor: int) -> str:
        verified.append(descriptor)
        return real(descriptor)

    monkeypatch.setattr(localfiles, "_digest", counted)
    fs.local_path("bucket/file")
    assert not verified
    monkeypatch.setattr(localfiles, "VERIFIED_S", 0.0)
    fs.local_path("bucket/file")
    assert len(verified) == 1


def test_what_was_asked_for_longest_ago_goes_first(home: Path, fs: ObjmetaFileSystem) -> None:
    small = held(home, local_bytes=250_000)
    contents = {f"bucket/{number}.bin": os.urandom(100_000) for number in range(4)}
    fs.pipe(contents)

    def age(path: str, seconds: int) -> None:
        seen = Path(path).with_name(f".seen-{os.path.basename(path)}")
        os.utime(seen, (seconds, seconds))

    first, second = (small.local_path(f"bucket/{number}.bin") for number in (0, 1))
    for path, seconds in ((first, 1), (second, 2)):
        age(path, seconds)
        path.close()
    small.local_path("bucket/0.bin").close()  # asked for again
    small.local_path("bucket/2.bin")
    assert os.path.exists(first)
    assert not os.path.exists(second)
    assert len(kept(small)) == 2


def test_what_is_leased_stays(home: Path, fs: ObjmetaFileSystem) -> None:
    small = held(home, local_bytes=150_000)
    fs.pipe({f"bucket/{number}": os.urandom(100_000) for number in range(4)})
    with small.local_path("bucket/0") as leased:
        other = held(home, local_bytes=150_000)
        for number in (1, 2, 3):
            other.local_path(f"bucket/{number}")
            gc.collect()
            assert os.path.exists(leased)
        assert len(kept(small)) == 2
        with open(leased, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    small.local_path("bucket/1")
    assert not os.path.exists(leased)
    assert mapped[:] == fs.cat_file("bucket/0")  # what is mapped stays all the same
    mapped.close()


def test_a_lease_of_a_process_ends_with_it(home: Path, fs: ObjmetaFileSystem) -> None:
    fs.pipe({"bucket/0": os.urandom(100_000), "bucket/1": os.urandom(100_000)})
    code = (
        "import sys; from gateway.fs.filesystem import ObjmetaFileSystem\n"
        f"fs = ObjmetaFileSystem(path={str(home)!r}); path = fs.local_path('bucket/0'); print(path, flush=True)\n"
        "sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    path = process.stdout.readline().strip()
    small = held(home, local_bytes=150_000)
    small.local_path("bucket/1").close()
    assert os.path.exists(path)
    process.kill()
    process.communicate()
    os.unlink(small.local_path("bucket/1"))
    small.local_path("bucket/1")
    assert not os.path.exists(path)


def test_what_is_too_large_is_refused(home: Path, fs: ObjmetaFileSystem) -> None:
    fs.pipe_file("bucket/file", bytes(2000))
    with pytest.raises(OSError, match="local_bytes"):
        held(home, local_bytes="1999").local_path("bucket/file")
    assert os.path.getsize(held(home, local_bytes=2000).local_path("bucket/file")) == 2000
    with pytest.raises(OSError, match="whole number"):
        held(home, local_bytes="much")


def test_all_that_is_not_leased_can_be_removed(fs: ObjmetaFileSystem) -> None:
    assert fs.local_files.clear() == 0
    fs.pipe({"bucket/a": b"a" * 100, "bucket/b": b"b" * 10})
    leased = fs.local_path("bucket/a")
    fs.local_path("bucket/b").close()
    fs.rm("bucket/b", versions=True)
    assert fs.local_files.clear() == 10
    assert kept(fs) == [os.path.basename(leased)]
    leased.close()
    assert fs.local_files.clear() == 100


def test_leftovers_go(home: Path, fs: ObjmetaFileSystem) -> None:
    fs.pipe_file("bucket/file", b"x")
    directory = fs.local_files.directory
    directory.mkdir()
    for name in (".part-dead", ".part-young", ".seen-gone"):
        (directory / name).write_bytes(b"x")
        if name != ".part-young":
            os.utime(directory / name, (1, 1))
    fs.local_path("bucket/file")
    assert sorted(path.name for path in directory.iterdir() if "dead" in path.name or "gone" in path.name) == []
    assert (directory / ".part-young").exists()


def test_damaged_chunks_never_become_a_file(fs: ObjmetaFileSystem, home: Path) -> None:
    fs.pipe_file("bucket/file", os.urandom(3 << 20))
    for pack in (home / "blobs" / "packs").iterdir():
        with pack.open("r+b") as file:
            file.seek(pack.stat().st_size // 2)
            file.write(b"damage")
    with pytest.raises(OSError, match="damaged"):
        fs.local_path("bucket/file")
    assert kept(fs) == []
    assert [path for path in fs.local_files.directory.iterdir() if path.name.startswith(".part-")] == []


def test_the_directory_may_be_elsewhere(fs: ObjmetaFileSystem, home: Path, tmp_path: Path) -> None:
    fs.pipe_file("bucket/file", b"x")
    assert held(home, local_dir=tmp_path / "a" / "b").local_path("bucket/file").startswith(f"{tmp_path}/a/b/")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file") as caught:
        held(home, local_dir=tmp_path / "file").local_path("bucket/file")
    assert caught.value.filename.startswith(str(tmp_path / "file"))


def test_readers_that_want_paths(fs: ObjmetaFileSystem) -> None:
    frame = pd.DataFrame({"n": range(1000), "p": [number % 7 for number in range(1000)]})
    with fs.open("bucket/t.parquet", "wb") as file:
        frame.to_parquet(file)
    with fs.open("bucket/a.npy", "wb") as file:
        np.save(file, np.arange(100_000))
    path = fs.local_path("bucket/t.parquet")
    assert isinstance(path, LocalFile)
    with duckdb.connect() as con:
        found = con.execute(f"SELECT sum(n) FROM '{path}' WHERE p = 3").fetchall()
        assert found == [(frame.n[frame.p == 3].sum(),)]
        assert con.read_parquet(path).fetchall() == list(frame.itertuples(index=False, name=None))
    assert pd.read_parquet(path).equals(frame)
    mapped = np.load(fs.local_path("bucket/a.npy"), mmap_mode="r")
    assert mapped[99_999] == 99_999
