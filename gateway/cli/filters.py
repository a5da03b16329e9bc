"""``--include`` and ``--exclude``: which names of a directory a command takes.

The rules are those of ``aws s3 sync``: everything is taken at first, each pattern is looked at in the order of the
command line, and the last one that matches decides.  A pattern is matched against the whole name below the directory;
``*`` and ``?`` match slashes, too.  So ``--exclude '*' --include '*.csv'`` takes the CSV files of all directories, and
the other way round takes nothing.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from typing import Any, Final

import click

_META: Final = "gateway.filters"


class Filters:
    """Patterns in order; each with whether what it matches is taken."""

    def __init__(self, rules: Sequence[tuple[bool, str]] = ()) -> None:
        self._rules = [(taken, re.compile(fnmatch.translate(pattern))) for taken, pattern in rules]

    def takes(self, name: str) -> bool:
        """Whether the name, relative to the directory, is taken."""
        return next((taken for taken, pattern in reversed(self._rules) if pattern.match(name)), True)


class FilteringCommand(click.Command):
    """A command with both options: click collects the values of each, and forgets how they stood together."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Remember the order before click parses."""
        values, _, order = self.make_parser(ctx).parse_args(args=list(args))
        left = {name: list(values.get(name) or ()) for name in ("include", "exclude")}
        ctx.meta[_META] = [(each.name == "include", left[each.name].pop(0)) for each in order if each.name in left]
        return super().parse_args(ctx, args)


def filter_options(command: Any) -> Any:
    """Add ``--include`` and ``--exclude`` to a :class:`FilteringCommand`; :func:`current_filters` has them in order."""
    for name, says in (("--include", "Take what matches after all"), ("--exclude", "Leave out what matches")):
        command = click.option(
            name, multiple=True, expose_value=False, metavar="GLOB", help=f"{says}; the last that matches decides."
        )(command)
    return command


def current_filters() -> Filters:
    """What the running command's options say."""
    return Filters(click.get_current_context().meta.get(_META, ()))
