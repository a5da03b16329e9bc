"""An acceptor's durable state in SQLite: one directory, any number of processes at once.

Rules.

* Each batch is one ``BEGIN IMMEDIATE`` … ``COMMIT`` that reads, decides (:func:`objmeta.core.acceptor.step`) and
  writes; floors, terms, rows and the configuration are read inside it, and nothing is kept from one to the next.
* WAL with ``synchronous=FULL``: a commit shows in the log's index only after its sync, so readers see only what is
  durable.  Each read is one snapshot on a connection of its own and never waits for a writer.
* A commit that fails is made void by a later one before anybody hears of the failure: a log cut off by a crash could
  bring it back otherwise.  If not even that succeeds, the outcome is unknown and said to be.
* After a fork the child is refused, and has inherited no connection (``sqlite_connections``): it may open the store
  anew.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import starmap
from pathlib import Path
from typing import Any, Final, TypeVar
from zlib import crc32

import msgspec

from objmeta.core.ballot import Ballot
from objmeta.core.configuration import Configuration, ConfigurationTag, Membership
from objmeta.core.inventory import DigestRequest, Digests, Inventory, InventoryRequest
from objmeta.core.listing import ScanAnswer, ScanRequest
from objmeta.core.messages import TOMBSTONE, RecordRef, Refusal, Reply
from objmeta.errors import IntegrityError, StoreError, UnknownOutcome
from objmeta.interfaces import Changes, Envelope
from objmeta.store import directories
from objmeta.store import sqlite_files as files
from objmeta.store.checksums import Proofs, agrees, is_name_sound, is_sound, store_sum
from objmeta.store.inventories import HeldRow, NamedRef, digests, inventory
from objmeta.store.pages import UNKNOWN, StoredRecord, encoded_record, page
from objmeta.store.sqlite_connections import Connections
from objmeta.store.sqlite_view import Identity, TransactionView
from objmeta.store.steps import answer, check_reads, check_tag, check_term, refusal

CHANGES_KEPT: Final = 100_000
"""Change numbers kept for :meth:`SqliteStore.changes`; a follower further behind reads everything anew."""
_PRUNED_PER_BATCH_MAX: Final = 256
"""Old changes dropped per batch beyond those it added, so that no batch is slow."""
_PAGES_PER_SHRINKING: Final = 512
"""2 MiB: some ten milliseconds."""
_TRUNCATIONS_TRIED: Final = 100
_FREE_PAGES_MIN: Final = 64
_FREE_SHARE: Final = 50
"""Less than a fiftieth of the file is not worth moving things: it is used again soon."""
_PAUSE_S_MAX: Final = 0.002
_PAUSE_S_MIN: Final = 0.0005
_PATIENT_S: Final = 0.005

_MEMBERSHIP: Final = msgspec.msgpack.Decoder(Membership)
_SELECT_STORE: Final = (
    "SELECT acceptor_id, membership, generation_floor, greatest_ballot, checksum FROM store WHERE one = 1"
)
_SELECT_ROWS: Final = "SELECT name, promised, accepted, flag, whole, state, checksum FROM registers WHERE name >= ? "
_ROW_AFTER: Final = _SELECT_ROWS + "ORDER BY name LIMIT 1"
_ROW_BEFORE: Final = _SELECT_ROWS.replace(">=", "<") + "ORDER BY name DESC LIMIT 1"
_SELECT_CHANGES: Final = "SELECT number, name, checksum FROM changes WHERE number > ? ORDER BY number LIMIT ?"
_SELECT_NAMED: Final = "SELECT name, promised, accepted, flag, whole, state, checksum FROM registers WHERE name IN "
_RECORDS: Final = "SELECT name, sequence, version_id, digest, parent, body FROM records WHERE name "
_RECORD_ORDER: Final = " ORDER BY name, version_id, sequence, digest"
_SELECT_HELD_RECORDS: Final = (
    "SELECT name, version_id, sequence, digest, parent FROM records "
    "WHERE (name, version_id, sequence, digest) > (?, ?, ?, ?) "
)

_Result = TypeVar("_Result")


class SqliteStore:
    """Satisfies :class:`objmeta.interfaces.AcceptorStore`.

    Thread-safe: writers take turns, readers take turns, and the two do not wait for each other.  Close it when done:
    dropping it without keeps its files open until the process ends.
    """

    def __init__(self, directory: Path) -> None:
        """Use :meth:`open`, :meth:`create` or :meth:`open_or_create`."""
        self._directory = directory
        directories.check_local(directory)
        self._connections = Connections(directory)
        self._known: tuple[bytes, Membership] = (b"", Membership(Configuration(b"", 0, ())))
        try:
            self._acceptor_id = self._reads(lambda cursor: self._begin_view(cursor).acceptor_id)
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, path: Path) -> SqliteStore:
        """Open the store in the directory ``path``.

        Raises StoreError if there is none, if it is not ours or of a newer format, or if it is on a network file
        system; IntegrityError if it is damaged.
        """
        return cls(path)

    @classmethod
    def create(cls, path: Path, acceptor_id: int, configuration: Configuration) -> SqliteStore:
        """Make a store in the directory ``path`` and open it. Raises StoreError if there is one already."""
        if not files.make(path, acceptor_id, configuration):
            raise StoreError(f"there is a store in {path} already: open it, or name another directory")
        return cls(path)

    @classmethod
    def open_or_create(
        cls, path: Path, acceptor_id: int, make_configuration: Callable[[], Configuration]
    ) -> SqliteStore:
        """Open the store in ``path``, making it if there is none; of several makers at once, all open the winner's."""
        with files.explained(path):
            there = files.database_path(path).exists()
        if not there:
            files.make(path, acceptor_id, make_configuration())
        return cls(path)

    @property
    def path(self) -> Path:
        """The directory of the store."""
        return self._directory

    @property
    def acceptor_id(self) -> int:
        return self._acceptor_id

    @property
    def membership(self) -> Membership:
        """The membership as of the last transaction of this process."""
        return self._known[1]

    @property
    def configuration(self) -> Configuration:
        return self._known[1].configuration

    def apply(self, batch: Sequence[Envelope]) -> list[Reply]:
        """Run the steps in order and make them durable together.

        Raises StoreFull or StoreError when nothing of the batch happened, UnknownOutcome when a commit failed in a way
        that leaves open whether it will be there after a crash, ForkedClient in a forked child.
        """
        return self._each_by_itself_if_damaged(self._apply, batch)

    def read(self, batch: Sequence[Envelope]) -> list[Reply]:
        """Answer requests that change nothing, in one snapshot. Raises InvalidArgument for any other."""
        check_reads(batch)
        return self._each_by_itself_if_damaged(self._read, batch)

    def scan(self, tag: ConfigurationTag, request: ScanRequest) -> ScanAnswer:
        def question(cursor: sqlite3.Cursor) -> ScanAnswer:
            view = TransactionView(cursor, self._begin_view(cursor))
            check_tag(view.membership.configuration.tag, tag)
            check_term(view, request)
            with contextlib.closing(self._snapshot(cursor)) as snapshot:
                return page(snapshot, request)

        return self._reads(question)

    def inventory(self, tag: ConfigurationTag, request: InventoryRequest) -> Inventory:
        return self._asks(tag, lambda holdings: inventory(holdings, request))

    def digests(self, tag: ConfigurationTag, request: DigestRequest) -> Digests:
        return self._asks(tag, lambda holdings: digests(holdings, request))

    def changes(self, since: int, limit: int) -> Changes:
        def question(cursor: sqlite3.Cursor) -> Changes:
            epoch = self._begin_view(cursor).membership.configuration.epoch
            oldest, newest = _change_numbers(cursor)
            reload = Changes((), newest, True, newest, epoch)
            if not oldest - 1 <= since <= newest:
                return reload
            rows = cursor.execute(_SELECT_CHANGES, (since, max(1, limit))).fetchall()
            for expected, (number, name, checksum) in enumerate(rows, since + 1):
                if number != expected or not agrees(checksum, crc32, name):
                    return reload  # it is damaged: what changed can no longer be told
            names = tuple(dict.fromkeys(name for _, name, _ in rows))
            return Changes(names, since + len(rows), False, newest, epoch)

        return self._reads(question)

    def count(self) -> int:
        def question(cursor: sqlite3.Cursor) -> int:
            (found,) = cursor.execute("SELECT count(*) FROM registers").fetchone()
            return int(found)

        return self._reads(question)

    def tidy(self) -> None:
        """Move what is at the end of the file into the room that erased registers left, and cut the end off.

        In steps, each a commit of its own, so that batches go on in between.
        """
        while self._shrink():
            pass
        for _ in range(_TRUNCATIONS_TRIED):  # a log that stays is written over
            with files.explained(self._directory), self._connections.writing() as cursor:
                if self._connections.checkpointer.truncate(cursor):
                    return
            time.sleep(_PAUSE_S_MAX)

    def _shrink(self) -> bool:
        """One step; whether there is more to do."""
        with self._transaction(_PAGES_PER_SHRINKING) as cursor:
            (free,) = cursor.execute("PRAGMA freelist_count").fetchone()
            (pages,) = cursor.execute("PRAGMA page_count").fetchone()
            if free < max(_FREE_PAGES_MIN, pages // _FREE_SHARE):
                return False
            cursor.execute(f"PRAGMA incremental_vacuum({_PAGES_PER_SHRINKING})").fetchall()
            (left,) = cursor.execute("PRAGMA freelist_count").fetchone()
        return bool(0 < left < free)

    def close(self) -> None:
        """Release the files. Idempotent; does nothing in a forked child."""
        self._connections.close()

    # -- Batches ------------------------------------------------------------------------------------------------------

    def _apply(self, batch: Sequence[Envelope]) -> list[Reply]:
        with self._transaction(len(batch)) as cursor:
            view = TransactionView(cursor, self._begin_view(cursor))
            replies = answer(view, batch)
            changed = view.flush()
            if changed:
                _prune_changes(cursor, changed + _PRUNED_PER_BATCH_MAX)
        return replies

    def _read(self, batch: Sequence[Envelope]) -> list[Reply]:
        def question(cursor: sqlite3.Cursor) -> list[Reply]:
            return answer(TransactionView(cursor, self._begin_view(cursor)), batch)

        return self._reads(question)

    def _each_by_itself_if_damaged(
        self, act: Callable[[Sequence[Envelope]], list[Reply]], batch: Sequence[Envelope]
    ) -> list[Reply]:
        """Damage that a batch met, so that nothing of it happened, must be no matter of the other requests in it."""
        try:
            return act(batch)
        except IntegrityError as damage:
            if len(batch) == 1:
                return [refusal(batch[0][1], Refusal.DAMAGED, f"{damage.kind}: {damage}")]
        return [reply for envelope in batch for reply in self._each_by_itself_if_damaged(act, (envelope,))]

    # -- Transactions -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _transaction(self, steps: int) -> Iterator[sqlite3.Cursor]:
        with files.explained(self._directory), self._connections.writing() as cursor:
            _take_turn(cursor)
            try:
                yield cursor
            except BaseException:
                _roll_back(cursor)
                raise
            try:
                cursor.execute("COMMIT")
            except BaseException as error:
                _roll_back(cursor)
                if not (isinstance(error, sqlite3.Error) and _never_written(error)):
                    self._make_void(cursor, error)
                raise
            self._connections.checkpointer.committed(steps, cursor)

    def _make_void(self, cursor: sqlite3.Cursor, error: BaseException) -> None:
        """The log may hold a commit that failed: overwrite it, so that no recovery finds it."""
        try:
            cursor.execute("BEGIN IMMEDIATE")
            cursor.execute("UPDATE store SET one = 1")
            cursor.execute("COMMIT")
        except sqlite3.Error:
            _roll_back(cursor)
            raise UnknownOutcome(
                f"a commit to the store in {self._directory} failed and may yet show after a crash: check the disk"
            ) from error

    def _reads(self, question: Callable[[sqlite3.Cursor], _Result]) -> _Result:
        with files.explained(self._directory), self._connections.reading() as cursor:
            cursor.execute("BEGIN")
            try:
                return question(cursor)
            finally:
                _roll_back(cursor)

    def _asks(self, tag: ConfigurationTag, question: Callable[[_Snapshot], _Result]) -> _Result:
        def ask(cursor: sqlite3.Cursor) -> _Result:
            check_tag(self._begin_view(cursor).membership.configuration.tag, tag)
            with contextlib.closing(self._snapshot(cursor)) as snapshot:
                return question(snapshot)

        return self._reads(ask)

    def _snapshot(self, cursor: sqlite3.Cursor) -> _Snapshot:
        return _Snapshot(cursor, self._directory)

    def _begin_view(self, cursor: sqlite3.Cursor) -> Identity:
        row = cursor.execute(_SELECT_STORE).fetchone()
        if row is None or not agrees(row[-1], store_sum, *row[:-1]):
            raise IntegrityError(files.damaged(self._directory, "its identity is lost"))
        acceptor_id, encoded, generation_floor, greatest_ballot, _ = row
        known = self._known
        if encoded != known[0]:
            self._known = known = (encoded, _MEMBERSHIP.decode(encoded))
        return Identity(acceptor_id, known[1], generation_floor, Ballot.unpack(greatest_ballot))


class _Snapshot:
    """Satisfies :class:`objmeta.store.pages.Snapshot` and :class:`objmeta.store.inventories.Holdings` inside a read
    transaction; its own cursors are closed with it."""

    def __init__(self, cursor: sqlite3.Cursor, directory: Path) -> None:
        self._cursor = cursor
        self._directory = directory
        self._opened = contextlib.ExitStack()

    def close(self) -> None:
        self._opened.close()

    def rows(self, start: bytes, end: bytes, limit: int) -> list[tuple[bytes, int, bytes, bytes]]:
        self._check_beside(_ROW_BEFORE, start)
        found: list[tuple[bytes, int, bytes, bytes]] = []
        last = b""
        while True:
            missing = limit - len(found)
            stored = self._between(_SELECT_ROWS, (start,), end, f"ORDER BY name LIMIT {missing}").fetchall()
            for row in stored:
                if is_sound(*row) and (row[0] > last or not last):
                    last, _, accepted, flag, _, state, _ = row
                    if state is not None:
                        found.append((last, flag, accepted, state))
                else:
                    last = self._name_of(row, last)
                    found.append((last, UNKNOWN, b"", b""))
            if len(found) == limit:
                return found
            start = last + b"\0" if stored else start
            if len(stored) < missing:
                self._check_beside(_ROW_AFTER, start)
                return found

    def named_rows(self, names: Sequence[bytes]) -> list[tuple[bytes, int, bytes, bytes]]:
        # One statement for all that is as it should be; of what is missing or damaged all the rest must be looked at.
        sound = {row[0]: row for row in self._cursor.execute(_SELECT_NAMED + _some(names), names) if is_sound(*row)}
        found: list[tuple[bytes, int, bytes, bytes]] = []
        for name in names:
            row = sound.get(name)
            if row is None:
                found += self.rows(name, name + b"\0", 1)
            elif row[5] is not None:
                found.append((name, row[3], row[2], row[5]))
        return found

    def record_rows(self, first: bytes, last: bytes) -> Iterator[StoredRecord]:
        return self._records(">= ? AND name <= ?", (first, last))

    def named_record_rows(self, names: Sequence[bytes]) -> Iterator[StoredRecord]:
        return self._records("IN " + _some(names), names)

    def _records(self, which: str, names: Sequence[bytes]) -> Iterator[StoredRecord]:
        hold = Proofs().hold
        with contextlib.closing(self._cursor.connection.cursor()) as cursor:
            found = cursor.execute(_RECORDS + which + _RECORD_ORDER, names)
            for name, sequence, version_id, digest, parent, body in found:
                if type(name) is bytes and hold(sequence, version_id, digest, parent, body):
                    yield name, encoded_record(name, sequence, version_id, digest, parent, body)

    def held_rows(self, start: bytes, end: bytes) -> Iterator[HeldRow]:
        self._check_beside(_ROW_BEFORE, start)
        last = b""
        for row in self._between(_SELECT_ROWS, (start,), end, "ORDER BY name"):
            if is_sound(*row) and (row[0] > last or not last):
                last, promised, accepted, flag, _, state, _ = row
                yield HeldRow(last, promised, accepted, flag, False, state if flag == TOMBSTONE else None)
            else:
                last = self._name_of(row, last)
                yield HeldRow(last, b"", None, None, damaged=True)
        self._check_beside(_ROW_AFTER, last + b"\0" if last else start)

    def _check_beside(self, select: str, name: bytes) -> None:
        """Raise IntegrityError if the row on that side of ``name`` is where it is by a damaged name only."""
        row = self._cursor.execute(select, (name,)).fetchone()
        if row is not None and not is_sound(*row):
            self._name_of(row, b"")

    def _name_of(self, row: tuple[Any, ...], last: bytes) -> bytes:
        """The name in a damaged row; raises IntegrityError if it may be any other: nothing is known of the range."""
        name = row[0]
        if not is_name_sound(name, row[-1]) or name < last:
            what = f"a name that reads {name!r} does not match its checksum or is out of order"
            raise IntegrityError(files.damaged(self._directory, what))
        return bytes(name)

    def held_records(self, start: bytes, end: bytes, after: RecordRef | None) -> Iterator[NamedRef]:
        beyond = (start, b"", -1, b"") if after is None else (start, after.version_id, after.sequence, after.digest)
        order = "ORDER BY name, version_id, sequence, digest"
        return starmap(NamedRef, self._between(_SELECT_HELD_RECORDS, beyond, end, order))

    def _between(self, select: str, start: tuple[object, ...], end: bytes, order: str) -> sqlite3.Cursor:
        # Of its own: rows and records are gone through side by side.
        cursor = self._opened.enter_context(contextlib.closing(self._cursor.connection.cursor()))
        if end:
            return cursor.execute(f"{select} AND name < ? {order}", (*start, end))
        return cursor.execute(select + order, start)


def _some(names: Sequence[bytes]) -> str:
    return f"({','.join('?' * len(names))})"


def _roll_back(cursor: sqlite3.Cursor) -> None:
    if cursor.connection.in_transaction:  # after some errors SQLite has done so itself
        cursor.execute("ROLLBACK")


def _take_turn(cursor: sqlite3.Cursor) -> None:
    """Begin a write transaction, waiting for other processes.

    SQLite's own waiting sleeps longer and longer (up to 100 ms), so a process that waits starves beside one that
    commits in a loop.  Here who waits longer looks more often, and gets its turn within milliseconds.
    """
    waiting_since_s = time.monotonic()
    while True:
        try:
            cursor.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError as error:
            waited_s = time.monotonic() - waiting_since_s
            if files.primary_code(error) != sqlite3.SQLITE_BUSY or waited_s > files.BUSY_TIMEOUT_S:
                raise
        time.sleep(_PAUSE_S_MIN if waited_s > _PATIENT_S else _PAUSE_S_MAX)


def _never_written(error: sqlite3.Error) -> bool:
    """Whether a commit failed before its last page was in the log: then no recovery can find it."""
    return files.primary_code(error) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY)


def _change_numbers(cursor: sqlite3.Cursor) -> tuple[int, int]:
    """The oldest change number that is kept and the newest; (1, 0) if nothing ever changed."""
    oldest, newest = cursor.execute(
        "SELECT (SELECT min(number) FROM changes), (SELECT max(number) FROM changes)"
    ).fetchone()
    return (1, 0) if newest is None else (oldest, newest)


def _prune_changes(cursor: sqlite3.Cursor, limit: int) -> None:
    oldest, newest = _change_numbers(cursor)
    surplus = newest - oldest + 1 - CHANGES_KEPT
    if surplus > 0:
        cursor.execute("DELETE FROM changes WHERE number < ?", (oldest + min(surplus, limit),))
