"""An observer who knows all that was ever chosen, and so what is named now; and what must hold of the bytes.

* No hole: of every chunk that a live version names there is a good copy, durable, at all times.
* No copy that a live version's operation touched is deleted by a sweep.
* Two cycles: what was live a moment ago is not deleted before another cycle has begun.
* In the end, when all is quiet, nothing is stored that nothing names.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

from blake3 import blake3

from gateway.blobs.places import Sweep
from gateway.testing.nodes import DataNode
from gateway.testing.places import Row
from objmeta import Chunk
from objmeta.testing.checkers import Violation
from objmeta.testing.world import World

Digest = bytes


@dataclass(slots=True)
class Put:
    """A version that somebody tried to commit: by a put, a copy or a restore."""

    digests: tuple[Digest, ...]
    generation: int


@dataclass(slots=True)
class Run:
    """One run of a cycle, from when to when."""

    begun_s: float
    ended_s: float = math.inf


@dataclass(slots=True)
class Named:
    """What is known of operations, by id, and what follows from what was chosen of them."""

    world: World
    nodes: dict[int, DataNode]
    puts: dict[bytes, Put] = field(default_factory=dict)
    removals: dict[bytes, bytes] = field(default_factory=dict)
    """By operation: the version that it removes."""
    runs: list[Run] = field(default_factory=list)
    """Cycles, in the order in which they were begun."""
    deleted: int = 0
    """Copies that sweeps deleted."""
    violation: str = ""
    """What was seen first in the middle of something that must not be disturbed; told by the next check."""
    _last_live_s: dict[bytes, float] = field(default_factory=dict)
    """By version."""

    def live(self) -> dict[bytes, Put]:
        """The live versions, by id."""
        watch = self.world.watch
        found: dict[bytes, Put] = {}
        for name in watch.names():
            chain = watch.chain(name)
            removed = {self.removals.get(ref.version_id) for ref in chain}
            for ref in chain:
                put = self.puts.get(ref.version_id)
                if put is not None and ref.version_id not in removed:
                    found[ref.version_id] = put
        return found

    def is_live(self, version_id: bytes) -> bool:
        """Whether this version is there."""
        return version_id in self.live()

    def is_young(self, since_s: float) -> bool:
        """Whether what was live then is still to be there: no cycle has begun since, and no two were under way then.

        Two runners at once, which the lock keeps from each other while it holds, may do the first and the second cycle
        of a chunk in one go.
        """
        return not any(run.begun_s > since_s for run in self.runs) and (
            sum(run.ended_s > since_s for run in self.runs) < 2
        )

    # -- What must hold -----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """There is no hole. Raises Violation."""
        if self.violation:
            raise Violation(self.violation)
        now = self.world.loop.time()
        for version_id, put in self.live().items():
            self._last_live_s[version_id] = now
            for digest in put.digests:
                if not any(_is_good(node, digest) for node in self.nodes.values()):
                    raise Violation(_hole(digest, version_id))

    def on_delete(self, node: DataNode, digest: Digest, row: Row, sweep: Sweep | None) -> None:
        """A copy is being deleted."""
        self.world.note(f"D{node.node_id} deletes {digest.hex()[:8]} {row.touched=} {row.unmarked_since=} {sweep=}")
        if sweep is None:
            return
        self.deleted += 1
        live = self.live()
        now = self.world.loop.time()
        self._last_live_s.update(dict.fromkeys(live, now))
        for version_id, put in self.puts.items():
            if digest not in put.digests or row.touched < put.generation:
                continue
            what = f"node {node.node_id} deletes chunk {digest.hex()[:8]}, touched in {row.touched}"
            whose = f"of version {version_id.hex()[:8]}, begun in {put.generation}"
            if version_id in live:
                self.violation = self.violation or f"{what}, {whose}, which is live"
            last_s = self._last_live_s.get(version_id)
            if last_s is not None and self.is_young(last_s):
                self.violation = self.violation or (
                    f"{what}, {whose}, which was live at {last_s:.6f}, and no cycle has begun since"
                )

    def on_touched(self, node: DataNode, chunk: Chunk, generation: int) -> None:
        """A node is about to say that it has a chunk, touched."""
        row = node.place.durable.get(chunk.digest)
        if (row is None or row.touched < generation) and node.place.floor <= generation:
            self.violation = self.violation or (
                f"node {node.node_id} says that chunk {chunk.digest.hex()[:8]} was touched in {generation}, and would "
                "not know that after a crash"
            )

    def on_gone(self, digest: Digest) -> None:
        """A copy is gone for good."""
        if any(_is_good(node, digest) for node in self.nodes.values()):
            return
        for version_id, put in self.live().items():
            if digest in put.digests:
                self.violation = self.violation or _hole(digest, version_id)

    def check_nothing_else(self, members: Collection[int]) -> None:
        """Nothing is stored at the members that nothing names."""
        named = {digest for put in self.live().values() for digest in put.digests}
        for node in (self.nodes[member] for member in members):
            left = [digest.hex()[:8] for digest in node.place.rows if digest not in named]
            if left and node.up:
                raise Violation(f"node {node.node_id} still keeps {left}, which nothing names")


def _is_good(node: DataNode, digest: Digest) -> bool:
    row = node.place.durable.get(digest)
    return row is not None and blake3(row.data).digest() == digest and not node.world.nodes[node.node_id].lost


def _hole(digest: Digest, version_id: bytes) -> str:
    return f"chunk {digest.hex()[:8]} of live version {version_id.hex()[:8]} is nowhere"
