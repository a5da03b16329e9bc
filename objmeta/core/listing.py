"""Listing from a quorum: what an acceptor is asked, what it answers, and how answers are merged (PROTOCOL, "Listing").

Every acceptor holds its registers in key order and answers from one snapshot.  An answer is complete up to ``covered``:
a name below it that is not in the answer has no accepted value there, unless the answer names it as unknown (it is
damaged there).  The *horizon* of a page is the least ``covered`` among the answers; only names below it are decided on
this page, and the next page starts at the horizon.

With a delimiter, an acceptor reports one *witness* row per common prefix in which it holds any row at all (a live one
if it finds one quickly) and skips the rest of the prefix.  A witness is a hint: a common prefix is listed only after
some name in it was settled live, and where no witness settles live the prefix is scanned without the delimiter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from objmeta.core.ballot import Ballot
from objmeta.core.messages import Fence, Record, State
from objmeta.core.quorum import Quorums

END: Final = b""
"""As an upper bound: there is none."""


class ScanRequest(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Rows with ``start <= name < end`` (``end`` empty: no bound) that have an accepted value, in order of name.

    ``limit`` bounds the rows of one answer.  ``delimiter`` (one byte or more, empty for none) is looked for from byte
    ``prefix_length`` of each name on.  ``with_records`` adds every record held under the names answered, without data.

    ``fence`` is stated by what the listing has to write back.  With ``settle`` nothing that the fence's term shuts out
    can be chosen after the listing: an acceptor answers only when its own floor has reached that term, and names the
    answers disagree on are settled by full rounds (a fast read is not a fence, rule 4).

    ``names``, in order, are the only ones looked at if there are any.  ``covering`` are acceptors whose changes are
    followed, by id: whatever one of them has accepted when it is asked is then in the page, or can never be chosen
    (docs/protocol.md, "Following changes").  Those that don't answer in time are left out, and the page says so.
    """

    start: bytes
    end: bytes = END
    limit: int = 1000
    delimiter: bytes = b""
    prefix_length: int = 0
    with_records: bool = False
    fence: Fence | None = None
    settle: bool = False
    names: tuple[bytes, ...] = ()
    covering: tuple[int, ...] = ()


class ScanRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One register as an acceptor accepted it; ``witness`` marks it as standing for its whole common prefix."""

    name: bytes
    accepted: Ballot
    state: State
    witness: bool = False


class NamedRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A record together with the register it belongs to."""

    name: bytes
    record: Record


class ScanAnswer(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One acceptor's page.

    ``rows`` is an encoded ``list[ScanRow]`` and ``records`` an encoded ``list[NamedRecord]`` (both by
    :func:`encode_rows` / :func:`encode_records`), so that equal pages are found by comparing bytes.  ``covered`` is the
    exclusive end of what this page answers for; empty means: up to ``end`` of the request.  ``unknown`` are registers
    among them on which the acceptor has no vote, as their rows are damaged; with a delimiter, one for a common prefix
    in which nothing better is found.
    """

    rows: bytes
    covered: bytes = END
    records: bytes = b"\x90"
    unknown: tuple[bytes, ...] = ()


_ENCODER: Final = msgspec.msgpack.Encoder()
_ROWS: Final = msgspec.msgpack.Decoder(list[ScanRow])
_RECORDS: Final = msgspec.msgpack.Decoder(list[NamedRecord])


def encode_rows(rows: Sequence[ScanRow]) -> bytes:
    """The bytes of a page's rows."""
    return _ENCODER.encode(rows)


def decode_rows(rows: bytes) -> list[ScanRow]:
    """The inverse of :func:`encode_rows`."""
    return _ROWS.decode(rows)


def encode_records(records: Sequence[NamedRecord]) -> bytes:
    """The bytes of a page's records."""
    return _ENCODER.encode(records)


def decode_records(records: bytes) -> list[NamedRecord]:
    """The inverse of :func:`encode_records`."""
    return _RECORDS.decode(records)


def successor(prefix: bytes) -> bytes:
    """The least name above every name that begins with ``prefix``; empty (no bound) if there is none."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes((stripped[-1] + 1,)) if stripped else END


def common_prefix(name: bytes, delimiter: bytes, prefix_length: int) -> bytes | None:
    """The common prefix ``name`` falls under (delimiter included), or None if it has no delimiter after the prefix."""
    if not delimiter:
        return None
    at = name.find(delimiter, prefix_length)
    return None if at < 0 else name[: at + len(delimiter)]


class Merged(msgspec.Struct, frozen=True, gc=False):
    """What a quorum's answers decide.

    ``rows`` is the encoded page if all answers were equal (nothing else is set then).  Otherwise ``decided`` holds the
    rows an accept quorum agrees on, ``open`` the names that must be read one by one, and ``horizon`` where to go on
    (empty: the range is done).
    """

    horizon: bytes
    rows: bytes | None = None
    decided: tuple[ScanRow, ...] = ()
    open: tuple[bytes, ...] = ()
    witnesses: tuple[bytes, ...] = ()


def merge(request: ScanRequest, answers: Mapping[int, ScanAnswer], quorums: Quorums) -> Merged:
    """Merge the answers of a quorum; see the module's text for the rules."""
    pages = list(answers.values())
    first = pages[0]
    horizon = _least([page.covered for page in pages])
    equal = all(page.rows == first.rows and page.covered == first.covered and not page.unknown for page in pages)
    if equal and not request.delimiter:
        return Merged(horizon, first.rows)
    seen: dict[bytes, list[tuple[int, ScanRow]]] = {}
    without_vote: dict[bytes, set[int]] = {}
    for acceptor, page in answers.items():
        for row in decode_rows(page.rows):
            if not horizon or row.name < horizon:
                seen.setdefault(row.name, []).append((acceptor, row))
        for name in page.unknown:
            if not horizon or name < horizon:
                seen.setdefault(name, [])
                without_vote.setdefault(name, set()).add(acceptor)
    decided: list[ScanRow] = []
    undecided: list[bytes] = []
    witnesses: list[bytes] = []
    for name in sorted(seen):
        reports = seen[name]
        silent = without_vote.get(name, set())
        in_prefix = bool(silent) and common_prefix(name, request.delimiter, request.prefix_length) is not None
        standing_for_prefix = in_prefix or any(row.witness for _, row in reports)
        if standing_for_prefix:
            witnesses.append(name)
        agreed = _agreed(reports, quorums)
        if request.covering and (silent or any(agreed is None or row.accepted > agreed.accepted for _, row in reports)):
            undecided.append(name)
            continue
        if agreed is not None:
            decided.append(agreed)
            continue
        absent = answers.keys() - silent - {acceptor for acceptor, _ in reports}
        if standing_for_prefix or not quorums.is_quorum(absent):
            undecided.append(name)
    return Merged(horizon, None, tuple(decided), tuple(undecided), tuple(witnesses))


def _agreed(reports: Sequence[tuple[int, ScanRow]], quorums: Quorums) -> ScanRow | None:
    ballots: dict[Ballot, list[int]] = {}
    for acceptor, row in reports:
        ballots.setdefault(row.accepted, []).append(acceptor)
    return next((row for _, row in reports if quorums.is_quorum(ballots[row.accepted])), None)


def _least(bounds: Sequence[bytes]) -> bytes:
    return min((bound for bound in bounds if bound), default=END)
