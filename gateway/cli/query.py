"""``sql``: questions about buckets, objects, versions, chunks and nodes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.cli import asking, errors, output, rows
from gateway.cli.options import common, current, reading
from gateway.cli.session import with_store

if TYPE_CHECKING:
    from gateway.catalog.results import Result
    from gateway.data.transfer import Store


@click.command()
@common
@reading
@click.argument("query", required=False)
@click.option("--csv", "as_csv", is_flag=True, help="Print comma-separated values with a header.")
@click.option("-o", "--output", "target", metavar="FILE", help="Write FILE.parquet, FILE.csv or FILE.json (lines).")
@click.option("--catalog", metavar="FILE", help="Keep what is read in FILE (default: in the cache); :memory: for none.")
@click.option("--live", is_flag=True, help="Ask the nodes while the query runs, and keep nothing.")
def sql(query: str | None, as_csv: bool, target: str | None, catalog: str | None, live: bool) -> None:
    """Ask SQL about buckets, objects, versions, chunks and nodes.

    Without QUERY a prompt is opened, or statements are read from standard input, each with a semicolon.

    \b
      gateway sql "SELECT bucket, count(*), sum(size) FROM objects GROUP BY ALL"
      gateway sql "SELECT * FROM versions WHERE key LIKE 'logs/%'" -o versions.parquet
      gateway sql --as-of 2d "SELECT count(*), sum(size) FROM objects"

    Tables: buckets, objects, versions, chunks, nodes; what happened: changes; what is really stored: places, copies,
    stored. The usual questions: largest_prefixes(depth := 1), growth_per_day(), duplicates(), versions_per_key(),
    under_replicated().

    Every change that finished before is in the answer, and what was read is kept, so that the next query costs only
    what has changed since. QUERY may be - for one query from standard input. The dialect is DuckDB's.

    With --as-of buckets, objects, versions and chunks are as they were then, and nothing is kept; nodes, places, copies
    and stored are as they are now, and there is no changes.
    """
    if as_csv and current().json:
        raise click.UsageError("--csv and --json exclude each other")
    ending = os.path.splitext(target)[1].lower() if target else ""
    if target and ending not in _WRITERS:
        raise click.UsageError(f"-o {target}: the file's name must end with {', '.join(_WRITERS)}")
    if query is None:
        if target:
            raise click.UsageError("-o needs a QUERY; - reads it from standard input")
        mode = "json" if current().json else "csv" if as_csv else "table"
        with_store(lambda store: _ask_on(store, mode, catalog, live))
        return
    text = asking.standard_input() if query == "-" else query
    result = with_store(lambda store: _ask(store, text, catalog, live))
    rows.say_as_of(result)
    if target:
        _write(result, Path(target), ending)
        output.emit_text(f"wrote {output.count_text(len(result), 'row')} to {target}")
    elif current().json:
        rows.to_json(result, sys.stdout)
    elif as_csv:
        rows.to_csv(result, sys.stdout)
    elif result.columns:
        output.line(rows.table_text(result))


async def _ask(store: Store, query: str, catalog: str | None, live: bool) -> Result:
    from gateway.catalog.query import sql_async

    with output.counting("reading") as progress:
        return await sql_async(store.client, query, catalog=catalog, live=live, on_read=progress.reached)


async def _ask_on(store: Store, mode: str, catalog: str | None, live: bool) -> None:
    from gateway.catalog.query import Session

    async with Session(store.client, catalog=catalog, live=live) as session:
        await (asking.from_terminal if sys.stdin.isatty() else asking.from_file)(session, mode)


def _write(result: Result, target: Path, ending: str) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with errors.naming(target):
            _WRITERS[ending](result, temporary)
            temporary.replace(target)
    except OSError as failure:
        failure.filename, failure.filename2 = os.fspath(target), None  # nobody knows the other name
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _write_parquet(result: Result, path: Path) -> None:
    import pyarrow.parquet

    with path.open("wb") as file:
        pyarrow.parquet.write_table(result.arrow(), file)


def _write_csv(result: Result, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        rows.to_csv(result, file)


def _write_json(result: Result, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        rows.to_json(result, file)


_WRITERS = {".parquet": _write_parquet, ".csv": _write_csv, ".json": _write_json, ".jsonl": _write_json}
