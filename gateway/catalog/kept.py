"""The catalog that is kept between queries: a DuckDB file for each store, brought up to date before it is used.

Rules.
* Rows and the cursor they belong to are committed in one transaction, so a crash leaves an older catalog, not a wrong
  one.  A catalog is built anew beside its place and renamed to it.  Small changes go to DuckDB's log beside the
  file, which is written into the file once the answer is there (``checkpoints``); what is in it is part of the catalog.
* A file is built anew when it is damaged, when another version of DuckDB or of this module made it, or when the feed
  says reload.  What somebody names (``path``) and was not made by us is refused, never overwritten.
* DuckDB lets one process write a file, or several read it.  An advisory lock beside the file says who: exclusive to
  bring it up to date, shared while a query reads it, so that nobody waits for a query.  Whoever cannot get the
  exclusive one in a moment copies the file, as soon as nobody writes it, and brings the copy up to date.
* A catalog is opened for reading, and for writing only once there is something to write.  What is asked of the store
  does not depend on that.  In between somebody else may write it, so whoever opens it for writing begins anew.
* The lock goes with its process, and so does a private copy.  What a process left that was killed, the next one that
  gets the exclusive lock removes: a catalog that was being built, and private copies that nobody holds a lock on.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import duckdb

from gateway.catalog import batches, checkpoints
from gateway.catalog.decoding import Decoded
from gateway.catalog.rows import Rows
from objmeta import Bucket, Cluster
from objmeta.client import Location
from objmeta.errors import InvalidArgument, StoreError

MEMORY: Final = ":memory:"
"""As a path: keep nothing."""
_BUILDING: Final = "building"
_PRIVATE: Final = "private"
_WRITE_PATIENCE_S: Final = 0.3
_READ_PATIENCE_S: Final = 120.0
"""Somebody is building the catalog: faster than doing it, too."""
_LOOK_S: Final = 0.02
_ABOUT: Final = "FROM kept.about"
_DAMAGE: Final = ("corrupt", "checksum", "not a valid duckdb", "serialization error", "invalidated", "deserialize")


def default_path(location: Location) -> Path:
    """Where the catalog of a store is, unless somebody says otherwise: in the user's cache directory."""
    import platformdirs

    name = ",".join(location.endpoints) if isinstance(location, Cluster) else repr(location)
    directory = Path(platformdirs.user_cache_dir("objmeta", appauthor=False)) / "catalogs"
    return directory / f"{hashlib.blake2b(name.encode(), digest_size=12).hexdigest()}.duckdb"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a catalog is kept; ``private`` is a directory for a copy of it, made only when it is needed.

    ``named``: somebody chose the file, so it must not be written over if it is something else.  ``stop`` is set by
    another thread to end the waiting for a lock.
    """

    path: Path
    named: bool
    private: Path
    stop: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def at(cls, path: Path, named: bool) -> Place:
        """The file ``path``."""
        return cls(path, named, _beside(path, f"{_PRIVATE}-{os.getpid()}-{os.urandom(4).hex()}"))

    def is_same(self, other: Place | None) -> bool:
        """Whether the other is the same file, and was chosen in the same way."""
        return other is not None and (self.path, self.named) == (other.path, other.named)

    def files(self) -> list[Path]:
        """What DuckDB opens beside the private copy."""
        return [*_files_of(self.path), *_files_of(_beside(self.path, _BUILDING))]


class Catalog:
    """The kept tables of one store, attached to a connection as ``kept``; made by :func:`opened`."""

    def __init__(self, database: Any, place: Place | None, locks: contextlib.ExitStack) -> None:
        self._database = database
        self._place = place
        self._locks = locks
        self._reading = locks.enter_context(contextlib.ExitStack())
        self._path: Path | None = None
        self._share = _nothing
        self._rows = Rows(database, "kept")
        self._loader = locks.enter_context(contextlib.ExitStack())
        self._loading = threading.Lock()
        """Held by who interrupts the connection of a load, so that it is there."""
        self._begun = False
        self._renewed: set[bytes] = set()
        """Ids of the buckets made anew whose older rows were forgotten in this transaction."""
        self.is_read_only = False
        """Nothing can be written before :meth:`write`."""
        self.cursor: str | None = None
        """Where the feed is to be gone on from; None: everything must be loaded."""

    # -- Where it is --------------------------------------------------------------------------------------------------

    def read(self) -> None:
        """Open what is kept for reading, if it is good and nobody writes it; else as :meth:`write` does."""
        if self._place is None:
            self._attach(MEMORY)
            self._rows.make()
            return
        if _is_shared(self._place, self._reading):
            with contextlib.suppress(duckdb.Error):
                self._open(self._place.path, "(READ_ONLY)")
        if self.cursor is not None:
            self._path = self._place.path
            self.is_read_only = True
        else:
            self.write()

    def write(self) -> None:
        """Open what is kept by now, if it is good, else nothing, so that it must be loaded."""
        assert self._place is not None, "what is in memory can always be written"
        self._detach("kept")
        self._reading.close()
        self.is_read_only = False
        self.cursor = None
        path, self._share = _taken(self._place, self._locks)
        self._path = path
        if path.exists():
            try:
                self._open(path)
            except duckdb.Error:
                if self._place.named and path == self._place.path:
                    raise InvalidArgument(
                        f"{path} is no catalog that can be read: name another file, or remove this one"
                    ) from None

    def stand_in(self) -> None:
        """Where nothing is kept yet, have empty tables, so that what names them can be checked."""
        if self.cursor is None and self._path is not None:
            self._detach("kept")
            self._attach(MEMORY)
            self._rows.make()

    def begin_load(self) -> None:
        """From here on rows go to new, empty tables, and what was kept is let go of."""
        self.cursor = None
        self._detach("kept")
        if self._path is None:
            self._attach(MEMORY)
            self._rows.make()
            self._begin()
        else:
            building = _beside(self._path, _BUILDING)
            remove(building)
            self._loader.callback(remove, building)  # unless it has been renamed
            # A second thread of DuckDB's would do no more of this work, but cost half as much again.
            loader = duckdb.connect(config={"threads": 1, "write_buffer_row_group_count": 1, "temp_directory": ""})
            self._loader.callback(loader.close)
            loader.execute(f"ATTACH {quoted(str(building))} AS building")
            self._rows = Rows(loader, "building")
            self._rows.make()
            loader.execute("BEGIN")

    def end_load(self, buckets: Sequence[Bucket], cursor: str) -> None:
        """All rows are there: put them in the place of what was kept."""
        rows = self._rows
        rows.flush()
        rows.take_buckets(buckets)
        rows.say(cursor)
        self.cursor = cursor
        if self._path is None:
            self._commit()
        else:
            for statement in ("COMMIT", "CHECKPOINT building", "DETACH building"):  # it is to be one file
                rows.connection.execute(statement)
            remove(self._path)
            _beside(self._path, _BUILDING).replace(self._path)
            self._end_loader()
            self._attach(str(self._path))

    def settle(self) -> None:
        """Nothing is written any more, whatever a query says."""
        if self._path is not None and not self.is_read_only:
            self._detach("kept")
            self._share()
            self._database.execute(f"ATTACH {quoted(str(self._path))} AS kept (READ_ONLY)")

    def detach(self) -> None:
        """Let go of the file."""
        self._end_loader()
        self._detach("kept")

    def interrupt(self) -> None:
        """Stop what writes a new file, from another thread."""
        with self._loading:
            if self._rows.connection is not self._database:
                self._rows.connection.interrupt()

    # -- Rows ---------------------------------------------------------------------------------------------------------

    def load(self, page: Future[Decoded]) -> int:
        """Add the rows of a page in a load, once they are there; the number of its objects."""
        found = page.result()
        self._rows.add(found)
        return found.objects

    def change(self, objects: Collection[tuple[str, str]], pages: Iterable[Decoded]) -> None:
        """Have of these objects, each by bucket and key, the rows of the pages and no others."""
        if objects:
            self._rows.change(objects, pages)

    @property
    def lacks_chunks(self) -> bool:
        """Whether there are lists of chunks that could not be read."""
        return bool(self._database.execute("SELECT 1 FROM kept.version_rows WHERE chunks IS NULL LIMIT 1").fetchall())

    def fill(self, resolve: batches.Resolve) -> None:
        """Read the lists of chunks that could not be read before."""
        missing = self._database.execute(
            "SELECT object, bucket, key, version_id, lists FROM kept.version_rows WHERE chunks IS NULL"
        ).fetchall()
        for number, bucket, key, version_id, lists in missing:
            found = resolve(bucket, key, version_id, batches.lists_of(lists))
            if found is not None:
                chunks = [{"digest": chunk.digest.hex(), "length": chunk.length} for chunk in found]
                self._database.execute(
                    "UPDATE kept.version_rows SET chunks = ? WHERE object = ? AND version_id = ?",
                    [chunks, number, version_id],
                )

    def begin_change(self) -> None:
        """The next changes are one."""
        self._begin()

    def end_change(self, buckets: Sequence[Bucket], cursor: str) -> None:
        """Take the buckets as they are now, forget what was in those that are gone, and commit."""
        now = {bucket.name for bucket in buckets}
        gone = [bucket.name for bucket in self._rows.buckets if bucket.name not in now]
        if gone:
            for name in ("version_rows", "removals"):
                self._database.execute(f"DELETE FROM kept.{name} WHERE bucket IN (SELECT unnest(?))", [gone])
        are_held = self.holds(buckets)
        if not are_held:
            self.take_buckets(buckets)
        if cursor != self.cursor or not are_held:
            self._rows.say(cursor)
            self.cursor = cursor
        self._commit()

    def forget_renewed(self, buckets: Sequence[Bucket]) -> None:
        """Forget what was in buckets that were removed and made anew, before changes of the new ones are taken."""
        kept = {bucket.name: bucket.bucket_id for bucket in self._rows.buckets}
        new = [each for each in buckets if kept.get(each.name, each.bucket_id) != each.bucket_id]
        renewed = [each.name for each in new if each.bucket_id not in self._renewed]
        self._renewed.update(each.bucket_id for each in new)
        if renewed:
            for name in ("version_rows", "removals"):
                self._database.execute(f"DELETE FROM kept.{name} WHERE bucket IN (SELECT unnest(?))", [renewed])

    def roll_back(self) -> None:
        """Undo what was begun, if anything was; the cursor is again that of the rows."""
        self._rows.forget()
        if not self._begun:
            return
        self._surely("ROLLBACK")
        self._begun = False
        self.cursor = self._rows.said(self._surely(_ABOUT))

    # -- Helpers ------------------------------------------------------------------------------------------------------

    def take_buckets(self, buckets: Sequence[Bucket]) -> None:
        """Hold these as all buckets there are."""
        self._rows.take_buckets(buckets)

    def holds(self, buckets: Sequence[Bucket]) -> bool:
        """Whether these are held as all buckets there are."""
        return self._rows.holds(buckets)

    def _begin(self) -> None:
        self._begun = True
        self._renewed.clear()
        self._database.execute("BEGIN")

    def _commit(self) -> None:
        self._database.execute("COMMIT")
        self._begun = False

    def _end_loader(self) -> None:
        with self._loading:  # nobody interrupts it while it is closed, which DuckDB does not survive
            buckets = self._rows.buckets
            self._rows = Rows(self._database, "kept")
            self._rows.buckets = buckets
        self._loader.close()

    def _open(self, path: Path, how: str = "") -> None:
        self._attach(str(path), how)
        self.cursor = self._rows.said(self._database.execute(_ABOUT).fetchall())

    def _attach(self, path: str, how: str = "") -> None:
        self._database.execute(f"ATTACH {quoted(path)} AS kept {how}")

    def _detach(self, name: str) -> None:
        self._surely(f"DETACH DATABASE IF EXISTS {name}")

    def _surely(self, statement: str) -> list[Any]:
        """Clean up, also while somebody interrupts what runs here; what cannot be done was not needed."""
        while True:
            try:
                return list(self._database.execute(statement).fetchall())
            except duckdb.InterruptException:
                continue
            except duckdb.Error:
                return []


@contextlib.contextmanager
def opened(database: Any, place: Place | None) -> Iterator[Catalog]:
    """The catalog of a place (None: in memory), to be brought up to date and settled.

    Raises InvalidArgument if the file is something else and somebody chose it; StoreError if the directory cannot be
    used.
    """
    if place is not None:
        checkpoints.wait()
    try:
        with contextlib.ExitStack() as locks, contextlib.ExitStack() as held:
            catalog = Catalog(database, place, locks)
            held.callback(catalog.detach)
            held.callback(catalog.roll_back)
            catalog.read()
            yield catalog
    finally:
        if place is not None:
            checkpoints.begin(place.path, _beside(place.path, "wal"), _beside(place.path, "lock"))


def is_damage(error: BaseException) -> bool:
    """Whether DuckDB says that a file is damaged."""
    return isinstance(error, duckdb.Error) and any(word in str(error).lower() for word in _DAMAGE)


def remove(path: Path) -> None:
    """Forget a catalog; the next query builds it anew."""
    for each in _files_of(path):
        each.unlink(missing_ok=True)


def _is_shared(place: Place, held: contextlib.ExitStack) -> bool:
    """Whether the file is there to be read, and nobody writes it until ``held`` is closed."""
    try:
        lock = os.open(_beside(place.path, "lock"), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    held.callback(os.close, lock)
    if not _locked(lock, fcntl.LOCK_SH, _WRITE_PATIENCE_S, place.stop):
        return False
    _tidy_private(place.path)
    return place.path.exists()


def _taken(place: Place, held: contextlib.ExitStack) -> tuple[Path, Callable[[], None]]:
    """Where to work, locked or private; and what to call when only reading is left."""
    path = place.path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(_beside(path, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as problem:
        raise StoreError(
            f"the catalog {path} cannot be kept: {problem.strerror}; name another file (--catalog), or {MEMORY}"
        ) from None
    held.callback(os.close, lock)
    if _locked(lock, fcntl.LOCK_EX, _WRITE_PATIENCE_S, place.stop):
        _tidy(path)
        return path, lambda: fcntl.flock(lock, fcntl.LOCK_SH)
    _make_private(place.private, held)
    if _locked(lock, fcntl.LOCK_SH, _READ_PATIENCE_S, place.stop):
        for each in (path, _beside(path, "wal")):
            if each.exists():
                shutil.copyfile(each, place.private / each.name)
        fcntl.flock(lock, fcntl.LOCK_UN)
    return place.private / path.name, _nothing


def _make_private(directory: Path, held: contextlib.ExitStack) -> None:
    """Make a directory whose lock says that somebody works in it."""
    while True:
        directory.mkdir(mode=0o700)
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if directory.exists():
            break
        os.close(lock)  # somebody tidied before it was locked
    held.callback(os.close, lock)
    held.callback(shutil.rmtree, directory, ignore_errors=True)


def _tidy(path: Path) -> None:
    """Remove what dead processes left; the caller is the only one who may write the catalog."""
    remove(_beside(path, _BUILDING))
    _tidy_private(path)


def _tidy_private(path: Path) -> None:
    for each in path.parent.glob(f"{glob.escape(path.name)}.{_PRIVATE}-*"):
        try:
            lock = os.open(each, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue  # gone, or none of ours
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(each, ignore_errors=True)
        except BlockingIOError:
            pass  # somebody works in it
        finally:
            os.close(lock)


def _nothing() -> None:
    """There is nothing to share."""


def _locked(lock: int, kind: int, patience_s: float, stop: threading.Event) -> bool:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            if stop.wait(_LOOK_S):
                raise StoreError("the query was stopped while another process had the catalog") from None
        else:
            return True


def _files_of(path: Path) -> list[Path]:
    """A database and what DuckDB may have beside it."""
    return [path, *(_beside(path, what) for what in ("wal", "wal.checkpoint", "wal.recovery"))]


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f"{path.name}.{what}")


def quoted(text: str) -> str:
    """A string as SQL writes it."""
    return "'" + text.replace("'", "''") + "'"
