"""``put``: files, directories and standard input into objects.

A directory's contents go below the destination (see ``paths``).  Empty directories become objects whose names end with
``/``.  Symbolic links to files are followed; links to directories (they may form a circle), broken ones, pipes, sockets
and devices are reported and left out, as is what cannot be read; the exit code is then 1.
"""

from __future__ import annotations

import asyncio
import mimetypes
import os
import stat
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from gateway.cli import errors, output
from gateway.cli.options import common, if_absent_option
from gateway.cli.paths import STANDARD_STREAM, Remote, either_name, remote_name
from gateway.cli.session import Tally, for_each, in_thread, with_store
from gateway.data.partial import is_partial

if TYPE_CHECKING:
    from gateway.data.transfer import Store
    from objmeta import ObjectVersion

READ_BYTES: Final = 1024 * 1024
LARGE_BYTES: Final = 1024 * 1024
LARGE_AT_ONCE: Final = 3
"""Of many small files 32 go at a time, so that they share syncs; large ones hold several chunks each in memory."""

DIRECTORY_TYPE: Final = "application/x-directory"
_UNKNOWN_TYPE: Final = "application/octet-stream"
_PACKED: Final = {"gzip": "application/gzip", "bzip2": "application/x-bzip2", "xz": "application/x-xz"}
_MORE_TYPES: Final = {
    ".parquet": "application/vnd.apache.parquet",
    ".arrow": "application/vnd.apache.arrow.file",
    ".jsonl": "application/jsonl",
    ".toml": "application/toml",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
    ".md": "text/markdown",
    ".zst": "application/zstd",
}


@dataclass(frozen=True, slots=True)
class _Wishes:
    """What every object of one command gets."""

    content_type: str | None
    metadata: dict[str, str]
    if_absent: bool
    if_version: str | None
    expected_etag: str | None


@dataclass(frozen=True, slots=True)
class _Entry:
    """One thing to store; ``path`` None is a directory without contents."""

    path: Path | None
    remote: Remote
    size: int = 0


def pairs(context: click.Context, parameter: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    """The type, for click, of --meta."""
    found = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals or not name:
            raise click.UsageError(f"--meta {value!r} is not NAME=VALUE", context)
        found[name] = text
    return found


@click.command()
@common
@click.argument("sources", metavar="FILE...", type=either_name, nargs=-1)
@click.argument("destination", metavar="OBJECT", type=remote_name)
@click.option("-r", "--recursive", is_flag=True, help="Store directories with all they hold.")
@if_absent_option
@click.option("--if-version", metavar="ID", help="Replace only this current version (else exit code 6).")
@click.option("--expect", metavar="BLAKE3", help="Store only content with this digest (else exit code 8).")
@click.option("--content-type", metavar="TYPE", help="Default: by the name's ending.")
@click.option("--meta", metavar="NAME=VALUE", multiple=True, callback=pairs, help="Metadata; may be repeated.")
def put(
    sources: tuple[str, ...],
    destination: Remote,
    recursive: bool,
    if_absent: bool,
    if_version: str | None,
    expect: str | None,
    content_type: str | None,
    meta: dict[str, str],
) -> None:
    """Store files or directories, or standard input.

    \b
      gateway put report.csv bucket/2026/report.csv
      gateway put report.csv bucket/2026/            keeps the name
      gateway put *.csv bucket/2026/                 several: the slash is needed
      gateway put -r photos bucket/2026              what is in photos, as bucket/2026/...
      some-program | gateway put - bucket/out.txt

    With -r, one directory's contents go directly below the destination; of several sources each keeps its name.
    Empty directories are kept. Symbolic links to files are followed, others are reported and left out.
    A put that was interrupted is simply made again: what arrived already is not sent again.
    """
    if not sources:
        raise click.UsageError("two names are needed: what to store, and where, such as: gateway put FILE bucket/FILE")
    if if_version is not None and (recursive or len(sources) > 1 or if_absent):
        raise click.UsageError("--if-version is for one object, without -r and --if-absent")
    if expect is not None and (recursive or len(sources) > 1):
        raise click.UsageError("--expect is for one object, without -r")
    if len(sources) > 1 and not destination.is_directory:
        raise click.UsageError(f"several sources need a directory to go to, such as {destination}/")
    for source in sources:
        _check_source(source, destination, recursive)
    wishes = _Wishes(content_type, meta, if_absent, if_version, expect)
    with_store(partial(_put_all, sources=sources, destination=destination, recursive=recursive, wishes=wishes))


def _check_source(source: str, destination: Remote, recursive: bool) -> None:
    if source == STANDARD_STREAM:
        if destination.is_directory:
            raise click.UsageError(f"standard input has no name: give one, such as {destination / 'name'}")
        return
    try:
        mode = os.stat(source).st_mode
    except (OSError, ValueError) as failure:
        raise click.UsageError(f"{source}: {getattr(failure, 'strerror', failure)}") from None
    if stat.S_ISDIR(mode) and not recursive:
        raise click.UsageError(f"{source} is a directory; -r stores it with all it holds")


async def _put_all(
    store: Store, *, sources: Sequence[str], destination: Remote, recursive: bool, wishes: _Wishes
) -> None:
    await store.client.bucket(destination.bucket)
    if not recursive and len(sources) == 1:
        await _put_one(store, sources[0], destination, wishes)
        return
    tally = Tally()
    large = asyncio.Semaphore(LARGE_AT_ONCE)
    with output.progress("put", None) as advance:

        async def work(entry: _Entry) -> None:
            if entry.path is not None and entry.size > LARGE_BYTES:
                async with large:
                    version = await _put_entry(store, entry, wishes, advance)
            else:
                version = await _put_entry(store, entry, wishes, advance)
            tally.succeeded(entry.size)
            advance.did()
            await _report(store, version, entry.remote, None if recursive else entry.path, entry.path)

        entries = _entries(sources, destination, tally, store_directory(store))
        await for_each(entries, work, tally, name=_name_for_people, found=lambda entry: advance.expect(entry.size))
    if recursive:
        text = f"stored {output.count_text(tally.done, 'object')}, {output.size_text(tally.bytes)}, under {destination}"
        output.emit_text(text)
    tally.finish()


def _name_for_people(entry: _Entry) -> str:
    return str(entry.path or entry.remote)


async def _put_one(store: Store, source: str, destination: Remote, wishes: _Wishes) -> None:
    if source == STANDARD_STREAM:
        with errors.naming("standard input"):
            version = await _put_stream(store, 0, destination, wishes)
        await _report(store, version, destination, Path(source), None)
        return
    path = Path(source)
    remote = _target_of(path, destination)
    status = os.stat(path)
    if stat.S_ISREG(status.st_mode):
        with output.progress(path.name, status.st_size) as advance:
            version = await _put_entry(store, _Entry(path, remote, status.st_size), wishes, advance)
    else:
        descriptor = await in_thread(os.open, path, os.O_RDONLY)  # opening a named pipe waits for its writer
        try:
            version = await _put_stream(store, descriptor, remote, wishes)
        finally:
            os.close(descriptor)
    await _report(store, version, remote, path, path)


async def _put_entry(store: Store, entry: _Entry, wishes: _Wishes, advance: output.Advance) -> ObjectVersion:
    if entry.path is None:
        return await store.client.put_object(
            entry.remote.bucket, entry.remote.key, data=b"", content_type=DIRECTORY_TYPE, if_absent=wishes.if_absent
        )
    return await store.put_file(
        entry.remote.bucket, entry.remote.key, entry.path, progress=advance, **_arguments(wishes, entry.remote)
    )


async def _put_stream(store: Store, descriptor: int, remote: Remote, wishes: _Wishes) -> ObjectVersion:
    with output.progress(remote.name, None) as advance:
        return await store.put_stream(
            remote.bucket, remote.key, blocks(descriptor), progress=advance, **_arguments(wishes, remote)
        )


def _arguments(wishes: _Wishes, remote: Remote) -> dict[str, Any]:
    return {
        "content_type": wishes.content_type or guess_type(remote.name),
        "metadata": wishes.metadata,
        "if_absent": wishes.if_absent,
        "if_version": wishes.if_version,
        "expected_etag": wishes.expected_etag,
    }


async def _report(
    store: Store, version: ObjectVersion, remote: Remote, mentioned: Path | None, source: Path | None
) -> None:
    record = await output.version_record(store, version) | {"source": os.fspath(source) if source is not None else None}
    text = f"stored {output.shown(str(remote))}, {output.size_text(version.size)}, version {version.version_id}"
    output.emit(record, text if mentioned is not None else None)


async def blocks(descriptor: int) -> AsyncGenerator[bytes, None]:
    """What a file, a pipe or a terminal gives. Raises OSError."""
    while block := await in_thread(os.read, descriptor, READ_BYTES):
        yield block


def guess_type(name: str) -> str:
    """The content type by a name's ending; the same on every machine, so the system's tables are not read."""
    ending = os.path.splitext(name)[1].lower()
    if ending in _MORE_TYPES:
        return _MORE_TYPES[ending]
    guessed, packed = mimetypes.MimeTypes().guess_type(name, strict=True)
    return _PACKED.get(packed, _UNKNOWN_TYPE) if packed else guessed or _UNKNOWN_TYPE


# -- What is to be stored ---------------------------------------------------------------------------------------------


def store_directory(store: Store) -> Path | None:
    """Where the store is, if it is one directory of this machine."""
    return getattr(store.client.location, "path", None)


def _entries(sources: Sequence[str], destination: Remote, tally: Tally, own: Path | None) -> Iterator[_Entry]:
    for source in sources:
        path = Path(source)
        if source == STANDARD_STREAM:
            tally.failed(source, "standard input cannot be one of several sources", errors.USAGE)
        elif path.is_dir():
            target = destination if len(sources) == 1 else destination / _name_of(path)
            yield from walk(path, target.as_directory(), tally, own)
        else:
            yield _Entry(path, _target_of(path, destination), path.stat().st_size)


def _target_of(path: Path, destination: Remote) -> Remote:
    return destination / _name_of(path) if destination.is_directory else destination


def _name_of(path: Path) -> str:
    return path.name if path.name not in ("", "..") else path.resolve().name


def walk(root: Path, below: Remote, tally: Tally, own: Path | None = None) -> Iterator[_Entry]:
    """All that can be stored under ``root``, in order of names; the rest is reported to ``tally``.

    ``own`` is the store's own directory, which must not be stored in itself.
    """
    pending = [(root, below)]
    while pending:
        folder, remote = pending.pop()
        if own is not None and os.path.realpath(folder) == os.path.realpath(own):
            tally.failed(str(folder), "this is the store's own directory; it was left out")
            continue
        try:
            with os.scandir(folder) as found:
                items = sorted(found, key=lambda item: item.name)
        except OSError as failure:
            tally.failed(str(folder), failure)
            continue
        if not items and remote.key:
            yield _Entry(None, remote)
        folders = []
        for item in items:
            path = Path(item.path)
            try:
                if item.is_dir(follow_symlinks=False):
                    folders.append((path, Remote(remote.bucket, f"{remote.key}{item.name}/")))
                elif is_partial(item.name):
                    continue  # what a fetch left, or is at
                elif item.is_file():
                    yield _Entry(path, remote / item.name, item.stat().st_size)
                else:
                    tally.failed(item.path, left_out(item))
            except OSError as failure:
                tally.failed(item.path, failure)
        pending.extend(reversed(folders))


def left_out(item: os.DirEntry[str]) -> str:
    """Why something that is neither a file nor a directory was not stored."""
    if not item.is_symlink():
        return "neither a file nor a directory; it was left out"
    return f"a symbolic link to {'a directory' if os.path.isdir(item.path) else 'nothing'}; it was left out"
