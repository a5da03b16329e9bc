"""What a mounted directory does. The methods are FUSE's operations, by its names, and any thread may call them.

Rules.
* Directories at the top are buckets, unless one bucket or a directory in it is mounted.  Names are taken as they are:
  no part of one means a version.
* What open files are, and when what was written is a version: ``files``.
* Renaming a file is ``gateway.data.moving``; renaming a directory does so file by file.
* A directory stays when its last file goes, as people expect of directories: it gets a marker.
* Modes, owners and times are accepted and not kept.  There are no links, devices or pipes.

Locks are taken in this order: ``_changing_names``, that of a draft, ``_tables`` (which is never held for long).
"""

from __future__ import annotations

import errno
from contextlib import ExitStack
from dataclasses import replace
from typing import Final

from gateway.data import moving
from gateway.fs.entries import Name
from gateway.fs.oserrors import oserrors
from gateway.mount.drafts import Draft
from gateway.mount.files import Files

RENAME_NOREPLACE: Final = 1
"""A flag of renameat2: the target must not exist (linux/fs.h)."""
XATTR_CREATE: Final = 1
XATTR_REPLACE: Final = 2
"""Flags of setxattr: the attribute must be new, or must be there (linux/xattr.h)."""
USER: Final = "user."
"""What the names of users' extended attributes begin with; all other kinds belong to the kernel."""


class Operations(Files):
    """One mounted directory."""

    # -- Changing names -----------------------------------------------------------------------------------------------

    def mkdir(self, path: str, mode: int) -> int:
        """Make a directory, or at the top a bucket."""
        if self._read_only:
            raise OSError(errno.EROFS, "this mount is read only", path)
        in_root = "/" not in path.strip("/")  # of which there may be nothing yet
        self._run(self._fs._mkdir(self._name(path).path, create_parents=in_root), path)
        return 0

    def rmdir(self, path: str) -> int:
        """Remove an empty directory, or a bucket without any history."""
        if self._read_only:
            raise OSError(errno.EROFS, "this mount is read only", path)
        name = self._name(path)
        with self._changing_names:
            with self._tables:
                if any(each.startswith(f"{path}/") for each in self._drafts):
                    raise OSError(errno.ENOTEMPTY, "this directory is not empty", path)
            self._keep_parent(name, last=True)
            self._run(self._fs._rmdir(name.path), path)
        return 0

    def unlink(self, path: str) -> int:
        """Remove a file: it is hidden behind a delete marker, and its versions stay."""
        name = self._changeable(path)
        with self._changing_names, ExitStack() as held:
            drafts = self._held(held, path)
            self._keep_parent(name)
            try:
                self._run(self._fs._rm_file(name.path), path)
            except FileNotFoundError:
                if not drafts:
                    raise
            self._forget(drafts)
        return 0

    def rename(self, old: str, new: str, flags: int = 0) -> int:
        """Give a file or directory another name; a file that has it is replaced."""
        source, target = self._changeable(old), self._changeable(new)
        if flags & ~RENAME_NOREPLACE:
            raise OSError(errno.EINVAL, "two names cannot be exchanged at once", old)
        with self._changing_names, ExitStack() as held:
            drafts = self._held(held, old, below=True)
            for draft in drafts.values():
                self._publish(draft)
            kind, there = self._type(old), self._type(new)
            if not kind:
                raise FileNotFoundError(errno.ENOENT, "this does not exist", old)
            if there and flags & RENAME_NOREPLACE:
                raise FileExistsError(errno.EEXIST, "this exists already", new)
            if old == new:
                return 0
            replaced = self._held(held, new)
            if kind == "file":
                if there == "directory":
                    raise IsADirectoryError(errno.EISDIR, "a directory has this name", new)
                self._keep_parent(source)
                made = self._run(self._move_file(source, target, bool(flags & RENAME_NOREPLACE)), old)
            else:
                self._check_directory_rename(old, new, there)
                self._keep_parent(source, last=True)
                made = self._run(self._move_directory(source, target), old)
            self._forget(replaced)
            self._renamed(old, new, made)
        return 0

    def _check_directory_rename(self, old: str, new: str, there: str) -> None:
        if new.startswith(f"{old}/"):
            raise OSError(errno.EINVAL, "a directory cannot be moved into itself", old)
        if there == "file":
            raise NotADirectoryError(errno.ENOTDIR, "a file has this name", new)
        if there and len(list(self.readdir(new))) > 2:
            raise OSError(errno.ENOTEMPTY, "the directory of this name is not empty", new)

    async def _move_file(self, source: Name, target: Name, if_absent: bool = False) -> dict[str, str]:
        names = (source.bucket, source.key, target.bucket, target.key)
        with oserrors(source.path):
            version = await moving.move(await self._fs.store(), *names, if_absent=if_absent)
        return {target.path: version.version_id}

    async def _move_directory(self, source: Name, target: Name) -> dict[str, str]:
        """The files first, then the directories, the deepest first: whoever looks in between misses nothing."""
        client = (await self._fs.store()).client
        made: dict[str, str] = {}
        markers: list[str] = []
        keys = [
            each.key async for each in client.iter_objects(source.bucket, source.prefix) if not isinstance(each, str)
        ]
        for key in keys:
            if key.endswith("/"):
                markers.append(key)
            else:
                moved = Name(target.bucket, target.prefix + key[len(source.prefix) :])
                made |= await self._move_file(Name(source.bucket, key), moved)
        for key in reversed(markers):
            await self._move_file(
                Name(source.bucket, key), Name(target.bucket, target.prefix + key[len(source.prefix) :])
            )
        return made

    def _renamed(self, old: str, new: str, made: dict[str, str]) -> None:
        def renamed(path: str) -> str | None:
            return new + path[len(old) :] if path == old or path.startswith(f"{old}/") else None

        with self._tables:
            for path in list(self._drafts):
                other = renamed(path)
                if other is not None:
                    draft = self._drafts[other] = self._drafts.pop(path)
                    draft.name = self._name(other)
                    version_id = made.get(draft.name.path)
                    if version_id is not None and draft.terms.if_version is not None:
                        draft.terms = replace(draft.terms, if_version=version_id)
            for handle in self._handles.values():
                handle.path = renamed(handle.path) or handle.path

    def _held(self, held: ExitStack, path: str, below: bool = False) -> dict[str, Draft]:
        """The draft of a path, and those below it, with their locks held."""
        with self._tables:
            found = {
                each: draft
                for each, draft in self._drafts.items()
                if each == path or (below and each.startswith(f"{path}/"))
            }
        for draft in found.values():
            held.enter_context(draft.lock)
        return found

    def _forget(self, drafts: dict[str, Draft]) -> None:
        """Their file was removed or replaced; who has it open goes on with what nobody else sees."""
        with self._tables:
            for path, draft in drafts.items():
                draft.gone = True
                if self._drafts.get(path) is draft:
                    del self._drafts[path]

    def _keep_parent(self, name: Name, last: bool = False) -> None:
        """See to it that the directory above stays when this goes. ``last``: this may be more than one object."""
        above = name.key.rpartition("/")[0]
        if not above or f"{name.bucket}/{above}" == self._root:
            return
        parent = Name(name.bucket, above)

        async def keep() -> None:
            client = (await self._fs.store()).client
            page = await client.list_objects(parent.bucket, parent.prefix, limit=2)
            if page.objects and page.objects[0].key != parent.prefix and (last or len(page.objects) == 1):
                await self._fs._make_marker(parent)

        self._run(keep(), parent.path)

    # -- Attributes ---------------------------------------------------------------------------------------------------

    def chmod(self, path: str | None, mode: int) -> int:
        """Accepted, and not kept."""
        return self._accepted(path)

    def chown(self, path: str | None, uid: int, gid: int) -> int:
        """Accepted, and not kept."""
        return self._accepted(path)

    def utimens(self, path: str | None, times: tuple[int, int] | None = None) -> int:
        """Accepted, and not kept: the time of a file is when its version was made."""
        return self._accepted(path)

    def _accepted(self, path: str | None) -> int:
        if self._read_only:
            raise OSError(errno.EROFS, "this mount is read only", path)
        return 0

    def listxattr(self, path: str) -> list[str]:
        """The names of the metadata that users keep with a file, after ``user.``."""
        return [USER + name for name in self._metadata(path)]

    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        """One value of it."""
        if not name.startswith(USER):
            raise OSError(errno.ENOTSUP, "only attributes of users are kept", path)
        value = self._metadata(path).get(name.removeprefix(USER))
        if value is None:
            raise OSError(errno.ENODATA, "there is no such attribute", path)
        return value.encode()

    def setxattr(self, path: str, name: str, value: bytes, flags: int, position: int = 0) -> int:
        """Set one value, which is text: a version with the same content."""
        self._changeable(path)
        if not name.startswith(USER):
            raise OSError(errno.ENOTSUP, "only attributes of users are kept", path)
        try:
            text = value.decode()
        except UnicodeDecodeError:
            raise OSError(errno.EINVAL, "attributes are text in UTF-8", path) from None
        known = name.removeprefix(USER) in self._metadata(path) if flags else None
        if flags & XATTR_CREATE and known:
            raise FileExistsError(errno.EEXIST, "this attribute exists already", path)
        if flags & XATTR_REPLACE and not known:
            raise OSError(errno.ENODATA, "there is no such attribute", path)
        return self._describe(path, name, text)

    def removexattr(self, path: str, name: str) -> int:
        """Remove one value."""
        self._changeable(path)
        self.getxattr(path, name)
        return self._describe(path, name, None)

    def _metadata(self, path: str) -> dict[str, str]:
        with self._tables:
            draft = self._drafts.get(path)
        if draft is not None:
            return dict(draft.terms.metadata or {})
        if self._type(path) == "directory":
            return {}
        return self._run(self._fs._metadata(self._name(path).path), path)

    def _describe(self, path: str, name: str, value: str | None) -> int:
        with self._changing_names, ExitStack() as held:
            drafts = self._held(held, path)
            if not drafts:
                changed = {name.removeprefix(USER): value}
                self._run(self._fs._setxattrs(self._name(path).path, attributes=changed), path)
            for draft in drafts.values():
                metadata = {key: each for key, each in (draft.terms.metadata or {}).items() if key != name[len(USER) :]}
                if value is not None:
                    metadata[name.removeprefix(USER)] = value
                draft.terms = replace(draft.terms, metadata=metadata)
                draft.changed = True
        return 0

    # -- What there is not --------------------------------------------------------------------------------------------

    def link(self, target: str, source: str) -> int:
        """Refused."""
        raise OSError(errno.EPERM, "there are no links here", target)

    def symlink(self, target: str, source: str) -> int:
        """Refused."""
        raise OSError(errno.EPERM, "there are no links here", target)

    def mknod(self, path: str, mode: int, device: int) -> int:
        """Refused: regular files come by create."""
        raise OSError(errno.EPERM, "there are no devices or pipes here", path)
