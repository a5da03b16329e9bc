"""What versions take: once, and with all copies."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from gateway.blobs.files import in_thread
from gateway.collection.marks import Spool, Wanted
from gateway.data.transfer import Store
from gateway.upkeep.service import Copy
from gateway.upkeep.stores import places_of
from objmeta import ObjectVersion

_PAGE: Final = 1000


async def physical(store: Store, versions: AsyncIterator[ObjectVersion]) -> tuple[int, int]:
    """Bytes when what the versions share is counted once, and of all copies that are there now.

    What is inline counts for every acceptor.  Raises what reading the versions raises, and Unavailable or StoreError
    where a place that is up does not answer.
    """
    inline = unique = stored = 0
    status = await store.client.status()
    async with places_of(store.client.location, status, store.client.timeout_s) as places:
        with tempfile.TemporaryDirectory(prefix="gateway-du-") as directory:
            spool = await in_thread(Spool, Path(directory))
            try:
                async for version in versions:
                    if version.is_inline:
                        inline += version.size
                    named = [
                        Wanted(chunk.digest, chunk.length, 0)
                        for chunk in (*version.lists, *await store.chunks_of(version))
                    ]
                    await in_thread(spool.add, named)
                start = b""
                while True:
                    page = await in_thread(spool.page, start, _PAGE)
                    stored_once = [each.chunk for each in page.marks()]
                    unique += sum(chunk.length for chunk in stored_once)
                    for found in await asyncio.gather(*(place.look(stored_once, False) for place in places.places)):
                        pairs = zip(stored_once, found, strict=True)
                        stored += sum(chunk.length for chunk, copy in pairs if copy is Copy.GOOD)
                    start = page.end
                    if not start:
                        break
            finally:
                await in_thread(spool.close)
    return unique + inline, stored + inline * len(status.nodes)
