"""S3, MinIO and everything that speaks their protocol as an end, through s3fs.

Listing is one scan, page by page, in the order of keys; every key is taken as it is, also one that is no path.  Reading
is one request for each object, which gives its content type and metadata as well, and requires the object that was
listed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

from gateway.cli.ends.entries import READ_BYTES, Advance, Entry, Listed
from gateway.cli.ends.urls import BLOCK_BYTES, UrlEnd, check_length, datetime_ns, last_part, origin, translated
from gateway.cli.paths import Remote
from gateway.cli.putting import DIRECTORY_TYPE, guess_type
from objmeta.errors import InvalidArgument

if TYPE_CHECKING:
    from gateway.data.transfer import Store

PAGE: Final = 1000
"""Keys in one answer; S3 gives no more."""
_HEADERS: Final = {
    "ContentEncoding": "content-encoding",
    "ContentDisposition": "content-disposition",
    "ContentLanguage": "content-language",
    "CacheControl": "cache-control",
}
_NONDESCRIPT: Final = frozenset({"", "binary/octet-stream", "application/octet-stream"})
"""Types that S3 gives to what was stored without one."""


class S3End(UrlEnd):
    """A bucket, or what is below a prefix of it. Two clients: one in this event loop, to read, and fsspec's own."""

    def __init__(self, fs: Any, options: Mapping[str, Any], root: str, url: str) -> None:
        super().__init__(fs, root, url)
        self._bucket, _, key = self._root.partition("/")
        self._prefix = key + "/" if key else ""
        self._options = options
        self._client: Any = None

    async def _call(self, method: str, **arguments: Any) -> Any:
        if self._client is None:
            client = type(self._fs)(**self._options, asynchronous=True, skip_instance_cache=True)
            try:
                await client.set_session()
            except TypeError as wrong:
                raise InvalidArgument(f"{self._url}: {wrong}; -o gives options that s3fs does not know") from None
            self._client = client
        return await self._client._call_s3(method, Bucket=self._bucket, **arguments)

    async def require_source(self) -> None:
        with translated(self._url):
            page = await self._call("list_objects_v2", Prefix=self._prefix, MaxKeys=1)
        if not page.get("Contents") and self._prefix:
            with translated(self._url):
                raise FileNotFoundError(self._url)

    async def take_single(self) -> bool:
        if not self._prefix:
            return False
        with translated(self._url):
            page = await self._call("list_objects_v2", Prefix=self._prefix[:-1], MaxKeys=1)
        for found in page.get("Contents", ()):
            if found["Key"] == self._prefix[:-1]:
                self._single = self._entry(found, last_part(self._root))
        return self._single is not None

    async def entries(self) -> AsyncIterator[Listed]:
        if self._single is not None:
            yield self._single
            return
        more: dict[str, Any] = {}
        while True:
            with translated(self._url):
                page = await self._call("list_objects_v2", Prefix=self._prefix, MaxKeys=PAGE, **more)
            for found in page.get("Contents", ()):
                name = found["Key"][len(self._prefix) :]
                if name:
                    yield self._entry(found, name)
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def _entry(self, found: Mapping[str, Any], name: str) -> Entry:
        time_ns = datetime_ns(found["LastModified"])
        return Entry(name, found["Size"], time_ns, time_ns, detail=(found["Key"], found["ETag"]))

    async def send(self, store: Store, entry: Entry, target: Remote, advance: Advance) -> None:
        name = self.full_name(entry.name)
        with translated(name):
            found = await self._get(entry)
            async with found["Body"] as body:
                content_type = found.get("ContentType", "")
                if content_type in _NONDESCRIPT:
                    content_type = DIRECTORY_TYPE if entry.is_directory else guess_type(target.name)
                kept = {ours: found[theirs] for theirs, ours in _HEADERS.items() if found.get(theirs)}
                async with aclosing(self._pieces(body, name, entry.size)) as pieces:
                    await store.put_stream(
                        target.bucket,
                        target.key,
                        pieces,
                        content_type=content_type,
                        metadata=found.get("Metadata", {}) | kept | origin(entry),
                        progress=advance,
                    )

    async def _blocks(self, entry: Entry) -> AsyncGenerator[bytes, None]:
        name = self.full_name(entry.name)
        with translated(name):
            async with (await self._get(entry))["Body"] as body:
                async for block in self._pieces(body, name, entry.size):
                    yield block

    async def _get(self, entry: Entry) -> Any:
        key, etag = entry.detail
        return await self._call("get_object", Key=key, IfMatch=etag)

    async def _pieces(self, body: Any, name: str, size: int) -> AsyncGenerator[bytes, None]:
        got = 0
        with translated(name):
            while block := await body.read(READ_BYTES):
                got += len(block)
                yield block
        check_length(name, got, size)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"  # a key, whatever is in it

    def _make_directory(self, path: str) -> None:
        bucket, _, key = path.partition("/")
        self._fs.call_s3("put_object", Bucket=bucket, Key=key, Body=b"")

    def _make_parent(self, path: str) -> None:
        return None

    def _write_options(self, content_type: str, metadata: Mapping[str, str]) -> dict[str, Any]:
        """S3 takes ASCII only in metadata."""
        kept = {name: text for name, text in metadata.items() if (name + text).isascii()}
        headers = {theirs: kept.pop(ours) for theirs, ours in _HEADERS.items() if ours in kept}
        return headers | {"ContentType": content_type, "Metadata": kept}

    async def fetch(self, store: Store, source: Remote, entry: Entry, advance: Advance) -> None:
        if not entry.is_directory or not entry.size:
            await super().fetch(store, source, entry, advance)
            return
        # s3fs would drop the slash; as a whole, such a key is one like others
        if entry.size > BLOCK_BYTES:
            raise InvalidArgument(f"a name that ends with a slash and has more than {BLOCK_BYTES >> 20} MiB of content")
        version = await store.client.get_object(source.bucket, source.key, version_id=entry.detail)
        content = await store.read(version)
        with translated(self.full_name(entry.name)):
            options = self._write_options(version.content_type, version.metadata)
            await self._call("put_object", Key=self._prefix + entry.name, Body=content, **options)
        advance(len(content))

    async def delete(self, entry: Entry) -> None:
        with translated(self.full_name(entry.name)):
            await self._call("delete_object", Key=entry.detail[0])

    async def close(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            await asyncio.shield((await client.set_session()).close())
