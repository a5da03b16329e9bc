"""fsspec's own behaviour suite, whole, on the embedded store."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator

import pytest
from fsspec.tests import abstract

from gateway.fs.filesystem import ObjmetaFileSystem


class Fixtures(abstract.AbstractFixtures):  # type: ignore[misc]
    @pytest.fixture
    def fs(self, shared: ObjmetaFileSystem) -> ObjmetaFileSystem:
        return shared

    @pytest.fixture
    def fs_path(self, shared: ObjmetaFileSystem, bucket: str) -> Iterator[str]:
        yield bucket
        shared.rm(bucket, recursive=True, versions=True)

    @pytest.fixture
    def fs_join(self) -> Callable[..., str]:
        return posixpath.join


class TestSuiteCopy(Fixtures, abstract.AbstractCopyTests):  # type: ignore[misc]
    pass


class TestSuiteGet(Fixtures, abstract.AbstractGetTests):  # type: ignore[misc]
    pass


class TestSuiteOpen(Fixtures, abstract.AbstractOpenTests):  # type: ignore[misc]
    pass


class TestSuitePipe(Fixtures, abstract.AbstractPipeTests):  # type: ignore[misc]
    pass


class TestSuitePut(Fixtures, abstract.AbstractPutTests):  # type: ignore[misc]
    pass


def test_no_class_of_the_suite_is_left_out() -> None:
    offered = {name for name in vars(abstract) if name.startswith("Abstract") and name.endswith("Tests")}
    taken = {base.__name__ for base in Fixtures.__subclasses__() for base in base.__mro__}
    assert offered <= taken
