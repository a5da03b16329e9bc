"""zarr's own behaviour suite for stores, over its FsspecStore, on the embedded store; and arrays in it.

Of the suite, five cases skip themselves: they are for stores with blocking methods, which FsspecStore is not.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.core.buffer import Buffer, cpu
from zarr.core.sync import sync
from zarr.storage import FsspecStore
from zarr.testing.store import StoreTests

from gateway.fs.filesystem import ObjmetaFileSystem


class TestSuite(StoreTests[FsspecStore, cpu.Buffer]):
    store_cls = FsspecStore
    buffer_cls = cpu.Buffer

    @pytest.fixture
    async def files(self, shared_home: Path) -> AsyncIterator[ObjmetaFileSystem]:
        """The file system for coroutines, which has a store open on each event loop: the test's and zarr's."""
        found = ObjmetaFileSystem(path=str(shared_home), asynchronous=True)
        yield found
        await found._close()
        await asyncio.to_thread(sync, found._close())

    @pytest.fixture
    def store_kwargs(self, files: ObjmetaFileSystem, bucket: str) -> dict[str, Any]:
        return {"fs": files, "path": bucket}

    async def get(self, store: FsspecStore, key: str) -> Buffer:
        return self.buffer_cls.from_bytes(await store.fs._cat_file(f"{store.path}/{key}"))

    async def set(self, store: FsspecStore, key: str, value: Buffer) -> None:
        await store.fs._pipe_file(f"{store.path}/{key}", value.to_bytes())

    def test_store_repr(self, store: FsspecStore) -> None:
        assert str(store) == f"<FsspecStore(ObjmetaFileSystem, {store.path})>"

    def test_store_supports_writes(self, store: FsspecStore) -> None:
        assert store.supports_writes

    def test_store_supports_listing(self, store: FsspecStore) -> None:
        assert store.supports_listing


def test_arrays_and_groups(shared_home: Path, bucket: str) -> None:
    url, options = f"objmeta://{bucket}/ü data.zarr", {"path": str(shared_home)}
    numbers = np.arange(200 * 300, dtype="int32").reshape(200, 300)
    made = zarr.open_group(url, mode="w", storage_options=options)
    made.attrs["by"] = "ö"
    array = made.create_array("numbers", shape=numbers.shape, chunks=(64, 64), dtype=numbers.dtype)
    array[:] = numbers
    array[10:20, 5] = -1
    found = zarr.open_group(url, mode="r", storage_options=options)
    numbers[10:20, 5] = -1
    assert dict(found.attrs) == {"by": "ö"}
    again = zarr.open_array(f"{url}/numbers", mode="r", storage_options=options)
    np.testing.assert_array_equal(again[:], numbers)
    np.testing.assert_array_equal(again[60:70, 250:], numbers[60:70, 250:])
    with pytest.raises(FileNotFoundError):
        zarr.open_group(f"objmeta://{bucket}/none.zarr", mode="r", storage_options=options)
    assert isinstance(found.store, FsspecStore)
    sync(found.store.fs._close())
