"""Random schedules over the pure core: the real protocol holds, and broken variants are found."""

from __future__ import annotations

import pytest

from objmeta.testing.explorer import explore
from objmeta.testing.explorer_variants import VARIANTS

RUNS = 1000
RUNS_MAX = 2000
TOO_RARE = {
    "erase-in-spite-of-promises",
    "erase-without-floor",
    "erase-by-value",
    "erase-under-stale-configuration",
    "list-before-fence",
    "accepted-rows-only",
    "floors-not-given",
    "first-write-under-joint",
}
"""Found by random schedules once in tens of thousands of runs: the transcripts of test_mutations show these."""


def test_the_protocol_holds() -> None:
    found = {seed: broken for seed in range(RUNS) if (broken := explore(seed))}
    assert not found, f"explore(seed, trace=print) of objmeta.testing.explorer shows it: {found}"


@pytest.mark.parametrize("name", sorted(VARIANTS.keys() - TOO_RARE))
def test_a_broken_variant_is_found(name: str) -> None:
    assert any(explore(seed, VARIANTS[name]) for seed in range(RUNS_MAX)), f"{name} was not found in {RUNS_MAX} runs"


def test_the_same_seed_gives_the_same_run() -> None:
    traces: list[list[str]] = [[], []]
    for trace in traces:
        explore(7, trace=trace.append)
    assert traces[0] == traces[1]
    assert traces[0]
