"""The tables of a catalog in a database that is attached somewhere, and how rows get into them."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Final

import duckdb
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gateway.catalog import batches, schema
from gateway.catalog.decoding import Decoded
from objmeta import Bucket

_ROWS_AT_ONCE: Final = 60_000
"""In one statement: of DuckDB's work half is for the statement where it inserts a twentieth of that, and the rows of
current versions lie together in too short runs."""
_ENCODER: Final = msgspec.msgpack.Encoder()
_BUCKETS: Final = msgspec.msgpack.Decoder(list[Bucket])


class Rows:
    """What is kept, in the database that ``connection`` has attached as ``name``."""

    def __init__(self, connection: Any, name: str) -> None:
        self.connection = connection
        self.name = name
        self._waiting: list[tuple[pa.Table, int]] = []
        self._rows_waiting = 0
        self._known: pa.Table | None = None
        """In a change: the rows of its objects that were there before."""
        self._met: list[pa.Array] = []
        """Those of them that came again."""
        self.buckets: list[Bucket] = []
        """All there are, as far as is held here."""

    def make(self) -> None:
        """Make the tables, empty."""
        for statement in schema.kept_statements(self.name):
            self.connection.execute(statement)
        self.buckets = []

    def add(self, page: Decoded) -> None:
        """Add the rows of a page, perhaps not before :meth:`flush`."""
        self._waiting.append((page.versions, page.latest))
        self._rows_waiting += page.versions.num_rows
        if self._rows_waiting >= _ROWS_AT_ONCE:
            self.flush()
        if page.removals is not None and page.removals.num_rows:
            self._insert("removals", page.removals)

    def change(self, objects: Collection[tuple[str, str]], pages: Iterable[Decoded]) -> None:
        """Have of these objects, each by bucket and key, the rows of the pages and no others.

        A version's row never changes but for ``is_latest``, so one that is there stays: taking it out and in again
        costs DuckDB several times as much, and now and then all the rows near it.
        """
        with self.given("changed", batches.names(objects)):
            self._known = self.connection.sql(schema.KNOWN_ROWS).to_arrow_table()
            self.connection.execute(schema.DELETE_REMOVALS)
            for page in pages:
                self.add(page)
            self.flush()
            known = self._known["known"]
            is_there = pc.is_in(known, pa.chunked_array(self._met, pa.int64()))
            self._with_rows(schema.DELETE_ROWS, "rows_gone", known.filter(pc.invert(is_there)))
        self.forget()

    def flush(self) -> None:
        """Insert what waits for more to be inserted with it."""
        if self._waiting:
            # Most queries want the rows of current versions, and what is 2048 others in a row DuckDB passes by.
            latest = [rows.slice(0, number) for rows, number in self._waiting]
            rows = pa.concat_tables([*latest, *(rows.slice(number) for rows, number in self._waiting)])
            if self._known is not None and self._known.num_rows:
                rows = self._new(rows, self._known)
            with self.given("batch", rows):
                self.connection.execute(schema.insert_versions(self.name))
            self._waiting.clear()
            self._rows_waiting = 0

    def _new(self, rows: pa.Table, known: pa.Table) -> pa.Table:
        """Those that are not known; of the known ones it is noted that they were met, and what is latest by now."""
        batch = rows.select(list(schema.COMPARED)).append_column("place", pa.array(np.arange(rows.num_rows)))
        with self.given("batch", batch), self.given("rows_known", known):
            found = self.connection.sql(schema.COMPARE_ROWS).to_arrow_table()
        is_known = found["known"].is_valid()
        met = found.filter(is_known)
        self._met += met["known"].chunks
        self._with_rows(schema.TURN_LATEST, "rows_turned", met["known"].filter(met["differs"]))
        return rows.filter(pc.invert(is_known))

    def _with_rows(self, statement: str, name: str, rows: pa.ChunkedArray) -> None:
        if len(rows):
            with self.given(name, pa.table({"row": rows})):
                self.connection.execute(statement)

    def forget(self) -> None:
        """Insert nothing of what waits."""
        self._waiting.clear()
        self._rows_waiting = 0
        self._known = None
        self._met = []

    def take_buckets(self, buckets: Sequence[Bucket]) -> None:
        """Hold these as all buckets there are."""
        self.connection.execute(f"DELETE FROM {self.name}.buckets")
        self._insert("buckets", batches.buckets(buckets))
        self.buckets = list(buckets)

    def holds(self, buckets: Sequence[Bucket]) -> bool:
        """Whether these are held as all buckets there are."""
        return self.buckets == list(buckets)

    def say(self, cursor: str) -> None:
        """The rows are those of this cursor of the feed."""
        self.connection.execute(f"DELETE FROM {self.name}.about")
        self.connection.execute(
            f"INSERT INTO {self.name}.about VALUES (?, ?, ?, ?)",
            [schema.FORMAT, duckdb.__version__, cursor, _ENCODER.encode(self.buckets)],
        )

    def said(self, about: Sequence[tuple[Any, ...]]) -> str | None:
        """The cursor that the table ``about`` has; None if this version of us and of DuckDB did not make the rows."""
        if [row[:2] for row in about] != [(schema.FORMAT, duckdb.__version__)]:
            return None
        _, _, cursor, buckets = about[0]
        try:
            self.buckets = _BUCKETS.decode(buckets)
        except (msgspec.MsgspecError, TypeError):
            return None
        return str(cursor)

    @contextlib.contextmanager
    def given(self, name: str, rows: Any) -> Iterator[None]:
        """Have statements find ``rows`` under a name meanwhile."""
        self.connection.register(name, rows)
        try:
            yield
        finally:
            self.connection.unregister(name)

    def _insert(self, table: str, rows: pa.Table) -> None:
        with self.given("batch", rows):
            self.connection.execute(f"INSERT INTO {self.name}.{table} FROM batch")
