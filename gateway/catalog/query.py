"""SQL over a store: every bucket, object, version, chunk, node and copy as a table.

Rules.
* A query runs in a private DuckDB in memory (``database``) that is made for it, or for a session of several, and thrown
  away: it changes nothing in the store, and reaches neither files nor the network unless the caller says so.
* Buckets, objects, versions, chunks and changes come from a catalog that is kept (``kept``) and brought up to date by
  the store's change feed before every query.  So every change that finished before is in them, each object's versions
  are from one instant, and a query costs what has changed.  With ``live`` they come from the store itself (``live``).
* Other tables are filled for the query, if their names occur in it.  A name inside a string costs time; a table too few
  would be a wrong answer, so the text is searched for words rather than parsed.  For the same reason the tables that a
  view, macro or prepared statement of a session names are read for every later query of it.
* Between two queries of a session the file of the catalog is let go of, so that nobody has to work beside a prompt that
  was left open; a catalog in memory, and what the queries made, stay.
* The lists of chunks that are chunks themselves (of very long objects) are read with the versions that have them; where
  that fails, ``chunk_count`` is NULL, and ``chunks`` cannot be queried.
* ``_plan`` knows no client: it says which call it needs next and is given the answer, so that the blocking and the
  asynchronous door share it.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import functools
import gc
import os
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import duckdb

from gateway.catalog import batches, checkpoints, kept, schema
from gateway.catalog import database as databases
from gateway.catalog.database import EMPTY, LASTING, Database, Names, refusing, tables_of, words_of
from gateway.catalog.decoding import Decoders, decoded
from gateway.catalog.live import Ask, LiveVersions
from gateway.catalog.results import Result
from gateway.data.past import Past
from gateway.upkeep import tables
from objmeta import AsyncClient, Bucket, Chunk, Client, EncodedVersions, ObjectVersion
from objmeta.client import Location, StoreStatus
from objmeta.errors import IntegrityError, InvalidArgument, NoSuchBucket, ObjmetaError, Unavailable

_PAGE_OBJECTS: Final = 5_000
_AHEAD: Final = 12
"""Pages of a load, a megabyte or two each, that are read while DuckDB writes what came before them at one go."""
_CHANGES: Final = 2_000
_NO_CHANGES: Final = "table with name changes does not exist"
"""DuckDB's words, in small letters; the query itself does not tell a table from whatever else may have this name."""
_INTERRUPT_S: Final = 0.05
_SELDOM: Final = 200_000
"""New objects, after which Python looks for cycles: more than a page has."""


OnRead = Callable[[int], None]
"""Told, in some thread, how many objects have been read for a query by then."""


def sql(
    client: Client,
    query: str,
    *,
    external_access: bool = False,
    catalog: str | os.PathLike[str] | None = None,
    live: bool = False,
) -> Result:
    """Run a query over the store's metadata.

    Tables: ``buckets``, ``objects`` (current and visible), ``versions`` (all, delete markers included), ``chunks``,
    ``changes`` (what happened to which object when) and ``nodes``; of what is really stored ``places`` (where chunks
    are, with their sums), ``copies`` (each chunk at each place) and ``stored`` (each chunk once, with the number of its
    copies).  ``gateway.catalog.macros`` has the usual questions.  ``external_access`` lets the query read and write
    files and URLs, as DuckDB does by default.

    ``catalog`` is the file that keeps what was read for the next query (default: one for each store, in the user's
    cache directory; ``":memory:"``: none).

    With ``live`` no catalog is used: versions come from the store while the query runs, as far as its conditions on
    bucket, key and ``is_latest`` let it need them.  For few objects of very many this is faster than a first load.

    Raises InvalidArgument with DuckDB's message if the query is wrong; NoQuorum and whatever else the client raises.
    """
    with contextlib.closing(_Work(_Options(client, external_access, catalog, live, lambda call: call(client)))) as work:
        plan = work.plan(query)
        try:
            call, result = _advance(plan, None, None)
            while call is not None:
                answer: object = None
                error: ObjmetaError | None = None
                try:
                    answer = call(client)
                except ObjmetaError as raised:
                    error = raised
                call, result = _advance(plan, answer, error)
        finally:
            plan.close()
    assert result is not None, "a plan ends with a result"
    return result


async def sql_async(
    client: AsyncClient,
    query: str,
    *,
    external_access: bool = False,
    catalog: str | os.PathLike[str] | None = None,
    live: bool = False,
    on_read: OnRead | None = None,
) -> Result:
    """The same as :func:`sql` for coroutines; DuckDB works in another thread.

    If it is cancelled, the query is stopped.
    """
    async with Session(client, external_access=external_access, catalog=catalog, live=live) as session:
        return await session.sql(query, on_read)


class Session:
    """Several queries, one after another, as a prompt has them; the arguments are those of :func:`sql`.

    Tables, views and macros that a query makes are there for the next ones, and a catalog in memory stays.  Every query
    sees all changes that finished before it began.  One at a time: it is not for several tasks at once.  Use it with
    ``async with``.

    Raises InvalidArgument if the arguments exclude each other.
    """

    def __init__(
        self,
        client: AsyncClient,
        *,
        external_access: bool = False,
        catalog: str | os.PathLike[str] | None = None,
        live: bool = False,
    ) -> None:
        loop = asyncio.get_running_loop()
        then = client.then if isinstance(client, Past) else None  # it has no changes that a catalog could follow

        def ask(call: Callable[[Any], Any]) -> Any:
            return asyncio.run_coroutine_threadsafe(call(client), loop).result()

        self._client = client
        self._work = _Work(_Options(client, external_access, catalog, live, ask, then))

    async def sql(self, query: str, on_read: OnRead | None = None) -> Result:
        """Run a query; cancelling this stops it, and the session goes on.

        Raises InvalidArgument with DuckDB's message if the query is wrong, and whatever the client raises.
        """
        plan = self._work.plan(query, on_read)
        working: asyncio.Future[tuple[_Call | None, Result | None]] | None = None
        try:
            answer: object = None
            error: ObjmetaError | None = None
            while True:
                working = asyncio.ensure_future(asyncio.to_thread(_advance, plan, answer, error))
                call, result = await asyncio.shield(working)
                if call is None:
                    break
                answer = error = None
                try:
                    answer = await call(self._client)
                except ObjmetaError as raised:
                    error = raised
        finally:
            # The thread has the plan until then, also when this was cancelled, be it twice. Again and again, since
            # between two statements there is nothing to interrupt.
            while working is not None and not working.done():
                self._work.interrupt()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait((working,), timeout=_INTERRUPT_S)
            if working is not None and not working.cancelled():
                working.exception()  # looked at, so that nobody complains of it: it says that it was interrupted
            plan.close()
        assert result is not None, "a plan ends with a result"
        return result

    async def names(self) -> Names:
        """The tables and macros a query may name now; nothing is asked of the store."""
        return await asyncio.to_thread(self._work.names)

    async def close(self) -> None:
        """Forget what the queries made."""
        self._work.close()

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


@dataclass(frozen=True, slots=True)
class _Options:
    """How it is asked; ``catalog`` is the file to keep what is read in (None: the usual one), ``live`` asks for none.

    ``ask`` calls the client from any thread and waits for the answer.  ``then``: the client shows a time that has been.
    """

    client: Client | AsyncClient
    external_access: bool
    catalog: str | os.PathLike[str] | None
    live: bool
    ask: Ask
    then: datetime.datetime | None = None

    def __post_init__(self) -> None:
        if self.from_store and self.catalog is not None:
            what = "live query" if self.then is None else "query of the past"
            raise InvalidArgument(f"a {what} uses no catalog: leave one of both out")

    @property
    def from_store(self) -> bool:
        """Whether versions come from the store while the query runs."""
        return self.live or self.then is not None

    def place(self) -> kept.Place | None:
        """Where the catalog is; None: nowhere."""
        if self.from_store:
            return None
        if self.catalog is None:
            return kept.Place.at(kept.default_path(self.client.location), named=False)
        if os.fspath(self.catalog) == kept.MEMORY:
            return None
        return kept.Place.at(Path(self.catalog).expanduser().absolute(), named=True)


# -- What is asked of the client --------------------------------------------------------------------------------------

_Call = Callable[[Any], Any]
"""A call of one method of a client, blocking or not."""
_Plan = Generator[_Call, Any, Result]
_Answer = Generator[_Call, Any, tuple[Result, bool]]
_Step = Generator[_Call, Any, None]


class _Work:
    """What both doors share: one database, and the plans of the queries that run in it."""

    def __init__(self, options: _Options) -> None:
        self._options = options
        self._database: Database | None = None
        self._lasting: set[str] = set()
        self._as_new = True
        """Nothing that ran in the database left anything there."""

    def plan(self, query: str, on_read: OnRead | None = None) -> _Plan:
        """One query from its beginning to its result."""
        try:
            return (yield from self._plan(query, on_read))
        except InvalidArgument as error:
            if self._options.from_store and _NO_CHANGES in str(error).lower():
                what = "a live query" if self._options.then is None else "a query of the past"
                raise InvalidArgument(
                    f"{what} has no table changes: what happened is read from a catalog, and it uses none"
                ) from None
            raise

    def _plan(self, query: str, on_read: OnRead | None) -> _Plan:
        if not query.strip():
            raise InvalidArgument(EMPTY)
        as_new, self._as_new = self._as_new, False
        try:
            result, leaves_nothing = yield from self._answer(query, on_read)
        except duckdb.Error as error:
            place = self._opened().place
            if place is None or not kept.is_damage(error):
                with refusing():
                    raise
        else:
            self._as_new = as_new and leaves_nothing
            return result
        self.close()  # a database that met damage answers nothing more
        checkpoints.wait()
        kept.remove(place.path)
        with refusing():
            result, _ = yield from self._answer(query, on_read)
            return result

    def names(self) -> Names:
        """What a query may name."""
        return self._opened().names()

    def interrupt(self) -> None:
        """Stop what DuckDB is doing, from another thread."""
        if self._database is not None:
            self._database.interrupt()

    def close(self) -> None:
        """Let go of the database; another one would be made."""
        database, self._database = self._database, None
        if database is not None and self._as_new:
            databases.keep(database)
        elif database is not None:
            database.close()

    def _opened(self) -> Database:
        if self._database is None:
            self._database = databases.opened(self._options.place(), self._options.external_access)
        return self._database

    def _answer(self, query: str, on_read: OnRead | None) -> _Answer:
        """The result, and whether the query left nothing in the database."""
        options = self._options
        database = self._opened()
        select = database.parse(query)
        words = words_of(query)
        if words & LASTING:
            self._lasting |= words
        words |= self._lasting
        named = tables_of(words)
        as_of = (options.then or datetime.datetime.now(datetime.UTC)) if named else None
        looked_at = 0
        of_nodes = bool(named & schema.OF_NODES.keys() or "stored" in named)
        use = bool(named & schema.KEPT)
        if of_nodes:  # what takes long, during which nobody is to wait for the catalog
            with database.catalog(use=False) as catalog:
                database.check(query, select, catalog)
            status: StoreStatus = yield lambda client: client.status()
            database.load_nodes(named, status, lambda: options.client.location)
        resolve = functools.partial(_chunks, lambda: options.client.location)
        with database.catalog(use) as catalog:
            if not of_nodes:
                database.check(query, select, catalog)
            if use and options.from_store:
                rows = {
                    schema.LIVE: LiveVersions(options.ask, resolve),
                    schema.LIVE_VISIBLE: LiveVersions(options.ask, resolve, visible=True),
                }
                buckets: list[Bucket] = yield lambda client: client.buckets()
                catalog.take_buckets(buckets)
                return _live(database, query, rows, as_of), False
            if use:
                refreshing = _Refresh(catalog, resolve, on_read)
                yield from refreshing.run()
                if ("chunks" in words or "chunk_count" in words) and catalog.lacks_chunks:
                    if catalog.is_read_only:
                        catalog.write()
                        yield from refreshing.run()
                    catalog.fill(functools.partial(resolve, needed="chunks" in words))
                looked_at = refreshing.looked_at
                catalog.settle()
            return Result(database.run(query), as_of, looked_at), select and named <= schema.KEPT


def _live(database: Database, query: str, rows: dict[str, LiveVersions], as_of: datetime.datetime | None) -> Result:
    """The query over what comes while it runs."""
    database.use_live(rows)
    try:
        found = database.run(query)
    except duckdb.Error:
        for versions in rows.values():
            if versions.failure is not None:
                raise versions.failure from None
        raise
    return Result(found, as_of, sum(versions.looked_at for versions in rows.values()))


class _Refresh:
    """Brings a catalog up to date; ``looked_at`` objects were read for that."""

    def __init__(self, catalog: kept.Catalog, resolve: batches.Resolve, on_read: OnRead | None) -> None:
        self._catalog = catalog
        self._resolve = resolve
        self._on_read = on_read
        self.looked_at = 0

    def run(self) -> _Step:
        with _few_cycles():
            cursor = yield from self._take_changes()
        if cursor is not None:
            yield from self._load(cursor)

    def _looked(self, count: int) -> None:
        self.looked_at += count
        if self._on_read is not None:
            self._on_read(self.looked_at)

    def _take_changes(self) -> Generator[_Call, Any, str | None]:
        """Take in what changed; where to begin, if everything must be loaded."""
        catalog = self._catalog
        cursor = catalog.cursor
        objects: set[tuple[str, str]] = set()
        pages: list[EncodedVersions] = []
        begun = False
        while cursor is not None:
            page = yield functools.partial(_changes, cursor=cursor)
            if catalog.is_read_only:
                if not (page.objects or page.more or page.reload) and page.cursor == cursor:
                    buckets = yield lambda client: client.buckets()
                    if catalog.holds(buckets):
                        return None  # all that is done below would write nothing
                catalog.write()
                if catalog.cursor != cursor:  # somebody else has written it
                    cursor = catalog.cursor
                    continue
            if page.reload:
                catalog.roll_back()
                return str(page.cursor)
            cursor = page.cursor
            self._looked(len(page.objects))
            if not begun:
                catalog.begin_change()
                begun = True
            if not objects.isdisjoint(page.objects):  # what was read later counts
                yield from self._change(objects, pages)
                objects, pages = set(), []
            objects.update(page.objects)
            pages += page.pages
            if page.more and len(objects) < 10 * _CHANGES:
                continue
            buckets = yield from self._change(objects, pages)
            objects, pages = set(), []
            if not page.more:
                catalog.end_change(buckets, cursor)
                return None
        page = yield functools.partial(_changes, cursor=None)
        return str(page.cursor)

    def _change(
        self, objects: Collection[tuple[str, str]], pages: Iterable[EncodedVersions]
    ) -> Generator[_Call, Any, list[Bucket]]:
        """Take these changes in; the buckets as they are now."""
        buckets: list[Bucket] = yield lambda client: client.buckets()
        there = {bucket.name for bucket in buckets}
        self._catalog.forget_renewed(buckets)
        new = (decoded(page, self._resolve) for page in pages if page.bucket in there)
        self._catalog.change([each for each in objects if each[0] in there], new)
        return buckets

    def _load(self, cursor: str) -> _Step:
        """Read everything; pages are taken apart, and rows are written, while the next page is read."""
        catalog = self._catalog
        buckets: list[Bucket] = yield lambda client: client.buckets()
        catalog.begin_load()
        with Decoders(self._resolve) as decoders, ThreadPoolExecutor(1, "objmeta-catalog") as thread:
            under_way: deque[Future[int]] = deque()
            for bucket in buckets:
                continuation: bytes | None = None
                while True:
                    call = functools.partial(_load_versions, bucket=bucket, cursor=cursor, continuation=continuation)
                    try:
                        with _few_cycles():
                            page = yield call
                    except NoSuchBucket:
                        break  # removed meanwhile; the next refresh forgets it
                    under_way.append(thread.submit(catalog.load, decoders.submit(page.versions)))
                    cursor, continuation = page.cursor, page.continuation
                    while len(under_way) > 2 * decoders.helpers + _AHEAD:
                        self._looked(under_way.popleft().result())
                    if continuation is None:
                        break
            for each in under_way:
                self._looked(each.result())
        catalog.end_load(buckets, cursor)


@contextlib.contextmanager
def _few_cycles() -> Iterator[None]:
    """Have Python seldom look for cycles of objects meanwhile: what is read makes none, but so many objects that it
    would look through all of the process again and again.

    Seldom, not never: a query that was dropped with its event loop is such a cycle itself, and would leave it at that,
    as a fork does.
    """
    before = gc.get_threshold()[0]
    raised = 0 < before < _SELDOM  # 0: never
    if raised:
        gc.set_threshold(_SELDOM)
    try:
        yield
    finally:
        if raised and gc.get_threshold()[0] == _SELDOM:  # else somebody else has set it
            gc.set_threshold(before)


def _changes(client: Any, *, cursor: str | None) -> Any:
    return client.changed_versions(cursor, limit=_CHANGES)


def _load_versions(client: Any, *, bucket: Bucket, cursor: str, continuation: bytes | None) -> Any:
    return client.load_versions(bucket, cursor, continuation=continuation, limit=_PAGE_OBJECTS)


def _chunks(
    location: Callable[[], Location],
    bucket: str,
    key: str,
    version_id: str,
    lists: Sequence[Chunk],
    needed: bool = False,
) -> Sequence[Chunk] | None:
    """A version's chunks, by the lists it names; None if they cannot be read, unless they are ``needed``."""
    version = ObjectVersion(bucket, key, version_id, 0, 0, "", 0, lists=tuple(lists))
    with ThreadPoolExecutor(1) as thread:  # it needs an event loop, and the caller's may be running here
        try:
            return thread.submit(tables.listed_chunks, location(), version).result()
        except (Unavailable, IntegrityError):
            if needed:
                raise
            return None


def _advance(plan: _Plan, answer: object, error: ObjmetaError | None) -> tuple[_Call | None, Result | None]:
    """Give the plan an answer; what it asks next, or its result."""
    try:
        return (plan.send(answer) if error is None else plan.throw(error)), None
    except StopIteration as end:
        return None, end.value
