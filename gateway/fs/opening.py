"""Opening files: ``open`` and its twin for coroutines, ``open_async``.

Both fail at once where the close would fail anyway, and both pin: a handle that reads is of one version for good, and
one that writes is committed on the terms that were settled when it was opened.
"""

from __future__ import annotations

import concurrent.futures
import io
import sys
import weakref
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar

from fsspec.compression import compr
from fsspec.core import get_compression

from gateway.fs.arguments import CONTENT, refuse_lost
from gateway.fs.changing import Changing
from gateway.fs.conditions import Terms, terms
from gateway.fs.entries import Name
from gateway.fs.oserrors import oserrors
from gateway.fs.readers import Reader
from gateway.fs.streams import AsyncReader, AsyncWriter
from gateway.fs.writers import CompressedWriter, Sink, TextWriter, Writer
from objmeta import ObjectVersion
from objmeta.errors import AlreadyExists, NoSuchKey, PreconditionFailed

BLOCK_BYTES: Final = 4 << 20
"""How much a writing handle gathers before it passes it on."""

_T = TypeVar("_T")


class Opening(Changing):
    """The part of the file system that opens files."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._opened_by_no_python: weakref.WeakValueDictionary[str, Sink] = weakref.WeakValueDictionary()

    def submit(self, coroutine: Coroutine[Any, Any, _T]) -> concurrent.futures.Future[_T]:
        """Start a coroutine on the file system's loop; the whole file system provides it."""
        raise NotImplementedError

    def wait(self, future: concurrent.futures.Future[_T]) -> _T:
        """Wait for what was submitted; the whole file system provides it."""
        raise NotImplementedError

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
        ``if_match`` (the version id or ETag of what must be current, now and at the close) and ``if_none_match="*"``
        (there must be none).
        """
        if mode.strip("bt") == "r" or ("b" in mode and compression is None):
            handle = super().open(path, mode, block_size, cache_options, compression, **kwargs)
            if isinstance(handle, Writer) and sys._getframe().f_back is None:
                self._opened_by_no_python[handle.path] = handle.publisher
            return handle
        text = {each: kwargs.pop(each) for each in ("encoding", "errors", "newline") if each in kwargs}
        kind = mode.replace("t", "").replace("b", "")
        handle = super().open(path, f"{kind}b", block_size, cache_options, None, **kwargs)
        if compression is not None:
            codec = compr[get_compression(self._strip_protocol(path), compression)]
            handle = CompressedWriter(codec(handle, mode=kind), handle)
        return handle if "b" in mode else TextWriter(handle, **text)

    def isfile(self, path: str, version_id: str | None = None) -> bool:
        """Whether there is a file, or that version of one.

        A file that DuckDB opened, and has written nothing to, is given up by the question: see ``writers``.
        """
        return self.wait(self.submit(self._isfile_looked_for(path, version_id)))

    async def _isfile_looked_for(self, path: str, version_id: str | None) -> bool:
        sink = self._opened_by_no_python.get(self._name(path).path)
        if sink is not None:
            await sink.look_for()
        return await self._isfile(path, version_id)

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        version_id: str | None = None,
        **kwargs: Any,
    ) -> Reader | Writer:
        kind = _kind(mode)
        if kind == "r":
            refuse_lost("opening for reading", kwargs, ("version_id",))
            version = self.wait(self.submit(self._version(path, version_id)))
            return Reader(self, self._strip_protocol(path), version, block_size)
        name = self._file_name(path, version_id)
        asked, base = self.wait(self.submit(self._writable(name, kind, _asked(kind, kwargs))))
        return Writer(self, name, mode, asked, base=base, block_size=block_size or BLOCK_BYTES, autocommit=autocommit)

    async def open_async(self, path: str, mode: str = "rb", version_id: str | None = None, **kwargs: Any) -> Any:
        """Open a file for coroutines, in bytes: ``rb``, ``wb``, ``xb`` or ``ab``; the other arguments as for open.

        An :class:`gateway.fs.streams.AsyncReader` or ``AsyncWriter``.
        """
        if "b" not in mode or kwargs.get("compression") is not None:
            raise ValueError("open_async gives bytes as they are: a mode with 'b' and no compression")
        kind = _kind(mode)
        if kind == "r":
            refuse_lost("opening for reading", kwargs, ("version_id",))
            return AsyncReader(self, self._strip_protocol(path), await self._version(path, version_id))
        name = self._file_name(path, version_id)
        asked, base = await self._writable(name, kind, _asked(kind, kwargs))
        return AsyncWriter(self, name, mode, asked, base)

    async def _version(self, path: str, version_id: str | None = None) -> ObjectVersion:
        """The version that a path names now, with its manifest."""
        name = self._name(path, version_id)
        with oserrors(name.path):
            return await (await self.store()).resolved(await self._get_file_version(name, with_data=True))

    async def _writable(self, name: Name, kind: str, asked: Terms) -> tuple[Terms, ObjectVersion | None]:
        """Fail at open where the close would fail anyway; the terms, and what to append to, if that is wanted."""
        with oserrors(name.path):
            client = (await self.store()).client
            asked = await self._settled(asked, name)
            base = None
            try:
                current = await client.head_object(name.bucket, name.key)
            except NoSuchKey:
                if asked.if_version:
                    raise
            else:
                if asked.if_absent:
                    raise AlreadyExists(f"object {name.key!r} exists already in bucket {name.bucket!r}")
                if asked.if_version not in (None, current.version_id):
                    raise PreconditionFailed(
                        f"the current version of {name.path!r} is {current.version_id}, not {asked.if_version}"
                    )
                if kind == "a":
                    base = await client.get_object(name.bucket, name.key)
        if kind != "a":
            return asked, None
        if base is None:
            return replace(asked, if_absent=True), None
        metadata = dict(base.metadata) if asked.metadata is None else asked.metadata
        content_type = asked.content_type or base.content_type
        return replace(asked, content_type=content_type, metadata=metadata, if_version=base.version_id), base


def _kind(mode: str) -> str:
    kind = mode.replace("b", "")
    if kind not in ("r", "w", "x", "a"):
        raise io.UnsupportedOperation(
            f"mode {mode!r} is not offered: objects are replaced as a whole or appended to (rb, wb, xb, ab)"
        )
    return kind


def _asked(kind: str, kwargs: Mapping[str, Any]) -> Terms:
    refuse_lost("opening for writing", {name: kwargs[name] for name in kwargs if name not in CONTENT}, CONTENT)
    return terms(kind == "x", **{name: kwargs[name] for name in CONTENT if name in kwargs})
