"""``objmeta://bucket/key`` for pandas, DuckDB, Dask, pyarrow and everybody else who uses fsspec.

Rules.
* Nothing is cached here: every answer is the store's, linearizable. What must not change is pinned: a handle, or
  ``?versionId=`` in a path, is one version for good.
* Errors are OSErrors (``oserrors``). No answer in time is never taken for "does not exist".
* A name that exists is taken literally before it is taken for a pattern; only ``glob`` itself matches first.
* Directories are markers (``dir/``, made by mkdir) or implied by keys. ``a`` and ``a/b`` may coexist: then ``a`` is a
  file to everything that takes a name, and a directory to ``ls``, ``find`` and ``walk``.

Here are the store, reading and writing; what only looks is in ``listing``, what says what a file is in ``describing``,
what changes names in ``changing``, opening in ``opening``, handles in ``readers``, ``writers`` and ``streams``, names
and entries in ``entries``, conditions in ``conditions``, storage options in ``options``.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import weakref
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from datetime import datetime
from glob import has_magic
from typing import TYPE_CHECKING, Any, Final, TypeVar

from fsspec.asyn import _run_coros_in_chunks, get_loop
from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.implementations.local import LocalFileSystem, make_path_posix
from fsspec.utils import check_contained, isfilelike, other_paths, stringify_path, tokenize

from gateway.data.localfiles import LocalFile, LocalFiles
from gateway.fs import options
from gateway.fs.arguments import CONTENT, refuse_lost
from gateway.fs.blocking import add_blocking_methods, blocking, outcome, start
from gateway.fs.conditions import content, mode_creates, terms
from gateway.fs.instances import Anchored, Environment, PerThread
from gateway.fs.opening import Opening
from gateway.fs.oserrors import oserrors
from gateway.fs.transactions import Together
from objmeta import AsyncClient, Cluster, ObjectVersion
from objmeta.errors import ForkedClient

if TYPE_CHECKING:
    from gateway.data.transfer import Store
    from gateway.fs.writers import Sink, Writer

_T = TypeVar("_T")


class ObjmetaFileSystem(Opening, metaclass=Anchored):
    """Files in an objmeta store.

    ``path`` is the directory of an embedded store, ``disks`` are those of one over several disks, ``endpoints`` the
    nodes of a cluster (``"host:port,host:port"`` or a list), ``timeout_s`` how long one operation may take, in seconds.
    Without any, the settings decide as they do for :func:`objmeta.connect`, whose other settings may be given as well;
    so they do for every option of a file system (``OBJMETA_AS_OF``, ``OBJMETA_LOCAL_DIR`` and so on).
    ``batch_size`` is how much is done at a time.  With ``version_aware=False`` paths name no versions: all of a path is
    the key.  With ``as_of`` (ISO 8601, a datetime or another kind of time, or seconds since the epoch; UTC where no
    offset is said) all is as it was at that time, and read only: see ``gateway.data.past``.  ``local_path`` keeps its
    files in ``local_dir`` (default: ``local`` in an embedded store's directory, else in the user's cache), at most
    ``local_bytes`` of them.

    Instances are cached, picklable, and usable from any thread; an embedded one also after a fork, while one that is
    connected to a cluster refuses in a forked child, which opens its own.

    Raises OSError (EINVAL) for an option that is unknown, bad, or contradicts another.
    """

    protocol = "objmeta"
    root_marker = ""
    _environment = Environment()
    _extra_tokenize_attributes = ("_environment",)
    _intrans = PerThread(False)
    _transaction = PerThread(None)
    transaction_type = Together

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        endpoints: str | Sequence[str] | None = None,
        timeout_s: float | str | None = None,
        *,
        disks: str | Sequence[str | os.PathLike[str]] | None = None,
        version_aware: bool | str | None = None,
        as_of: str | float | datetime | None = None,
        local_dir: str | os.PathLike[str] | None = None,
        local_bytes: int | str | None = None,
        asynchronous: bool = False,
        loop: asyncio.AbstractEventLoop | None = None,
        batch_size: int | str | None = None,
        **settings: Any,
    ) -> None:
        given = {"path": path, "endpoints": endpoints, "timeout_s": timeout_s, "disks": disks, **settings}
        own = {"version_aware": version_aware, "as_of": as_of, "local_dir": local_dir, "local_bytes": local_bytes}
        with oserrors():
            found = options.read({**given, **own, "batch_size": batch_size})
            asynchronous = options.flag("asynchronous", asynchronous)
        self.version_aware = found.version_aware
        self._then = found.then
        self.as_of = None if self._then is None else self._then.isoformat()
        self._settings = found.settings
        self.location = AsyncClient(found.settings).location
        self.local_files = LocalFiles(options.local_directory(found.local_dir, self.location), found.local_bytes)
        self._stores: dict[asyncio.AbstractEventLoop, asyncio.Task[Store]] = {}
        super().__init__(asynchronous=asynchronous, loop=loop, batch_size=found.at_a_time, use_listings_cache=False)
        add_blocking_methods(self)
        self._finalizer = _finalizer(self, self._stores)

    @property
    def timeout_s(self) -> float:
        """How long one operation may take, in seconds."""
        return self._settings.timeout_s

    @property
    def fsid(self) -> str:
        """What is the same for all instances on one store, in any process."""
        return f"objmeta_{tokenize(str(self.location))}"

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

        settings = self._settings
        store = await open_store_at(self.location, timeout_s=settings.timeout_s, failover_s=settings.failover_s)
        return store if self._then is None else store.as_of(self._then)

    def _after_fork(self) -> None:
        if isinstance(self.location, Cluster) and self._stores:
            with oserrors():
                raise ForkedClient(
                    "this file system's connections belong to the parent process; open a new one in the child: "
                    "fsspec.filesystem(...), fsspec.open(...) and paths do, and so does one that was pickled"
                )
        self._finalizer()  # it keeps what belongs to the parent
        self._stores = {}
        self._opened_by_no_python.clear()
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

    def commit_together(self, writers: Sequence[Writer]) -> None:
        """Publish files that were closed in a transaction, at one instant; see ``gateway.fs.transactions``."""
        if writers:
            made = self.wait(self.submit(self._commit_together([writer.sink for writer in writers])))
            for writer, version in zip(writers, made, strict=True):
                writer.version = version

    async def _commit_together(self, sinks: Sequence[Sink]) -> list[ObjectVersion]:
        prepared = await _run_coros_in_chunks([sink.prepare() for sink in sinks], batch_size=self.batch_size)
        with oserrors():
            return await (await self.store()).commits.commit_together(prepared)

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
        refuse_lost("cat_file", kwargs, ("version_id",))
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
        """Parts of files; all parts of one file are of the same version.

        Parts between which there are at most ``max_gap`` bytes are read as one.
        """
        refuse_lost("cat_ranges", kwargs)
        if not isinstance(paths, list):
            raise TypeError("paths must be a list")
        begins = list(starts) if isinstance(starts, Iterable) else [starts] * len(paths)
        stops = list(ends) if isinstance(ends, Iterable) else [ends] * len(paths)
        if len(begins) != len(paths) or len(stops) != len(paths):
            raise ValueError("paths, starts and ends differ in length")
        if max_gap is not None and max_gap < 0:
            raise ValueError(f"max_gap is a number of bytes, at least 0, not {max_gap}")
        wanted: dict[str, list[int]] = {}
        for index, path in enumerate(paths):
            wanted.setdefault(path, []).append(index)
        found: list[Any] = [None] * len(paths)

        async def part(version: ObjectVersion, begin: int, stop: int, indexes: list[int]) -> None:
            try:
                data = await self._slice(version, begin, stop)
            except Exception as failure:
                for index in indexes:
                    found[index] = failure
                return
            for index in indexes:
                low, high, _ = slice(begins[index], stops[index]).indices(version.size)
                found[index] = data[low - begin : high - begin] if low < high else b""

        async def file(path: str) -> list[Coroutine[Any, Any, None]]:
            indexes = wanted[path]
            try:
                version = await self._version(path)
            except Exception as failure:
                for index in indexes:
                    found[index] = failure
                return []
            spans = [(*slice(begins[index], stops[index]).indices(version.size)[:2], index) for index in indexes]
            return [part(version, *each) for each in merged(spans, max_gap)]

        options = {"batch_size": batch_size or self.batch_size, "nofiles": True}
        files = await _run_coros_in_chunks([file(path) for path in wanted], **options)
        await _run_coros_in_chunks([each for parts in files for each in parts], **options)
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
        refuse_lost("get_file", kwargs, ("version_id",))
        target = outfile if outfile is not None else lpath if isfilelike(lpath) else None
        try:
            version = await self._version(rpath, version_id)
        except IsADirectoryError:
            if target is not None:
                raise
            await asyncio.to_thread(os.makedirs, lpath, exist_ok=True)
            return
        callback.set_size(version.size)
        if target is None:
            await asyncio.to_thread(_make_parent, lpath)
        with oserrors(f"{version.bucket}/{version.key}"):
            store = await self.store()
            if target is None:
                await store.get_version(version, lpath, progress=callback.relative_update)
                return
            async for piece in store.stream(version):
                target.write(piece)
                callback.relative_update(len(piece))

    async def _get(
        self, rpath: Any, lpath: Any, recursive: bool = False, maxdepth: int | None = None, **kwargs: Any
    ) -> None:
        """Fetch files, names or patterns; see fsspec. A name that exists is not taken for a pattern."""
        rpath, lpath = stringify_path(rpath), stringify_path(lpath)
        if isinstance(rpath, str) and isinstance(lpath, str) and await self._is_literal(rpath):
            root = make_path_posix(lpath)
            into = lpath.endswith("/") or await asyncio.to_thread(_local_size, root) is None
            rpath, lpath = await self._literal_pairs(rpath, root, into, recursive, maxdepth)
            check_contained(root, lpath)
        await super()._get(rpath, lpath, recursive=recursive, maxdepth=maxdepth, **kwargs)

    async def _local_path(self, path: str, version_id: str | None = None) -> LocalFile:
        """A file on this machine with the content of a file here, verified, read-only, and immutable.

        It is a str, which DuckDB, Polars, pandas, ``numpy.memmap`` and ``open`` take as the path that it is.  The file
        is put together the first time its content is asked for, in ``local_dir``, and stays while the result is
        referred to, or until its ``close()`` or the end of its ``with`` block.  Later the path may vanish, but not what
        is open or mapped.  ``gateway.data.localfiles`` has the rules.

        Raises FileNotFoundError, IsADirectoryError, and OSError (EINVAL) for more than ``local_bytes``.
        """
        if not isinstance(stringify_path(path), str):
            raise TypeError(f"local_path takes the path of one file, not {type(path).__name__}")
        version = await self._version(path, version_id)
        with oserrors(f"{version.bucket}/{version.key}"):
            return await self.local_files.get(await self.store(), version)

    local_path = blocking(_local_path)

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
        refuse_lost("pipe_file", kwargs, CONTENT)
        name = self._file_name(path)
        asked = terms(mode_creates(mode), content_type, metadata, if_match, if_none_match)
        data = content(value)
        with oserrors(name.path):
            asked = await self._settled(asked, name)
            await (await self.store()).put_stream(name.bucket, name.key, data, **asked.arguments)

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
        refuse_lost("put_file", kwargs, CONTENT)
        size = await asyncio.to_thread(_local_size, lpath)
        if size is None:
            await self._makedirs(rpath, exist_ok=True)
            return
        name = self._file_name(rpath)
        asked = terms(mode_creates(mode), content_type, metadata, if_match, if_none_match)
        callback.set_size(size)
        with oserrors(name.path):
            asked = await self._settled(asked, name)
            store = await self.store()
            await store.put_file(name.bucket, name.key, lpath, progress=callback.relative_update, **asked.arguments)

    async def _put(
        self, lpath: Any, rpath: Any, recursive: bool = False, maxdepth: int | None = None, **kwargs: Any
    ) -> Any:
        """Store local files, names or patterns; see fsspec. A file that exists is not taken for a pattern."""
        lpath, rpath = stringify_path(lpath), stringify_path(rpath)
        if isinstance(lpath, str) and isinstance(rpath, str) and has_magic(lpath):
            paths = await asyncio.to_thread(_local_paths, make_path_posix(lpath), recursive, maxdepth)
            if paths is not None:
                into = rpath.endswith("/") or await self._isdir(rpath)
                exists = into and not lpath.endswith("/")
                lpath, rpath = paths, other_paths(paths, self._strip_protocol(rpath), exists) if paths else []
        return await super()._put(lpath, rpath, recursive=recursive, maxdepth=maxdepth, **kwargs)


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


def merged(spans: Sequence[tuple[int, int, int]], max_gap: int | None) -> list[tuple[int, int, list[int]]]:
    """Ranges (begin, end, number) joined where they overlap or are at most ``max_gap`` bytes apart; None: never."""
    found: list[tuple[int, int, list[int]]] = []
    for begin, end, number in sorted(spans):
        if found and max_gap is not None and begin <= found[-1][1] + max_gap:
            first, last, numbers = found[-1]
            found[-1] = (first, max(last, end), [*numbers, number])
        else:
            found.append((begin, end, [number]))
    return found


def _local_size(path: str) -> int | None:
    """The size of a local file in bytes (0 if there is none), None for a directory."""
    with contextlib.suppress(FileNotFoundError):
        return None if os.path.isdir(path) else os.path.getsize(path)
    return 0


def _local_paths(path: str, recursive: bool, maxdepth: int | None) -> list[str] | None:
    """What is to be stored of a local file or directory with exactly this name; None if there is none."""
    if not os.path.lexists(path):
        return None
    found: list[str] = LocalFileSystem().expand_path([path], recursive, maxdepth, assume_literal=True)
    return found if recursive and maxdepth is None else [each for each in found if not os.path.isdir(each)]


def _make_parent(path: str) -> None:
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
