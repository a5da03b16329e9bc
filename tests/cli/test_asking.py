"""``sql`` without a query: the prompt, through a terminal of its own, and statements from a file."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from gateway.catalog.database import Names
from gateway.cli import asking
from gateway.cli.statements import is_blank, split
from tests.cli.conftest import PATIENCE_S, Run, Shell, eventually

CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[@-_]|[\r\x07]")
FOREVER = "SELECT sum(a.range * b.range) FROM range(10_000_000) a, range(10_000_000) b;"


class Terminal:
    """A process that believes somebody sits before it."""

    def __init__(self, shell: Shell, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
        self.process = shell.start(
            *arguments,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "XDG_STATE_HOME": str(state(shell))},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self._seen = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def read(self, patience_s: float = 0.05) -> bool:
        """Take what there is; whether it may go on."""
        if not select.select([self._master], [], [], patience_s)[0]:
            return True
        try:
            data = os.read(self._master, 65536)
        except OSError:
            return False  # the process is gone
        self._seen += CONTROL.sub("", data.decode(errors="replace"))
        assert "Traceback" not in self._seen, self._seen
        return bool(data)

    def expect(self, *texts: str) -> str:
        """Wait until these have been shown, one after another; what was shown before the last of them."""
        deadline = time.monotonic() + PATIENCE_S
        before = ""
        for text in texts:
            while text not in self._seen:
                assert time.monotonic() < deadline, f"{text!r} did not come after {self._seen!r}"
                assert self.read() or text in self._seen, f"it ended with {self._seen!r}"
            before, _, self._seen = self._seen.partition(text)
        return before

    def ask(self, text: str, *shown: str) -> None:
        """Type a line at the prompt, and wait for what it shows."""
        self.type(text + "\r")
        self.expect(*shown)

    def interrupt_until(self, text: str) -> None:
        """Press Ctrl-C, as often as it takes."""
        deadline = time.monotonic() + PATIENCE_S
        while text not in self._seen:
            assert time.monotonic() < deadline, self._seen
            self.type("\x03")
            pressed = time.monotonic()
            while text not in self._seen and time.monotonic() < pressed + 1:
                self.read()
        self.expect(text)

    def end(self) -> int:
        while self.read():
            if self.process.poll() is not None:
                break
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        os.close(self._master)


def state(shell: Shell) -> Path:
    return shell.home.parent / "state"


@contextlib.contextmanager
def terminal(shell: Shell, *arguments: str) -> Iterator[Terminal]:
    found = Terminal(shell, *arguments)
    try:
        yield found
    finally:
        found.close()


def test_a_prompt(shell: Shell, gateway: Run, bucket: str) -> None:
    shell("put", "-", "box/a ü", data=b"12")
    with terminal(shell, "sql") as prompt:
        prompt.expect("Ctrl-D leaves", "gateway>")
        prompt.ask("SELECT key, size FROM objects;", "a ü", "1 row as of 20", ", in 0", "gateway>")
        gateway("rm", "box/a ü")
        prompt.ask("SELECT count(*) AS many,", "...>")
        prompt.ask("'now' AS \"it's\" FROM versions;", "2  now", "gateway>")
        prompt.ask("SELECT nonsense FROM nowhere;", "gateway: the query cannot be run", "gateway>")
        prompt.ask(".nonsense", "gateway: there is no command '.nonsense'", "gateway>")
        prompt.ask(".mode json", "gateway>")
        prompt.ask("CREATE TABLE mine AS SELECT 7 AS seven; FROM mine;", '{"seven": 7}', "gateway>")
        prompt.ask(".tables", "mine", "objects", "largest_prefixes(depth)", "gateway>")
        prompt.type("SELECT bucket FROM obje\t")
        prompt.expect("objects")
        prompt.type(" WHERE dropped")
        prompt.expect("dropped")
        prompt.type("\x03")
        prompt.expect("gateway>")
        prompt.type(FOREVER + "\r")
        prompt.interrupt_until("gateway: interrupted")
        prompt.ask("SELECT 5 + 37 AS n;", '{"n": 42}', "gateway>")
        prompt.type("\x04")
        assert prompt.end() == 0
    history = state(shell) / "objmeta" / "sql_history"
    assert history.stat().st_mode & 0o777 == 0o600
    assert "+SELECT key, size FROM objects;" in history.read_text()
    with terminal(shell, "sql", "--csv", "--catalog", ":memory:") as prompt:
        prompt.expect("gateway>")
        prompt.type("\x1b[A")  # the last one again
        prompt.expect("SELECT 5 + 37 AS n;")
        prompt.ask("", "n\n42\n", "gateway>")
        prompt.ask(".quit")
        assert prompt.end() == 0


def test_statements_from_a_file(shell: Shell, bucket: str) -> None:
    shell("put", "-", "box/k", data=b"12")
    file = b"""-- how much; there is
    CREATE VIEW sizes AS SELECT size FROM objects;
.mode csv
SELECT ';' AS a, size
FROM sizes;
SELECT sum(size) AS s FROM sizes -- without an end"""
    found = shell("sql", data=file)
    assert found.lines[-4:] == ["a,size", ";,2", "s", "2"]
    assert found.err.count("as of ") == 3
    broken = b"SELECT 1 AS n; FROM sizes; SELECT 2 AS n;"
    assert shell("sql", "-q", "--json", "--live", data=broken, code=2).records == [{"n": 1}]
    assert shell("sql", data=b" -- nothing\n;;").out == ""
    assert "not UTF-8 at byte 8" in shell("sql", data=b"SELECT '\xff'", code=2).err
    assert ".help" in shell("sql", data=b".nonsense\nSELECT 1;", code=2).err
    assert "each statement is one" in shell("sql", data=b"BEGIN;", code=2).err
    assert "-o needs a QUERY" in shell("sql", "-o", "x.csv", data=b"SELECT 1", code=2).err


def test_ctrl_c_stops_one_query(shell: Shell, bucket: str) -> None:
    process = shell.start("sql", "--catalog", "kept", f"{FOREVER[:-1]}, objects")
    eventually((shell.directory / "kept.lock").exists)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, said) == (130, b"gateway: interrupted\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT 1; SELECT 2;", ["SELECT 1", " SELECT 2"]),
        ("SELECT ';';SELECT 'it''s;'", ["SELECT ';'"]),
        ('SELECT 1 AS "a;"";";', ['SELECT 1 AS "a;"";"']),
        ("SELECT $$;$$; SELECT $x$;$$;$x$;", ["SELECT $$;$$", " SELECT $x$;$$;$x$"]),
        ("SELECT e'\\';';", ["SELECT e'\\';'"]),
        ("SELECT 1 -- no; end\n;", ["SELECT 1 -- no; end\n"]),
        ("/* a; /* b; */ c; */ SELECT 1;", ["/* a; /* b; */ c; */ SELECT 1"]),
        ("; ;-- x\n;", []),
    ],
)
def test_where_a_statement_ends(text: str, expected: list[str]) -> None:
    found, rest = split(text)
    assert found == expected
    statements = [each.query.strip(" ;") for each in duckdb.connect().extract_statements(text)]
    assert [each.strip(" ;") for each in [*found, *([] if is_blank(rest) else [rest])]] == statements


@pytest.mark.parametrize("text", ["SELECT 1", "SELECT 'a;", 'SELECT "a;', "SELECT $$;", "SELECT 1 /* ;", "SELECT ';'"])
def test_what_goes_on_in_the_next_line(text: str) -> None:
    assert split(text) == ([], text)
    assert not asking.is_complete(text)


def test_completion() -> None:
    names = Names(
        {"objects": [("key", "VARCHAR"), ("size", "BIGINT")], "nodes": [("node_id", "BIGINT")]},
        {"duplicates": ["least_size"]},
        ["select", "natural"],
    )

    def offered(before: str) -> list[str]:
        return [text for text, _ in asking.completions(names, before)]

    assert offered("SELECT n") == ["nodes", "node_id", "natural"]
    assert offered("SEL") == ["SELECT"]
    assert offered("SELECT * FROM ") == ["objects", "nodes", "duplicates("]
    assert offered("SELECT objects.k") == ["key"]
    assert offered("SELECT nowhere.k") == offered("SELECT ") == offered(".quit x") == []
    assert offered(".s") == [".schema"]
    assert offered(".schema o") == ["objects"]
    assert offered(".mode ") == ["table", "csv", "json"]
