"""The suites of other projects are collected whole: a case that vanishes in silence is seen here."""

from __future__ import annotations

import collections
import os
import subprocess
import sys

CASES = {
    "test_fsspec_abstract.py": 137,  # fsspec 2026.9
    "test_pyarrow_fs.py": 36,  # pyarrow 26.0
    "test_zarr.py": 73,  # zarr 3.1
}
"""Cases of others, by file. Another number means that a suite changed: look at what is new, then write it here."""


def test_every_case_is_collected() -> None:
    here = os.path.dirname(__file__)
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    files = [os.path.join(here, name) for name in CASES]
    listed = subprocess.run([*command, *files], capture_output=True, text=True, check=True).stdout
    cases = [line.partition("::") for line in listed.splitlines()]
    found = collections.Counter(os.path.basename(file) for file, _, case in cases if case.startswith("TestSuite"))
    assert found == CASES
