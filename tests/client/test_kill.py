"""A node is killed in the middle of a stream of puts: no put fails, nothing is lost, no listing is stale."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import objmeta
from objmeta.node.dev import LocalCluster

WRITERS = 16
KILLED_AFTER = 150
PUTS = 600


async def test_a_killed_node_costs_no_put_and_makes_no_listing_stale(tmp_path: Path) -> None:
    with LocalCluster(tmp_path, nodes=3) as cluster:
        async with objmeta.connect_async(",".join(cluster.endpoints)) as client:
            made = await client.create_bucket("bucket")
            numbers = iter(range(PUTS))
            acknowledged: set[str] = set()
            listings = 0
            under_way = asyncio.Event()

            async def write() -> None:
                for number in numbers:
                    key = f"{number:06}"
                    await client.put_object("bucket", key, data=key.encode())
                    acknowledged.add(key)
                    if len(acknowledged) >= KILLED_AFTER:
                        under_way.set()

            async def kill() -> None:
                await under_way.wait()
                # the bucket's home, which all these puts go through
                await asyncio.to_thread(cluster.kill, home(made, cluster.node_ids))

            async def list_all(through: objmeta.AsyncClient) -> None:
                nonlocal listings
                before = set(acknowledged)
                keys = [entry.key async for entry in through.iter_objects("bucket") if not isinstance(entry, str)]
                assert before <= set(keys)
                listings += 1

            async def watch() -> None:
                async with objmeta.connect_async(",".join(reversed(cluster.endpoints))) as other:
                    while not writers.done():
                        await list_all(client)
                        await list_all(other)

            writers = asyncio.gather(*(write() for _ in range(WRITERS)))
            await asyncio.gather(writers, kill(), watch())
            await list_all(client)
            assert len(acknowledged) == PUTS
            assert listings > 3
            for key in itertools.islice(sorted(acknowledged), 0, None, 20):
                assert (await client.get_object("bucket", key)).data == key.encode()


def home(bucket: objmeta.Bucket, members: tuple[int, ...]) -> int:
    from objmeta.core.home import home_of
    from objmeta.model.names import object_prefix

    return home_of(object_prefix(bucket.bucket_id), members)
