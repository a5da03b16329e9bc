"""Repair: a node fetches what it is to keep and lacks, and gives away what it keeps in others' stead.

Theory of operation.  A pass goes, in order of digest, through everything that the records at this node's own acceptor
name (what ``wanted`` gives).  Objmeta's own repair brings that acceptor up to date, so what this one does not name yet
is the business of a later pass.  Of each chunk the view says which nodes are its homes.

* This node is one of them and has no good copy: it is fetched from another node, homes first, then all others.
* It is none of them and has a copy (it stood in for a home that was away, or was one itself before the members or their
  weights changed): the copy is surplus, and goes when the homes have taken over.

A node that leaves goes through all that it holds instead, named or not (an upload may be under way): for each chunk it
has as many nodes that stay take it as a put would wait for, homes first.  From the moment it knows that it leaves it
acknowledges nothing any more, so when a pass that began later has nothing left, nobody relies on it.  Who asks it looks
whether that pass knew of it (``leaving``).

When a copy may go.  All homes were touched with the newest generation, which none of what was done to the copy can
exceed, and said that they have the chunk (docs/collection.md, M2).  They said so under the very view under which the
copy is dropped: a home that answers under a view has adopted it, and no node drops anything under a view that is not
its newest one.  Whether it still is, is looked at together with the drop, while no answer to another node is being
given (``Handover.lock``).  So of all drops of one chunk look at the one under the newest view: its homes had copies
then, and may drop theirs only under a newer view, and there is none.  Two nodes that see different members or weights
can therefore not each rely on the other.

What nothing names is left to the collector.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import replace
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from gateway.blobs.local import LocalBlobs
from gateway.blobs.placement import Place, copies, enough, homes, order
from gateway.blobs.places import ChunkMissing
from gateway.blobs.room import Room
from gateway.upkeep.pace import Pace, Rest
from gateway.upkeep.runs import Progress
from gateway.upkeep.views import Tag, View, Views
from objmeta import Chunk, errors

FETCHES_MAX: Final = 4
"""Chunks, or groups of short ones, under way at once,"""
FETCH_BYTES_MAX: Final = 32 << 20
"""and no more than this together, so that long ones fit into memory."""
SHORT_BYTES_MAX: Final = 256 << 10
GROUP_MAX: Final = 64
"""Short chunks that are fetched and stored together. One by one they cost a sync for each few, which those who write
wait for."""
CHUNK_COST_BYTES: Final = 128 << 10
"""What fetching a chunk costs beside its bytes, as so many bytes: small ones cost calls and commits, not transfer."""
HELD_PAGE: Final = 500
REST: Final = 2.0
"""As a multiple of the time that looking chunks up takes."""
REFRESH_S: Final = 5.0
"""How old what is known of weights, zones and the generation may be."""

_log = logging.getLogger(__name__)

T = TypeVar("T")


class Want(NamedTuple):
    """A chunk that something names, and in how many copies (0: the default)."""

    chunk: Chunk
    replicas: int


Wanted = Callable[[], AsyncGenerator[Sequence[Want], None]]
"""Everything that the own acceptor's records name: pages in order of digest, each chunk once."""


Answer = bytes | errors.StoreError | errors.Unavailable
"""What became of a chunk that was asked for: its content, or why it cannot be had."""


class Others(Protocol):
    """The other nodes, as repair needs them."""

    async def fetch(self, place: Place, chunks: Sequence[Chunk]) -> list[Answer]:
        """Of each chunk a good copy, or why this node gives none. Short ones share calls."""
        ...

    async def confirm(self, place: Place, tag: Tag, generation: int, wants: Sequence[Want]) -> list[bool]:
        """Have a home touch these; for each, whether it is there. Raises Unavailable, also under another view."""
        ...

    async def give(self, place: Place, own: Place, tag: Tag, generation: int, chunk: Chunk) -> None:
        """Have a node fetch a chunk from this one. Raises Unavailable, also under another view; StoreError."""
        ...


class Handover:
    """What a node answers to others that would drop their copies, and its own drops: never both at once."""

    def __init__(self, blobs: LocalBlobs, views: Views, others: Others) -> None:
        self._blobs = blobs
        self._views = views
        self._others = others
        self.lock = asyncio.Lock()

    async def confirm(self, tag: Tag, generation: int, wants: Sequence[Want]) -> list[bool]:
        """The answer of a home. Raises Unavailable if this node's newest view is another one, StoreError."""
        if self._views.tag() < tag:
            await self._views.refreshed()
        async with self.lock:
            if self._views.tag() != tag:
                raise errors.Unavailable("this node knows other members or weights; it will be asked again")
            chunks = [want.chunk for want in wants]
            return await self._blobs.touch(chunks, generation=generation)

    async def take(self, tag: Tag, generation: int, giver: str, chunk: Chunk) -> None:
        """Fetch a chunk from a node that leaves. Raises Unavailable, also under another view; StoreError."""
        if self._views.tag() < tag:
            await self._views.refreshed()
        if self._views.tag() != tag:
            raise errors.Unavailable("this node knows other members or weights; it will be asked again")
        (answer,) = await self._others.fetch(Place(0, giver), (chunk,))
        await self._blobs.put(_content(answer), generation=generation, chunk=chunk)

    async def drop(self, tag: Tag, generation: int, chunks: Sequence[Chunk]) -> int:
        """Drop copies that the homes have confirmed; how many went. Raises StoreError."""
        dropped = 0
        for chunk in chunks:
            async with self.lock:
                if self._views.tag() != tag:
                    break
                # touched later than the homes were: by somebody who may count on this copy
                dropped += await self._blobs.drop(chunk, generation + 1)
        return dropped


class Repairer:
    """Repairs one node's share; belongs to one event loop."""

    def __init__(
        self,
        node_id: int,
        blobs: LocalBlobs,
        others: Others,
        views: Views,
        wanted: Wanted,
        generation: Callable[[], Awaitable[int]],
        pace: Pace,
    ) -> None:
        self._node_id = node_id
        self._blobs = blobs
        self._others = others
        self._views = views
        self._wanted = wanted
        self._generation = generation
        self._pace = pace
        self.handover = Handover(blobs, views, others)
        self.missing = 0
        """Of this node's share, as far as the last pass knows."""
        self.surplus = 0
        """Copies that others should have taken over, as far as the last pass knows."""
        self.epoch = 0
        """Of the members that the last pass knew."""
        self._room = Room(FETCH_BYTES_MAX)

    async def run(self, progress: Progress) -> None:
        """One pass; ``progress.left`` is what this node lacks still, or could not give away.

        Raises Unavailable: also when the view changes, after which everything is looked at anew.
        """
        view = await self._views.refreshed()
        self.epoch = view.tag[0]
        leaving = next(filter(self._is_own, view.leaving), None)
        if leaving is not None:
            await self._hand_over(leaving, view, progress)
            return
        generation = await self._generation()
        refresh_at = _now() + REFRESH_S
        lacking = surplus = 0
        async with aclosing(self._wanted()) as pages:
            async for page in pages:
                if _now() >= refresh_at:
                    await self._views.refreshed()
                    generation = await self._generation()
                    refresh_at = _now() + REFRESH_S
                self._check(view)
                lacked, others = await self._sorted(page, view)
                lacking += len(lacked)
                self.missing = max(self.missing, lacking - progress.fixed)
                fetched = await _all(self._bring(some, view, generation, progress) for some in _grouped(lacked))
                confirmed = await self._confirmed_everywhere(others, view, generation)
                dropped = await self.handover.drop(view.tag, generation, confirmed)
                surplus += len(others) - dropped
                progress.fixed += sum(fetched)
                progress.dropped += dropped
                progress.left = lacking - progress.fixed + surplus
                progress.chunks += len(page)
        self.missing, self.surplus = lacking - progress.fixed, surplus

    async def _sorted(self, page: Sequence[Want], view: View) -> tuple[list[Want], list[Want]]:
        """What this node is to keep and lacks, and what it has in others' stead."""
        rest = Rest(REST)
        found = await self._blobs.has([want.chunk for want in page])
        await rest.pause()
        rows = [(want, self._is_mine(want, view), held) for want, held in zip(page, found, strict=True)]
        return [want for want, mine, held in rows if mine and not held], [
            want for want, mine, held in rows if held and not mine
        ]

    def _check(self, view: View) -> None:
        if self._views.tag() != view.tag:
            raise errors.Unavailable("the members or their weights have changed meanwhile")

    async def heal(self, chunk: Chunk) -> None:
        """Fetch a good copy of a chunk that is damaged here. Raises ChunkMissing, Unavailable, StoreError."""
        found = await self._fetched((chunk,), await self._views.refreshed())
        await self._blobs.put(_content(found[chunk]), generation=await self._generation(), chunk=chunk)

    def _is_mine(self, want: Want, view: View) -> bool:
        kept_by = homes(want.chunk.digest, view.places, want.replicas)
        return any(map(self._is_own, kept_by))

    # -- Fetching -----------------------------------------------------------------------------------------------------

    async def _bring(self, wants: Sequence[Want], view: View, generation: int, progress: Progress) -> int:
        """Fetch some chunks, and store them together; how many of them."""
        length = sum(want.chunk.length for want in wants)
        async with self._share(length):
            await self._pace.take(length + CHUNK_COST_BYTES * len(wants))
            found = await self._fetched([want.chunk for want in wants], view)
            contents = {chunk: answer for chunk, answer in found.items() if isinstance(answer, bytes)}
            await _all(self._blobs.put(data, generation=generation, chunk=chunk) for chunk, data in contents.items())
        for answer in found.values():
            if not isinstance(answer, bytes):
                _log.warning("a chunk of this node's share is lacking still: %s", answer)
        progress.bytes += sum(map(len, contents.values()))
        return len(contents)

    async def _fetched(self, chunks: Sequence[Chunk], view: View) -> dict[Chunk, Answer]:
        """Of each a good copy, or why nobody gave one: each node is asked at once for all that it comes next for."""
        left = {
            chunk: [place for place in (*order(chunk.digest, view.places), *view.leaving) if not self._is_own(place)]
            for chunk in chunks
        }
        problems: dict[Chunk, list[errors.ObjmetaError]] = {chunk: [] for chunk in chunks}
        found: dict[Chunk, Answer] = {}
        while left:
            asked: dict[Place, list[Chunk]] = {}
            for chunk, places in left.items():
                if places:
                    asked.setdefault(places.pop(0), []).append(chunk)
                else:
                    found[chunk] = _nobody(chunk, problems[chunk])
            answers = await _all(self._others.fetch(place, some) for place, some in asked.items())
            for some, given in zip(asked.values(), answers, strict=True):
                for chunk, answer in zip(some, given, strict=True):
                    if isinstance(answer, bytes):
                        found[chunk] = answer
                    else:
                        problems[chunk].append(answer)
            left = {chunk: places for chunk, places in left.items() if chunk not in found}
        return found

    def _is_own(self, place: Place) -> bool:
        return place.node_id == self._node_id

    # -- Giving away --------------------------------------------------------------------------------------------------

    async def _confirmed_everywhere(self, wants: Sequence[Want], view: View, generation: int) -> list[Chunk]:
        """Those that all homes say they have."""
        taken, _ = await self._taken(wants, view, generation)
        wanted = [(want.chunk, copies(want.replicas, len(view.places))) for want in wants]
        return [chunk for chunk, number in wanted if len(taken[chunk]) == number]

    async def _taken(
        self, wants: Sequence[Want], view: View, generation: int
    ) -> tuple[dict[Chunk, set[Place]], set[Place]]:
        """Which homes have each of these, and which did not answer, or not under this view."""
        asked: dict[Place, list[Want]] = {}
        for want in wants:
            for place in homes(want.chunk.digest, view.places, want.replicas):
                asked.setdefault(place, []).append(want)
        taken: dict[Chunk, set[Place]] = {want.chunk: set() for want in wants}
        silent: set[Place] = set()

        async def ask(place: Place, some: list[Want]) -> None:
            try:
                held = await self._others.confirm(place, view.tag, generation, some)
            except errors.ObjmetaError as problem:
                _log.info("%s does not take over surplus copies yet: %s", place.address, problem)
                silent.add(place)
                return
            for want, there in zip(some, held, strict=True):
                if there:
                    taken[want.chunk].add(place)

        await _all(ask(place, some) for place, some in asked.items())
        return taken, silent

    # -- Leaving ------------------------------------------------------------------------------------------------------

    async def _hand_over(self, own: Place, view: View, progress: Progress) -> None:
        """A pass of a node that leaves; what is left is ``surplus``."""
        generation = await self._generation()
        after = b""
        left = 0
        while page := await self._blobs.held(after, HELD_PAGE):
            await self._views.refreshed()
            self._check(view)
            after = page[-1].digest
            wants = [Want(held.chunk, held.replicas) for held in page if not held.damaged]
            taken, silent = await self._taken(wants, view, generation)
            hopeful = replace(view, places=tuple(place for place in view.places if place not in silent))
            left += sum(
                await _all(
                    self._left(want, taken[want.chunk], own, hopeful, generation, progress, len(view.places))
                    for want in wants
                )
            )
            progress.chunks += len(page)
            progress.left = left
        self.missing, self.surplus = 0, left

    async def _left(
        self, want: Want, taken: set[Place], own: Place, view: View, generation: int, progress: Progress, nodes: int
    ) -> bool:
        """Whether too few others take a chunk; ``view`` is of those of all ``nodes`` that answer."""
        wanted = copies(want.replicas, nodes)
        length = want.chunk.length
        for place in order(want.chunk.digest, view.places):
            if len(taken) >= wanted:
                break
            if place in taken:
                continue
            async with self._share(length):
                await self._pace.take(length + CHUNK_COST_BYTES)
                try:
                    await self._others.give(place, own, view.tag, generation, want.chunk)
                except errors.ObjmetaError as problem:
                    _log.info("%s does not take a chunk over: %s", place.address, problem)
                    continue
            taken.add(place)
            progress.fixed += 1
            progress.bytes += length
        return len(taken) < enough(want.replicas, nodes)

    def _share(self, length: int) -> AbstractAsyncContextManager[None]:
        """A share of what may be under way."""
        return self._room.share(min(max(length, FETCH_BYTES_MAX // FETCHES_MAX), FETCH_BYTES_MAX))


def _grouped(wants: Sequence[Want]) -> list[list[Want]]:
    """Long chunks one by one, and short ones in groups, which share a sync."""
    short = [want for want in wants if want.chunk.length <= SHORT_BYTES_MAX]
    groups = [[want] for want in wants if want.chunk.length > SHORT_BYTES_MAX]
    return groups + [short[at : at + GROUP_MAX] for at in range(0, len(short), GROUP_MAX)]


def _content(answer: Answer) -> bytes:
    """What was asked for. Raises what was answered instead."""
    if isinstance(answer, bytes):
        return answer
    raise answer


def _nobody(chunk: Chunk, problems: Sequence[errors.ObjmetaError]) -> errors.StoreError | errors.Unavailable:
    reasons = "; ".join(map(str, problems)) or "there is no other node"
    text = f"nobody gave a good copy of chunk {chunk.digest.hex()} ({reasons})"
    lost = all(isinstance(problem, errors.IntegrityError) for problem in problems)
    return ChunkMissing(text) if lost else errors.Unavailable(text)


async def _all(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all; when one fails the others are stopped first."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _now() -> float:
    return asyncio.get_running_loop().time()
