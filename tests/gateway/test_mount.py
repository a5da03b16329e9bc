"""A mounted directory, by its operations in this process."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.fs.filesystem import ObjmetaFileSystem
from gateway.mount.drafts import Spool
from gateway.mount.operations import RENAME_NOREPLACE, XATTR_CREATE, XATTR_REPLACE, Operations

MIB = 1 << 20
ODD_NAMES = (
    "a b",
    "ü",
    "🦀",
    "a?b",
    "a#b",
    "100%",
    "*",
    "[x]",
    "x?versionId=" + "0" * 32,
    "-",
    "a:b",
    "tab\tnew\nline",
)


class Mounted:
    """Operations with what they said, and what programs do with files in a line each."""

    def __init__(self, fs: ObjmetaFileSystem, root: str, spool: Path, **options: Any) -> None:
        self.fs = fs
        self.said: list[str] = []
        self.spool = spool
        self.ops = Operations(fs, root, Spool(spool, self.said.append), self.said.append, **options)

    def write(self, path: str, data: bytes, flags: int = os.O_WRONLY | os.O_CREAT | os.O_TRUNC) -> None:
        handle = self.create(path, flags)
        try:
            self.ops.write(path, data, 0, handle)
            self.ops.flush(path, handle)
        finally:
            self.ops.release(path, handle)

    def create(self, path: str, flags: int = os.O_WRONLY | os.O_CREAT) -> int:
        return self.ops.create(path, 0o644, flags).number

    def open(self, path: str, flags: int = os.O_RDONLY) -> int:
        return self.ops.open(path, flags).number

    def read(self, path: str) -> bytes:
        handle = self.open(path)
        try:
            found, data = b"", b"-"
            while data:
                data = self.ops.read(path, 128 << 10, len(found), handle)
                found += data
            return found
        finally:
            self.ops.release(path, handle)

    def names(self, path: str) -> list[str]:
        return sorted(name for name, _, _ in self.ops.readdir(path) if name not in (".", ".."))

    def versions(self, path: str) -> int:
        return len(self.fs.object_version_info(path.strip("/")))


@pytest.fixture
def fs(home: Path, no_settings: None) -> Iterator[ObjmetaFileSystem]:
    found = ObjmetaFileSystem(path=home, version_aware=False, skip_instance_cache=True)
    found.mkdir("bucket")
    yield found
    found.close()


@pytest.fixture
def mount(fs: ObjmetaFileSystem, tmp_path: Path) -> Iterator[Mounted]:
    found = Mounted(fs, "", tmp_path / "spool")
    yield found
    found.ops.close()


def raises(number: int, call: Callable[[], object]) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - its number is looked at
        call()
    assert caught.value.errno == number, caught.value


def test_a_file_is_one_version_at_close(mount: Mounted, fs: ObjmetaFileSystem) -> None:
    content = os.urandom(3 * MIB)
    handle = mount.create("/bucket/file", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    for start in range(0, len(content), 128 << 10):
        assert mount.ops.write("/bucket/file", content[start : start + (128 << 10)], start, handle) == 128 << 10
    assert mount.ops.getattr("/bucket/file")["st_size"] == len(content)
    assert mount.names("/bucket") == ["file"], "seen here while it is written"
    assert not fs.exists("bucket/file")
    mount.ops.flush("/bucket/file", handle)
    assert fs.cat_file("bucket/file") == content
    mount.ops.flush("/bucket/file", handle)
    mount.ops.release("/bucket/file", handle)
    assert mount.versions("/bucket/file") == 1
    assert mount.read("/bucket/file") == content
    found = mount.ops.getattr("/bucket/file")
    assert (found["st_size"], stat.S_IFMT(found["st_mode"])) == (len(content), stat.S_IFREG)
    mount.ops.close()
    assert list(mount.spool.iterdir()) == []


def test_fsync_makes_a_version(mount: Mounted, fs: ObjmetaFileSystem) -> None:
    handle = mount.create("/bucket/file")
    mount.ops.write(None, b"one", 0, handle)
    mount.ops.fsync(None, 0, handle)
    assert fs.cat_file("bucket/file") == b"one"
    mount.ops.write(None, b"two", 3, handle)
    mount.ops.flush(None, handle)
    assert fs.cat_file("bucket/file") == b"onetwo"
    mount.ops.release(None, handle)
    assert mount.versions("/bucket/file") == 2


def test_a_shell_that_closes_a_number_before_it_writes_makes_one_version(mount: Mounted) -> None:
    handle = mount.create("/bucket/file")
    mount.ops.flush("/bucket/file", handle)
    mount.ops.write("/bucket/file", b"x", 0, handle)
    mount.ops.flush("/bucket/file", handle)
    mount.ops.release("/bucket/file", handle)
    assert mount.versions("/bucket/file") == 1


def test_empty_files(mount: Mounted, fs: ObjmetaFileSystem) -> None:
    mount.write("/bucket/file", b"something")
    for path in ("/bucket/empty", "/bucket/file"):
        handle = mount.create(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        mount.ops.flush(path, handle)
        mount.ops.release(path, handle)
    handle = mount.create("/bucket/touched")
    mount.ops.release(None, handle)
    assert fs.cat_file("bucket/touched") == b""
    assert fs.cat(["bucket/empty", "bucket/file"]) == {"bucket/empty": b"", "bucket/file": b""}
    assert mount.read("/bucket/empty") == b""


def test_changing_a_part(mount: Mounted, fs: ObjmetaFileSystem) -> None:
    mount.write("/bucket/file", b"0123456789")
    handle = mount.open("/bucket/file", os.O_RDWR)
    mount.ops.write(None, b"ab", 4, handle)
    assert mount.ops.read(None, 4, 3, handle) == b"3ab6"
    mount.ops.write(None, b"!", 12, handle)
    mount.ops.release(None, handle)
    assert fs.cat_file("bucket/file") == b"0123ab6789\0\0!"
    handle = mount.open("/bucket/file", os.O_WRONLY | os.O_APPEND)
    mount.ops.write(None, b"end", 0, handle)
    mount.ops.truncate(None, 14, handle)
    mount.ops.flush(None, handle)
    mount.ops.release(None, handle)
    mount.ops.truncate("/bucket/file", 15)
    assert fs.cat_file("bucket/file") == b"0123ab6789\0\0!e\0"
    mount.ops.truncate("/bucket/file", 0)
    assert fs.cat_file("bucket/file") == b""
    raises(errno.ENOENT, lambda: mount.ops.truncate("/bucket/none", 1))
    raises(errno.ENOENT, lambda: mount.open("/bucket/none", os.O_RDWR))
    assert mount.names("/bucket") == ["file"]


def test_all_who_write_share_one_draft(mount: Mounted, fs: ObjmetaFileSystem) -> None:
    mount.write("/bucket/file", b"old")
    before = mount.open("/bucket/file")
    first = mount.open("/bucket/file", os.O_WRONLY | os.O_APPEND)
    second = mount.ops.open("/bucket/file", os.O_WRONLY | os.O_APPEND)
    assert second.direct, "it has other content than the first handle, which the kernel must not mix"
    mount.ops.write(None, b"1", 0, first)
    mount.ops.write(None, b"2", 0, second.number)
    during = mount.open("/bucket/file")
    assert mount.ops.read(None, 99, 0, during) == b"old12"
    assert mount.ops.getattr(None, before)["st_size"] == 3
    for number in (first, second.number, during):
        mount.ops.flush(None, number)
        mount.ops.release(None, number)
    assert fs.cat_file("bucket/file") == b"old12"
    assert mount.ops.read(None, 99, 0, before) == b"old", "pinned"
    mount.ops.release(None, before)


def test_a_draft_ends_with_its_last_writer(mount: Mounted, fs: ObjmetaFileSystem) -> None:
    writer = mount.create("/bucket/log")
    mount.ops.write(None, b"one", 0, writer)
    reader = mount.open("/bucket/log")
    mount.ops.flush(None, writer)
    mount.ops.release(None, writer)
    fs.pipe_file("bucket/log", b"theirs")
    assert mount.read("/bucket/log") == b"theirs"
    assert mount.ops.read(None, 9, 0, reader) == b"one"
    again = mount.open("/bucket/log", os.O_WRONLY | os.O_APPEND)
    mount.ops.write(None, b"!", 0, again)
    mount.ops.flush(None, again)
    for number in (again, reader):
        mount.ops.release(None, number)
    assert fs.cat_file("bucket/log") == b"theirs!"
    assert [each.name for each in mount.spool.glob("mount-*/*")] == ["lock"]


def test_the_second_to_create_exclusively_is_told_and_loses_nothing(mount: Mounted, fs: ObjmetaFileSystem) -> None:
    handle = mount.create("/bucket/lock", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    mount.ops.write(None, b"mine", 0, handle)
    fs.pipe_file("bucket/lock", b"theirs")
    raises(errno.EEXIST, lambda: mount.ops.flush(None, handle))
    mount.ops.release(None, handle)
    assert fs.cat_file("bucket/lock") == b"theirs"
    (kept,) = mount.spool.glob("kept-*")
    assert kept.read_bytes() == b"mine"
    assert mount.ops.lost == 1
    assert str(kept) in mount.said[-1]
    assert "bucket/lock" in mount.said[-1]
    raises(errno.EEXIST, lambda: mount.create("/bucket/lock", os.O_WRONLY | os.O_CREAT | os.O_EXCL))


def test_a_change_of_what_others_changed_is_refused(mount: Mounted, fs: ObjmetaFileSystem) -> None:
    mount.write("/bucket/log", b"1")
    handle = mount.open("/bucket/log", os.O_WRONLY | os.O_APPEND)
    mount.ops.write(None, b"2", 0, handle)
    fs.pipe_file("bucket/log", b"theirs")
    raises(errno.EIO, lambda: mount.ops.flush(None, handle))
    mount.ops.release(None, handle)
    assert fs.cat_file("bucket/log") == b"theirs"
    (kept,) = mount.spool.glob("kept-*")
    assert kept.read_bytes() == b"12"
    mount.write("/bucket/log", b"replaced")  # who replaces all of it does not ask
    assert fs.cat_file("bucket/log") == b"replaced"


def test_what_is_not_closed_at_the_end_is_no_version_and_kept(mount: Mounted, fs: ObjmetaFileSystem) -> None:
    handle = mount.create("/bucket/half")
    mount.ops.write(None, b"half", 0, handle)
    mount.ops.close()
    assert not fs.exists("bucket/half")
    (kept,) = mount.spool.iterdir()
    assert kept.read_bytes() == b"half"
    assert "was not closed" in mount.said[-1]


def test_a_killed_mount_leaves_its_files_and_the_next_one_says_so(mount: Mounted, tmp_path: Path) -> None:
    said: list[str] = []
    Spool(mount.spool, said.append).close()
    assert said == [], "a mount that lives is none of its business"
    killed = mount.spool / "mount-killed"
    killed.mkdir()
    (killed / "lock").touch()
    Spool(mount.spool, said.append).close()
    assert (said, killed.exists()) == ([], False)
    killed.mkdir()
    (killed / "lock").touch()
    (killed / "1234-file").write_bytes(b"x")
    Spool(mount.spool, said.append).close()
    assert str(killed) in said[0]


def test_odd_names(mount: Mounted, fs: ObjmetaFileSystem) -> None:
    for name in ODD_NAMES:
        mount.write(f"/bucket/{name}", name.encode())
    assert mount.names("/bucket") == sorted(ODD_NAMES)
    for name in ODD_NAMES:
        assert mount.read(f"/bucket/{name}") == name.encode()
        mount.ops.rename(f"/bucket/{name}", f"/bucket/{name}{name}")
        assert mount.read(f"/bucket/{name}{name}") == name.encode()
        mount.ops.unlink(f"/bucket/{name}{name}")
    assert mount.names("/bucket") == []
    raises(errno.EINVAL, lambda: mount.write("/bucket/\udcff", b"no UTF-8"))


def test_names_that_no_file_system_can_show_are_said(mount: Mounted, fs: ObjmetaFileSystem) -> None:
    async def put() -> None:
        client = (await fs.store()).client
        for key in ("d//x", "d/./y", "d/../z", "d/f", "d/f/below", "d/ok"):
            await client.put_object("bucket", key, data=b"")

    fs.wait(fs.submit(put()))
    assert mount.names("/bucket/d") == ["f", "ok"]
    assert mount.names("/bucket/d") == ["f", "ok"]
    (said,) = mount.said
    assert said.startswith("bucket/d: 4 names in it cannot be shown as files")
    assert stat.S_ISREG(mount.ops.getattr("/bucket/d/f")["st_mode"])


def test_directories(mount: Mounted, fs: ObjmetaFileSystem) -> None:
    ops = mount.ops
    assert mount.names("/") == ["bucket"]
    ops.mkdir("/other", 0o755)
    assert mount.names("/") == ["bucket", "other"]
    ops.mkdir("/bucket/d", 0o755)
    raises(errno.EEXIST, lambda: ops.mkdir("/bucket/d", 0o755))
    raises(errno.ENOENT, lambda: ops.mkdir("/bucket/none/d", 0o755))
    raises(errno.EINVAL, lambda: ops.mkdir("/No Bucket", 0o755))
    handle = mount.create("/bucket/d/f")
    raises(errno.ENOTEMPTY, lambda: ops.rmdir("/bucket/d"))
    ops.write(None, b"x", 0, handle)
    ops.flush(None, handle)
    ops.release(None, handle)
    raises(errno.ENOTEMPTY, lambda: ops.rmdir("/bucket/d"))
    raises(errno.ENOTDIR, lambda: ops.rmdir("/bucket/d/f"))
    raises(errno.EISDIR, lambda: ops.unlink("/bucket/d"))
    number = ops.opendir("/bucket")
    assert [name for name, _, _ in ops.readdir(None, number)] == [".", "..", "d"]
    ops.releasedir(None, number)
    ops.unlink("/bucket/d/f")
    ops.rmdir("/bucket/d")
    raises(errno.ENOENT, lambda: ops.getattr("/bucket/d"))
    raises(errno.ENOTEMPTY, lambda: ops.rmdir("/bucket"))  # it has a history
    ops.rmdir("/other")
    raises(errno.EPERM, lambda: mount.create("/file-at-the-top"))
    raises(errno.EPERM, lambda: ops.rename("/bucket", "/another"))
    assert ops.statfs("/")["f_bavail"] > 0


def test_a_directory_stays_when_its_last_file_goes(mount: Mounted, fs: ObjmetaFileSystem) -> None:
    fs.pipe({"bucket/a/b/one": b"1", "bucket/a/b/two": b"2"})
    mount.ops.unlink("/bucket/a/b/one")
    mount.ops.rename("/bucket/a/b/two", "/bucket/two")
    assert mount.names("/bucket/a") == ["b"]
    mount.ops.rmdir("/bucket/a/b")
    assert mount.names("/bucket") == ["a", "two"]
    mount.ops.rmdir("/bucket/a")
    assert mount.names("/bucket") == ["two"]


def test_renaming_files(mount: Mounted, fs: ObjmetaFileSystem) -> None:
    ops = mount.ops
    mount.write("/bucket/a", b"a")
    mount.write("/bucket/b", b"b")
    raises(errno.EEXIST, lambda: ops.rename("/bucket/a", "/bucket/b", RENAME_NOREPLACE))
    raises(errno.EINVAL, lambda: ops.rename("/bucket/a", "/bucket/b", 2))
    replaced = mount.open("/bucket/b")
    ops.rename("/bucket/a", "/bucket/b")
    assert (fs.cat_file("bucket/b"), mount.names("/bucket")) == (b"a", ["b"])
    assert ops.read(None, 9, 0, replaced) == b"b"
    ops.release(None, replaced)
    raises(errno.ENOENT, lambda: ops.rename("/bucket/a", "/bucket/c"))
    ops.mkdir("/bucket/d", 0o755)
    raises(errno.EISDIR, lambda: ops.rename("/bucket/b", "/bucket/d"))
    raises(errno.ENOTDIR, lambda: ops.rename("/bucket/d", "/bucket/b"))
    ops.rename("/bucket/b", "/bucket/b")
    ops.mkdir("/second", 0o755)
    ops.rename("/bucket/b", "/second/b")
    assert mount.read("/second/b") == b"a"


def test_renaming_a_file_that_is_being_written(mount: Mounted, fs: ObjmetaFileSystem) -> None:
    handle = mount.create("/bucket/a.tmp")
    mount.ops.write(None, b"1", 0, handle)
    mount.write("/bucket/a", b"old")
    mount.ops.rename("/bucket/a.tmp", "/bucket/a")
    assert fs.cat_file("bucket/a") == b"1"
    mount.ops.write(None, b"2", 1, handle)
    assert mount.ops.getattr("/bucket/a")["st_size"] == 2
    mount.ops.flush(None, handle)
    mount.ops.release(None, handle)
    assert fs.cat_file("bucket/a") == b"12"
    assert mount.names("/bucket") == ["a"]


def test_renaming_directories(mount: Mounted, fs: ObjmetaFileSystem) -> None:
    ops = mount.ops
    fs.pipe({"bucket/d/x": b"x", "bucket/d/e/y": b"y", "bucket/full/z": b"z"})
    ops.mkdir("/bucket/d/empty", 0o755)
    handle = mount.create("/bucket/d/open")
    ops.write(None, b"open", 0, handle)
    raises(errno.EINVAL, lambda: ops.rename("/bucket/d", "/bucket/d/e/d"))
    raises(errno.ENOTEMPTY, lambda: ops.rename("/bucket/d", "/bucket/full"))
    ops.rename("/bucket/d", "/bucket/n")
    ops.write(None, b"!", 4, handle)
    ops.flush(None, handle)
    ops.release(None, handle)
    assert mount.names("/bucket") == ["full", "n"]
    assert mount.names("/bucket/n") == ["e", "empty", "open", "x"]
    assert [mount.read(f"/bucket/n/{each}") for each in ("x", "e/y", "open")] == [b"x", b"y", b"open!"]
    ops.mkdir("/bucket/target", 0o755)
    ops.rename("/bucket/n", "/bucket/target")
    assert mount.names("/bucket/target") == ["e", "empty", "open", "x"]


def test_a_file_that_is_removed_while_it_is_open(mount: Mounted, fs: ObjmetaFileSystem) -> None:
    mount.write("/bucket/file", b"old")
    reader, writer = mount.open("/bucket/file"), mount.open("/bucket/file", os.O_RDWR)
    unborn = mount.create("/bucket/unborn")
    mount.ops.unlink("/bucket/file")
    mount.ops.unlink("/bucket/unborn")
    assert mount.names("/bucket") == []
    mount.ops.write(None, b"new", 0, writer)
    mount.ops.write(None, b"new", 0, unborn)
    assert mount.ops.read(None, 9, 0, writer) == b"new"
    assert mount.ops.read(None, 9, 0, reader) == b"old"
    mount.write("/bucket/file", b"another")
    for number in (reader, writer, unborn):
        mount.ops.flush(None, number)
        mount.ops.release(None, number)
    assert mount.names("/bucket") == ["file"]
    assert fs.cat_file("bucket/file") == b"another"
    assert mount.said == []
    raises(errno.ENOENT, lambda: mount.ops.unlink("/bucket/unborn"))


def test_attributes(mount: Mounted, fs: ObjmetaFileSystem) -> None:
    ops = mount.ops
    fs.pipe_file("bucket/file", b"x", metadata={"colour": "blue"}, content_type="text/x")
    assert ops.listxattr("/bucket/file") == ["user.colour"]
    assert ops.getxattr("/bucket/file", "user.colour") == b"blue"
    ops.setxattr("/bucket/file", "user.größe", "é".encode(), XATTR_CREATE)
    raises(errno.EEXIST, lambda: ops.setxattr("/bucket/file", "user.colour", b"", XATTR_CREATE))
    raises(errno.ENODATA, lambda: ops.setxattr("/bucket/file", "user.none", b"", XATTR_REPLACE))
    raises(errno.ENODATA, lambda: ops.getxattr("/bucket/file", "user.none"))
    raises(errno.ENOTSUP, lambda: ops.getxattr("/bucket/file", "security.capability"))
    raises(errno.EINVAL, lambda: ops.setxattr("/bucket/file", "user.bytes", b"\xff", 0))
    mount.write("/bucket/file", b"new content")
    assert fs.metadata("bucket/file") == {"colour": "blue", "größe": "é"}, "kept when a file is overwritten"
    assert fs.object_version_info("bucket/file")[0]["content_type"] == "text/x"
    handle = mount.open("/bucket/file", os.O_RDWR)
    ops.setxattr("/bucket/file", "user.open", b"yes", 0)
    ops.flush(None, handle)
    ops.release(None, handle)
    assert fs.metadata("bucket/file")["open"] == "yes"
    ops.removexattr("/bucket/file", "user.colour")
    assert sorted(fs.metadata("bucket/file")) == ["größe", "open"]
    assert ops.listxattr("/bucket") == []
    assert ops.chmod("/bucket/file", 0) == ops.chown("/bucket/file", 1, 1) == ops.utimens("/bucket/file") == 0
    raises(errno.EPERM, lambda: ops.symlink("/bucket/link", "file"))
    raises(errno.EPERM, lambda: ops.link("/bucket/link", "/bucket/file"))
    raises(errno.EPERM, lambda: ops.mknod("/bucket/pipe", stat.S_IFIFO, 0))


@pytest.mark.parametrize("kind", ["asked for", "as of"])
def test_read_only(fs: ObjmetaFileSystem, tmp_path: Path, home: Path, kind: str) -> None:
    fs.pipe_file("bucket/file", b"then")
    as_of = fs.modified("bucket/file")
    then = ObjmetaFileSystem(path=home, version_aware=False, as_of=as_of, skip_instance_cache=True)
    if kind == "as of":
        fs.pipe_file("bucket/file", b"now")
    mount = Mounted(then if kind == "as of" else fs, "", tmp_path / "spool", read_only=kind == "asked for")
    assert mount.read("/bucket/file") == b"then"
    assert not mount.ops.getattr("/bucket/file")["st_mode"] & 0o222
    for call in (
        lambda: mount.create("/bucket/new"),
        lambda: mount.open("/bucket/file", os.O_WRONLY),
        lambda: mount.open("/bucket/file", os.O_RDONLY | os.O_TRUNC),
        lambda: mount.ops.truncate("/bucket/file", 0),
        lambda: mount.ops.unlink("/bucket/file"),
        lambda: mount.ops.rename("/bucket/file", "/bucket/other"),
        lambda: mount.ops.mkdir("/bucket/d", 0),
        lambda: mount.ops.mkdir("/another", 0),
        lambda: mount.ops.rmdir("/bucket"),
        lambda: mount.ops.setxattr("/bucket/file", "user.x", b"", 0),
        lambda: mount.ops.chmod("/bucket/file", 0),
    ):
        raises(errno.EROFS, call)
    mount.ops.close()
    then.close()


def test_a_directory_in_a_bucket_can_be_mounted(fs: ObjmetaFileSystem, tmp_path: Path) -> None:
    fs.pipe({"bucket/above": b"", "bucket/some/where/f": b"f"})
    mount = Mounted(fs, "bucket/some", tmp_path / "spool")
    assert mount.names("/") == ["where"]
    assert mount.read("/where/f") == b"f"
    mount.write("/g", b"g")
    assert fs.cat_file("bucket/some/g") == b"g"
    mount.ops.close()
    nothing = Mounted(fs, "bucket/nothing/yet", tmp_path / "spool")
    assert nothing.names("/") == []
    assert stat.S_ISDIR(nothing.ops.getattr("/")["st_mode"])
    nothing.ops.mkdir("/d", 0o755)
    nothing.write("/d/f", b"deep")
    assert fs.cat_file("bucket/nothing/yet/d/f") == b"deep"
    nothing.ops.close()


def test_opening_what_somebody_made_a_moment_ago_keeps_its_content(mount: Mounted, fs: ObjmetaFileSystem) -> None:
    fs.pipe_file("bucket/log", b"theirs, ")
    handle = mount.create("/bucket/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    mount.ops.write(None, b"ours", 0, handle)
    mount.ops.flush(None, handle)
    mount.ops.release(None, handle)
    assert fs.cat_file("bucket/log") == b"theirs, ours"


def test_many_threads(mount: Mounted, fs: ObjmetaFileSystem) -> None:
    content = os.urandom(MIB)
    mount.write("/bucket/shared", content)
    handle = mount.open("/bucket/shared")
    failures: list[BaseException] = []

    def work(index: int) -> None:
        try:
            for step in range(10):
                path = f"/bucket/{index}-{step}"
                mount.write(path, path.encode())
                at = (index * 7919 + step * 104729) % MIB
                assert mount.ops.read(None, 4096, at, handle) == content[at : at + 4096]
                mount.ops.rename(path, f"{path}-moved")
                log = mount.create("/bucket/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                mount.ops.write(None, b"x" * 10, 0, log)
                mount.ops.flush(None, log)
                mount.ops.release(None, log)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    mount.ops.release(None, handle)
    assert failures == []
    assert fs.size("bucket/log") == 400
    assert len(fs.ls("bucket")) == 42


def test_bad_numbers(mount: Mounted) -> None:
    mount.write("/bucket/file", b"x")
    handle = mount.open("/bucket/file")
    raises(errno.EBADF, lambda: mount.ops.write(None, b"x", 0, handle))
    raises(errno.EBADF, lambda: mount.ops.truncate(None, 0, handle))
    mount.ops.release(None, handle)
    mount.ops.release(None, handle)
    raises(errno.EBADF, lambda: mount.ops.read(None, 1, 0, handle))
    raises(errno.EBADF, lambda: mount.ops.readdir(None, handle))
