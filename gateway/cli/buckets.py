"""``mb``, ``rb`` and ``bucket``: making and removing buckets, and their settings."""

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
    from gateway.data.transfer import Store
    from objmeta import Bucket


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


@click.group()
@common
def bucket() -> None:
    """Show and change the settings of a bucket."""


@bucket.command()
@common
@click.argument("name", metavar="BUCKET", type=remote_name)
def show(name: Remote) -> None:
    """Show a bucket and its settings."""

    async def look(store: Store) -> Bucket:
        return await store.client.bucket(require_bucket(name))

    found = with_store(look)
    output.answer(output.bucket_record(found), _described(found))


@bucket.command(name="set")
@common
@click.argument("name", metavar="BUCKET", type=remote_name)
@click.option("--replicas", metavar="N", type=int, help="Copies of each chunk, on as many nodes (0: three).")
@click.option(
    "--keep-versions",
    metavar="N",
    type=int,
    help="Versions kept beside the current one (0: does not matter).",
)
@click.option(
    "--keep-days",
    metavar="D",
    type=float,
    help="Days for which a version is kept after another one took its place (0: does not matter).",
)
@click.option(
    "--expire-delete-markers/--no-expire-delete-markers",
    default=None,
    help="Remove a delete marker when it is all that is left of an object.",
)
def configure(
    name: Remote,
    replicas: int | None,
    keep_versions: int | None,
    keep_days: float | None,
    expire_delete_markers: bool | None,
) -> None:
    """Change the settings of a bucket that are given; the others stay.

    All versions are kept for ever unless --keep-versions or --keep-days says otherwise; with both, a version is removed
    for good when both allow it. Nodes do that in the background; 'gateway gc' does it at once.
    """
    given = {
        "replicas": replicas,
        "keep_versions": keep_versions,
        "keep_days": keep_days,
        "expire_delete_markers": expire_delete_markers,
    }
    if all(value is None for value in given.values()):
        raise click.UsageError("say what to change; 'gateway bucket show' tells how it is")

    async def change(store: Store) -> Bucket:
        return await store.client.configure_bucket(
            require_bucket(name),
            replicas=replicas,
            keep_versions=keep_versions,
            keep_days=keep_days,
            expire_delete_markers=expire_delete_markers,
        )

    found = with_store(change)
    output.emit(output.bucket_record(found), _described(found))


def _described(found: Bucket) -> str:
    settings = found.settings
    kept = []
    if settings.keep_versions:
        kept.append(f"{settings.keep_versions} beside the current one")
    if settings.keep_days:
        others = "the others " if kept else ""
        kept.append(f"{others}for {settings.keep_days:g} days after another one took their place")
    lines = (
        ("bucket", output.shown(str(Remote(found.name)))),
        ("made", output.time_text(found.created)),
        ("replicas", str(settings.replicas) if settings.replicas else "as many as there are nodes, at most 3"),
        ("versions kept", ", ".join(kept) or "all"),
        ("lone delete markers", "expire" if settings.expire_delete_markers else "kept"),
    )
    return "\n".join(output.rows(lines))


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
    from objmeta.errors import BucketNotEmpty, NoSuchBucket

    tally = Tally()
    for name in names:
        try:
            if force:
                await remove_versions(store, Remote(name), True, tally)
            try:
                await store.client.remove_bucket(name)
            except BucketNotEmpty as problem:
                raise BucketNotEmpty(f"{problem}; --force removes them all for good, with the bucket") from None
            output.emit({"bucket": name}, f"removed {Remote(name)}")
            tally.succeeded()
        except Exception as error:
            if len(names) == 1 or not (errors.concerns_one_object(error) or isinstance(error, NoSuchBucket)):
                raise
            tally.failed(name, error)
    tally.finish()
