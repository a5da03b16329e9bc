"""Locks under random faults, with clocks that differ and processes that are paused anywhere; and broken ones caught."""

from __future__ import annotations

import pytest

from objmeta.testing import leasework
from objmeta.testing.leasework import BROKEN, LIVENESS, SAFETY, VARIANTS, run_seed

QUICK = 80
ALL = 1500
SEEDS_MAX = 1000
RARE = {"believes-the-unknown", "counts-from-the-question"}
"""What takes a hundred seeds or more to show."""


def _run(seeds: range) -> None:
    reports = [run_seed(seed) for seed in seeds]
    failures = [
        f"{report.failure}: {report.message}; python -m objmeta.testing.leasework --seed {report.seed} --trace"
        for report in reports
        if report.failure
    ]
    assert not failures, "\n".join(failures)
    # A run in which nobody gets or loses a lock proves nothing.
    assert sum(report.acquired for report in reports) > 5 * len(seeds)
    assert sum(report.acts for report in reports) > 5 * len(seeds)
    assert sum(report.lost for report in reports) > len(seeds) / 2


def test_a_few_seeds() -> None:
    _run(range(QUICK))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_seeds() -> None:
    _run(range(QUICK, QUICK + ALL))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in RARE)) for name in BROKEN])
def test_a_broken_lock_is_caught(name: str) -> None:
    for seed in range(SEEDS_MAX):
        report = run_seed(seed, VARIANTS[name])
        if report.failure:
            assert report.failure == SAFETY, report.message
            return
    pytest.fail(f"{name} was not caught within {SEEDS_MAX} seeds")


def test_the_same_seed_gives_the_same_trace() -> None:
    traces: list[list[str]] = []
    for _ in range(2):
        trace: list[str] = []
        run_seed(5, trace=trace.append)
        traces.append(trace)
    assert traces[0] == traces[1]
    assert any("took the lock" in line for line in traces[0])


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert leasework.main(["--seeds", "2"]) == 0
    assert "2 seeds, 0 failed" in capsys.readouterr().out
    assert leasework.main(["--seed", "0", "--variant", "token-stays", "--trace"]) == 1
    shown = capsys.readouterr().out
    assert " took the lock with token " in shown
    assert f"seed 0: {SAFETY}" in shown
    assert LIVENESS not in shown
