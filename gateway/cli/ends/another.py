"""A directory of another store of this kind, to take from: ``--from-store``.

Contents are compared by their etags, so nothing is read that is there already. Content type and metadata come along,
and when the object was stored there, as ``source-mtime``; of its versions only the current one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING

from gateway.cli.ends.entries import SOURCE_MTIME, Advance, Entry, Listed, time_text
from gateway.cli.ends.stores import StoreEnd
from gateway.cli.paths import Remote

if TYPE_CHECKING:
    from gateway.data.transfer import Store


class AnotherEnd(StoreEnd):
    """What is below ``root`` in ``store``, or for ``import`` the object there; closing this closes the store."""

    def __init__(self, store: Store, root: Remote, text: str) -> None:
        super().__init__(store, root)
        self._object = root
        self._text = text
        self._single: Entry | None = None

    def __str__(self) -> str:
        return f"{self.root} of {self._text}"

    def remote(self, name: str) -> Remote:
        return self._object if self._single is not None else super().remote(name)

    async def entries(self) -> AsyncIterator[Listed]:
        if self._single is not None:
            yield self._single
            return
        async for each in super().entries():
            yield each

    async def take_single(self) -> bool:
        """Whether the root is an object; it is then all there is, under its own name."""
        from objmeta.errors import NoSuchBucket, NoSuchKey

        if self._object.is_directory:
            return False
        try:
            found = await self._store.client.head_object(self._object.bucket, self._object.key)
        except (NoSuchBucket, NoSuchKey):
            return False
        name = self._object.key.rpartition("/")[2]
        self._single = Entry(name, found.size, etag=found.etag, detail=found.version_id)
        return True

    async def require_source(self) -> None:
        from objmeta.errors import NoSuchBucket, NoSuchKey

        try:
            await self._store.client.bucket(self.root.bucket)
            await super().require_source()
        except (NoSuchBucket, NoSuchKey) as missing:
            raise type(missing)(f"{missing} in {self._text}") from None

    async def digest(self, entry: Entry) -> str:
        """The etag; nothing is read."""
        return entry.etag

    async def send(self, store: Store, entry: Entry, target: Remote, advance: Advance) -> None:
        """Make ``entry`` an object of ``store``."""
        source = self.remote(entry.name)
        found = await self._store.client.get_object(source.bucket, source.key, version_id=entry.detail)
        stored_at = {SOURCE_MTIME: time_text(found.modified_us * 1000)}
        async with aclosing(self._store.stream(found)) as pieces:
            await store.put_stream(
                target.bucket,
                target.key,
                pieces,
                content_type=found.content_type,
                metadata=stored_at | dict(found.metadata),
                expected_etag=found.etag,
                progress=advance,
            )

    async def close(self) -> None:
        await self._store.close()
