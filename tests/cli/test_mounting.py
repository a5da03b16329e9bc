"""``mount``: a real mount driven by ordinary programs, and what is refused before anything is mounted.

A real mount needs Linux's /dev/fuse, libfuse 3, and the right to mount; where one of them is missing its tests say so
and are skipped.  The operations by themselves are tested in ``tests/gateway/test_mount.py``.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.mount.libfuse import library
from tests.cli.conftest import PATIENCE_S, Run, Shell, eventually

PARTLY_WRITTEN = """
import os, sys
file = open(sys.argv[1], "wb")
file.write(b"half")
file.flush()
print("written", flush=True)
sys.stdin.read()
"""


class Mount:
    """A running ``gateway mount``."""

    def __init__(self, shell: Shell, directory: Path, *arguments: str) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        self.spool = directory.parent / "spool"
        options = ("--json", "--spool", str(self.spool))
        self.process = shell.start("mount", *options, str(directory), *arguments)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait(PATIENCE_S)
            assert self.process.stderr is not None
            said = self.process.stderr.read().decode()
            if "Operation not permitted" in said:  # by libfuse, in a container without the right to mount
                pytest.skip(f"mounting is not allowed here: {said}")
            pytest.fail(f"nothing was mounted: {said}")
        self.said = json.loads(line)

    def sh(self, script: str) -> str:
        done = subprocess.run(
            ["sh", "-euc", f'refused() {{ ! "$@" 2>/dev/null; }}; {script}'],
            cwd=self.directory,
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def end(self, number: int = signal.SIGINT) -> tuple[int, str]:
        """Stop it; its exit code, and what it said."""
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=PATIENCE_S)
        assert not os.path.ismount(self.directory)
        return self.process.returncode, said.decode()


@pytest.fixture
def mounted(shell: Shell, bucket: str, tmp_path: Path) -> Iterator[Mount]:
    if (found := _missing()) is not None:
        pytest.skip(found)
    mount = Mount(shell, tmp_path / "mounted")
    yield mount
    if mount.process.poll() is None:
        mount.end()


def _missing() -> str | None:
    try:
        library()
    except OSError as failure:
        return failure.strerror
    return None


def test_ordinary_programs(mounted: Mount, shell: Shell, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep" / "deeper").mkdir(parents=True)
    contents = {"one": b"1", "deep/ü ?#*[x]%": b"odd", "deep/deeper/big": os.urandom(5 << 20), "empty": b""}
    for name, content in contents.items():
        (source / name).write_bytes(content)
    assert mounted.sh("ls") == "box\n"
    mounted.sh(f"cp -r {source} box/copy && diff -r {source} box/copy")
    assert mounted.sh("ls box/copy/deep") == "deeper\nü ?#*[x]%\n"
    assert mounted.sh("cat 'box/copy/deep/ü ?#*[x]%'") == "odd"
    assert shell("cat", "box/copy/deep/deeper/big").raw == contents["deep/deeper/big"]
    assert len(shell("versions", "box/copy/one").lines) == 1

    mounted.sh("mv box/copy box/moved && mv -n box/moved/one box/moved/empty && test -e box/moved/one")
    mounted.sh("mv box/moved/one box/moved/empty && test ! -e box/moved/one")
    assert mounted.sh("cat box/moved/empty") == "1"
    mounted.sh(
        "echo one > box/log; echo two >> box/log; printf TWO | dd of=box/log bs=1 seek=4 conv=notrunc 2>/dev/null"
    )
    assert shell("cat", "box/log").raw == b"one\nTWO\n"
    assert len(shell("versions", "box/log").lines) == 3
    mounted.sh(
        "touch box/touched; chmod 600 box/touched; ! ln -s log box/link 2>/dev/null; ! ln box/log box/link 2>/dev/null"
    )
    mounted.sh(
        "mkdir box/d; ! rmdir box/moved 2>/dev/null; rmdir box/d; rm -r box/moved; mkdir newbucket; rmdir newbucket"
    )
    assert mounted.sh("ls box") == "log\ntouched\n"
    assert mounted.end() == (0, "")
    assert list(mounted.spool.iterdir()) == []


def test_python_files(mounted: Mount, shell: Shell) -> None:
    path = mounted.directory / "box" / "file"
    with path.open("xb") as file:
        file.write(b"0" * 300_000)
        file.seek(100)
        file.write(b"abc")
        assert os.fstat(file.fileno()).st_size == 300_000
    with path.open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"end!")
        file.truncate(300_000)
    assert shell("cat", "box/file").raw == b"0" * 100 + b"abc" + b"0" * (299_997 - 103) + b"end"
    with path.open("rb") as pinned:
        assert pinned.read(1) == b"0"
        shell("put", "-", "box/file", data=b"x" * 400_000)
        assert path.read_bytes() == b"x" * 400_000
        assert pinned.read() == (b"0" * 99 + b"abc" + b"0" * (299_997 - 103) + b"end")
    os.setxattr(path, "user.colour", b"blue")
    assert shell("stat", "--json", "box/file").records[0]["metadata"] == {"colour": "blue"}
    with pytest.raises(FileExistsError):
        path.open("x")
    with pytest.raises(PermissionError):
        (mounted.directory / "at-the-top").touch()
    with path.open("r+b") as file, pytest.raises(OSError, match="Input/output"):  # noqa: PT012
        file.write(b"mine")
        shell("put", "-", "box/file", data=b"theirs")
        file.close()
    assert shell("cat", "box/file").raw == b"theirs"
    code, said = mounted.end()
    assert code == 1
    (kept,) = mounted.spool.iterdir()
    assert str(kept) in said
    assert kept.read_bytes() == b"mine" + b"x" * 399_996


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_half_written_at_the_end_is_not_stored(mounted: Mount, shell: Shell, number: int) -> None:
    writer = _begin_writing(mounted)
    code, said = mounted.end(number)
    writer.communicate()
    assert code == 1
    (kept,) = mounted.spool.iterdir()
    (record,) = map(json.loads, said.splitlines())
    assert record["message"] == f"box/half was not stored (it was not closed); what was written is in {kept}"
    assert kept.read_bytes() == b"half"
    shell("stat", "box/half", code=4)


def test_killed_while_something_is_written(mounted: Mount, shell: Shell) -> None:
    writer = _begin_writing(mounted)
    mounted.process.kill()
    mounted.process.wait()
    writer.communicate()
    shell("stat", "box/half", code=4)
    refused = shell("mount", str(mounted.directory), code=1).err
    assert "an earlier mount was killed here" in refused
    assert shutil.which("fusermount3") or shutil.which("umount")
    tool = ["fusermount3", "-u"] if shutil.which("fusermount3") else ["umount"]
    subprocess.run([*tool, mounted.directory], check=True, timeout=PATIENCE_S)
    again = Mount(shell, mounted.directory)
    assert again.sh("ls box") == ""
    code, said = again.end()
    assert code == 0
    assert "an earlier mount was killed; files that it had not stored are in " in said


def test_unmounting_by_the_usual_command(mounted: Mount) -> None:
    mounted.sh("echo x > box/x")
    tool = ["fusermount3", "-u"] if shutil.which("fusermount3") else ["umount"]
    subprocess.run([*tool, mounted.directory], check=True, timeout=PATIENCE_S)
    assert mounted.process.wait(PATIENCE_S) == 0


def test_a_part_as_it_was(mounted: Mount, shell: Shell, tmp_path: Path) -> None:
    shell("put", "-", "box/d/file", data=b"then")
    then = shell("stat", "--json", "box/d/file").records[0]["last_modified"]
    shell("put", "-", "box/d/file", data=b"now")
    past = Mount(shell, tmp_path / "past", "box/d", "--as-of", then)
    assert past.said["read_only"] is True
    assert past.sh("cat file") == "then"
    past.sh("refused touch new; refused rm file")
    assert past.end() == (0, "")
    assert mounted.sh("cat box/d/file") == "now"


def _begin_writing(mounted: Mount) -> subprocess.Popen[bytes]:
    streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    target = str(mounted.directory / "box" / "half")
    writer = subprocess.Popen(["python3", "-c", PARTLY_WRITTEN, target], **streams)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"written\n"
    eventually(lambda: any(each.stat().st_size for each in mounted.spool.glob("mount-*/*half")))
    return writer


# -- Refused before anything is mounted -------------------------------------------------------------------------------


def test_what_cannot_be_mounted(gateway: Run, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.mount.libfuse.library", lambda: None)
    monkeypatch.setattr("gateway.mount.libfuse.mount", lambda *_, **__: pytest.fail("it was mounted"))
    empty, full = tmp_path / "empty", tmp_path / "full"
    empty.mkdir()
    (full / "x").mkdir(parents=True)
    assert "No such file" in gateway("mount", str(tmp_path / "none"), code=1).err
    assert "not empty" in gateway("mount", str(full), code=1).err
    assert "mounted there already" in gateway("mount", "/proc", code=1).err
    assert "gateway mb" in gateway("mount", str(empty), "nobucket", code=3).err
    gateway("mount", str(empty), "/tmp", code=2)
    (tmp_path / "file").write_bytes(b"x")
    gateway("put", str(tmp_path / "file"), "box/file")
    assert "is an object" in gateway("mount", str(empty), "box/file", code=2).err


def test_what_is_missing_is_said(gateway: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(name: str, package: str | None = None) -> object:
        if name == "mfusepy":
            raise ModuleNotFoundError(name)
        return real(name, package)

    real = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", found)
    assert "pip install 'objmeta[mount]'" in gateway("mount", str(tmp_path), code=1).err


@pytest.mark.parametrize(
    ("failure", "says"),
    [
        (ModuleNotFoundError("No module named 'mfusepy'"), r"pip install 'objmeta\[mount\]'"),
        (OSError("Unable to find libfuse"), "apt-get install fuse3"),
        (None, "there is no .*/none, .* modprobe fuse"),
    ],
)
def test_what_is_missing_is_named(
    failure: Exception | None, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(name: str) -> object:
        assert name == "mfusepy"
        if failure is not None:
            raise failure
        return object()

    monkeypatch.setattr(importlib, "import_module", found)
    monkeypatch.delenv("FUSE_LIBRARY_NAME", raising=False)
    with pytest.raises(OSError, match=says):
        library(tmp_path / "none")
    assert "FUSE_LIBRARY_NAME" not in os.environ
