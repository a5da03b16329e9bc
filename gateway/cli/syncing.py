"""``sync`` and ``import``: directories of the store, of this machine and of other stores made alike.

What is there already is told by its size and its time, or by its content (``--checksum``), so a run that was
interrupted is gone on with by the same command.  Both ends are listed in order and merged (``merging``); what an end is
and does is in ``ends``.
"""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway.cli import errors, merging, output
from gateway.cli.app import say
from gateway.cli.ends.entries import Entry, Unlisted
from gateway.cli.ends.opening import Place, foreign_end, origin, place_of
from gateway.cli.ends.stores import StoreEnd
from gateway.cli.filters import FilteringCommand, Filters, current_filters, filter_options
from gateway.cli.merging import Action
from gateway.cli.options import common, current, reading
from gateway.cli.paths import SCHEME, Remote, either_name
from gateway.cli.putting import LARGE_AT_ONCE, LARGE_BYTES
from gateway.cli.session import Tally, for_each, with_store

if TYPE_CHECKING:
    from gateway.cli.ends.entries import Foreign, Listed, Origin
    from gateway.data.transfer import Store


@dataclass(frozen=True, slots=True)
class _Wishes:
    """What the options say."""

    delete: bool
    dry_run: bool
    checksum: bool
    verbose: bool
    filters: Filters
    options: dict[str, Any]
    from_store: str | None


def _moving(command: Any) -> Any:
    for declare in (
        click.option(
            "-o", "--option", "options", multiple=True, metavar="NAME=VALUE", help="For the URL's file system."
        ),
        click.option("--endpoint-url", metavar="URL", help="The S3 service to use, such as a MinIO."),
        click.option(
            "--from-store", metavar="STORE", help="SOURCE is in this other store: a directory, or host:port,host:port."
        ),
        click.option("-v", "--verbose", is_flag=True, help="Say what is done to each file."),
        filter_options,
        click.option("--checksum", is_flag=True, help="Compare contents, not times."),
        click.option("--dry-run", is_flag=True, help="Only say what would be done."),
    ):
        command = declare(command)
    return command


@click.command(cls=FilteringCommand)
@common
@reading
@click.argument("source", metavar="SOURCE", type=either_name)
@click.argument("target", metavar="TARGET", type=either_name)
@click.option("--delete", is_flag=True, help="Delete at the target what the source does not have.")
@_moving
def sync(source: str, target: str, delete: bool, **options: Any) -> None:
    """Make a directory, of the store or elsewhere, like another one.

    \b
      gateway sync ./photos bucket/photos             this machine to the store
      gateway sync bucket/photos ./photos             and back
      gateway sync bucket/photos other/photos         inside the store; no bytes are moved
      gateway sync s3://old/photos bucket/photos      from S3 (pip install 'objmeta[s3]')
      gateway sync bucket/photos s3://old/photos --endpoint-url http://minio:9000
      gateway sync bucket/photos ./photos --as-of 2h  as they were two hours ago
      gateway sync --from-store /srv/old bucket/photos bucket/photos    from another store

    A directory of this machine begins with /, ./, ../ or ~. URLs are those of fsspec; -o gives its file systems
    options, such as -o anon=true. One of the two has to be in this store.

    What has the same size and the same time is left alone. The source's time is kept as metadata (source-mtime) of an
    object, and as the time of a file. An object without it, and whatever is at a URL, is the same if it was stored
    after the source was changed. With --checksum contents are compared instead, which are then read. Between stores,
    and inside of one, contents are always compared, which costs nothing. Of versions the current ones are copied.

    --include and --exclude are those of "aws s3 sync": the last pattern that matches a name decides, and * matches /,
    too. What is left out is neither copied nor deleted. Nor is anything deleted where the source could not be read.

    With --json each file to which something is done is an object; what it comes to is one on standard error.

    A sync that was interrupted is simply made again. A file is replaced all at once, when the new one is complete. One
    that changes while it is read is reported, and sent again by the next sync.
    """
    with_store(partial(_sync, source=place_of(source), target=place_of(target), wishes=_wishes(delete, **options)))


@click.command("import", cls=FilteringCommand)
@common
@click.argument("source", metavar="SOURCE", type=either_name)
@click.argument("target", metavar="[TARGET]", type=either_name, required=False)
@click.option("--delete", is_flag=True, hidden=True)
@_moving
def import_(source: str, target: str | None, delete: bool, **options: Any) -> None:
    """Bring objects or files from elsewhere into the store.

    \b
      gateway import s3://photos                      all of a bucket, to bucket photos here
      gateway import s3://photos/2026 bucket/2026     what is below 2026/
      gateway import https://host/data.csv bucket/    one file
      gateway import https://host/dir/ bucket/dir     what a page links to
      gateway import /mnt/old bucket/old              a directory of this machine
      gateway import --from-store /srv/old bucket     a bucket of another store, to the same bucket here

    The bucket is made if there is none. Content types and metadata come along from S3. Nothing is deleted, and what is
    there already is not sent again (see gateway sync, also for the options): after an interruption, give the same
    command again.
    """
    if delete:
        raise click.UsageError("an import deletes nothing; 'gateway sync --delete' does")
    place = place_of(source)
    wishes = _wishes(False, **options)
    if place.remote is not None and wishes.from_store is None:
        raise click.UsageError(
            f"{place.remote} is in this store already; 'gateway cp' copies it (--from-store names another store)"
        )
    if target is None and place.remote is not None:
        target = str(place.remote)
    if target is None:
        scheme, found, rest = source.partition("://")
        if not found or "::" in source or scheme in ("http", "https", "file", "local"):
            raise click.UsageError(f"say where {source} is to go, such as bucket/ or bucket/directory")
        target = SCHEME + rest
    goal = place_of(target).remote
    if goal is None:
        raise click.UsageError(f"{target} is not in this store; an object is named objmeta://bucket/key or bucket/key")
    with_store(partial(_import, source=place, target=goal, wishes=wishes))


def _wishes(
    delete: bool,
    *,
    dry_run: bool,
    checksum: bool,
    verbose: bool,
    options: Sequence[str],
    endpoint_url: str | None,
    from_store: str | None,
) -> _Wishes:
    given: dict[str, Any] = {}
    for option in options:
        name, found, text = option.partition("=")
        if not found or not name:
            raise click.UsageError(f"-o {option!r} is not NAME=VALUE")
        try:
            given[name] = json.loads(text)
        except ValueError:
            given[name] = text
    if endpoint_url is not None:
        given["endpoint_url"] = endpoint_url
    return _Wishes(delete, dry_run, checksum, verbose, current_filters(), given, from_store)


def _hint_at_directory(remote: Remote, text: str) -> str:
    return f"; ./{text} is a directory of this machine" if Path(text).is_dir() and not text.startswith(SCHEME) else ""


# -- The commands -----------------------------------------------------------------------------------------------------


async def _sync(store: Store, *, source: Place, target: Place, wishes: _Wishes) -> None:
    from objmeta.errors import NoSuchBucket

    if current().as_of is not None and target.remote is not None:
        said = current().as_of_source or "--as-of"
        raise click.UsageError(f"{said} is for what is fetched; what was cannot be changed")
    if source.remote is None and target.remote is None:
        raise click.UsageError("one of the two has to be in this store, such as objmeta://bucket/directory")
    for place in (source, target) if wishes.from_store is None else (target,):
        if place.remote is not None:
            try:
                await store.client.bucket(place.remote.bucket)
            except NoSuchBucket as missing:
                hint = _hint_at_directory(place.remote, place.text)
                raise NoSuchBucket(f"{missing}{hint}") from None
    if source.remote is not None and target.remote is not None and wishes.from_store is None:
        _refuse_overlap(source.remote, target.remote)
        inside = StoreEnd(store, source.remote)
        await inside.require_source()
        await _Copying(store, wishes, inside, StoreEnd(store, target.remote)).run()
        return
    if target.remote is not None:
        end = await origin(store, source, wishes.options, wishes.from_store)
        try:
            await end.require_source()
            await _Storing(store, wishes, end, StoreEnd(store, target.remote)).run()
        finally:
            await end.close()
        return
    if wishes.from_store is not None:
        raise click.UsageError("with --from-store the target is in this store, such as bucket/directory")
    assert source.remote is not None, "one of the two is in the store"
    inside = StoreEnd(store, source.remote)
    await inside.require_source()
    end = foreign_end(store, target, wishes.options)
    try:
        if not wishes.dry_run:
            await end.prepare_target()
        await _Fetching(store, wishes, inside, end).run()
    finally:
        await end.close()


async def _import(store: Store, *, source: Place, target: Remote, wishes: _Wishes) -> None:
    from objmeta.errors import AlreadyExists, NoSuchBucket

    end = await origin(store, source, wishes.options, wishes.from_store)
    try:
        if await end.take_single():
            work = _Storing(store, wishes, end, StoreEnd(store, target), None if target.is_directory else target)
        else:
            await end.require_source()
            work = _Storing(store, wishes, end, StoreEnd(store, target))
        try:
            await store.client.bucket(target.bucket)
        except NoSuchBucket:
            if wishes.dry_run:
                work.target_is_missing = True
            else:
                with suppress(AlreadyExists):  # somebody else made it, just now
                    await store.client.create_bucket(target.bucket)
                output.emit_text(f"made {Remote(target.bucket)}")
        await work.run()
    finally:
        await end.close()


def _refuse_overlap(source: Remote, target: Remote) -> None:
    ours, theirs = source.as_directory(), target.as_directory()
    if ours.bucket == theirs.bucket and (ours.key.startswith(theirs.key) or theirs.key.startswith(ours.key)):
        raise click.UsageError(f"{source} and {target} are one inside the other, or the same")


# -- What is done -----------------------------------------------------------------------------------------------------


class _Work(ABC):
    """One run: from where to where, and what was done."""

    verb = ""
    past = ""

    def __init__(self, store: Store, wishes: _Wishes, source: Any, target: Any) -> None:
        self.store = store
        self.wishes = wishes
        self.source = source
        self.target = target
        self.target_is_missing = False
        self.tally = Tally()
        self.tally.pretends = wishes.dry_run
        self.deleted = 0
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)

    @abstractmethod
    def differs(self, source: Entry, target: Entry) -> str | None:
        """Why what is at the target is to be replaced, or None."""

    @abstractmethod
    async def same_content(self, source: Entry, target: Entry) -> bool:
        """Whether contents of the same size are the same; what is at one end is read."""

    @abstractmethod
    async def move(self, entry: Entry, advance: output.Progress) -> None:
        """Replace what is at the target."""

    async def keep(self, entry: Entry) -> None:  # noqa: B027  (most have nothing to do)
        """What is at the target is as it should be."""

    def target_name(self, name: str) -> str:
        """What the target calls it."""
        text: str = self.target.full_name(name)
        return text

    def whole_target(self) -> str:
        """What is made alike."""
        return str(self.target)

    async def run(self) -> None:
        """Do all of it."""
        with output.progress(self.verb, None) as advance:

            async def work(action: Action) -> None:
                if action.size > LARGE_BYTES:
                    async with self._large:
                        await self._act(action, advance)
                else:
                    await self._act(action, advance)
                advance.did()

            async with aclosing(self._actions()) as items:
                await for_each(
                    items, work, self.tally, name=self._name_of, found=lambda action: advance.expect(action.size)
                )
        self._summarize()
        self.tally.finish()

    async def _actions(self) -> AsyncGenerator[Action, None]:
        target = _nothing() if self.target_is_missing else self.target.entries()
        async for each in merging.actions(
            self.source.entries(), target, self.wishes.filters, self.differs, delete=self.wishes.delete
        ):
            if isinstance(each, Action):
                yield each
            elif isinstance(each, Unlisted):
                if each.reason:
                    self.tally.failed(self.source.full_name(each.name), each.reason)
            else:
                await self.keep(each)
                self.tally.kept()

    def _name_of(self, action: Action) -> str:
        end = self.target if action.source is None else self.source
        name: str = end.full_name(action.name)
        return name

    async def _act(self, action: Action, advance: output.Progress) -> None:
        source, target = action.source, action.target
        if source is None:
            if not self.wishes.dry_run:
                await self.target.delete(target)
            self.deleted += 1
            self._report("delete", "deleted", action)
            self.tally.succeeded()
            return
        if action.reason == merging.CONTENT and target is not None and await self.same_content(source, target):
            advance(source.size)
            self.tally.kept()
            return
        if not self.wishes.dry_run:
            await self.move(source, advance)
        self.tally.succeeded(source.size)
        self._report(self.verb, self.past, action)

    def _report(self, verb: str, past: str, action: Action) -> None:
        target = self.target_name(action.name)
        source = None if action.source is None else self.source.full_name(action.name)
        record = {
            "action": verb,
            "source": source,
            "target": target,
            "size": action.size,
            "reason": action.reason,
            "dry_run": self.wishes.dry_run,
        }
        text = f"{f'would {verb}' if self.wishes.dry_run else past} {output.shown(target)} ({action.reason})"
        output.emit(record, text if self.wishes.dry_run or self.wishes.verbose else None)

    def _summarize(self) -> None:
        moved = self.tally.done - self.deleted
        parts = [f"{output.count_text(moved, 'object')}, {output.size_text(self.tally.bytes)}"]
        if self.wishes.delete:
            parts.append(f"{'would delete' if self.wishes.dry_run else 'deleted'} {self.deleted}")
        parts.append(f"{self.tally.unchanged} there already")
        verb = f"would {self.verb}" if self.wishes.dry_run else self.past
        text = f"{verb} {'; '.join(parts)}: {output.shown(self.whole_target())}"
        output.emit_text(text)
        if current().json and not current().quiet:
            record = {
                "target": self.whole_target(),
                "objects": moved,
                "bytes": self.tally.bytes,
                "deleted": self.deleted,
                "unchanged": self.tally.unchanged,
                "dry_run": self.wishes.dry_run,
            }
            say(text, {"message": text} | record)


class _Copying(_Work):
    """Inside the store."""

    verb, past = "copy", "copied"
    source: StoreEnd
    target: StoreEnd

    def differs(self, source: Entry, target: Entry) -> str | None:
        same = source.size == target.size and source.etag == target.etag
        return None if same else merging.SIZE if source.size != target.size else merging.CONTENT

    async def same_content(self, source: Entry, target: Entry) -> bool:
        return source.etag == target.etag

    async def move(self, entry: Entry, advance: output.Progress) -> None:
        await self.source.copy(entry, self.target.remote(entry.name))
        advance(entry.size)


class _Storing(_Work):
    """From elsewhere into the store; a single file may get another name, ``alone``."""

    verb, past = "store", "stored"
    source: Origin
    target: StoreEnd

    def __init__(
        self, store: Store, wishes: _Wishes, source: Origin, target: StoreEnd, alone: Remote | None = None
    ) -> None:
        super().__init__(store, wishes, source, target)
        self._alone = alone
        self.target_is_missing = alone is not None  # one file is always stored

    def target_name(self, name: str) -> str:
        return str(self._alone or self.target.remote(name))

    def whole_target(self) -> str:
        return str(self._alone or self.target)

    def differs(self, source: Entry, target: Entry) -> str | None:
        if source.size != target.size:
            return merging.SIZE
        if source.etag:
            return None if source.etag == target.etag else merging.CONTENT
        if self.wishes.checksum:
            return merging.CONTENT
        if source.mtime_ns is None or target.written_ns is None:
            return merging.TIME
        if target.mtime_ns is not None:
            return None if target.mtime_ns == source.mtime_ns else merging.TIME
        return None if target.written_ns >= source.mtime_ns else merging.TIME

    async def same_content(self, source: Entry, target: Entry) -> bool:
        return await self.source.digest(source) == target.etag

    async def move(self, entry: Entry, advance: output.Progress) -> None:
        with errors.naming(self.source.full_name(entry.name)):
            await self.source.send(self.store, entry, self._alone or self.target.remote(entry.name), advance)


class _Fetching(_Work):
    """From the store to elsewhere."""

    verb, past = "write", "wrote"
    source: StoreEnd
    target: Foreign

    def differs(self, source: Entry, target: Entry) -> str | None:
        if source.size != target.size:
            return merging.SIZE
        if self.wishes.checksum:
            return merging.CONTENT
        assert source.written_ns is not None, "the store knows when an object was stored"
        if self.target.keeps_times:
            # another time, as after a get: whether it is the same is seen at once, and cheaper than fetching it
            time_ns = source.written_ns if source.mtime_ns is None else source.mtime_ns
            return None if target.mtime_ns == time_ns else merging.CONTENT
        if target.mtime_ns is None or target.mtime_ns == source.mtime_ns:  # it came from there
            return merging.TIME if target.mtime_ns is None else None
        return None if target.mtime_ns >= source.written_ns else merging.TIME

    async def same_content(self, source: Entry, target: Entry) -> bool:
        if await self.target.digest(target) != source.etag:
            return False
        if not self.wishes.dry_run:
            await self.target.agree(target, source)
        return True

    async def keep(self, entry: Entry) -> None:
        if entry.is_directory:
            await self.target.agree(entry, entry)

    async def move(self, entry: Entry, advance: output.Progress) -> None:
        await self.target.fetch(self.store, self.source.remote(entry.name), entry, advance)


async def _nothing() -> AsyncIterator[Listed]:
    nothing: tuple[Listed, ...] = ()
    for entry in nothing:
        yield entry
