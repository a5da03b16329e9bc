"""Options that every subcommand understands, before or after its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import click

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

if_absent_option: Final = click.option(
    "-n",
    "--no-clobber",
    "--if-absent",
    "if_absent",
    is_flag=True,
    help="Never replace an object (else exit code 6).",
)


@dataclass(slots=True)
class Options:
    """What was asked for on the command line, wherever it stood; None and False are "not said"."""

    store: str | None = None
    timeout: str | None = None
    json: bool = False
    quiet: bool = False
    no_progress: bool = False
    as_of: str | None = None
    as_of_source: str = ""
    """Where ``as_of`` is from, if that is no option."""


def current() -> Options:
    """The options of the running command."""
    return click.get_current_context().ensure_object(Options)


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    options = context.ensure_object(Options)
    if value is not None and value is not False and parameter.name is not None:
        setattr(options, parameter.name, value)


def common(command: Decorated) -> Decorated:
    """Add the options; their values are found by :func:`current`."""
    for declare in (
        click.option("--no-progress", is_flag=True, expose_value=False, callback=_keep, help="Show no progress bar."),
        click.option("-q", "--quiet", is_flag=True, expose_value=False, callback=_keep, help="Say only what fails."),
        click.option(
            "--json", is_flag=True, expose_value=False, callback=_keep, help="Print one JSON object a line, errors too."
        ),
        click.option(
            "--timeout",
            metavar="SECONDS",
            expose_value=False,
            callback=_keep,
            help="Give an operation up after this time (default 10).",
        ),
        click.option(
            "--store",
            metavar="TARGET",
            expose_value=False,
            callback=_keep,
            help="A directory, or nodes of a cluster as host:port,host:port.",
        ),
    ):
        command = declare(command)
    return command


def reading(command: Decorated) -> Decorated:
    """Add the options of commands that only read objects: they can read them as they were."""
    return click.option(
        "--as-of",
        metavar="TIME",
        expose_value=False,
        callback=_keep,
        help="All as it was then: 2026-11-26T10:00:00Z (UTC unless it says another), '2h ago', 3d.",
    )(command)
