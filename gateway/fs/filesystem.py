"""``objmeta://bucket/key`` for pandas, DuckDB, Dask, pyarrow and everybody else who uses fsspec.

Rules.
* Nothing is cached here: every answer is the store's, linearizable. What must not change is pinned: a handle, or
  ``?versionId=`` in a path, is one version for good.
* Errors are OSErrors (``oserrors``). No answer in time is never taken for "does not exist".
* A name that exists is taken literally before it is taken for a pattern; only ``glob`` itself matches first.
* Directories are markers (``dir/``, made by mkdir) or implied by keys. ``a`` and ``a/b`` may coexist: then ``a`` is a
  file to everything that takes a name, and a directory to ``ls``, ``find`` and ``walk``.

Here are opening, reading and writing; what only looks is in ``listing``, what changes names in ``changing``,
handles in ``readers`` and ``writers``, names and entries in ``entries``.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import errno
import io
import os
import weakref
from collections.abc import Coroutine, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

from fsspec.asyn import _run_coros_in_chunks, get_loop
from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.compression import compr
from fsspec.core import get_compression
from fsspec.utils import isfilelike, tokenize

from gateway.fs.blocking import add_blocking_methods, blocking, outcome, start
from gateway.fs.changing import Changing
from gateway.fs.entries import Entry, version_entry
from gateway.fs.instances import Environment, PerThread
from gateway.fs.oserrors import oserrors
from gateway.fs.readers import Reader
from gateway.fs.writers import CompressedWriter, Terms, TextWriter, Writer
from objmeta import Cluster, ObjectVersion, connect_async
from objmeta.errors import AlreadyExists, ForkedClient, InvalidArgument, NoSuchKey, PreconditionFailed

if TYPE_CHECKING:
    from gateway.data.transfer import Store

BLOCK_BYTES: Final = 4 << 20
"""How much a writing handle gathers before it passes it on."""

_T = TypeVar("_T")


class ObjmetaFileSystem(Changing):
    """Files in an objmeta store.

    ``path`` is the directory of an embedded store, ``disks`` are those of one over several disks, ``endpoints`` the
    nodes of a cluster (``"host:port,host:port"`` or a list), ``timeout_s`` how long one operation may take, in seconds.
    Without any, the settings decide as they do for :func:`objmeta.connect`.  Instances are cached, picklable, and
    usable from any thread; an embedded one also after a fork, while one of a cluster refuses in a forked child (start
    workers by spawn or forkserver).
    """

    protocol = "objmeta"
    root_marker = ""
    _environment = Environment()
    _extra_tokenize_attributes = ("_environment",)
    _intrans = PerThread(False)
    _transaction = PerThread(None)

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        endpoints: str | Sequence[str] | None = None,
        timeout_s: float | str | None = None,
        *,
        disks: Sequence[str | os.PathLike[str]] | None = None,
        asynchronous: bool = False,
        loop: asyncio.AbstractEventLoop | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> None:
        if sum(map(bool, (path, endpoints, disks))) > 1:
            with oserrors():
                raise InvalidArgument(
                    "a store is a directory (path), several (disks) or a cluster (endpoints), only one of them"
                )
        nodes = endpoints if isinstance(endpoints, str) or endpoints is None else ",".join(endpoints)
        with oserrors():
            client = connect_async(
                (os.path.abspath(path) if path else nodes) or None,
                disks=disks or None,
                timeout_s=None if timeout_s is None else float(timeout_s),
            )
        self.location = client.location
        self.timeout_s = client.timeout_s
        self._stores: dict[asyncio.AbstractEventLoop, asyncio.Task[Store]] = {}
        options = {**options, "use_listings_cache": False}
        super().__init__(asynchronous=asynchronous, loop=loop, batch_size=batch_size, **options)
        add_blocking_methods(self)
        self._finalizer = _finalizer(self, self._stores)

    # -- The store, and the loop it lives on --------------------------------------------------------------------------

    @property
    def loop(self) -> Any:
        """The event loop on which the blocking methods run their coroutines."""
        if self._pid != os.getpid():
            self._after_fork()
        return self._loop

    async def store(self) -> Store:
        """The store, opened at first use, once for each event loop and process."""
        if self._pid != os.getpid():
            self._after_fork()
        loop = asyncio.get_running_loop()
        opening = self._stores.get(loop)
        if opening is None or (opening.done() and (opening.cancelled() or opening.exception() is not None)):
            for gone in [other for other in self._stores if other.is_closed()]:
                del self._stores[gone]
            opening = self._stores[loop] = loop.create_task(self._open_store())
        return await asyncio.shield(opening)

    async def _open_store(self) -> Store:
        from gateway.data.transfer import open_store_at

        return await open_store_at(self.location, timeout_s=self.timeout_s)

    def _after_fork(self) -> None:
        if isinstance(self.location, Cluster) and self._stores:
            with oserrors():
                raise ForkedClient(
                    "this file system's connections belong to the parent process; start workers by spawn or forkserver "
                    "(multiprocessing.set_start_method), or connect only in the child"
                )
        self._finalizer()  # it keeps what belongs to the parent
        self._stores = {}
        self._finalizer = _finalizer(self, self._stores)
        self._pid = os.getpid()
        if not self.asynchronous:
            self._loop = get_loop()

    def submit(self, coroutine: Coroutine[Any, Any, _T]) -> concurrent.futures.Future[_T]:
        """Start a coroutine on the file system's loop. Its result is for :meth:`wait`."""
        try:
            loop = self.loop
            if loop is None:
                raise RuntimeError("an asynchronous file system has no blocking file handles; use its coroutines")
            return start(coroutine, loop)
        except BaseException:
            coroutine.close()
            raise

    def wait(self, future: concurrent.futures.Future[_T]) -> _T:
        """Wait for what :meth:`submit` started; refuses on the loop's own thread, where it would wait for ever."""
        return outcome(future, self._loop)

    async def _close(self) -> None:
        """Release the store's files, threads and connections on this loop; the next use opens it again."""
        opening = self._stores.pop(asyncio.get_running_loop(), None)
        if opening is not None:
            with oserrors():
                await (await opening).close()

    close = blocking(_close)

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        stripped = super()._strip_protocol(path)
        return stripped.lstrip("/") if isinstance(stripped, str) else stripped

    # -- Reading ------------------------------------------------------------------------------------------------------

    async def _version(self, path: str, version_id: str | None = None) -> ObjectVersion:
        """The version that a path names now, with its manifest."""
        name = self._name(path, version_id)
        if not name.key:
            raise IsADirectoryError(errno.EISDIR, "this is a directory, not a file", name.path)
        with oserrors(name.path):
            try:
                return await (await self.store()).resolved(await self._get_object(name, with_data=True))
            except NoSuchKey as missing:
                if name.version_id is None and await self._is_directory(name):
                    raise IsADirectoryError(errno.EISDIR, "this is a directory, not a file", name.path) from missing
                raise

    async def _read_version(self, version: ObjectVersion, start: int, stop: int) -> bytes:
        with oserrors(f"{version.bucket}/{version.key}"):
            return await (await self.store()).read(version, start, stop)

    def read_version(self, version: ObjectVersion, start: int, stop: int) -> bytes:
        """Bytes ``start`` to ``stop`` of a version, verified."""
        return self.wait(self.submit(self._read_version(version, start, stop)))

    async def _cat_file(
        self,
        path: str,
        start: int | None = None,
        end: int | None = None,
        version_id: str | None = None,
        **kwargs: Any,
    ) -> bytes:
        """The bytes of a file, or of a part of it as in a slice."""
        return await self._slice(await self._version(path, version_id), start, end)

    async def _slice(self, version: ObjectVersion, start: int | None, end: int | None) -> bytes:
        begin, stop, _ = slice(start, end).indices(version.size)
        return await self._read_version(version, begin, stop) if begin < stop else b""

    async def _cat_ranges(
        self,
        paths: list[str],
        starts: Any,
        ends: Any,
        max_gap: int | None = None,
        batch_size: int | None = None,
        on_error: str = "return",
        **kwargs: Any,
    ) -> list[Any]:
        """Parts of files; all parts of one file are of the same version."""
        if not isinstance(paths, list):
            raise TypeError("paths must be a list")
        begins = list(starts) if isinstance(starts, Sequence) else [starts] * len(paths)
        stops = list(ends) if isinstance(ends, Sequence) else [ends] * len(paths)
        if len(begins) != len(paths) or len(stops) != len(paths):
            raise ValueError("paths, starts and ends differ in length")
        versions = {path: asyncio.ensure_future(self._version(path)) for path in dict.fromkeys(paths)}

        async def part(path: str, start: int | None, stop: int | None) -> bytes:
            return await self._slice(await versions[path], start, stop)

        found: list[Any] = await _run_coros_in_chunks(
            [part(*each) for each in zip(paths, begins, stops, strict=True)],
            batch_size=batch_size or self.batch_size,
            nofiles=True,
            return_exceptions=True,
        )
        failed = next((each for each in found if isinstance(each, BaseException)), None)
        if failed is not None and on_error != "return":
            raise failed
        return found

    async def _get_file(
        self,
        rpath: str,
        lpath: Any,
        callback: Any = DEFAULT_CALLBACK,
        outfile: Any = None,
        version_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Fetch a file to disk (whole or not at all) or into a file object; of a directory, make it."""
        target = outfile if outfile is not None else lpath if isfilelike(lpath) else None
        if target is not None:
            version = await self._version(rpath, version_id)
            callback.set_size(version.size)
            async for piece in (await self.store()).stream(version):
                target.write(piece)
                callback.relative_update(len(piece))
            return
        entry = await self._info(rpath, version_id)
        if entry["type"] == "directory":
            os.makedirs(lpath, exist_ok=True)
            return
        name = self._name(rpath, version_id)
        callback.set_size(entry["size"])
        await asyncio.to_thread(_make_parent, lpath)
        with oserrors(name.path):
            store = await self.store()
            await store.get_file(
                name.bucket, name.key, lpath, version_id=name.version_id, progress=callback.relative_update
            )

    async def _get(self, rpath: Any, lpath: Any, recursive: bool = False, **kwargs: Any) -> None:
        """Fetch files, names or patterns; see fsspec. A name that exists is not taken for a pattern."""
        if isinstance(rpath, str) and isinstance(lpath, str) and not recursive and await self._is_literal(rpath):
            into = lpath.endswith("/") or await asyncio.to_thread(_local_size, lpath) is None
            inside = self._name(rpath).key.rsplit("/", 1)[-1]
            rpath, lpath = [rpath], [os.path.join(lpath, inside) if into else lpath]
        await super()._get(rpath, lpath, recursive=recursive, **kwargs)

    # -- Writing ------------------------------------------------------------------------------------------------------

    async def _pipe_file(
        self,
        path: str,
        value: Any,
        mode: str = "overwrite",
        content_type: str = "",
        metadata: Mapping[str, str] | None = None,
        if_match: str | None = None,
        if_none_match: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Set the bytes of a file; the other arguments as for :meth:`open`."""
        name = self._file_name(path)
        terms = _terms(mode == "create", content_type, metadata, if_match, if_none_match)
        with oserrors(name.path):
            await (await self.store()).put_stream(name.bucket, name.key, bytes(value), **_arguments(terms))

    async def _put_file(
        self,
        lpath: str,
        rpath: str,
        callback: Any = DEFAULT_CALLBACK,
        mode: str = "overwrite",
        content_type: str = "",
        metadata: Mapping[str, str] | None = None,
        if_match: str | None = None,
        if_none_match: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Store a local file; of a directory, make it."""
        size = await asyncio.to_thread(_local_size, lpath)
        if size is None:
            await self._makedirs(rpath, exist_ok=True)
            return
        name = self._file_name(rpath)
        terms = _terms(mode == "create", content_type, metadata, if_match, if_none_match)
        callback.set_size(size)
        with oserrors(name.path):
            store = await self.store()
            await store.put_file(name.bucket, name.key, lpath, progress=callback.relative_update, **_arguments(terms))

    # -- Opening ------------------------------------------------------------------------------------------------------

    def open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        cache_options: Any = None,
        compression: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Open a file: ``r``, ``w``, ``x`` or ``a``, text or with ``b`` bytes; see fsspec for the other arguments.

        ``version_id`` opens an old version for reading.  For writing there are ``content_type``, ``metadata``,
        ``if_match`` (the version that must be current at the close) and ``if_none_match="*"`` (there must be none).
        """
        if mode.strip("bt") == "r" or ("b" in mode and compression is None):
            return super().open(path, mode, block_size, cache_options, compression, **kwargs)
        text = {each: kwargs.pop(each) for each in ("encoding", "errors", "newline") if each in kwargs}
        kind = mode.replace("t", "").replace("b", "")
        handle = super().open(path, f"{kind}b", block_size, cache_options, None, **kwargs)
        if compression is not None:
            codec = compr[get_compression(self._strip_protocol(path), compression)]
            handle = CompressedWriter(codec(handle, mode=kind), handle)
        return handle if "b" in mode else TextWriter(handle, **text)

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        version_id: str | None = None,
        content_type: str = "",
        metadata: Mapping[str, str] | None = None,
        if_match: str | None = None,
        if_none_match: str | None = None,
        **kwargs: Any,
    ) -> Reader | Writer:
        kind = mode.replace("b", "")
        if kind == "r":
            version = self.wait(self.submit(self._version(path, version_id)))
            return Reader(self, self._strip_protocol(path), version, block_size)
        if kind not in ("w", "x", "a"):
            raise io.UnsupportedOperation(
                f"mode {mode!r} is not offered: objects are replaced as a whole or appended to (rb, wb, xb, ab)"
            )
        name = self._file_name(path)
        terms = _terms(kind == "x", content_type, metadata, if_match, if_none_match)
        base = self.wait(self.submit(self._writable(name.path, kind, terms)))
        if kind == "a":
            terms = Terms(
                content_type or (base.content_type if base else ""),
                dict(metadata) if metadata is not None else dict(base.metadata) if base else None,
                if_absent=base is None,
                if_version=base.version_id if base else None,
            )
        return Writer(self, name, mode, terms, base=base, block_size=block_size or BLOCK_BYTES, autocommit=autocommit)

    async def _writable(self, path: str, kind: str, terms: Terms) -> ObjectVersion | None:
        """Fail at open where the close would fail anyway; what to append to, if that is wanted."""
        name = self._name(path)
        with oserrors(name.path):
            client = (await self.store()).client
            try:
                current = await client.head_object(name.bucket, name.key)
            except NoSuchKey:
                if terms.if_version:
                    raise
                return None
            if terms.if_absent:
                raise AlreadyExists(f"object {name.key!r} exists already in bucket {name.bucket!r}")
            if terms.if_version not in (None, current.version_id):
                raise PreconditionFailed(
                    f"the current version of {name.path!r} is {current.version_id}, not {terms.if_version}"
                )
            return await client.get_object(name.bucket, name.key) if kind == "a" else None

    # -- What identifies content --------------------------------------------------------------------------------------

    async def _ukey(self, path: str) -> str:
        """The id of the version: it changes whenever the file does."""
        entry = await self._info(path)
        return str(entry.get("version_id") or tokenize(entry))

    async def _checksum(self, path: str) -> int:
        """The same as a number."""
        return int(await self._ukey(path), 16)

    async def _modified(self, path: str) -> datetime:
        """When the current version was committed, in UTC."""
        entry = await self._info(path)
        if "mtime" not in entry:
            raise IsADirectoryError(errno.EISDIR, "a directory that keys imply has no time", entry["name"])
        return datetime.fromtimestamp(entry["mtime"], UTC)

    async def _created(self, path: str) -> datetime:
        """When the oldest version that is left was committed (of a bucket: when it was made), in UTC."""
        entry = await self._info(path)
        if entry["type"] == "directory":
            return await self._modified(path)
        name = self._name(path)
        with oserrors(name.path):
            history = await (await self.store()).client.versions(name.bucket, name.key)
        return history[-1].modified

    async def _object_version_info(self, path: str, **kwargs: Any) -> list[Entry]:
        """All versions of a file, newest first, delete markers included."""
        name = self._name(path)
        with oserrors(name.path):
            return [version_entry(each) for each in await (await self.store()).client.versions(name.bucket, name.key)]

    async def _sign(self, path: str, expiration: int = 100, **kwargs: Any) -> str:
        """Not offered: there is no HTTP server that a signed URL could name."""
        raise NotImplementedError("objmeta has no HTTP server, so there is no URL to sign; copy the file with get()")

    ukey = blocking(_ukey)
    checksum = blocking(_checksum)
    modified = blocking(_modified)
    created = blocking(_created)
    object_version_info = blocking(_object_version_info)
    sign = blocking(_sign)


_Stores = dict[asyncio.AbstractEventLoop, "asyncio.Task[Store]"]

_INHERITED: Final[list[_Stores]] = []
"""What a forked child inherited, kept for good: closing it, or collecting it, would touch the parent's files."""


def _finalizer(fs: ObjmetaFileSystem, stores: _Stores) -> weakref.finalize[[int, _Stores], ObjmetaFileSystem]:
    """Closes the stores of an instance that nobody refers to any more."""
    found = weakref.finalize(fs, _close_stores, os.getpid(), stores)
    found.atexit = False  # at exit there is nothing to save: what was acknowledged is durable
    return found


def _close_stores(pid: int, stores: _Stores) -> None:
    async def close(opening: asyncio.Task[Store]) -> None:
        await (await opening).close()

    if pid != os.getpid():
        _INHERITED.append(stores)
        return
    for loop, opening in stores.items():
        if loop.is_running():
            asyncio.run_coroutine_threadsafe(close(opening), loop)
    stores.clear()


def _terms(
    create: bool,
    content_type: str,
    metadata: Mapping[str, str] | None,
    if_match: str | None,
    if_none_match: str | None,
) -> Terms:
    """The conditions and properties of a write, from the words that fsspec and HTTP have for them."""
    if if_none_match not in (None, "*"):
        raise ValueError("if_none_match may only be '*': that there is no such file")
    return Terms(
        content_type,
        None if metadata is None else dict(metadata),
        if_absent=create or if_none_match == "*",
        if_version=if_match,
    )


def _arguments(terms: Terms) -> dict[str, Any]:
    return {each: getattr(terms, each) for each in ("content_type", "metadata", "if_absent", "if_version")}


def _local_size(path: str) -> int | None:
    """The size of a local file in bytes (0 if there is none), None for a directory."""
    with contextlib.suppress(FileNotFoundError):
        return None if os.path.isdir(path) else os.path.getsize(path)
    return 0


def _make_parent(path: str) -> None:
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
