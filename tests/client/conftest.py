"""One behaviour suite for clients: embedded, and three real node processes on loopback."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import objmeta
from objmeta.node.dev import LocalCluster

_names = itertools.count(1)


@pytest.fixture(scope="session")
def cluster_endpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with LocalCluster(tmp_path_factory.mktemp("cluster"), nodes=3) as cluster:
        yield ",".join(cluster.endpoints)


@pytest.fixture(params=["embedded", "cluster"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "embedded":
        return str(tmp_path / "store")
    endpoints = request.getfixturevalue("cluster_endpoints")
    assert isinstance(endpoints, str)
    return endpoints


@pytest.fixture
async def client(target: str) -> AsyncIterator[objmeta.AsyncClient]:
    async with objmeta.connect_async(target) as client:
        yield client


@pytest.fixture
def fresh() -> str:
    """A name nobody has used: the cluster is shared by all tests."""
    return f"name-{next(_names)}"


@pytest.fixture
async def bucket(client: objmeta.AsyncClient, fresh: str) -> str:
    await client.create_bucket(fresh)
    return fresh
