"""Every example runs, in a process and a store of its own, and says what it should."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

SAYS = {
    "quickstart.py": [
        "now:    b'Bonjour'",
        "before: b'Hello'",
        "refused: precondition_failed",
        "version 4: 7 bytes",
        "version 3: delete marker",
        "this example has run 1 times on this store",
    ],
    "pandas_roundtrip.py": ["11.5", "[-1.5, 0.5]", "['by-city', 'weather.csv', 'weather.parquet']"],
    "duckdb_manifests.py": ["logs/a.log         2       10  me", "(0, 334, 166833)"],
    "local_files.py": ["(334, 166833)", "999", "the old version: (1000,)", "kept: 2 files"],
    "polars_scan.py": ["shape: (3, 2)", "as it was: 1000 rows"],
    "cluster.py": [
        "one of three nodes is gone",
        "0 puts failed",
        "100 objects listed by the two others",
        "quorum: True",
    ],
    "demo.py": ["2 files, 0.1 MB", "the same, byte for byte", "both read back equal", "2 versions; newest first"],
}


def run(name: str, home: Path, *arguments: str) -> str:
    """What an example printed."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OBJMETA_")}
    environment["OBJMETA_HOME"] = str(home / "store")
    finished = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "examples" / name), *arguments],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def test_every_example_is_run() -> None:
    assert SAYS.keys() == {path.name for path in (ROOT / "examples").glob("*.py")}


@pytest.mark.parametrize("name", SAYS)
def test_example(name: str, tmp_path: Path) -> None:
    arguments = []
    if name == "demo.py":
        tree = tmp_path / "tree"
        (tree / "empty").mkdir(parents=True)
        (tree / "empty" / "file").touch()
        (tree / "with space").write_bytes(b"x" * 100_000)
        (tree / "link").symlink_to("with space")
        arguments = [str(tree)]
    said = run(name, tmp_path, *arguments)
    for line in SAYS[name]:
        assert line in said, said


def test_quickstart_runs_again(tmp_path: Path) -> None:
    run("quickstart.py", tmp_path)
    assert "has run 2 times" in run("quickstart.py", tmp_path)
