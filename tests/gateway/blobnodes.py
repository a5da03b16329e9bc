"""Servers of chunks alone, in the test's own process, which can be stopped, full, or slow."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from gateway.blobs.client import Members
from gateway.blobs.listener import Listener
from gateway.blobs.local import LocalBlobs
from gateway.blobs.placement import Place
from gateway.blobs.service import BlobService
from objmeta import Chunk, errors
from objmeta.grpcio import grpc
from tests.gateway import blobfiles


class Troubled(LocalBlobs):
    """A local store that can be full, or slow."""

    full = False
    leaves = False
    delay_s = 0.0

    async def receive(self, chunk: Chunk, parts: Sequence[bytes | memoryview], *, generation: int) -> None:
        await asyncio.sleep(self.delay_s)
        if self.full:
            raise errors.StoreFull(f"there is no room in {self.path}")
        if self.leaves:
            raise errors.Unavailable("this node leaves")
        await super().receive(chunk, parts, generation=generation)

    async def get(self, chunk: Chunk, start: int = 0, stop: int | None = None) -> bytes:
        await asyncio.sleep(self.delay_s)
        return await super().get(chunk, start, stop)


class BlobNode:
    """A server with chunks only; stopping it keeps the address. Without ``channel`` it has gRPC alone."""

    def __init__(self, path: Path, *, channel: bool = True) -> None:
        self.blobs = Troubled(path)
        self.address = "127.0.0.1:0"
        self.service = BlobService(self.blobs)
        self._channel = channel
        self.listener = Listener(self.service)
        self._server: Any = None

    async def start(self) -> None:
        self.service = BlobService(self.blobs)
        self.listener = Listener(self.service)
        self._server = cast(Any, grpc.aio).server(options=(("grpc.so_reuseport", 0),))
        self._server.add_generic_rpc_handlers((self.service.handler(),))
        port = self._server.add_insecure_port(self.address)
        self.address = f"127.0.0.1:{port}"
        if self._channel:
            await self.listener.start("127.0.0.1")
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self.listener.stop(0)
            await self._server.stop(None)
            self._server = None

    def holds(self, chunk: Chunk) -> bool:
        return blobfiles.is_held(self.blobs.path, chunk)

    def spoil(self, chunk: Chunk) -> None:
        blobfiles.spoil(self.blobs.path, chunk)

    def lose(self, chunk: Chunk) -> None:
        blobfiles.lose(self.blobs.path, chunk)


def placed(*nodes: BlobNode | str) -> Members:
    """Members with the ids 1, 2, …, by node or address."""

    async def members() -> tuple[int, Sequence[Place]]:
        return 0, places(*nodes)

    return members


def places(*nodes: BlobNode | str) -> list[Place]:
    return [
        Place(number, node if isinstance(node, str) else node.address) for number, node in enumerate(nodes, start=1)
    ]
