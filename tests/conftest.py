"""For all tests: what a shell does to jobs in the background must not reach the processes that tests start."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest


def pytest_configure() -> None:
    """Ctrl-C is ignored by a job in the background, and by whatever it starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of stores between queries is not left in the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def make_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes a file system of so many MiB, where the machine allows to mount one."""
    with ExitStack() as mounted:

        def make(mebibytes: int) -> Path:
            path = tmp_path / f"disk of {mebibytes} MiB"
            path.mkdir()
            command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "none", str(path)]
            if subprocess.run(command, check=False).returncode:
                pytest.skip("no right to mount a small file system here")
            mounted.callback(lambda: subprocess.run(["umount", "--lazy", path], check=True))
            return path

        yield make
