"""An observer who knows all that was ever chosen, and so what is named now; and what must hold of the bytes.

* No hole: of every chunk that a live version names there is a good copy at a member, durable, at all times.
* What a client is told to be stored or touched is so at as many nodes as it asked for, durably.
* What a version names was told to be stored or touched in the generation that it states, or later.
* No generation is stated that has not begun.
* No copy that a live version's operation touched is deleted by a sweep.
* Two cycles: what was live a moment ago is not deleted before another cycle has begun.
* In the end, when all is quiet, nothing is stored that nothing names.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from blake3 import blake3

from gateway.blobs.places import Sweep
from gateway.testing.nodes import DataNode
from gateway.testing.places import Row
from objmeta import Chunk
from objmeta.core.erasure import GENERATION_REGISTER, generation_in
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
    acknowledged: dict[Digest, dict[int, int]] = field(default_factory=dict)
    """By chunk and node: the greatest generation with which that node said it is there."""
    violation: str = ""
    """What was seen first in the middle of something that must not be disturbed; told by the next check."""
    _last_live_s: dict[bytes, float] = field(default_factory=dict)
    """By version."""
    _hurt: dict[Digest, int] = field(default_factory=dict)
    """By chunk: the node whose copy was damaged or lost last."""
    _told: dict[Digest, int] = field(default_factory=dict)
    """The greatest generation in which clients were told that a chunk is stored or touched."""
    _dropped: dict[tuple[int, Digest], int] = field(default_factory=dict)
    """By node and chunk: when a surplus copy was last touched that went."""

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

    def spare(self, digest: Digest) -> list[int]:
        """Members that may lose their copy of a chunk: of the latest touched ones another good one is left.

        One is the most that is damaged or lost of a chunk at a time, before it is mended.
        """
        members = self.world.watch.newest.quorums.members
        rows = {member: self.nodes[member].place.rows.get(digest) for member in members}
        if digest in self._hurt and not _is_good(self.nodes[self._hurt[digest]], digest):
            return []
        newest = max((row.touched for row in rows.values() if row is not None), default=0)
        staying = self.world.watch.newest.member_sets[-1]
        left = [
            member
            for member in staying
            if _is_good(self.nodes[member], digest) and self.nodes[member].place.durable[digest].touched >= newest
        ]
        return [member for member, row in rows.items() if row is not None and any(other != member for other in left)]

    def on_hurt(self, node_id: int, digest: Digest) -> None:
        """A copy is damaged or lost."""
        self._hurt[digest] = node_id

    # -- What must hold -----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """There is no hole. Raises Violation."""
        if self.violation:
            raise Violation(self.violation)
        now = self.world.loop.time()
        for version_id, put in self.live().items():
            self._last_live_s[version_id] = now
            for digest in put.digests:
                if not self._is_held(digest):
                    raise Violation(_hole(digest, version_id))

    def _is_held(self, digest: Digest) -> bool:
        """Whether a member has a good copy; what those that have left hold is nobody's concern any more."""
        return any(_is_good(self.nodes[member], digest) for member in self.world.watch.newest.quorums.members)

    def on_delete(self, node: DataNode, digest: Digest, row: Row, sweep: Sweep | None) -> None:
        """A copy is being deleted."""
        self.world.note(f"D{node.node_id} deletes {digest.hex()[:8]} {row.touched=} {row.unmarked_since=} {sweep=}")
        if sweep is None:
            self._dropped[node.node_id, digest] = row.touched
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

    def on_asked(self, generation: int) -> None:
        """A node is asked for something in this generation."""
        states = self.world.watch.states(GENERATION_REGISTER)
        newest = generation_in(states[-1] if states else None)
        if generation > newest:
            self.violation = self.violation or f"generation {generation} is stated, and the newest is {newest}"

    def on_acknowledged(self, chunk: Chunk, generation: int, needed: int) -> None:
        """A client is told that a chunk is there in so many copies, touched in that generation."""
        said = self.acknowledged.get(chunk.digest, {})
        holders = sorted(node_id for node_id, touched in said.items() if touched >= generation)
        if len(holders) < needed:
            self.violation = self.violation or (
                f"chunk {chunk.digest.hex()[:8]} counts as stored in generation {generation}, and of the {needed} "
                f"nodes that takes only {holders} ever said so"
            )
        self._told[chunk.digest] = max(self._told.get(chunk.digest, 0), generation)

    def on_commit(self, operation: bytes, chunks: Sequence[Chunk], generation: int) -> None:
        """A version is about to be proposed that names these chunks and states this generation."""
        self.puts[operation] = Put(tuple(chunk.digest for chunk in chunks), generation)
        for chunk in chunks:
            if (newest := self._told.get(chunk.digest, -1)) < generation:
                self.violation = self.violation or (
                    f"version {operation.hex()[:8]} states generation {generation} and names chunk "
                    f"{chunk.digest.hex()[:8]}, which was last told to be stored or touched in {newest}"
                )

    def on_touched(self, node: DataNode, chunk: Chunk, generation: int) -> None:
        """A node is about to say that it has a chunk, touched."""
        said = self.acknowledged.setdefault(chunk.digest, {})
        said[node.node_id] = max(said.get(node.node_id, 0), generation)
        row = node.place.durable.get(chunk.digest)
        if generation <= self._dropped.get((node.node_id, chunk.digest), 0):
            return  # all of its homes were touched as lately and have it
        if row is None and self._hurt.get(chunk.digest) == node.node_id:
            return  # it was so a moment ago
        if (row is None or row.touched < generation) and node.place.floor <= generation:
            self.violation = self.violation or (
                f"node {node.node_id} says that chunk {chunk.digest.hex()[:8]} was touched in {generation}, and would "
                "not know that after a crash"
            )

    def on_gone(self, digest: Digest) -> None:
        """A copy is gone for good."""
        if self._is_held(digest):
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
