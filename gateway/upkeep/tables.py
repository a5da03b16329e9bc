"""The tables of ``gateway sql`` that show what is really stored: places, and copies of chunks.

The places themselves are asked, page by page, in an event loop that is made for it: this serves the blocking and the
asynchronous door alike. What that takes is imported when it is used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import pyarrow as pa

if TYPE_CHECKING:
    from gateway.upkeep.service import DataStatus
    from objmeta import Chunk, ObjectVersion
    from objmeta.client import Location, StoreStatus

PLACES: Final = pa.schema(
    [
        ("node_id", pa.int64()),
        ("address", pa.string()),
        ("zone", pa.string()),
        ("weight", pa.float64()),
        ("chunks", pa.int64()),
        ("chunk_bytes", pa.int64()),
        ("stored_bytes", pa.int64()),
        ("damaged", pa.int64()),
        ("missing", pa.int64()),
        ("surplus", pa.int64()),
        ("trouble", pa.string()),
    ]
)
COPIES: Final = pa.schema(
    [
        ("node_id", pa.int64()),
        ("digest", pa.string()),
        ("length", pa.int64()),
        ("damaged", pa.bool_()),
        ("replicas", pa.int64()),
        ("generation", pa.int64()),
    ]
)
STORED: Final = """
CREATE VIEW stored AS
SELECT digest, max(length) AS length, count(*) FILTER (NOT damaged) AS copies, sum(length) AS bytes
FROM copies GROUP BY digest
"""
"""Each chunk once, with its good copies and the bytes of all."""

_PAGE: Final = 5000
Row = tuple[object, ...]


def place_rows(location: Location, status: StoreStatus) -> list[Row]:
    """A row for each place of a store, with NULL for what one that does not answer would say."""
    from gateway.upkeep.stores import places_of, statuses

    async def ask() -> list[Row]:
        async with places_of(location, status) as places:
            names = {place.node_id: place.name for place in places.places}
            told = await statuses(places)
        away = {node.node_id: node.address for node in status.nodes}
        return [_place_row(number, names.get(number) or away[number], said) for number, said in sorted(told.items())]

    return asyncio.run(ask())


def copy_rows(location: Location, status: StoreStatus, take: Callable[[list[Row]], None]) -> None:
    """Give ``take`` a row for each copy, in pages. Raises Unavailable if a place that is up does not answer."""
    from gateway.upkeep.stores import places_of

    async def ask() -> None:
        async with places_of(location, status) as places:
            for place in places.places:
                after = b""
                while page := await place.held(after, _PAGE):
                    after = page[-1].digest
                    take(
                        [
                            (place.node_id, held.digest.hex(), held.length, held.damaged, held.replicas, held.touched)
                            for held in page
                        ]
                    )

    asyncio.run(ask())


def listed_chunks(location: Location, version: ObjectVersion) -> tuple[Chunk, ...]:
    """The chunks of a version that has so many that they are listed in chunks. Raises Unavailable, IntegrityError."""
    from gateway.data.transfer import open_store_at

    async def ask() -> tuple[Chunk, ...]:
        store = await open_store_at(location)
        try:
            return await store.chunks_of(version)
        finally:
            await store.close()

    return asyncio.run(ask())


def _place_row(number: int, name: str, said: DataStatus | str) -> Row:
    if isinstance(said, str):
        return (number, name, None, None, None, None, None, None, None, None, said)
    return (
        number,
        name,
        said.zone,
        said.weight,
        said.chunks,
        said.chunk_bytes,
        said.stored_bytes,
        said.damaged,
        said.missing,
        said.surplus,
        said.trouble or None,
    )
