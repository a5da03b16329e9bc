"""The specification in docs/spec: the checker is run on small bounds, and its table tells what is checked."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SPEC = Path(__file__).parents[1] / "docs" / "spec"
LACKING = [tool for tool in ("spin", "cc") if shutil.which(tool) is None]


def runs() -> dict[str, tuple[str, str, str]]:
    """What runs.txt says: expected outcome, size and flags, by name."""
    lines = [line for line in (SPEC / "runs.txt").read_text().splitlines() if line and not line.startswith("#")]
    split = [line.split(maxsplit=3) for line in lines]
    return {name: (expected, size, flags) for name, expected, size, flags in split}


@pytest.mark.skipif(bool(LACKING), reason=f"not installed: {', '.join(LACKING)} (Debian packages spin and gcc)")
@pytest.mark.parametrize("name", ["core-small", "change-acd", "erase-promised", "no-copy", "zero-under-joint"])
def test_the_rules_hold_and_broken_ones_do_not(name: str) -> None:
    expected = runs()[name][0]
    quick = os.environ | {"CFLAGS": "-O0"}  # what is compiled runs shorter than an optimising compiler
    done = subprocess.run([SPEC / "check.sh", name], env=quick, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = done.stdout.splitlines()[-1].split()
    assert told[:3] == [name, expected, expected]
    assert int(told[3]) > 1_000, "hardly any state was visited"


def test_every_broken_variant_is_run_and_every_run_is_told() -> None:
    model = (SPEC / "register.pml").read_text()
    switches = set(re.findall(r"\bBROKEN_\w*[A-Z]\b", model))
    run = {flag for _, _, flags in runs().values() for flag in re.findall(r"-D(BROKEN_\w+)", flags)}
    assert switches == run
    told = re.findall(r"^\| `([\w-]+)` \|", (SPEC / "README.md").read_text(), re.MULTILINE)
    assert told == list(runs())
