"""A node's service of chunks against clients that are wrong."""

from __future__ import annotations

import os
from typing import Any, cast

import msgspec
import pytest
from blake3 import blake3

from gateway.blobs.service import NAMED, SERVICE, AskFor
from objmeta import Chunk
from objmeta.grpcio import grpc
from tests.gateway.blobnodes import BlobNode


def announced(*lengths: int) -> bytes:
    """What a call says it brings."""
    return msgspec.msgpack.encode(AskFor(0, tuple(Chunk(b"x" * 32, length) for length in lengths)))


@pytest.mark.parametrize(
    ("named", "frames", "said"),
    [
        (None, [b"five!"], grpc.StatusCode.INVALID_ARGUMENT),
        (b"short", [b"five!"], grpc.StatusCode.INVALID_ARGUMENT),
        (announced(), [b"five!"], grpc.StatusCode.INVALID_ARGUMENT),
        (announced(1 << 40), [b"five!"], grpc.StatusCode.INVALID_ARGUMENT),
        (announced(40 << 20, 40 << 20), [b"five!"], grpc.StatusCode.INVALID_ARGUMENT),
        (announced(-5, 10), [b"five!"], grpc.StatusCode.INVALID_ARGUMENT),
        (announced(5), [], grpc.StatusCode.INVALID_ARGUMENT),
        (announced(5, 5), [b"five!"], grpc.StatusCode.INVALID_ARGUMENT),
        (announced(10), [b"five!"], grpc.StatusCode.INVALID_ARGUMENT),
        (announced(5), [b"five!"], ["integrity"]),
        (announced(4), [b"five!"], ["integrity"]),
        (announced(0, 5), [b"five!"], ["integrity", "integrity"]),
    ],
)
async def test_bad_uploads_are_refused(
    node: BlobNode, named: bytes | None, frames: list[bytes], said: grpc.StatusCode | list[str]
) -> None:
    metadata = () if named is None else ((NAMED, named),)
    async with cast(Any, grpc.aio).insecure_channel(node.address) as channel:
        call = channel.stream_unary(f"/{SERVICE}/Put")(iter(frames), metadata=metadata)
        if isinstance(said, list):
            assert [refusal[0] for refusal in msgspec.msgpack.decode(await call)] == said
        else:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is said
    assert not await node.blobs.held()


async def test_long_chunks_that_wait_together_share_a_call_and_are_refused_alone(node: BlobNode) -> None:
    contents = [os.urandom(300_000 + number) for number in range(5)]
    chunks = [Chunk(blake3(data).digest(), len(data)) for data in contents]
    chunks[2] = Chunk(b"x" * 32, len(contents[2]))
    async with cast(Any, grpc.aio).insecure_channel(node.address) as channel:
        put = channel.stream_unary(f"/{SERVICE}/Put")
        named = msgspec.msgpack.encode(AskFor(1, tuple(chunks)))
        refusals = msgspec.msgpack.decode(await put(iter(contents), metadata=((NAMED, named),)))
    assert [refusal is None for refusal in refusals] == [True, True, False, True, True]
    assert {held.chunk for held in await node.blobs.held()} == {*chunks[:2], *chunks[3:]}
