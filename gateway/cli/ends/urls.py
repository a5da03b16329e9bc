"""What a URL names, through fsspec, as an end: any file system that it knows.

Its blocking calls run in threads.  A file is read and written in pieces; one that fails half-way is discarded, not
committed (a ``with`` block of fsspec's would commit it).
"""

from __future__ import annotations

import asyncio
import datetime
import errno
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final

from gateway.cli.ends.entries import SOURCE_MTIME, Advance, Entry, Listed, Unlisted, time_text
from gateway.cli.paths import Remote
from gateway.cli.putting import DIRECTORY_TYPE, guess_type

if TYPE_CHECKING:
    from gateway.data.transfer import Store

BLOCK_BYTES: Final = 8 << 20
_TIMES: Final = ("mtime", "LastModified", "last_modified", "modified", "updated", "created")


class UrlEnd:
    """The directory, or for ``import`` the file, at ``root``: a path without protocol, as ``fs`` takes it."""

    keeps_times = False
    open_options: ClassVar[Mapping[str, Any]] = {"cache_type": "none"}
    """For files that are read from their beginning to their end."""

    def __init__(self, fs: Any, root: str, url: str) -> None:
        self._fs = fs
        self._root = root.rstrip("/")
        self._url = url.rstrip("/")
        self._single: Entry | None = None
        self._unsized: set[str] = set()
        """Names of files whose size the file system does not tell before they are read."""

    def __str__(self) -> str:
        return self._url

    def full_name(self, name: str) -> str:
        return self._url if self._single is not None else f"{self._url}/{name}"

    async def require_source(self) -> None:
        with translated(self._url):
            await asyncio.to_thread(self._fs.info, self._root)

    async def take_single(self) -> bool:
        """Whether the root is a file; it is then all there is, under its own name."""
        with translated(self._url):
            info = await asyncio.to_thread(self._fs.info, self._root)
        if info["type"] == "file":
            self._single = self._entry(info, self._name(self._root))
        return self._single is not None

    async def prepare_target(self) -> None:
        return None

    async def entries(self) -> AsyncIterator[Listed]:
        if self._single is not None:
            yield self._single
            return
        pending: list[Listed] = [Entry("", detail=self._root)]
        while pending:
            listed = pending.pop()
            if isinstance(listed, Unlisted) or (listed.name and not listed.is_directory):
                yield listed
                continue
            found = await asyncio.to_thread(self._scan, listed)
            if isinstance(found, Unlisted):
                yield found
                continue
            if listed.name:
                yield Entry(listed.name, implied=bool(found))
            pending.extend(sorted(found, key=lambda each: each.name, reverse=True))

    def _scan(self, folder: Entry) -> list[Listed] | Unlisted:
        try:
            with translated(folder.detail):
                infos = self._fs.ls(folder.detail, detail=True)
        except FileNotFoundError as failure:
            return [] if not folder.name else Unlisted(folder.name, failure)
        except OSError as failure:
            return Unlisted(folder.name, failure)
        finally:
            self._fs.invalidate_cache(folder.detail)  # else the whole tree would stay in memory
        found: list[Listed] = []
        for info in infos:
            name = last_part(info["name"])
            if info["name"].strip("/") == folder.detail.strip("/"):
                if info["type"] == "file":
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), self._url)
            elif info["type"] == "directory":
                found.append(Entry(f"{folder.name}{name}/", detail=info["name"]))
            elif info["type"] == "file":
                found.append(self._entry(info, folder.name + name))
            else:
                found.append(Unlisted(folder.name + name, "neither a file nor a directory; it was left out"))
        return found

    async def digest(self, entry: Entry) -> str:
        from blake3 import blake3

        hasher = blake3()
        async for block in self._blocks(entry):
            hasher.update(block)
        return hasher.hexdigest()

    async def send(self, store: Store, entry: Entry, target: Remote, advance: Advance) -> None:
        if entry.is_directory:
            await store.client.put_object(target.bucket, target.key, data=b"", content_type=DIRECTORY_TYPE)
            return
        async with aclosing(self._blocks(entry)) as blocks:
            await store.put_stream(
                target.bucket,
                target.key,
                blocks,
                content_type=guess_type(target.name),
                metadata=origin(entry),
                progress=advance,
            )

    async def _blocks(self, entry: Entry) -> AsyncGenerator[bytes, None]:
        got = 0
        with translated(self.full_name(entry.name)):
            file = await asyncio.to_thread(self._fs.open, entry.detail, "rb", **self.open_options)
            try:
                while block := await asyncio.to_thread(file.read, BLOCK_BYTES):
                    got += len(block)
                    yield block
            finally:
                file.close()
        if entry.name not in self._unsized:
            check_length(self.full_name(entry.name), got, entry.size)

    async def fetch(self, store: Store, source: Remote, entry: Entry, advance: Advance) -> None:
        path = self._path(entry.name)
        if entry.is_directory and entry.size:
            from objmeta.errors import InvalidArgument

            raise InvalidArgument("a name that ends with a slash is a directory there, and this one has content")
        with translated(self.full_name(entry.name)):
            if entry.is_directory:
                await asyncio.to_thread(self._make_directory, path)
                return
            version = await store.client.get_object(source.bucket, source.key, version_id=entry.detail)
            await asyncio.to_thread(self._make_parent, path)
            options = self._write_options(version.content_type, version.metadata)
            file = await asyncio.to_thread(self._fs.open, path, "wb", **options)
            try:
                async with aclosing(store.stream(version)) as blocks:
                    async for block in blocks:
                        await asyncio.to_thread(file.write, block)
                        advance(len(block))
                await asyncio.to_thread(file.close)
            except BaseException:
                await asyncio.to_thread(self._discard, file, path)
                raise

    def _discard(self, file: Any, path: str) -> None:
        """Make nothing of a half-written file. Where a file system writes in place, it is deleted."""
        from fsspec.spec import AbstractBufferedFile

        with suppress(Exception):
            if isinstance(file, AbstractBufferedFile) and type(file).discard is not AbstractBufferedFile.discard:
                file.discard()
                file.closed = True  # else its finalizer would commit what was buffered
            else:
                file.close()
                self._fs.rm_file(path)

    def _write_options(self, content_type: str, metadata: Mapping[str, str]) -> dict[str, Any]:
        return {}

    def _make_directory(self, path: str) -> None:
        self._fs.makedirs(path, exist_ok=True)

    def _make_parent(self, path: str) -> None:
        if parent := path.rpartition("/")[0]:
            self._make_directory(parent)

    def _name(self, path: str) -> str:
        """What a file at ``path`` is called."""
        return last_part(path)

    def _entry(self, info: Mapping[str, Any], name: str) -> Entry:
        time_ns = _time_ns(info)
        if info["size"] is None:
            self._unsized.add(name)
        return Entry(name, int(info["size"] or 0), time_ns, time_ns, detail=info["name"])

    def _path(self, name: str) -> str:
        parts = name.rstrip("/").split("/")
        if any(part in ("", ".", "..") for part in parts):
            from objmeta.errors import InvalidArgument

            raise InvalidArgument(f"{name!r} cannot be a path below a directory; it was not written")
        return "/".join([self._root, *parts])

    async def agree(self, entry: Entry, source: Entry) -> None:
        return None

    async def delete(self, entry: Entry) -> None:
        with translated(self.full_name(entry.name)):
            if entry.is_directory:
                with suppress(OSError):  # something may be on its way into it
                    await asyncio.to_thread(self._fs.rmdir, self._path(entry.name))
            else:
                await asyncio.to_thread(self._fs.rm_file, entry.detail)

    async def close(self) -> None:
        return None


def last_part(path: str) -> str:
    """The name of a file or directory without those above it."""
    return path.rstrip("/").rpartition("/")[2]


def origin(entry: Entry) -> dict[str, str]:
    """The metadata that says where an object came from."""
    return {} if entry.mtime_ns is None else {SOURCE_MTIME: time_text(entry.mtime_ns)}


def check_length(name: str, got: int, size: int) -> None:
    """Raise OSError if what was read is not all that was listed."""
    if got != size:
        raise OSError(errno.EIO, f"{got} bytes were read where {size} were listed; it may have changed meanwhile", name)


@contextmanager
def translated(name: str) -> Iterator[None]:
    """Have whatever a foreign file system raises be an OSError that names the file; the store's own errors stay."""
    from objmeta.errors import ObjmetaError

    try:
        yield
    except (ObjmetaError, AssertionError, AttributeError, TypeError, NameError):
        raise  # the store's own, and bugs
    except BrokenPipeError as failure:  # not that of whoever reads standard output
        raise OSError(errno.EIO, "the connection was closed at the other end", name) from failure
    except OSError as failure:
        if failure.strerror and failure.errno is not None:
            failure.filename = failure.filename or name
            raise
        number = errno.ENOENT if isinstance(failure, FileNotFoundError) else failure.errno or errno.EIO
        raise OSError(number, _says(failure), name) from failure
    except Exception as failure:
        raise OSError(errno.EIO, _says(failure), name) from failure


def _says(failure: Exception) -> str:
    if isinstance(failure, FileNotFoundError):
        return os.strerror(errno.ENOENT)
    text = " ".join(str(failure).split()) or type(failure).__name__
    if type(failure).__name__ == "NoCredentialsError":
        text += "; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give -o anon=true"
    return text


def _time_ns(info: Mapping[str, Any]) -> int | None:
    """When a file was changed, under whichever name its file system says it."""
    for name in _TIMES:
        match info.get(name):
            case datetime.datetime() as moment:
                return datetime_ns(moment)
            case int() | float() as seconds:
                return round(seconds * 10**6) * 1000
            case str() as text:
                with suppress(ValueError):
                    return datetime_ns(datetime.datetime.fromisoformat(text))
    return None


def datetime_ns(moment: datetime.datetime) -> int:
    """A time, in UTC unless it says otherwise, in nanoseconds since the epoch."""
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=datetime.UTC)
    since = aware - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return (since // datetime.timedelta(microseconds=1)) * 1000
