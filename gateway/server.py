"""A node with everything: objmeta's node and, on the same port, the chunks in ``DIR/blobs`` and their upkeep.

Long chunks have a port of their own beside it (``gateway.blobs.channel``), which clients are told of.

``gateway serve`` runs it, ``gateway dev`` and the tests as ``python -m gateway.server``.  When it listens it prints one
line, ``node ID listens on HOST:PORT``, and the port is the real one.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from gateway.blobs.listener import Listener
from gateway.blobs.placement import Said
from gateway.blobs.service import BlobService
from gateway.collection.collectors import SPOOLS, NodeCollector
from gateway.collection.cycles import INTERVAL_S
from gateway.data.commits import decode_list
from gateway.data.transfer import Store, open_store
from gateway.upkeep.keeper import REPAIR_MIB_PER_S, SCRUB_MIB_PER_S, Keeper, UpkeepSettings
from gateway.upkeep.wants import LocalWants
from gateway.upkeep.watched import WatchedBlobs
from objmeta import Chunk, Marked, errors
from objmeta.config import parse_endpoints
from objmeta.node import Node, NodeSettings, parse_peers, run
from objmeta.node import serve as serve_node
from objmeta.node.dev import LocalCluster

__all__ = [
    "DataNode",
    "LocalCluster",
    "NodeSettings",
    "Said",
    "UpkeepSettings",
    "local_cluster",
    "parse_data_port",
    "run",
    "serve",
]

_TIMEOUT_S: Final = 10.0
_REACHED_AT: Final = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}
"""How a node reaches itself where it listens on all addresses."""

_log = logging.getLogger(__name__)


def local_cluster(directory: Path, nodes: int = 3) -> LocalCluster:
    """Nodes of this kind as processes on this machine, not started yet."""
    return LocalCluster(directory, nodes, (sys.executable, "-m", "gateway.server"))


class DataNode(Node):
    """A node that keeps chunks as well, and looks after them from when it is ready until it stops.

    ``data_port`` is where long chunks come in (0: any free one; None: over gRPC, as everything else).
    """

    def __init__(self, settings: NodeSettings, upkeep: UpkeepSettings | None = None, data_port: int | None = 0) -> None:
        self._data_port = data_port
        self._blobs = WatchedBlobs(settings.data / "blobs", self._leaves)
        self._store: Store | None = None
        self._keeping: asyncio.Task[None] | None = None
        wants = LocalWants(self._named, self._listed, self._replicas, settings.data / SPOOLS)
        upkeep = upkeep or UpkeepSettings()
        self._keeper = Keeper(
            settings.node_id,
            self._blobs,
            lambda: self._own_store.client,
            wants.pages,
            upkeep,
            membership=self.membership,
            caught_up=self._caught_up,
            check=self.registers,
        )
        self._collector = NodeCollector(
            settings.node_id,
            lambda cycle: self.marks(cycle.epoch),
            self._blobs,
            lambda: self._own_store,
            settings.data / SPOOLS,
            upkeep.collect_interval_s,
        )
        service = BlobService(self._blobs, self.registers, settings.node_id)
        self._listener = Listener(service)
        handlers = (
            service.handler(),
            self._keeper.service.handler(),
            self._collector.handler(),
        )
        super().__init__(settings, handlers)
        self.may_leave = self._keeper.may_leave

    async def start(self) -> None:
        """As Node.start; what is done in the background begins when the node is ready."""
        await super().start()
        host, _, port = self.address.rpartition(":")
        if self._data_port is not None:
            try:
                await self._listener.start(host, self._data_port)
            except OSError as error:
                await super().stop(0)
                problem = error.strerror or error
                raise errors.StoreError(f"data port {self._data_port} of {host}: {problem}") from error
        self._store = await open_store(f"{_REACHED_AT.get(host, host)}:{port}", timeout_s=_TIMEOUT_S)
        self._keeping = asyncio.create_task(self._keep(), name=f"upkeep of node {self.settings.node_id}")

    async def stop(self, grace_s: float = 2.0) -> None:
        """As Node.stop."""
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + grace_s
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait((self._keeping,), timeout=grace_s)  # whoever collects gives back its lock
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
            self._keeping = None
        await self._keeper.close()
        await self._collector.close()
        if self._store is not None:
            store, self._store = self._store, None
            await store.close()
        await super().stop(max(0.0, ends_s - loop.time()))
        await self._blobs.close()

    async def finish(self, grace_s: float) -> None:
        """As Node.finish, with chunks that are on their way."""
        await asyncio.gather(super().finish(grace_s), self._listener.stop(grace_s))

    async def _keep(self) -> None:
        with suppress(errors.ObjmetaError):
            await self.ready()
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._keeper.run())
                    tasks.create_task(self._collector.run())
            except Exception:
                _log.exception("node %d does not look after its chunks any more", self.settings.node_id)

    @property
    def _own_store(self) -> Store:
        """The store as seen through this node."""
        if self._store is None:
            raise errors.Unavailable(f"node {self.settings.node_id} does not serve yet")
        return self._store

    def _leaves(self) -> bool:
        membership = self.membership()
        return membership is not None and self.settings.node_id not in membership.configuration.member_sets[-1]

    def _caught_up(self) -> int | None:
        status = self.repair_status()
        return status.passes if status is not None and status.complete_s is not None else None

    async def _replicas(self) -> Mapping[bytes, int]:
        return {bucket.bucket_id: bucket.settings.replicas for bucket in await self._own_store.client.buckets()}

    def _named(self) -> AsyncIterator[Marked]:
        return self.marks(self.registers().configuration.epoch, joint=True)

    async def _listed(self, chunk: Chunk) -> Sequence[Chunk]:
        return decode_list(await self._own_store.blobs.get(chunk))


def parse_data_port(text: str) -> int | None:
    """What ``--data-port`` says, as DataNode takes it. Raises InvalidArgument."""
    if text in ("any", "none"):
        return 0 if text == "any" else None
    if text.isdecimal() and 0 < int(text) < 1 << 16:
        return int(text)
    raise errors.InvalidArgument(f"--data-port is a number from 1 to 65535, or any, or none, not {text!r}")


async def serve(
    settings: NodeSettings,
    upkeep: UpkeepSettings | None = None,
    announce: Callable[[int, str], None] | None = None,
    data_port: int | None = 0,
) -> None:
    """Run a node until SIGTERM or SIGINT, then stop it cleanly.

    ``announce`` is called with the node's id and address when it listens; without it, a line is printed.
    ``data_port``: see DataNode.

    Raises StoreError, StoreFull, ConfigurationMismatch: what keeps the node from serving.
    """
    told = announce or _print
    node = DataNode(settings, upkeep, data_port)
    await serve_node(node, lambda started: told(settings.node_id, started.address))


def _print(node_id: int, address: str) -> None:
    print(f"node {node_id} listens on {address}", flush=True)


def main() -> int:
    """Run until SIGTERM or SIGINT; 0 when stopped, 1 when the node cannot serve."""
    parser = argparse.ArgumentParser(prog="python -m gateway.server", description="Run one node of a cluster.")
    parser.add_argument("--data", type=Path, required=True, help="directory of everything the node keeps")
    parser.add_argument("--listen", default="127.0.0.1:0", help="host:port; port 0 takes a free one")
    parser.add_argument("--node-id", type=int, default=1)
    parser.add_argument("--peers", default="", help="1=host:port,2=host:port,3=host:port")
    parser.add_argument("--join", default="", help="host:port,… of members of the cluster to join")
    parser.add_argument("--insecure", action="store_true", help="listen beyond this machine, without encryption")
    parser.add_argument("--data-port", default="any", help="where long chunks come in: a port, any, or none")
    parser.add_argument("--zone", default="", help="what the node may fail together with")
    parser.add_argument("--weight", type=float, default=1.0, help="its capacity, in any unit")
    parser.add_argument("--repair-rate", type=float, default=REPAIR_MIB_PER_S, help="MiB/s that repair may fetch")
    parser.add_argument("--scrub-rate", type=float, default=SCRUB_MIB_PER_S, help="MiB/s that the scrub may read")
    parser.add_argument("--collect-interval", type=float, default=INTERVAL_S, help="seconds between two collections")
    given = parser.parse_args()
    try:
        settings = NodeSettings(
            data=given.data,
            listen=given.listen,
            node_id=given.node_id,
            peers=parse_peers(given.peers),
            join=parse_endpoints(given.join) if given.join else (),
            insecure=given.insecure,
        )
        said = Said(given.weight, given.zone)
        upkeep = UpkeepSettings(
            said=said,
            repair_mib_per_s=given.repair_rate,
            scrub_mib_per_s=given.scrub_rate,
            collect_interval_s=given.collect_interval,
        )
        run(serve(settings, upkeep, data_port=parse_data_port(given.data_port)))
    except errors.ObjmetaError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
