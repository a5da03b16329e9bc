"""Two ways to run ``gateway``: in this process, which is quick, and as a process, which is the real thing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import gateway as gateway_package
from gateway.cli.app import run

ROOT = Path(gateway_package.__file__).parents[1]
PATIENCE_S = 30.0
"""What ends within a second or two, unless it hangs; much more, as the machine may be busy with other things."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it printed."""

    code: int
    raw: bytes
    err: str

    @property
    def out(self) -> str:
        return self.raw.decode()

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


Run = Callable[..., Outcome]


class Shell:
    """Runs ``python -m gateway`` with its own home; whatever was started is stopped at the end."""

    def __init__(self, home: Path, directory: Path) -> None:
        self.home = home
        self.directory = directory
        self.started: list[subprocess.Popen[bytes]] = []

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("OBJMETA", "FSSPEC"))}
        return kept | {
            "OBJMETA_HOME": str(self.home),
            "XDG_CONFIG_HOME": str(self.home.parent / "config"),
            "PYTHONPATH": str(ROOT),
            **more,
        }

    def start(self, *arguments: str, env: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[bytes]:
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process: subprocess.Popen[bytes] = subprocess.Popen(
            [sys.executable, "-m", "gateway", *arguments],
            env=self.environment(**(env or {})),
            cwd=self.directory,
            text=False,
            **streams | options,
        )
        self.started.append(process)
        return process

    def __call__(
        self, *arguments: str, data: bytes = b"", code: int = 0, env: dict[str, str] | None = None, timeout: float = 60
    ) -> Outcome:
        process = self.start(*arguments, env=env, stdin=subprocess.PIPE)
        out, err = process.communicate(data, timeout=timeout)
        outcome = Outcome(process.returncode, out, err.decode())
        check(outcome, code)
        return outcome

    def stop_all(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)  # first politely: some have processes of their own to stop
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


def check(outcome: Outcome, code: int) -> None:
    assert "Traceback" not in outcome.err, outcome.err
    assert outcome.code == code, f"exit code {outcome.code} instead of {code}\n{outcome.out}\n{outcome.err}"
    if code not in (0, 141):
        assert outcome.err.startswith(("gateway: ", "{")), outcome.err


def eventually(condition: Callable[[], bool], deadline_s: float = 20) -> None:
    """Wait for a condition."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.01)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """``gateway`` as a process."""
    directory = tmp_path / "work"
    directory.mkdir(exist_ok=True)
    made = Shell(tmp_path / "home", directory)
    yield made
    made.stop_all()


@pytest.fixture
def gateway(shell: Shell, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """``gateway`` in this process, on the same store and in the same directory as ``shell``."""
    for name in list(os.environ):
        if name.startswith(("OBJMETA", "FSSPEC")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OBJMETA_HOME", str(shell.home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(shell.home.parent / "config"))
    monkeypatch.chdir(shell.directory)

    def call(*arguments: str, code: int = 0) -> Outcome:
        capfdbinary.readouterr()
        result = run(arguments)
        captured = capfdbinary.readouterr()
        outcome = Outcome(result, captured.out, captured.err.decode())
        check(outcome, code)
        return outcome

    return call


@pytest.fixture
def bucket(gateway: Run) -> str:
    """A bucket named ``box``."""
    gateway("mb", "box")
    return "box"
