"""The rows of a query as people and programs get them: a table, comma-separated values, lines of JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import click

from gateway.cli import output
from gateway.cli.options import current

if TYPE_CHECKING:
    from gateway.catalog.results import Result


_PLAN: Final = ["explain_key", "explain_value"]


def say_as_of(result: Result, took_s: float | None = None) -> None:
    """On stderr: before which moment every change is in the answer, and how long it took, if that is told."""
    if current().quiet or (result.as_of is None and took_s is None):
        return
    if current().json:
        as_of = {} if result.as_of is None else {"as_of": result.as_of.isoformat()}
        took = {} if took_s is None else {"seconds": round(took_s, 6)}
        click.echo(output.json_text(as_of | took), err=True)
        return
    said = [] if result.as_of is None else [f"as of {result.as_of:%Y-%m-%dT%H:%M:%SZ}"]
    if took_s is not None:
        counted = [output.count_text(len(result), "row")] if result.columns else []
        said = [" ".join(counted + said), f"in {took_s:.3f} s"]
    click.echo(", ".join(filter(None, said)), err=True)


def to_table(result: Result, file: Any, header: bool = True) -> None:
    """Aligned columns; a table is never without its header."""
    file.write(f"{table_text(result)}\n")


def table_text(result: Result) -> str:
    """The rows as a table; a plan, which EXPLAIN gives, as the drawing that it is."""
    if result.columns == _PLAN:
        return "\n".join(text.rstrip("\n") for _, text in result)
    return str(result)


def to_json(result: Result, file: Any, header: bool = True) -> None:
    """One object a line; there is no header."""
    names = result.columns
    for row in result:
        record = {name: _plain(value) for name, value in zip(names, row, strict=True)}
        file.write(output.json_text(record) + "\n")


def to_csv(result: Result, file: Any, header: bool = True) -> None:
    """Values with commas between them."""
    writer = csv.writer(file, lineterminator="\n")
    if header:
        writer.writerow(result.columns)
    for row in result:
        writer.writerow(_cell(value) for value in row)


FORMATS: Final[dict[str, Callable[[Any, Any, bool], None]]] = {"table": to_table, "csv": to_csv, "json": to_json}
"""What a prompt can show; each takes a result, a file, and whether a header is due."""


def _plain(value: Any) -> Any:
    match value:
        case bytes():
            return value.hex()
        case float() if value != value or value in (float("inf"), float("-inf")):
            return None
        case dict():
            return {str(name): _plain(item) for name, item in value.items()}
        case list():
            return [_plain(item) for item in value]
        case (months, days, nanoseconds):  # an interval, as Arrow has it; written as ISO 8601 has it
            return f"P{months}M{days}DT{nanoseconds / 1e9:g}S"
        case None | bool() | int() | float() | str():
            return value
        case _ if hasattr(value, "isoformat"):
            return value.isoformat()
        case _:
            return str(value)


def _cell(value: Any) -> Any:
    plain = _plain(value)
    if isinstance(plain, bool):
        return "true" if plain else "false"  # as in the table, and as other programs write them
    return json.dumps(plain, ensure_ascii=False) if isinstance(plain, dict | list) else plain
