"""The tables of a catalog in a database that is attached somewhere, and how rows get into them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Final

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from gateway.catalog import batches, schema
from gateway.catalog.decoding import Decoded
from objmeta import Bucket

_ROWS_AT_ONCE: Final = 60_000
"""In one statement: of DuckDB's work half is for the statement where it inserts a twentieth of that, and the rows of
current versions lie together in too short runs."""


class Rows:
    """What is kept, in the database that ``connection`` has attached as ``name``."""

    def __init__(self, connection: Any, name: str) -> None:
        self.connection = connection
        self.name = name
        self._waiting: list[pa.Table] = []
        self._rows_waiting = 0

    def make(self) -> None:
        """Make the tables, empty."""
        for statement in schema.kept_statements(self.name):
            self.connection.execute(statement)

    def add(self, page: Decoded) -> None:
        """Add the rows of a page, perhaps not before :meth:`flush`."""
        self._waiting.append(page.versions)
        self._rows_waiting += page.versions.num_rows
        if self._rows_waiting >= _ROWS_AT_ONCE:
            self.flush()
        if page.removals is not None and page.removals.num_rows:
            self._insert("removals", page.removals)

    def flush(self) -> None:
        """Insert what waits for more to be inserted with it."""
        if self._waiting:
            rows = pa.concat_tables(self._waiting)
            latest = rows["is_latest"]
            # Most queries want the rows of current versions, and what is 2048 others in a row DuckDB passes by.
            with self.given("batch", pa.concat_tables((rows.filter(latest), rows.filter(pc.invert(latest))))):
                self.connection.execute(schema.insert_versions(self.name))
            self.forget()

    def forget(self) -> None:
        """Insert nothing of what waits."""
        self._waiting.clear()
        self._rows_waiting = 0

    def take_buckets(self, buckets: Sequence[Bucket]) -> None:
        """Hold these as all buckets there are."""
        if not self.holds(buckets):
            self.connection.execute(f"DELETE FROM {self.name}.buckets")
            self._insert("buckets", batches.buckets(buckets))

    def holds(self, buckets: Sequence[Bucket]) -> bool:
        """Whether these are held as all buckets there are."""
        taken = batches.buckets(buckets)
        held = self.connection.sql(f"FROM {self.name}.buckets").to_arrow_table().cast(taken.schema)
        return bool(held.sort_by("bucket") == taken.sort_by("bucket"))

    def say(self, cursor: str) -> None:
        """The rows are those of this cursor of the feed."""
        self.connection.execute(f"DELETE FROM {self.name}.about")
        self.connection.execute(
            f"INSERT INTO {self.name}.about VALUES (?, ?, ?)", [schema.FORMAT, duckdb.__version__, cursor]
        )

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
