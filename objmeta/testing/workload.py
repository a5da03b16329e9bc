"""What the clients of a simulated cluster do, and what they note down about it.

Registers of two kinds, heads of objects and key-value pairs, are read, written, deleted, compared and swapped, and
listed.  A client that gets no answer asks another proposer under the same operation id, or does so at once (a hedged
request), or has its request come again long after (a copy that woke up late).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from objmeta.core.listing import ScanRequest, decode_records, decode_rows, successor
from objmeta.core.messages import Record, RecordRef, State
from objmeta.errors import IntegrityError, NoQuorum, StoreFull, UnknownOutcome
from objmeta.interfaces import ChangeReply, ChangeRequest
from objmeta.model.changes import NO_VERSION, ModelChange, PutVersion, SetValue
from objmeta.model.values import Manifest
from objmeta.testing.checkers import Violation, check_chain, search
from objmeta.testing.history import Absent, Applied, Attempt, History, Operation, Rejected, Result, Seen
from objmeta.testing.telling import tell_state
from objmeta.testing.world import Interrupted, Proposer, World

OBJECT_PREFIX = b"o/" + bytes(16)
VALUE_PREFIX = b"k/"

_PATIENCE_S = 10.0
"""How long an operation may take once all faults are gone: the default of the real client."""
_SEARCHED_MAX = 60
"""Histories longer than this are only checked against their chain."""


class NoProgress(Exception):
    """An operation did not finish although everything was well again."""


@dataclass(slots=True)
class Register:
    """One register and all that clients know about it."""

    name: bytes
    history: History = field(default_factory=History)
    seen: list[bytes] = field(default_factory=list)
    """Operation ids that some client has seen on it."""
    open: list[tuple[Operation, ModelChange]] = field(default_factory=list)
    """Writes whose client does not know what became of them."""

    @property
    def is_object(self) -> bool:
        """Whether it holds the head of an object."""
        return self.name.startswith(OBJECT_PREFIX)


@dataclass(slots=True)
class Style:
    """How the clients of one run behave; drawn once, like the faults."""

    clients: int
    operations: int
    reads: float
    scans: float
    conditions: float
    deletes: float
    hedges: float
    repeats_late: float
    retries: float
    cancels: float
    timeout_s: float

    @staticmethod
    def draw(rng: random.Random) -> Style:
        """The style of one run."""
        return Style(
            clients=rng.choice((2, 3, 4)),
            operations=rng.randint(16, 32),
            reads=rng.choice((0.1, 0.3, 0.5)),
            scans=rng.choice((0.0, 0.05, 0.15)),
            conditions=rng.choice((0.0, 0.3, 0.7)),
            deletes=rng.choice((0.0, 0.1, 0.3)),
            hedges=rng.choice((0.0, 0.1, 0.4, 0.8)),
            repeats_late=rng.choice((0.0, 0.1, 0.3)),
            retries=rng.choice((0.3, 0.8)),
            cancels=rng.choice((0.0, 0.1)),
            timeout_s=rng.choice((0.1, 0.4, 1.0)),
        )


class Workload:
    """The clients of one run."""

    def __init__(self, world: World, erasing: bool = False) -> None:
        """``erasing``: registers may be erased meanwhile, so many are deleted."""
        self.world = world
        self.undecided = 0
        """Histories whose full search was given up."""
        self._rng = world.random("clients")
        self._style = Style.draw(self._rng)
        self._erasing = erasing
        self._generations: dict[bytes, int] = {}
        """In which generation an operation began, by its id; unknown: it begins with its first request."""
        keys = [b"a", b"b/c", b"b/d", b"e"][: self._rng.choice((1, 1, 2, 3, 4))]
        prefix = self._rng.choice((OBJECT_PREFIX, VALUE_PREFIX))
        if erasing:
            prefix = VALUE_PREFIX  # a deleted object keeps its delete marker
            self._style.deletes = max(self._style.deletes, 0.3)
        self._prefix = prefix
        self.registers = [Register(prefix + key) for key in keys]
        self._late: list[asyncio.Task[None]] = []
        self._left = self._style.operations
        world.note(f"{self._style}, {len(keys)} registers under {prefix!r}")

    @property
    def attempts(self) -> int:
        """Requests of which something may have come."""
        return sum(len(register.history.attempts) for register in self.registers)

    @property
    def answered(self) -> int:
        """Those of them that were answered."""
        attempts = (attempt for register in self.registers for attempt in register.history.attempts)
        return sum(attempt.returned is not None for attempt in attempts)

    @property
    def writes(self) -> int:
        """Changes that were chosen."""
        return sum(len(self.world.watch.chain(register.name)) for register in self.registers)

    # -- Phases -------------------------------------------------------------------------------------------------------

    async def with_faults(self) -> None:
        """Everything the clients want to do, while things break."""
        clients = [self._client(self.world.random(f"client {i}")) for i in range(self._style.clients)]
        await asyncio.gather(*clients)

    async def after_healing(self) -> None:
        """Late copies wake up; every open write is asked for again, and each register is written and read."""
        await asyncio.gather(*self._late)
        for register in self.registers:
            for operation, change in register.open:
                if self._rng.random() < 0.5:
                    await self._ask_again(register, operation, change, self._rng.choice(self.world.proposers))
            for proposer in self.world.proposers:
                await self._must(register, *self._plain_write(register, self._rng), proposer)
            for proposer in self.world.proposers:
                await self._read(proposer, register, _PATIENCE_S, must=True)
        for proposer in self.world.proposers:
            await self._scan(proposer, self._rng, _PATIENCE_S, must=True)

    def check(self) -> None:
        """What the clients saw against the chain that was chosen. Raises Violation."""
        for register in self.registers:
            attempts = register.history.attempts
            chain = self.world.watch.chain(register.name)
            if self._erasing:
                attempts = in_places(attempts, chain, self.world.watch.was_erased(register.name))
            if self.world.watch.strict:
                check_chain(attempts, [ref.version_id for ref in chain])
            if len(attempts) <= _SEARCHED_MAX:
                linearizable = search(attempts)
                if linearizable is None:
                    self.undecided += 1
                elif not linearizable:
                    raise Violation(f"the history of register {register.name!r} is not linearizable")

    # -- Clients ------------------------------------------------------------------------------------------------------

    async def _client(self, rng: random.Random) -> None:
        style = self._style
        while self._left > 0:
            self._left -= 1
            await asyncio.sleep(rng.choice((0.0, 0.001, 0.02)) * rng.random())
            register = rng.choice(self.registers)
            draw = rng.random()
            if draw < style.scans:
                await self._scan(await self._proposer(rng), rng, style.timeout_s)
            elif draw < style.scans + style.reads:
                await self._read(await self._proposer(rng), register, style.timeout_s, walk=rng.random() < 0.3)
            else:
                await self._write(rng, register)

    async def _write(self, rng: random.Random, register: Register) -> None:
        style = self._style
        operation, change = self._draw_write(register, rng)
        if self._erasing and not await self._begin(operation, await self._proposer(rng), rng):
            return
        if rng.random() < style.repeats_late:
            late = self._late_copy(
                rng.uniform(0.01, 3.0), rng.choice(self.world.proposers), register, operation, change
            )
            self._late.append(self.world.loop.create_task(late))
        if rng.random() < style.hedges:
            first, second = rng.choice(self.world.proposers), rng.choice(self.world.proposers)
            results = await asyncio.gather(
                self._attempt(first, register, operation, change, style.timeout_s),
                self._hedge(rng.random() * 0.01, second, register, operation, change),
            )
            answered = any(results)
        else:
            cancel_after_s = rng.random() * 0.02 if rng.random() < style.cancels else None
            proposer = await self._proposer(rng)
            answered = await self._attempt(proposer, register, operation, change, style.timeout_s, cancel_after_s)
        while not answered and rng.random() < style.retries:
            answered = await self._attempt(await self._proposer(rng), register, operation, change, style.timeout_s)
        if not answered:
            register.open.append((operation, change))

    async def _begin(self, operation: Operation, proposer: Proposer, rng: random.Random) -> bool:
        """Find out the generation the operation begins in, and keep it for all its attempts."""
        generations = proposer.engine.generations
        reading = generations.newest if rng.random() < 0.5 else generations.stated
        try:
            self._generations[operation.id] = await proposer.run(reading(self._style.timeout_s))
        except (NoQuorum, StoreFull, Interrupted):
            return False
        return True

    async def _proposer(self, rng: random.Random) -> Proposer:
        while True:
            up = [proposer for proposer in self.world.proposers if proposer.up]
            if up:
                return rng.choice(up)
            await asyncio.sleep(0.01)

    async def _hedge(
        self, after_s: float, proposer: Proposer, register: Register, operation: Operation, change: ModelChange
    ) -> bool:
        await asyncio.sleep(after_s)
        return await self._attempt(proposer, register, operation, change, self._style.timeout_s)

    async def _late_copy(
        self, after_s: float, proposer: Proposer, register: Register, operation: Operation, change: ModelChange
    ) -> None:
        await asyncio.sleep(after_s)
        if proposer.up:
            await self._attempt(proposer, register, operation, change, self._style.timeout_s)

    # -- Writes -------------------------------------------------------------------------------------------------------

    def _draw_write(self, register: Register, rng: random.Random) -> tuple[Operation, ModelChange]:
        style = self._style
        visible = rng.random() >= style.deletes
        if_absent = if_version = b""
        if rng.random() < style.conditions:
            if visible and (not register.seen or rng.random() < 0.3):
                if_absent = b"y"
            elif register.seen:
                if_version = register.seen[-1] if rng.random() < 0.7 else rng.choice(register.seen)
        operation = Operation(
            rng.randbytes(16),
            visible=visible,
            if_absent=bool(if_absent),
            if_present=not visible,
            if_version=if_version,
            version_must_be_visible=not register.is_object,
        )
        return operation, self._change_for(register, operation)

    def _plain_write(self, register: Register, rng: random.Random) -> tuple[Operation, ModelChange]:
        operation = Operation(rng.randbytes(16))
        return operation, self._change_for(register, operation)

    def _change_for(self, register: Register, operation: Operation) -> ModelChange:
        if not register.is_object:
            condition = NO_VERSION if operation.if_absent else operation.if_version
            return SetValue(operation.id, operation.id if operation.visible else None, condition)
        manifest = Manifest(16, operation.id, self.world.wall_clock_us(0), delete_marker=not operation.visible)
        return PutVersion(
            operation.id, manifest, operation.id, operation.if_absent, operation.if_present, operation.if_version
        )

    async def _attempt(
        self,
        proposer: Proposer,
        register: Register,
        operation: Operation,
        change: ModelChange,
        timeout_s: float,
        cancel_after_s: float | None = None,
    ) -> bool:
        """Ask one proposer once; whether it gave a definite answer about the operation."""
        if not proposer.up:
            return False
        attempt = register.history.call(operation, self.world.tick())
        request = ChangeRequest(register.name, change, None, self._generations.get(operation.id, 0))
        self.world.note(f"call {operation} at P{proposer.number}")
        try:
            reply = await proposer.run(proposer.change(request, timeout_s), cancel_after_s)
        except (NoQuorum, StoreFull) as error:
            self.world.note(f"{operation.id.hex()} at P{proposer.number}: {error!r}")
            register.history.forget(attempt)
            return False
        except (UnknownOutcome, Interrupted) as error:
            self.world.note(f"{operation.id.hex()} at P{proposer.number}: {error!r}")
            return False
        self._note_reply(register, operation, attempt, reply)
        return True

    def _note_reply(self, register: Register, operation: Operation, attempt: Attempt, reply: ChangeReply) -> None:
        self.world.note(f"{operation.id.hex()}: {reply.code or 'applied'}, {tell_state(reply.state)}")
        if reply.code:
            register.history.settle(attempt, Rejected(reply.code), self.world.tick())
            self.world.watch.on_answered(register.name, reply.state)
            tip = _tip(reply.state)
            if tip is not None:
                register.seen.append(tip.version_id)
            return
        record = reply.record
        if record is None or record.ref.version_id != operation.id:
            raise Violation(f"operation {operation.id.hex()} was acknowledged with the record {record}")
        parent = record.parent.version_id if record.parent else b""
        register.history.settle(attempt, Applied(record.ref.sequence, parent), self.world.tick())
        register.seen.append(operation.id)
        self.world.watch.on_acknowledged(register.name, operation.id)

    async def _ask_again(
        self, register: Register, operation: Operation, change: ModelChange, proposer: Proposer
    ) -> None:
        """Ask again for an operation that may have taken effect; what began too long ago is refused for good."""
        if await self._attempt(proposer, register, operation, change, _PATIENCE_S):
            return
        begun = self._generations.get(operation.id)
        if begun is None or begun >= await proposer.engine.generations.newest(_PATIENCE_S):
            raise NoProgress(f"a write of {register.name!r} through proposer {proposer.number} did not finish")

    async def _must(self, register: Register, operation: Operation, change: ModelChange, proposer: Proposer) -> None:
        if self._erasing:  # what began before the last erasure is refused
            await proposer.engine.generations.newest(_PATIENCE_S)
        if not await self._attempt(proposer, register, operation, change, _PATIENCE_S):
            raise NoProgress(f"a write of {register.name!r} through proposer {proposer.number} did not finish")

    # -- Reads --------------------------------------------------------------------------------------------------------

    async def _read(
        self, proposer: Proposer, register: Register, timeout_s: float, walk: bool = False, must: bool = False
    ) -> None:
        attempt = register.history.call(None, self.world.tick())
        try:
            (state,) = await proposer.run(proposer.engine.read((register.name,), timeout_s))
        except (NoQuorum, StoreFull, Interrupted) as error:
            self.world.note(f"read of {register.name!r} at P{proposer.number}: {error!r}")
            register.history.forget(attempt)
            if must:
                raise NoProgress(f"a read of {register.name!r} through proposer {proposer.number} failed") from error
            return
        self._note_state(register, attempt, state)
        if walk or must:
            await self._walk(proposer, register, state, timeout_s, must)

    def _note_state(self, register: Register, attempt: Attempt, state: State | None) -> None:
        tip = _tip(state)
        self.world.note(f"read of {register.name!r}: {tell_state(state)}")
        self.world.watch.on_answered(register.name, state)
        register.history.settle(attempt, Seen(tip.sequence, tip.version_id) if tip else Seen(0, b""), self.world.tick())
        if tip is not None:
            register.seen.append(tip.version_id)

    async def _walk(
        self, proposer: Proposer, register: Register, state: State | None, timeout_s: float, must: bool
    ) -> None:
        """Every record behind a visible head must be found."""
        cursor = _tip(state)
        while cursor is not None:
            try:
                (record,) = await proposer.run(proposer.engine.records(register.name, (cursor,), timeout_s))
            except (NoQuorum, StoreFull, Interrupted) as error:
                if must:
                    raise NoProgress(f"a record of {register.name!r} could not be fetched") from error
                return
            except IntegrityError as error:
                if self._erasing:
                    return  # erased since the state was read
                raise Violation(f"register {register.name!r} points at a record that is nowhere: {cursor}") from error
            self._check_record(register, record, cursor)
            cursor = record.parent

    def _check_record(self, register: Register, record: Record, ref: RecordRef) -> None:
        expected = record.ref.version_id if register.is_object else b""
        if record.ref != ref or record.data != expected:
            raise Violation(f"the record fetched for {ref} of {register.name!r} is {record}")

    # -- Listings -----------------------------------------------------------------------------------------------------

    async def _scan(self, proposer: Proposer, rng: random.Random, timeout_s: float, must: bool = False) -> None:
        """List all registers, page by page; each page reads every register in its range."""
        start, end = self._prefix, successor(self._prefix)
        while proposer.up:
            request = ScanRequest(start, end, rng.choice((1, 2, 10)), with_records=rng.random() < 0.3)
            waiting = {
                register.name: (register, register.history.call(None, self.world.tick()))
                for register in self.registers
                if register.name >= start
            }
            try:
                page = await proposer.run(proposer.engine.scan(request, timeout_s))
            except (NoQuorum, StoreFull, Interrupted) as error:
                for register, attempt in waiting.values():
                    register.history.forget(attempt)
                if must:
                    raise NoProgress(f"a listing through proposer {proposer.number} failed") from error
                return
            except IntegrityError as error:
                if self._erasing and not must:
                    for register, attempt in waiting.values():
                        register.history.forget(attempt)
                    return  # erased meanwhile
                raise Violation("a listing names a record that is nowhere") from error
            rows = {row.name: row.state for row in decode_rows(page.rows)}
            self.world.note(f"page from {start!r} to {page.next!r}: {sorted(rows)}")
            for name, (register, attempt) in waiting.items():
                if page.next and name >= page.next:
                    register.history.forget(attempt)
                else:
                    self._note_state(register, attempt, rows.pop(name, None))
            if rows:
                raise Violation(f"a listing holds registers that nobody wrote: {sorted(rows)}")
            if request.with_records:
                self._check_listed_records(page.records)
            if not page.next:
                return
            if page.next <= start:
                raise NoProgress(f"a listing does not move on from {start!r}")
            start = page.next

    def _check_listed_records(self, encoded: bytes) -> None:
        for named in decode_records(encoded):
            if named.record.data:
                raise Violation(f"a listing carries the data of {named.record.ref}")


def in_places(attempts: Sequence[Attempt], chain: Sequence[RecordRef], was_erased: bool) -> list[Attempt]:
    """A history with places in the chain of all lives of its register instead of sequences, which begin above a floor.

    Raises Violation where an answer does not fit that chain.
    """
    places = {ref.version_id: place for place, ref in enumerate(chain, 1)}
    return [
        Attempt(attempt.operation, attempt.called, attempt.returned, _placed(attempt, places, chain, was_erased))
        for attempt in attempts
    ]


def _placed(
    attempt: Attempt, places: Mapping[bytes, int], chain: Sequence[RecordRef], was_erased: bool
) -> Result | None:
    result = attempt.result
    if isinstance(result, Seen):
        if not result.id:
            return Absent() if was_erased else result
        place = places.get(result.id, 0)
        if not place or chain[place - 1].sequence != result.sequence:
            raise Violation(f"a read saw operation {result.id.hex()}, which is not at that place of the chain")
        return Seen(place, result.id)
    if isinstance(result, Applied) and attempt.operation is not None:
        place = places.get(attempt.operation.id, 0)
        before = chain[place - 2].version_id if place > 1 else b""
        if not place or chain[place - 1].sequence != result.sequence or result.parent not in (b"", before):
            raise Violation(f"operation {attempt.operation.id.hex()} is not where its acknowledgement said")
        return Applied(place, before)
    return result


def _tip(state: State | None) -> RecordRef | None:
    return state.refs[-1] if state is not None and state.refs else None
