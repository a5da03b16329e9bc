"""The protocol under random faults: 2,000 seeds, all of them green, none skipped."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from objmeta.testing import sim

QUICK = 100
ALL = 2000


def _run(seeds: range, jobs: int) -> None:
    reports = list(sim.run_many(seeds, jobs=jobs))
    failures = [f"{r.seed}: {r.failure}: {r.message}; {sim.replay_command(r.seed)}" for r in reports if r.failure]
    assert not failures, "\n".join(failures)
    assert [report.seed for report in reports] == list(seeds)
    # A run that does nothing proves nothing.
    assert sum(report.writes for report in reports) > 10 * len(seeds)
    assert sum(report.answered for report in reports) > 20 * len(seeds)
    assert sum(report.undecided for report in reports) <= len(seeds) // 100
    assert sum(report.changes for report in reports) > len(seeds) // 40
    assert sum(report.erased for report in reports) > len(seeds) // 8


@pytest.mark.timeout(300)
def test_a_few_seeds() -> None:
    _run(range(QUICK), 1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_thousand_seeds() -> None:
    _run(range(QUICK, QUICK + ALL), min(2, os.cpu_count() or 1))


def test_the_same_seed_gives_the_same_trace_whatever_the_hash_seed() -> None:
    program = "from objmeta.testing.sim import digest_of; print([digest_of(seed) for seed in range(12)])"
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2", "3")
    }
    assert len(digests) == 1


def test_different_seeds_give_different_traces() -> None:
    assert len({sim.digest_of(seed) for seed in range(8)}) == 8


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert sim.main(["--seed", "3"]) == 0
    assert "1 seeds, 0 failed" in capsys.readouterr().out
    assert sim.main(["--seed", "3", "--trace"]) == 0
    assert " heal" in capsys.readouterr().out
    assert sim.main(["--seeds", "3", "--start", "0", "--jobs", "1", "--mutation", "short-quorum"]) == 1
    output = capsys.readouterr().out
    assert "safety" in output
    assert "replay: python -m objmeta.testing.sim --seed 0 --mutation short-quorum --trace" in output
