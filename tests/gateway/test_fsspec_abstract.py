"""fsspec's own behaviour suite, whole, on the embedded store."""

from __future__ import annotations

import os
import posixpath
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

import pytest
from fsspec.tests import abstract

from gateway.fs.filesystem import ObjmetaFileSystem

ITEMS = 137
"""In fsspec 2026.9. Another number means that the suite changed: look at what is new, then write it here."""


class Fixtures(abstract.AbstractFixtures):  # type: ignore[misc]
    @pytest.fixture(scope="class")
    @classmethod
    def store(cls) -> Iterator[ObjmetaFileSystem]:
        memory = "/dev/shm"
        with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as home:
            fs = ObjmetaFileSystem(path=home, skip_instance_cache=True)
            yield fs
            fs.close()

    @pytest.fixture
    def fs(self, store: ObjmetaFileSystem) -> ObjmetaFileSystem:
        return store

    @pytest.fixture
    def fs_path(self, store: ObjmetaFileSystem) -> Iterator[str]:
        store.mkdir("abstract")
        yield "abstract"
        store.rm("abstract", recursive=True, versions=True)

    @pytest.fixture
    def fs_join(self) -> Callable[..., str]:
        return posixpath.join


class TestCopy(Fixtures, abstract.AbstractCopyTests):  # type: ignore[misc]
    pass


class TestGet(Fixtures, abstract.AbstractGetTests):  # type: ignore[misc]
    pass


class TestOpen(Fixtures, abstract.AbstractOpenTests):  # type: ignore[misc]
    pass


class TestPipe(Fixtures, abstract.AbstractPipeTests):  # type: ignore[misc]
    pass


class TestPut(Fixtures, abstract.AbstractPutTests):  # type: ignore[misc]
    pass


def test_no_class_of_the_suite_is_left_out() -> None:
    offered = {name for name in vars(abstract) if name.startswith("Abstract") and name.endswith("Tests")}
    taken = {base.__name__ for base in Fixtures.__subclasses__() for base in base.__mro__}
    assert offered <= taken


def test_the_whole_suite_is_collected() -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", __file__]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert sum("::Test" in line for line in listed.splitlines()) == ITEMS
