"""Arithmetic of majorities, and nothing else.

A configuration holds one set of members normally and two while it is joint (old and new); a quorum is a majority of
every set in force, for both phases.  So any two quorums of one configuration share an acceptor.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable


def majority(size: int) -> int:
    """The least number of members that is more than half of ``size``."""
    return size // 2 + 1


class Quorums:
    """Which sets of acceptors may decide."""

    __slots__ = ("_majorities", "members")

    def __init__(self, member_sets: Iterable[Iterable[int]]) -> None:
        sets = [frozenset(members) for members in member_sets]
        if not sets or not all(sets):
            raise ValueError("a quorum needs at least one member set and no empty one")
        self._majorities = tuple((members, majority(len(members))) for members in sets)
        self.members: tuple[int, ...] = tuple(sorted(frozenset().union(*sets)))

    @property
    def is_joint(self) -> bool:
        """Whether there are two member sets, the old and the new."""
        return len(self._majorities) > 1

    def is_quorum(self, acceptors: Collection[int]) -> bool:
        """Whether ``acceptors`` hold a majority of every member set."""
        for members, least in self._majorities:  # noqa: SIM110  (asked with every vote; a generator costs more)
            if len(members.intersection(acceptors)) < least:
                return False
        return True

    def possible_without(self, acceptors: Collection[int]) -> bool:
        """Whether a quorum can still be formed when ``acceptors`` give no vote."""
        return all(len(members.difference(acceptors)) >= least for members, least in self._majorities)
