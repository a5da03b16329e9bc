"""What a ``sync`` has to do: two listings, in the order of names, merged into actions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final, Protocol

from gateway.cli.ends.entries import Entry, Listed, Unlisted
from gateway.cli.filters import Filters

NEW: Final = "new"
SIZE: Final = "size"
TIME: Final = "time"
CONTENT: Final = "content"
"""Whether the contents differ is still to be seen: they are compared when the action's turn comes."""
EXTRA: Final = "extra"
"""There is something at the target that the source does not have."""


@dataclass(frozen=True, slots=True)
class Action:
    """What is to be done with one name, and why; ``source`` is None where the target's is to be deleted."""

    reason: str
    source: Entry | None
    target: Entry | None

    @property
    def name(self) -> str:
        """The name it is about."""
        entry = self.source or self.target
        assert entry is not None, "an action is about something"
        return entry.name

    @property
    def size(self) -> int:
        """How many bytes are to be moved."""
        return self.source.size if self.source is not None else 0


class Differs(Protocol):
    """Why what the target has is to be replaced (a reason), or None if it is the same."""

    def __call__(self, source: Entry, target: Entry, /) -> str | None: ...


async def actions(
    source: AsyncIterator[Listed], target: AsyncIterator[Listed], filters: Filters, differs: Differs, *, delete: bool
) -> AsyncIterator[Action | Unlisted | Entry]:
    """What is to be done, in order; an Entry is one of the source that is at the target already.

    What of the source cannot be listed (an Unlisted, which is passed on) is not deleted at the target, nor is anything
    below it, nor what the filters leave out.  What the target has of another kind stays; if the source has that name,
    whoever writes it will see.
    """
    sources = _ordered(_taken(source, filters), "the source")
    targets = _ordered(_taken(target, filters), "the target")
    unknown: list[str] = []
    ours, theirs = await anext(sources, None), await anext(targets, None)
    while ours is not None or theirs is not None:
        if isinstance(ours, Unlisted) or isinstance(theirs, Unlisted):
            if isinstance(ours, Unlisted) and (theirs is None or ours.name <= theirs.name):
                unknown.append(ours.name)
                yield ours
                ours = await anext(sources, None)
                continue
            if isinstance(theirs, Unlisted) and (ours is None or theirs.name <= ours.name):
                if isinstance(theirs.reason, Exception):
                    yield theirs
                theirs = await anext(targets, None)
                continue
        if ours is not None and (theirs is None or ours.name <= theirs.name):
            assert isinstance(ours, Entry), "what is unlisted was seen to"
            there = theirs if theirs is not None and theirs.name == ours.name else None
            assert not isinstance(there, Unlisted), "what is unlisted was seen to"
            if not ours.implied:
                reason = NEW if there is None else None if _both_empty(ours, there) else differs(ours, there)
                yield ours if reason is None else Action(reason, ours, there)
            ours = await anext(sources, None)
            theirs = await anext(targets, None) if there is not None else theirs
        else:
            assert isinstance(theirs, Entry), "what is unlisted was seen to"
            unknown = [name for name in unknown if theirs.name.startswith(name) or theirs.name < name]
            if delete and not theirs.implied and not any(_covers(name, theirs.name) for name in unknown):
                yield Action(EXTRA, None, theirs)
            theirs = await anext(targets, None)


def _both_empty(ours: Entry, theirs: Entry) -> bool:
    return ours.is_directory and not ours.size and not theirs.size


def _covers(unknown: str, name: str) -> bool:
    return name == unknown or name.startswith(unknown if unknown.endswith("/") or not unknown else unknown + "/")


async def _taken(listed: AsyncIterator[Listed], filters: Filters) -> AsyncIterator[Listed]:
    async for each in listed:
        if filters.takes(each.name) or (isinstance(each, Entry) and each.implied):
            yield each


async def _ordered(listed: AsyncIterator[Listed], whose: str) -> AsyncIterator[Listed]:
    """The same, if it is in order: out of order, what is there would seem to be missing, and be deleted."""
    before: str | None = None
    async for each in listed:
        if before is not None and each.name <= before:
            raise OSError(f"the listing of {whose} is not in order: {each.name!r} came after {before!r}")
        before = each.name
        yield each
