"""Whom a client of chunks takes for the nodes of the cluster, and when it asks for them again."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

import pytest

from gateway.blobs.client import ClusterBlobs
from gateway.blobs.placement import Place
from gateway.blobs.places import ChunkMissing
from objmeta import errors
from tests.gateway.blobnodes import BlobNode, placed, places


async def test_members_are_asked_for_once(nodes: list[BlobNode]) -> None:
    asked = 0

    async def members() -> tuple[int, Sequence[Place]]:
        nonlocal asked
        asked += 1
        return await placed(nodes[0], nodes[1], "")()

    store = ClusterBlobs(members)
    await asyncio.gather(*(store.put(b"%d" % number, generation=0) for number in range(10)))
    assert asked == 1
    await nodes[1].stop()
    impatient = ClusterBlobs(members, timeout_s=0.5)
    with pytest.raises(errors.NoQuorum, match="3 nodes"):
        await impatient.put(b"a node that may not be used counts all the same", generation=0)
    await store.close()
    await impatient.close()


async def test_members_are_asked_again_until_the_answer_is_of_the_epoch_that_was_heard_of(
    nodes: list[BlobNode],
) -> None:
    heard, answers = 1, [1, 2, 2]

    async def members() -> tuple[int, Sequence[Place]]:
        nonlocal heard
        epoch = answers.pop(0)
        heard = 2  # meanwhile somebody who knows the new members has answered another question
        return epoch, places(*nodes[:epoch])

    store = ClusterBlobs(members, timeout_s=5, epoch=lambda: heard)
    await store.put(b"to the one node there was", generation=0)
    await store.put(b"to both that there are", generation=0)
    assert len(await store.status()) == 2
    assert answers == [2]
    await store.close()


@pytest.mark.parametrize("are_up", [False, True])
async def test_a_read_finds_those_who_have_taken_the_place_of_all_that_were_known(
    nodes: list[BlobNode], are_up: bool
) -> None:
    answers = [(1, places(*nodes[:2])), (2, places(nodes[2]))]

    async def members() -> tuple[int, Sequence[Place]]:
        return answers.pop(0)

    data = os.urandom(100_000)
    chunk = await nodes[2].blobs.put(data, generation=0)
    for node in nodes[:2]:
        if not are_up:
            await node.stop()
    store = ClusterBlobs(members)
    assert set(await asyncio.gather(store.get(chunk), store.get(chunk))) == {data}
    assert answers == []  # both have asked together
    assert await store.get(chunk, 5, 9) == data[5:9]
    await store.close()


async def test_what_nobody_has_is_missing_whether_or_not_the_members_can_be_asked_again(nodes: list[BlobNode]) -> None:
    asked = 0

    async def members() -> tuple[int, Sequence[Place]]:
        nonlocal asked
        asked += 1
        if asked == 2:
            raise errors.NoQuorum("no majority")
        return 1, places(*nodes)

    chunk = await nodes[0].blobs.put(b"lost", generation=0)
    nodes[0].lose(chunk)
    store = ClusterBlobs(members)
    for _ in range(2):
        with pytest.raises(ChunkMissing, match=chunk.digest.hex()):
            await store.get(chunk)
    assert asked == 3
    await store.close()
