"""Broken variants of collection that the simulator must catch: they test the tests.

Each changes one thing by injection; production code knows nothing of them.  The letters are the rules of
docs/collection.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from gateway.blobs import Sweep
from gateway.testing.places import MemoryPlace, Row, Wait
from objmeta import Chunk
from objmeta.testing.mutations import NONE, Mutation
from objmeta.testing.mutations_upkeep import UPKEEP_MUTATIONS


@dataclass(frozen=True, slots=True)
class DataMutation:
    """What one variant changes."""

    name: str
    breaks: str
    metadata: Mutation = NONE
    """What is broken in objmeta."""
    place: Callable[[Wait], MemoryPlace] = MemoryPlace
    marks_of_majority: bool = False
    repairs_untouched: bool = False
    drops_by_asking: bool = False
    excludes_by_accepted: bool = False


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
    )
}
