"""``lock``: run a command while a lock is held, and stop it before anybody else can hold the lock."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import click

from gateway.cli import lockstart, output
from gateway.cli.options import common
from gateway.cli.session import with_store

if TYPE_CHECKING:
    from asyncio.subprocess import Process

    from gateway.data.transfer import Store
    from objmeta import AsyncLease, LockHolder

_GRACE: Final = 0.25
"""What part of the time-to-live a command has between SIGTERM and SIGKILL."""
_GRACE_S_MAX: Final = 5.0
_SIGNALLED: Final = 128
_FORWARDED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_LOOK_S: Final = 0.25
_POLL_S: Final = 0.02


@click.command()
@common
@click.option("--ttl", metavar="SECONDS", type=float, default=10.0, show_default=True, help="Time-to-live.")
@click.option("--wait", metavar="SECONDS", type=float, help="Give up after this time; default: wait for ever.")
@click.option("--no-wait", is_flag=True, help="Try once.")
@click.option("--show", is_flag=True, help="Run nothing; show who holds the lock.")
@click.argument("name", metavar="NAME")
@click.argument("command", metavar="COMMAND", nargs=-1, type=click.UNPROCESSED)
def lock(name: str, command: tuple[str, ...], ttl: float, wait: float | None, no_wait: bool, show: bool) -> None:
    """Run a command while holding a lock, and stop it when the lease is lost.

    \b
      gateway lock nightly -- ./backup.sh --all
      gateway lock --no-wait nightly -- make report || echo "somebody else is at it"

    The command finds the lock's name in OBJMETA_LOCK_NAME and a number in OBJMETA_LOCK_TOKEN that grows with every
    holder: give it to whatever the command writes to, to refuse those who come too late.

    Others can take the lock of a holder that died when they have waited for all of its --ttl and not heard of it; with
    --no-wait, or a shorter --wait, they never do. If the lease cannot be renewed in time, the command gets SIGTERM, and
    SIGKILL after a quarter of that time (at most 5 s), before anybody else can have the lock; it is killed as well when
    gateway itself dies. While gateway is stopped (SIGSTOP) the command runs on: that is what the number is for. SIGINT,
    SIGTERM, SIGHUP and SIGQUIT are passed on. Unless standard input is a terminal, the command has a process group of
    its own, all of which is signalled.

    The exit code is the command's (128 + N if signal N ended it, 126 or 127 if it could not be run); 6 if somebody
    else holds the lock, and 7 if the command was stopped because the lease was lost.
    """
    if show == bool(command):
        raise click.UsageError(
            "--show runs no command" if show else "a command is missing: gateway lock NAME -- COMMAND"
        )
    if no_wait and wait is not None:
        raise click.UsageError("--wait and --no-wait exclude each other")
    if show:
        _show(name, with_store(lambda store: store.client.lock(name).holder(), of_now=True))
        return
    wait_s = 0.0 if no_wait else wait

    from objmeta.errors import ObjmetaError

    async def work(store: Store) -> int:
        lease = await store.client.lock(name, ttl_s=ttl, wait_s=wait_s).acquire()
        try:
            return await _run(lease, command)
        finally:
            with suppress(ObjmetaError):  # it runs out by itself
                await lease.release()

    code = with_store(work)
    if code:
        raise click.exceptions.Exit(code)


def _show(name: str, holder: LockHolder | None) -> None:
    record: dict[str, Any] = {"lock": name, "held": holder is not None}
    if holder is None:
        output.answer(record, f"the lock {output.shown(name)} is free")
        return
    record |= {"owner": holder.owner, "token": holder.token, "ttl": holder.ttl_s}
    owner = output.shown(holder.owner)
    output.answer(record, f"the lock {output.shown(name)} is held by {owner}, token {holder.token}")


async def _run(lease: AsyncLease, command: tuple[str, ...]) -> int:
    """Run the command to its end; its exit code. Raises LockLost if it was stopped because the lease was going."""
    environment = os.environ | {"OBJMETA_LOCK_NAME": lease.name, "OBJMETA_LOCK_TOKEN": str(lease.token)}
    has_group = not os.isatty(0)
    with _Forwarding(has_group) as forwarding:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", lockstart.__file__, str(os.getpid())),
            *command,
            env=environment,
            process_group=0 if has_group else None,
        )
        forwarding.begin(process)
        try:
            code = await _supervise(process, lease, has_group)
        finally:
            if process.returncode is None:
                _send(process, signal.SIGKILL, has_group)
                await process.wait()
    return _SIGNALLED - code if code < 0 else code


async def _supervise(process: Process, lease: AsyncLease, has_group: bool) -> int:
    """Wait for the command's end, or bring it about while the lease still lasts for it. Raises LockLost."""
    grace_s = min(_GRACE * lease.ttl_s, _GRACE_S_MAX)
    ended = asyncio.create_task(process.wait())
    while not ended.done() and (left_s := lease.valid_for_s - grace_s) > 0:
        # time that a machine sleeps is not counted by the event loop, so look often
        await asyncio.wait((ended,), timeout=min(left_s, _LOOK_S))
    if ended.done():
        return ended.result()
    _send(process, signal.SIGTERM, has_group)
    # All of the group has that time: the command may be gone long before what it started.
    loop = asyncio.get_running_loop()
    kill_at_s = loop.time() + grace_s
    while _is_running(process, has_group):
        if (left_s := min(lease.valid_for_s, kill_at_s - loop.time())) <= 0:
            break
        await asyncio.sleep(min(left_s, _POLL_S))
    _send(process, signal.SIGKILL, has_group)
    await ended
    from objmeta.errors import LockLost

    raise LockLost(f"the lease on lock {lease.name!r} could not be renewed in time, so the command was stopped")


def _send(process: Process, number: int, has_group: bool) -> None:
    with suppress(ProcessLookupError):
        if has_group:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)


def _is_running(process: Process, has_group: bool) -> bool:
    """Whether the command, or anybody of its group, has not ended yet."""
    if not has_group:
        return process.returncode is None
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


class _Forwarding:
    """Passes signals on; from a terminal, a command in our own group has those of its keys already."""

    def __init__(self, has_group: bool) -> None:
        self._has_group = has_group
        self._process: Process | None = None
        self._early: list[int] = []

    def __enter__(self) -> _Forwarding:
        for number in _FORWARDED:
            asyncio.get_running_loop().add_signal_handler(number, self._arrived, number)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        for number in _FORWARDED:
            asyncio.get_running_loop().remove_signal_handler(number)

    def begin(self, process: Process) -> None:
        """Pass on to this process, also what has arrived by now."""
        self._process = process
        for number in self._early:
            _send(process, number, self._has_group)

    def _arrived(self, number: int) -> None:
        if not self._has_group and number != signal.SIGTERM:
            return
        if self._process is None:
            self._early.append(number)
        else:
            _send(self._process, number, self._has_group)
