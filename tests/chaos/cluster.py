"""The processes: nodes behind their proxies, and clients.

Rules.  Every process is ended by its own id, and dies with this one where ``setpriv`` is there to say so.  A node that
ends by itself is noted and started again, as by a service manager.  It must not, but for two reasons: it is no member
any more, or was wiped, and says so; or it could not begin because its disk is full.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from objmeta.errors import NoQuorum, StoreError, Unavailable
from objmeta.rpc import wire
from objmeta.rpc.peer import ask
from tests.chaos.disks import Disk, LimitedFiles, MemoryDisk
from tests.chaos.proxy import Network

_READY_TIMEOUT_S: Final = 60.0
_HELLO_TIMEOUT_S: Final = 5.0
_POLL_S: Final = 0.05
_STOP_GRACE_S: Final = 5.0

Note = Callable[[str], None]


@dataclass
class Node:
    """One node; ``process`` is None while it is meant to be down."""

    id: int
    home: Path
    listen: str
    address: str
    """Of its proxy: how everybody else knows it."""
    disk: Disk
    options: Sequence[str] = ()
    """How it finds the others."""
    process: subprocess.Popen[bytes] | None = None
    lent: bool = False
    is_full: bool = False
    """Whether its disk has no room at the moment."""
    has_met_full: bool = False
    """Whether its disk had none at any time of its process."""
    may_end: tuple[str, ...] = ()
    """What it says when it is right to end by itself, for good."""
    log_begin: int = 0
    """Where in its log the words of its process begin."""

    @property
    def name(self) -> str:
        """What it is called on the network."""
        return f"node {self.id}"

    @property
    def pid(self) -> int | None:
        """Of its process, if it runs."""
        return self.process.pid if self.process is not None and self.process.poll() is None else None

    @property
    def log(self) -> Path:
        """Where its words go."""
        return self.home / "log"

    def words(self) -> str:
        """What its process has said."""
        with contextlib.suppress(FileNotFoundError):
            return self.log.read_bytes()[self.log_begin :].decode(errors="replace")
        return ""

    def fill(self) -> None:
        """Leave no room on its disk."""
        assert self.pid is not None, "what may be written is a matter of the process, on some disks"
        self.is_full = self.has_met_full = True
        self.disk.fill(self.pid)

    def free(self) -> None:
        """Make room again."""
        self.disk.free(self.pid)
        self.is_full = False


@dataclass(frozen=True)
class Change:
    """A change of the members: what ``gateway cluster`` is to be told, and which nodes come and go."""

    command: Sequence[str]
    added: Node | None = None
    removed: Node | None = None

    def fits(self, members: Collection[int]) -> bool:
        """Whether it has been made."""
        comes = self.added is None or self.added.id in members
        return comes and (self.removed is None or self.removed.id not in members)


class Cluster:
    """Nodes and clients on this machine. Belongs to one event loop; :meth:`close` must be awaited."""

    def __init__(self, directory: Path, memory_disks: bool, note: Note) -> None:
        self.directory = directory
        self.network = Network(self._parties)
        self.nodes: dict[int, Node] = {}
        self.clients: dict[int, subprocess.Popen[bytes]] = {}
        """By the number of their first client."""
        self.problems: list[str] = []
        """What processes did that they must not."""
        self.change: Change | None = None
        """The change of the members that is under way."""
        self.changes = 0
        """How many were made."""
        self._memory_disks = memory_disks
        self._made = 0
        self._note = note
        self._watching: asyncio.Task[None] | None = None

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Proxies of all nodes."""
        return tuple(node.address for node in self.nodes.values())

    # -- Nodes --------------------------------------------------------------------------------------------------------

    async def open(self, nodes: int) -> None:
        """Make and start nodes 1 to ``nodes``; return when they serve. Raises StoreError, NoQuorum if they do not."""
        for _ in range(nodes):
            await self._make()
        peers = ",".join(f"{node.id}={node.address}" for node in self.nodes.values())
        for node in self.nodes.values():
            node.options = ["--peers", peers]
            self.start(node)
        await self._ready()
        self._watching = asyncio.create_task(self._watch())

    async def join(self) -> Node:
        """Make and start the next node, which waits to be let in by a change of the members."""
        members = ",".join(self.endpoints)
        node = await self._make()
        node.options = ["--join", members]
        self.start(node)
        return node

    async def leave(self, node: Node) -> None:
        """End a node that is no member any more, when nobody else does anything to it.

        Clients that are started from now on do not hear of it, and nodes neither.
        """
        while True:
            if not node.lent:
                break
            await asyncio.sleep(_POLL_S)
        node.lent = True
        try:
            await self.kill(node)
        finally:
            del self.nodes[node.id]
            for other in self.nodes.values():
                others = [known.address for known in self.nodes.values() if known is not other]
                other.options = ["--join", ",".join(others)] if others else []

    async def wipe(self, node: Node) -> None:
        """End a node and empty its directory."""
        await self.kill(node)
        shutil.rmtree(node.home / "disk" / "data")

    async def _make(self) -> Node:
        self._made += 1
        number = self._made
        home = self.directory / f"node-{number}"
        disk = (MemoryDisk if self._memory_disks else LimitedFiles)(home / "disk")
        port = _free_port()
        address = await self.network.serve(f"node {number}", "127.0.0.1", port)
        node = self.nodes[number] = Node(number, home, f"127.0.0.1:{port}", address, disk)
        return node

    def start(self, node: Node) -> None:
        """Start a node that does not run."""
        assert node.pid is None, f"{node.name} runs already"
        data = str(node.home / "disk" / "data")
        command = [*_dying_with_us(), sys.executable, "-m", "gateway", "serve", "--data", data]
        # What is cut off by a proxy must not have a way around it.
        command += ["--listen", node.listen, "--data-port", "none", "--node-id", str(node.id), *node.options]
        with node.log.open("ab") as log:
            node.log_begin, node.has_met_full = log.tell(), node.is_full
            node.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    async def kill(self, node: Node) -> None:
        """SIGKILL: no goodbye, nothing flushed."""
        await self._end(node, signal.SIGKILL)

    async def stop(self, node: Node) -> None:
        """SIGTERM."""
        await self._end(node, signal.SIGTERM)

    def send(self, node: Node, number: signal.Signals) -> None:
        """Send a signal to a node that runs."""
        if node.pid is not None and node.process is not None:
            node.process.send_signal(number)

    async def serves(self, node: Node) -> bool:
        """Whether a node takes operations; asked past its proxy."""
        hello = await self._hello(node)
        return hello is not None and hello.serving

    async def listens(self, node: Node) -> bool:
        """Whether a node has begun; asked past its proxy."""
        return await self._hello(node) is not None

    async def _hello(self, node: Node) -> wire.Hello | None:
        try:
            return await ask(node.listen, wire.HELLO, b"", wire.decode_hello, _HELLO_TIMEOUT_S)
        except Unavailable:
            return None

    @contextlib.asynccontextmanager
    async def lend(self, rng: random.Random) -> AsyncIterator[Node]:
        """A node that runs and that nobody else does anything to."""
        node: Node | None = None
        while node is None:
            free = [node for node in self.nodes.values() if not node.lent and node.pid is not None]
            if free:
                node = rng.choice(free)
            else:
                await asyncio.sleep(_POLL_S)
        node.lent = True
        try:
            yield node
        finally:
            node.lent = False

    async def gateway(self, *arguments: str, timeout_s: float = 30.0) -> tuple[int, str]:
        """Run the command line tool against the cluster; its exit code and all it said."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway", *arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OBJMETA_ENDPOINTS": ",".join(self.endpoints)},
        )
        try:
            async with asyncio.timeout(timeout_s):
                said, _ = await process.communicate()
            return await process.wait(), said.decode(errors="replace")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def _ready(self) -> None:
        async def serves(node: Node) -> bool:
            if node.pid is None:
                raise StoreError(f"{node.name} has ended: {node.words()}")
            return await self.serves(node)

        for node in self.nodes.values():
            await self.until(node, serves)

    async def until(self, node: Node, condition: Callable[[Node], Awaitable[bool]]) -> None:
        """Wait for a node. Raises NoQuorum if it takes too long."""
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                while True:
                    if await condition(node):
                        return
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise NoQuorum(f"{node.name} did not get ready within {_READY_TIMEOUT_S:g} s: {node.words()}") from None

    async def _end(self, node: Node, number: signal.Signals) -> None:
        process, node.process = node.process, None
        if process is not None:
            process.send_signal(number)
            await _gone(process, _STOP_GRACE_S)

    async def _watch(self) -> None:
        while True:
            for node in list(self.nodes.values()):
                process = node.process
                if process is not None and process.poll() is not None:
                    node.process = None
                    self._ended(node, process.returncode)
            await asyncio.sleep(_POLL_S)

    def _ended(self, node: Node, code: int) -> None:
        """A node has ended by itself."""
        words = node.words()
        if any(reason in words for reason in node.may_end):
            self._note(f"{node.name} has ended, as it should")
            return
        told = f"{node.name} ended by itself: code {code}, {' | '.join(words.splitlines()[-3:])}"
        self._note(told)
        could_not_begin = node.has_met_full and "is full" in words and "listens on" not in words
        if not could_not_begin:
            self.problems.append(told)
        self.start(node)

    # -- Clients ------------------------------------------------------------------------------------------------------

    def start_client(self, number: int, tasks: int, seed: int) -> None:
        """Start a process with clients ``number`` to ``number + tasks - 1``."""
        command = [*_dying_with_us(), sys.executable, "-m", "tests.chaos.clients", "--first", str(number)]
        command += ["--tasks", str(tasks), "--seed", str(seed), "--endpoints", ",".join(self.endpoints)]
        with (self.history(number)).open("ab") as history, (self.directory / "clients.log").open("ab") as log:
            self.clients[number] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=history, stderr=log)

    def kill_client(self, number: int) -> None:
        """SIGKILL a client process: what it had under way is never heard of again."""
        process = self.clients.pop(number)
        process.kill()
        process.wait()

    async def stop_clients(self, grace_s: float) -> list[int]:
        """Let all client processes finish what they have under way; their exit codes."""
        for process in self.clients.values():
            process.terminate()
        return [await _gone(process, grace_s) for process in self.clients.values()]

    def history(self, number: int) -> Path:
        """What the client process of that number noted down."""
        return self.directory / f"clients-{number}.jsonl"

    def histories(self) -> list[Path]:
        """Of all client processes so far."""
        return sorted(self.directory.glob("clients-*.jsonl"))

    # -- All ----------------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """End all processes."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        processes = [node.process for node in self.nodes.values() if node.process is not None]
        for process in (*processes, *self.clients.values()):
            process.kill()
        for process in (*processes, *self.clients.values()):
            process.wait()
        await self.network.close()

    def _parties(self) -> dict[int, str]:
        parties = {node.pid: node.name for node in self.nodes.values() if node.pid is not None}
        return parties | {process.pid: f"clients {number}" for number, process in self.clients.items()}


async def _gone(process: subprocess.Popen[bytes], grace_s: float) -> int:
    """Wait for the end of a process that was told to end; SIGKILL if it does not hear."""
    deadline = time.monotonic() + grace_s
    try:
        while process.poll() is None:
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(_POLL_S)
    finally:  # also when nobody waits for it any longer: what comes next needs it gone
        if process.poll() is None:
            process.kill()
        process.wait()
    return process.returncode


def _dying_with_us() -> list[str]:
    """Under which command a process is killed when this one ends, however it ends."""
    return ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
