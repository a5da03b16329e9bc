"""The transcripts of the README and the guide run as they are printed; only ids, times and digests may differ.

Blocks marked ``console`` hold commands after ``$``, blocks marked ``python`` hold statements after ``>>>``. All of them
share one store, one working directory and one Python session, from the top of the page to its end.
"""

from __future__ import annotations

import contextlib
import doctest
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.errors import EXIT_CODES

ROOT = Path(__file__).parents[1]
_ID = re.compile(r"\b[0-9a-f]{32}\b")
_CHANGING = (
    (re.compile(r"\b[0-9a-f]{64}\b"), "<digest>"),
    (_ID, "<id>"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|\+00:00)?"), "<time>"),
)


def normal(text: str) -> str:
    """The text with everything that differs from run to run taken out."""
    for pattern, name in _CHANGING:
        text = pattern.sub(name, text)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """(language, text) of each block, in order."""
    yield from re.findall(r"^```(console|python)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


class Shell:
    """Runs commands; ids in later commands are replaced by those that this run gave in their place."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self._directory = directory
        self._environment = environment
        self._ids: dict[str, str] = {}

    def run(self, block: str) -> None:
        """Run a block and compare."""
        for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
            actual = subprocess.run(
                ["/bin/sh", "-c", _ID.sub(lambda found: self._ids[found.group()], command)],
                cwd=self._directory,
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=60,
                check=False,
            ).stdout
            assert normal(actual) == normal(expected), command
            self._ids.update(zip(_ID.findall(expected), _ID.findall(actual), strict=True))


class _Checker(doctest.OutputChecker):
    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return super().check_output(normal(want), normal(got), optionflags)


def run_python(page: Path, block: str, session: dict[str, Any]) -> None:
    """Run the statements of a block and compare."""
    test = doctest.DocTestParser().get_doctest(block, session, page.stem, str(page), 0)
    test.globs = session
    said: list[str] = []
    runner = doctest.DocTestRunner(checker=_Checker(), verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    failed = runner.run(test, out=said.append, clear_globs=False).failed
    assert not failed, "".join(said)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore:The inplace keyword:DeprecationWarning")  # dask's, not ours
@pytest.mark.parametrize("name", ["README.md", "docs/guide.md"])
def test_the_transcripts(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / name
    for variable in [variable for variable in os.environ if variable.startswith("OBJMETA_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("OBJMETA_HOME", str(tmp_path / "store"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    shell = Shell(tmp_path, dict(os.environ))
    session: dict[str, Any] = {}
    languages = set()
    try:
        for language, block in blocks(page):
            languages.add(language)
            if language == "console":
                shell.run(block)
            else:
                run_python(page, block, session)
    finally:
        if "client" in session:
            session["client"].close()
        started = tmp_path / "dev.pid"  # the guide's own cluster, which it stops itself unless something failed
        if started.exists():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(started.read_text()), signal.SIGTERM)
    assert languages == {"console", "python"}


def test_exit_codes() -> None:
    told = re.findall(r"^\| (\d+) \| (.*) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert {int(code): meaning for code, meaning in told} == EXIT_CODES
