"""Under which conditions, and with what beside its bytes, a version is committed: the words of HTTP for it, and ours.

``if_match`` names what must be current: a version id (32 hexadecimal digits, ``info["VersionId"]``) or an ETag (64,
``info["ETag"]``, quotes or not).  An ETag is looked up once, at the beginning, and from then on stands for the version
that had it, so nothing can come between.  ``if_none_match="*"`` requires that there is no such file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from objmeta.errors import NoSuchKey, PreconditionFailed

if TYPE_CHECKING:
    from gateway.fs.entries import Name
    from objmeta import AsyncClient

_VERSION_ID: Final = re.compile(r"[0-9a-f]{32}")
_ETAG: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Terms:
    """What is asked of a write."""

    content_type: str = ""
    metadata: dict[str, str] | None = None
    if_absent: bool = False
    if_version: str | None = None
    if_etag: str | None = None
    """Before :func:`settled` only."""

    @property
    def conditions(self) -> dict[str, Any]:
        """The arguments of the store's operations that change something."""
        return {"if_absent": self.if_absent, "if_version": self.if_version}

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the store's operations that store content."""
        return {"content_type": self.content_type, "metadata": self.metadata, **self.conditions}


def terms(
    create: bool = False,
    content_type: str = "",
    metadata: Mapping[str, str] | None = None,
    if_match: str | None = None,
    if_none_match: str | None = None,
) -> Terms:
    """Read what a caller gave. Raises ValueError, TypeError."""
    if if_none_match not in (None, "*"):
        raise ValueError("if_none_match may only be '*': that there is no such file")
    absent = create or if_none_match == "*"
    wanted = None if if_match is None else str(if_match).strip('"').lower()
    if wanted is not None and absent:
        raise ValueError("if_match requires that there is a file, and if_none_match (or create) that there is none")
    is_version = wanted is not None and _VERSION_ID.fullmatch(wanted) is not None
    if wanted is not None and not is_version and not _ETAG.fullmatch(wanted):
        raise ValueError(
            f"if_match={if_match!r} is neither a version id (32 hexadecimal digits) nor an ETag (64): "
            "take VersionId or ETag of info()"
        )
    return Terms(
        content_type,
        None if metadata is None else checked_metadata(metadata),
        if_absent=absent,
        if_version=wanted if is_version else None,
        if_etag=None if is_version else wanted,
    )


def mode_creates(mode: str) -> bool:
    """Read fsspec's mode of pipe and put: whether there must be no such file. Raises ValueError."""
    if mode not in ("overwrite", "create"):
        raise ValueError(f"mode is 'overwrite' or 'create', not {mode!r}; to append, open the file with 'ab'")
    return mode == "create"


def refuse_if_none_match(verb: str, if_none_match: str | None) -> None:
    """Refuse what could never be met, instead of passing it over. Raises ValueError."""
    if if_none_match is not None:
        raise ValueError(f"{verb} is about a file that is there, so if_none_match has no meaning for it")


def content(value: Any) -> bytes:
    """The bytes of anything with a buffer. Raises TypeError for text, numbers, lists, None."""
    if isinstance(value, bytes):
        return value
    try:
        return memoryview(value).tobytes()
    except TypeError:
        raise TypeError(f"the content of a file is bytes, not {type(value).__name__}") from None


def checked_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """User metadata, which is text under text. Raises TypeError."""
    if not isinstance(metadata, Mapping):
        raise TypeError(f"metadata is a mapping of text under text, not {metadata!r}")
    for name, value in metadata.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"metadata is text under text, not {name!r}: {value!r}")
    return dict(metadata)


async def settled(asked: Terms, client: AsyncClient, name: Name) -> Terms:
    """The same with a version in place of an ETag. Raises PreconditionFailed."""
    if asked.if_etag is None:
        return asked
    try:
        current = await client.head_object(name.bucket, name.key)
    except NoSuchKey:
        raise PreconditionFailed(f"there is no {name.path!r}, so it has no ETag {asked.if_etag}") from None
    if current.etag != asked.if_etag:
        raise PreconditionFailed(f"the ETag of {name.path!r} is {current.etag}, not {asked.if_etag}")
    return replace(asked, if_version=current.version_id, if_etag=None)
