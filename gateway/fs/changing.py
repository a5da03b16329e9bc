"""Changing: copy, move, remove, touch, directories. No bytes move; each step is one conditional change.

A file is moved at one instant (``gateway.data.moving``); all other steps change one object.
Copying or moving a directory is file by file: whoever looks meanwhile sees some there and some not yet.  Removing hides
an object behind a delete marker; its versions stay until somebody asks for them to go (``versions=True``).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator, Coroutine
from glob import has_magic
from typing import Any

from fsspec.asyn import _run_coros_in_chunks
from fsspec.utils import stringify_path

from gateway.data import moving
from gateway.fs.arguments import CONDITIONS, refuse_lost
from gateway.fs.blocking import blocking
from gateway.fs.conditions import refuse_if_none_match, terms
from gateway.fs.describing import Describing
from gateway.fs.entries import DIRECTORY_TYPE, Name, outermost
from gateway.fs.oserrors import oserrors
from objmeta.errors import AlreadyExists, InvalidArgument, NoSuchBucket, NoSuchKey, NotFound, PreconditionFailed


class Changing(Describing):
    """The part of the file system that changes names."""

    async def _touch(
        self,
        path: str,
        truncate: bool = True,
        if_match: str | None = None,
        if_none_match: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Make an empty file; with ``truncate=False`` an existing one keeps its content and gets a new time."""
        refuse_lost("touch", kwargs, CONDITIONS)
        name = self._file_name(path)
        asked = terms(if_match=if_match, if_none_match=if_none_match)
        with oserrors(name.path):
            store = await self.store()
            asked = await self._settled(asked, name)
            if truncate or asked.if_absent:
                await store.client.put_object(name.bucket, name.key, data=b"", **asked.conditions)
                return
            wanted = asked.if_version
            # that somebody is quicker matters to nobody who did not ask: the file is there, and its time is new
            with contextlib.suppress(*(() if wanted else (PreconditionFailed,))):
                try:
                    version = await store.client.get_object(name.bucket, name.key)
                except NoSuchKey:
                    await store.client.put_object(
                        name.bucket, name.key, data=b"", if_absent=not wanted, if_version=wanted
                    )
                    return
                if wanted not in (None, version.version_id):
                    raise PreconditionFailed(f"the current version of {name.path!r} is {version.version_id}")
                await store.copy_version(version, name.bucket, name.key, if_version=version.version_id)

    # -- Copying and moving -------------------------------------------------------------------------------------------

    async def _copy(
        self, path1: Any, path2: Any, recursive: bool = False, maxdepth: int | None = None, **kwargs: Any
    ) -> None:
        """Copy files inside the store. A recursive copy to a bucket that does not exist makes it."""
        path1, path2 = stringify_path(path1), stringify_path(path2)
        if isinstance(path1, str) and isinstance(path2, str):
            target = self._name(path2)
            if recursive and target.bucket and not target.key and not await self._exists(target.bucket):
                await self._makedirs(target.bucket, exist_ok=True)
                path1 = path1.rstrip("/") + "/"
            elif await self._is_literal(path1):
                into = path2.endswith("/") or await self._isdir(path2)
                path1, path2 = await self._literal_pairs(path1, path2, into, recursive, maxdepth)
        await super()._copy(path1, path2, recursive=recursive, maxdepth=maxdepth, **kwargs)

    async def _cp_file(
        self,
        path1: str,
        path2: str,
        move: bool = False,
        version_id: str | None = None,
        if_match: str | None = None,
        if_none_match: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Copy one file by name; of a directory, its marker if it has one. The conditions are about ``path2``."""
        refuse_lost("cp_file", kwargs, ("version_id", *CONDITIONS))
        source, target = self._name(path1, version_id), self._name(path2)
        if source == target:
            return
        with oserrors(source.path, target.path):
            try:
                if not source.key:
                    raise NoSuchKey(f"{source.path!r} is a bucket")
                target = self._file_name(path2)
                if move and source.version_id:
                    raise InvalidArgument("a version cannot be moved; copy it, or move the path without it")
                asked = await self._settled(terms(if_match=if_match, if_none_match=if_none_match), target)
                store = await self.store()
                names = (source.bucket, source.key, target.bucket, target.key)
                if move:
                    await moving.move(store, *names, **asked.conditions)
                else:
                    await store.copy(*names, version_id=source.version_id, **asked.conditions)
            except NoSuchKey:
                if not await self._copy_marker(source, target, move):
                    raise

    async def _copy_marker(self, source: Name, target: Name, move: bool) -> bool:
        """Copy the marker of a directory. False if there is no such directory."""
        if not source.key:
            return await self._exists(source.bucket)
        if source.version_id or not await self._is_directory(source):
            return False
        client = (await self.store()).client
        with contextlib.suppress(NoSuchKey):
            marker = await client.head_object(source.bucket, source.prefix)
            if target.key:
                await self._make_marker(target)
            if move:
                await client.delete_object(source.bucket, source.prefix, if_version=marker.version_id)
        return True

    async def _mv_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        """Move one file; ``gateway.data.moving`` says what that promises."""
        await self._cp_file(path1, path2, move=True, **kwargs)

    async def _mv(
        self, path1: Any, path2: Any, recursive: bool = False, maxdepth: int | None = None, **kwargs: Any
    ) -> None:
        """Move files by name: each file at once, a directory file by file, and a bucket only if it has no history."""
        whole_bucket = False
        path1, path2 = stringify_path(path1), stringify_path(path2)
        if isinstance(path1, str) and isinstance(path2, str):
            source, target = self._name(path1), self._name(path2)
            whole_bucket = recursive and maxdepth is None and not source.key
            if source == target:
                return
            if recursive and f"{target.path}/".startswith(f"{source.path}/"):
                raise OSError(errno.EINVAL, "a directory cannot be moved into itself", source.path)
            if not recursive and not has_magic(path1) and await self._isdir(path1):
                raise IsADirectoryError(errno.EISDIR, "moving a directory takes recursive=True", source.path)
        options = {**kwargs, "maxdepth": maxdepth, "on_error": "raise", "move": True}
        await self._copy(path1, path2, recursive=recursive, **options)
        if whole_bucket:
            await self._rmdir(path1)

    mv = blocking(_mv)
    mv_file = blocking(_mv_file)

    # -- Removing -----------------------------------------------------------------------------------------------------

    async def _rm_file(
        self, path: str, if_match: str | None = None, if_none_match: str | None = None, **kwargs: Any
    ) -> None:
        """Hide one file behind a delete marker; its versions stay. With ``?versionId=``, remove that one for good."""
        refuse_lost("rm_file", kwargs, ("if_match",))
        refuse_if_none_match("removing", if_none_match)
        name = self._name(path)
        asked = terms(if_match=if_match)
        if not name.key:
            raise IsADirectoryError(errno.EISDIR, "removing a bucket takes rmdir or recursive=True", name.path)
        with oserrors(name.path):
            client = (await self.store()).client
            if name.version_id:
                if if_match is not None:
                    raise InvalidArgument("a version is removed by its id alone, so if_match has no meaning for it")
                await client.remove_version(name.bucket, name.key, name.version_id)
                return
            asked = await self._settled(asked, name)
            try:
                await client.delete_object(name.bucket, name.key, if_version=asked.if_version)
            except NoSuchKey as missing:
                await self._refuse_directory(name, missing)
                raise

    async def _refuse_directory(self, name: Name, missing: NoSuchKey | None = None) -> None:
        if await self._is_directory(name):
            message = "removing a directory takes rmdir or recursive=True"
            raise IsADirectoryError(errno.EISDIR, message, name.path) from missing

    async def _rm(
        self,
        path: Any,
        recursive: bool = False,
        batch_size: int | None = None,
        maxdepth: int | None = None,
        versions: bool = False,
        if_match: str | None = None,
        if_none_match: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Remove files, and directories if ``recursive``; ``versions`` removes their whole history for good.

        A version (``?versionId=``) goes alone, whatever else is asked.  ``if_match`` is for files by name: only where
        that is current.  What can be removed is; then the first failure is raised.
        A bucket goes only if no history is left in it; else it stays, without files, and the error says so.
        """
        refuse_lost("rm", kwargs, ("if_match", "versions"))
        refuse_if_none_match("removing", if_none_match)
        if if_match is not None and (recursive or versions):
            raise ValueError("if_match is about one version of one file: not with recursive or versions")
        batch_size = batch_size or self.batch_size
        found = await self._expand_path(path)
        if recursive and maxdepth is not None:
            found = list(dict.fromkeys([file for each in found for file in await self._find(each, maxdepth=maxdepth)]))
        elif recursive or versions:
            whole = [name for name in map(self._name, found) if not name.version_id]
            found = [each for each in found if self._name(each).version_id]
            roots = outermost(whole) if recursive else whole
            await self._all([self._rm_all(name, recursive, versions, batch_size) for name in roots], batch_size)
        await self._all([self._rm_file(each, if_match=if_match) for each in found], batch_size)

    def delete(self, path: Any, recursive: bool = False, maxdepth: int | None = None, **kwargs: Any) -> None:
        """The same under another name."""
        self.rm(path, recursive=recursive, maxdepth=maxdepth, **kwargs)

    async def _rm_all(self, name: Name, recursive: bool, versions: bool, batch_size: int | None) -> None:
        if not name.bucket:
            raise PermissionError(errno.EPERM, "removing every bucket at once is refused", name.path)
        found = False
        with oserrors(name.path):
            async for keys in self._doomed(name, recursive, versions):
                found = found or bool(keys)
                await self._all([self._rm_key(name.bucket, key, keys[key]) for key in keys], batch_size)
            if recursive and not name.key:
                await (await self.store()).client.remove_bucket(name.bucket)
            elif not found:
                if not recursive:
                    await self._refuse_directory(name)
                raise NoSuchKey(f"object {name.key!r} does not exist in bucket {name.bucket!r}")

    async def _doomed(self, name: Name, recursive: bool, versions: bool) -> AsyncIterator[dict[str, list[str]]]:
        """Keys to remove, page by page, with their versions if those are to go too, oldest first."""
        client = (await self.store()).client
        if name.key:
            with contextlib.suppress(NoSuchKey):
                if versions:
                    history = await client.versions(name.bucket, name.key)
                    yield {name.key: [each.version_id for each in reversed(history)]}
                else:
                    await client.head_object(name.bucket, name.key)
                    yield {name.key: []}
        continuation: str | None = None
        while recursive:
            found: dict[str, list[str]] = {}
            if versions:
                histories = await client.list_versions(name.bucket, name.prefix, continuation=continuation)
                for each in histories.versions:
                    found.setdefault(each.key, []).insert(0, each.version_id)
                continuation = histories.continuation
            else:
                page = await client.list_objects(name.bucket, name.prefix, continuation=continuation)
                found = {each.key: [] for each in page.objects}
                continuation = page.continuation
            yield found
            if continuation is None:
                return

    async def _rm_key(self, bucket: str, key: str, versions: list[str]) -> None:
        """Delete an object, or its versions for good; one that somebody else removed meanwhile is removed."""
        client = (await self.store()).client
        with contextlib.suppress(NotFound):
            if not versions:
                await client.delete_object(bucket, key)
            for version in versions:
                await client.remove_version(bucket, key, version)

    async def _all(self, jobs: list[Coroutine[Any, Any, Any]], batch_size: int | None) -> None:
        """Run all, also after one failed; then raise the first failure."""
        found = await _run_coros_in_chunks(jobs, batch_size=batch_size, nofiles=True, return_exceptions=True)
        failed = next((each for each in found if isinstance(each, BaseException)), None)
        if failed is not None:
            raise failed

    # -- Directories --------------------------------------------------------------------------------------------------

    async def _mkdir(self, path: str, create_parents: bool = True, **kwargs: Any) -> None:
        """Make a bucket, or a directory in one. Raises FileExistsError; FileNotFoundError if there is no parent."""
        refuse_lost("mkdir", kwargs)
        name = self._name(path)
        if create_parents or not name.bucket:
            await self._makedirs(path)
            return
        with oserrors(name.path):
            if not name.key:
                await (await self.store()).client.create_bucket(name.bucket)
                return
            parent = self._name(self._parent(name.path))
            if parent.key and not await self._is_directory(parent):
                raise NoSuchKey(f"directory {parent.path!r} does not exist")
            if await self._exists(name.path):
                raise AlreadyExists(f"{name.path!r} exists already")
            await self._make_marker(name, exist_ok=False)

    async def _makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a directory and whatever is missing above it, the bucket too."""
        name = self._name(path)
        with oserrors(name.path):
            made_bucket = bool(name.bucket) and await self._make_bucket(name.bucket)
            if not name.key:
                if not made_bucket and not exist_ok:
                    raise AlreadyExists(f"{name.path!r} exists already")
                return
            if not made_bucket:
                if exist_ok and await self._is_directory(name):
                    return
                kind = await self._type(name.path)
                if kind == "directory" and exist_ok:  # somebody was quicker
                    return
                if kind:
                    raise AlreadyExists(f"{name.path!r} exists already, as a {kind}")
            parts = name.key.split("/")
            above = [Name(name.bucket, "/".join(parts[:depth])) for depth in range(1, len(parts)) if parts[depth - 1]]
            present = await asyncio.gather(*(self._is_directory(each) for each in above))
            missing = [each for each, there in zip(above, present, strict=True) if not there]
            await asyncio.gather(*(self._make_marker(each) for each in missing))
            await self._make_marker(name, exist_ok=exist_ok)

    async def _make_bucket(self, bucket: str) -> bool:
        """Make a bucket unless there is one; whether it was made."""
        client = (await self.store()).client
        try:
            await client.bucket(bucket)
        except NoSuchBucket:
            with contextlib.suppress(AlreadyExists):
                await client.create_bucket(bucket)
                return True
        return False

    async def _make_marker(self, name: Name, exist_ok: bool = True) -> None:
        client = (await self.store()).client
        try:
            await client.put_object(name.bucket, name.prefix, data=b"", content_type=DIRECTORY_TYPE, if_absent=True)
        except AlreadyExists:
            if not exist_ok:
                raise

    async def _rmdir(self, path: str) -> None:
        """Remove an empty directory or bucket."""
        name = self._name(path)
        with oserrors(name.path):
            client = (await self.store()).client
            if not name.key:
                await client.remove_bucket(name.bucket)
                return
            page = await client.list_objects(name.bucket, name.prefix, limit=2)
            if any(found.key != name.prefix for found in page.objects):
                raise OSError(errno.ENOTEMPTY, "this directory is not empty", name.path)
            if page.objects:
                await client.delete_object(name.bucket, name.prefix, if_version=page.objects[0].version_id)
            elif await self._isfile(name.path):
                raise NotADirectoryError(errno.ENOTDIR, "this is a file, not a directory", name.path)
            else:
                raise NoSuchKey(f"directory {name.path!r} does not exist")

    touch = blocking(_touch)
    rmdir = blocking(_rmdir)
