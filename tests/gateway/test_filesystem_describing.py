"""What info says, and the metadata that users keep with files."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from blake3 import blake3

from gateway.fs.filesystem import ObjmetaFileSystem
from objmeta import connect
from objmeta.errors import InvalidArgument


def test_an_entry_has_the_names_under_which_others_look(fs: ObjmetaFileSystem) -> None:
    fs.pipe_file("bucket/d/file", b"content")
    entry = fs.info("bucket/d/file")
    assert entry["ETag"] == entry["etag"] == blake3(b"content").hexdigest()
    assert entry["VersionId"] == entry["version_id"] == fs.ukey("bucket/d/file")
    assert int(entry["VersionId"], 16) == fs.checksum("bucket/d/file")
    assert entry["mtime"] == entry["created"]
    assert datetime.fromtimestamp(entry["mtime"], UTC) == fs.modified("bucket/d/file") == fs.created("bucket/d/file")
    assert abs((entry["LastModified"] - fs.modified("bucket/d/file")).total_seconds()) < 1e-5
    listed = fs.ls("bucket/d")[0]
    assert {name: listed[name] for name in entry} == entry
    assert fs.find("bucket", detail=True)["bucket/d/file"] == listed


def test_metadata(fs: ObjmetaFileSystem, home: Path) -> None:
    content = os.urandom(5 << 20)
    fs.pipe_file("bucket/file", content, content_type="text/x", metadata={"who": "me", "ä": "ü"})
    before = {path: path.stat().st_size for path in (home / "blobs" / "packs").iterdir()}
    assert fs.metadata("bucket/file") == {"who": "me", "ä": "ü"}
    assert fs.getxattr("bucket/file", "who") == "me"
    assert fs.getxattr("bucket/file", "none") is None
    assert fs.setxattrs("bucket/file", who="you", more="x") == {"who": "you", "ä": "ü", "more": "x"}
    fs.setxattr("bucket/file", who=None, content_type="a value of that name")
    assert fs.metadata("bucket/file") == {"ä": "ü", "more": "x", "content_type": "a value of that name"}
    fs.setxattrs("bucket/file", content_type="text/y", attributes={"a name": "with a space"})
    with fs.open("bucket/file") as file:
        assert file.read() == content
        assert file.info()["content_type"] == "text/y"
        assert file.info()["metadata"]["a name"] == "with a space"
    assert {path: path.stat().st_size for path in (home / "blobs" / "packs").iterdir()} == before
    history = fs.object_version_info("bucket/file")
    assert len(history) == 4
    assert fs.metadata(history[-1]["name"]) == {"who": "me", "ä": "ü"}
    with pytest.raises(PermissionError):
        fs.setxattrs(history[-1]["name"], who="nobody")
    with pytest.raises(FileNotFoundError):
        fs.setxattrs("bucket/none", who="me")
    with pytest.raises(TypeError, match="text under text"):
        fs.setxattrs("bucket/file", who=5)
    with pytest.raises(OSError, match="not valid Unicode"):
        fs.setxattrs("bucket/file", who="\ud800")
    for path in ("bucket", "bucket/d"):
        fs.makedirs(path, exist_ok=True)
        for call in (fs.metadata, fs.setxattrs, lambda path: fs.getxattr(path, "who")):
            with pytest.raises(IsADirectoryError):
                call(path)
    fs.touch("bucket/file", truncate=False)
    fs.cp("bucket/file", "bucket/copy")
    fs.mv("bucket/copy", "bucket/moved")
    assert fs.metadata("bucket/moved")["more"] == "x"


def test_metadata_that_is_no_text_never_reaches_a_record(home: Path) -> None:
    with connect(home) as client:
        client.create_bucket("bucket")
        for options in (
            {"metadata": {"a": 1}},
            {"metadata": {1: "a"}},
            {"content_type": b"text/x"},
            {"metadata": {"\udc80": "a"}},
        ):
            with pytest.raises(InvalidArgument, match=r"text|Unicode"):
                client.put_object("bucket", "key", data=b"", **options)
        assert client.list_objects("bucket").objects == ()
