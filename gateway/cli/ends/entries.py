"""What the ends of a ``sync`` list and can do."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from gateway.cli.paths import Remote
    from gateway.data.transfer import Store

READ_BYTES: Final = 4 << 20
SOURCE_MTIME: Final = "source-mtime"
"""Metadata of an object that came from elsewhere: when its source was changed, in seconds since the epoch."""

_DECIMAL: Final = re.compile(r"(-?)(\d{1,12})(?:\.(\d{1,9}))?")

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, or a directory (its ``name`` ends with a slash), named from the end's root.

    ``mtime_ns`` is when the content was changed where it came from, ``written_ns`` when it was stored at this end
    (nanoseconds since the epoch; None: unknown).  ``etag`` is the BLAKE3 of the content if that is known.  A directory
    that holds something is ``implied``.  ``detail`` belongs to the end.
    """

    name: str
    size: int = 0
    mtime_ns: int | None = None
    written_ns: int | None = None
    etag: str = ""
    implied: bool = False
    detail: Any = None

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return self.name.endswith("/")


@dataclass(frozen=True, slots=True)
class Unlisted:
    """Something that cannot be moved, or a directory that cannot be read: what there is at the other end stays.

    ``reason`` empty: that is so by design, and nobody needs to be told.
    """

    name: str
    reason: Exception | str


Listed = Entry | Unlisted


class End(Protocol):
    """One of the two ends."""

    def __str__(self) -> str:
        """Its name, for people."""
        ...

    def full_name(self, name: str) -> str:
        """What the end calls ``name``, for people and programs."""
        ...

    def entries(self) -> AsyncIterator[Listed]:
        """Everything below, in order. Raises OSError or ObjmetaError when the end cannot be listed at all."""
        ...

    async def delete(self, entry: Entry) -> None:
        """Delete a file, or a directory's marker."""
        ...

    async def close(self) -> None:
        """Release what was opened."""
        ...


class Origin(End, Protocol):
    """What objects of the store come from."""

    async def require_source(self) -> None:
        """Raise OSError, ObjmetaError or UsageError if there is nothing to list.

        A misspelt name must not empty the target.
        """
        ...

    async def take_single(self) -> bool:
        """Whether the root is a file; it is then all there is, under its own name."""
        ...

    async def digest(self, entry: Entry) -> str:
        """The BLAKE3 of the content, in hexadecimal; reads it, unless it is known."""
        ...

    async def send(self, store: Store, entry: Entry, target: Remote, advance: Advance) -> None:
        """Make ``entry`` an object of the store."""
        ...


class Foreign(Origin, Protocol):
    """An end that is no store of this kind."""

    keeps_times: bool
    """Whether a file that was written there gets the time of its source."""

    async def prepare_target(self) -> None:
        """Make what is needed before files are written."""
        ...

    async def fetch(self, store: Store, source: Remote, entry: Entry, advance: Advance) -> None:
        """Write an object, which its end listed as ``entry``."""
        ...

    async def agree(self, entry: Entry, source: Entry) -> None:
        """What is there is as it should be: note the source's time where the end keeps times, and keep a directory."""
        ...


def time_text(mtime_ns: int) -> str:
    """Nanoseconds since the epoch as :data:`SOURCE_MTIME` has them: decimal seconds."""
    sign = "-" if mtime_ns < 0 else ""
    seconds, rest = divmod(abs(mtime_ns), 10**9)
    return f"{sign}{seconds}.{rest:09d}"


def time_ns(metadata: Mapping[str, str]) -> int | None:
    """The time that an object's metadata has for its source, in nanoseconds; None if there is none that can be read."""
    found = _DECIMAL.fullmatch(metadata.get(SOURCE_MTIME, ""))
    if found is None:
        return None
    number = int(found[2]) * 10**9 + int((found[3] or "").ljust(9, "0"))
    return -number if found[1] else number
