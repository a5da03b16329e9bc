"""Random schedules over the pure core alone: one register, a few acceptors, messages in any order.

Theory of operation.  Nothing here has a clock, a disk or an engine.  Acceptors are tables that the real steps run
over; clients, erasers and coordinators of a change of members (:mod:`objmeta.testing.explorer_work`) are generators
that send requests and are given replies; every message waits in one bag, from which the schedule draws at random, so
that whatever can be reordered, repeated or lost is.  A run takes about a millisecond and has erasure, a change of
members, first writes and late copies of operations at once; the full simulator (:mod:`objmeta.testing.world`) has
everything else.

Each operation has an id of one byte and appends it to the value, so a value tells its whole history, and the observer
(:mod:`objmeta.testing.explorer_watch`) sees every acceptor.  Checked: one value per ballot; chosen values build on one
another by ballot, and on nothing only after a tombstone; no id takes effect twice; and what clients were told fits the
one chain there is.  Registers that decide about the others (``~config``, ``~g/generation``) are plain variables here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import Final

from objmeta.core.ballot import Ballot, BallotSource
from objmeta.core.configuration import OUTSIDE, Configuration, ConfigurationTag, Membership
from objmeta.core.home import home_of
from objmeta.core.messages import Accept, Accepted, Adopted, Prepare, Reply, Request
from objmeta.core.proposer import Round
from objmeta.store.steps import answer
from objmeta.testing import explorer_work as work
from objmeta.testing.checkers import Violation
from objmeta.testing.disk import Table
from objmeta.testing.explorer_variants import REAL, Variant
from objmeta.testing.explorer_watch import Observer, Told
from objmeta.testing.telling import tell_message

STORE_ID: Final = bytes(16)
STEPS_MAX: Final = 700
"""A run that is still busy then is cut off; that is no failure."""

Event = tuple[int, Reply] | None
"""What a process is given: an acceptor and its reply, or None when it is tired of waiting."""
Work = Generator[None, Event, None]

MEMBER_CHANGES: Final[tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]] = (
    ((1, 2, 3), (1, 3, 4)),
    ((1, 2, 3), (1, 2, 3, 4)),
    ((1, 2, 3), (2, 3)),
    ((1,), (1, 2, 3)),
    ((1, 2), (3, 4)),
    ((1, 2, 3), (2, 3, 4)),
)


@dataclass(slots=True, eq=False)
class Process:
    """Something that sends and waits. Replies to what it sent under an older ``serial`` are not given to it."""

    membership: Membership
    ballots: BallotSource
    rounds: Callable[..., Round] = Round
    own: int = 0
    """The acceptor that stands beside it, 0 for none: for first writes."""
    touched: bool = False
    is_copy: bool = False
    serial: int = 0
    work: Work | None = None


@dataclass(slots=True)
class Message:
    """On its way to an acceptor (``reply`` None), or back."""

    process: Process
    serial: int
    acceptor: int
    tag: ConfigurationTag
    request: Request
    reply: Reply | None = None


@dataclass(frozen=True, slots=True)
class Bias:
    """Which faults and which schedules one run has; drawn once."""

    lose: float
    repeat: float
    held: float
    """How often a message is put aside until nothing else is left, or for long."""
    minority_accepts: float
    minimal_prepares: float
    tired: float
    oldest: float
    """How often the oldest message is taken rather than any."""
    copies: float
    """How often an operation is asked for again under its id, by somebody else and later."""
    copies_last: float
    """How often such a copy comes after everything else."""
    jumps: float
    """How often a proposer's counter runs ahead."""
    calls: int
    deletes: float
    changes_at: tuple[int, ...]
    """When coordinators begin, in steps."""
    erases_at: tuple[int, ...]

    @staticmethod
    def draw(rng: random.Random) -> Bias:
        """The bias of one run."""
        times = (0, 10, 60, 150)
        return Bias(
            lose=rng.choice((0.0, 0.0, 0.05, 0.15)),
            repeat=rng.choice((0.0, 0.05, 0.2)),
            held=rng.choice((0.0, 0.05, 0.2)),
            minority_accepts=rng.choice((0.0, 0.3, 0.6)),
            minimal_prepares=rng.choice((0.0, 0.5, 0.9)),
            tired=rng.choice((0.01, 0.03, 0.1)),
            oldest=rng.choice((0.0, 0.3, 0.8)),
            copies=rng.choice((0.0, 0.3, 0.6)),
            copies_last=rng.choice((0.0, 0.5)),
            jumps=rng.choice((0.0, 0.3)),
            calls=rng.choice((2, 3, 4, 6, 8)),
            deletes=rng.choice((0.2, 0.5, 0.6)),
            changes_at=tuple(rng.choice(times) for _ in range(rng.choice((0, 1, 1, 2)))),
            erases_at=tuple(rng.choice(times) for _ in range(rng.choice((0, 1, 1, 2)))),
        )


@dataclass(slots=True)
class Shared:
    """What is agreed upon elsewhere: the values of ``~config``, newest last, and the generation."""

    published: list[Membership]
    generation: int = 0
    told: list[Told] = field(default_factory=list)
    deletes: set[int] = field(default_factory=set)
    operations: int = 0


class Exploration:
    """One run."""

    def __init__(self, seed: int, variant: Variant = REAL, trace: Callable[[str], None] | None = None) -> None:
        self.rng = rng = random.Random(seed)
        self.variant = variant
        self.now = 0
        self.bias = Bias.draw(rng)
        self.name = b"k/" + bytes((rng.randrange(97, 105),))
        self.before, self.after = rng.choice(MEMBER_CHANGES)
        first = Configuration(STORE_ID, 1, (self.before,))
        self.shared = Shared([Membership(first)])
        self.calls_left = self.bias.calls
        outside = Membership(Configuration(STORE_ID, OUTSIDE, (self.before,)))
        self.tables = {
            a: Table(Membership(first) if a in self.before else outside) for a in sorted({*self.before, *self.after})
        }
        self._trace = trace
        self._bag: list[Message] = []
        self._held: list[Message] = []
        self._processes: list[Process] = []
        self._reach: dict[tuple[Ballot, bool], frozenset[int]] = {}
        self._observer = Observer(self.name, self.tables, self.note)
        homes = [home_of(self.name, members) for members in (self.before, self.after)]
        for number in range(1, rng.choice((2, 2, 3)) + 1):
            own = homes[number % 2] if rng.random() < 0.7 else rng.choice(sorted(self.tables))
            self.begin(self.process(number, own), work.client)
        for at in self.bias.changes_at:
            self.begin(self.process(20 + rng.getrandbits(16)), work.coordinator, at)
        for at in self.bias.erases_at:
            self.begin(self.process(10 + len(self._processes)), work.eraser, at)

    def process(self, number: int, own: int = 0) -> Process:
        """A new one, which knows the first configuration and draws ballots as proposer ``number``."""
        return Process(self.shared.published[0], BallotSource(number, 0), self.variant.rounds(), own)

    def begin(self, process: Process, do: Callable[..., Work], *arguments: object) -> None:
        """Let a process do something; its first step is the schedule's to take."""
        process.work = do(self, process, *arguments)
        next(process.work)
        self._processes.append(process)

    def note(self, line: str) -> None:
        """A line of the trace."""
        if self._trace is not None:
            self._trace(f"{self.now:4d} {line}")

    @property
    def only_copies_left(self) -> bool:
        """Whether everything else has ended."""
        return all(process.is_copy for process in self._processes)

    # -- The schedule -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run to the end. Raises Violation."""
        rng, bias = self.rng, self.bias
        while self.now < STEPS_MAX and self._processes:
            self.now += 1
            if self._held and rng.random() < 0.02:
                self._bag.append(self._held.pop(rng.randrange(len(self._held))))
            if not self._bag or rng.random() < bias.tired:
                self._resume(rng.choice(self._processes), None)
                continue
            index = 0 if rng.random() < bias.oldest else rng.randrange(len(self._bag))
            message = self._bag[index]
            if not bias.repeat or rng.random() >= bias.repeat:
                self._bag.pop(index)
            if not bias.lose or rng.random() >= bias.lose:
                self._carry(message)
        self._observer.check(self.shared.told, self.shared.deletes)

    def send(self, process: Process, membership: Membership, acceptors: Iterable[int], request: Request) -> None:
        """Put a request into the bag for each acceptor that the bias lets it reach."""
        configuration = membership.configuration
        for acceptor in acceptors:
            if self._reaches(acceptor, request, configuration.quorums.members):
                self._put(Message(process, process.serial, acceptor, configuration.tag, request))

    def _put(self, message: Message) -> None:
        held = self.bias.held and self.rng.random() < self.bias.held
        (self._held if held else self._bag).append(message)

    def _carry(self, message: Message) -> None:
        process = message.process
        if message.reply is None:
            reply = self._step(message)
            self._put(Message(process, message.serial, message.acceptor, message.tag, message.request, reply))
        elif message.serial == process.serial and process.work is not None:
            self._resume(process, (message.acceptor, message.reply))

    def _step(self, message: Message) -> Reply:
        table = self.tables[message.acceptor]
        own = table.membership.configuration
        tag = message.tag if self.variant.fenced or own.epoch == OUTSIDE else own.tag
        (reply,) = answer(table, [(tag, message.request)], self.variant.step)
        self.note(f"{message.acceptor} <- {tell_message(message.request)}: {tell_message(reply)}")
        if isinstance(reply, Accepted | Adopted):
            self._observer.on_step(message.acceptor)
        return reply

    def _resume(self, process: Process, event: Event) -> None:
        assert process.work is not None
        try:
            process.work.send(event)
        except StopIteration:
            process.work = None
            self._processes.remove(process)

    def _reaches(self, acceptor: int, request: Request, members: tuple[int, ...]) -> bool:
        """An accept that reaches exactly a minority, a prepare that reaches just a majority of everybody."""
        if not isinstance(request, Accept | Prepare):
            return True
        is_accept = isinstance(request, Accept)
        reach = self._reach.get((request.ballot, is_accept))
        if reach is None:
            size = len(members)
            if self.rng.random() < (self.bias.minority_accepts if is_accept else self.bias.minimal_prepares):
                size = (size - 1) // 2 if is_accept else size // 2 + 1
            reach = self._reach[request.ballot, is_accept] = frozenset(self.rng.sample(members, size))
        return acceptor in reach


def explore(seed: int, variant: Variant = REAL, trace: Callable[[str], None] | None = None) -> str:
    """Run one schedule; what it broke, or nothing."""
    try:
        Exploration(seed, variant, trace).run()
    except Violation as violation:
        return str(violation)
    return ""
