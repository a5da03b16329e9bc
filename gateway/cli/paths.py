"""What arguments name: ``objmeta://bucket/key`` or ``bucket/key`` an object, anything else a local path.

Rules for directories, the same in both directions.
* A name that ends with ``/``, and a bucket alone, is a directory: what is copied *to* it keeps its own last name.
* Copying a directory with ``-r`` copies what is in it: ``put -r photos b/2026`` makes ``b/2026/…``, and
  ``get -r b/2026 out`` makes ``out/…``; a slash at the end of either changes nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    _ParamType = click.ParamType["Remote"]
else:
    _ParamType = click.ParamType

SCHEME: Final = "objmeta://"
STANDARD_STREAM: Final = "-"


@dataclass(frozen=True, slots=True)
class Remote:
    """A bucket (``key`` empty), an object, or a directory of objects (``key`` ends with ``/``)."""

    bucket: str
    key: str = ""

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.key}" if self.key else f"{SCHEME}{self.bucket}"

    @property
    def is_directory(self) -> bool:
        """Whether the name alone says that it is a directory."""
        return not self.key or self.key.endswith("/")

    @property
    def name(self) -> str:
        """The last part: of ``b/x/y`` and ``b/x/y/`` it is ``y``, of a bucket the bucket."""
        return self.key.rstrip("/").rpartition("/")[2] or self.bucket

    def as_directory(self) -> Remote:
        """The same name as a directory, whose ``key`` is the prefix of everything in it."""
        return self if self.is_directory else Remote(self.bucket, self.key + "/")

    def __truediv__(self, relative: str) -> Remote:
        return Remote(self.bucket, self.as_directory().key + relative)


def is_local(text: str) -> bool:
    """Whether a name can only be one of this machine."""
    return text.startswith(("/", "./", "../", "~")) or text in (".", "..")


def parse_remote(text: str) -> Remote:
    """Read ``objmeta://bucket/key`` or ``bucket/key``. Raises ValueError; the store checks the names themselves."""
    rest = text[len(SCHEME) :] if text[: len(SCHEME)].lower() == SCHEME else text
    scheme, found, _ = rest.partition("://")
    if rest is text and found and "/" not in scheme:
        raise ValueError(f"{text!r} names another kind of store; an object is named objmeta://bucket/key or bucket/key")
    if rest is text and (is_local(text) or text == STANDARD_STREAM):
        raise ValueError(
            f"{text!r} names something on this machine where an object is due (objmeta://bucket/key or bucket/key); "
            "'gateway put' and 'gateway get' copy between both"
        )
    bucket, _, key = rest.partition("/")
    if not bucket:
        raise ValueError(f"{text!r} names no bucket; an object is named objmeta://bucket/key or bucket/key")
    return Remote(bucket, key)


class _RemoteName(_ParamType):
    """The type, for click, of arguments that name something in the store."""

    name = "name"

    def convert(self, value: str | Remote, param: click.Parameter | None, ctx: click.Context | None) -> Remote:
        if isinstance(value, Remote):
            return value
        try:
            return parse_remote(value)
        except ValueError as wrong:
            raise click.UsageError(str(wrong)) from None

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        from gateway.cli.completing import remote_names

        return remote_names(ctx, incomplete)


class _DeletedName(_RemoteName):
    """The same for what brings objects back: those that are deleted are names, too."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        from gateway.cli.completing import remote_names

        return remote_names(ctx, incomplete, with_deleted=True)


class _FileOrRemoteName(click.Path):
    """The type of arguments that may name either; a string."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        from gateway.cli.completing import remote_names_or_files

        return remote_names_or_files(ctx, incomplete)


remote_name: Final = _RemoteName()
deleted_name: Final = _DeletedName()
file_name: Final = click.Path()
either_name: Final = _FileOrRemoteName()


def require_object(name: Remote, hint: str = "") -> Remote:
    """Return ``name`` if it can be an object; else a usage error."""
    if not name.key:
        raise click.UsageError(f"{name} is a bucket where an object is due{hint}")
    return name


def require_bucket(name: Remote) -> str:
    """The bucket's name if ``name`` is a bucket; else a usage error."""
    if name.key.strip("/"):
        raise click.UsageError(f"{name} is an object where a bucket is due")
    return name.bucket


def local_path_below(root: Path, relative: str) -> Path:
    """Where an object of a directory belongs below ``root``.

    Raises ValueError when there is no such place: a key may hold parts that a file system reads as "here" or "one up",
    and a symbolic link below ``root`` may lead out of it.
    """
    parts = relative.rstrip("/").split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{relative!r} cannot be a path below a directory; it was not fetched (get it by itself)")
    path = root.joinpath(*parts)
    real_root = os.path.realpath(root)
    real_path = os.path.realpath(path)
    if os.path.commonpath([real_root, real_path]) != real_root:
        raise ValueError(f"{relative!r} would be written to {real_path}, outside {root}; it was not fetched")
    return path
