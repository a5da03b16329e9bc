"""A directory of the store as an end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from gateway.cli.ends.entries import Entry, Listed, time_ns
from gateway.cli.paths import Remote
from gateway.cli.trees import versions_below

if TYPE_CHECKING:
    from gateway.data.transfer import Store


class StoreEnd:
    """What is below ``root``, in one range scan. It lists whole versions, as only they have the metadata."""

    def __init__(self, store: Store, root: Remote) -> None:
        self._store = store
        self.root = root.as_directory()

    def __str__(self) -> str:
        return str(self.root)

    def full_name(self, name: str) -> str:
        return str(self.remote(name))

    def remote(self, name: str) -> Remote:
        """The object that is called ``name`` here."""
        return self.root / name

    async def entries(self) -> AsyncIterator[Listed]:
        start = len(self.root.key)
        async for version in versions_below(self._store, self.root):
            name = version.key[start:]
            if not name or not version.is_latest or version.is_delete_marker:
                continue
            written_ns = version.modified_us * 1000
            mtime_ns = time_ns(version.metadata)
            yield Entry(name, version.size, mtime_ns, written_ns, version.etag, detail=version.version_id)

    async def require_source(self) -> None:
        """Raise NoSuchBucket or NoSuchKey if there is nothing below."""
        from objmeta.errors import NoSuchKey

        page = await self._store.client.list_objects(self.root.bucket, self.root.key, limit=1)
        if not page.objects and self.root.key:
            raise NoSuchKey(f"there is no object below {self.root}{await self._hint()}")

    async def _hint(self) -> str:
        from objmeta.errors import NoSuchKey

        try:
            await self._store.client.head_object(self.root.bucket, self.root.key.removesuffix("/"))
        except NoSuchKey:
            return ""
        return "; it is an object itself, which 'gateway get' fetches and 'gateway cp' copies"

    async def copy(self, entry: Entry, target: Remote) -> None:
        """Make the content current under another name; no bytes are moved."""
        source = self.remote(entry.name)
        await self._store.copy(source.bucket, source.key, target.bucket, target.key, version_id=entry.detail)

    async def delete(self, entry: Entry) -> None:
        """Hide the object, if it is still the one that was listed."""
        name = self.remote(entry.name)
        await self._store.client.delete_object(name.bucket, name.key, if_version=entry.detail)

    async def close(self) -> None:
        return None
