"""The command line's top: finds the subcommand, runs it, and turns whatever happens into a sentence and an exit code.

Rules.
* ``gateway --help`` imports click and this package's small modules, nothing else; a test holds that, and the time.
* An error is one line on standard error that begins ``gateway:``; with ``--json`` it is an object with ``error``,
  ``kind`` and ``exit_code``. A traceback is shown only for OBJMETA_DEBUG=1.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

import click

from gateway.cli import errors
from gateway.cli.options import Options, common

COMMANDS: Final = {
    "put": ("gateway.cli.putting:put", "Store files or directories, or standard input."),
    "upload": ("gateway.cli.uploads:upload", "Write one object in parts, by several workers."),
    "get": ("gateway.cli.getting:get", "Fetch an object or a directory of objects into files."),
    "sync": ("gateway.cli.syncing:sync", "Make a directory, of the store or elsewhere, like another one."),
    "import": ("gateway.cli.syncing:import_", "Bring objects or files from elsewhere into the store."),
    "cat": ("gateway.cli.getting:cat", "Write objects to standard output."),
    "head": ("gateway.cli.getting:head", "Write the beginnings of objects to standard output."),
    "ls": ("gateway.cli.listing:ls", "List buckets, objects or versions."),
    "tree": ("gateway.cli.finding:tree", "Draw a directory of objects as a tree."),
    "find": ("gateway.cli.finding:find", "Find objects by name, size, age or metadata."),
    "stat": ("gateway.cli.listing:stat", "Show all that is known of an object or a bucket."),
    "du": ("gateway.cli.listing:du", "Count objects and add up their sizes."),
    "versions": ("gateway.cli.listing:versions", "List the versions of one object, newest first."),
    "diff": ("gateway.cli.diffing:diff", "Show what differs between two versions, or two objects."),
    "watch": ("gateway.cli.watching:watch", "Show changes as they happen."),
    "mount": ("gateway.cli.mounting:mount", "Show the store as files in a directory, for any program."),
    "cp": ("gateway.cli.copying:cp", "Copy objects inside the store, without moving their bytes."),
    "mv": ("gateway.cli.copying:mv", "Rename objects inside the store."),
    "rm": ("gateway.cli.removing:rm", "Delete objects, or one version for good."),
    "undo": ("gateway.cli.undoing:undo", "Undo the last change of objects."),
    "restore": ("gateway.cli.undoing:restore", "Make an old version current again."),
    "mb": ("gateway.cli.buckets:mb", "Make buckets."),
    "rb": ("gateway.cli.buckets:rb", "Remove empty buckets."),
    "bucket": ("gateway.cli.buckets:bucket", "Show and change the settings of a bucket."),
    "sql": ("gateway.cli.query:sql", "Ask SQL about buckets, objects, versions, chunks and nodes."),
    "catalog": ("gateway.cli.catalog:catalog", "What SQL sees of the store, for other programs."),
    "lock": ("gateway.cli.lock:lock", "Run a command while holding a lock, and stop it when the lease is lost."),
    "status": ("gateway.cli.admin:status", "Show the store's nodes, their health, and whether there is a quorum."),
    "cluster": ("gateway.cli.cluster:cluster", "Show and change the members of a cluster."),
    "disks": ("gateway.cli.disks:disks", "Look after a store over several disks."),
    "repair": ("gateway.cli.upkeep:repair", "Have every node fetch what it should have and lacks, now."),
    "scrub": ("gateway.cli.upkeep:scrub", "Read and verify every copy of every chunk, now, and heal what is damaged."),
    "fsck": (
        "gateway.cli.upkeep:fsck",
        "Check the whole store: every version of every object, its chunks, and their copies.",
    ),
    "gc": ("gateway.cli.gc:gc", "Erase for good what was deleted, and free its space, now."),
    "config": ("gateway.cli.admin:config", "Show every setting and where it comes from."),
    "completion": (
        "gateway.cli.shells:completion",
        "Print the script that has a shell complete commands, options and names in the store.",
    ),
    "serve": ("gateway.cli.nodes:serve", "Run one node of a cluster."),
    "dev": ("gateway.cli.nodes:dev", "Start a cluster on this machine, to try things."),
}
"""Subcommand -> (where it is, what it does)."""

_EPILOG: Final = "\b\nExit codes:\n" + "\n".join(f"  {code:>3}  {text}" for code, text in errors.EXIT_CODES.items())


class _Commands(click.Group):
    """Loads a subcommand's module when it is called, not before."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        import importlib

        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, says) for name, (_, says) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            import difflib

            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "'gateway --help' lists them"
            raise click.UsageError(f"there is no command {name!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)


def _show_version(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        from importlib import metadata

        from objmeta.config import version

        try:
            number = version()
        except metadata.PackageNotFoundError:
            number = "from source, not installed"
        click.echo(f"gateway {number}")
        context.exit()


@click.group(cls=_Commands, epilog=_EPILOG)
@common
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_show_version, help="Show the version."
)
def gateway() -> None:
    """Store files as versioned objects, on this machine or on a cluster.

    An object is named objmeta://bucket/key or simply bucket/key. Without --store, OBJMETA_ENDPOINTS, OBJMETA_HOME or a
    config file, the store is a directory in your home; nothing needs to be started.
    """


def run(arguments: Sequence[str]) -> int:
    """Run the command; the exit code. Everything that goes wrong has been reported on standard error."""
    options = Options()

    def fail(text: str, code: int, kind: str) -> int:
        # what is wrong with the command may have been found before --json was
        as_json = options.json or "--json" in itertools.takewhile(lambda each: each != "--", arguments)
        say(text, {"error": text, "kind": kind, "exit_code": code}, as_json=as_json)
        return code

    try:
        with gateway.make_context("gateway", list(arguments), obj=options) as context:
            gateway.invoke(context)
            with errors.writing_output():
                sys.stdout.flush()
        return errors.DONE
    except click.exceptions.Exit as finished:
        return finished.exit_code
    except click.exceptions.NoArgsIsHelpError as help_text:
        click.echo(help_text.format_message(), err=True)
        return errors.USAGE
    except click.ClickException as wrong:
        return fail(_lowered(wrong.format_message()) + _hint(wrong), errors.USAGE, "usage")
    except (KeyboardInterrupt, click.Abort):
        return fail("interrupted", errors.INTERRUPTED, "interrupted")
    except errors.Terminated:
        return fail("terminated", errors.TERMINATED, "terminated")
    except (BrokenPipeError, errors.OutputClosed):
        return errors.OUTPUT_CLOSED
    except Exception as error:
        if os.environ.get("OBJMETA_DEBUG", "0") not in ("", "0"):
            raise
        return fail(errors.sentence(error), errors.exit_code(error), errors.record(error)["kind"])


def say(text: str, record: Mapping[str, Any] | None = None, *, as_json: bool | None = None) -> None:
    """One line on standard error: ``text`` for people; with ``--json`` the record, or the text as a message.

    ``as_json`` says whether that was given, where there is no running command that knows it.
    """
    from gateway.cli import output

    if as_json is None:
        context = click.get_current_context(silent=True)
        as_json = context is not None and context.ensure_object(Options).json
    if as_json:
        click.echo(output.json_text(record or {"message": text}, sys.stderr), err=True)
    else:
        click.echo(f"gateway: {output.shown(text, sys.stderr)}", err=True)


def _hint(wrong: click.ClickException) -> str:
    # click's own subclasses are about the command's form, and its help says more
    if not isinstance(wrong, click.UsageError) or type(wrong) is click.UsageError or wrong.ctx is None:
        return ""
    return f" (see {wrong.ctx.command_path} --help)"


def _lowered(text: str) -> str:
    line = " ".join(text.split()).removesuffix(".")
    return line[:1].lower() + line[1:] if line[1:2].islower() else line


def _replace_closed_streams() -> None:
    """Give a standard stream that was closed (``>&-``) a descriptor, before a file of the store becomes number 0 or 1.

    Reading and writing it fails with EBADF, as the null device is open the other way round; messages are dropped.
    """
    for number, way in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, way)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The console script."""
    if "_GATEWAY_COMPLETE" in os.environ:
        from gateway.cli import shells

        shells.answer(gateway)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its own complaints are not for people
    _replace_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        # a name the terminal's encoding cannot show is no reason to fail
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    code = run(sys.argv[1:] if arguments is None else arguments)
    try:
        sys.stdout.flush()
    except OSError:
        # reported by now; the interpreter flushes once more at exit and would complain in its own words
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(code)
