"""What the arguments of ``sync`` and ``import`` name, and the ends that are there."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway.cli.ends.local import LocalEnd
from gateway.cli.paths import SCHEME, Remote, is_local, parse_remote
from gateway.cli.putting import store_directory
from gateway.cli.session import resolved_settings

if TYPE_CHECKING:
    from gateway.cli.ends.entries import Foreign, Origin
    from gateway.data.transfer import Store


@dataclass(frozen=True, slots=True)
class Place:
    """What an argument names: a directory of the store, one of this machine, or what a URL names."""

    text: str
    remote: Remote | None = None
    path: Path | None = None


def place_of(text: str) -> Place:
    """What an argument names. Raises UsageError."""
    for scheme in ("file://", "local://"):
        if text.startswith(scheme + "/"):
            return Place(text, path=Path(text.removeprefix(scheme)))
    if is_local(text):
        return Place(text, path=Path(text).expanduser())
    if text[: len(SCHEME)].lower() != SCHEME and ("://" in text or "::" in text):
        return Place(text)
    try:
        return Place(text, remote=parse_remote(text))
    except ValueError as wrong:
        raise click.UsageError(str(wrong)) from None


def foreign_end(store: Store, place: Place, options: dict[str, Any]) -> Foreign:
    """The end that a URL, or a path of this machine, names. Raises UsageError, and OSError."""
    if place.path is not None:
        if options:
            raise click.UsageError("-o and --endpoint-url are for URLs")
        return LocalEnd(place.path, store_directory(store))
    from fsspec.core import url_to_fs

    from gateway.cli.ends.urls import UrlEnd, translated

    try:
        with translated(place.text):
            fs, root = url_to_fs(place.text, **options)
    except OSError as failure:
        cause = failure.__cause__
        if isinstance(cause, ImportError):
            extra = "; pip install 'objmeta[s3]' brings it along" if "s3fs" in str(cause) else ""
            raise click.UsageError(f"{place.text}: {cause}{extra}") from None
        if isinstance(cause, ValueError):
            raise click.UsageError(f"{place.text}: {cause}") from None
        raise
    except TypeError as wrong:  # an argument that its file system needs, or does not know
        raise click.UsageError(f"{place.text}: {wrong} (-o NAME=VALUE gives it options)") from None
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    if "http" in protocols:
        from gateway.cli.ends.http import HttpEnd

        return HttpEnd(fs, root, place.text)
    if "s3" in protocols:
        from gateway.cli.ends.s3 import S3End

        options = options | {"config_kwargs": {"max_pool_connections": resolved_settings().settings.concurrency}}
        return S3End(fs, options, root, place.text)
    return UrlEnd(fs, root, place.text)


async def origin(store: Store, place: Place, options: dict[str, Any], from_store: str | None) -> Origin:
    """Where objects are to come from, which is not this store. Raises UsageError, and OSError."""
    if from_store is None:
        return foreign_end(store, place, options)
    if place.remote is None or options:
        raise click.UsageError("with --from-store the source is in that store, such as bucket/directory")
    from gateway.cli.ends.another import AnotherEnd
    from gateway.data.transfer import open_store
    from objmeta.client.embedded import ACCEPTOR_DIRECTORY
    from objmeta.config import parse_target

    target = parse_target(from_store)
    if isinstance(target, Path) and not (target / ACCEPTOR_DIRECTORY).is_dir():  # opening would make one
        raise FileNotFoundError(errno.ENOENT, "there is no store in that directory", from_store)
    other = await open_store(from_store, timeout_s=resolved_settings().settings.timeout_s)
    return AnotherEnd(other, place.remote, from_store)
