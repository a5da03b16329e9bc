"""What the members remember of each other, so that a node which lost what it had promised is found out.

Theory of operation.  Every acceptor numbers its batches; its *position* is the number of the last durable one, told
along with its answers, and whoever hears it remembers the greatest.  A *life* of a node is one run of its process:
it begins at the position that is on the disk.  Nobody who remembers a greater one takes votes of that life, and the
node itself asks before it votes: a majority (itself included) must have answered, and of all that can be reached none
may remember a greater position.  Who could not be reached then is asked when it can.

This finds a directory that was put back from a copy, and a disk that lost writes it had confirmed, unless only batches
are lost of which no member that can be reached still knows: those of the last second, if the others crashed as well
(what is remembered is made durable once a second), or if a majority was put back at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from objmeta.core.quorum import Quorums
from objmeta.errors import ConfigurationMismatch, IntegrityError, Unavailable
from objmeta.node.kept import Kept
from objmeta.rpc import wire
from objmeta.rpc.peer import ask
from objmeta.rpc.wire import Life, Remembered

FILE_NAME: Final = "positions"
_KEEP_S: Final = 1.0
_ASK_TIMEOUT_S: Final = 3.0
"""Who is down refuses the connection at once; this is for who is slow."""
_POLL_S: Final = 0.1
_LIFE_BYTES: Final = 8

_log = logging.getLogger(__name__)


class Heard(NamedTuple):
    """The life of a member that was met last, and the greatest position heard of the member."""

    life: bytes
    position: int


NOTHING: Final = Heard(b"", 0)
_DECODER: Final = msgspec.msgpack.Decoder(dict[int, Heard])


class Positions:
    """What was heard of each member; belongs to one event loop."""

    def __init__(self, directory: Path) -> None:
        self._file = Kept(directory / FILE_NAME, _DECODER)
        self._heard = dict(self._file.read() or {})
        self._problems: dict[int, str] = {}

    def remembered(self, node_id: int) -> Heard:
        """What was heard of a member; no life and position 0 if nothing."""
        return self._heard.get(node_id, NOTHING)

    def met(self, node_id: int, life: Life) -> str:
        """A member is reached: why its votes must not be taken, empty if they may."""
        known = self.remembered(node_id)
        if known.life == life.random or life.began_at >= known.position:
            self._heard[node_id] = Heard(life.random, max(known.position, life.position))
            self._problems.pop(node_id, None)
            return ""
        problem = f"it has lost data: it began at position {life.began_at}, and had told {known.position} before"
        if self._problems.get(node_id) != problem:
            _log.error("node %d is refused: %s", node_id, problem)
        self._problems[node_id] = problem
        return problem

    def heard(self, node_id: int, position: int) -> None:
        """A member that was met told its position."""
        known = self.remembered(node_id)
        if position > known.position:
            self._heard[node_id] = Heard(known.life, position)

    def problem(self, node_id: int) -> str:
        """Why a member is refused, empty if it is not."""
        return self._problems.get(node_id, "")

    async def keep(self) -> None:
        """Make what is remembered durable now and then; ends only by cancellation."""
        while True:
            await asyncio.sleep(_KEEP_S)
            await self.keep_now()

    async def keep_now(self) -> None:
        """Make it durable, if there is anything new; a disk that fails is none of its business."""
        await self._file.write(dict(self._heard))


class Confirmation:
    """Whether this node has lost nothing that the others know of. Belongs to one event loop."""

    def __init__(self, directory: Path, node_id: int, store_id: bytes, position: int) -> None:
        self._directory = directory
        self._node_id = node_id
        self._store_id = store_id
        self._confirmed: set[int] = set()
        self._strangers: set[int] = set()
        self.life = Life(os.urandom(_LIFE_BYTES), position, position)
        """This run of the node."""

    async def by_majority(self, quorums: Quorums, addresses: Collection[str]) -> None:
        """Return when a majority has answered, and all that can be reached.

        Raises IntegrityError, and ConfigurationMismatch if too many of them belong to another store.
        """
        while True:
            await self._ask(addresses)
            if quorums.is_quorum({self._node_id, *self._confirmed}):
                return
            if not quorums.possible_without(self._strangers):
                raise ConfigurationMismatch(
                    "the members hold parts of different stores; start with directories of one store"
                )
            await asyncio.sleep(_POLL_S)

    async def by_the_rest(self, addresses: Mapping[int, str]) -> None:
        """Ask those members that have not answered yet. Raises IntegrityError."""
        await self._ask([address for node_id, address in addresses.items() if node_id not in self._confirmed])

    async def _ask(self, addresses: Collection[str]) -> None:
        question = wire.encode(self._node_id)
        asked = (_remembered(address, question) for address in sorted(set(addresses)))
        for answer in await asyncio.gather(*asked):
            if answer is None or not answer.store_id:
                continue
            if answer.store_id != self._store_id:
                self._strangers.add(answer.node_id)
                continue
            if answer.life != self.life.random and answer.position > self.life.began_at:
                raise IntegrityError(
                    f"the data in {self._directory} is older than what node {answer.node_id} has seen of this node "
                    f"(position {self.life.began_at} < {answer.position}): it was restored from a copy, or its disk "
                    "lost writes; it must not vote without knowing what it promised: start an empty node under a new "
                    "id with --join, and run 'gateway cluster replace'"
                )
            self._confirmed.add(answer.node_id)


async def _remembered(address: str, question: bytes) -> Remembered | None:
    try:
        return await ask(address, wire.POSITION, question, wire.decode_remembered, _ASK_TIMEOUT_S)
    except (Unavailable, ConfigurationMismatch):
        return None
