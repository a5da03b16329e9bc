"""``gateway lock``: a command under a lock."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from objmeta.node.dev import LocalCluster
from tests.cli.conftest import Run, Shell, eventually

IGNORES_SIGTERM = "trap 'echo told' TERM; echo $$; while :; do sleep 0.05; done"
THINKS_ABOUT_SIGTERM = IGNORES_SIGTERM.replace("echo told", "sleep 0.5; echo told")


def line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().decode().strip()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@contextmanager
def nothing_can_be_written(home: Path) -> Iterator[None]:
    """Hold the store's own lock, as a process that hangs in the middle of a step would."""
    (file,) = (home / "acceptor").glob("*.db")
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def test_the_command_finds_its_token(shell: Shell) -> None:
    script = 'echo "$OBJMETA_LOCK_NAME $OBJMETA_LOCK_TOKEN"'
    first, second = (shell("lock", "nightly job", "--", "sh", "-c", script).out.split() for _ in range(2))
    assert first[:2] == second[:2] == ["nightly", "job"]
    assert 0 < int(first[2]) < int(second[2])


def test_standard_input_and_output_are_the_commands(shell: Shell) -> None:
    assert shell("lock", "l", "cat", data=b"through").raw == b"through"


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 3"], 3),
        (["sh", "-c", "kill -KILL $$"], 137),
        (["surely-no-such-command"], 127),
        (["/etc/passwd"], 126),
    ],
)
def test_the_exit_code_is_the_commands(shell: Shell, command: list[str], code: int) -> None:
    process = shell.start("lock", "l", "--no-wait", "--", *command)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert err.startswith(b"gateway: ") == (code in (126, 127))


def test_a_lock_that_is_held(shell: Shell, gateway: Run) -> None:
    process = shell.start("lock", "l", "--", "sh", "-c", "echo $OBJMETA_LOCK_TOKEN; cat", stdin=subprocess.PIPE)
    token = int(line(process))
    assert f", token {token}" in gateway("lock", "--show", "l").out
    (record,) = gateway("lock", "--show", "--json", "l").records
    assert (record["held"], record["token"], record["ttl"]) == (True, token, 10.0)
    for option in (["--no-wait"], ["--wait", "0.1"]):
        found = gateway("lock", "l", *option, "--", "true", code=6)
        assert "the lock 'l' is still held by " in found.err
        assert found.err.count("\n") == 1
    waiting = shell.start("lock", "l", "--", "sh", "-c", "echo $OBJMETA_LOCK_TOKEN")
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(20) == 0
    assert int(line(waiting)) > token
    assert waiting.wait(20) == 0
    assert gateway("lock", "--show", "--json", "l").records == [{"lock": "l", "held": False}]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_passed_on(shell: Shell, number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    script = f"trap 'echo got; exit 9' {name}; echo ready; while :; do sleep 0.05; done"
    before = signal.signal(number, signal.default_int_handler)  # what is ignored here would be ignored there
    try:
        process = shell.start("lock", "l", "--", "bash", "-c", script)
    finally:
        signal.signal(number, before)
    assert line(process) == "ready"
    process.send_signal(number)
    assert line(process) == "got"
    assert process.wait(20) == 9


def test_interrupted_while_it_waits(shell: Shell) -> None:
    holder = shell.start("lock", "l", "--", "sh", "-c", "echo on; cat", stdin=subprocess.PIPE)
    assert line(holder) == "on"
    waiting = shell.start("lock", "l", "--", "true")
    eventually(lambda: len(os.listdir(f"/proc/{waiting.pid}/task")) > 3)
    waiting.send_signal(signal.SIGTERM)
    out, err = waiting.communicate(timeout=20)
    assert (waiting.returncode, out, err) == (143, b"", b"gateway: terminated\n")


def test_a_command_is_stopped_before_the_lease_is_over(shell: Shell) -> None:
    """SIGTERM first, SIGKILL later, and for all of its group: the outer shell is gone at once, the inner one is not."""
    process = shell.start("lock", "l", "--ttl", "8", "--", "sh", "-c", f'sh -c "{THINKS_ABOUT_SIGTERM}"; true')
    pid = int(line(process))
    with nothing_can_be_written(shell.home):
        assert line(process) == "told"
        eventually(lambda: not is_running(pid))
        assert process.poll() is None  # it would give the lock back
    assert process.wait(20) == 7
    assert process.stderr is not None
    said = process.stderr.read().decode().splitlines()[-1]
    assert said == "gateway: the lease on lock 'l' could not be renewed in time, so the command was stopped"
    assert b"is free" in shell("lock", "--show", "l").raw


@pytest.mark.slow
def test_on_a_cluster(shell: Shell, tmp_path: Path) -> None:
    with LocalCluster(tmp_path / "nodes", nodes=3) as cluster:
        environ = {"OBJMETA_ENDPOINTS": ",".join(cluster.endpoints)}
        tokens = [int(shell("lock", "l", "printenv", "OBJMETA_LOCK_TOKEN", env=environ).out) for _ in range(10)]
        assert sorted(set(tokens)) == tokens
        process = shell.start("lock", "l", "--ttl", "2", "--", "sh", "-c", IGNORES_SIGTERM, env=environ)
        pid = int(line(process))
        for node_id in cluster.node_ids[:2]:
            cluster.kill(node_id)
        assert line(process) == "told"
        assert process.wait(30) == 7
        assert not is_running(pid)


def test_a_gateway_that_was_stopped_meanwhile_kills_its_command(shell: Shell) -> None:
    process = shell.start("lock", "l", "--ttl", "2", "--", "sh", "-c", IGNORES_SIGTERM)
    pid = int(line(process))
    process.send_signal(signal.SIGSTOP)
    shell("lock", "l", "--", "true")
    assert is_running(pid)
    process.send_signal(signal.SIGCONT)
    assert process.wait(20) == 7
    assert not is_running(pid)


def test_a_command_dies_with_a_gateway_that_is_killed(shell: Shell) -> None:
    process = shell.start("lock", "l", "--ttl", "0.5", "--", "sh", "-c", IGNORES_SIGTERM)
    pid = int(line(process))
    process.kill()
    eventually(lambda: not is_running(pid))
    shell("lock", "l", "--", "true")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["lock"], "missing argument 'NAME'"),
        (["lock", "l"], "a command is missing: gateway lock NAME -- COMMAND"),
        (["lock", "--show", "l", "true"], "--show runs no command"),
        (["lock", "--wait", "1", "--no-wait", "l", "true"], "exclude each other"),
        (["lock", "--ttl", "0", "l", "true"], "time-to-live is 0.1 to 86400 seconds"),
        (["lock", "--wait", "-1", "l", "true"], "time to wait for a lock"),
        (["lock", "", "true"], "must have 1 to 1024"),
    ],
)
def test_a_wrong_command_line(gateway: Run, arguments: list[str], says: str) -> None:
    found = gateway(*arguments, code=2)
    assert says in found.err
    assert found.err.count("\n") == 1
