"""Stores for the file system's tests, in memory where the machine has a disk there: they sync a lot."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from gateway.fs.filesystem import ObjmetaFileSystem
from tests.gateway.blobnodes import BlobNode


@pytest.fixture
def home() -> Iterator[Path]:
    """An empty directory for an embedded store."""
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as directory:
        yield Path(directory)


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of this machine or user has a say."""
    for name in [name for name in os.environ if name.startswith(("OBJMETA_", "FSSPEC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


@pytest.fixture
def fs(home: Path, no_settings: None) -> Iterator[ObjmetaFileSystem]:
    """A file system on an embedded store with one bucket, ``bucket``."""
    found = ObjmetaFileSystem(path=home)
    found.mkdir("bucket")
    yield found
    found.close()
    ObjmetaFileSystem.clear_instance_cache()


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[BlobNode]:
    """The blobs of one node, served."""
    started = BlobNode(tmp_path / "blobs")
    await started.start()
    yield started
    await started.stop()
    await started.blobs.close()


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[list[BlobNode]]:
    """Three servers of chunks."""
    found = [BlobNode(tmp_path / str(number)) for number in range(3)]
    for node in found:
        await node.start()
    yield found
    for node in found:
        await node.stop()
        await node.blobs.close()


@pytest.fixture
def tiny_disk(make_disk: Callable[[int], Path]) -> Path:
    """A file system of 4 MiB."""
    return make_disk(4)
