"""Where the workers of a store are: in this process, for directories, or on the nodes of a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gateway.blobs.disks import BLOBS, DiskBlobs
from gateway.blobs.local import LocalBlobs
from gateway.blobs.places import BlobStore
from gateway.collection.collect import CycleName, Expand, Link, Place, Source, Worker
from gateway.collection.cycles import INTERVAL_S, Meet, Workers, in_background
from gateway.data.commits import decode_list
from gateway.data.parts import chunks_of_parts
from objmeta import Chunk, Cluster, Marked, errors

if TYPE_CHECKING:
    from gateway.data.transfer import Store
    from objmeta.grpcio import grpc

SPOOLS: Final = "spools"


@asynccontextmanager
async def workers_of(store: Store) -> AsyncIterator[Meet]:
    """What finds the workers of a store, until the block is left."""
    if isinstance(store.client.location, Cluster):
        from gateway.collection.service import CollectorPeers

        peers = CollectorPeers()
        try:
            yield meet_nodes(store, peers.link)
        finally:
            await peers.close()
        return
    local = _LocalWorkers(store)
    try:
        yield local.meet
    finally:
        await local.close()


def meet_nodes(store: Store, link: Callable[[int, str], Link]) -> Meet:
    """Workers on the nodes that are members now."""

    async def meet() -> Workers:
        status = await store.client.status()
        addresses = {node.node_id: node.address for node in status.nodes}
        return Workers(status.epoch, {a: link(a, address) for a, address in addresses.items()}, addresses)

    return meet


class _LocalWorkers:
    """One for each directory of a store, in this process."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._workers: dict[int, Worker] = {}

    async def meet(self) -> Workers:
        """All of them. Raises Unavailable if a disk is away."""
        status = await self._store.client.status()
        for node in status.nodes:
            if node.state != "up":
                raise errors.Unavailable(f"{node.address} cannot be used now: {node.detail or node.state}")
        for acceptor, place in (await self._places({Path(n.address): n.node_id for n in status.nodes})).items():
            if acceptor not in self._workers:
                self._workers[acceptor] = Worker(
                    acceptor,
                    self._source(acceptor),
                    place,
                    expand=expanding(self._store.blobs),
                    link=lambda acceptor, _: self._workers[acceptor],
                    parts=lambda: chunks_of_parts(self._store.client),
                    directory=place.path / SPOOLS,
                )
        there = {acceptor: self._workers[acceptor] for acceptor in (node.node_id for node in status.nodes)}
        return Workers(status.epoch, there, {node.node_id: node.address for node in status.nodes})

    async def _places(self, acceptors: dict[Path, int]) -> dict[int, LocalBlobs]:
        blobs = self._store.blobs
        if isinstance(blobs, LocalBlobs):
            return {next(iter(acceptors.values())): blobs}
        assert isinstance(blobs, DiskBlobs), "a store in directories keeps its chunks there"
        by_path = {place.path: place for place in await blobs.places()}
        if missing := [path for path in acceptors if path / BLOBS not in by_path]:
            raise errors.Unavailable(f"{missing[0]} cannot be used now")
        return {acceptor: by_path[path / BLOBS] for path, acceptor in acceptors.items()}

    def _source(self, acceptor: int) -> Source:
        async def pages(cycle: CycleName) -> AsyncGenerator[Marked, None]:
            all_marks = await self._store.client.local_marks(cycle.epoch)
            marks = all_marks.pop(acceptor)
            for other in all_marks.values():
                await other.aclose()
            async with aclosing(marks):
                async for page in marks:
                    yield page

        return pages

    async def close(self) -> None:
        """Stop what is under way."""
        await asyncio.gather(*(worker.close() for worker in self._workers.values()))


def expanding(blobs: BlobStore) -> Expand:
    """Reads lists of chunks."""

    async def expand(chunk: Chunk) -> Sequence[Chunk]:
        return decode_list(await blobs.get(chunk))

    return expand


class NodeCollector:
    """A node's worker and, in turn with those of other nodes, the cycles of the whole store.

    ``source`` is what its acceptor names, ``store`` gives the store as seen through this node, once it serves.
    """

    def __init__(
        self,
        node_id: int,
        source: Source,
        place: Place,
        store: Callable[[], Store],
        directory: Path,
        interval_s: float = INTERVAL_S,
    ) -> None:
        from gateway.collection.service import CollectorPeers

        self._node_id = node_id
        self._source = source
        self._place = place
        self._store = store
        self._directory = directory
        self._interval_s = interval_s
        self._peers = CollectorPeers()
        self._worker: Worker | None = None

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """What to add to the node's gRPC server."""
        from gateway.collection.service import handler

        return handler(self.worker)

    def worker(self) -> Worker:
        """The node's worker. Raises Unavailable before the node serves."""
        if self._worker is None:
            self._worker = Worker(
                self._node_id,
                self._source,
                self._place,
                expand=expanding(self._store().blobs),
                link=self._peers.link,
                parts=lambda: chunks_of_parts(self._store().client),
                directory=self._directory,
            )
        return self._worker

    async def run(self) -> None:
        """Have cycles run when they are due, until cancelled."""
        store = self._store()
        await in_background(store.client, meet_nodes(store, self._peers.link), self._interval_s)

    async def close(self) -> None:
        """Stop what is under way."""
        if self._worker is not None:
            await self._worker.close()
            self._worker = None
        await self._peers.close()
