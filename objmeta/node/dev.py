"""Several node processes on this machine, for trying things, for tests and for benchmarks.

Rules.  Processes are stopped by their own ids only, and all that were started are stopped.  Data stays in the
directory: the same cluster can be started again from it, under other ports.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from objmeta.errors import InvalidArgument, NoQuorum, StoreError, Unavailable
from objmeta.rpc import wire
from objmeta.rpc.options import ask_blocking

_READY_TIMEOUT_S: Final = 20.0
_POLL_S: Final = 0.02
_HELLO_TIMEOUT_S: Final = 1.0
_STOP_GRACE_S: Final = 5.0
_PORTS_FROM: Final = 20_000
_PORTS_EACH: Final = 64
_RANGES: Final = 190
_TURNS: Final = itertools.count()


class LocalCluster:
    """Nodes 1 to ``nodes``, each a process with a directory ``node-N`` below ``directory`` (data and log).

    ``command`` starts a node and is given ``--data``, ``--listen``, ``--node-id`` and ``--peers`` (or ``--join``).  As
    a context manager it starts all nodes, waits until they serve, and stops them at the end.  :meth:`start` of any
    other id starts an empty node that is to join; it serves when the members have been changed.
    """

    def __init__(self, directory: Path, nodes: int = 3, command: Sequence[str] | None = None) -> None:
        if nodes < 1:
            raise InvalidArgument("a cluster has at least one node")
        self.directory = directory
        self.node_ids = tuple(range(1, nodes + 1))
        self._command = tuple(command or (sys.executable, "-m", "objmeta.node"))
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._addresses = dict(zip(self.node_ids, _free_addresses(nodes), strict=True))
        self._first = self._addresses.copy()

    @property
    def endpoints(self) -> tuple[str, ...]:
        """``host:port`` of every node, in order of node id."""
        return tuple(self._addresses.values())

    def endpoint(self, node_id: int) -> str:
        """``host:port`` of one node."""
        return self._addresses[node_id]

    def pid(self, node_id: int) -> int | None:
        """The process id of a node, None if it does not run."""
        process = self._processes.get(node_id)
        return process.pid if process is not None and process.poll() is None else None

    def log(self, node_id: int) -> str:
        """What the node wrote to its log."""
        with contextlib.suppress(FileNotFoundError):
            return (self._home(node_id) / "log").read_text(errors="replace")
        return ""

    # -- All of them --------------------------------------------------------------------------------------------------

    def open(self, timeout_s: float = _READY_TIMEOUT_S) -> None:
        """Start all nodes and wait until they serve. Raises StoreError if one ends, NoQuorum if it takes too long."""
        try:
            for node_id in self.node_ids:
                self.start(node_id)
            self.wait_ready(timeout_s=timeout_s)
        except BaseException:
            self.close()
            raise

    def wait_ready(self, node_ids: Sequence[int] = (), timeout_s: float = _READY_TIMEOUT_S) -> None:
        """Wait until these nodes (all, if none are named) take operations."""
        deadline = time.monotonic() + timeout_s
        for node_id in node_ids or self.node_ids:
            while not self._serves(node_id):
                process = self._processes.get(node_id)
                if process is None or process.poll() is not None:
                    raise StoreError(f"node {node_id} has ended: {self._last_words(node_id)}")
                if time.monotonic() > deadline:
                    raise NoQuorum(
                        f"node {node_id} did not get ready within {timeout_s:g} s; see {self._home(node_id)}/log"
                    )
                time.sleep(_POLL_S)

    def wait_up(self, node_id: int, timeout_s: float = _READY_TIMEOUT_S) -> None:
        """Wait until a node answers, whether it takes operations or not. Raises StoreError if it ends, NoQuorum."""
        deadline = time.monotonic() + timeout_s
        while self._hello(node_id) is None:
            process = self._processes.get(node_id)
            if process is None or process.poll() is not None:
                raise StoreError(f"node {node_id} has ended: {self._last_words(node_id)}")
            if time.monotonic() > deadline:
                raise NoQuorum(f"node {node_id} did not answer within {timeout_s:g} s; see {self._home(node_id)}/log")
            time.sleep(_POLL_S)

    def close(self, grace_s: float = _STOP_GRACE_S) -> None:
        """Stop all nodes: SIGTERM, and SIGKILL for those still there after ``grace_s``. Idempotent."""
        for process in self._processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)  # one that is paused would not hear the next
                process.terminate()
        deadline = time.monotonic() + grace_s
        for process in self._processes.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- One of them --------------------------------------------------------------------------------------------------

    def start(self, node_id: int) -> None:
        """Start a node that does not run; :meth:`wait_ready` waits for it, :meth:`wait_up` for one that is to join."""
        if self.pid(node_id) is not None:
            raise InvalidArgument(f"node {node_id} runs already")
        home = self._home(node_id)
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        if node_id not in self._addresses:
            (self._addresses[node_id],) = _free_addresses(1)
        arguments = ["--data", str(home / "data"), "--listen", self._addresses[node_id], "--node-id", str(node_id)]
        if node_id in self._first:
            arguments += ["--peers", ",".join(f"{peer}={address}" for peer, address in self._first.items())]
        else:
            others = (address for peer, address in self._addresses.items() if peer != node_id)
            arguments += ["--join", ",".join(others)]
        with (home / "log").open("ab") as log:
            self._processes[node_id] = subprocess.Popen(
                [*self._command, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def kill(self, node_id: int) -> None:
        """SIGKILL: no goodbye, nothing flushed."""
        process = self._processes.pop(node_id)
        process.kill()
        process.wait()

    def stop(self, node_id: int, grace_s: float = _STOP_GRACE_S) -> int:
        """SIGTERM; the exit status. SIGKILL after ``grace_s``."""
        process = self._processes.pop(node_id)
        process.terminate()
        try:
            return process.wait(grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def pause(self, node_id: int) -> None:
        """SIGSTOP: the node is there and silent."""
        self._processes[node_id].send_signal(signal.SIGSTOP)

    def resume(self, node_id: int) -> None:
        """SIGCONT."""
        self._processes[node_id].send_signal(signal.SIGCONT)

    # -- Helpers ------------------------------------------------------------------------------------------------------

    def _home(self, node_id: int) -> Path:
        return self.directory / f"node-{node_id}"

    def _serves(self, node_id: int) -> bool:
        hello = self._hello(node_id)
        return hello is not None and hello.serving

    def _hello(self, node_id: int) -> wire.Hello | None:
        hello = wire.path(wire.PEER_SERVICE, wire.HELLO)
        try:
            return wire.decode_hello(ask_blocking(self._addresses[node_id], hello, b"", _HELLO_TIMEOUT_S))
        except Unavailable:
            return None

    def _last_words(self, node_id: int) -> str:
        lines = self.log(node_id).strip().splitlines()
        return lines[-1] if lines else f"it left no word in {self._home(node_id)}/log"


def _free_addresses(count: int) -> list[str]:
    """Addresses nobody listens on.

    A node takes its port a while after it was found free.  So they come from a range that other processes which look
    at the same moment do not use, below the one from which connections are given theirs, and each in its turn.
    """
    first = _PORTS_FROM + os.getpid() % _RANGES * _PORTS_EACH
    found: list[str] = []
    for turn in itertools.islice(_TURNS, _PORTS_EACH):
        if len(found) == count:
            break
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", first + turn % _PORTS_EACH)) as listener:
            found.append(f"127.0.0.1:{listener.getsockname()[1]}")
    if len(found) < count:
        last = first + _PORTS_EACH - 1
        raise Unavailable(f"of the ports {first} to {last} not {count} are free: stop what holds them")
    return found
