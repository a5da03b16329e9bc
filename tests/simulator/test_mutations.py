"""Every broken variant of the protocol is caught: by biased seeds and, where one is kept, by a directed schedule."""

from __future__ import annotations

from pathlib import Path

import pytest

from objmeta.testing.mutations import MUTATIONS
from objmeta.testing.sim import SAFETY, replay_command, run_seed
from objmeta.testing.transcripts import Transcript

SEEDS_MAX = 2000
TRANSCRIPTS = Path(__file__).with_name("transcripts")
BEYOND_A_TRANSCRIPT = {"reply-before-sync", "unknown-as-failed"}
"""What is broken lies outside of rounds and acceptor steps, which is all that a transcript drives."""

BROKEN_BY_HAND = {"promise-not-durable", "dead-too-early"}
"""The transcript itself does what is wrong, by a command."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", sorted(MUTATIONS))
def test_a_broken_variant_is_caught_by_seeds(name: str) -> None:
    for seed in range(SEEDS_MAX):
        report = run_seed(seed, MUTATIONS[name])
        if report.failure:
            assert report.failure == SAFETY, f"{report.message}; {replay_command(seed, MUTATIONS[name])}"
            return
    pytest.fail(f"{name} was not caught within {SEEDS_MAX} seeds")


@pytest.mark.parametrize("name", sorted(MUTATIONS.keys() - BEYOND_A_TRANSCRIPT))
def test_a_broken_variant_is_caught_by_a_directed_schedule(name: str) -> None:
    text = (TRANSCRIPTS / f"{name}.txt").read_text()
    fresh = Transcript().run(text)
    assert fresh == text
    assert "VIOLATION" in fresh


@pytest.mark.parametrize("name", sorted(MUTATIONS.keys() - BEYOND_A_TRANSCRIPT - BROKEN_BY_HAND))
def test_the_same_schedule_breaks_nothing_in_the_real_protocol(name: str) -> None:
    text = (TRANSCRIPTS / f"{name}.txt").read_text()
    real = "\n".join(line for line in text.splitlines() if not line.startswith(("variant", " ")))
    assert "VIOLATION" not in Transcript().run(real)


@pytest.mark.parametrize("name", ["short-quorum", "reply-before-sync", "no-version-check", "failure-not-written-back"])
def test_what_clients_saw_is_enough_to_catch_it(name: str) -> None:
    """Without the observer who sees inside: by linearizability alone."""
    for seed in range(SEEDS_MAX):
        report = run_seed(seed, MUTATIONS[name], watchful=False)
        if report.failure:
            assert report.failure == SAFETY
            return
    pytest.fail(f"{name} was not caught within {SEEDS_MAX} seeds by what clients saw")
