"""What the explorer's processes do: clients, erasers, and coordinators of a change of members.

Each is a generator over an :class:`~objmeta.testing.explorer.Exploration`.  It sends, yields, and is given
``(acceptor, reply)``, or None when it has waited long enough.  They follow docs/protocol.md step by step and leave
out whatever the run's variant leaves out.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING

from objmeta.core.ballot import ZERO, Ballot
from objmeta.core.change import Decision, Identity, Keep, Write
from objmeta.core.configuration import Configuration, Membership
from objmeta.core.fastread import FastRead, Reading
from objmeta.core.firstwrite import FirstWrite
from objmeta.core.home import home_of
from objmeta.core.messages import (
    LIVE,
    TOMBSTONE,
    Accept,
    Accepted,
    Adopt,
    Adopted,
    Erase,
    Floors,
    Found,
    Prepare,
    Promise,
    RaiseFloors,
    Read,
    ReadFloors,
    Refusal,
    Refused,
    State,
)
from objmeta.core.proposer import AwaitStragglers, Denied, Done, Lost, Outcome, Round, Send
from objmeta.testing.explorer_watch import Told, visible

if TYPE_CHECKING:
    from objmeta.testing.explorer import Event, Exploration, Process, Work


class Append:
    """Append an id; ``shows`` false: delete, which needs something to delete."""

    def __init__(self, operation: int, shows: bool) -> None:
        self.operation = operation
        self.operations = (bytes((operation,)),)
        self.shows = shows

    def apply(self, name: bytes, state: State | None, sequence_floor: int) -> Decision:
        value = state.value if state is not None else b""
        if self.operation in value:
            return Keep()
        if not self.shows and (state is None or state.flag == TOMBSTONE):
            return Keep("missing")
        return Write(State(value + bytes((self.operation,)), (), LIVE if self.shows else TOMBSTONE), ())


# -- Clients ----------------------------------------------------------------------------------------------------------


def client(run: Exploration, me: Process) -> Work:
    """Reads, writes and deletes until the run has had enough of them."""
    rng, shared, bias = run.rng, run.shared, run.bias
    yield
    while run.calls_left > 0:
        run.calls_left -= 1
        draw = rng.random()
        if draw < 0.2:
            yield from _fast_read(run, me)
            continue
        if draw < 0.3:
            yield from _ask(run, me, 0, Identity(), 0, rng.choice((1, 3)))
            continue
        shared.operations += 1
        operation = shared.operations
        shows = operation == 1 or rng.random() >= bias.deletes
        if not shows:
            shared.deletes.add(operation)
        change, generation = Append(operation, shows), shared.generation
        if rng.random() < bias.copies:
            other = run.process(100 + operation)
            other.is_copy = True
            run.begin(other, _late_copy, change, generation)
        yield from _ask(run, me, operation, change, generation, rng.choice((1, 2, 4)))


def _late_copy(run: Exploration, me: Process, change: Append, generation: int) -> Work:
    last = run.rng.random() < run.bias.copies_last
    until = run.now + run.rng.choice((0, 20, 100))
    yield
    while run.now < until or (last and not run.only_copies_left):
        yield
    yield from _ask(run, me, change.operation, change, generation, 3)


def _ask(run: Exploration, me: Process, operation: int, change: Append | Identity, generation: int, times: int) -> Work:
    told = Told(operation, run.now)
    run.shared.told.append(told)
    for _ in range(times):
        outcome = yield from _attempt(run, me, change, generation)
        if isinstance(outcome, Done):
            told.returned, told.code, told.seen = run.now, outcome.code, visible(outcome.state)
            run.note(f"operation {operation}: {outcome.code or 'done'}, {visible(outcome.state)!r}")
            return
        if isinstance(outcome, Lost):
            me.ballots.saw(outcome.greatest)
        elif isinstance(outcome, Denied):
            return


def _attempt(
    run: Exploration, me: Process, change: Append | Identity, generation: int
) -> Generator[None, Event, Outcome]:
    configuration = me.membership.configuration
    quorums = configuration.quorums
    settled = not configuration.is_joint or run.variant.first_under_joint
    if home_of(run.name, quorums.members) == me.own and not me.touched and settled and isinstance(change, Append):
        me.touched = True
        first = FirstWrite(quorums, configuration.epoch, me.own, run.name, change, generation=generation)
        return (yield from _drive(run, me, first))
    if run.rng.random() < run.bias.jumps:
        for _ in range(run.rng.randint(1, 4)):
            me.ballots.next()
    round_ = me.rounds(quorums, run.name, me.ballots.next(), change, generation=generation)
    return (yield from _drive(run, me, round_))


def _drive(run: Exploration, me: Process, round_: Round | FirstWrite) -> Generator[None, Event, Outcome]:
    me.serial += 1
    membership = me.membership
    effects = round_.start()
    late = False
    while True:
        for effect in effects:
            if isinstance(effect, Send):
                run.send(me, membership, effect.to, effect.request)
            elif isinstance(effect, AwaitStragglers):
                late = True
            else:
                return effect.outcome
        event = yield
        if event is None:
            effects = round_.on_stragglers_late() if late else round_.on_timeout()
            late = False
        else:
            effects = round_.on_timeout() if _moved(run, me, event) else round_.on_reply(*event)


def _moved(run: Exploration, me: Process, event: Event) -> bool:
    """Whether an acceptor told of a newer configuration; one that is behind is told of ours."""
    if event is None:
        return False
    acceptor, refused = event
    if not isinstance(refused, Refused) or refused.reason is not Refusal.CONFIGURATION:
        return False
    if refused.behind:
        run.send(me, me.membership, (acceptor,), Adopt(me.membership))
    newer = refused.membership
    if newer is None or newer.configuration.epoch <= me.membership.configuration.epoch:
        return False
    me.membership = newer
    me.touched = False
    return True


def _fast_read(run: Exploration, me: Process) -> Work:
    me.serial += 1
    told = Told(0, run.now)
    run.shared.told.append(told)
    quorums = me.membership.configuration.quorums
    reading = FastRead(quorums)
    run.send(me, me.membership, quorums.members, Read(run.name))
    while event := (yield):
        if _moved(run, me, event):
            return
        acceptor, reply = event
        if isinstance(reply, Found | Refused):
            known = reading.on_reply(acceptor, reply)
            if known is Reading.DECIDED:
                told.returned, told.seen = run.now, visible(reading.state)
            if known in (Reading.DECIDED, Reading.DIVIDED):
                return


# -- Erasure (docs/protocol.md, "Erasing a register") -----------------------------------------------------------------


def eraser(run: Exploration, me: Process, begins_at: int) -> Work:
    """Erases what it finds deleted, twice."""
    yield
    for _ in range(2):
        while run.now < begins_at:
            yield
        tombstone = _tombstone(run)
        for _ in range(20):
            if tombstone is not None:
                break
            yield
            tombstone = _tombstone(run)
        me.membership = run.shared.published[-1]
        configuration = me.membership.configuration
        if tombstone is None or configuration.is_joint:
            return
        if run.variant.moves_generation:
            run.shared.generation += 1
            if not (yield from _raise_generation(run, me, run.shared.generation)):
                continue
        ballot = yield from _confirm(run, me, tombstone)
        if ballot is None:
            continue
        pause = run.now + run.rng.choice((0, 0, 15))
        while run.now < pause:
            yield
        if run.variant.erases_by_newest_tag:
            me.membership = run.shared.published[-1]
        me.serial += 1
        for _ in range(2):
            run.send(me, me.membership, configuration.quorums.members, Erase(run.name, ballot))
            yield


def _tombstone(run: Exploration) -> State | None:
    """A tombstone that some acceptor holds: what a listing would show."""
    for table in run.tables.values():
        row = table.row(run.name)
        if row is not None and row.state is not None and row.state.flag == TOMBSTONE:
            return row.state
    return None


def _raise_generation(run: Exploration, me: Process, generation: int) -> Generator[None, Event, bool]:
    quorums = me.membership.configuration.quorums
    raised: set[int] = set()
    me.serial += 1
    for _ in range(3):
        run.send(me, me.membership, quorums.members, RaiseFloors(generation))
        while event := (yield):
            if isinstance(event[1], Floors):
                raised.add(event[0])
            if quorums.is_quorum(raised):
                return True
    return False


def _confirm(run: Exploration, me: Process, tombstone: State) -> Generator[None, Event, Ballot | None]:
    """An identity round that every acceptor confirms under one ballot, with this very tombstone."""
    quorums = me.membership.configuration.quorums
    for _ in range(3):
        ballot = me.ballots.next()
        me.serial += 1
        promises: dict[int, Promise] = {}
        run.send(me, me.membership, quorums.members, Prepare(run.name, ballot))
        while not quorums.is_quorum(promises) and (event := (yield)):
            if isinstance(event[1], Promise):
                promises[event[0]] = event[1]
            elif isinstance(event[1], Refused):
                me.ballots.saw(event[1].greatest)
        if not quorums.is_quorum(promises):
            continue
        newest = max(promises.values(), key=lambda promise: promise.accepted).state
        if newest != tombstone:
            return None
        me.serial += 1
        confirmed: set[int] = set()
        run.send(me, me.membership, quorums.members, Accept(run.name, ballot, newest))
        while event := (yield):
            if isinstance(event[1], Accepted):
                confirmed.add(event[0])
            if len(confirmed) == len(quorums.members):
                return ballot
    return None


# -- Change of members (docs/protocol.md, "Changing the members") -----------------------------------------------------


def coordinator(run: Exploration, me: Process, begins_at: int) -> Work:
    """Begin a change, or go on with the one under way, knowing nothing but what is published."""
    yield
    while run.now < begins_at:
        yield
    published = run.shared.published
    newest = published[-1].configuration
    if newest.epoch == 1:
        _publish(run, newest, (*newest.member_sets, run.after))
    joint = published[-1]
    if not joint.configuration.is_joint:
        return
    old, new = joint.configuration.member_sets
    me.membership = joint
    listed = None
    if run.variant.lists_before_fence:
        listed = _is_listed(run, old)
        pause = run.now + run.rng.choice((0, 10, 30))
        while run.now < pause:
            yield
    fenced = yield from _fence(run, me, old)
    if fenced is None or not (yield from _join(run, me, fenced, [a for a in new if a not in old])):
        return
    if listed is None:
        listed = _is_listed(run, fenced)
    if run.variant.copies and listed and not (yield from _copy(run, me)):
        return
    if _publish(run, joint.configuration, (new,)):
        me.serial += 1
        run.send(me, joint, sorted({*old, *new}), Adopt(published[-1]))
        yield


def _publish(run: Exploration, expected: Configuration, member_sets: tuple[tuple[int, ...], ...]) -> bool:
    """Compare-and-swap of ``~config``."""
    published = run.shared.published
    if published[-1].configuration != expected:
        return False
    published.append(Membership(Configuration(expected.store_id, expected.epoch + 1, member_sets)))
    run.note(f"published epoch {expected.epoch + 1}: {member_sets}")
    return True


def _fence(run: Exploration, me: Process, old: tuple[int, ...]) -> Generator[None, Event, frozenset[int] | None]:
    """A majority of the old members that has adopted joint."""
    adopted: set[int] = set()
    me.serial += 1
    for _ in range(4):
        run.send(me, me.membership, old, Adopt(me.membership))
        while event := (yield):
            if isinstance(event[1], Adopted) and event[1].membership == me.membership:
                adopted.add(event[0])
            if 2 * len(adopted) > len(old):
                return frozenset(adopted)
    return None


def _join(run: Exploration, me: Process, fenced: frozenset[int], joining: list[int]) -> Generator[None, Event, bool]:
    """Joining acceptors are given the floors of the fenced majority, and then join."""
    if not joining:
        return True
    floors: dict[int, Floors] = {}
    me.serial += 1
    for _ in range(3):
        run.send(me, me.membership, sorted(fenced), ReadFloors())
        while len(floors) < len(fenced) and (event := (yield)):
            if isinstance(event[1], Floors):
                floors[event[0]] = event[1]
    if len(floors) < len(fenced):
        return False
    if run.variant.gives_floors:
        raising = RaiseFloors(
            max(floor.generation for floor in floors.values()),
            tuple(scope for _, floor in sorted(floors.items()) for scope in floor.scopes),
        )
        raised: set[int] = set()
        me.serial += 1
        for _ in range(3):
            run.send(me, me.membership, joining, raising)
            while len(raised) < len(joining) and (event := (yield)):
                if isinstance(event[1], Floors):
                    raised.add(event[0])
        if len(raised) < len(joining):
            return False
    me.serial += 1
    run.send(me, me.membership, joining, Adopt(me.membership, joining=True))
    return True


def _is_listed(run: Exploration, acceptors: Iterable[int]) -> bool:
    """Whether any of them has a row of the register."""
    rows = [run.tables[acceptor].row(run.name) for acceptor in acceptors]
    if run.variant.lists_accepted_only:
        return any(row is not None and row.accepted != ZERO for row in rows)
    return any(row is not None for row in rows)


def _copy(run: Exploration, me: Process) -> Generator[None, Event, bool]:
    """An identity round under joint."""
    joint = me.membership
    for _ in range(8):
        if me.membership != joint:
            return False
        round_ = Round(joint.configuration.quorums, run.name, me.ballots.next(), Identity())
        outcome = yield from _drive(run, me, round_)
        if isinstance(outcome, Done):
            return True
        if isinstance(outcome, Lost):
            me.ballots.saw(outcome.greatest)
    return False
