"""``sql`` without a query: one statement after another, from a terminal or from a file.

A terminal is read by prompt_toolkit rather than by the standard library's readline: it edits a statement of several
lines as one, and it waits in the event loop, so that the connections to the nodes are looked after meanwhile.

Rules.
* A statement ends with a semicolon; a line that begins with a dot is a command of the prompt.
* On a terminal an error is one line and the prompt goes on; Ctrl-C stops what runs, the catalog stays as it was. A file
  ends at its first error, since later statements may rest on earlier ones, and with that error's exit code.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Awaitable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from gateway.cli import errors, output, statements
from gateway.cli.app import say
from gateway.cli.options import current
from gateway.cli.rows import FORMATS, say_as_of, table_text
from gateway.cli.session import in_thread

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import CompleteEvent, Completion
    from prompt_toolkit.document import Document

    from gateway.catalog.database import Names
    from gateway.catalog.query import Session
    from gateway.catalog.results import Result

ROWS_MAX: Final = 1_000
"""So many rows of a table are shown on a terminal."""
_ROWS_AT_ONCE: Final = 1_000
"""Between so many rows Ctrl-C is looked at."""
COMMANDS: Final = {
    ".help": ("", "show these commands"),
    ".tables": ("", "list the tables, and the macros with their parameters"),
    ".schema": ("[TABLE]", "show the columns of a table, or of all"),
    ".mode": ("|".join(FORMATS), "show answers as a table, comma-separated values or lines of JSON"),
    ".quit": ("", "leave; so does Ctrl-D"),
}
"""Command of the prompt -> (its argument, what it does)."""


async def from_terminal(session: Session, mode: str) -> None:
    """Ask for statements until Ctrl-D or ``.quit``."""
    await _Terminal(session, mode).run()


async def from_file(session: Session, mode: str) -> None:
    """Run what standard input has; raises what the first statement raises that fails."""
    await _Asking(session, mode).take(await in_thread(standard_input))


def standard_input() -> str:
    """All of it; raises UsageError if it is no text."""
    with errors.naming("standard input"):
        data = sys.stdin.buffer.read()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise click.UsageError(f"standard input is not UTF-8 at byte {problem.start}; SQL is text") from None


class _Asking:
    """Runs statements and commands, and shows their answers."""

    rows_max: int | None = None

    def __init__(self, session: Session, mode: str) -> None:
        self._session = session
        self._mode = mode
        self.left = False
        """Whether ``.quit`` was said."""
        self.stopped = False
        """Whether what follows is to be dropped, since somebody stopped what came before."""

    async def take(self, text: str) -> None:
        """Run all statements and commands in ``text``; the last needs no semicolon."""
        self.stopped = False
        pending = ""
        for line in text.splitlines(keepends=True):
            if line.startswith(".") and statements.is_blank(pending):
                pending = ""
                await self.run(self._command(line.split()))
            else:
                found, pending = statements.split(pending + line)
                for statement in found:
                    if not self.stopped:
                        await self.run(self._answer(statement))
            if self.left or self.stopped:
                return
        if not statements.is_blank(pending):
            await self.run(self._answer(pending))

    async def run(self, work: Awaitable[None]) -> None:
        """Run one statement or command."""
        await work

    async def _answer(self, statement: str) -> None:
        began = time.monotonic()
        with output.counting("reading") as progress:
            result = await self._session.sql(statement, progress.reached)
        took_s = time.monotonic() - began
        await self._show(result)
        say_as_of(result, took_s)

    async def _show(self, result: Result) -> None:
        from gateway.catalog.results import Result

        table = result.arrow()
        if not result.columns:
            return
        if self._mode == "table":
            shown = table if self.rows_max is None else table.slice(0, self.rows_max)
            output.line(table_text(Result(shown)))
            if len(shown) < len(table):
                output.line(f"... the first {len(shown):,} of {len(table):,} rows; '.mode csv' shows all")
        else:
            for start in range(0, max(len(table), 1), _ROWS_AT_ONCE):
                part = Result(table.slice(start, _ROWS_AT_ONCE))
                FORMATS[self._mode](part, sys.stdout, start == 0)
                await asyncio.sleep(0)
        with errors.writing_output():
            sys.stdout.flush()

    # -- Commands -----------------------------------------------------------------------------------------------------

    async def _command(self, words: list[str]) -> None:
        name, arguments = words[0].lower(), words[1:]
        expected = {".mode": (1,), ".schema": (0, 1)}.get(name, (0,))
        if name not in COMMANDS:
            raise click.UsageError(f"there is no command {words[0]!r}; .help lists them")
        if len(arguments) not in expected or (name == ".mode" and arguments[0] not in FORMATS):
            raise click.UsageError(f"it is: {' '.join((name, COMMANDS[name][0])).strip()}")
        match name:
            case ".help":
                _table((f"{each} {argument}".strip(), does) for each, (argument, does) in COMMANDS.items())
                output.line("Anything else is SQL and ends with a semicolon. Ctrl-C drops it, or stops what runs.")
            case ".tables":
                names = await self._session.names()
                for table in names.tables:
                    output.line(table)
                for macro, parameters in names.macros.items():
                    output.line(f"{macro}({', '.join(parameters)})")
            case ".schema":
                await self._schema(*arguments)
            case ".mode":
                self._mode = arguments[0]
            case _:
                self.left = True

    async def _schema(self, only: str | None = None) -> None:
        tables = (await self._session.names()).tables
        if only is not None and only.lower().rstrip(";") not in tables:
            raise click.UsageError(f"there is no table {only!r}; .tables lists them")
        for table in [only.lower().rstrip(";")] if only is not None else tables:
            output.line(table)
            _table((f"  {column}", kind) for column, kind in tables[table])


class _Terminal(_Asking):
    """The same with somebody who types."""

    rows_max = ROWS_MAX

    def __init__(self, session: Session, mode: str) -> None:
        super().__init__(session, mode)
        self._running: asyncio.Task[None] | None = None

    async def run(self, work: Awaitable[None] | None = None) -> None:
        """Ask until the end; or run one statement or command, which can be stopped and whose error is said."""
        if work is None:
            await self._ask()
            return
        self._running = asyncio.ensure_future(_finish(work))
        try:
            await asyncio.shield(self._running)
        except asyncio.CancelledError:
            if not self._running.cancelled():  # not Ctrl-C, but the whole command is to end
                self._running.cancel()
                await asyncio.wait((self._running,))
                raise
            self.stopped = True
            say("interrupted")
        except (BrokenPipeError, errors.OutputClosed):
            raise
        except click.ClickException as wrong:
            text = wrong.format_message()
            say(text, {"error": text, "kind": "usage"})
        except Exception as error:
            if os.environ.get("OBJMETA_DEBUG", "0") not in ("", "0"):
                raise
            say(errors.sentence(error), errors.record(error))
        finally:
            self._running = None

    def _interrupt(self) -> None:
        if self._running is not None:
            self._running.cancel()

    async def _ask(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        try:
            completer = _completer(await self._session.names())
            prompt = _prompt(completer)
            if not current().quiet:
                click.echo("SQL, each statement with a semicolon; .help shows more, Ctrl-D leaves.", err=True)
            while not self.left:
                try:
                    text = await prompt.prompt_async("gateway> ", handle_sigint=False)
                except KeyboardInterrupt:
                    continue
                except EOFError:
                    break
                await self.take(text)
                completer.names = await self._session.names()
        finally:
            loop.remove_signal_handler(signal.SIGINT)


async def _finish(work: Awaitable[None]) -> None:
    await work


def _table(rows: Iterable[tuple[str, str]]) -> None:
    for line in output.rows(list(rows)):
        output.line(line)


# -- The terminal -----------------------------------------------------------------------------------------------------


def history_path() -> Path:
    """Where what was typed is kept: in the user's state directory, for nobody else to read."""
    import platformdirs

    return Path(platformdirs.user_state_dir("objmeta", appauthor=False)) / "sql_history"


def is_complete(text: str) -> bool:
    """Whether Enter ends the input, rather than beginning another line."""
    if text.startswith("."):
        return True
    return statements.is_blank(statements.split(text)[1])


def _prompt(completer: Any) -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.application import get_app
    from prompt_toolkit.filters import Condition
    from prompt_toolkit.output import create_output

    return PromptSession(
        history=_history(),
        completer=completer,
        complete_while_typing=False,
        multiline=Condition(lambda: not is_complete(get_app().current_buffer.text)),
        prompt_continuation="    ...> ",
        output=create_output(always_prefer_tty=True),  # answers may go to a file
    )


def _history() -> Any:
    """The history in its file; if that cannot be written, one that ends with the prompt."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    path = history_path()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(file, 0o600)
        finally:
            os.close(file)
    except OSError as problem:
        say(f"what is typed is not kept: {errors.sentence(problem)}")
        return InMemoryHistory()

    class Kept(FileHistory):
        """Goes on when the disk is full."""

        def store_string(self, string: str) -> None:
            with contextlib.suppress(OSError):
                super().store_string(string)

    return Kept(path)


def _completer(names: Any) -> Any:
    from prompt_toolkit.completion import Completer, Completion

    class Completing(Completer):
        """Completes the word before the cursor."""

        def __init__(self) -> None:
            self.names = names

        def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
            before = document.text_before_cursor
            word = before if re.fullmatch(r"\.\w*", before) else _word(before)
            for text, kind in completions(self.names, before):
                yield Completion(text, -len(word), display_meta=kind)

    return Completing()


def completions(names: Names, before: str) -> Iterator[tuple[str, str]]:
    """What may take the place of the word that ends here, and what each is."""
    word = _word(before)
    if before.startswith("."):
        command, space, _ = before.partition(" ")
        if not space:
            found = [(name, does) for name, (_, does) in COMMANDS.items() if name.startswith(before.lower())]
        elif command == ".mode":
            found = [(each, "mode") for each in FORMATS]
        else:
            found = [(each, "table") for each in names.tables] if command == ".schema" else []
        yield from (each for each in found if not space or each[0].startswith(word.lower()))
        return
    of_table = re.search(r"(\w+)\.\w*$", before)
    if of_table is not None:
        columns = names.tables.get(of_table[1].lower(), ())
        yield from ((name, kind) for name, kind in columns if name.startswith(word.lower()))
        return
    expects_table = re.search(r"(?i)\b(from|join|describe)\s+\w*$", before) is not None
    if not word and not expects_table:
        return
    found = [(each, "table") for each in names.tables] + [(f"{each}(", "macro") for each in names.macros]
    if not expects_table:
        found += {name: (name, "column") for columns in names.tables.values() for name, _ in columns}.values()
        found += [(each if word.islower() else each.upper(), "keyword") for each in names.keywords]
    yield from (each for each in found if each[0].lower().startswith(word.lower()))


def _word(before: str) -> str:
    found = re.search(r"\w*$", before)
    return found[0] if found else ""
