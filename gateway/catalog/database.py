"""What queries run in: a DuckDB in memory with all tables, for one query or for a session of several.

Rules.
* It reaches neither files nor the network unless that was asked for; only the catalog's own files are allowed.
* Transactions are ours: bringing the tables up to date is one, each statement is one.
* Making a database costs more than most queries.  So one in which only single SELECTs ran, which leave nothing behind,
  is kept for the next query of the process over the same catalog, one at most; the file of the catalog is let go of all
  the same.  DuckDB does not survive a fork, so what is kept is closed before one.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import os
import re
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import duckdb
import pyarrow as pa

from gateway.catalog import batches, kept, macros, schema
from gateway.upkeep import tables
from objmeta.client import Location, StoreStatus
from objmeta.errors import InvalidArgument, StoreError, StoreFull
from objmeta.forking import tell_of_forks

_FULL: Final = os.strerror(errno.ENOSPC)
EMPTY: Final = "the query is empty; an example: SELECT bucket, count(*) FROM objects GROUP BY 1"
LASTING: Final = frozenset({"view", "macro", "function", "prepare"})
"""Words of statements that make something which names tables whenever it is used."""


_NAMING_MACROS: Final = macros.MACROS.keys() | {"query", "query_table", "duckdb_functions"}
"""Words of queries that may name a macro, or list them."""


@dataclass(frozen=True, slots=True)
class Names:
    """What a query may name: tables with their columns and types, macros with their parameters, words of SQL."""

    tables: Mapping[str, Sequence[tuple[str, str]]]
    macros: Mapping[str, Sequence[str]]
    keywords: Sequence[str]


class Database:
    """``place`` is where the catalog is kept; None: in this database, and as long as it is there."""

    def __init__(self, place: kept.Place | None, external_access: bool) -> None:
        self.place = place
        self.external_access = external_access
        if place is not None:
            _check_unicode("the catalog's name", str(place.path))
        self._held = contextlib.ExitStack()
        self._connection = self._held.enter_context(contextlib.closing(_connect(place, external_access)))
        self._to_make: list[str] = [*schema.VIEWS]
        self._macros = [*macros.MACROS.values()]
        self._in_memory: kept.Catalog | None = None
        self._opened: kept.Catalog | None = None
        if place is None:
            self._in_memory = self._held.enter_context(kept.opened(self._connection, None))

    def close(self) -> None:
        """Throw it away."""
        self._held.close()

    def interrupt(self) -> None:
        """Stop what runs in another thread, be it waiting for a lock."""
        if self.place is not None:
            self.place.stop.set()
        self._connection.interrupt()
        opened = self._opened  # looked up once: another thread may be done with it
        if opened is not None:
            opened.interrupt()

    @contextlib.contextmanager
    def catalog(self, use: bool) -> Iterator[kept.Catalog]:
        """The kept tables, attached; without ``use`` any of their form will do, since nothing is read from them."""
        if self._in_memory is None:
            if self.place is not None:
                self.place.stop.clear()
            with kept.opened(self._connection, self.place if use else None) as found:
                self._opened = found
                try:
                    yield found
                finally:
                    self._opened = None
            return
        try:
            yield self._in_memory
        except BaseException:
            self._in_memory.roll_back()
            raise

    def parse(self, query: str) -> bool:
        """Refuse what is no SQL that may be run; whether it leaves nothing behind."""
        _check_unicode("the query", query)
        with refusing():
            statements = self._connection.extract_statements(query)
            if not statements:
                raise InvalidArgument(EMPTY)
            if any(each.type == duckdb.StatementType.TRANSACTION for each in statements):
                raise InvalidArgument(
                    "transactions cannot be begun or ended here: each statement is one; leave that out"
                )
        return len(statements) == 1 and statements[0].type == duckdb.StatementType.SELECT

    def check(self, query: str, select: bool, catalog: kept.Catalog) -> None:
        """Refuse a wrong query before anything is read, as far as can be told; tables are those of the catalog."""
        with_macros = bool(words_of(query) & _NAMING_MACROS)
        if select or with_macros or self._to_make:
            catalog.stand_in()
            try:
                self._make(with_macros)
                if select:
                    self._connection.execute(f"EXPLAIN {query}").fetchall()
            except duckdb.Error as error:
                if kept.is_damage(error):
                    raise
                with refusing():
                    raise

    def run(self, query: str) -> pa.Table:
        """Its rows; of several statements those of the last."""
        if self._in_memory is not None and "kept" in words_of(query):
            self._in_memory.cursor = None  # it may write there, so all is loaded anew for the next
        relation = self._connection.sql(query)
        return relation.to_arrow_table() if relation is not None else pa.table({})

    def names(self) -> Names:
        """What a query may name now."""
        with self.catalog(use=False):
            self._make(with_macros=True)
            columns = self._connection.execute(
                "SELECT table_name, column_name, data_type FROM duckdb_columns()"
                " WHERE database_name = current_database() AND NOT internal ORDER BY table_name, column_index"
            ).fetchall()
            found = self._connection.execute(
                "SELECT function_name, parameters FROM duckdb_functions()"
                " WHERE function_type IN ('table_macro', 'macro') AND NOT internal ORDER BY function_name"
            ).fetchall()
            words = self._connection.execute(
                "SELECT DISTINCT keyword_name FROM duckdb_keywords() ORDER BY 1"
            ).fetchall()
        by_table: dict[str, list[tuple[str, str]]] = {}
        for table, column, kind in columns:
            by_table.setdefault(table, []).append((column, kind))
        return Names(by_table, dict(found), [word for (word,) in words])

    def _make(self, with_macros: bool) -> None:
        """Make what queries name, as soon as there are tables to make it from; macros only once they are needed."""
        if with_macros:
            self._to_make += self._macros
            self._macros = []
        while self._to_make:
            self._connection.execute(self._to_make[0])
            del self._to_make[0]

    def use_live(self, rows: Mapping[str, object]) -> None:
        """From here on versions come from ``rows``, Arrow datasets by name."""
        for name, versions in rows.items():
            self._connection.register(name, versions)
        for statement in schema.live_views():
            self._connection.execute(statement)

    def load_nodes(self, named: set[str], status: StoreStatus, location: Callable[[], Location]) -> None:
        """Fill the tables of nodes; NULL is what a node that is not up would tell."""
        for table in schema.OF_NODES:
            self._connection.execute(f"DELETE FROM {table}")  # from a query before this one
        told = frozenset(("version", "registers", "changes", "disk_free", "uptime_s"))
        rows = [
            tuple(None if name in told and node.state != "up" else getattr(node, name) for name in schema.NODES.names)
            for node in status.nodes
        ]
        self._fill("nodes", rows)
        if named & {"places", "copies", "stored"}:
            # In a thread of its own, for it needs an event loop and the caller's may be running here.
            with ThreadPoolExecutor(1) as thread:
                if "places" in named:
                    self._fill("places", thread.submit(tables.place_rows, location(), status).result())
                if named & {"copies", "stored"}:
                    take = functools.partial(self._fill, "copies")
                    thread.submit(tables.copy_rows, location(), status, take).result()

    def _fill(self, table: str, rows: Sequence[tuple[object, ...]]) -> None:
        if rows:
            self._connection.register("batch", batches.table(rows, schema.OF_NODES[table]))
            self._connection.execute(f"INSERT INTO {table} FROM batch")
            self._connection.unregister("batch")


class _Idle:
    """The database that waits for the next query, if any does."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._database: Database | None = None
        atexit.register(self.put, None)
        tell_of_forks(self)

    def take(self, place: kept.Place) -> Database | None:
        """The one over this catalog."""
        with self._lock:
            found = self._database
            if found is None or not place.is_same(found.place):
                return None
            self._database = None
            return found

    def put(self, database: Database | None) -> None:
        """Keep this one instead of the one that is kept; or none."""
        with self._lock:
            before, self._database = self._database, database
        if before is not None:
            before.close()

    def before_fork(self) -> None:
        """Close it; what is open a child could neither use nor close."""
        self._lock.acquire()
        database, self._database = self._database, None
        if database is not None:
            database.close()

    def after_fork(self, in_child: bool) -> None:
        """Go on, with none."""
        self._lock.release()


_IDLE: Final = _Idle()


def opened(place: kept.Place | None, external_access: bool) -> Database:
    """A database for queries, perhaps one that was kept; close it, or :func:`keep` it."""
    found = None if place is None or external_access else _IDLE.take(place)
    return found or Database(place, external_access)


def keep(database: Database) -> None:
    """Have it for the next query, if it is one that may be kept; the queries that ran in it left nothing behind."""
    if database.place is None or database.external_access:
        database.close()
    else:
        _IDLE.put(database)


def words_of(query: str) -> set[str]:
    """The words in it, in small letters."""
    return {word.lower() for word in re.findall(r"\w+", query)}


def tables_of(words: set[str]) -> set[str]:
    """The tables a query of these words may read."""
    if words & {"query", "query_table"}:
        return set(schema.TABLES)  # these functions make names out of strings
    named = words.intersection(schema.TABLES)
    return named.union(*(macros.READS[macro] for macro in words & macros.READS.keys()))


def _connect(place: kept.Place | None, external_access: bool) -> Any:
    """A DuckDB in memory that reaches nothing but the catalog, unless that was asked for; its tables are empty."""
    database = duckdb.connect(
        config={
            "python_enable_replacements": False,  # a query must not see this module's variables
            "temp_directory": "",  # nothing is left behind in the caller's directory
        }
    )
    database.execute("SET TimeZone = 'UTC'")
    # What would make a longer log (DuckDB guesses at that, and says four times what it becomes) is written to the file
    # at once, and not to the log before.
    database.execute("SET checkpoint_threshold = '16MB'")
    database.execute("SET checkpoint_on_detach = 'DISABLED'")
    if not external_access:
        if place is not None:
            files = ", ".join(kept.quoted(str(path)) for path in place.files())
            database.execute(f"SET allowed_paths = [{files}]")
            database.execute(f"SET allowed_directories = [{kept.quoted(str(place.private))}]")
        database.execute("SET enable_external_access = false")
    database.execute("SET lock_configuration = true")
    for name, columns in schema.OF_NODES.items():
        database.execute(f"CREATE TABLE {name} ({schema.declared(columns)})")
    return database


def _check_unicode(what: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"{what} is not valid Unicode and cannot be written as UTF-8: {text!r}") from None


@contextlib.contextmanager
def refusing() -> Generator[None, None, None]:
    """Turns DuckDB's errors into ours, on one line."""
    try:
        yield
    except duckdb.OutOfMemoryException:
        raise StoreError("the query needs more memory than there is; ask for fewer rows or columns") from None
    except duckdb.Error as error:
        message = " ".join(str(error).split("\n\nLINE")[0].split())
        if _FULL in message:
            raise StoreFull(f"{message}; make room there, or keep the catalog elsewhere (--catalog)") from None
        raise InvalidArgument(f"the query cannot be run: {message}") from None
