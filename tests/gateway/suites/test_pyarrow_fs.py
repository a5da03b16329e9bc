"""pyarrow's own behaviour suite for file systems, as its package ships it, on the embedded store.

Of its ``test_fs`` those cases run that take any file system: they ask for the fixture ``fs``.
"""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable
from typing import Any

import cloudpickle
import pytest
from pyarrow.fs import FSSpecHandler, PyFileSystem
from pyarrow.tests import test_fs as suite

from gateway.fs.filesystem import ObjmetaFileSystem

pickle_with_and_without_subtree_filesystem = suite.pickle_with_and_without_subtree_filesystem


def generic() -> dict[str, Callable[..., None]]:
    """The suite's cases for any file system, by name."""
    found = {name: case for name, case in vars(suite).items() if name.startswith("test_")}
    return {name: case for name, case in found.items() if "fs" in inspect.signature(case).parameters}


class Cases:
    """Where the suite's cases find the file system they are about."""

    @pytest.fixture
    def fs(self, shared: ObjmetaFileSystem) -> PyFileSystem:
        return PyFileSystem(FSSpecHandler(shared))

    @pytest.fixture
    def pathfn(self, bucket: str) -> Callable[[str], str]:
        return lambda path: f"{bucket}/{path}"

    @pytest.fixture
    def allow_move_dir(self) -> bool:
        return True

    @pytest.fixture
    def allow_append_to_file(self) -> bool:
        return True

    @pytest.fixture(params=[pickle, cloudpickle], ids=["pickle", "cloudpickle"])
    def pickle_module(self, request: pytest.FixtureRequest) -> Any:
        return request.param


TestSuite = type("TestSuite", (Cases,), {name: staticmethod(case) for name, case in generic().items()})
