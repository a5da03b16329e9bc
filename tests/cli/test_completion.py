"""Completion: names in the store, as bash, zsh and fish are told them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from gateway.cli.app import gateway as commands
from gateway.cli.shells import SHELLS, VARIABLE
from tests.cli.conftest import Run, Shell

NAMES = ("a b.txt", "a*c", "a/1", "co:lon", "com,ma", 'q"uote', "it's", "$x", "ümlaut", "line\nbreak", "😀")


@pytest.fixture
def filled(gateway: Run, bucket: str) -> str:
    """A bucket with names that are special to shells."""
    Path("f").write_bytes(b"1")
    for name in NAMES:
        gateway("put", "f", f"{bucket}/{name}")
    return bucket


@pytest.fixture
def bash(monkeypatch: pytest.MonkeyPatch) -> object:
    """What bash is told for the line up to the cursor, of which it takes ``word`` for the last word."""

    def ask(line: str, word: str) -> list[str]:
        monkeypatch.setenv("COMP_LINE", line)
        monkeypatch.setenv("COMP_WORD", word)
        return SHELLS["bash"](commands, {}, "gateway", VARIABLE).complete().splitlines()

    return ask


@pytest.mark.parametrize(
    ("line", "word", "told"),
    [
        ("gateway st", "st", ["plain,stat", "plain,status"]),
        ("gateway cat --ver", "--ver", ["plain,--version-id"]),
        ("gateway cat bo", "bo", ["plain,box/"]),
        ("gateway cat box/a", "box/a", ["plain,box/a\\ b.txt", "plain,box/a\\*c", "plain,box/a/"]),
        ("gateway cat box/a\\ ", "box/a\\ ", ["plain,box/a\\ b.txt"]),
        ("gateway cat 'box/a b", "'box/a b", ["plain,box/a b.txt"]),
        ('gateway cat "box/q', '"box/q', ['plain,box/q\\"uote']),
        ('gateway cat "box/q\\"uo', '"box/q\\"uo', ['plain,box/q\\"uote']),
        ('gateway cat "box/$', '"box/$', ["plain,box/\\$x"]),
        ("gateway cat 'box/it", "'box/it", ["plain,box/it'\\''s"]),
        ("gateway cat 'box/it'\\''", "'box/it'\\''", ["plain,box/it'\\''s"]),
        ("gateway cat box/üml", "box/üml", ["plain,box/ümlaut"]),
        ("gateway cat objmeta://bo", "//bo", ["plain,//box/"]),
        ("gateway cat objmeta://box/co:", "", ["plain,lon"]),
        ("gateway cat box/ü", "box/ü", ["plain,box/ümlaut"]),
        ("gateway cat box/l", "box/l", []),
        ("gateway cat none/x", "none/x", []),
        ("gateway cat s3://b", "//b", []),
        ("gateway --json ls box/a/", "box/a/", ["plain,box/a/1"]),
        ("gateway put ./x", "./x", ["file,./x"]),
        ("gateway put f bo", "bo", ["plain,box/"]),
        ("gateway sync ./x bo", "bo", ["plain,box/"]),
        ("gateway get box/a/1 ./", "./", ["file,./"]),
    ],
)
def test_bash(bash: object, filled: str, line: str, word: str, told: list[str]) -> None:
    assert callable(bash)
    assert bash(line, word) == told


def test_what_is_deleted_can_be_named_to_bring_it_back(bash: object, filled: str, gateway: Run) -> None:
    assert callable(bash)
    gateway("rm", "box/a/1", "box/com,ma", "box/a b.txt")
    told = ["plain,box/a\\ b.txt", "plain,box/a\\*c", "plain,box/a/"]
    assert bash("gateway restore box/a", "box/a") == bash("gateway undo box/a", "box/a") == told
    assert bash("gateway restore box/a/", "box/a/") == ["plain,box/a/1"]
    assert bash("gateway cat box/a", "box/a") == ["plain,box/a\\*c"]
    assert len(bash("gateway restore box/", "box/")) == len(NAMES) - 1  # no shell can be told of a line break


def test_bash_itself(shell: Shell, filled: str) -> None:
    """The script, in a bash, with what would answer it in place of the command."""
    script = shell("completion", "bash").out
    stub = "env() { printf 'plain,%s\\n' 'box/a\\ b' 'box/a\\*c' \"$1\"; }\n"
    use = 'COMP_LINE="gateway cat ü x" COMP_POINT=13 COMP_WORDS=(gateway cat ü x) COMP_CWORD=2\n_gateway_completion\n'
    done = subprocess.run(
        ["bash", "-c", stub + script + use + 'printf "<%s>" "${COMPREPLY[@]}"'],
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "<box/a\\ b><box/a\\*c><COMP_LINE=gateway cat ü>", "characters count"


@pytest.mark.skipif(shutil.which("fish") is None, reason="there is no fish here")
def test_fish_itself(shell: Shell, tmp_path: Path) -> None:
    """The script, in a fish, with what would answer it in place of the command."""
    stub = tmp_path / "bin" / "gateway"
    stub.parent.mkdir()
    stub.write_text("#!/bin/sh\nprintf 'plain,%s\\n' 'box/com,ma' --dry-run\n")
    stub.chmod(0o700)
    script = tmp_path / "gateway.fish"
    script.write_text(shell("completion", "fish").out)
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"source {script}; complete --do-complete 'gateway cat box/com'"],
        env={**os.environ, "PATH": f"{stub.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["box/com,ma"]


@pytest.mark.parametrize("kind", ["zsh", "fish"])
def test_others(filled: str, kind: str, monkeypatch: pytest.MonkeyPatch, gateway: Run) -> None:
    monkeypatch.setenv("COMP_WORDS", "gateway cat box/a")
    monkeypatch.setenv("COMP_CWORD", "box/a" if kind == "fish" else "2")
    told = SHELLS[kind](commands, {}, "gateway", VARIABLE).complete()
    for name in ("box/a b.txt", "box/a*c", "box/a/"):
        assert name in told.splitlines() or f"plain,{name}" in told.splitlines()
    assert "_gateway_completion" in gateway("completion", kind).out


def test_no_store_is_made(shell: Shell) -> None:
    environ = {VARIABLE: "bash_complete", "COMP_LINE": "gateway cat b", "COMP_WORD": "b"}
    assert shell("x", env=environ).out.strip() == ""
    assert not shell.home.exists()


def test_a_store_that_does_not_answer_is_not_waited_for(shell: Shell) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        endpoint = f"127.0.0.1:{silent.getsockname()[1]}"
        environ = {
            VARIABLE: "bash_complete",
            "COMP_LINE": "gateway cat b",
            "COMP_WORD": "b",
            "OBJMETA_HOME": "",
            "OBJMETA_ENDPOINTS": endpoint,
            "OBJMETA_TIMEOUT_S": "600",
        }
        found = shell("x", env=environ, timeout=30)
        assert (found.out.strip(), found.err) == ("", "")
