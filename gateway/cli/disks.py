"""``disks``: the disks of a store over several directories."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.cli import output
from gateway.cli.options import common
from gateway.cli.session import with_store

if TYPE_CHECKING:
    from gateway.data.transfer import Store


@click.group()
@common
def disks() -> None:
    """Look after a store over several disks. They are named by the setting "disks"; 'gateway status' shows them."""


@disks.command()
@common
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
def replace(old: Path, new: Path) -> None:
    """Have the empty directory NEW take the place of OLD, which may be lost.

    The store can be used meanwhile. What was interrupted goes on when the same command is run again. Afterwards, name
    NEW instead of OLD in the setting "disks".
    """
    place = new.expanduser().absolute()

    async def work(store: Store) -> int:
        from gateway.blobs.disks import DiskBlobs

        await store.client.replace_disk(old, new)
        return await store.blobs.fill(place) if isinstance(store.blobs, DiskBlobs) else 0

    chunks = with_store(work)
    record = {"old": str(old), "new": str(place), "chunks": chunks}
    output.emit(record, f"{place} has taken the place of {old}, with {output.count_text(chunks, 'chunk')}")
