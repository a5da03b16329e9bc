"""The first write of a register in one round trip (PROTOCOL, "First writes in one round trip").

Theory of operation.  The zero ballot ``(0, epoch, home)`` lies below every ballot that is drawn, so nothing can have
been chosen below it and phase one would learn nothing.  It is one ballot with one value (rule 1) because of who uses it
and when: only the register's home, only in a configuration that is not joint, and only after the home's own acceptor
took the value as its first, durably.  That acceptor takes one value at most under it (rule 2), also over restarts and
with several processes in front of it.  To the other acceptors it is an accept like any other: a row, a promise or a
floor refuses it.

A register that is not new costs one step at the home's own acceptor, which refuses; then an ordinary round follows.
"""

from __future__ import annotations

from collections.abc import Sequence

from objmeta.core.ballot import Ballot
from objmeta.core.change import Change, Keep
from objmeta.core.messages import Accept, Accepted, Fence, Record, Refused, Reply
from objmeta.core.proposer import WHOLE_OPERATION, Denied, Done, Effect, Finish, Lost, NotFirst, Send
from objmeta.core.quorum import Quorums


class FirstWrite:
    """One attempt to write a register nobody has touched; driven like :class:`~objmeta.core.proposer.Round`."""

    __slots__ = ("_accept", "_home", "_over", "_quorums", "_record", "_refusals", "_spread", "_votes", "ballot")

    def __init__(
        self,
        quorums: Quorums,
        epoch: int,
        home: int,
        name: bytes,
        change: Change,
        *,
        fence: Fence | None = None,
        generation: int = 0,
    ) -> None:
        self.ballot = Ballot(0, epoch, home)
        self._quorums = quorums
        self._home = home
        self._votes: set[int] = set()
        self._refusals: dict[int, Refused] = {}
        self._spread = False
        self._over = False
        self._accept: Accept | None = None
        self._record: Record | None = None
        decision = change.apply(name, None, 0)
        if not isinstance(decision, Keep):
            self._record = decision.records[-1] if decision.records else None
            self._accept = Accept(name, self.ballot, decision.state, decision.records, fence, generation)

    def start(self) -> Sequence[Effect]:
        """Propose to the home's own acceptor, and to nobody else yet."""
        if self._accept is None:
            return self._finish(NotFirst(self.ballot))
        return (Send((self._home,), self._accept),)

    def on_reply(self, acceptor: int, reply: Reply) -> Sequence[Effect]:
        """Take one reply."""
        if self._over:
            return ()
        if not isinstance(reply, Accepted):
            return self._refused(acceptor, reply) if isinstance(reply, Refused) else ()
        if reply.ballot != self.ballot:
            return ()
        self._votes.add(acceptor)
        if self._quorums.is_quorum(self._votes):
            assert self._accept is not None
            return self._finish(Done(self.ballot, self._accept.state, True, "", self._record))
        if self._spread or acceptor != self._home:
            return ()
        assert self._accept is not None
        self._spread = True
        return (Send(tuple(a for a in self._quorums.members if a != self._home), self._accept),)

    def on_stragglers_late(self) -> Sequence[Effect]:
        """Never asked for."""
        return ()

    def on_timeout(self) -> Sequence[Effect]:
        """No quorum in time; the home may hold the value, so somebody may yet choose it."""
        return () if self._over else self._finish(Lost(self.ballot, True))

    def _refused(self, acceptor: int, reply: Refused) -> Sequence[Effect]:
        if acceptor in self._votes or reply.ballot != self.ballot:
            return ()
        self._refusals[acceptor] = reply
        if not self._spread:
            if reply.reason in WHOLE_OPERATION:
                return self._finish(Denied(reply.reason, False, reply.detail))
            return self._finish(NotFirst(reply.greatest))
        if self._quorums.possible_without(self._refusals):
            return ()
        whole = [r for r in self._refusals.values() if r.reason in WHOLE_OPERATION]
        if whole:
            return self._finish(Denied(whole[0].reason, True, whole[0].detail))
        return self._finish(Lost(max(r.greatest for r in self._refusals.values()), True))

    def _finish(self, outcome: Done | Lost | Denied | NotFirst) -> Sequence[Effect]:
        self._over = True
        return (Finish(outcome),)
