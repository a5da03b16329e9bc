"""The embedded store: one acceptor in a directory on this machine, the proposer in this process.

Any number of processes may open the same directory: SQLite keeps their steps apart, and each has a proposer of its own,
drawn from the operating system's randomness, so their ballots differ.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from objmeta.config import version
from objmeta.core.configuration import Configuration, single_set
from objmeta.core.listing import ScanRequest
from objmeta.core.messages import Fence, Record, RecordRef, State
from objmeta.errors import ConfigurationMismatch
from objmeta.interfaces import (
    ChangedNames,
    ChangeReply,
    ChangeRequest,
    Collected,
    Cycle,
    NodeStatus,
    ScanPage,
    StoreStatus,
    Watermarks,
)
from objmeta.register.engine import Engine
from objmeta.register.life import new_ballots
from objmeta.register.local import Acceptor, LocalTransport
from objmeta.store.lane import Lane
from objmeta.store.sqlite import SqliteStore

ACCEPTOR_DIRECTORY = "acceptor"
_ACCEPTOR_ID = 1


class EmbeddedRegisters:
    """Satisfies :class:`objmeta.interfaces.Registers`; belongs to one event loop of one process."""

    def __init__(self, home: Path, store: SqliteStore) -> None:
        self._home = home
        self._store = store
        self._opened_s = time.monotonic()
        self._lane = Lane(store, asyncio.get_running_loop())
        tag = store.configuration.tag
        self._engine = Engine(
            store.membership,
            LocalTransport(tag, {store.acceptor_id: self._lane}),
            new_ballots(),
            random.Random(os.urandom(16)),
            own_acceptor=store.acceptor_id,
        )

    @classmethod
    async def open(cls, home: Path) -> EmbeddedRegisters:
        """Open the store in ``home``, making it if there is none.

        Raises StoreError, also if this is only a part of one, such as a node's directory; StoreFull, IntegrityError.
        """
        store = await asyncio.to_thread(
            SqliteStore.open_or_create, home / ACCEPTOR_DIRECTORY, _ACCEPTOR_ID, _new_configuration
        )
        if store.configuration.quorums.members != (store.acceptor_id,):
            await asyncio.to_thread(store.close)
            raise ConfigurationMismatch(f"{home} is one of the disks of a store: name all of them (the setting disks)")
        return cls(home, store)

    async def read(self, names: Sequence[bytes], timeout_s: float, fence: Fence | None = None) -> list[State | None]:
        return await self._engine.read(names, timeout_s, fence)

    async def change(self, request: ChangeRequest, timeout_s: float) -> ChangeReply:
        return await self._engine.change(request, timeout_s)

    async def records(
        self, name: bytes, refs: Sequence[RecordRef], timeout_s: float, with_data: bool = True
    ) -> list[Record]:
        return await self._engine.records(name, refs, timeout_s, with_data)

    async def scan(self, request: ScanRequest, timeout_s: float) -> ScanPage:
        return await self._engine.scan(request, timeout_s)

    async def changes(self, since: Watermarks | None, limit: int, timeout_s: float) -> ChangedNames:
        return await self._engine.changes(since, limit, timeout_s)

    async def raise_term(self, scope: bytes, term: int, timeout_s: float) -> None:
        await self._engine.raise_term(scope, term, timeout_s)

    async def status(self, timeout_s: float) -> StoreStatus:
        """The one acceptor, and the disk under it."""
        status = await self._engine.status(timeout_s)
        (node,) = status.nodes
        described = NodeStatus(
            node.node_id,
            str(self._home),
            node.state,
            str(self._lane.damage) or "embedded",
            version(),
            registers=await self._lane.count(),
            changes=(await self._lane.changes(sys.maxsize, 1)).watermark,
            disk_free=shutil.disk_usage(self._home).free,
            uptime_s=time.monotonic() - self._opened_s,
        )
        return StoreStatus(status.store_id, status.epoch, (described,), status.quorum)

    async def collect(self, run: int, timeout_s: float) -> Collected:
        """Erase what can be erased, and give the space back to the disk."""
        collected = await self._engine.collect(run, timeout_s)
        if collected.done:
            await asyncio.to_thread(self._store.tidy)
        return collected

    async def begin_cycle(self, timeout_s: float) -> Cycle:
        return await self._engine.begin_cycle(timeout_s)

    def acceptors(self) -> tuple[Configuration, dict[int, Acceptor]]:
        """The configuration in force, and the one acceptor."""
        return self._engine.configuration, {self._store.acceptor_id: self._lane}

    async def close(self) -> None:
        """Stop the lane's threads and close the files."""
        await self._engine.close()
        await self._lane.close()
        await asyncio.to_thread(self._store.close)


def _new_configuration() -> Configuration:
    return single_set(os.urandom(16), (_ACCEPTOR_ID,))
