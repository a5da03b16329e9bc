"""What identifies a file's content, its times, its versions, and the metadata that users keep with it.

All of it is of one version: ``ukey`` is its id, ``checksum`` the same as a number, ``modified`` and ``created`` are
when it was committed, as in the other object stores.  Metadata belongs to a version too, so setting some of it makes a
new one, with the same content; no bytes move.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final

from fsspec.utils import tokenize

from gateway.fs.arguments import refuse_lost
from gateway.fs.blocking import blocking
from gateway.fs.conditions import Terms, checked_metadata, refuse_if_none_match, settled, terms
from gateway.fs.entries import Entry, Name, version_entry
from gateway.fs.listing import Listing
from gateway.fs.oserrors import oserrors
from objmeta.errors import PreconditionFailed

ATTEMPTS_MAX: Final = 20
"""How often metadata is set anew because somebody wrote to the file meanwhile."""


class Describing(Listing):
    """The part of the file system that says what a file is."""

    def _file_name(self, path: str, version_id: str | None = None) -> Name:
        """What a path names, if a file can be written there."""
        name = self._name(path, version_id)
        if self.as_of is not None:
            raise OSError(errno.EROFS, f"this file system is as of {self.as_of}, and read only", name.path)
        if not name.key:
            raise IsADirectoryError(errno.EISDIR, "a file needs a name inside a bucket", name.path)
        if name.version_id:
            raise PermissionError(errno.EPERM, "a version never changes; write to the path without it", name.path)
        return name

    async def _settled(self, asked: Terms, name: Name) -> Terms:
        return await settled(asked, (await self.store()).client, name)

    # -- Identity and times -------------------------------------------------------------------------------------------

    async def _ukey(self, path: str) -> str:
        """The id of the version: it changes whenever the file does."""
        entry = await self._info(path)
        return str(entry.get("version_id") or tokenize(entry))

    async def _checksum(self, path: str) -> int:
        """The same as a number."""
        return int(await self._ukey(path), 16)

    async def _modified(self, path: str) -> datetime:
        """When the version was committed, in UTC."""
        entry = await self._info(path)
        if "mtime" not in entry:
            raise IsADirectoryError(errno.EISDIR, "a directory that keys imply has no time", entry["name"])
        return datetime.fromtimestamp(entry["mtime"], UTC)

    async def _created(self, path: str) -> datetime:
        """The same: versions never change. (When the file first was, ``object_version_info`` knows.)"""
        return await self._modified(path)

    async def _object_version_info(self, path: str, **kwargs: Any) -> list[Entry]:
        """All versions of a file, newest first, delete markers (``IsDeleteMarker``) included."""
        refuse_lost("object_version_info", kwargs)
        name = self._name(path)
        with oserrors(name.path):
            return [version_entry(each) for each in await (await self.store()).client.versions(name.bucket, name.key)]

    async def _sign(self, path: str, expiration: int = 100, **kwargs: Any) -> str:
        """Not offered: there is no HTTP server that a signed URL could name."""
        raise NotImplementedError("objmeta has no HTTP server, so there is no URL to sign; copy the file with get()")

    # -- Metadata -----------------------------------------------------------------------------------------------------

    async def _metadata(self, path: str, **kwargs: Any) -> dict[str, str]:
        """The metadata that users keep with a file: text under text."""
        refuse_lost("metadata", kwargs)
        name = self._name(path)
        with oserrors(name.path):
            return dict((await self._get_file_version(name, with_data=False)).metadata)

    async def _getxattr(self, path: str, attr: str, **kwargs: Any) -> str | None:
        """One value of the metadata, or None."""
        refuse_lost("getxattr", kwargs)
        return (await self._metadata(path)).get(attr)

    async def _setxattrs(
        self,
        path: str,
        content_type: str | None = None,
        if_match: str | None = None,
        if_none_match: str | None = None,
        attributes: Mapping[str, str | None] | None = None,
        **named: str | None,
    ) -> dict[str, str]:
        """Set values of the metadata, and with None remove them; the others stay. All of it after that.

        Values are given by name, or in ``attributes`` where a name is none of Python's.  Makes a new version with the
        same content; who writes to the file meanwhile loses nothing.
        """
        refuse_if_none_match("setting metadata", if_none_match)
        name = self._file_name(path)
        changed = {**(attributes or {}), **named}
        checked_metadata({key: value for key, value in changed.items() if value is not None})
        asked = terms(if_match=if_match)
        with oserrors(name.path):
            store = await self.store()
            asked = await self._settled(asked, name)
            for _ in range(ATTEMPTS_MAX):
                version = await self._get_file_version(name, with_data=True)
                if asked.if_version not in (None, version.version_id):
                    raise PreconditionFailed(f"the current version of {name.path!r} is {version.version_id}")
                kept = {**version.metadata, **changed}
                metadata = {key: value for key, value in kept.items() if value is not None}
                with suppress(PreconditionFailed):
                    await store.copy_version(
                        version,
                        name.bucket,
                        name.key,
                        content_type=content_type,
                        metadata=metadata,
                        if_version=version.version_id,
                    )
                    return metadata
            raise PreconditionFailed(f"{name.path!r} was written to all the time; its metadata was not changed")

    async def _setxattr(
        self,
        path: str,
        copy_kwargs: Any = None,
        if_match: str | None = None,
        if_none_match: str | None = None,
        **named: str | None,
    ) -> None:
        """The same under s3fs's name for it."""
        await self._setxattrs(path, if_match=if_match, if_none_match=if_none_match, attributes=named)

    ukey = blocking(_ukey)
    checksum = blocking(_checksum)
    modified = blocking(_modified)
    created = blocking(_created)
    object_version_info = blocking(_object_version_info)
    sign = blocking(_sign)
    metadata = blocking(_metadata)
    getxattr = blocking(_getxattr)
    setxattrs = blocking(_setxattrs)
    setxattr = blocking(_setxattr)
