"""SQL over a store: every bucket, object, version, chunk, node and copy as a table.

Rules.
* A query runs in a private DuckDB in memory that is made for it and thrown away: it changes nothing in the store, and
  reaches neither files nor the network unless the caller says so.
* Buckets, objects, versions, chunks and changes come from a catalog that is kept (``kept``) and brought up to date by
  the store's change feed before every query.  So every change that finished before is in them, each object's versions
  are from one instant, and a query costs what has changed.  With ``live`` they come from the store itself (``live``).
* Other tables are filled for the query, if their names occur in it.  A name inside a string costs time; a table too few
  would be a wrong answer, so the text is searched for words rather than parsed.
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
import os
import re
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa

from gateway.catalog import batches, kept, macros, schema
from gateway.catalog.live import Ask, LiveVersions
from gateway.catalog.results import Result
from gateway.data.past import Past
from gateway.upkeep import tables
from objmeta import AsyncClient, Bucket, ChangedObject, Chunk, Client, ObjectVersion
from objmeta.client import Location, StoreStatus
from objmeta.errors import IntegrityError, InvalidArgument, NoSuchBucket, ObjmetaError, StoreError, Unavailable

_PAGE_OBJECTS: Final = 5_000
_CHANGES: Final = 2_000
_EMPTY: Final = "the query is empty; an example: SELECT bucket, count(*) FROM objects GROUP BY 1"


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
    plan = _plan(_Question(query, external_access, catalog, live, lambda call: call(client)), lambda: client.location)
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
) -> Result:
    """The same as :func:`sql` for coroutines; DuckDB works in another thread."""
    loop = asyncio.get_running_loop()
    then = client.then if isinstance(client, Past) else None  # it has no changes that a catalog could follow

    def ask(call: Callable[[Any], Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(call(client), loop).result()

    question = _Question(query, external_access, catalog, live or then is not None, ask, then)
    plan = _plan(question, lambda: client.location)
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
                answer = await call(client)
            except ObjmetaError as raised:
                error = raised
    finally:
        if working is not None:
            await asyncio.wait((working,))  # the thread has the plan until then, also when this was cancelled
        plan.close()
    assert result is not None, "a plan ends with a result"
    return result


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked; ``catalog`` is the file to keep what is read in (None: the usual one), ``live`` asks for none.

    ``ask`` calls the client from any thread and waits for the answer.  ``then``: the client shows a time that has been.
    """

    query: str
    external_access: bool
    catalog: str | os.PathLike[str] | None
    live: bool
    ask: Ask
    then: datetime.datetime | None = None

    @property
    def tables(self) -> set[str]:
        """Those the query may read."""
        return _named(self.query)

    def place(self, location: Callable[[], Location]) -> kept.Place | None:
        """Where the catalog is; None: nowhere."""
        if self.live or not self.tables & schema.KEPT:
            return None
        if self.catalog is None:
            return kept.Place.at(kept.default_path(location()), named=False)
        if os.fspath(self.catalog) == kept.MEMORY:
            return None
        return kept.Place.at(Path(self.catalog).expanduser().absolute(), named=True)


# -- What is asked of the client --------------------------------------------------------------------------------------

_Call = Callable[[Any], Any]
"""A call of one method of a client, blocking or not."""
_Plan = Generator[_Call, Any, Result]
_Step = Generator[_Call, Any, None]


def _plan(question: _Question, location: Callable[[], Location]) -> _Plan:
    if not question.query.strip():
        raise InvalidArgument(_EMPTY)
    if question.live and question.catalog is not None:
        raise InvalidArgument("a live query uses no catalog: leave one of both out")
    place = question.place(location)
    try:
        return (yield from _answer(question, place, location))
    except duckdb.Error as error:
        if place is None or not kept.is_damage(error):
            with _refusing():
                raise
    kept.remove(place.path)
    with _refusing():
        return (yield from _answer(question, place, location))


def _answer(question: _Question, place: kept.Place | None, location: Callable[[], Location]) -> _Plan:
    named = question.tables
    words = _words(question.query)
    with contextlib.closing(_connect(question, place)) as database, contextlib.ExitStack() as held:
        _check(database, question.query)
        as_of = (question.then or datetime.datetime.now(datetime.UTC)) if named else None
        looked_at = 0
        if named & schema.OF_NODES.keys() or "stored" in named:
            status: StoreStatus = yield lambda client: client.status()
            _load_nodes(database, named, status, location)
        if question.live and named & schema.KEPT:
            resolve = functools.partial(_chunks, location)
            rows = {
                schema.LIVE: LiveVersions(question.ask, resolve),
                schema.LIVE_VISIBLE: LiveVersions(question.ask, resolve, visible=True),
            }
            buckets: list[Bucket] = yield lambda client: client.buckets()
            return _live(database, held, question.query, rows, buckets, as_of)
        if named & schema.KEPT:
            catalog = held.enter_context(kept.opened(database, place))
            refreshing = _Refresh(catalog, functools.partial(_chunks, location))
            yield from refreshing.run()
            looked_at = refreshing.looked_at
            if "chunks" in words or "chunk_count" in words:
                catalog.fill(functools.partial(_chunks, location, needed="chunks" in words))
            catalog.settle()
        else:
            held.enter_context(kept.opened(database, None))
        relation = database.sql(question.query)
        table = relation.to_arrow_table() if relation is not None else pa.table({})
        return Result(table, as_of, looked_at)


def _live(
    database: Any,
    held: contextlib.ExitStack,
    query: str,
    rows: dict[str, LiveVersions],
    buckets: Sequence[Bucket],
    as_of: datetime.datetime | None,
) -> Result:
    """The query over what comes while it runs."""
    catalog = held.enter_context(kept.opened(database, None))
    catalog.take_buckets(buckets)
    for name, versions in rows.items():
        database.register(name, versions)
    for statement in schema.live_views():
        database.execute(statement)
    try:
        relation = database.sql(query)
        found = relation.to_arrow_table() if relation is not None else pa.table({})
    except duckdb.Error:
        for versions in rows.values():
            if versions.failure is not None:
                raise versions.failure from None
        raise
    return Result(found, as_of, sum(versions.looked_at for versions in rows.values()))


class _Refresh:
    """Brings a catalog up to date; ``looked_at`` objects were read for that."""

    def __init__(self, catalog: kept.Catalog, resolve: batches.Resolve) -> None:
        self._catalog = catalog
        self._resolve = resolve
        self.looked_at = 0

    def run(self) -> _Step:
        catalog = self._catalog
        cursor = catalog.cursor
        found: list[ChangedObject] = []
        begun = False
        while cursor is not None:
            page = yield functools.partial(_changes, cursor=cursor)
            if page.reload:
                catalog.roll_back()
                yield from self._load(page.cursor)
                return
            cursor = page.cursor
            found += page.objects
            self.looked_at += len(page.objects)
            if page.more and len(found) < 10 * _CHANGES:
                continue
            if not begun:
                catalog.begin_change()
                begun = True
            buckets: list[Bucket] = yield lambda client: client.buckets()
            catalog.forget_renewed(buckets)
            catalog.change(
                [each for each in found if each.bucket in {bucket.name for bucket in buckets}], self._resolve
            )
            found = []
            if not page.more:
                catalog.end_change(buckets, cursor)
                return
        page = yield functools.partial(_changes, cursor=None)
        yield from self._load(page.cursor)

    def _load(self, cursor: str) -> _Step:
        """Read everything; rows are written while the next page is read."""
        catalog = self._catalog
        buckets: list[Bucket] = yield lambda client: client.buckets()
        catalog.begin_load()
        writing: Future[None] | None = None
        with ThreadPoolExecutor(1, "objmeta-catalog") as thread:
            for bucket in buckets:
                continuation: bytes | None = None
                while True:
                    call = functools.partial(_load_versions, bucket=bucket, cursor=cursor, continuation=continuation)
                    try:
                        page = yield call
                    except NoSuchBucket:
                        break  # removed meanwhile; the next refresh forgets it
                    if writing is not None:
                        writing.result()
                    writing = thread.submit(catalog.add, page.columns, self._resolve)
                    self.looked_at += len(set(page.columns.key))
                    cursor, continuation = page.cursor, page.continuation
                    if continuation is None:
                        break
            if writing is not None:
                writing.result()
        catalog.end_load(buckets, cursor)


def _changes(client: Any, *, cursor: str | None) -> Any:
    return client.changes(cursor, limit=_CHANGES)


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


def _words(query: str) -> set[str]:
    return {word.lower() for word in re.findall(r"\w+", query)}


def _named(query: str) -> set[str]:
    """The tables a query may read."""
    words = _words(query)
    if words & {"query", "query_table"}:
        return set(schema.TABLES)  # these functions make names out of strings
    named = words.intersection(schema.TABLES)
    return named.union(*(macros.READS[macro] for macro in words & macros.READS.keys()))


# -- The database of one query ----------------------------------------------------------------------------------------


def _connect(question: _Question, place: kept.Place | None) -> Any:
    """A DuckDB in memory with all tables, empty, that reaches nothing but the catalog, unless that was asked for."""
    database = duckdb.connect(
        config={
            "python_enable_replacements": False,  # a query must not see this module's variables
            "temp_directory": "",  # nothing is left behind in the caller's directory
        }
    )
    database.execute("SET TimeZone = 'UTC'")
    if not question.external_access:
        if place is not None:
            files = ", ".join(kept.quoted(str(path)) for path in place.files())
            database.execute(f"SET allowed_paths = [{files}]")
            database.execute(f"SET allowed_directories = [{kept.quoted(str(place.private))}]")
        database.execute("SET enable_external_access = false")
    database.execute("SET lock_configuration = true")
    for name, columns in schema.OF_NODES.items():
        database.register("empty", columns.empty_table())
        database.execute(f"CREATE TABLE {name} AS FROM empty")
        database.unregister("empty")
    with kept.opened(database, None):
        for statement in (*schema.VIEWS, *macros.MACROS.values()):
            database.execute(statement)
    return database


def _check(database: Any, query: str) -> None:
    """Refuse a wrong query before anything is read."""
    with _refusing():
        statements = database.extract_statements(query)
        if not statements:
            raise InvalidArgument(_EMPTY)
        if len(statements) == 1 and statements[0].type == duckdb.StatementType.SELECT:
            with kept.opened(database, None):
                database.execute(f"EXPLAIN {query}").fetchall()


def _load_nodes(database: Any, named: set[str], status: StoreStatus, location: Callable[[], Location]) -> None:
    """Fill the tables of nodes; NULL is what a node that is not up would tell."""
    told = frozenset(("version", "registers", "changes", "disk_free", "uptime_s"))
    rows = [
        tuple(None if name in told and node.state != "up" else getattr(node, name) for name in schema.NODES.names)
        for node in status.nodes
    ]
    _fill(database, "nodes", rows)
    if named & {"places", "copies", "stored"}:
        # In a thread of its own, for it needs an event loop and the caller's may be running here.
        with ThreadPoolExecutor(1) as thread:
            if "places" in named:
                _fill(database, "places", thread.submit(tables.place_rows, location(), status).result())
            if named & {"copies", "stored"}:
                take = functools.partial(_fill, database, "copies")
                thread.submit(tables.copy_rows, location(), status, take).result()


def _fill(database: Any, table: str, rows: Sequence[tuple[object, ...]]) -> None:
    if rows:
        database.register("batch", batches.table(rows, schema.OF_NODES[table]))
        database.execute(f"INSERT INTO {table} FROM batch")
        database.unregister("batch")


@contextlib.contextmanager
def _refusing() -> Generator[None, None, None]:
    """Turns DuckDB's errors into ours, on one line."""
    try:
        yield
    except duckdb.OutOfMemoryException:
        raise StoreError("the query needs more memory than there is; ask for fewer rows or columns") from None
    except duckdb.Error as error:
        message = " ".join(str(error).split("\n\nLINE")[0].split())
        raise InvalidArgument(f"the query cannot be run: {message}") from None
