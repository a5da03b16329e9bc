"""An acceptor store behind an event loop: what arrives while a commit runs shares the next one (group commit).

Rules.  One thread applies batches, another one reads; both only wait, never poll.  What is submitted during one turn of
the loop is handed over together, at the end of the turn.  All replies of a commit are delivered on the loop by one
callback, in the order of their requests, and never before the commit is durable.  A store that fails answers every
request of the batch with a refusal (reason FAILED); where not even that is certain, nobody is answered, as if the
messages were lost.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from objmeta.core.configuration import ConfigurationTag
from objmeta.core.inventory import DigestRequest, Digests, Inventory, InventoryRequest
from objmeta.core.listing import ScanAnswer, ScanRequest
from objmeta.core.messages import WRITES, Refusal, Refused, Reply, Request
from objmeta.errors import ForkedClient, IntegrityError, StoreError, UnknownOutcome
from objmeta.interfaces import AcceptorStore, Changes, Envelope
from objmeta.store.steps import refusal

BATCH_REQUESTS_MAX: Final = 1024
"""Longer batches gain nothing (a sync is shared by a thousand already) but delay the replies of all in them, and grow
the transaction: 1024 records with 8 KiB of data each are 8 MiB."""

NAMES_KEPT_MAX: Final = 10_000
"""Damaged registers remembered for whoever mends them; more are met again when they are read again."""

_Result = TypeVar("_Result")
_OnReply = Callable[[Reply], None]
_Submitted = tuple[Envelope, _OnReply]
_Job = Callable[[], None] | list[_Submitted] | None

_LOG: Final = logging.getLogger(__name__)


class Damage:
    """What was found damaged since the lane was made: for status, and for who mends."""

    def __init__(self) -> None:
        self.met = 0
        """Requests that met damage."""
        self.mended = 0
        """Registers that were mended since."""
        self.last = ""
        """What the last of them met, in words."""
        self._names: dict[bytes, None] = {}

    def saw(self, what: str, name: bytes | None = None) -> None:
        """A request met damage, of this register if it is one that matters."""
        if not self.met:
            _LOG.error("damage was found: %s", what)
        self.met += 1
        self.last = what
        if name is not None and len(self._names) < NAMES_KEPT_MAX:
            self._names[name] = None

    def take(self) -> list[bytes]:
        """The damaged registers not taken before, in order of name."""
        names, self._names = self._names, {}
        return sorted(names)

    def __str__(self) -> str:
        if not self.met:
            return ""
        return (
            f"damaged: {self.met} requests met what does not match its checksum, the last of them: {self.last}; it has "
            f"no vote until it is written again (registers mended so far: {self.mended}); if there is more and more of "
            "it, replace the disk"
        )


class Lane:
    """The asynchronous front of one :class:`~objmeta.interfaces.AcceptorStore`; belongs to one event loop.

    ``submit``, ``scan``, ``changes`` and ``close`` are called on that loop.  The store is not closed by the lane.
    """

    def __init__(self, store: AcceptorStore, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pid = os.getpid()
        self._closed = False
        self.damage = Damage()
        """What of the store was found damaged."""
        self._writer = _Worker(f"objmeta-apply-{store.acceptor_id}", loop, store.apply, self.damage)
        self._reader = _Worker(f"objmeta-read-{store.acceptor_id}", loop, store.read, self.damage)
        self._store = store
        # The threads hold no reference to the lane: they end also when it is dropped, and its loop with it, unclosed.
        weakref.finalize(self, _end, self._writer, self._reader).atexit = False
        self._writes: list[_Submitted] = []
        self._reads: list[_Submitted] = []

    def submit(self, tag: ConfigurationTag, request: Request, on_reply: Callable[[Reply], None]) -> None:
        """Queue a request; ``on_reply`` is called on the loop, at most once.

        After :meth:`close` a request is dropped, like a message to a node that has gone.  Raises ForkedClient in a
        forked child.
        """
        if self._closed:
            return
        self._begin_turn()
        (self._writes if isinstance(request, WRITES) else self._reads).append(((tag, request), on_reply))

    def submit_all(
        self, tag: ConfigurationTag, requests: Sequence[Request], on_replies: Callable[[list[Reply]], None]
    ) -> None:
        """Queue requests that go the same way, if any writes that of writes; ``on_replies`` is called with all replies,
        in order.

        It is called at most once, and only when every one of them has been answered.
        """
        replies: list[Reply] = []
        count = len(requests)

        def last(reply: Reply) -> None:
            replies.append(reply)
            if len(replies) == count:  # else a commit between them failed in a way that answers nobody
                on_replies(replies)

        if not requests or self._closed:
            return
        self._begin_turn()
        queue = self._writes if any(isinstance(request, WRITES) for request in requests) else self._reads
        queue.extend(((tag, request), replies.append) for request in requests[:-1])
        queue.append(((tag, requests[-1]), last))

    async def scan(self, tag: ConfigurationTag, request: ScanRequest) -> ScanAnswer:
        """One page. Raises ConfigurationMismatch and StoreError as the store does."""
        return await self._ask(lambda: self._store.scan(tag, request))

    async def inventory(self, tag: ConfigurationTag, request: InventoryRequest) -> Inventory:
        """One page of what is held. Raises ConfigurationMismatch and StoreError as the store does."""
        return await self._ask(lambda: self._store.inventory(tag, request))

    async def digests(self, tag: ConfigurationTag, request: DigestRequest) -> Digests:
        """Digests of ranges. Raises ConfigurationMismatch and StoreError as the store does."""
        return await self._ask(lambda: self._store.digests(tag, request))

    async def changes(self, since: int, limit: int) -> Changes:
        """As :meth:`objmeta.interfaces.AcceptorStore.changes`. Raises StoreError."""
        return await self._ask(lambda: self._store.changes(since, limit))

    async def count(self) -> int:
        """As :meth:`objmeta.interfaces.AcceptorStore.count`. Raises StoreError."""
        return await self._ask(self._store.count)

    async def close(self) -> None:
        """Finish what was submitted, answer it, and end both threads. Idempotent."""
        self._check_process()
        self._hand_over()
        self._closed = True
        await asyncio.gather(self._writer.finish(), self._reader.finish())

    def _begin_turn(self) -> None:
        if not self._writes and not self._reads:
            self._check_process()
            self._loop.call_soon(self._hand_over)

    def _hand_over(self) -> None:
        writes, self._writes = self._writes, []
        reads, self._reads = self._reads, []
        self._writer.put(writes)
        self._reader.put(reads)

    async def _ask(self, question: Callable[[], _Result]) -> _Result:
        self._check_process()
        if self._closed:
            raise StoreError("the store is closed: open it again")
        answer: asyncio.Future[_Result] = self._loop.create_future()

        def settle(result: _Result | None, error: Exception | None) -> None:
            if isinstance(error, IntegrityError):
                self.damage.saw(str(error))
            if answer.done():  # cancelled meanwhile
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)  # type: ignore[arg-type]

        def job() -> None:
            try:
                result = question()
            except Exception as error:
                _call_on(self._loop, settle, None, error)
            else:
                _call_on(self._loop, settle, result, None)

        self._reader.put_job(job)
        return await answer

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise ForkedClient("this store belongs to the parent process: open it again in the forked child")


class _Worker:
    """One thread that runs jobs and batches in the order they come, joining batches that wait."""

    def __init__(
        self,
        name: str,
        loop: asyncio.AbstractEventLoop,
        apply: Callable[[Sequence[Envelope]], list[Reply]],
        damage: Damage,
    ) -> None:
        self._loop = loop
        self._damage = damage
        self._apply = apply
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._finished: asyncio.Future[None] = loop.create_future()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, submitted: list[_Submitted]) -> None:
        for at in range(0, len(submitted), BATCH_REQUESTS_MAX):
            self._jobs.put(submitted[at : at + BATCH_REQUESTS_MAX])

    def put_job(self, job: Callable[[], None]) -> None:
        self._jobs.put(job)

    def end(self) -> None:
        self._jobs.put(None)

    async def finish(self) -> None:
        self.end()
        await asyncio.shield(self._finished)
        self._thread.join()

    def _run(self) -> None:
        job = self._jobs.get()
        while job is not None:
            if isinstance(job, list):
                batch, job = self._join(job)
                self._answer(batch)
                del batch  # whoever asked for it may be what holds the lane, and is not kept while nothing comes
            else:
                job()
                job = _NOTHING
            if job is _NOTHING:
                job = self._jobs.get()
        _call_on(self._loop, self._settle_finished)

    def _join(self, batch: list[_Submitted]) -> tuple[list[_Submitted], _Job]:
        """``batch`` with whatever waits and fits, and the job that comes after it (``_NOTHING`` if none waits)."""
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return batch, _NOTHING
            if not isinstance(job, list) or len(batch) + len(job) > BATCH_REQUESTS_MAX:
                return batch, job
            batch += job

    def _answer(self, batch: list[_Submitted]) -> None:
        envelopes = [envelope for envelope, _ in batch]
        try:
            replies = self._apply(envelopes)
        except UnknownOutcome:
            _LOG.exception("a commit may or may not be durable; its %d requests stay unanswered", len(batch))
            return
        except Exception as error:
            if not isinstance(error, StoreError):
                _LOG.exception("a batch of %d requests failed", len(batch))
            kind = error.kind if isinstance(error, StoreError) else StoreError.kind
            detail = f"{kind}: {str(error) or type(error).__name__}"
            replies = [refusal(request, Refusal.FAILED, detail) for _, request in envelopes]
        _call_on(self._loop, _deliver, batch, replies, self._damage)

    def _settle_finished(self) -> None:
        if not self._finished.done():
            self._finished.set_result(None)


def _end(*workers: _Worker) -> None:
    for worker in workers:
        worker.end()


def _nothing() -> None: ...


_NOTHING: Final[_Job] = _nothing


def _deliver(batch: list[_Submitted], replies: list[Reply], damage: Damage) -> None:
    for ((_, request), on_reply), reply in zip(batch, replies, strict=True):
        if isinstance(reply, Refused) and reply.reason is Refusal.DAMAGED:
            damage.saw(reply.detail.partition(": ")[2], getattr(request, "name", None))
        try:
            on_reply(reply)
        except Exception:  # one receiver's mistake must not cost the others their replies
            _LOG.exception("a receiver of a reply failed")


def _call_on(loop: asyncio.AbstractEventLoop, callback: Callable[..., None], *args: object) -> None:
    try:
        loop.call_soon_threadsafe(callback, *args)
    except RuntimeError:
        if not loop.is_closed():
            raise
