"""Ballots: the total order of all rounds on one register (PROTOCOL rule 6)."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

_PACKED: Final = struct.Struct(">QQQ")


class Ballot(NamedTuple):
    """An immutable round number, ordered field by field.

    ``counter`` only grows; ``proposer`` names who drew it; ``incarnation`` is drawn afresh (64 random bits) at every
    start and after every fork, so no two lives of a proposer can ever draw the same ballot.  Each field is an unsigned
    64-bit integer, which leaves room for the zero ballots ``(0, epoch, home)`` of first writes in one round trip.
    """

    counter: int
    proposer: int
    incarnation: int

    def pack(self) -> bytes:
        """24 bytes whose lexicographic order is the order of ballots."""
        return _PACKED.pack(*self)

    @staticmethod
    def unpack(packed: bytes) -> Ballot:
        """The inverse of :meth:`pack`."""
        return Ballot(*_PACKED.unpack(packed))


ZERO: Final = Ballot(0, 0, 0)
"""Below every ballot a proposer can draw: what a register nobody has touched reports."""


_MENDING_LEAP: Final = 10_000


def mending_ballot(greatest: Ballot) -> Ballot:
    """A ballot well above the greatest that an acceptor ever promised, for whoever mends a row that is damaged there.

    Nothing lower replaces that row, and by the time the next one arrives other registers' ballots have gone on.
    """
    return greatest._replace(counter=greatest.counter + _MENDING_LEAP)


class BallotSource:
    """Draws ballots for one life of one proposer: each higher than all it drew or saw before (rule 6)."""

    __slots__ = ("_counter", "_incarnation", "_proposer")

    def __init__(self, proposer: int, incarnation: int, counter_hint: int = 0) -> None:
        self._proposer = proposer
        self._incarnation = incarnation
        self._counter = counter_hint

    def next(self) -> Ballot:
        """A ballot never drawn before."""
        self._counter += 1
        return Ballot(self._counter, self._proposer, self._incarnation)

    def saw(self, ballot: Ballot) -> None:
        """Jump past a ballot seen anywhere, so that the next one drawn is above it."""
        self._counter = max(self._counter, ballot.counter)
