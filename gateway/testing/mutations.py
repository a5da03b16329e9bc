"""Broken variants of collection that the simulator must catch: they test the tests.

Each changes one thing by injection; production code knows nothing of them.  The letters are the rules of
docs/collection.md.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass

import msgspec

from gateway.blobs.places import Sweep
from gateway.testing.places import MemoryPlace, Row, Wait
from objmeta import Chunk
from objmeta.core.configuration import ConfigurationTag
from objmeta.core.listing import ScanRequest, successor
from objmeta.model.names import OBJECTS
from objmeta.model.values import tip_of
from objmeta.objects.context import Context
from objmeta.objects.marks import Acceptor, Marked, _Naming, _Object, _Proof, _proof, marks
from objmeta.testing.mutations import NONE, Mutation
from objmeta.testing.mutations_upkeep import UPKEEP_MUTATIONS

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
    )
}
