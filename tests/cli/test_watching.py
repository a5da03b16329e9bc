"""``watch``: what happened to which object, as it happens."""

from __future__ import annotations

import json
import signal
import subprocess
from typing import Any

import pytest

from tests.cli.conftest import Run, Shell


def begin(shell: Shell, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    process = shell.start("watch", "--interval", "0.05", *arguments, **options)
    assert process.stderr is not None
    assert process.stderr.readline().startswith((b"gateway: watching ", b'{"message": "watching '))
    return process


def test_every_change_in_its_order(gateway: Run, shell: Shell, bucket: str) -> None:
    shell("put", "-", "box/d/old", data=b"1")
    process = begin(shell, "--json", "--count", "6", "box/d")
    shell("put", "-", "box/elsewhere", data=b"1")
    first = shell("put", "--json", "-", "box/d/k ü", data=b"12").records[0]["version_id"]
    shell("put", "-", "box/d/k ü", data=b"123")
    gateway("rm", "box/d/k ü")
    gateway("rm", "--version-id", first, "box/d/k ü")
    shell("put", "-", "box/d", data=b"1234")
    shell("put", "-", "box/d/old", data=b"12345")
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    records = [json.loads(line) for line in out.splitlines()]
    assert {(each["event"], each["key"], each.get("size")) for each in records} == {
        ("put", "d/k ü", 2),
        ("put", "d/k ü", 3),
        ("delete", "d/k ü", 0),
        ("remove", "d/k ü", None),
        ("put", "d", 4),
        ("put", "d/old", 5),
    }
    of_one = [each["event"] for each in records if each["key"] == "d/k ü"]
    assert of_one == ["put", "put", "delete", "remove"]


def test_changes_of_one_look_are_in_order_of_time(gateway: Run, shell: Shell, bucket: str) -> None:
    process = begin(shell, "--json", "--count", "4", "--interval", "2")
    (shell.directory / "file").write_bytes(b"1")
    for key in ("z", "m", "a"):
        gateway("put", "file", f"box/{key}")
    gateway("rm", "box/z")
    out, _ = process.communicate(timeout=30)
    records = [json.loads(line) for line in out.splitlines()]
    assert [(each["event"], each["key"]) for each in records] == [
        ("put", "z"),
        ("put", "m"),
        ("put", "a"),
        ("delete", "z"),
    ]


def test_for_people_until_ctrl_c(shell: Shell, bucket: str) -> None:
    process = begin(shell)
    shell("put", "-", "box/k", data=b"12")
    assert process.stdout is not None
    line = process.stdout.readline().decode()
    assert line.endswith("  objmeta://box/k\n")
    assert line.split()[1:3] == ["put", "2"]
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130


@pytest.mark.parametrize(("arguments", "code"), [(["nobucket"], 3), (["--count", "0"], 2), (["--interval", "0"], 2)])
def test_what_cannot_be_watched(gateway: Run, arguments: list[str], code: int) -> None:
    gateway("watch", *arguments, code=code)
