"""The simulated network: requests and replies are lost, delayed, repeated and cut off, each on its own.

Which faults a run has is drawn once per seed (:meth:`Faults.draw`, "swarm testing": runs that have all faults at once
hide what few of them show), and biased to the schedules that break consensus: accepts that reach exactly a minority,
prepares that reach exactly a majority, messages that wake up long after.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from objmeta.core.ballot import Ballot
from objmeta.core.configuration import Configuration, ConfigurationTag, Membership
from objmeta.core.inventory import ChangesRequest, DigestRequest, Digests, Inventory, InventoryRequest
from objmeta.core.listing import ScanAnswer, ScanRequest
from objmeta.core.messages import Accept, Prepare, Reply, Request
from objmeta.core.quorum import majority
from objmeta.errors import Unavailable
from objmeta.interfaces import Changes, OnReplies, OnReply
from objmeta.testing.telling import tell_message

Trace = Callable[[str], None]
Answer = TypeVar("Answer")


@dataclass(slots=True)
class Faults:
    """How bad a run is. Probabilities are per message unless said otherwise; times in seconds."""

    lose_request: float = 0.0
    lose_reply: float = 0.0
    repeat: float = 0.0
    """Deliver a request twice, the second copy up to ``late_s_max`` after."""
    late: float = 0.0
    """Delay a message by up to ``late_s_max`` instead of a millisecond."""
    late_s_max: float = 1.0
    minority_accepts: float = 0.0
    """Per ballot: the accept reaches exactly the largest minority."""
    minimal_prepares: float = 0.0
    """Per ballot: the prepare reaches exactly a majority."""
    sync_s_max: float = 0.002
    chaos_interval_s: float = 0.0
    """Mean time between crashes, cuts and full disks; 0 for none."""
    crash_acceptors: bool = False
    crash_proposers: bool = False
    cut_links: bool = False
    full_disks: bool = False
    lossy_crashes: bool = False

    @staticmethod
    def draw(rng: random.Random) -> Faults:
        """The faults of one run."""
        repeat = rng.choice((0.0, 0.05, 0.2))
        return Faults(
            lose_request=rng.choice((0.0, 0.02, 0.1, 0.25)),
            lose_reply=rng.choice((0.0, 0.02, 0.1, 0.25)),
            repeat=repeat,
            late=rng.choice((0.0, 0.02, 0.1)),
            late_s_max=rng.choice((0.05, 0.5, 3.0)),
            minority_accepts=rng.choice((0.0, 0.2, 0.5)),
            minimal_prepares=rng.choice((0.0, 0.5, 0.9)),
            sync_s_max=rng.choice((0.0005, 0.005, 0.05)),
            chaos_interval_s=rng.choice((0.0, 0.05, 0.2, 0.5)),
            crash_acceptors=rng.random() < 0.6,
            crash_proposers=rng.random() < 0.5,
            cut_links=rng.random() < 0.4,
            # A repeated request may find room on a disk that was full before: then "not stored" would be no answer.
            full_disks=repeat == 0.0 and rng.random() < 0.2,
            lossy_crashes=rng.random() < 0.7,
        )


class Peer(Protocol):
    """An acceptor as the network sees it."""

    def receive(self, tag: ConfigurationTag, request: Request, answer: Callable[[Reply], None]) -> None:
        """Take a request; answer later, or never."""
        ...

    def scan(self, tag: ConfigurationTag, request: ScanRequest) -> ScanAnswer | None:
        """One page, or None when it is down."""
        ...

    def inventory(self, tag: ConfigurationTag, request: InventoryRequest) -> Inventory | None:
        """One page of what it holds, or None when it is down."""
        ...

    def digests(self, tag: ConfigurationTag, request: DigestRequest) -> Digests | None:
        """Digests of ranges, or None when it is down."""
        ...

    def changes(self, request: ChangesRequest) -> Changes | None:
        """What changed there, or None when it is down."""
        ...


class Network:
    """Carries messages between proposers and acceptors."""

    def __init__(
        self,
        configuration: Configuration,
        peers: Mapping[int, Peer],
        rng: random.Random,
        faults: Faults,
        trace: Trace | None,
    ) -> None:
        self.faults = faults
        self.cuts: set[tuple[int, int, bool]] = set()
        """(proposer, acceptor, whether it is the requests that are cut off)"""
        self.trace = trace
        self.configuration = configuration
        """The one in force when the run began."""
        self._peers = peers
        """By acceptor; the mapping is kept up to date by its owner."""
        self._rng = rng
        self._loop = asyncio.get_running_loop()
        self._reach: dict[tuple[int, int, bytes, Ballot, bool], frozenset[int]] = {}

    def heal(self) -> None:
        """From now on nothing is lost; what is late already stays late."""
        self.faults = Faults()
        self.cuts.clear()
        self._reach.clear()

    def send(self, port: Port, acceptor: int, request: Request, on_reply: OnReply) -> None:
        """Send a request, perhaps."""
        lost = self._lost(port.proposer, acceptor, True, self.faults.lose_request)
        if lost or not self._reaches(port, acceptor, request):
            self._note(port, acceptor, "x>", request)
            return
        self._note(port, acceptor, "->", request)
        answered = False
        tag = port.tag

        def deliver(reply: Reply) -> None:
            nonlocal answered
            if port.open and not answered:
                answered = True
                self._note(port, acceptor, "<=", reply)
                on_reply(acceptor, reply)

        def answer(reply: Reply) -> None:
            if self._lost(port.proposer, acceptor, False, self.faults.lose_reply):
                self._note(port, acceptor, "x<", reply)
                return
            self._loop.call_later(self.delay(), deliver, reply)

        def arrive() -> None:
            self._note(port, acceptor, "=>", request)
            self._peers[acceptor].receive(tag, request, answer)

        self._loop.call_later(self.delay(), arrive)
        if self.faults.repeat and self._rng.random() < self.faults.repeat:
            self._loop.call_later(self._rng.uniform(0.0, self.faults.late_s_max), arrive)

    async def ask(
        self, port: Port, acceptor: int, question: Callable[[Peer, ConfigurationTag], Answer | None]
    ) -> Answer:
        """Carry a question that changes nothing there and its answer back."""
        there = self._lost(port.proposer, acceptor, True, self.faults.lose_request)
        back = self._lost(port.proposer, acceptor, False, self.faults.lose_reply)
        delays = self.delay(), self.delay()
        tag = port.tag
        await asyncio.sleep(delays[0])
        answer = None if there else question(self._peers[acceptor], tag)
        await asyncio.sleep(delays[1])
        if answer is None or back or not port.open:
            raise Unavailable(f"acceptor {acceptor} cannot be reached")
        return answer

    def delay(self) -> float:
        """How long the next message takes."""
        faults = self.faults
        if faults.late and self._rng.random() < faults.late:
            return self._rng.uniform(0.0, faults.late_s_max)
        return self._rng.uniform(0.0001, 0.002)

    def _lost(self, proposer: int, acceptor: int, request: bool, probability: float) -> bool:
        if (proposer, acceptor, request) in self.cuts:
            return True
        return probability > 0 and self._rng.random() < probability

    def _reaches(self, port: Port, acceptor: int, request: Request) -> bool:
        """Biased schedules: which acceptors a ballot's prepare or accept reaches is drawn once."""
        if not isinstance(request, Prepare | Accept):
            return True
        is_accept = isinstance(request, Accept)
        bias = self.faults.minority_accepts if is_accept else self.faults.minimal_prepares
        if not bias:
            return True
        key = (port.proposer, port.tag.epoch, request.name, request.ballot, is_accept)
        reach = self._reach.get(key)
        if reach is None:
            members = port.members
            least = majority(len(members))
            size = len(members)
            if self._rng.random() < bias:
                size = size - least if is_accept else least
            reach = self._reach[key] = frozenset(self._rng.sample(members, size))
        return acceptor in reach

    def _note(self, port: Port, acceptor: int, how: str, message: Request | Reply) -> None:
        if self.trace is not None:
            name = f"{message.name.decode(errors='backslashreplace')[-3:]} " if hasattr(message, "name") else ""
            self.trace(f"P{port.proposer} {how} A{acceptor} {name}{tell_message(message)}")


class Port:
    """One life of a proposer on the network; satisfies :class:`objmeta.interfaces.Transport`."""

    def __init__(self, network: Network, proposer: int) -> None:
        self.proposer = proposer
        self.open = True
        self.tag = network.configuration.tag
        self.members = network.configuration.quorums.members
        self._network = network

    def send(self, acceptor: int, request: Request, on_reply: OnReply) -> None:
        if self.open:
            self._network.send(self, acceptor, request, on_reply)

    def send_all(self, acceptor: int, requests: Sequence[Request], on_replies: OnReplies) -> None:
        """Each has a fate of its own here, which is worse than what happens to messages that hold several."""

        def answered(place: int, _: int, reply: Reply) -> None:
            on_replies(acceptor, [(place, reply)])

        for place, request in enumerate(requests):
            self.send(acceptor, request, functools.partial(answered, place))

    def adopt(self, membership: Membership) -> None:
        self.tag = membership.configuration.tag
        self.members = membership.configuration.quorums.members

    async def scan(self, acceptor: int, request: ScanRequest) -> ScanAnswer:
        return await self._network.ask(self, acceptor, lambda peer, tag: peer.scan(tag, request))

    async def inventory(self, acceptor: int, request: InventoryRequest) -> Inventory:
        return await self._network.ask(self, acceptor, lambda peer, tag: peer.inventory(tag, request))

    async def digests(self, acceptor: int, request: DigestRequest) -> Digests:
        return await self._network.ask(self, acceptor, lambda peer, tag: peer.digests(tag, request))

    async def changes(self, acceptor: int, request: ChangesRequest) -> Changes:
        return await self._network.ask(self, acceptor, lambda peer, tag: peer.changes(request))
