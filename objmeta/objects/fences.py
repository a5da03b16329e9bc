"""What somebody who is no client states when he writes a register back: the term of the bucket it belongs to.

Registers of objects carry their bucket's id, and the term is in the register of the bucket's name, so all buckets are
listed when an id is met that is not known.  A bucket that is being removed is moved back to active only if its term was
refused: the remover starts over, as it does for any writer (docs/decisions/0005).
"""

from __future__ import annotations

import asyncio

from objmeta.core.listing import ScanRequest, decode_rows, successor
from objmeta.core.messages import Fence
from objmeta.errors import NoSuchBucket
from objmeta.model.names import BUCKET_ID_BYTES, BUCKETS, OBJECTS
from objmeta.objects.buckets import Buckets, fence
from objmeta.objects.context import Context

_PAGE_ROWS = 1000


class BucketFences:
    """Satisfies :data:`objmeta.register.copying.FenceOf` by :meth:`fence_of`."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._buckets = Buckets(context)
        self._names: dict[bytes, str] = {}
        self._fences: dict[bytes, Fence] = {}
        self._gone: set[bytes] = set()
        self._looking = asyncio.Lock()

    async def fence_of(self, name: bytes, again: bool) -> Fence | None:
        """The fence for a register; None where there are no terms. Raises NoSuchBucket if its bucket is gone.

        ``again``: the last one was refused.
        """
        if not name.startswith(OBJECTS):
            return None
        bucket_id = name[len(OBJECTS) : len(OBJECTS) + BUCKET_ID_BYTES]
        async with self._looking:
            if again and bucket_id in self._names:
                await self._revive(bucket_id)
            if bucket_id not in self._fences and bucket_id not in self._gone:
                await self._look()
                if bucket_id not in self._fences:
                    self._gone.add(bucket_id)  # its objects were listed before, and ids are never used again
        if bucket_id in self._gone:
            raise NoSuchBucket(f"bucket {bucket_id.hex()} is gone")
        return self._fences[bucket_id]

    async def _look(self) -> None:
        start = BUCKETS
        while True:
            page = await self._context.registers.scan(
                ScanRequest(start, successor(BUCKETS), _PAGE_ROWS), self._context.timeout_s
            )
            for row in decode_rows(page.rows):
                bucket = row.name[len(BUCKETS) :].decode()
                try:
                    head = self._buckets.learn(bucket, row.state)
                except NoSuchBucket:
                    continue
                self._names[head.bucket_id] = bucket
                self._fences[head.bucket_id] = fence(head)
            if not page.next:
                return
            start = page.next

    async def _revive(self, bucket_id: bytes) -> None:
        bucket = self._names[bucket_id]
        self._buckets.forget(bucket)
        try:
            head = await self._buckets.writable(bucket)
        except NoSuchBucket:
            head = None
        if head is not None and head.bucket_id == bucket_id:
            self._fences[bucket_id] = fence(head)
        else:
            self._fences.pop(bucket_id, None)
            self._gone.add(bucket_id)
