"""What a node's own acceptor names, in order of digest: by way of a file, since records come in order of names."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final

from gateway.blobs.files import in_thread
from gateway.collection.marks import PAGE_MARKS, Spool, Wanted
from gateway.upkeep.pace import Rest
from gateway.upkeep.repairing import Want
from objmeta import Chunk, Marked, Named

PAGE: Final = 1000
"""Chunks that are looked up together."""
REST: Final = 2.0
"""Reading what an acceptor names takes a third of the time at most: a million objects take a minute, and not twenty
seconds in which others wait."""


Source = Callable[[], AsyncIterator[Marked]]
"""What the acceptor names now, page by page. Raises Unavailable, IntegrityError where a register is damaged."""
Expand = Callable[[Chunk], Awaitable[Sequence[Chunk]]]
"""The chunks that a list names. Raises what reading a chunk raises."""
Replicas = Callable[[], Awaitable[Mapping[bytes, int]]]
"""How many copies buckets want, by their ids; 0: the default."""


class LocalWants:
    """Gives ``repairing.Wanted``. A list that cannot be read now is wanted itself, and what it names the next time."""

    def __init__(self, source: Source, expand: Expand, replicas: Replicas, directory: Path) -> None:
        self._source = source
        self._expand = expand
        self._replicas = replicas
        self._directory = directory

    async def pages(self) -> AsyncGenerator[Sequence[Want], None]:
        """All of them. Raises Unavailable while the acceptor cannot be read, StoreError."""
        spool = await in_thread(Spool, self._directory)
        try:
            await self._fill(spool)
            start = b""
            while True:
                page = await in_thread(spool.page, start, PAGE)
                yield [Want(each.chunk, each.replicas) for each in page.marks()]
                start = page.end
                if not start:
                    return
        finally:
            await in_thread(spool.close)

    async def _fill(self, spool: Spool) -> None:
        replicas = await self._replicas()
        found: list[Wanted] = []
        pages: Any = self._source()
        rest = Rest(REST)
        async with aclosing(pages):
            async for page in pages:
                for each in page.named:
                    copies = replicas.get(each.bucket_id, 0)
                    found.append(Wanted(each.digest, each.length, copies))
                    if each.is_list:
                        found += [Wanted(chunk.digest, chunk.length, copies) for chunk in await self._listed(each)]
                if len(found) >= PAGE_MARKS:
                    await in_thread(spool.add, found)
                    found = []
                await rest.pause()
        await in_thread(spool.add, found)

    async def _listed(self, named: Named) -> Sequence[Chunk]:
        from objmeta import errors

        try:
            return await self._expand(Chunk(named.digest, named.length))
        except (errors.IntegrityError, errors.Unavailable):
            return ()
