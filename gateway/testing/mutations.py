"""Broken variants of collection that the simulator must catch: they test the tests.

Each changes one thing by injection; production code knows nothing of them.  The letters are the rules of
docs/collection.md.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec

from gateway.blobs.client import ClusterBlobs
from gateway.blobs.peer import BlobPeer
from gateway.blobs.places import Sweep
from gateway.blobs.putting import Putting
from gateway.data.commits import Commits, Content
from gateway.data.transfer import Store
from gateway.data.uploading import ChunkWriter
from gateway.testing.peers import SimPeer
from gateway.testing.places import MemoryPlace, Row, Wait
from objmeta import Chunk, ObjectVersion, errors
from objmeta.core.configuration import ConfigurationTag
from objmeta.core.listing import ScanRequest, successor
from objmeta.model.names import OBJECTS
from objmeta.model.values import tip_of
from objmeta.objects.context import Context
from objmeta.objects.marks import Acceptor, Marked, _Naming, _Object, _Proof, _proof, marks
from objmeta.testing.mutations import NONE, Mutation
from objmeta.testing.mutations_upkeep import UPKEEP_MUTATIONS

Generation = Callable[[], Awaitable[int]]
MarksOf = Callable[[Context, Acceptor, ConfigurationTag], AsyncGenerator[Marked, None]]


@dataclass(frozen=True, slots=True)
class DataMutation:
    """What one variant changes."""

    name: str
    breaks: str
    metadata: Mutation = NONE
    """What is broken in objmeta."""
    place: Callable[[Wait], MemoryPlace] = MemoryPlace
    marks: MarksOf = marks
    marks_of_majority: bool = False
    repairs_untouched: bool = False
    leavers_acknowledge: bool = False
    leaves_at_once: bool = False
    peer: Callable[..., SimPeer] = SimPeer
    blobs: Callable[..., ClusterBlobs] = ClusterBlobs
    healing: Callable[[Generation], Generation | None] = lambda newest: newest
    """In which generation a client heals."""
    commits: Callable[..., Commits] = Commits
    store: Callable[..., Store] = Store
    patches: Mapping[str, object] = field(default_factory=dict)
    """What is put in the place of something in the gateway, by its full name."""


class _TouchesNothing(MemoryPlace):
    """What is there is reused as it is (W2)."""

    async def touch(self, chunks: Sequence[Chunk], *, generation: int, replicas: int = 0) -> list[bool]:
        return await self.has(chunks)


class _DeletesAtOnce(MemoryPlace):
    """One cycle is enough (C4)."""

    def _is_due(self, row: Row, sweep: Sweep) -> bool:
        return True


class _ForgetsTouches(MemoryPlace):
    """A touch is acknowledged before its sync (W2)."""

    async def touch(self, chunks: Sequence[Chunk], *, generation: int, replicas: int = 0) -> list[bool]:
        there = await self.has(chunks)
        for chunk in chunks:
            row = self._rows.get(chunk.digest)
            if row is not None:
                self._rows[chunk.digest] = msgspec.structs.replace(row, touched=max(row.touched, generation))
        return there


class _Trusting(_Naming):
    """Takes what was accepted here for chosen, and reads nothing."""

    async def _chosen(self, found: _Object) -> _Proof | None:
        return _proof(tip_of(found.row.state), found.records)


async def _trusting_marks(context: Context, acceptor: Acceptor, tag: ConfigurationTag) -> AsyncGenerator[Marked, None]:
    naming = _Trusting(context, False)
    start: bytes = OBJECTS
    while start:
        page = await acceptor.scan(tag, ScanRequest(start, successor(OBJECTS), 100, with_records=True))
        yield await naming.page(page)
        start = page.covered


# -- Clients ----------------------------------------------------------------------------------------------------------


class _CountsTwice(Putting):
    """A node that has a chunk is asked to keep another copy of it."""

    def _begin(self, peer: BlobPeer) -> None:
        super()._begin(peer)
        self._next.append(peer)


class _OneCopyFewer(Putting):
    """A put returns one copy early."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._needed = max(1, self._needed - 1)


class _TakesNoForYes(SimPeer):
    """A node that was touched has the chunk, whatever it says."""

    async def touch(self, chunks: Sequence[Chunk], generation: int, timeout_s: float) -> list[bool]:
        await super().touch(chunks, generation, timeout_s)
        return [True] * len(chunks)


class _RenewsUntouched(Commits):
    """A commit that was refused for its age states a newer generation, and that is all (W4)."""

    async def keep(self, chunks: Sequence[Chunk], replicas: int) -> int:
        return await self.generation()


class _IgnoresMembers(Commits):
    """Who was a member when a chunk was stored is one for ever (W5)."""

    @property
    def epoch(self) -> int:
        return 0


class _CopiesUntouched(Store):
    """What a version names is there (W2)."""

    async def _keep(self, version: ObjectVersion, replicas: int) -> int:
        return await self.commits.generation()


class _StatesNewest(ChunkWriter):
    """An upload states the newest of the generations that it began chunks in."""

    async def finish(self) -> Content:
        content = await super().finish()
        return content._replace(generation=max(self._generations, default=content.generation))


class _RenewsWhatIsGone(ChunkWriter):
    """What an upload touches again is there, whatever the nodes say."""

    async def _keep(self) -> None:
        await super()._keep()
        with suppress(errors.ObjmetaError):
            touched, _ = await self._commits.touch(self._chunks, self._replicas)
            self._renewed |= dict.fromkeys(self._chunks, touched)


def _ahead(newest: Generation) -> Generation:
    """A generation that has not begun."""

    async def ahead() -> int:
        return await newest() + 1

    return ahead


DATA_NONE = DataMutation("none", "nothing")

DATA_MUTATIONS: dict[str, DataMutation] = {
    mutation.name: mutation
    for mutation in (
        DataMutation(
            "marks-of-a-majority", "C3: the marks of a majority of the acceptors are enough", marks_of_majority=True
        ),
        DataMutation("reuse-untouched", "W2: a chunk that is there is reused without a touch", place=_TouchesNothing),
        DataMutation(
            "generation-not-checked",
            "W3: acceptors take what states a generation below their floor",
            metadata=UPKEEP_MUTATIONS["generation-not-checked"],
        ),
        DataMutation("one-cycle", "C4: what is unmarked once is deleted", place=_DeletesAtOnce),
        DataMutation("touch-not-durable", "W2: a touch is not synced", place=_ForgetsTouches),
        DataMutation(
            "accepted-removals",
            "what is marked: a removal on an accepted chain is taken for chosen",
            marks=_trusting_marks,
        ),
        DataMutation("repair-untouched", "M1: a copy by repair states no generation", repairs_untouched=True),
        DataMutation(
            "node-counts-twice",
            "W2: two copies at one node count as two",
            patches={"gateway.blobs.client.Putting": _CountsTwice},
        ),
        DataMutation(
            "one-copy-fewer",
            "W2: a put returns at one copy fewer than enough",
            patches={"gateway.blobs.client.Putting": _OneCopyFewer},
        ),
        DataMutation("no-for-yes", "W2: a touch counts nodes that answered False", peer=_TakesNoForYes),
        DataMutation("healing-untouched", "M1: a copy by healing states no generation", healing=lambda newest: None),
        DataMutation("healing-ahead", "a copy by healing states a generation that has not begun", healing=_ahead),
        DataMutation("renewed-untouched", "W4: a refused commit begins anew without a touch", commits=_RenewsUntouched),
        DataMutation("members-ignored", "W5: a commit under other members touches nothing", commits=_IgnoresMembers),
        DataMutation("copied-untouched", "W2: a copy of a version touches nothing", store=_CopiesUntouched),
        DataMutation(
            "newest-stated",
            "W1: an upload states the newest of its chunks' generations, not the oldest",
            patches={"gateway.data.uploading.ChunkWriter": _StatesNewest},
        ),
        DataMutation(
            "gone-renewed",
            "W2: an upload counts as renewed what is not there any more",
            patches={"gateway.data.uploading.ChunkWriter": _RenewsWhatIsGone},
        ),
        DataMutation("leavers-acknowledge", "M3: a node that leaves acknowledges", leavers_acknowledge=True),
        DataMutation("leaves-at-once", "M3: a node leaves before others have what it holds", leaves_at_once=True),
    )
}
