"""Arguments that nobody knows: fsspec lets them through, as others on the way may want them, and so they get lost.

A condition that is lost overwrites what it was to protect.  So what is, or looks like, an argument on which the meaning
of a verb depends is an error where the verb does not take it; what is unlike any of these passes, as fsspec means it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Final

CONDITIONS: Final = ("if_match", "if_none_match")
CONTENT: Final = ("content_type", "metadata", *CONDITIONS)
"""What verbs that store content take."""

_MEANINGFUL: Final = (*CONTENT, "version_id", "versions")
_ALIKE: Final = 0.8


def nearest(name: str, known: Sequence[str], alike: float = 0.6) -> str | None:
    """The name that was probably meant."""
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=alike)), None)


def refuse_lost(verb: str, lost: Mapping[str, Any], taken: Sequence[str] = ()) -> None:
    """Refuse arguments that ``verb`` would pass over, but not None or False, which ask for nothing.

    ``taken`` are those of its arguments that one may have been meant to be.  Raises TypeError.
    """
    for name, value in lost.items():
        if value is None or value is False:
            continue
        plain = name.lower()
        if plain.startswith("if_") or nearest(plain, _MEANINGFUL, _ALIKE):
            meant = nearest(plain, taken, 0.7)
            hint = f"; did you mean {meant!r}?" if meant else ""
            raise TypeError(f"{verb} takes no argument {name!r}{hint}")
