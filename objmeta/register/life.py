"""A new life of a proposer: ballots nobody has drawn (PROTOCOL rule 6)."""

from __future__ import annotations

import os
import time

from objmeta.core.ballot import BallotSource


def new_ballots() -> BallotSource:
    """Ballots for this start of this process; after a fork, the child needs ballots of its own.

    Proposer id and incarnation are 64 random bits each.  The counter starts at the clock in milliseconds, so that a
    process which lives shortly seldom loses its first round to the ballots of those before it.  That is a hint: a wrong
    clock costs a round trip, never safety.
    """
    identity = os.urandom(16)
    return BallotSource(
        int.from_bytes(identity[:8]), int.from_bytes(identity[8:]), counter_hint=time.time_ns() // 1_000_000
    )
