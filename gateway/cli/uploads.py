"""``upload``: one object written in parts, by several workers or machines, and completed once.

The verbs are those of S3's multipart uploads.  What an upload promises is in ``gateway.data.parts``.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from gateway.cli import errors, output
from gateway.cli.options import common, if_absent_option
from gateway.cli.paths import STANDARD_STREAM, Remote, remote_name, require_object
from gateway.cli.putting import blocks, guess_type, pairs
from gateway.cli.session import Tally, in_thread, with_store

if TYPE_CHECKING:
    from gateway.data.parts import Open, Part
    from gateway.data.transfer import Store

_id = click.argument("upload_id", metavar="ID")


@click.group()
@common
def upload() -> None:
    """Write one object in parts, by several workers.

    \b
      id=$(gateway upload begin bucket/big)
      gateway upload part $id 1 first-half &         in any order, from any machine
      gateway upload part $id 2 second-half &
      wait
      gateway upload complete $id --parts 2

    Nothing is visible before it is completed. What was begun and is neither completed nor aborted within a week is
    forgotten, and its bytes are collected.
    """


@upload.command()
@common
@click.argument("target", metavar="OBJECT", type=remote_name)
@click.option("--content-type", metavar="TYPE", help="Default: by the name's ending.")
@click.option("--meta", metavar="NAME=VALUE", multiple=True, callback=pairs, help="Metadata; may be repeated.")
def begin(target: Remote, content_type: str | None, meta: dict[str, str]) -> None:
    """Begin an upload, and print its id."""
    require_object(target)

    async def work(store: Store) -> str:
        from gateway.data import parts

        kind = content_type or guess_type(target.name)
        return await parts.begin(store, target.bucket, target.key, content_type=kind, metadata=meta)

    upload_id = with_store(work)
    output.answer({"upload_id": upload_id, "bucket": target.bucket, "key": target.key}, upload_id)


@upload.command()
@common
@_id
@click.argument("number", type=int)
@click.argument("source", metavar="FILE")
@click.option("--expect", metavar="BLAKE3", help="Store only content with this digest (else exit code 8).")
def part(upload_id: str, number: int, source: str, expect: str | None) -> None:
    """Store FILE, or standard input (-), as the part of this NUMBER, from 1 on.

    A part may have any length, and replaces the one that had its number. What arrived already is not sent again when
    the command is run once more.
    """

    async def work(store: Store) -> Part:
        with errors.naming("standard input" if source == STANDARD_STREAM else source):
            descriptor = 0 if source == STANDARD_STREAM else await in_thread(os.open, source, os.O_RDONLY)
            try:
                return await _put(store, descriptor)
            finally:
                if descriptor:
                    os.close(descriptor)

    async def _put(store: Store, descriptor: int) -> Part:
        from gateway.data import parts

        status = os.fstat(descriptor)
        total = status.st_size if stat.S_ISREG(status.st_mode) else None
        with output.progress(f"part {number}", total) as advance:
            async with aclosing(blocks(descriptor)) as content:
                return await parts.put_part(store, upload_id, number, content, expected_etag=expect, progress=advance)

    stored = with_store(work)
    output.emit(_part_record(upload_id, number, stored), f"stored part {number}, {output.size_text(stored.size)}")


@upload.command()
@common
@_id
@click.option("--parts", "count", metavar="N", type=int, help="Only if there are exactly the parts 1 to N.")
@if_absent_option
@click.option("--if-version", metavar="ID", help="Replace only this current version (else exit code 6).")
@click.option("--expect", metavar="BLAKE3", help="Store only content with this digest (else exit code 8).")
def complete(upload_id: str, count: int | None, if_absent: bool, if_version: str | None, expect: str | None) -> None:
    """Make the object of all parts, in the order of their numbers.

    They are read once, for the digest of the whole. What keeps it from being completed leaves the upload as it was.
    """
    if if_version is not None and if_absent:
        raise click.UsageError("--if-version and --if-absent exclude each other")

    async def work(store: Store) -> None:
        from gateway.data import parts

        version = await parts.complete(
            store, upload_id, count=count, if_absent=if_absent, if_version=if_version, expected_etag=expect
        )
        name = output.shown(str(Remote(version.bucket, version.key)))
        record = await output.version_record(store, version) | {"upload_id": upload_id}
        output.emit(record, f"stored {name}, {output.size_text(version.size)}, version {version.version_id}")

    with_store(work)


@upload.command()
@common
@click.argument("upload_ids", metavar="ID...", nargs=-1, required=True)
def abort(upload_ids: Sequence[str]) -> None:
    """Forget uploads and their parts."""

    async def work(store: Store) -> None:
        from gateway.data import parts

        tally = Tally()
        for upload_id in upload_ids:
            try:
                async with aclosing(parts.parts_of(store, upload_id)) as found:
                    await anext(found, None)  # an id that was misspelt is to be noticed
                await parts.abort(store, upload_id)
            except Exception as problem:
                if len(upload_ids) == 1 or not errors.concerns_one_object(problem):
                    raise
                tally.failed(upload_id, problem)
                continue
            output.emit({"upload_id": upload_id}, f"aborted {upload_id}")
            tally.succeeded()
        tally.finish()

    with_store(work)


@upload.command(name="list")
@common
@click.argument("prefix", metavar="[BUCKET[/PREFIX]]", type=remote_name, required=False)
def list_(prefix: Remote | None) -> None:
    """List the uploads that are neither completed nor aborted: id, begin, parts, size and object."""

    async def work(store: Store) -> list[Open]:
        from gateway.data import parts

        if prefix is not None:
            await store.client.bucket(prefix.bucket)
        return [found async for found in parts.uploads(store.client) if prefix is None or _is_below(found, prefix)]

    found = sorted(with_store(work), key=lambda each: (each.begun.bucket, each.begun.key, each.begun.begun_s))
    cells = [
        (
            each.upload_id,
            output.time_text(_time(each)),
            output.count_text(each.parts, "part"),
            output.size_text(each.size),
            output.shown(str(Remote(each.begun.bucket, each.begun.key))),
        )
        for each in found
    ]
    for each, text in zip(found, output.rows(cells, right=(2, 3)), strict=True):
        output.answer(_upload_record(each), text)


@upload.command()
@common
@_id
def parts(upload_id: str) -> None:
    """List the parts that an upload has: number, size and digest."""

    async def work(store: Store) -> list[tuple[int, Part]]:
        from gateway.data.parts import parts_of

        return [found async for found in parts_of(store, upload_id)]

    found = with_store(work)
    cells = [(str(number), output.size_text(each.size), each.etag) for number, each in found]
    for (number, each), text in zip(found, output.rows(cells, right=(0, 1)), strict=True):
        output.answer(_part_record(upload_id, number, each), text)


# -- What is shown ----------------------------------------------------------------------------------------------------


def _is_below(found: Open, prefix: Remote) -> bool:
    return found.begun.bucket == prefix.bucket and found.begun.key.startswith(prefix.key)


def _time(found: Open) -> datetime:
    return datetime.fromtimestamp(found.begun.begun_s, UTC)


def _upload_record(found: Open) -> dict[str, Any]:
    return {
        "upload_id": found.upload_id,
        "bucket": found.begun.bucket,
        "key": found.begun.key,
        "begun": _time(found).isoformat(),
        "parts": found.parts,
        "size": found.size,
        "content_type": found.begun.content_type,
        "metadata": found.begun.metadata,
    }


def _part_record(upload_id: str, number: int, found: Part) -> dict[str, Any]:
    return {"upload_id": upload_id, "part_number": number, "size": found.size, "etag": found.etag}
