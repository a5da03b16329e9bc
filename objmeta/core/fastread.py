"""The fast read: an answer as soon as an accept quorum shows one accepted ballot (rule 4).

It promises nothing and writes nothing, so it costs one round trip without a sync and disturbs nobody.  It cannot settle
whether an earlier change applied: only a completed round with a higher ballot can.
"""

from __future__ import annotations

import enum

from objmeta.core.ballot import ZERO, Ballot
from objmeta.core.messages import Found, Refused, State
from objmeta.core.quorum import Quorums


class Reading(enum.Enum):
    """What is known after the answers so far."""

    OPEN = enum.auto()
    """More answers may decide it."""
    SPLIT = enum.auto()
    """A quorum has answered without agreeing, and an answer that may decide it is still out."""
    DECIDED = enum.auto()
    """``state`` of the :class:`FastRead` is the answer, chosen under ``ballot``."""
    DIVIDED = enum.auto()
    """No accept quorum can agree any more: read by a full round."""


class FastRead:
    """Collects the answers to one fast read of one register."""

    __slots__ = ("_answers", "_quorums", "_refused", "ballot", "state")

    def __init__(self, quorums: Quorums) -> None:
        self._quorums = quorums
        self._answers: dict[Ballot, list[int]] = {}
        self._refused: set[int] = set()
        self.state: State | None = None
        self.ballot = ZERO

    def on_reply(self, acceptor: int, reply: Found | Refused) -> Reading:
        """Take one answer; an acceptor's second answer is not counted."""
        if acceptor in self._refused or any(acceptor in seen for seen in self._answers.values()):
            return Reading.OPEN
        if isinstance(reply, Refused):
            self._refused.add(acceptor)
        else:
            agreeing = self._answers.setdefault(reply.accepted, [])
            agreeing.append(acceptor)
            if self._quorums.is_quorum(agreeing):
                self.state = reply.state
                self.ballot = reply.accepted
                return Reading.DECIDED
        answered = {a for seen in self._answers.values() for a in seen}
        if len(answered) + len(self._refused) == len(self._quorums.members):
            return Reading.DIVIDED
        best = max(self._answers.values(), key=len, default=[])
        if not self._quorums.possible_without((answered - set(best)) | self._refused):
            return Reading.DIVIDED
        return Reading.SPLIT if self._quorums.is_quorum(answered) else Reading.OPEN
