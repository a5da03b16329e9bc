"""What goes wrong around a command: signals, closed pipes, full disks, damaged bytes, nobody who answers."""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cli.conftest import PATIENCE_S, ROOT, Run, Shell, eventually

MEBIBYTE = 1024 * 1024


def ended(process: subprocess.Popen[bytes], timeout_s: float = 20) -> tuple[int, bytes, str]:
    """Wait for a process; its exit code and output."""
    out, err = process.communicate(timeout=timeout_s)
    return process.returncode, out, err.decode()


def temporary_files(root: Path) -> list[Path]:
    return [
        path for path in root.rglob("*") if path.is_file() and (path.suffix == ".part" or path.parent.name == "tmp")
    ]


# -- Signals and pipes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_put_leaves_nothing_to_see(shell: Shell, bucket: str, number: signal.Signals, code: int) -> None:
    process = shell.start("put", "-", f"{bucket}/half", stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(os.urandom(20 * MEBIBYTE))
    process.stdin.flush()
    blobs = shell.home / "blobs"
    eventually(lambda: blobs.exists() and any(path.is_file() for path in blobs.rglob("*")))
    process.send_signal(number)
    found = process.wait(10), process.stderr.read() if process.stderr else b""
    assert found in ((code, b"gateway: interrupted\n"), (code, b"gateway: terminated\n"))
    assert shell("ls", "-r", bucket).lines == []
    assert temporary_files(shell.home) == []


def test_a_put_that_is_killed_leaves_nothing_to_see(shell: Shell, bucket: str) -> None:
    process = shell.start("put", "-", f"{bucket}/half", stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(os.urandom(20 * MEBIBYTE))
    process.stdin.flush()
    process.kill()
    process.wait()
    assert shell("ls", "--versions", bucket).lines == []
    shell("put", "-", f"{bucket}/half", data=b"whole")
    assert shell("cat", f"{bucket}/half").raw == b"whole"


def test_an_interrupted_get_leaves_no_file(shell: Shell, bucket: str) -> None:
    shell("put", "-", f"{bucket}/large", data=os.urandom(64 * MEBIBYTE))
    process = shell.start("get", f"{bucket}/large", "out")
    eventually(lambda: bool(temporary_files(shell.directory)) or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) in (130, 0)
    assert temporary_files(shell.directory) == []
    assert process.returncode == 0 or not (shell.directory / "out").exists()


def test_ctrl_c_while_waiting_for_standard_input(shell: Shell, bucket: str) -> None:
    process = shell.start("put", "-", f"{bucket}/k", stdin=subprocess.PIPE)
    eventually(lambda: len(os.listdir(f"/proc/{process.pid}/task")) > 3)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130


@pytest.mark.parametrize("arguments", [["cat", "box/large"], ["get", "box/large", "-"], ["ls", "-r", "box"]])
def test_a_broken_pipe_ends_quietly(shell: Shell, bucket: str, arguments: list[str]) -> None:
    shell("put", "-", "box/large", data=os.urandom(2 * MEBIBYTE))
    process = shell.start(*arguments)
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    code, _, err = ended(process)
    assert (code, err) == (141, "")


@pytest.mark.parametrize("options", [["--json"], ["-v"]])
def test_a_broken_pipe_ends_a_command_on_many_objects(shell: Shell, bucket: str, options: list[str]) -> None:
    """It does not go on unseen, and does not complain of each of them."""
    source = shell.directory / "many"
    source.mkdir()
    for number in range(1500):  # more names than a pipe and a buffer hold
        (source / f"{'n' * 200}{number:04}").write_bytes(b"1")
    process = shell.start("sync", *options, "./many", f"{bucket}/many", stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    said = process.stderr.read()
    assert process.wait(20) == 141
    assert b"roken" not in said, said
    assert said.count(b"\n") <= 1, said
    assert len(shell("ls", "-r", bucket).lines) < 1500


def test_errors_for_programs(shell: Shell, gateway: Run, bucket: str) -> None:
    """With --json each line on standard error is an object, too, wherever the option stands."""

    def said(*arguments: str, code: int) -> dict[str, object]:
        outcome = gateway(*arguments, code=code)
        (line,) = outcome.err.splitlines()
        found: dict[str, object] = json.loads(line)
        return found

    missing = said("--json", "cat", "box/none", code=4)
    assert missing == {
        "error": "object 'none' does not exist in bucket 'box'",
        "kind": "no_such_key",
        "exit_code": 4,
    }
    assert said("ls", "nowhere", "--json", code=3)["kind"] == "no_such_bucket"
    assert said("ls", "--no-such-option", "--json", code=2)["kind"] == "usage"
    assert said("--json", "no-such-command", code=2)["kind"] == "usage"
    assert said("get", "--json", "box/none", "-", code=4)["exit_code"] == 4
    assert said("mb", "--json", "box", code=6)["kind"] == "already_exists"
    for command in (["bucket", "--json", "show"], ["upload", "--json", "list"]):  # it may stand anywhere
        assert said(*command, "nowhere", code=3)["kind"] == "no_such_bucket"
    gateway("put", "-r", "--json", ".", "box/here")
    Path("link").symlink_to("nowhere")
    assert said("put", "-r", "--json", ".", "box/here", code=1)["name"] == "./link"
    assert gateway("lock", "n", "--", "true", "--json").err == ""


def test_text_that_is_no_unicode(shell: Shell, bucket: str) -> None:
    """Of an argument in another encoding it is said that it is wrong; none of them is a bug."""
    for arguments in (
        ["sql", "SELECT '\udcff'"],
        ["sql", "--live", "SELECT '\udcff'"],
        ["sql", "--catalog", "\udcff", "SELECT 1"],
        ["du", "box/\udcff"],
        ["tree", "box/\udcff"],
        ["ls", "box/\udcff"],
        ["find", "box/\udcff"],
    ):
        assert "is not valid Unicode and cannot be written as UTF-8" in shell(*arguments, code=2).err


@pytest.mark.parametrize("color", [False, True])
def test_a_bar_is_shown_on_a_terminal_only(shell: Shell, bucket: str, color: bool) -> None:
    (shell.directory / "large").write_bytes(os.urandom(12 * MEBIBYTE))
    environ = {"TERM": "xterm-256color"} | ({} if color else {"NO_COLOR": "1"})
    for arguments, expected in (([], True), (["--no-progress"], False), (["--quiet"], False), (["--json"], False)):
        terminal, child = os.openpty()
        with os.fdopen(terminal, "rb", buffering=0) as seen:
            process = shell.start("put", *arguments, "large", "box/large", stderr=child, env=environ)
            os.close(child)
            shown = b""
            with suppress(OSError):  # how a terminal says that nobody writes to it any more
                while data := seen.read(4096):
                    shown += data
        out, _ = process.communicate(timeout=20)
        assert process.returncode == 0
        assert (b"large" in shown) is expected
        assert (b"\x1b[38;" in shown) is (expected and color)
        assert b"\x1b" not in out


LONG = {
    "cp -r box/d box/e": "cp .* 5 of 5 objects .*/s",
    "mv -r box/d box/f": "mv .* 5 of 5 objects",
    "rm -r box/f": "rm .* 5 of 5 objects",
    "restore -r box/f": "restore .* 5 of 5 objects",
    "rm -r --versions box/f": "rm .* 5 of 5 objects",
    "gc --grace 0": "gc: chunks .* copies",
    "fsck --deep": r"fsck .* \d+ versions .*/s",
    "catalog export out": r"reading .* \d+ objects",
    "sql --catalog :memory: 'FROM objects'": r"reading .* \d+ objects",
    "put -r d box/g": "put 5 of 5",
}


def test_all_long_work_has_a_bar(gateway: Run, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("d").mkdir()
    for number in range(5):
        Path(f"d/{number}").write_bytes(b"x" * 70_000)
    gateway("put", "-r", "d", "box/d")
    gateway("rm", "-r", "box/d")
    gateway("restore", "-r", "box/d")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert gateway("cp", "-r", "box/d", "box/c").err == "", "what is done at once needs none"
    monkeypatch.setattr("gateway.cli.output._BAR_AFTER_S", 0)
    for command, bar in LONG.items():
        arguments = shlex.split(command)
        found = gateway(*arguments)
        plain = re.sub(r"\x1b\[[\d;?]*\w", "", found.err)
        assert re.search(bar, plain), (command, plain)
        assert "\x1b" not in found.out
    Path("large").write_bytes(os.urandom(9 * MEBIBYTE))
    gateway("put", "-q", "large", "box/large")
    said = re.sub(r"\x1b\[[\d;?]*\w", "", gateway("fsck", "--deep").err)
    assert re.search(r"fsck ━.* 9\.\d/9\.\d MiB", said), "how much there is to read is known"
    assert "━" not in gateway("rm", "-q", "-r", "box/e").err
    assert len(gateway("put", "d/0", "d/1", "box/h/").lines) == 2, "what is printed stays on standard output"


def test_what_was_done_before_ctrl_c_is_said(shell: Shell, bucket: str) -> None:
    environ = {"PYTHONPATH": os.pathsep.join((str(shell.directory), str(ROOT)))}
    where = {
        "fsck": ("gateway.upkeep.checking:Checker._copies", "checked 3 versions, 0 chunks, 0: all well, by then"),
        "gc": ("gateway.collection.cycles:run_cycle", r"1 version removed, \d+ registers? erased and 0 copies of"),
        "catalog export out": ("gateway.catalog.query:Session.sql", "nothing was written: out is not there"),
    }
    for letter in (b"x", b"y", b"z"):
        shell("put", "-", "box/k", data=letter * 100_000)
    shell("bucket", "set", "--keep-versions", "1", "box")
    for command, (place, says) in where.items():
        # the command stands still there
        module, _, name = place.partition(":")
        (shell.directory / "sitecustomize.py").write_text(
            "import asyncio, sys\n"
            "async def stand_still(*_, **__):\n"
            "    print('there', file=sys.stderr, flush=True)\n"
            "    await asyncio.sleep(60)\n"
            f"import {module}\n"
            f"{module}.{name} = stand_still\n"
        )
        process = shell.start(*command.split(), env=environ)
        assert process.stderr is not None
        assert process.stderr.readline() == b"there\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
        assert process.returncode == 130
        assert re.match(f"gateway: {says}", err.decode()), err
        assert err.endswith(b"gateway: interrupted\n"), err


def test_standard_output_that_is_full(shell: Shell, bucket: str) -> None:
    shell("put", "-", "box/k", data=b"x")
    for arguments in (["cat", "box/k"], ["ls", "box"]):
        with open("/dev/full", "wb") as full:
            code, _, err = ended(shell.start(*arguments, stdout=full))
        assert (code, err) == (1, "gateway: standard output: No space left on device\n")


def test_standard_streams_that_are_closed(shell: Shell, bucket: str) -> None:
    """A file of the store must not become one of them, and what can't be read or shown is said."""
    shell("put", "-", "box/k", data=b"x")
    gateway = f"{sys.executable} -m gateway"
    for command, code, says in (
        (f"{gateway} ls box >&-", 1, "gateway: standard output: Bad file descriptor\n"),
        (f"{gateway} cat box/k >&-", 1, "gateway: standard output: Bad file descriptor\n"),
        (f"{gateway} put - box/k <&-", 1, "gateway: standard input: Bad file descriptor\n"),
        (f"{gateway} cat box/none 2>&-", 4, ""),
        (f"{gateway} put -q /etc/hostname box/k <&- >&-", 0, ""),
    ):
        done = subprocess.run(["/bin/sh", "-c", command], env=shell.environment(), capture_output=True, check=False)
        assert (done.returncode, done.stderr.decode()) == (code, says), command


# -- Disks ------------------------------------------------------------------------------------------------------------


def small_files_only() -> None:
    """In the child: no file may grow beyond a mebibyte. It fails like a full disk, and needs no disk to fill."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (MEBIBYTE, MEBIBYTE))


def test_a_full_disk_under_the_store(shell: Shell, bucket: str) -> None:
    (shell.directory / "large").write_bytes(os.urandom(3 * MEBIBYTE))
    code, _, err = ended(shell.start("put", "large", "box/large", preexec_fn=small_files_only))
    assert code == 1
    assert err.startswith("gateway: ")
    assert err.count("\n") == 1
    assert shell("ls", bucket).lines == []
    shell("put", "large", "box/large")


def test_a_full_disk_under_the_target(shell: Shell, bucket: str) -> None:
    (shell.directory / "large").write_bytes(os.urandom(3 * MEBIBYTE))
    shell("put", "large", "box/large")
    code, _, err = ended(shell.start("get", "box/large", "out", preexec_fn=small_files_only))
    assert code == 1
    assert err == "gateway: out: File too large\n"
    assert os.listdir(shell.directory) == ["large"]


def test_a_target_that_cannot_be_written(gateway: Run, bucket: str) -> None:
    Path("f").write_bytes(b"1")
    gateway("put", "f", "box/f")
    assert gateway("get", "box/f", "f/out", code=1).err == "gateway: f: Not a directory\n"
    assert "/proc/" in gateway("get", "box/f", "/proc/nothing/out", code=1).err


def test_a_store_that_is_a_file(gateway: Run, shell: Shell) -> None:
    Path("file").write_bytes(b"")
    assert "file" in gateway("--store", "file", "ls", code=1).err


def test_damaged_bytes_are_never_shown(shell: Shell, bucket: str) -> None:
    shell("put", "-", "box/k", data=b"x" * 100_000)
    (chunk,) = (shell.home / "blobs" / "packs").iterdir()
    chunk.chmod(0o644)
    chunk.write_bytes(b"y" * 100_000)
    assert shell("cat", "box/k", code=8).raw == b""
    shell("get", "box/k", "out", code=8)
    assert os.listdir(shell.directory) == []
    shell("get", "-r", "box", "tree", code=8)


# -- Nodes ------------------------------------------------------------------------------------------------------------


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize("arguments", [["ls"], ["put", "-", "box/k"], ["cat", "box/k"], ["mb", "box"], ["status"]])
def test_an_endpoint_where_nobody_listens(shell: Shell, arguments: list[str]) -> None:
    began = time.monotonic()
    found = shell("--store", f"127.0.0.1:{closed_port()}", "--timeout", "2", *arguments, code=5)
    assert time.monotonic() - began < PATIENCE_S
    assert found.err.count("\n") == 1


def test_an_endpoint_that_never_answers(shell: Shell) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        endpoint = f"127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        shell("ls", env={"OBJMETA_HOME": "", "OBJMETA_ENDPOINTS": endpoint, "OBJMETA_TIMEOUT_S": "1"}, code=5)
        assert time.monotonic() - began < PATIENCE_S


def test_a_store_beside_the_configured_one(gateway: Run, shell: Shell) -> None:
    gateway("--store", "other", "mb", "elsewhere")
    assert gateway("ls").lines == []
    assert gateway("ls", "--store", "./other").lines == ["elsewhere/"]


def test_config_shows_where_values_come_from(gateway: Run, shell: Shell) -> None:
    folder = shell.home.parent / "config" / "objmeta"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text("concurrency = 3\ntimeout_s = 5\n")
    records = {record["name"]: record for record in gateway("config", "--json", "--timeout", "7").records}
    assert (records["timeout_s"]["value"], records["timeout_s"]["source"]) == (7.0, "argument")
    assert (records["concurrency"]["value"], records["concurrency"]["source"]) == (3, f"file {folder / 'config.toml'}")
    assert records["home"]["source"] == "environment variable OBJMETA_HOME"
    assert records["failover_s"]["source"] == "default"
    assert any(line.split()[:2] == ["timeout_s", "7.0"] for line in gateway("config", "--timeout", "7").lines)
    (folder / "config.toml").write_text("concurrency = 0")
    assert "config.toml" in gateway("ls", code=2).err


def test_status_of_the_embedded_store(gateway: Run, shell: Shell) -> None:
    (record,) = gateway("status", "--json").records
    assert record["quorum"] is True
    assert [node["state"] for node in record["nodes"]] == ["up"]
    assert gateway("status").lines[-1] == "quorum: yes (1 of 1 node up)"
