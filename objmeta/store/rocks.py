"""An acceptor's durable state in RocksDB: the store of a node, one process at a time.

Rules.

* A batch is one write to the log and one sync, and its replies are given after the sync.  The write releases no lock of
  the interpreter but takes microseconds; the sync releases it.
* Readers see a snapshot taken after the last sync, so only what is durable; they never wait for a writer.
* When a write or a sync fails, nothing may be built on what is in memory: the database is closed and opened again,
  which brings back what reached the log and makes it durable.  The number of the last batch then tells whether the
  failed one is in.  Until opening succeeds every batch is refused.
* Damage is found when a block is read and concerns the request that needs it.  Nothing is cached from one batch to the
  next but what the database holds, and the membership and position of the last durable batch: read once at opening,
  then known, since only this process writes.
* After a fork the child is refused, and the database it inherited is never closed there.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import msgspec
from rocksdict import Rdict, Snapshot, WriteBatch, WriteOptions

from objmeta.core.configuration import Configuration, ConfigurationTag, Membership
from objmeta.core.inventory import DigestRequest, Digests, Inventory, InventoryRequest
from objmeta.core.listing import ScanAnswer, ScanRequest
from objmeta.core.messages import Reply
from objmeta.errors import ForkedClient, IntegrityError, StoreError, UnknownOutcome
from objmeta.interfaces import Changes, Envelope
from objmeta.store import rocks_files as files
from objmeta.store.directories import check_local, explain_os
from objmeta.store.inventories import digests, inventory
from objmeta.store.pages import page
from objmeta.store.rocks_tree import Durable, Live, Overlay
from objmeta.store.rocks_view import MEMBERSHIP_KEY, POSITION_KEY, BatchView, Position, View, changes_range
from objmeta.store.steps import answer, check_reads, check_tag, check_term

CHANGES_KEPT: Final = 200_000
"""Change numbers kept for :meth:`RocksStore.changes`, and up to half as many more; who is further behind reads, or
compares, everything anew.  More than a minute of puts, in some megabytes."""
_REMOVED_MIN: Final = 10_000
_REMOVED_SHARE: Final = 10
"""Tables are written anew when marks of removed keys are a tenth of what is in them: to do so costs as much as writing
everything."""
_STALL_S_MAX: Final = 10.0
"""How long a batch waits while memory is being written to tables; longer means that the disk hangs."""
_STALL_PAUSE_S: Final = 0.002

_MEMBERSHIP: Final = msgspec.msgpack.Decoder(Membership)
_LOG: Final = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class _Instant(NamedTuple):
    """What was durable after some batch. Nobody keeps one for long: the database stays open while a snapshot lives."""

    snapshot: Snapshot
    membership: Membership
    position: Position


class _Files:
    """The open database and its last durable instant; kept alive by a count of its own until it is closed, so that
    neither a collector nor the end of a forked child closes them."""

    def __init__(self, directory: Path) -> None:
        self.database, identity = files.open_database(directory, POSITION_KEY)
        self.acceptor_id = identity.acceptor_id
        try:
            self.instant: _Instant | None = self._first_instant(directory, identity.mark)
        except BaseException:
            files.release(self.database)
            raise
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))

    def _first_instant(self, directory: Path, mark: bytes) -> _Instant:
        tree = Live(directory, self.database)
        membership, position = tree.get(MEMBERSHIP_KEY), tree.get(POSITION_KEY)
        if membership is None:
            raise IntegrityError(f"the store in {directory} has lost its membership: replace the node")
        return _Instant(
            self.database.snapshot(),  # last: the traceback of an error must not keep the database open
            _MEMBERSHIP.decode(membership),
            Position(mark) if position is None else Position.unpack(position),
        )

    def close(self) -> None:
        self.instant = None
        files.release(self.database)
        ctypes.pythonapi.Py_DecRef(ctypes.py_object(self))


class RocksStore:
    """Satisfies :class:`objmeta.interfaces.AcceptorStore`.

    Thread-safe: writers take turns, readers take turns, and the two do not wait for each other.  Close it when done:
    dropping it without keeps its files open until the process ends.
    """

    def __init__(self, directory: Path) -> None:
        """Use :meth:`open` or :meth:`create`."""
        check_local(directory)
        self._directory = directory
        self._pid = os.getpid()
        self._writing = threading.Lock()
        self._reading = threading.Lock()
        self._tidying = threading.Lock()
        self._closed = False
        self._options = WriteOptions()
        self._options.no_slowdown = True  # or a write would wait with the interpreter's lock held
        self._files: _Files | None = _Files(directory)
        self._acceptor_id = self._files.acceptor_id
        assert self._files.instant is not None, "it has just been opened"
        self._known = self._files.instant.membership
        self._position = self._files.instant.position.batch

    @classmethod
    def open(cls, path: Path) -> RocksStore:
        """Open the store in the directory ``path``.

        Raises StoreError if there is none, if it is in use, of another kind or of a newer format, or if it is on a
        network file system; IntegrityError if something that was acknowledged is missing from its log.
        """
        return cls(path)

    @classmethod
    def create(
        cls, path: Path, acceptor_id: int, configuration: Configuration, addresses: tuple[tuple[int, str], ...] = ()
    ) -> RocksStore:
        """Make a store in the directory ``path`` and open it. Raises StoreError if there is one already."""
        if not files.make(
            path, acceptor_id, {MEMBERSHIP_KEY: msgspec.msgpack.encode(Membership(configuration, addresses))}
        ):
            raise StoreError(f"there is a store in {path} already: open it, or name another directory")
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
        """The membership as of the last batch."""
        return self._known

    @property
    def configuration(self) -> Configuration:
        return self._known.configuration

    @property
    def position(self) -> int:
        """The number of the last durable batch; it only grows."""
        return self._position

    def apply(self, batch: Sequence[Envelope]) -> list[Reply]:
        """Run the steps in order and make them durable together.

        Raises StoreFull or StoreError when nothing of the batch happened, UnknownOutcome when a write failed and the
        database could not be opened again to see whether it is there, ForkedClient in a forked child.
        """
        self._check_usable()
        with self._writing:
            opened = self._usable_files()
            assert opened.instant is not None, "only closing takes it away"
            tree = Live(self._directory, opened.database)
            membership, position = opened.instant.membership, opened.instant.position
            view, replies = _answered(lambda: BatchView(Overlay(tree), membership, position), batch)
            if view.writes or view.generation_floor != view.position.generation_floor:
                self._commit(opened, view)
                self._known = view.membership
        return replies

    def read(self, batch: Sequence[Envelope]) -> list[Reply]:
        """Answer requests that change nothing, in one snapshot. Raises InvalidArgument for any other."""
        check_reads(batch)
        return self._reads(lambda view: answer(view, batch, BatchView.guarded_step))

    def scan(self, tag: ConfigurationTag, request: ScanRequest) -> ScanAnswer:
        def question(view: BatchView) -> ScanAnswer:
            check_tag(view.membership.configuration.tag, tag)
            check_term(view, request)
            return page(view, request)

        return self._reads(question)

    def inventory(self, tag: ConfigurationTag, request: InventoryRequest) -> Inventory:
        def question(view: View) -> Inventory:
            check_tag(view.membership.configuration.tag, tag)
            return inventory(view, request)

        return self._reads(question)

    def digests(self, tag: ConfigurationTag, request: DigestRequest) -> Digests:
        def question(view: View) -> Digests:
            check_tag(view.membership.configuration.tag, tag)
            return digests(view, request)

        return self._reads(question)

    def changes(self, since: int, limit: int) -> Changes:
        def question(view: View) -> Changes:
            position, epoch = view.position, view.membership.configuration.epoch
            if not position.changes_pruned <= since <= position.changes:
                return Changes((), position.changes, True, position.changes, epoch)
            names = view.changed(since, max(1, limit))
            return Changes(tuple(dict.fromkeys(names)), since + len(names), False, position.changes, epoch)

        return self._reads(question)

    def count(self) -> int:
        return self._reads(lambda view: view.position.rows)

    def tidy(self) -> None:
        """Write the tables anew without what was removed, if that is much."""
        self._check_usable()
        with self._tidying:
            opened = self._files
            if opened is None:
                return
            try:
                removed, entries = files.removed_keys(opened.database)
                if removed >= max(_REMOVED_MIN, entries // _REMOVED_SHARE):
                    opened.database.compact_range(b"", b"\xff")
            except Exception as error:
                if self._files is opened and not self._closed:  # else closing has cut it short
                    raise files.explain(self._directory, error) or error from error

    def close(self) -> None:
        """Release the files. Idempotent; does nothing in a forked child."""
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        with self._writing:
            self._close_files()

    # -- Writing ------------------------------------------------------------------------------------------------------

    def _commit(self, opened: _Files, view: BatchView) -> None:
        self._check_room()
        position = view.finish()
        oldest = position.changes_pruned
        surplus = position.changes - oldest - CHANGES_KEPT
        if surplus > CHANGES_KEPT // 2:  # in big steps, as each leaves a mark that readers step over
            position = position._replace(changes_pruned=oldest + surplus)

        def batch() -> WriteBatch:
            made = WriteBatch(raw_mode=True)
            if position.changes_pruned > oldest:
                made.delete_range(*changes_range(oldest, position.changes_pruned))
            made.put(POSITION_KEY, position.pack())
            for key, value in view.writes.items():
                if value is None:
                    made.delete(key)
                else:
                    made.put(key, value)
            return made

        try:
            self._write(opened.database, batch)
            opened.database.flush_wal(True)
            opened.instant = _Instant(opened.database.snapshot(), view.membership, position)
        except _Stalled:
            raise StoreError(f"the disk under {self._directory} has hung for {_STALL_S_MAX:.0f} s: check it") from None
        except Exception as error:
            self._settle(position.batch, files.explain(self._directory, error) or error)
        self._position = position.batch

    def _write(self, database: Rdict, batch: Callable[[], WriteBatch]) -> None:
        give_up_at_s = time.monotonic() + _STALL_S_MAX
        while True:
            try:
                database.write(batch(), self._options)  # one that was refused is used up
                return
            except Exception as error:
                if "Write stall" not in str(error):
                    raise
            if time.monotonic() > give_up_at_s:
                raise _Stalled
            time.sleep(_STALL_PAUSE_S)

    def _settle(self, number: int, error: Exception) -> None:
        """After a failed write: return if the batch is durable after all, else raise, saying whether that is known."""
        _LOG.warning("a batch failed, and the store in %s is opened again: %s", self._directory, error)
        try:
            self._open_again()
            done = self._reads(lambda view: view.position.batch >= number)
        except Exception as problem:
            _LOG.warning("the store in %s could not be opened again: %s", self._directory, problem)
            raise UnknownOutcome(
                f"a batch could not be written to the store in {self._directory} and may yet show: {error}"
            ) from error
        if not done:
            raise error

    def _usable_files(self) -> _Files:
        if self._files is None:
            self._check_room()
            self._open_again()
        assert self._files is not None, "it has just been opened"
        return self._files

    def _open_again(self) -> None:
        self._close_files()
        self._files = _Files(self._directory)
        assert self._files.instant is not None, "it has just been opened"
        self._known, self._position = self._files.instant.membership, self._files.instant.position.batch

    def _close_files(self) -> None:
        if self._tidying.locked() and self._files is not None:
            self._files.database.cancel_all_background(False)
        with self._tidying, self._reading:
            opened, self._files = self._files, None
            if opened is not None:
                opened.close()

    def _check_room(self) -> None:
        try:
            files.check_room(self._directory)
        except OSError as error:
            raise explain_os(self._directory, error) from error

    # -- Reading ------------------------------------------------------------------------------------------------------

    def _reads(self, question: Callable[[BatchView], _Result]) -> _Result:
        self._check_usable()
        with self._reading:
            instant = self._files.instant if self._files is not None else None
            if instant is None:
                raise StoreError(f"the store in {self._directory} failed and is not open again yet: try again")
            tree = Durable(self._directory, instant.snapshot)
            view = BatchView(Overlay(tree), instant.membership, instant.position)
            del instant  # the traceback of an error must not keep the database open
            try:
                return question(view)
            finally:
                tree.release()

    def _check_usable(self) -> None:
        if os.getpid() != self._pid:
            raise ForkedClient(
                f"the store in {self._directory} was opened by the parent process: open it again in the forked child"
            )
        if self._closed:
            raise StoreError(f"the store in {self._directory} is closed: open it again")


def _answered(begin: Callable[[], BatchView], batch: Sequence[Envelope]) -> tuple[BatchView, list[Reply]]:
    """The steps of a batch made, and their replies. Only a batch that meets damage is made step by guarded step."""
    view = begin()
    try:
        return view, answer(view, batch)
    except IntegrityError:
        view = begin()
        return view, answer(view, batch, BatchView.guarded_step)


class _Stalled(Exception):
    """Nothing was written: memory was full for too long."""
