"""Names: every character a key may have, patterns, and versions in paths."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from gateway.fs.entries import Name, directory, implied_directories, parse
from gateway.fs.filesystem import ObjmetaFileSystem

VERSION = "0123456789abcdef" * 2
ODD = [
    "a b",
    "ümläut.csv",
    "e\u0301",  # decomposed: no normalisation is done
    "😀/🎉.txt",
    "a#b",
    "a?b",
    "a?versionId=short",
    "100%25",
    "star*.txt",
    "[1].txt",
    "a[!x]b",
    "{a,b}",
    "back\\slash",
    "quote\"s'",
    "~tilde",
    "-dash",
    "dots/../up",
    "a\nb",
    " leading",
    "trailing ",
    "a::b",
    "a//b",
    "http://x",
]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("", Name("", "")),
        ("bucket", Name("bucket", "")),
        ("bucket/a/b", Name("bucket", "a/b")),
        ("bucket//a", Name("bucket", "/a")),
        (f"bucket/a?versionId={VERSION}", Name("bucket", "a", VERSION)),
        (f"bucket/a#{VERSION}", Name("bucket", "a", VERSION)),
        (f"bucket/a#{VERSION}x", Name("bucket", f"a#{VERSION}x")),
        ("bucket/a?versionId=1", Name("bucket", "a?versionId=1")),
        ("bucket/a#b", Name("bucket", "a#b")),
    ],
)
def test_what_a_path_names(path: str, found: Name) -> None:
    assert parse(path) == found


def test_implied_directories() -> None:
    assert implied_directories("a/b/c", 0) == ["a", "a/b"]
    assert implied_directories("a/b/c", 2) == ["a/b"]
    assert implied_directories("a//b/", 0) == ["a", "a//b"]
    assert implied_directories("abc", 0) == []


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("objmeta://bucket/a", "bucket/a"),
        ("objmeta://bucket/a/", "bucket/a"),
        ("objmeta:///bucket/a", "bucket/a"),
        ("/bucket/a", "bucket/a"),
        ("bucket/a", "bucket/a"),
        ("objmeta://", ""),
        ("/", ""),
    ],
)
def test_ways_to_write_a_path(url: str, path: str) -> None:
    assert ObjmetaFileSystem._strip_protocol(url) == path


@pytest.mark.parametrize("key", ODD)
def test_odd_names_are_taken_literally(fs: ObjmetaFileSystem, home: Path, tmp_path: Path, key: str) -> None:
    path, other, content = f"bucket/d/{key}", "bucket/d/other", key.encode()
    fs.pipe({"bucket/d/1.txt": b"decoy", "bucket/d/aab": b"decoy", "bucket/d/star1.txt": b"decoy"})
    fs.pipe_file(path, content)
    assert fs.exists(path)
    assert fs.isfile(path)
    assert fs.info(path)["name"] == path
    assert path in fs.find("bucket")
    assert fs.cat_file(path) == content
    assert fs.cat(path) == content
    with fs.open(path) as file:
        assert file.read() == content
    if "::" not in path:  # in a URL that chains file systems
        with fsspec.open(f"objmeta://{path}", path=str(home), expand=False) as file:
            assert file.read() == content
    fs.get(path, str(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == content
    fs.copy(path, other)
    assert fs.cat_file(other) == content
    fs.rm(path)
    assert not fs.exists(path)
    assert fs.find("bucket") == ["bucket/d/1.txt", "bucket/d/aab", other, "bucket/d/star1.txt"]
    fs.mv(other, path)
    fs.rm_file(path)
    assert not fs.exists(path)


def test_glob_matches_first_and_then_literally(fs: ObjmetaFileSystem) -> None:
    fs.pipe(dict.fromkeys(["bucket/1.txt", "bucket/[2].txt", "bucket/a*b", "bucket/acb", "bucket/d/x.txt"], b""))
    assert fs.glob("bucket/*.txt") == ["bucket/1.txt", "bucket/[2].txt"]
    assert fs.glob("bucket/**/*.txt") == ["bucket/1.txt", "bucket/[2].txt", "bucket/d/x.txt"]
    assert fs.glob("bucket/[12].txt") == ["bucket/1.txt"]
    assert fs.glob("bucket/[2].txt") == ["bucket/[2].txt"]
    assert fs.glob("bucket/a*b") == ["bucket/a*b", "bucket/acb"]
    assert fs.glob("objmeta://buck*") == ["bucket"]
    assert fs.glob("bucket/none*") == fs.glob("bucket/none") == fs.glob("nowhere/*") == []
    assert fs.glob("bucket/*/") == ["bucket/d"]
    assert fs.glob("bucket/?.txt", detail=True)["bucket/1.txt"]["size"] == 0
    assert sorted(fs.cat("bucket/[12].txt")) == ["bucket/1.txt"]
    fs.rm("bucket/a*b")
    assert fs.glob("bucket/a*") == ["bucket/acb"]


def test_old_versions_by_argument_and_by_path(fs: ObjmetaFileSystem, tmp_path: Path) -> None:
    fs.pipe_file("bucket/d/file.csv", b"old")
    old = fs.info("bucket/d/file.csv")["version_id"]
    fs.pipe_file("bucket/d/file.csv", b"newer")
    for path in (f"bucket/d/file.csv?versionId={old}", f"objmeta://bucket/d/file.csv#{old}"):
        assert fs.cat_file(path) == fs.cat(path) == b"old"
        assert fs.size(path) == 3
        assert fs.open(path, "r").read() == "old"
        assert fs.isfile(path)
        assert fs.glob(path) == [path.removeprefix("objmeta://")]
        assert fs.ls(path)[0]["version_id"] == old
        fs.get(path, str(tmp_path / "file"))
        assert (tmp_path / "file").read_bytes() == b"old"
        with pytest.raises(PermissionError):
            fs.pipe_file(path, b"x")
    assert fs.cat_file("bucket/d/file.csv", version_id=old) == b"old"
    assert fs.info("bucket/d/file.csv", version_id=old)["is_latest"] is False
    assert fs.open("bucket/d/file.csv", version_id=old).read() == b"old"
    fs.cp_file(f"bucket/d/file.csv?versionId={old}", "bucket/d/file.csv")
    assert fs.cat_file("bucket/d/file.csv") == b"old"
    with pytest.raises(FileNotFoundError):
        fs.cat_file(f"bucket/d/file.csv?versionId={VERSION}")
    with pytest.raises(OSError, match="cannot be moved"):
        fs.mv(f"bucket/d/file.csv?versionId={old}", "bucket/x")
    fs.rm_file(f"bucket/d/file.csv?versionId={old}")
    assert not fs.exists(f"bucket/d/file.csv?versionId={old}")


def test_listing_versions(fs: ObjmetaFileSystem) -> None:
    for content in (b"1", b"2"):
        fs.pipe({"bucket/d/a": content, "bucket/d/sub/b": content})
    fs.rm("bucket/d/a")
    entries = fs.object_version_info("bucket/d/a")
    assert [entry["is_delete_marker"] for entry in entries] == [True, False, False]
    assert [fs.cat_file(entry["name"]) for entry in entries[1:]] == [b"2", b"1"]
    with pytest.raises(FileNotFoundError):
        fs.cat_file(entries[0]["name"])
    assert not fs.exists(entries[0]["name"])
    assert [entry["IsDeleteMarker"] for entry in entries] == [True, False, False]
    assert fs.ls("bucket/d", versions=True) == [*entries, directory("bucket/d/sub")]
    assert fs.ls("bucket/d/a", versions=True, detail=False) == [entry["name"] for entry in entries]


def test_directories_are_listed_with_the_versions_in_them(fs: ObjmetaFileSystem) -> None:
    fs.pipe({"bucket/a": b"", "bucket/a/x/y": b"", "bucket/a/x/z": b"", "bucket/gone/x": b"", "bucket/a.b": b""})
    fs.rm("bucket/gone/x")
    fs.mkdir("bucket/empty")
    assert fs.ls("bucket", versions=True)[-3:] == [directory(f"bucket/{name}") for name in ("a", "empty", "gone")]
    names = fs.ls("bucket/a", versions=True, detail=False)
    assert [name.partition("?")[0] for name in names] == ["bucket/a", "bucket/a/x"]
    assert len(fs.ls("bucket/gone", versions=True)) == 2
    assert fs.ls("bucket/empty", versions=True) == []
    fs.mkdir("other")
    assert fs.ls("other", versions=True) == []
    for missing in ("bucket/none", "nowhere", "nowhere/none", "bucket/a/x/y/none"):
        with pytest.raises(FileNotFoundError):
            fs.ls(missing, versions=True)


def test_whether_there_is_a_version(fs: ObjmetaFileSystem) -> None:
    fs.pipe_file("bucket/a", b"1")
    old = fs.info("bucket/a")["version_id"]
    fs.rm("bucket/a")
    marker = fs.object_version_info("bucket/a")[0]["version_id"]
    for ask in (fs.exists, fs.isfile):
        assert [ask("bucket/a", version_id=each) for each in (None, old, marker, VERSION)] == [
            False,
            True,
            False,
            False,
        ]
