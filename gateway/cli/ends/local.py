"""A directory of this machine as an end.

What it lists is what ``put -r`` stores: files, links to files, and empty directories; the rest is reported.  A file is
written under a temporary name, renamed when it is complete, and gets the time of its source; what a sync that was
killed left of it is taken away by the next one.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.cli import errors
from gateway.cli.ends.entries import READ_BYTES, SOURCE_MTIME, Advance, Entry, Listed, Unlisted, time_text
from gateway.cli.paths import Remote, local_path_below
from gateway.cli.putting import DIRECTORY_TYPE, guess_type, left_out
from gateway.data.partial import is_partial, remove_abandoned

if TYPE_CHECKING:
    from gateway.data.transfer import Store


class LocalEnd:
    """The directory ``root``; ``own`` is the store's own directory, which is never listed."""

    keeps_times = True

    def __init__(self, root: Path, own: Path | None) -> None:
        self.root = root
        self._own = None if own is None else os.path.realpath(own)
        self._emptied: set[Path] = set()
        self._wanted: set[Path] = set()
        self._single: Entry | None = None
        self._is_target = False

    def __str__(self) -> str:
        return os.fspath(self.root)

    def full_name(self, name: str) -> str:
        return os.path.join(self.root, name)

    async def require_source(self) -> None:
        if not await asyncio.to_thread(os.path.isdir, self.root):
            missing = errno.ENOTDIR if self.root.exists() else errno.ENOENT
            hint = "; 'gateway put' stores a file" if missing == errno.ENOTDIR else ""
            raise click.UsageError(f"{self.root}: {os.strerror(missing)}{hint}")

    async def take_single(self) -> bool:
        if not await asyncio.to_thread(self.root.is_file):
            return False
        status = await asyncio.to_thread(self.root.stat)
        self._single = Entry(self.root.name, status.st_size, status.st_mtime_ns, status.st_mtime_ns)
        self.root = self.root.parent
        return True

    async def prepare_target(self) -> None:
        self._is_target = True
        await asyncio.to_thread(_make_directory, self.root)

    async def entries(self) -> AsyncIterator[Listed]:
        pending: list[Listed] = [self._single or Entry("")]
        while pending:
            listed = pending.pop()
            if isinstance(listed, Unlisted) or (listed.name and not listed.is_directory):
                yield listed
                continue
            found = await asyncio.to_thread(self._scan, listed.name)
            if isinstance(found, Unlisted):
                yield found
                continue
            if listed.name:
                yield Entry(listed.name, implied=bool(found))
            pending.extend(sorted(found, key=lambda each: each.name, reverse=True))

    def _scan(self, name: str) -> list[Listed] | Unlisted:
        folder = self.root / name
        if self._own is not None and os.path.realpath(folder) == self._own:
            return Unlisted(name, "this is the store's own directory; it was left out")
        found: list[Listed] = []
        try:
            with os.scandir(folder) as items:
                for item in items:
                    if self._is_target and is_partial(item.name):
                        remove_abandoned(Path(item.path))
                    found.append(_listed(item, name + item.name))
        except FileNotFoundError as failure:
            return [] if not name else Unlisted(name, failure)
        except OSError as failure:
            return Unlisted(name, failure)
        return found

    async def digest(self, entry: Entry) -> str:
        return await asyncio.to_thread(_digest, self.root / entry.name)

    async def send(self, store: Store, entry: Entry, target: Remote, advance: Advance) -> None:
        if entry.is_directory:
            await store.client.put_object(target.bucket, target.key, data=b"", content_type=DIRECTORY_TYPE)
            return
        metadata = {} if entry.mtime_ns is None else {SOURCE_MTIME: time_text(entry.mtime_ns)}
        path = self.root / entry.name
        await store.put_file(
            target.bucket,
            target.key,
            path,
            content_type=guess_type(target.name),
            metadata=metadata,
            progress=advance,
        )
        status = await asyncio.to_thread(path.stat)
        if (status.st_size, status.st_mtime_ns) != (entry.size, entry.mtime_ns):
            # the object has the time that was listed, so the next sync finds that it differs
            says = "it changed while it was read, so what was stored may be neither the old nor the new; do it again"
            raise OSError(errno.EIO, says, os.fspath(path))

    async def fetch(self, store: Store, source: Remote, entry: Entry, advance: Advance) -> None:
        path = await asyncio.to_thread(self._place, entry)
        if entry.is_directory:
            self._wanted.add(path)
            return
        with errors.naming(path):
            await store.get_file(source.bucket, source.key, path, version_id=entry.detail, progress=advance)
        await asyncio.to_thread(_set_time, path, entry)

    async def agree(self, entry: Entry, source: Entry) -> None:
        if entry.is_directory:
            self._wanted.add(self.root / entry.name)
        else:
            await asyncio.to_thread(_set_time, self.root / entry.name, source)

    async def delete(self, entry: Entry) -> None:
        path = self.root / entry.name
        if entry.is_directory:
            self._emptied.add(path)  # at the end: something may be on its way into it
            return
        await asyncio.to_thread(os.unlink, path)
        self._emptied.add(path.parent)

    async def close(self) -> None:
        await asyncio.to_thread(self._remove_emptied)

    def _remove_emptied(self) -> None:
        """Directories in which something was deleted go when they are empty now, and those above them likewise."""
        for folder in self._emptied:
            with suppress(OSError):
                for empty in (folder, *folder.parents):
                    if empty == self.root or empty in self._wanted:
                        break
                    empty.rmdir()

    def _place(self, entry: Entry) -> Path:
        from objmeta.errors import InvalidArgument

        if entry.is_directory and entry.size:
            raise InvalidArgument("a name that ends with a slash is a directory here, and this one has content")
        try:
            path = local_path_below(self.root, entry.name)
        except ValueError as wrong:
            raise InvalidArgument(str(wrong)) from None
        _make_directory(path if entry.is_directory else path.parent)
        return path


def _listed(item: os.DirEntry[str], name: str) -> Listed:
    if is_partial(item.name):
        return Unlisted(name, "")
    try:
        if item.is_dir(follow_symlinks=False):
            return Entry(name + "/")
        if item.is_file():
            status = item.stat()
            return Entry(name, status.st_size, status.st_mtime_ns, status.st_mtime_ns)
    except OSError as failure:
        return Unlisted(name, failure)
    return Unlisted(name, left_out(item))


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(path)) from None


def _set_time(path: Path, source: Entry) -> None:
    time_ns = source.mtime_ns if source.mtime_ns is not None else source.written_ns
    if time_ns is not None:
        os.utime(path, ns=(time_ns, time_ns))


def _digest(path: Path) -> str:
    from blake3 import blake3

    hasher = blake3()
    with open(path, "rb") as file:
        while block := file.read(READ_BYTES):
            hasher.update(block)
    return hasher.hexdigest()
