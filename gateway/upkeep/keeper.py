"""A node's upkeep of its chunks: what runs in the background, when, and what it tells.

Rules.  Repair runs when the node has become ready and its acceptor has caught up, when the members or their weights
have changed, when the acceptor has caught up again (so this node or another one was away), and otherwise once in a
while.  Scrub runs once per period.  Each runs once at a time, at a bounded rate, and also when somebody asks.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from gateway.blobs.placement import Said
from gateway.collection.cycles import INTERVAL_S
from gateway.upkeep.asking import Nodes
from gateway.upkeep.leaving import Leaving
from gateway.upkeep.pace import Pace
from gateway.upkeep.repairing import Repairer, Wanted
from gateway.upkeep.runs import Runner
from gateway.upkeep.scrubbing import Scrubber
from gateway.upkeep.service import REPAIR, SCRUB, DataStatus, UpkeepService
from gateway.upkeep.views import Tag, Views, register
from gateway.upkeep.watched import WatchedBlobs
from objmeta import AsyncClient, Chunk, errors
from objmeta.client import Membership

VIEWS_S: Final = 15.0
"""How often weights and zones are looked up: they change when somebody restarts a node with others."""
PATIENCE_S: Final = 60.0
"""A node whose acceptor has not caught up by then (a peer is away for good) repairs what it knows of."""
PROBE_S: Final = 5.0
REPAIR_MIB_PER_S: Final = 32.0
SCRUB_MIB_PER_S: Final = 32.0
_MIB: Final = 1 << 20

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpkeepSettings:
    """How a node looks after its chunks. Raises InvalidArgument."""

    said: Said = field(default_factory=Said)
    """Its weight and its zone."""

    repair_mib_per_s: float = REPAIR_MIB_PER_S
    """Fetched for repair at most, in MiB/s."""

    scrub_mib_per_s: float = SCRUB_MIB_PER_S
    """Read for the scrub at most, in MiB/s."""

    scrub_period_s: float = 14 * 86_400.0
    """Everything is read once in this time, if the rate allows it."""

    repair_interval_s: float = 3600.0
    """Repair runs this often although nothing seems to have happened."""

    collect_interval_s: float = INTERVAL_S
    """What nothing names any more is collected this often."""

    def __post_init__(self) -> None:
        self.said.checked()
        numbers = (
            self.repair_mib_per_s,
            self.scrub_mib_per_s,
            self.scrub_period_s,
            self.repair_interval_s,
            self.collect_interval_s,
        )
        if not all(number > 0 and not math.isnan(number) for number in numbers):
            raise errors.InvalidArgument("rates and periods of upkeep are numbers above 0")


class Keeper:
    """Looks after the chunks of one node; belongs to one event loop.

    ``membership`` gives what the node has adopted; ``caught_up`` how often its acceptor has caught up with others, None
    before the first time; ``check`` raises Unavailable while the node is not ready.  ``client`` gives the store as
    seen through this node, from when that listens; it is the caller's to close.
    """

    def __init__(
        self,
        node_id: int,
        blobs: WatchedBlobs,
        client: Callable[[], AsyncClient],
        wanted: Wanted,
        settings: UpkeepSettings,
        *,
        membership: Callable[[], Membership | None],
        caught_up: Callable[[], int | None],
        check: Callable[[], object],
    ) -> None:
        self._node_id = node_id
        self._blobs = blobs
        self._client = client
        self._settings = settings
        self._caught_up = caught_up
        self._views = Views(client, membership)
        self._nodes = Nodes()
        self._repairer = Repairer(
            node_id,
            blobs,
            self._nodes,
            self._views,
            wanted,
            lambda: client().generation(),
            Pace(settings.repair_mib_per_s * _MIB),
        )
        self._scrubber = Scrubber(blobs, Pace(settings.scrub_mib_per_s * _MIB), self._heal)
        self._repairing = Runner("repair of data", self._repairer.run, retries_left=True)
        self._scrubbing = Runner("scrub", self._scrubber.run, retries_left=False)
        runners = {REPAIR: self._repairing, SCRUB: self._scrubbing}
        self.may_leave = Leaving(self._views.tag, self._nodes.upkeep).may_leave
        """When members that leave may do so."""
        self.service = UpkeepService(blobs, self._repairer.handover, runners, self.status, check)
        self._seen: tuple[Tag, int] | None = None
        self._repair_at = 0.0
        self._began_s = 0.0

    async def run(self) -> None:
        """Work until cancelled; begun when the node is ready."""
        self._began_s = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._register(), name="registering this node's place")
            group.create_task(self._look_around(), name="looking at the places of nodes")
            group.create_task(self._probe(), name="trying a disk that failed")
            group.create_task(self._repairing.forever(self._repair_is_due), name="repair of data")
            group.create_task(self._scrubbing.forever(self._scrub_is_due), name="scrub")

    async def close(self) -> None:
        """Close connections to the other nodes."""
        await self._nodes.close()

    async def status(self) -> DataStatus:
        """What this node says of its chunks. Never fails: what cannot be read is the trouble."""
        trouble = await self._blobs.trouble()
        said = self._settings.said
        repair, scrub = self._repairing.told(), self._scrubbing.told()
        try:
            usage = await self._blobs.usage()
        except errors.StoreError as problem:
            trouble = trouble or str(problem)
            return DataStatus(self._node_id, said.zone, said.weight, trouble=trouble, repair=repair, scrub=scrub)
        return DataStatus(
            self._node_id,
            said.zone,
            said.weight,
            usage.chunks,
            usage.chunk_bytes,
            usage.stored_bytes,
            usage.damaged,
            self._repairer.missing,
            self._repairer.surplus,
            trouble,
            repair,
            scrub,
            self._repairer.epoch,
        )

    # -- When ---------------------------------------------------------------------------------------------------------

    async def _repair_is_due(self) -> bool:
        now = asyncio.get_running_loop().time()
        passes = self._caught_up()
        if passes is None and now < self._began_s + PATIENCE_S:
            return False
        seen = (self._views.tag(), passes or 0)
        if seen == self._seen and now < self._repair_at:
            return False
        self._seen, self._repair_at = seen, now + self._settings.repair_interval_s
        return True

    async def _scrub_is_due(self) -> bool:
        return await self._scrubber.due(self._settings.scrub_period_s)

    async def _heal(self, chunk: Chunk) -> None:
        _log.warning("chunk %s is damaged here and fetched anew", chunk.digest.hex())
        await self._repairer.heal(chunk)

    # -- Around it ----------------------------------------------------------------------------------------------------

    async def _register(self) -> None:
        while True:
            try:
                await register(self._client(), self._node_id, self._settings.said)
                await self._views.refreshed()
                return
            except errors.ObjmetaError as problem:
                _log.info("the weight and zone of this node could not be registered yet: %s", problem)
            await asyncio.sleep(1.0)

    async def _look_around(self) -> None:
        while True:
            with suppress(errors.ObjmetaError):
                await self._views.refreshed()
            await asyncio.sleep(VIEWS_S)

    async def _probe(self) -> None:
        while True:
            await self._blobs.probe()
            await asyncio.sleep(PROBE_S)
