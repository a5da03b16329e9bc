"""Every kind of place, for the tests that all of them have to pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from gateway.blobs.local import LocalBlobs
from gateway.blobs.places import BlobPlace
from gateway.testing.places import MemoryPlace
from objmeta import Chunk
from tests.gateway import blobfiles


class Lab(Protocol):
    """A place whose disk can be harmed."""

    @property
    def place(self) -> BlobPlace: ...

    def spoil(self, chunk: Chunk) -> None:
        """Flip a bit of a chunk's bytes."""
        ...

    def lose(self, chunk: Chunk) -> None:
        """Take a chunk's bytes away, but not what the place knows of it."""
        ...

    async def reopened(self) -> BlobPlace:
        """The same place, as another process would open it."""
        ...


class LocalLab:
    """On a real disk."""

    def __init__(self, path: Path) -> None:
        self.place = LocalBlobs(path / "blobs")

    def spoil(self, chunk: Chunk) -> None:
        """See :class:`Lab`."""
        blobfiles.spoil(self.place.path, chunk)

    def lose(self, chunk: Chunk) -> None:
        """See :class:`Lab`."""
        blobfiles.lose(self.place.path, chunk)

    async def reopened(self) -> BlobPlace:
        """See :class:`Lab`."""
        await self.place.close()
        self.place = LocalBlobs(self.place.path)
        return self.place


class MemoryLab:
    """In the simulator's memory."""

    def __init__(self, path: Path) -> None:
        self.place = MemoryPlace()

    def spoil(self, chunk: Chunk) -> None:
        """See :class:`Lab`."""
        self.place.damage(chunk.digest)

    def lose(self, chunk: Chunk) -> None:
        """See :class:`Lab`."""
        self.place.lose(chunk.digest)

    async def reopened(self) -> BlobPlace:
        """See :class:`Lab`."""
        self.place.crash(survivors=0)
        return self.place


FACTORIES: Final[dict[str, Callable[[Path], Lab]]] = {"local": LocalLab, "memory": MemoryLab}
