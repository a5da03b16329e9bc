"""Words of the command line that stand for numbers: sizes, ages and ranges. Each function is a type for click."""

from __future__ import annotations

import re
from typing import Final

import click

_SIZE: Final = re.compile(r"(\d{1,15}(?:\.\d+)?)([kmgtp]?)(?:i?b)?", re.IGNORECASE | re.ASCII)
_RANGE: Final = re.compile(r"(?:bytes=)?(\d{0,18})-(\d{0,18})", re.ASCII)


def size(text: str) -> int:
    """Bytes: ``1000``, ``10K``, ``1.5MiB``; units are powers of 1024, as they are printed."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise click.UsageError(f"{text!r} is not a size such as 1000, 10K or 1.5M")
    return int(float(found[1]) * 1024 ** " kmgtp".index(found[2].lower() or " "))


def age_us(text: str) -> int:
    """A time, in microseconds since the epoch: ISO 8601, or how long ago (``90m``, ``2h``, ``7d``, ``2w``)."""
    from datetime import UTC, datetime

    from gateway.data.past import parse_time
    from objmeta.errors import InvalidArgument

    try:
        return int(parse_time(text, now=datetime.now(UTC)).timestamp() * 1e6)
    except InvalidArgument as wrong:
        raise click.UsageError(str(wrong)) from None


def byte_range(text: str) -> tuple[int, int | None]:
    """``0-99``, ``100-`` and ``-100`` as HTTP has them, also with ``bytes=``: (start, stop), which is not in it.

    A start below zero counts from the end.
    """
    found = _RANGE.fullmatch(text)
    first, last = found.groups() if found else ("", "")
    if not (first or last) or (first and last and int(last) < int(first)):
        raise click.UsageError(f"--range {text!r} is not 0-99 (the first 100 bytes), 100- or -100 (the last)")
    if not first:
        return -int(last), None
    return int(first), int(last) + 1 if last else None
