"""Short chunks that are fetched from a node in one message."""

from __future__ import annotations

import os

import pytest

from gateway.blobs.peer import Peer
from gateway.blobs.placement import Place
from gateway.blobs.places import ChunkMissing
from gateway.upkeep.asking import Nodes
from objmeta import Chunk, errors
from tests.gateway.blobnodes import BlobNode


async def test_short_chunks_are_fetched_together(node: BlobNode) -> None:
    contents = [os.urandom(100_000) for _ in range(30)]
    chunks = [await node.blobs.put(data, generation=1) for data in contents]
    chunks.append(Chunk(bytes(32), 10))
    chunks.append(await node.blobs.put(long := os.urandom(2_000_000), generation=1))
    place = Place(1, node.address)
    others = Nodes()
    found = await others.fetch(place, chunks)
    assert found[:30] == contents
    assert isinstance(found[30], ChunkMissing)
    assert found[31] == long
    await node.stop()
    assert all(isinstance(each, errors.Unavailable) for each in await others.fetch(place, chunks))
    await others.close()


@pytest.mark.parametrize("chunks", [[Chunk(bytes(32), 1 << 20), Chunk(bytes(32), 1)], [Chunk(bytes(32), 1)] * 65])
async def test_more_than_fits_into_a_message_is_refused(node: BlobNode, chunks: list[Chunk]) -> None:
    peer = Peer(node.address)
    with pytest.raises(errors.StoreError, match="a message asks for at most 64 chunks"):
        await peer.get_many(chunks, 5)
    await peer.close()
