"""The seams of objmeta: what one layer may expect of another, and what the simulator swaps.

Time is the running event loop's (``loop.time()``, ``loop.call_later``), so the simulator brings a loop of its own with
virtual time; wall-clock time, for people only, and randomness are passed in as values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from objmeta.core.configuration import Configuration, ConfigurationTag, Membership
from objmeta.core.inventory import ChangesRequest, DigestRequest, Digests, Inventory, InventoryRequest
from objmeta.core.listing import ScanAnswer, ScanRequest
from objmeta.core.messages import Fence, Record, RecordRef, Reply, Request, State

WallClock = Callable[[], int]
"""Microseconds since the epoch, for times shown to people; never used for order."""

Envelope = tuple[ConfigurationTag, Request]
"""A request with the configuration its sender believes in."""


class Changes(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Answer to :meth:`AcceptorStore.changes`.

    ``names`` are registers whose state changed after ``since``, oldest change first, each once; ``watermark`` is the
    number to pass next time.  ``reload`` true means that ``since`` is too old (or from another store's life) and that
    everything must be read anew.  ``newest`` is the number of the last change there is, and ``epoch`` that of the
    acceptor's configuration, both at the same instant.
    """

    names: tuple[bytes, ...]
    watermark: int
    reload: bool = False
    newest: int = 0
    epoch: int = 0


class AcceptorStore(Protocol):
    """The durable state of one acceptor.

    Durability contract.  When :meth:`apply` returns, everything its replies depend on survives ``kill -9`` and loss of
    power: rows, records and floors written by a step are durable together, or the step did not happen.  When it raises,
    no step of the batch happened.  A batch costs one sync however long it is.  :meth:`read` and :meth:`scan` see only
    durable state, each call one snapshot.  Names are ordered as bytes.

    ``apply`` is called by one thread at a time; ``read``, ``scan``, ``changes`` and ``count`` may run beside it, in
    another thread.  A request under another configuration is answered by a refusal with reason CONFIGURATION.

    Raises: :class:`~objmeta.errors.StoreFull` when the disk is full; :class:`~objmeta.errors.StoreError` for any other
    failure of the disk; both name the path.  ``apply`` raises :class:`~objmeta.errors.UnknownOutcome` if a commit
    failed so that nobody can say whether it will be there after a crash; its requests must then stay unanswered.
    """

    @property
    def acceptor_id(self) -> int:
        """Which member of the configuration this is."""
        ...

    @property
    def configuration(self) -> Configuration:
        """The configuration stored here."""
        ...

    @property
    def membership(self) -> Membership:
        """The same with the members' addresses, as far as they were handed out."""
        ...

    def apply(self, batch: Sequence[Envelope]) -> list[Reply]:
        """Run the steps in order and make them durable together; one reply for each."""
        ...

    def read(self, batch: Sequence[Envelope]) -> list[Reply]:
        """Answer ``Read`` and ``Fetch`` requests, which change nothing and need no sync."""
        ...

    def scan(self, tag: ConfigurationTag, request: ScanRequest) -> ScanAnswer:
        """One page of registers that have an accepted value.

        Raises :class:`~objmeta.errors.ConfigurationMismatch` if ``tag`` is not this store's, and
        :class:`~objmeta.errors.Unavailable` if the request's ``settle`` wants a term that was not raised here yet.
        """
        ...

    def inventory(self, tag: ConfigurationTag, request: InventoryRequest) -> Inventory:
        """One page of all registers held, promise-only rows included. Raises ConfigurationMismatch."""
        ...

    def digests(self, tag: ConfigurationTag, request: DigestRequest) -> Digests:
        """Digests of ranges of registers. Raises ConfigurationMismatch."""
        ...

    def changes(self, since: int, limit: int) -> Changes:
        """Names of at most ``limit`` registers changed after change number ``since``."""
        ...

    def count(self) -> int:
        """How many registers there are, promise-only rows included; may read through all of them."""
        ...

    def tidy(self) -> None:
        """Give the disk back what erased registers leave behind, if that is much; other calls go on meanwhile."""
        ...

    def close(self) -> None:
        """Release files; the store can be opened again."""
        ...


OnReply = Callable[[int, Reply], None]
"""Called with (acceptor id, reply), on the event loop, at most once per request sent; perhaps never."""

OnReplies = Callable[[int, Sequence[tuple[int, Reply]]], None]
"""Called with (acceptor id, replies), each with the place of its request among those sent together: once with all of
them, or with some at a time; perhaps never."""


class Transport(Protocol):
    """How a proposer reaches acceptors. Messages may be lost, delayed, reordered; a lost one is never answered."""

    def send(self, acceptor: int, request: Request, on_reply: OnReply) -> None:
        """Queue a request; returns at once and never raises. What queues up travels together."""
        ...

    def send_all(self, acceptor: int, requests: Sequence[Request], on_replies: OnReplies) -> None:
        """Queue requests, all of which write or none, that had better be carried out and answered together."""
        ...

    async def scan(self, acceptor: int, request: ScanRequest) -> ScanAnswer:
        """Ask one acceptor for a page.

        Raises :class:`~objmeta.errors.Unavailable` if it cannot be reached and
        :class:`~objmeta.errors.ConfigurationMismatch` if it refuses.
        """
        ...

    async def inventory(self, acceptor: int, request: InventoryRequest) -> Inventory:
        """Ask one acceptor what it holds. Raises as :meth:`scan` does."""
        ...

    async def digests(self, acceptor: int, request: DigestRequest) -> Digests:
        """Ask one acceptor for digests of ranges. Raises as :meth:`scan` does."""
        ...

    async def changes(self, acceptor: int, request: ChangesRequest) -> Changes:
        """Ask one acceptor what changed there. Raises as :meth:`scan` does."""
        ...

    def adopt(self, membership: Membership) -> None:
        """From now on speak under this configuration and reach these members; what is queued still is lost."""
        ...


class ChangeRequest(msgspec.Struct, frozen=True, gc=False):
    """A change of one register. ``change`` is a :class:`objmeta.core.change.Change`; to travel, a model change.

    ``generation`` is the one in which the operation began; 0: it begins now.  Whoever tries an operation again after it
    may have reached an acceptor states the same one.
    """

    name: bytes
    change: Any
    fence: Fence | None = None
    generation: int = 0


class ChangeReply(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What became of a change.

    ``code`` is empty when it took effect (or had nothing to do), else why it did not: a stable word from
    ``objmeta.model.changes``.  ``state`` is the chosen state after it; ``record`` the record it wrote, without data
    (``state`` is None when it was found to have taken effect earlier and other changes followed).  ``proposed`` says of
    a change that was refused for its term that it may have reached some acceptor before, and ``generation`` which one
    it stated.
    """

    code: str
    state: State | None
    record: Record | None = None
    proposed: bool = False
    generation: int = 0


class ScanPage(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A decided page: ``rows`` is an encoded ``list[ScanRow]``, ``next`` where to go on (empty: done).

    ``covering`` says which of the acceptors that the request's ``covering`` named have answered.
    """

    rows: bytes
    next: bytes
    records: bytes = b"\x90"
    covering: tuple[int, ...] = ()


class Watermarks(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How far somebody has followed the changes of a store: for each acceptor (by its id) the number of the last one.

    They mean something only to the acceptors of this store, and under the configuration of this epoch.
    """

    store_id: bytes
    epoch: int
    marks: tuple[tuple[int, int], ...]


class ChangedNames(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Answer to :meth:`Registers.changes`.

    ``marks`` has those acceptors that answered, a quorum; ``names`` is what they list, in order.  ``more``: one of them
    has more to list.  ``reload``: what changed is not known any more, so read everything; ``marks`` is where to go on.
    """

    names: tuple[bytes, ...]
    marks: Watermarks
    more: bool = False
    reload: bool = False


class RepairStatus(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How far a node's acceptor has caught up with the others: of the pass that is running, or of the last one.

    ``compared`` registers were compared with the ``peers`` ("comparing", "compared" or "unreachable" each),
    ``repaired`` of them mended, by ``records`` records and what else they lacked; ``left`` could not be mended yet.
    ``complete_s`` is how many seconds ago a pass left nothing undone at any peer; None: not since the node's start.
    """

    running: bool = False
    compared: int = 0
    repaired: int = 0
    records: int = 0
    left: int = 0
    running_s: float = 0.0
    complete_s: float | None = None
    passes: int = 0
    problem: str = ""
    peers: tuple[tuple[int, str], ...] = ()


class NodeStatus(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One acceptor as seen by who was asked. ``state`` is "up", "down" or "refused"; the rest 0 or "" if unknown."""

    node_id: int
    address: str
    state: str
    detail: str = ""
    version: str = ""
    registers: int = 0
    changes: int = 0
    disk_free: int = 0
    uptime_s: float = 0.0
    repair: RepairStatus | None = None


class ChangeProgress(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How far a change of members has come: who coordinates it, what it does, and what it waits for, in words.

    ``names`` registers have been settled so far, ``records`` sent beside those that travel with them.
    """

    coordinator: int
    phase: str
    names: int = 0
    records: int = 0
    problem: str = ""


class MembersStatus(msgspec.Struct, frozen=True, array_like=True):
    """Who the members are, what is known of them, and the change under way, if somebody works on one."""

    membership: Membership
    nodes: tuple[NodeStatus, ...]
    change: ChangeProgress | None = None

    @property
    def quorum(self) -> bool:
        """Whether the nodes that are up are a quorum."""
        up = {node.node_id for node in self.nodes if node.state == "up"}
        return self.membership.configuration.quorums.is_quorum(up)


class StoreStatus(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The store as a whole."""

    store_id: bytes
    epoch: int
    nodes: tuple[NodeStatus, ...]
    quorum: bool


class Collected(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How far a run of the collector has come (:meth:`Registers.collect`).

    ``run`` names it where it runs; ``done`` says that it is over.  ``erased`` registers were erased, ``left`` that were
    to be erased are still there (in use again, or somebody did not answer), and ``unreachable`` are the nodes without
    which nothing more can be erased.  ``problem`` says in words what else kept it from its work.
    """

    run: int
    done: bool
    erased: int = 0
    left: int = 0
    unreachable: tuple[int, ...] = ()
    problem: str = ""


class Cycle(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A cycle of the collector of chunks (:meth:`Registers.begin_cycle`).

    ``generation`` has begun; operations begun below ``floor`` are refused by every acceptor of the configuration of
    ``epoch``, which is not joint, and by whoever joins them later.
    """

    generation: int
    floor: int
    epoch: int


class Registers(Protocol):
    """Linearizable registers and their records, wherever the proposer is: in this process or on a node.

    Every method raises :class:`~objmeta.errors.NoQuorum` when no majority answered in time and nothing was changed,
    and ``change`` and ``raise_term`` raise :class:`~objmeta.errors.UnknownOutcome` when the change may yet apply.
    """

    async def read(self, names: Sequence[bytes], timeout_s: float, fence: Fence | None = None) -> list[State | None]:
        """The chosen states, in the order of ``names``, each linearizable by itself.

        What has to be written back states ``fence``; raises :class:`~objmeta.errors.Fenced` if its term is over.
        """
        ...

    async def change(self, request: ChangeRequest, timeout_s: float) -> ChangeReply:
        """Apply a change exactly once."""
        ...

    async def records(
        self, name: bytes, refs: Sequence[RecordRef], timeout_s: float, with_data: bool = True
    ) -> list[Record]:
        """Fetch records that a chosen state names, in order. Raises IntegrityError if one is nowhere or damaged."""
        ...

    async def scan(self, request: ScanRequest, timeout_s: float) -> ScanPage:
        """A page of registers; everything chosen before the call began is in it."""
        ...

    async def changes(self, since: Watermarks | None, limit: int, timeout_s: float) -> ChangedNames:
        """The registers that changed, at up to ``limit`` changes of each acceptor (``register.following``).

        They are not read yet: a scan of them that states ``covering`` makes sure that what was listed once need not be
        listed again.  Without ``since``, where to begin.
        """
        ...

    async def raise_term(self, scope: bytes, term: int, timeout_s: float) -> None:
        """Raise a scope's floor on a majority."""
        ...

    async def status(self, timeout_s: float) -> StoreStatus:
        """Who is up. Answers also when there is no quorum."""
        ...

    async def collect(self, run: int, timeout_s: float) -> Collected:
        """Erase what can be erased now, for up to ``timeout_s`` seconds; how far that has come by then.

        ``run`` is 0 to begin, or to join whoever is at it, and then what the last answer named, until one is done.
        """
        ...

    async def begin_cycle(self, timeout_s: float) -> Cycle:
        """Have a generation begun, and the one before it made the floor at all acceptors.

        Raises NoQuorum if one of them did not confirm it, naming it, or while members change; nothing is lost then.
        """
        ...

    async def close(self) -> None:
        """Release connections and threads."""
        ...
