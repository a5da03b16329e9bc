"""Where one statement of SQL ends and the next begins, told without parsing: by the semicolons outside of strings,
quoted names and comments."""

from __future__ import annotations

import re
from typing import Final

_OPENING: Final = re.compile(r"""(?x) (?<!\w)[eE]' | ' | " | (?<!\w)\$(?:[^\W\d]\w*)?\$ | -- | /\* | ;""")
_STRING: Final = re.compile(r"(?:[^']|'')*'(?!')")
_ESCAPED: Final = re.compile(r"(?s)(?:[^'\\]|\\.|'')*'(?!')")
_NAME: Final = re.compile(r'(?:[^"]|"")*"(?!")')
_COMMENT: Final = re.compile(r"/\*|\*/")


def split(text: str) -> tuple[list[str], str]:
    """The complete statements, without their semicolons, and what follows the last one."""
    statements: list[str] = []
    start = at = 0
    while (opening := _OPENING.search(text, at)) is not None:
        if opening[0] == ";":
            statements.append(text[start : opening.start()])
            start = at = opening.end()
            continue
        end = _end(text, opening)
        if end is None:
            break
        at = end
    return [each for each in statements if not is_blank(each)], text[start:]


def is_blank(text: str) -> bool:
    """Whether there are only spaces and comments."""
    at = 0
    while (opening := _OPENING.search(text, at)) is not None:
        if text[at : opening.start()].strip() or opening[0] not in ("--", "/*"):
            return False
        end = _end(text, opening)
        if end is None:
            return False  # DuckDB says what is wrong
        at = end
    return not text[at:].strip()


def _end(text: str, opening: re.Match[str]) -> int | None:
    """After what is opened here; None: it is not closed."""
    what, at = opening[0], opening.end()
    match what:
        case "'":
            found = _STRING.match(text, at)
        case "e'" | "E'":
            found = _ESCAPED.match(text, at)
        case '"':
            found = _NAME.match(text, at)
        case "--":
            end = text.find("\n", at)
            return len(text) if end < 0 else end + 1
        case "/*":
            return _comment_end(text, at)
        case _:
            end = text.find(what, at)
            return None if end < 0 else end + len(what)
    return None if found is None else found.end()


def _comment_end(text: str, at: int) -> int | None:
    depth = 1  # they nest
    for mark in _COMMENT.finditer(text, at):
        depth += 1 if mark[0] == "/*" else -1
        if depth == 0:
            return mark.end()
    return None
