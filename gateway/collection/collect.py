"""Collection: what no version names any more is found and deleted. The rules and the argument: docs/collection.md.

A :class:`Worker` is what one node (or disk) does in a cycle: it *marks*, writing down what its acceptor names in a
spool, and it *sweeps*, deleting at its own place what the spools of all acceptors do not name.  Whoever runs a cycle
(``cycles``) tells the workers, and waits.  Orders may be repeated, also by several runners; each tells how far
it has come.

Nothing here is needed for safety but this: a sweep goes by the spools of all acceptors of the configuration in which
the floors were raised, each begun after that, and complete.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import msgspec

from gateway.blobs.files import in_thread
from gateway.blobs.places import Held, Mark, Sweep, Swept
from gateway.collection.marks import PAGE_MARKS, MarksPage, MemorySpool, Spool, Wanted, merge
from objmeta import Chunk, Marked, errors

T = TypeVar("T")

REPLICAS_DEFAULT: Final = 3
HELD_PER_PAGE: Final = 1000
PATIENCE_S: Final = 20.0
"""How long a worker that does not answer is waited for; a node restarts in less."""
POLL_S_MIN: Final = 0.02
POLL_S_MAX: Final = 1.0
AGAIN_S: Final = 0.2

_log: Final = logging.getLogger(__name__)


# -- What is said -----------------------------------------------------------------------------------------------------


class CycleName(msgspec.Struct, frozen=True, array_like=True):
    """Which cycle: its number, the floor that all acceptors confirmed, and in which configuration (``epoch``).

    ``trial`` is not 0 for a run that raised no floor and may delete nothing: it tells what a cycle would find.
    """

    generation: int
    floor: int
    epoch: int
    trial: int = 0


class MarkOrder(msgspec.Struct, frozen=True, array_like=True):
    """Write down what your acceptor names. ``replicas``: by bucket id; ``parts``: those of open uploads, too.

    ``rest``: pauses, as a multiple of the time that the work between them takes.
    """

    cycle: CycleName
    replicas: dict[bytes, int] = {}
    parts: bool = False
    rest: float = 0.0


class Marking(msgspec.Struct, frozen=True, array_like=True):
    """How far that is. ``problem`` says in words why it ended early."""

    done: bool = False
    problem: str = ""
    objects: int = 0
    named: int = 0


class SweepOrder(msgspec.Struct, frozen=True, array_like=True):
    """Delete at your place what the acceptors at these addresses, by id, do not name."""

    cycle: CycleName
    acceptors: dict[int, str]
    rest: float = 0.0


class Sweeping(msgspec.Struct, frozen=True, array_like=True):
    """How far that is: copies at one place, and their bytes.

    ``waiting``: not named, but not long enough yet, or touched too recently.  In a trial ``deleted`` counts all that is
    not named.  ``position``: the part of all digests that was gone through, from 0 to 1.
    """

    done: bool = False
    problem: str = ""
    deleted: int = 0
    deleted_bytes: int = 0
    named: int = 0
    waiting: int = 0
    position: float = 0.0


Source = Callable[[CycleName], AsyncIterator[Marked]]
"""What one acceptor names. Raises ConfigurationMismatch or Unavailable when it is not in that configuration, and what
reading raises."""
Expand = Callable[[Chunk], Awaitable[Sequence[Chunk]]]
"""The chunks that a list names. Raises what reading a chunk raises."""
Parts = Callable[[], AsyncGenerator[Chunk, None]]
"""The chunks of uploads that are not complete; read when it is called, that is after all floors were raised."""


class Place(Protocol):
    """The chunks of one place, as far as they are swept (:class:`gateway.blobs.places.LocalBlobs`)."""

    async def sweep(self, sweep: Sweep) -> Swept: ...
    async def held(self, after: bytes = b"", limit: int = 1000) -> list[Held]: ...


class Link(Protocol):
    """A worker, near or far. Every call raises Unavailable if it cannot be reached, and may be repeated."""

    async def mark(self, order: MarkOrder) -> Marking:
        """Have it mark, unless it has; how far it is."""
        ...

    async def page(self, cycle: CycleName, start: bytes, limit: int) -> MarksPage:
        """Marks of its complete spool. Raises Conflict if it has none of that cycle."""
        ...

    async def sweep(self, order: SweepOrder) -> Sweeping:
        """Have it sweep, unless it has; how far it is."""
        ...


# -- What one node does -----------------------------------------------------------------------------------------------


class _Work(ABC):
    """What was ordered, and how far it is."""

    def __init__(self, cycle: CycleName) -> None:
        self.cycle = cycle
        self.task: asyncio.Task[None] | None = None
        self._failure_was_told = False

    def is_over(self) -> bool:
        """Whether it failed, and that was told before: whoever asks again wants it done again."""
        failed, self._failure_was_told = self._failure_was_told, self._failure_was_told or self._has_failed()
        return failed

    @abstractmethod
    def _has_failed(self) -> bool: ...


class _Marks(_Work):
    """A spool in the making, or complete."""

    def __init__(self, cycle: CycleName) -> None:
        super().__init__(cycle)
        self.told = Marking()
        self.spool: Spool | MemorySpool | None = None

    def _has_failed(self) -> bool:
        return bool(self.told.problem)


class _Sweep(_Work):
    """A sweep under way, or done."""

    def __init__(self, cycle: CycleName) -> None:
        super().__init__(cycle)
        self.told = Sweeping()

    def _has_failed(self) -> bool:
        return bool(self.told.problem)


class Worker:
    """The collector of one node or disk; belongs to one event loop. ``link`` reaches the worker of another acceptor.

    ``directory`` is for spools (None: they are kept in memory).
    """

    def __init__(
        self,
        acceptor_id: int,
        source: Source,
        place: Place,
        *,
        expand: Expand,
        link: Callable[[int, str], Link],
        parts: Parts | None = None,
        directory: Path | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._acceptor_id = acceptor_id
        self._source = source
        self._place = place
        self._expand = expand
        self._link = link
        self._parts = parts
        self._directory = directory
        self._patience_s = patience_s
        # A trial has its own, so that it does not take those of a cycle away.
        self._marks: dict[bool, _Marks] = {}
        self._sweeps: dict[bool, _Sweep] = {}
        self._ordering = asyncio.Lock()

    async def mark(self, order: MarkOrder) -> Marking:
        """See :class:`Link`."""
        trial = order.cycle.trial != 0
        async with self._ordering:
            held = self._marks.get(trial)
            if held is not None and held.cycle == order.cycle and not held.is_over():
                return held.told
            if held is not None and held.cycle.generation > order.cycle.generation:
                return Marking(True, f"cycle {held.cycle.generation} has begun since")
            if held is not None:
                await self._forget(held)
            marks = self._marks[trial] = _Marks(order.cycle)
            marks.task = asyncio.create_task(self._run_mark(marks, order), name="objmeta marks")
            return marks.told

    async def page(self, cycle: CycleName, start: bytes, limit: int) -> MarksPage:
        """See :class:`Link`."""
        held = self._marks.get(cycle.trial != 0)
        none = errors.Conflict(f"acceptor {self._acceptor_id} has no marks of cycle {cycle.generation} any more")
        if held is None or held.cycle != cycle or not held.told.done or held.told.problem or held.spool is None:
            raise none
        try:
            return await self._call(held.spool.page, start, min(limit, PAGE_MARKS))
        except sqlite3.ProgrammingError:  # another cycle took its place meanwhile, and it is closed
            raise none from None

    async def sweep(self, order: SweepOrder) -> Sweeping:
        """See :class:`Link`."""
        trial = order.cycle.trial != 0
        async with self._ordering:
            held = self._sweeps.get(trial)
            if held is not None and held.cycle == order.cycle and not held.is_over():
                return held.told
            if held is not None and held.cycle.generation > order.cycle.generation:
                return Sweeping(True, f"cycle {held.cycle.generation} has begun since")
            if held is not None and held.task is not None:
                await _ended(held.task)
            sweep = self._sweeps[trial] = _Sweep(order.cycle)
            sweep.task = asyncio.create_task(self._run_sweep(sweep, order), name="objmeta sweep")
            return sweep.told

    async def close(self) -> None:
        """Stop, and remove the spools."""
        for sweep in self._sweeps.values():
            if sweep.task is not None:
                await _ended(sweep.task)
        for marks in self._marks.values():
            await self._forget(marks)
        self._sweeps.clear()
        self._marks.clear()

    def stop(self) -> None:
        """End what is under way at once; spools are left behind, as by a process that is killed."""
        tasks = [sweep.task for sweep in self._sweeps.values()] + [marks.task for marks in self._marks.values()]
        for task in tasks:
            if task is not None:
                task.cancel()

    async def _forget(self, marks: _Marks) -> None:
        if marks.task is not None:
            await _ended(marks.task)
        spool, marks.spool = marks.spool, None
        if spool is not None:
            await self._call(spool.close)

    def _call(self, function: Callable[..., T], *arguments: Any) -> Awaitable[T]:
        return _now(function, *arguments) if self._directory is None else in_thread(function, *arguments)

    # -- Marking ------------------------------------------------------------------------------------------------------

    async def _run_mark(self, marks: _Marks, order: MarkOrder) -> None:
        try:
            directory = self._directory
            marks.spool = MemorySpool() if directory is None else await in_thread(Spool, directory)
            await self._write_down(marks, order)
            named = await self._call(marks.spool.count)
            marks.told = Marking(True, "", marks.told.objects, named)
        except (errors.ObjmetaError, OSError) as problem:
            _log.info("marking for cycle %d stopped: %s", order.cycle.generation, problem)
            marks.told = Marking(True, f"acceptor {self._acceptor_id}: {problem}", marks.told.objects)
        except Exception as defect:
            marks.told = Marking(True, f"acceptor {self._acceptor_id}: {defect!r}", marks.told.objects)
            raise

    async def _write_down(self, marks: _Marks, order: MarkOrder) -> None:
        spool = marks.spool
        assert spool is not None
        loop = asyncio.get_running_loop()
        pages: Any = self._source(order.cycle)
        async with aclosing(pages):
            began_s = loop.time()
            async for page in pages:
                found: list[Wanted] = []
                for each in page.named:
                    replicas = order.replicas.get(each.bucket_id) or REPLICAS_DEFAULT
                    found.append(Wanted(each.digest, each.length, replicas))
                    if each.is_list:
                        listed = await self._expand(Chunk(each.digest, each.length))
                        found += [Wanted(chunk.digest, chunk.length, replicas) for chunk in listed]
                await self._call(spool.add, found)
                told = marks.told
                marks.told = Marking(False, "", told.objects + page.objects, told.named + len(found))
                if order.rest:
                    await asyncio.sleep(order.rest * (loop.time() - began_s))
                    began_s = loop.time()
        if order.parts and self._parts is not None:
            found = []
            async with aclosing(self._parts()) as parts:
                async for chunk in parts:
                    found.append(Wanted(chunk.digest, chunk.length, REPLICAS_DEFAULT))
                    if len(found) >= PAGE_MARKS:
                        await self._call(spool.add, found)
                        found = []
            await self._call(spool.add, found)

    # -- Sweeping -----------------------------------------------------------------------------------------------------

    async def _run_sweep(self, sweep: _Sweep, order: SweepOrder) -> None:
        try:
            await self._sweep_all(sweep, order)
        except (errors.ObjmetaError, OSError) as problem:
            _log.info("the sweep of cycle %d stopped: %s", order.cycle.generation, problem)
            sweep.told = msgspec.structs.replace(sweep.told, done=True, problem=str(problem))
        except Exception as defect:
            sweep.told = msgspec.structs.replace(sweep.told, done=True, problem=repr(defect))
            raise

    async def _sweep_all(self, sweep: _Sweep, order: SweepOrder) -> None:
        cycle = order.cycle
        loop = asyncio.get_running_loop()
        links = [
            self if acceptor == self._acceptor_id else self._link(acceptor, address)
            for acceptor, address in sorted(order.acceptors.items())
        ]
        start = b""
        while True:
            began_s = loop.time()
            pages = await asyncio.gather(*(_page(link, cycle, start, self._patience_s) for link in links))
            end = min((page.end for page in pages if page.end), default=b"")
            wanted = merge([page.marks() for page in pages], end)
            if cycle.trial:
                found = await self._compare(start, end, wanted)
            else:
                marks = tuple(Mark(each.digest, each.replicas) for each in wanted)
                swept = await self._place.sweep(Sweep(cycle.generation, cycle.floor, start, end, marks))
                waiting = swept.unmarked + swept.touched
                named = swept.kept - swept.touched
                found = Sweeping(False, "", swept.deleted, swept.deleted_bytes, named, waiting)
            sweep.told = _sum(sweep.told, found, position=int.from_bytes(end[:4].ljust(4, b"\0")) / (1 << 32))
            if not end:
                break
            start = end
            if order.rest:
                await asyncio.sleep(order.rest * (loop.time() - began_s))
        sweep.told = msgspec.structs.replace(sweep.told, done=True, position=1.0)

    async def _compare(self, start: bytes, end: bytes, wanted: Sequence[Wanted]) -> Sweeping:
        """What is held from ``start`` to below ``end``, and what of it is not named."""
        named = {each.digest for each in wanted}
        deleted = deleted_bytes = kept = 0
        after = _before(start)
        while True:
            held = await self._place.held(after, HELD_PER_PAGE)
            for each in held:
                if end and each.digest >= end:
                    return Sweeping(False, "", deleted, deleted_bytes, kept)
                if each.digest in named:
                    kept += 1
                else:
                    deleted, deleted_bytes = deleted + 1, deleted_bytes + each.length
            if len(held) < HELD_PER_PAGE:
                return Sweeping(False, "", deleted, deleted_bytes, kept)
            after = held[-1].digest


def _sum(told: Sweeping, more: Sweeping, position: float) -> Sweeping:
    return Sweeping(
        False,
        "",
        told.deleted + more.deleted,
        told.deleted_bytes + more.deleted_bytes,
        told.named + more.named,
        told.waiting + more.waiting,
        position,
    )


def _before(digest: bytes) -> bytes:
    """What all digests from ``digest`` on are above, and none before."""
    if not digest:
        return b""
    return (int.from_bytes(digest) - 1).to_bytes(len(digest)) if any(digest) else b""


async def _page(link: Link, cycle: CycleName, start: bytes, patience_s: float) -> MarksPage:
    """A page of another worker's marks; one that does not answer is waited for. Raises Unavailable, Conflict."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience_s
    while True:
        try:
            return await link.page(cycle, start, PAGE_MARKS)
        except errors.Unavailable:
            if loop.time() > deadline:
                raise
        await asyncio.sleep(AGAIN_S)


async def _now(function: Callable[..., T], *arguments: Any) -> T:
    return function(*arguments)


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
