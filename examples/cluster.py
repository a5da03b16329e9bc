"""Three nodes, one of which is killed while objects are being stored.

    python examples/cluster.py

The nodes are processes on this machine, in a temporary directory. From a shell, `gateway dev` starts such a cluster.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import objmeta
from objmeta import errors
from objmeta.node.dev import LocalCluster

OBJECTS = 100


async def store(endpoints: str, kill_one: asyncio.Event) -> int:
    """Put objects, ten at a time; the number of puts that failed."""
    failed = 0
    numbers = iter(range(OBJECTS))

    async def writer(client: objmeta.AsyncClient) -> None:
        nonlocal failed
        for number in numbers:
            try:
                await client.put_object("cluster-example", f"{number:03d}", data=b"value %d" % number, if_absent=True)
            except errors.ObjmetaError as error:
                failed += 1
                print(f"{number:03d}: {error}")
            if number == OBJECTS // 2:
                kill_one.set()

    async with objmeta.connect_async(endpoints) as client:
        await client.create_bucket("cluster-example")
        await asyncio.gather(*(writer(client) for _ in range(10)))
    return failed


async def main(cluster: LocalCluster) -> None:
    # Any of the nodes will do; naming all of them lets the client go on when one is gone.
    endpoints = ",".join(cluster.endpoints)
    kill_one = asyncio.Event()
    storing = asyncio.create_task(store(endpoints, kill_one))
    await kill_one.wait()
    await asyncio.to_thread(cluster.kill, 2)  # SIGKILL, in the middle of it
    print("one of three nodes is gone")
    print(await storing, "puts failed")

    async with objmeta.connect_async(endpoints) as client:
        page = await client.list_objects("cluster-example")
        print(len(page.objects), "objects listed by the two others")
        status = await client.status()
        print("quorum:", status.quorum, {node.node_id: node.state for node in status.nodes})

    # The node comes back from its own disk, and catches up as it is asked.
    await asyncio.to_thread(cluster.start, 2)
    await asyncio.to_thread(cluster.wait_ready)
    async with objmeta.connect_async(cluster.endpoint(2)) as client:
        print(
            len((await client.list_objects("cluster-example")).objects),
            "objects listed through the one that was killed",
        )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory, LocalCluster(Path(directory), nodes=3) as cluster:
        asyncio.run(main(cluster))
