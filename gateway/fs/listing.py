"""Looking: info, ls, find, walk, glob, and what a name that may be a pattern stands for.

Listings come from the store in key order, so ``find`` is one scan of a range however deep the tree, and ``ls`` of a
directory with millions of keys below it is a few steps (the delimiter is pushed down).
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from glob import has_magic
from typing import TYPE_CHECKING, Any

from fsspec.asyn import AsyncFileSystem, _run_coros_in_chunks
from fsspec.utils import other_paths, stringify_path

from gateway.fs.arguments import refuse_lost
from gateway.fs.entries import (
    Entry,
    Name,
    bucket_entry,
    directory,
    file_entry,
    implied_directories,
    is_pinned,
    parse,
    version_entry,
)
from gateway.fs.oserrors import oserrors
from objmeta import ObjectVersion
from objmeta.errors import NoSuchBucket, NoSuchKey

if TYPE_CHECKING:
    from gateway.data.transfer import Store


class Listing(AsyncFileSystem):  # type: ignore[misc]
    """The part of the file system that only looks."""

    as_of: str | None = None
    """The time as of which all is seen, if not now."""
    version_aware = True
    """Whether paths may name versions."""

    async def store(self) -> Store:
        """The store, opened at first use; the whole file system provides it, this part only asks for it."""
        raise NotImplementedError

    def _name(self, path: Any, version_id: str | None = None) -> Name:
        return parse(self._strip_protocol(path), version_id, self.version_aware)

    # -- One name -----------------------------------------------------------------------------------------------------

    async def _info(self, path: str, version_id: str | None = None, **kwargs: Any) -> Entry:
        """The entry of a file (one round trip), a directory or a bucket. Raises FileNotFoundError."""
        refuse_lost("info", kwargs, ("version_id",))
        name = self._name(path, version_id)
        if not name.bucket:
            return directory("")
        with oserrors(name.path):
            client = (await self.store()).client
            if not name.key:
                return bucket_entry(await client.bucket(name.bucket))
            if name.version_id is not None:
                return file_entry(await self._get_object(name, with_data=False))
            try:
                return file_entry(await client.head_object(name.bucket, name.key))
            except NoSuchKey:
                entry = await self._directory_entry(name)
                if entry is None:
                    raise
                return entry

    async def _get_object(self, name: Name, with_data: bool) -> ObjectVersion:
        client = (await self.store()).client
        found = await client.get_object(name.bucket, name.key, version_id=name.version_id, with_data=with_data)
        if found.is_delete_marker:
            raise NoSuchKey(f"version {found.version_id} of {name.key!r} is a delete marker and has no content")
        return found

    async def _get_file_version(self, name: Name, with_data: bool) -> ObjectVersion:
        """The same; IsADirectoryError if the name is that of a directory."""
        if not name.key:
            raise IsADirectoryError(errno.EISDIR, "this is a directory, not a file", name.path)
        try:
            return await self._get_object(name, with_data)
        except NoSuchKey as missing:
            if name.version_id is None and await self._is_directory(name):
                raise IsADirectoryError(errno.EISDIR, "this is a directory, not a file", name.path) from missing
            raise

    async def _directory_entry(self, name: Name) -> Entry | None:
        """The entry of a directory that a marker makes or keys imply, or None."""
        client = (await self.store()).client
        page = await client.list_objects(name.bucket, name.prefix, limit=1)
        if not page.objects:
            return None
        first = page.objects[0]
        return directory(name.path, first.modified_us / 1e6 if first.key == name.prefix else None)

    async def _is_directory(self, name: Name) -> bool:
        return not name.key or await self._directory_entry(name) is not None

    async def _type(self, path: str, version_id: str | None = None) -> str:
        """ "file", "directory", or "" if there is nothing. Never "" because nobody answered."""
        try:
            found: str = (await self._info(path, version_id))["type"]
        except FileNotFoundError:
            return ""
        except OSError as failure:
            if failure.errno == errno.EINVAL:  # nothing can be under a name that breaks the rules
                return ""
            raise
        return found

    async def _exists(self, path: str, version_id: str | None = None, **kwargs: Any) -> bool:
        """Whether there is a file or directory, or that version of a file. Raises if the store cannot tell."""
        refuse_lost("exists", kwargs, ("version_id",))
        return bool(await self._type(path, version_id))

    async def _isfile(self, path: str, version_id: str | None = None) -> bool:
        return await self._type(path, version_id) == "file"

    async def _isdir(self, path: str) -> bool:
        return await self._type(path) == "directory"

    # -- One directory ------------------------------------------------------------------------------------------------

    async def _ls(self, path: str, detail: bool = True, versions: bool = False, **kwargs: Any) -> list[Any]:
        """What is in a directory; of a file, itself.

        ``versions`` lists every version under the name that opens it, delete markers (``IsDeleteMarker``), which have
        no content, under theirs, and the directories of all of these.
        """
        refuse_lost("ls", kwargs, ("versions",))
        name = self._name(path)
        with oserrors(name.path):
            if not name.bucket:
                found = [bucket_entry(bucket) for bucket in await (await self.store()).client.buckets()]
            elif versions and not self.version_aware:
                raise ValueError(
                    "versions=True takes a file system with version_aware=True, which can open their names"
                )
            elif versions:
                found = await self._ls_versions(name)
            else:
                found = await self._children(name, name.prefix)
                if not found:
                    found = await self._ls_nothing(name)
        return found if detail else [entry["name"] for entry in found]

    async def _ls_nothing(self, name: Name) -> list[Entry]:
        """What ls says when there are no children: an empty directory, a file, or an error."""
        if name.version_id is None and await self._is_directory(name):
            return []
        return [await self._info(name.path, name.version_id)]

    async def _children(self, name: Name, prefix: str) -> list[Entry]:
        """Files and directories right under ``name`` whose keys begin with ``prefix``, in order."""
        found = []
        async for item in (await self.store()).client.iter_objects(name.bucket, prefix, delimiter="/"):
            if not isinstance(item, str):
                if item.key != name.prefix:
                    found.append(file_entry(item))
            elif len(item) > len(name.prefix) + 1:  # "a//" has no name of its own
                found.append(directory(f"{name.bucket}/{item[:-1]}"))
        return sorted(found, key=lambda entry: str(entry["name"]))

    async def _ls_versions(self, name: Name) -> list[Entry]:
        client = (await self.store()).client
        found: list[Entry] = []
        directories: set[str] = set()
        continuation = None
        while True:
            page = await client.list_versions(name.bucket, name.key, continuation=continuation)
            for each in page.versions:
                below = each.key[len(name.prefix) :] if each.key.startswith(name.prefix) else ""
                first, slash, _ = below.partition("/")
                if each.key == name.key or (first and not slash):
                    found.append(version_entry(each))
                elif first and first not in directories:
                    directories.add(first)
                    found.append(directory(f"{name.bucket}/{name.prefix}{first}"))
            continuation = page.continuation
            if continuation is None:
                break
        if not found and not await self._is_directory(name):
            raise NoSuchKey(f"{name.path!r} does not exist")
        return found

    # -- Trees --------------------------------------------------------------------------------------------------------

    async def _find(
        self,
        path: str,
        maxdepth: int | None = None,
        withdirs: bool = False,
        detail: bool = False,
        prefix: str = "",
        **kwargs: Any,
    ) -> Any:
        """All files below a path, and directories if ``withdirs``; names in order, or with ``detail`` their entries.

        ``prefix`` is what the names right under the path begin with.  A path that does not exist has nothing below it.
        """
        refuse_lost("find", kwargs)
        if maxdepth is not None and maxdepth < 1:
            raise ValueError("maxdepth must be at least 1")
        name = self._name(path)
        with oserrors(name.path):
            try:
                found = await self._below(name, prefix, maxdepth)
            except NoSuchBucket:
                found = {}
            if not found and name.key and not prefix and await self._isfile(path):
                found = {self._strip_protocol(path): await self._info(path)}
            elif withdirs and name.bucket and (found or await self._isdir(name.path)):
                found.setdefault(name.path, directory(name.path))
        if not withdirs:
            found = {each: entry for each, entry in found.items() if entry["type"] != "directory"}
        names = sorted(found)
        return {each: found[each] for each in names} if detail else names

    async def _below(self, name: Name, prefix: str, maxdepth: int | None) -> dict[str, Entry]:
        """Entries below a name, directories too."""
        if not name.bucket:
            buckets = [entry for entry in await self._ls("") if entry["name"].startswith(prefix)]
            found = {entry["name"]: entry for entry in buckets}
            below = [Name(each, "") for each in found]
        elif maxdepth is None:
            return await self._range(name, prefix)
        else:
            children = await self._children(name, name.prefix + prefix)
            directories = [str(entry["name"]) for entry in children if entry["type"] == "directory"]
            below = [Name(name.bucket, each.partition("/")[2]) for each in directories]
            # where a file and a directory have one name, the file is shown, as everywhere
            found = {entry["name"]: entry for entry in sorted(children, key=lambda entry: str(entry["type"]))}
        if maxdepth is None or maxdepth > 1:
            deeper = None if maxdepth is None else maxdepth - 1
            jobs = [self._below(under, "", deeper) for under in below]
            for each in await _run_coros_in_chunks(jobs, batch_size=self.batch_size, nofiles=True):
                found |= each
        return found

    async def _range(self, name: Name, prefix: str) -> dict[str, Entry]:
        """Everything below a name by one scan of its range of keys."""
        found: dict[str, Entry] = {}
        async for item in (await self.store()).client.iter_objects(name.bucket, name.prefix + prefix):
            assert not isinstance(item, str), "without a delimiter there are no common prefixes"
            for implied in implied_directories(item.key, len(name.prefix)):
                above = f"{name.bucket}/{implied}"
                if above not in found:
                    found[above] = directory(above)
            if not item.key.endswith("/"):
                found[f"{name.bucket}/{item.key}"] = file_entry(item)
        return found

    async def _walk(
        self, path: str, maxdepth: int | None = None, topdown: bool = True, on_error: Any = "omit", **kwargs: Any
    ) -> AsyncIterator[Any]:
        """As os.walk. What vanishes meanwhile is left out; a store that cannot answer is an error."""
        handler = _only_missing if on_error == "omit" else on_error
        async for each in super()._walk(path, maxdepth=maxdepth, topdown=topdown, on_error=handler, **kwargs):
            yield each

    async def _du(
        self, path: str, total: bool = True, maxdepth: int | None = None, withdirs: bool = False, **kwargs: Any
    ) -> Any:
        """Bytes of the files below a path, or of each."""
        found = await self._find(path, maxdepth=maxdepth, withdirs=withdirs, detail=True, **kwargs)
        sizes = {each: entry["size"] for each, entry in found.items()}
        return sum(sizes.values()) if total else sizes

    # -- Patterns -----------------------------------------------------------------------------------------------------

    async def _glob(self, path: str, maxdepth: int | None = None, **kwargs: Any) -> Any:
        """Names that match a pattern; if none does, the file that has the pattern itself as its name."""
        path = stringify_path(path)
        stripped = self._strip_protocol(path)
        literal = self._is_pinned(stripped)
        found: Any = {} if literal else await super()._glob(path, maxdepth=maxdepth, **kwargs)
        if not found and (literal or has_magic(stripped)) and await self._isfile(stripped):
            found = {stripped: {**await self._info(stripped), "name": stripped}}
        if kwargs.get("detail"):
            return found or {}
        return list(found)

    def _is_pinned(self, stripped: str) -> bool:
        """Whether the only thing in a path that looks like a pattern is the mark of its version."""
        return self.version_aware and is_pinned(stripped) and not has_magic(self._name(stripped).path)

    async def _is_literal(self, path: str) -> bool:
        """Whether a path that looks like a pattern is the name of something, or names a version."""
        stripped = self._strip_protocol(path)
        return self._is_pinned(stripped) or (has_magic(stripped) and await self._exists(stripped))

    async def _literal_pairs(
        self, source: str, target: str, into: bool, recursive: bool, maxdepth: int | None
    ) -> tuple[list[str], list[str]]:
        """What a bulk copy from a literal name takes, and where that goes; ``into``: the target is a directory."""
        paths = await self._expand_path([source], recursive, maxdepth, assume_literal=True)
        if not recursive or maxdepth is not None:
            paths = [each for each in paths if not await self._isdir(each)]
        names = [self._name(each).path for each in paths]  # a version is no part of a copy's name
        return paths, other_paths(names, target, exists=into and not source.endswith("/")) if names else []

    async def _expand_path(
        self, path: Any, recursive: bool = False, maxdepth: int | None = None, assume_literal: bool = False
    ) -> list[str]:
        """The files and directories that names or patterns stand for. A name that exists is not taken for a pattern."""
        given = [self._strip_protocol(each) for each in ([path] if isinstance(path, (str, os.PathLike)) else path)]
        literal = {each for each in given if assume_literal or await self._is_literal(each)}
        found: set[str] = set()
        missing: FileNotFoundError | None = None
        for each in given:
            try:
                found.update(await super()._expand_path([each], recursive, maxdepth, assume_literal=each in literal))
            except FileNotFoundError as failure:
                is_name = each in literal or not has_magic(each)
                reason = "there is no such file, directory or version" if is_name else "nothing matches this pattern"
                missing = failure if failure.filename else FileNotFoundError(errno.ENOENT, reason, each)
        if not found:
            raise missing or FileNotFoundError(errno.ENOENT, "no path was given", "")
        return sorted(found)


def _only_missing(failure: OSError) -> None:
    if not isinstance(failure, FileNotFoundError):
        raise failure
