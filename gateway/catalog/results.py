"""The rows a query gave, as Python values, Arrow, pandas or text."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from objmeta.errors import InvalidArgument

_HUGEINT: Final = pa.decimal128(38, 0)


class Result:
    """The rows a query gave.

    ``as_of``: every change that finished before this moment is in them (None: the query named no table).  ``looked_at``
    is how many objects were read from the store for that.
    """

    def __init__(self, table: pa.Table, as_of: datetime.datetime | None = None, looked_at: int = 0) -> None:
        self._table = with_plain_integers(table)
        self.as_of = as_of
        self.looked_at = looked_at

    @property
    def columns(self) -> list[str]:
        """The names of the columns, in order."""
        return list(self._table.column_names)

    def rows(self) -> list[tuple[Any, ...]]:
        """The rows as Python values: times in UTC, maps as dicts.

        Raises InvalidArgument for dates, times and intervals beyond those of Python, which Arrow can hold.
        """
        if not self._table.num_columns:
            return []
        try:
            return list(zip(*(_values(column) for column in self._table.columns), strict=True))
        except (OverflowError, ValueError) as problem:
            raise InvalidArgument(
                f"the answer has a date or time that Python cannot hold ({problem}); cast it to VARCHAR in the query"
            ) from None

    def arrow(self) -> pa.Table:
        """The rows as a ``pyarrow.Table``."""
        return self._table

    def df(self) -> Any:
        """The rows as a ``pandas.DataFrame`` (needs pandas)."""
        return self._table.to_pandas()

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.rows())

    def __repr__(self) -> str:
        return f"<{len(self)} rows of {', '.join(self.columns)}>"

    def __str__(self) -> str:
        names = self.columns
        numeric = [_is_number(field.type) for field in self._table.schema]
        cells = [[_shown(value) for value in row] for row in self.rows()]
        widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
        lines = [names, ["-" * width for width in widths], *cells]
        return "\n".join(
            "  ".join(
                cell.rjust(width) if right else cell.ljust(width)
                for cell, width, right in zip(line, widths, numeric, strict=True)
            ).rstrip()
            for line in lines
        )


def with_plain_integers(table: pa.Table) -> pa.Table:
    """DuckDB's sum() of integers is a HUGEINT, which Arrow knows only as a decimal: give integers where they fit."""
    for at, field in enumerate(table.schema):
        if field.type == _HUGEINT:
            try:
                whole = pc.cast(table.column(at), pa.int64())
            except pa.ArrowInvalid:
                continue
            table = table.set_column(at, field.name, whole)
    return table


def _values(column: pa.ChunkedArray) -> list[Any]:
    kind = column.type
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        # by way of naive times, which need no time zone database on this machine
        naive = column.cast(pa.timestamp(kind.unit)).to_pylist()
        return [value and value.replace(tzinfo=datetime.UTC) for value in naive]
    if pa.types.is_map(kind):
        return [value if value is None else dict(value) for value in column.to_pylist()]
    return list(column.to_pylist())


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _shown(value: object) -> str:
    match value:
        case None:
            return "NULL"
        case bool():
            return "true" if value else "false"
        case bytes():
            return value.hex()
        case dict() | list():
            return json.dumps(value, ensure_ascii=False, default=str)
        case _:
            return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in str(value))
