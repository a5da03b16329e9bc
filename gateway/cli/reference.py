"""Writes docs/cli.md from the commands themselves: ``python -m gateway.cli.reference`` prints it (``make docs``)."""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Iterator

import click

from gateway.cli import errors
from gateway.cli.app import COMMANDS, gateway
from gateway.cli.options import Options

WIDTH = 100

_HEAD = """\
# The command `gateway`

This page is made from the commands' own help (`make docs`); a test holds that it is up to date. The options in the next
section are understood by every command, before or after its name, and are not repeated.

"""


def reference() -> str:
    """The page."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(WIDTH)
    try:
        return "\n".join(_lines()).rstrip() + "\n"
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _lines() -> Iterator[str]:
    yield _HEAD
    with gateway.make_context("gateway", ["ls"], obj=Options(), resilient_parsing=True) as top:
        common: set[str | None] = {option.name for option in gateway.params}
        yield "## For all commands\n"
        yield "```text"
        yield from _options(top, gateway, set())
        yield "```\n"
        yield "| | |\n| --- | --- |"
        for name, (_, says) in COMMANDS.items():
            yield f"| [`{name}`](#gateway-{name}) | {says} |"
        yield ""
        for name in COMMANDS:
            command = gateway.get_command(top, name)
            assert command is not None, "every command can be loaded"
            yield from _command(top, command, f"gateway {name}", common)
        yield "## Exit codes\n"
        yield "| code | meaning |\n| --- | --- |"
        for code, text in errors.EXIT_CODES.items():
            yield f"| {code} | {text} |"


def _command(parent: click.Context, command: click.Command, words: str, common: set[str | None]) -> Iterator[str]:
    context = click.Context(command, info_name=words.rpartition(" ")[2], parent=parent, terminal_width=WIDTH)
    yield f"{'##' if words.count(' ') == 1 else '###'} {words}\n"
    yield "```text"
    yield " ".join([words, *command.collect_usage_pieces(context)])
    yield "```\n"
    yield from _prose(command.help or "")
    options = list(_options(context, command, common))
    if options:
        yield "```text"
        yield from options
        yield "```\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None, "every command can be loaded"
            yield from _command(context, below, f"{words} {name}", common)


def _prose(text: str) -> Iterator[str]:
    """A command's help: what it sets apart (click's ``\\b``) are examples; the rest is Markdown as it is."""
    for part in re.split(r"\n\s*\n", text.partition("\f")[0].strip()):
        lines = part.splitlines()
        if lines[0].strip() == "\b":
            yield "```text"
            yield textwrap.dedent("\n".join(lines[1:]))
            yield "```\n"
        else:
            yield " ".join(line.strip() for line in lines).replace("<", "&lt;").replace("*", "\\*") + "\n"


def _options(context: click.Context, command: click.Command, without: set[str | None]) -> Iterator[str]:
    records = [
        record
        for option in command.get_params(context)
        if isinstance(option, click.Option) and option.name not in without and "--help" not in option.opts
        if (record := option.get_help_record(context)) is not None
    ]
    if not records:
        return
    formatter = click.HelpFormatter(width=WIDTH)
    formatter.write_dl(records)
    yield formatter.getvalue().rstrip("\n")


if __name__ == "__main__":
    sys.stdout.write(reference())
