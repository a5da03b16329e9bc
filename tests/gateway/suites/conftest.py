"""What behaviour suites of other projects need to be collected here, and one store for each of them."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.fs.filesystem import ObjmetaFileSystem

pytest.register_assert_rewrite("fsspec.tests.abstract", "pyarrow.tests.test_fs", "zarr.testing")


def pytest_configure(config: pytest.Config) -> None:
    """pyarrow's tests carry marks of its own, which ``--strict-markers`` refuses unless they are known."""
    from pyarrow.conftest import groups

    for mark in groups:
        config.addinivalue_line("markers", f"{mark}: a mark of pyarrow's own tests")


@pytest.fixture(scope="module")
def shared_home() -> Iterator[Path]:
    """A directory for one embedded store that a module shares, in memory where the machine has a disk there."""
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as directory:
        yield Path(directory)


@pytest.fixture(scope="module")
def shared(shared_home: Path) -> Iterator[ObjmetaFileSystem]:
    """The file system that a module shares."""
    found = ObjmetaFileSystem(path=str(shared_home))
    yield found
    found.close()
    ObjmetaFileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def bucket_names() -> Iterator[str]:
    return (f"bucket-{number}" for number in itertools.count())


@pytest.fixture
def bucket(shared: ObjmetaFileSystem, bucket_names: Iterator[str]) -> str:
    """A new bucket in the shared store."""
    name = next(bucket_names)
    shared.mkdir(name)
    return name
