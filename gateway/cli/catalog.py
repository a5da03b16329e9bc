"""``catalog``: what SQL sees of the store, for other programs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.cli import output
from gateway.cli.app import say
from gateway.cli.options import common, reading
from gateway.cli.session import with_store

if TYPE_CHECKING:
    from gateway.catalog.results import Result
    from gateway.data.transfer import Store


@click.group()
@common
def catalog() -> None:
    """What SQL sees of the store, for other programs."""


@catalog.command()
@common
@reading
@click.argument("directory", metavar="DIR")
@click.option("--overwrite", is_flag=True, help="Replace an earlier export in DIR, once the new one is complete.")
def export(directory: str, overwrite: bool) -> None:
    """Write all versions and buckets as Parquet, for Spark, Dask, Trino and others.

    Versions are partitioned by bucket (hive): DIR/versions/bucket=NAME/. DIR is there whole or not at all.
    """
    result = with_store(lambda store: _export(store, directory, overwrite))
    as_of = result.as_of.isoformat() if result.as_of is not None else None
    record = {"directory": directory, "versions": len(result), "as_of": as_of}
    output.emit(record, f"wrote {output.count_text(len(result), 'version')} to {directory}, as of {as_of}")


async def _export(store: Store, directory: str, overwrite: bool) -> Result:
    from gateway.catalog.export import export

    before = _identity(directory)
    try:
        with output.counting("reading") as progress:
            result = await export(store.client, directory, overwrite=overwrite, on_read=progress.reached)
            await asyncio.sleep(0)  # an interruption while it was written is told of here
            return result
    except asyncio.CancelledError:
        if _identity(directory) != before:
            text, written = f"{directory} is written as a whole", True
        else:
            text, written = f"nothing was written: {directory} is {'as it was' if before else 'not there'}", False
        say(text, {"message": text, "written": written})
        raise


def _identity(directory: str) -> tuple[int, int] | None:
    """What a directory is told from another one by that takes its place."""
    try:
        found = Path(directory).expanduser().stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
