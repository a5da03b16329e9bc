"""``mb`` and ``rb``: making and removing buckets."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import click

from gateway.cli import errors, output
from gateway.cli.options import common
from gateway.cli.paths import Remote, remote_name, require_bucket
from gateway.cli.removing import remove_versions
from gateway.cli.session import Tally, with_store

if TYPE_CHECKING:
    from gateway.transfer import Store


@click.command()
@common
@click.argument("names", metavar="BUCKET...", type=remote_name, nargs=-1, required=True)
@click.option("-p", "--ignore-existing", is_flag=True, help="A bucket that exists already is fine.")
def mb(names: tuple[Remote, ...], ignore_existing: bool) -> None:
    """Make buckets.

    A name has 3 to 63 of a-z, 0-9, '.' and '-'.
    """
    with_store(partial(_mb, names=[require_bucket(name) for name in names], ignore_existing=ignore_existing))


@click.command()
@common
@click.argument("names", metavar="BUCKET...", type=remote_name, nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Remove all objects with all their versions for good, then the bucket.")
def rb(names: tuple[Remote, ...], force: bool) -> None:
    """Remove empty buckets.

    A bucket whose objects are all deleted still holds their versions; --force removes those as well.
    """
    with_store(partial(_rb, names=[require_bucket(name) for name in names], force=force))


async def _mb(store: Store, *, names: Sequence[str], ignore_existing: bool) -> None:
    from objmeta.errors import AlreadyExists

    tally = Tally()
    for name in names:
        try:
            try:
                made = await store.client.create_bucket(name)
            except AlreadyExists:
                if not ignore_existing:
                    raise
                made = await store.client.bucket(name)
            output.emit(output.bucket_record(made), f"made {Remote(name)}")
            tally.succeeded()
        except Exception as error:
            if len(names) == 1 or not errors.concerns_one_object(error):
                raise
            tally.failed(name, error)
    tally.finish()


async def _rb(store: Store, *, names: Sequence[str], force: bool) -> None:
    from objmeta.errors import NoSuchBucket

    tally = Tally()
    for name in names:
        try:
            if force:
                await remove_versions(store, Remote(name), True, tally)
            await store.client.remove_bucket(name)
            output.emit({"bucket": name}, f"removed {Remote(name)}")
            tally.succeeded()
        except Exception as error:
            if len(names) == 1 or not (errors.concerns_one_object(error) or isinstance(error, NoSuchBucket)):
                raise
            tally.failed(name, error)
    tally.finish()
