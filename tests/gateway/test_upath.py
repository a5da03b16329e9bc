"""objmeta:// as paths of universal_pathlib."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from upath import UPath

from gateway.fs.filesystem import ObjmetaFileSystem


def test_parts() -> None:
    path = UPath("objmeta://bucket/dir/file.tar.gz")
    assert type(path).__name__ == "ObjmetaPath"
    assert str(path) == path.as_uri() == "objmeta://bucket/dir/file.tar.gz"
    assert (path.drive, path.root, path.anchor) == ("bucket", "/", "bucket/")
    assert (path.name, path.stem, path.suffixes) == ("file.tar.gz", "file.tar", [".tar", ".gz"])
    assert path.parts == ("bucket/", "dir", "file.tar.gz")
    bucket = path.parent.parent
    assert (str(bucket), bucket.parent, bucket / "dir" / "file.tar.gz") == ("objmeta://bucket/", bucket, path)
    assert str(path.relative_to(bucket)) == "dir/file.tar.gz"
    assert path.with_suffix(".zip") == bucket / "dir" / "file.tar.zip"


def test_files_and_directories(fs: ObjmetaFileSystem, home: Path) -> None:
    bucket = UPath("objmeta://bucket", path=home)
    file = bucket / "dir" / "we#ird ?x*[1].txt"
    file.write_text("hi")
    assert (file.read_text(), file.stat().st_size, file.is_file()) == ("hi", 2, True)
    assert list(bucket.iterdir()) == [bucket / "dir"]
    assert list(bucket.rglob("*.txt")) == [file]
    with file.open("ab") as stream:
        stream.write(b"!")
    moved = file.rename(bucket / "dir" / "plain.txt")
    assert (moved.read_bytes(), file.exists()) == (b"hi!", False)
    moved.copy(bucket / "copy.txt")
    moved.unlink()
    assert fs.find("bucket") == ["bucket/copy.txt"]
    assert pickle.loads(pickle.dumps(bucket / "copy.txt")).read_text() == "hi!"
    with pytest.raises(FileNotFoundError):
        (bucket / "a" / "b").mkdir()
    (bucket / "a" / "b").mkdir(parents=True)
    with pytest.raises(FileExistsError):
        (bucket / "a" / "b").mkdir()
    (bucket / "a" / "b").rmdir()
    assert list((bucket / "a").iterdir()) == []
    other = UPath("objmeta://other", path=home)
    other.mkdir()
    assert sorted(path.path for path in UPath("objmeta://", path=home).iterdir()) == ["bucket/", "other/"]
