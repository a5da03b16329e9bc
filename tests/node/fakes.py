"""A client service whose registers do what a test says, and helpers to wait for a condition."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any

from objmeta.core.configuration import Membership
from objmeta.core.listing import ScanRequest
from objmeta.core.messages import Fence, Record, RecordRef, State
from objmeta.errors import Conflict, Unavailable
from objmeta.interfaces import (
    ChangedNames,
    ChangeReply,
    ChangeRequest,
    Collected,
    Cycle,
    MembersStatus,
    Registers,
    ScanPage,
    StoreStatus,
    Watermarks,
)
from objmeta.model.changes import SetValue
from objmeta.register.together import Answered, Answers
from objmeta.rpc import wire
from objmeta.rpc.options import new_server
from objmeta.rpc.service import ClientService

OPERATION = bytes(15) + b"\x01"


def change(name: bytes = b"k/a") -> ChangeRequest:
    """A change that a model knows."""
    return ChangeRequest(name, SetValue(OPERATION, b"value"))


class FakeNode:
    """A node without acceptor: satisfies ``Door`` and ``Registers``.

    ``reply`` and ``error`` say what a change comes to; while ``hold`` is cleared, operations wait.
    """

    def __init__(self, node_id: int = 1, members: tuple[int, ...] = (1, 2)) -> None:
        self.node_id = node_id
        self.members = members
        self.reply = ChangeReply("", State(b"", ()))
        self.error: Exception | None = None
        self.open = True
        self.connected = True
        self.told: Membership | None = None
        self.newest = 1
        self.hold = asyncio.Event()
        self.hold.set()
        self.changes_made = 0
        self.reads = 0
        self.timeouts: list[float] = []
        self.runs: list[int] = []
        self.service = ClientService(self)

    # -- Door ---------------------------------------------------------------------------------------------------------

    def place(self) -> tuple[int, tuple[int, ...]]:
        return self.node_id, self.members

    def membership(self) -> Membership | None:
        return self.told

    async def members_status(self, brief: bool, timeout_s: float) -> MembersStatus:
        if self.told is None:
            raise Unavailable(f"node {self.node_id} is not ready")
        return MembersStatus(self.told, ())

    async def change_members(self, request: wire.ChangeMembers, timeout_s: float) -> Membership:
        raise Conflict("another change is under way")

    def registers(self) -> Registers:
        if not self.open:
            raise Unavailable(f"node {self.node_id} is not ready")
        return self

    def proposer(self, sent_on: bool) -> FakeNode:
        self.registers()
        return self

    def in_touch(self) -> bool:
        return self.connected

    def generation(self) -> int:
        return self.newest

    # -- Registers ----------------------------------------------------------------------------------------------------

    async def change(self, request: ChangeRequest, timeout_s: float) -> ChangeReply:
        self.changes_made += 1
        self.timeouts.append(timeout_s)
        await self.hold.wait()
        if self.error is not None:
            raise self.error
        return self.reply

    async def change_all(
        self, requests: Sequence[ChangeRequest], timeouts_s: Sequence[float], answered: Answered
    ) -> None:
        answers = Answers(len(requests), answered)
        for place, (request, timeout_s) in enumerate(zip(requests, timeouts_s, strict=True)):
            answers.work(place, self.change(request, timeout_s))
        await answers.wait()

    async def read(self, names: Sequence[bytes], timeout_s: float, fence: Fence | None = None) -> list[State | None]:
        self.reads += 1
        await self.hold.wait()
        if self.error is not None:
            raise self.error
        return [State(name, ()) for name in names]

    async def records(
        self, name: bytes, refs: Sequence[RecordRef], timeout_s: float, with_data: bool = True
    ) -> list[Record]:
        return [Record(ref, None, b"body") for ref in refs]

    async def scan(self, request: ScanRequest, timeout_s: float) -> ScanPage:
        return ScanPage(request.start, b"")

    async def changes(self, since: Watermarks | None, limit: int, timeout_s: float) -> ChangedNames:
        return ChangedNames((b"a",), since or Watermarks(b"s" * 16, 1, ((1, limit),)))

    async def raise_term(self, scope: bytes, term: int, timeout_s: float) -> None:
        if self.error is not None:
            raise self.error

    async def status(self, timeout_s: float) -> StoreStatus:
        return StoreStatus(b"s" * 16, 1, (), True)

    async def collect(self, run: int, timeout_s: float) -> Collected:
        self.runs.append(run)
        return Collected(run or 7, bool(run))

    async def begin_cycle(self, timeout_s: float) -> Cycle:
        return Cycle(3, 2, 1)

    async def close(self) -> None:
        """Nothing is held."""


class Served:
    """A fake node on a port."""

    def __init__(self, node: FakeNode) -> None:
        self.node = node
        self.endpoint = ""
        self._server: Any = None

    async def start(self, port: int = 0) -> None:
        self._server = new_server()
        self._server.add_generic_rpc_handlers((self.node.service.handler(),))
        self.endpoint = f"127.0.0.1:{self._server.add_insecure_port(f'127.0.0.1:{port}')}"
        await self._server.start()

    async def crash(self) -> None:
        """Break all connections, as a killed process does."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(None)


@asynccontextmanager
async def served(*nodes: FakeNode) -> AsyncIterator[list[Served]]:
    """Serve fake nodes until the end of the block."""
    servers = [Served(node) for node in nodes]
    try:
        for server in servers:
            await server.start()
        yield servers
    finally:
        for server in servers:
            server.node.hold.set()
            await server.crash()


@contextmanager
def silent_endpoint() -> Iterator[str]:
    """Somebody who takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def free_endpoints(count: int) -> list[str]:
    """Endpoints nobody listens on; held all at once, so that no two are the same."""
    with ExitStack() as held:
        listeners = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [f"127.0.0.1:{listener.getsockname()[1]}" for listener in listeners]


async def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.005)
