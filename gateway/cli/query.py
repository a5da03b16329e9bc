"""``sql``: questions about buckets, objects, versions, chunks and nodes."""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway.cli import errors, output
from gateway.cli.options import common, current
from gateway.cli.session import with_store

if TYPE_CHECKING:
    from gateway.catalog.results import Result
    from gateway.data.transfer import Store


@click.command()
@common
@click.argument("query")
@click.option("--csv", "as_csv", is_flag=True, help="Print comma-separated values with a header.")
@click.option("-o", "--output", "target", metavar="FILE", help="Write FILE.parquet, FILE.csv or FILE.json (lines).")
@click.option("--catalog", metavar="FILE", help="Keep what is read in FILE (default: in the cache); :memory: for none.")
@click.option("--live", is_flag=True, help="Ask the nodes while the query runs, and keep nothing.")
def sql(query: str, as_csv: bool, target: str | None, catalog: str | None, live: bool) -> None:
    """Ask SQL about buckets, objects, versions, chunks and nodes.

    \b
      gateway sql "SELECT bucket, count(*), sum(size) FROM objects GROUP BY ALL"
      gateway sql "SELECT * FROM versions WHERE key LIKE 'logs/%'" -o versions.parquet

    Tables: buckets, objects, versions, chunks, nodes; what happened: changes; what is really stored: places, copies,
    stored. The usual questions: largest_prefixes(depth := 1), growth_per_day(), duplicates(), versions_per_key(),
    under_replicated().

    Every change that finished before is in the answer, and what was read is kept, so that the next query costs only
    what has changed since. QUERY may be - for standard input. The dialect is DuckDB's.
    """
    if as_csv and current().json:
        raise click.UsageError("--csv and --json exclude each other")
    ending = os.path.splitext(target)[1].lower() if target else ""
    if target and ending not in _WRITERS:
        raise click.UsageError(f"-o {target}: the file's name must end with {', '.join(_WRITERS)}")
    text = sys.stdin.read() if query == "-" else query
    result = with_store(lambda store: _ask(store, text, catalog, live))
    _say_as_of(result)
    if target:
        _write(result, Path(target), ending)
        output.emit_text(f"wrote {output.count_text(len(result), 'row')} to {target}")
    elif current().json:
        _to_json(result, sys.stdout)
    elif as_csv:
        _to_csv(result, sys.stdout)
    elif result.columns:
        output.line(str(result))


async def _ask(store: Store, query: str, catalog: str | None, live: bool) -> Result:
    from gateway.catalog.query import sql_async

    return await sql_async(store.client, query, catalog=catalog, live=live)


def _say_as_of(result: Result) -> None:
    """On stderr: before which moment every change is in the answer."""
    if result.as_of is None or current().quiet:
        return
    if current().json:
        click.echo(output.json_text({"as_of": result.as_of.isoformat()}), err=True)
    else:
        click.echo(f"as of {result.as_of:%Y-%m-%dT%H:%M:%SZ}", err=True)


def _write(result: Result, target: Path, ending: str) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with errors.naming(target):
            _WRITERS[ending](result, temporary)
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _write_parquet(result: Result, path: Path) -> None:
    import pyarrow.parquet

    pyarrow.parquet.write_table(result.arrow(), path)


def _write_csv(result: Result, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        _to_csv(result, file)


def _write_json(result: Result, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        _to_json(result, file)


_WRITERS = {".parquet": _write_parquet, ".csv": _write_csv, ".json": _write_json, ".jsonl": _write_json}


def _to_json(result: Result, file: Any) -> None:
    names = result.columns
    for row in result:
        record = {name: _plain(value) for name, value in zip(names, row, strict=True)}
        file.write(output.json_text(record) + "\n")


def _to_csv(result: Result, file: Any) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(result.columns)
    for row in result:
        writer.writerow(_cell(value) for value in row)


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
