"""Listings from a quorum: asks the acceptors for a page, merges, and settles what they disagree on (core.listing)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from objmeta.core.ballot import ZERO
from objmeta.core.listing import (
    NamedRecord,
    ScanAnswer,
    ScanRequest,
    ScanRow,
    common_prefix,
    decode_records,
    decode_rows,
    encode_records,
    encode_rows,
    merge,
    successor,
)
from objmeta.core.messages import LIVE, RecordRef, State
from objmeta.errors import ConfigurationMismatch, IntegrityError, NoQuorum, StoreError, Unavailable
from objmeta.interfaces import ScanPage
from objmeta.register.asking import gather, meet
from objmeta.register.following import BEGINNING_LINGER_S

if TYPE_CHECKING:
    from objmeta.register.engine import Engine

_FALLBACK_PAGE_ROWS = 256
_RETRY_S = 0.05


class Scanner:
    """Pages for one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def page(self, request: ScanRequest, deadline: float) -> ScanPage:
        """One decided page."""
        answers = await self._ask(request, deadline)
        merged = merge(request, answers, self._engine.quorums)
        covering = tuple(sorted(answers)) if request.covering else ()
        if merged.rows is not None and not request.with_records:
            return ScanPage(merged.rows, merged.horizon, covering=covering)
        records = next(iter(answers.values())).records
        if merged.rows is not None and all(answer.records == records for answer in answers.values()):
            return ScanPage(merged.rows, merged.horizon, records, covering)
        rows = {row.name: row for row in (decode_rows(merged.rows) if merged.rows is not None else merged.decided)}
        if merged.open:
            look = self._engine.settle if request.settle or request.covering else self._engine.read
            states = await look(merged.open, deadline - self._engine.loop.time(), request.fence)
            for name, state in zip(merged.open, states, strict=True):
                if state is not None:
                    rows[name] = ScanRow(name, ZERO, state)
        if request.delimiter:
            await self._settle_prefixes(request, merged.witnesses, rows, deadline)
        ordered = [rows[name] for name in sorted(rows)]
        following = merged.horizon
        if len(ordered) > request.limit:  # each answer keeps to the limit, what they say together may exceed it
            following = ordered[request.limit].name
            del ordered[request.limit :]
        if not request.with_records:
            return ScanPage(encode_rows(ordered), following, covering=covering)
        chains = await self._records(ordered, list(answers.values()), deadline)
        return ScanPage(encode_rows(ordered), following, encode_records(chains), covering)

    async def _ask(self, request: ScanRequest, deadline: float) -> dict[int, ScanAnswer]:
        """A quorum's answers, all under the configuration that is in force when this returns."""
        engine = self._engine
        while True:
            membership = engine.membership
            answers = await (self._ask_covering if request.covering else self._ask_all)(request, deadline)
            if engine.membership is membership and engine.quorums.is_quorum(answers):
                return answers
            if engine.loop.time() >= deadline:
                raise NoQuorum("no majority of the nodes answered the listing in time; try again")

    async def _ask_all(self, request: ScanRequest, deadline: float) -> dict[int, ScanAnswer]:
        """What answers until there is a quorum, or the configuration moves. Raises NoQuorum, StoreError."""
        engine = self._engine
        tasks = {
            asyncio.ensure_future(self._ask_one(acceptor, request, deadline)): acceptor
            for acceptor in engine.quorums.members
        }
        answers: dict[int, ScanAnswer] = {}
        pending = set(tasks)
        moved = engine.moved
        failed: StoreError | None = None
        try:
            while pending and not engine.quorums.is_quorum(answers):
                ends: list[asyncio.Future[Any]] = [*pending, moved]
                done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                if moved.done():
                    return {}
                pending.difference_update(done)
                for task in sorted((task for task in tasks if task in done), key=lambda task: tasks[task]):
                    if task.cancelled():
                        continue  # by the transport, when a connection broke
                    try:
                        answers[tasks[task]] = task.result()
                    except Unavailable:
                        continue
                    except StoreError as failure:  # of one acceptor; the others may do
                        failed = failure
        finally:
            for task in pending:
                task.cancel()
        if engine.quorums.is_quorum(answers):
            return answers
        if failed is not None:
            raise failed
        raise NoQuorum("no majority of the nodes answered the listing in time; try again")

    async def _ask_covering(self, request: ScanRequest, deadline: float) -> dict[int, ScanAnswer]:
        """What those answer who are to be covered: all of them, unless some make a quorum and the rest is late."""
        engine = self._engine

        async def ask_one(acceptor: int) -> ScanAnswer | None:
            try:
                return await self._ask_one(acceptor, request, deadline)
            except StoreError:
                return None

        members = set(engine.quorums.members)
        covering = members.intersection(request.covering)
        if not engine.quorums.is_quorum(covering):
            raise NoQuorum("too few of the nodes that were followed are left: read everything anew")
        questions = {acceptor: ask_one(acceptor) for acceptor in covering}

        def enough(answers: dict[int, ScanAnswer]) -> bool:
            return engine.quorums.is_quorum(answers)

        membership = engine.membership
        answers = await gather(questions, enough, BEGINNING_LINGER_S)
        if engine.membership is membership and not enough(answers):
            raise NoQuorum("no majority of the nodes that were followed answered in time; try again")
        return answers

    async def _ask_one(self, acceptor: int, request: ScanRequest, deadline: float) -> ScanAnswer:
        """One acceptor's page, asked for again while it cannot be reached or is in another configuration.

        Raises Unavailable at the deadline, and ConfigurationMismatch from an acceptor of another store.
        """
        engine = self._engine
        while True:
            patience_s = min(engine.settings.round_timeout_s, deadline - engine.loop.time())
            late: Exception
            try:
                async with asyncio.timeout(patience_s):
                    return await engine.transport.scan(acceptor, request)
            except TimeoutError:
                late = NoQuorum(f"acceptor {acceptor} did not answer a listing in time")
            except Unavailable as unreachable:
                late = unreachable
            except ConfigurationMismatch as stranger:
                if not await meet(engine, acceptor):
                    raise
                late = NoQuorum(str(stranger))
            if engine.loop.time() + _RETRY_S >= deadline:
                raise late
            await asyncio.sleep(_RETRY_S)

    async def _settle_prefixes(
        self, request: ScanRequest, witnesses: Sequence[bytes], rows: dict[bytes, ScanRow], deadline: float
    ) -> None:
        """Replace the witnesses of each common prefix by one row that is settled live, if there is any."""
        groups: dict[bytes, list[bytes]] = {}
        for name in witnesses:
            prefix = common_prefix(name, request.delimiter, request.prefix_length)
            assert prefix is not None, "a witness stands for a common prefix"
            groups.setdefault(prefix, []).append(name)
        for prefix, names in groups.items():
            settled = [row for name in names if (row := rows.pop(name, None)) is not None]
            live = next((row for row in settled if row.state.flag == LIVE), None)
            if live is None:
                live = await self._first_live(request, prefix, deadline)
            if live is not None:
                rows[live.name] = msgspec.structs.replace(live, witness=True)

    async def _first_live(self, request: ScanRequest, prefix: bytes, deadline: float) -> ScanRow | None:
        """No witness settled live, which proves nothing: look through the prefix itself."""
        start, end = prefix, successor(prefix)
        while True:
            page = await self.page(ScanRequest(start, end, _FALLBACK_PAGE_ROWS, fence=request.fence), deadline)
            for row in decode_rows(page.rows):
                if row.state.flag == LIVE:
                    return row
            if not page.next:
                return None
            start = page.next

    async def _records(
        self, rows: Sequence[ScanRow], answers: Sequence[ScanAnswer], deadline: float
    ) -> list[NamedRecord]:
        """Every record on the chains of ``rows``; what the answers lack (a name settled later) is fetched."""
        held: dict[bytes, dict[RecordRef, NamedRecord]] = {}
        for answer in answers:
            for named in decode_records(answer.records):
                held.setdefault(named.name, {})[named.record.ref] = named
        chains: list[NamedRecord] = []
        for row in rows:
            chains.extend(await self._chain(row.name, row.state, held.get(row.name, {}), deadline))
        return chains

    async def _chain(
        self, name: bytes, state: State, held: dict[RecordRef, NamedRecord], deadline: float
    ) -> list[NamedRecord]:
        chain: list[NamedRecord] = []
        cursor = state.refs[-1] if state.refs else None
        while cursor is not None:
            named = held.get(cursor)
            if named is None:
                timeout_s = deadline - self._engine.loop.time()
                try:
                    (record,) = await self._engine.records(name, (cursor,), timeout_s, with_data=False)
                except IntegrityError:
                    break  # below a tombstone it may be erased; who goes through the chain knows what must be there
                named = NamedRecord(name, record)
            chain.append(named)
            cursor = named.record.parent
        return chain
