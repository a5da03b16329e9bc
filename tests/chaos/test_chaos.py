"""A short run of real processes with all faults; and that its check can fail."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import history
from tests.chaos.checker import check
from tests.chaos.faults import FAULTS
from tests.chaos.history import CHANGE, FAIL, GET, OK, PUT, Operation

SECONDS = 8
TIMEOUT_S = 240
"""It takes 20 s on two free cores; this is for busy ones."""


def lose_a_write(operations: list[Operation]) -> None:
    """The last look at a key finds nothing, although a write was acknowledged or seen."""
    last_look(operations).result = {"value": None}


def show_an_old_value(operations: list[Operation]) -> None:
    """A value is found after another one was written over it."""
    look = last_look(operations)
    append(operations, look, PUT, {"value": "0-1"}, {})
    append(operations, look, GET, {}, {"value": look.result["value"]})


def replace_twice(operations: list[Operation]) -> None:
    """Two changes replace the same value."""
    look = last_look(operations)
    for value in ("0-1", "0-2"):
        append(operations, look, CHANGE, {"value": value}, {"previous": look.result["value"]})


def show_what_failed(operations: list[Operation]) -> None:
    """A write whose value was seen is said to have failed."""
    seen = last_look(operations).result["value"]
    write = next(operation for operation in operations if operation.value == seen)
    write.outcome, write.result = FAIL, {"error": "no_quorum"}


def last_look(operations: list[Operation]) -> Operation:
    """The last look at any key that found a value."""
    return next(o for o in reversed(operations) if o.kind == GET and o.result.get("value") is not None)


def append(
    operations: list[Operation], like: Operation, kind: str, argument: dict[str, Any], result: dict[str, Any]
) -> None:
    """One more operation on the same key, after all others."""
    end = max(operation.returned or 0.0 for operation in operations)
    made = Operation(id=f"0-{len(operations)}", client=0, key=like.key, kind=kind, argument=argument, called=end + 1)
    made.returned, made.outcome, made.result = end + 2, OK, result
    operations.append(made)


DOCTORS = (lose_a_write, show_an_old_value, replace_twice, show_what_failed)


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S + 30)
def test_promises_are_kept_under_all_faults_and_a_doctored_history_shows(tmp_path: Path) -> None:
    told = tmp_path / "history.jsonl"
    command = [sys.executable, "-m", "tests.chaos", "--seconds", str(SECONDS), "--seed", "3"]
    command += ["--directory", str(tmp_path), "--history", str(told)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (faults,) = [line for line in done.stdout.splitlines() if line.startswith("faults: ")]
    assert all(f" {name}" in faults for name in FAULTS), faults
    (changed,) = [line for line in done.stdout.splitlines() if line.startswith("the members were changed ")]
    assert int(changed.split()[4]) > 0
    operations = history.read([told])
    verdict = check(operations)
    assert verdict.violations == []
    assert len(verdict.undecided) <= verdict.registers // 20
    assert sum(operation.outcome == OK for operation in operations) > 30
    for doctor in DOCTORS:
        doctored = copy.deepcopy(operations)
        doctor(doctored)
        assert check(doctored).violations, doctor.__doc__


def test_a_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    put = Operation(id="1-1", client=1, key="k", kind=PUT, argument={"value": "1-1"}, called=1.5)
    get = Operation(id="2-1", client=2, key="k", kind=GET, argument={}, called=1.25, returned=2.0, outcome=OK)
    get.result = {"value": None}
    file = tmp_path / "history"
    history.write([put, get], file)
    assert history.read([file]) == [get, put]
    with file.open("a") as torn:
        torn.write('{"event": "ca')
    assert history.read([file]) == [get, put]
    file.write_text('{"event": "return", "id": "9-9"}\n')
    with pytest.raises(ValueError, match="line 1"):
        history.read([file])


def test_wrong_options_are_refused() -> None:
    command = [sys.executable, "-m", "tests.chaos", "--faults", "kill,gremlins"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 2
    assert "gremlins" in done.stderr
