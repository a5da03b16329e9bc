"""Names in the store, for a shell that completes them.

Rules.  Nothing is made: a directory where no store is stays as it is.  Nothing is said: whatever goes wrong, there are
no names.  Nothing waits: after ``LIMIT_S`` the process ends (:func:`end_in_time`), whatever the store, the network or
an import is doing then.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
from typing import TYPE_CHECKING, Final

import click
from click.shell_completion import CompletionItem

from gateway.cli.options import Options
from gateway.cli.paths import SCHEME, is_local

if TYPE_CHECKING:
    from objmeta import AsyncClient

    Item = CompletionItem[str]

LIMIT_S: Final = 0.8
"""With the start of Python, less than the second after which a person wonders."""
NAMES_MAX: Final = 200
_UNSPEAKABLE: Final = re.compile(r"[\x00-\x1f\x7f]")
"""What no shell can be told line by line."""


def end_in_time() -> None:
    """End this process quietly after LIMIT_S, also if it is busy then."""
    timer = threading.Timer(LIMIT_S, os._exit, (0,))
    timer.daemon = True
    timer.start()


def remote_names(context: click.Context, incomplete: str, *, with_deleted: bool = False) -> list[Item]:
    """Buckets, directories and objects that begin so; with those that are deleted, if wanted."""
    if is_local(incomplete):
        return [CompletionItem(incomplete, type="file")]
    typed = incomplete[len(SCHEME) :] if incomplete.startswith(SCHEME) else incomplete
    scheme = incomplete[: len(incomplete) - len(typed)]
    if "://" in typed:
        return []
    try:
        names = asyncio.run(_names(context.find_object(Options) or Options(), typed, with_deleted))
    except Exception:  # a shell has no place for what went wrong; the command itself will say it
        return []
    return [CompletionItem(scheme + name) for name in names if not _UNSPEAKABLE.search(name)]


def remote_names_or_files(context: click.Context, incomplete: str) -> list[Item]:
    """The same, and where there is none, files of this machine."""
    return remote_names(context, incomplete) or [CompletionItem(incomplete, type="file")]


async def _names(options: Options, typed: str, with_deleted: bool) -> list[str]:
    from objmeta.client import connect_async
    from objmeta.config import resolve

    settings = resolve({"target": options.store}).settings
    if not settings.endpoints and not all(path.is_dir() for path in settings.disks or (settings.home,)):
        return []
    target = None if settings.disks else ",".join(settings.endpoints) if settings.endpoints else settings.home
    client = connect_async(target, disks=settings.disks or None, timeout_s=LIMIT_S)
    try:
        bucket, found, key = typed.partition("/")
        if not found:
            return [f"{each.name}/" for each in await client.buckets() if each.name.startswith(bucket)]
        page = await client.list_objects(bucket, key, delimiter="/", limit=NAMES_MAX)
        names = {*page.prefixes, *(item.key for item in page.objects)}
        if with_deleted:
            names |= await _deleted(client, bucket, key)
        return sorted(f"{bucket}/{name}" for name in names)
    finally:
        await client.close()


async def _deleted(client: AsyncClient, bucket: str, typed: str) -> set[str]:
    """Objects that are deleted, and directories with such, as far as they are found in half of the time."""
    end_s = time.monotonic() + LIMIT_S / 2
    names: set[str] = set()
    continuation: str | None = None
    while True:
        page = await client.list_versions(bucket, typed, continuation=continuation, limit=NAMES_MAX)
        for version in page.versions:
            if version.is_latest and version.is_delete_marker:
                found, slash, _ = version.key[len(typed) :].partition("/")
                names.add(typed + found + slash)
        continuation = page.continuation
        if continuation is None or len(names) >= NAMES_MAX or time.monotonic() > end_s:
            return names
