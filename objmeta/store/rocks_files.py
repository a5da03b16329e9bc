"""The files of a RocksDB store: made atomically, opened with care, and errors put into words.

Rules.

* A store is one directory with one database directory in it.  It is made under a temporary name, synced and renamed, so
  that a crash leaves no half-made store.  Opening never makes anything.
* RocksDB checks each block of its tables when it reads it.  Its log is replayed at opening, up to the first record that
  is not whole, and what was acknowledged must be before that.  So every batch carries the store's *mark* and a number,
  and the log is searched for marks before RocksDB may touch it: only the last batch may be missing, the one that was
  being written when the process or the machine stopped.  Logs are written over once they are not needed any more.
* ``paranoid_checks`` are off, or a compaction that meets a damaged block would stop all writing.  They also guard the
  replay of the log, so that is tried before with the checks on, reading only.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import count, takewhile
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from blake3 import blake3
from rocksdict import (
    AccessType,
    BlockBasedOptions,
    Cache,
    DbClosedError,
    DBCompressionType,
    DBRecoveryMode,
    Options,
    Rdict,
    WriteBatch,
)

from objmeta.errors import IntegrityError, StoreError
from objmeta.store.directories import check_local, explain_os, full, locked, make_directories, sync_directory, sync_file

DATABASE_NAME: Final = "rocksdb"
FORMAT: Final = 1
RESERVE_BYTES: Final = 64 << 20
"""Room that must be left on the disk for a batch to be begun: RocksDB then still finds what recovery writes (at most
the log, ``_LOG_BYTES_MAX``), so that a full disk refuses batches and does not break the database."""

_SQLITE_NAME: Final = "acceptor.db"
_NEW_PREFIX: Final = ".new-"
_IDENTITY_KEY: Final = b"mi"
_MARK_BYTES: Final = 16
_NUMBER_BYTES: Final = 8

_MEMTABLE_BYTES: Final = 16 << 20
_MEMTABLES_MAX: Final = 3
_LOG_BYTES_MAX: Final = 48 << 20
_CACHE_BYTES: Final = 32 << 20
_OPEN_FILES_MAX: Final = 512
_BLOOM_BITS: Final = 10
_MEMTABLE_BLOOM: Final = 0.02
_BLOCK_BYTES: Final = 8 << 10
_NEVER: Final = 1 << 20
_LOG_BLOCK_BYTES: Final = 32 << 10
_LOG_HEADER_BYTES: Final = 7
_LOG_HEADER_NUMBERED_BYTES: Final = 11
"""In a log that may be used again: its number is there as well."""
_LOG_TYPE_AT: Final = 6
_LOG_TYPES_NUMBERED: Final = frozenset(bytes((kind,)) for kind in (5, 6, 7, 8, 11, 131))
"""The kinds of record in such a log."""
_OLDEST_LOG: Final = "rocksdb.min-log-number-to-keep"
_AHEAD_MAX: Final = 1 << 22
"""No log is so long that it holds more batches: a number further ahead is one that was written in part, over other
bytes, when the machine stopped."""
_LOGS_KEPT: Final = 1
"""Logs that are kept when they are no longer needed, to be written over. That a file has grown the file system has to
write down at each sync: it made a commit a third longer."""
_REPLACE: Final = "replace the node by a new one (it must not vote as if it had never promised what is lost)"


class Identity(NamedTuple):
    """What never changes about a store."""

    format: int
    acceptor_id: int
    random: bytes

    @property
    def mark(self) -> bytes:
        """Sixteen bytes that only this store's batches begin with, and nobody can know: found in its log."""
        return blake3(b"batch" + self.random).digest(_MARK_BYTES)


_IDENTITY: Final = msgspec.msgpack.Decoder(Identity)


def database_path(directory: Path) -> Path:
    """Where the database of the store in ``directory`` is."""
    return directory / DATABASE_NAME


def exists(directory: Path) -> bool:
    """Whether there is a store in ``directory``.

    Raises StoreError if there is one of another kind or something is in the way.
    """
    with explained(directory):
        if (directory / _SQLITE_NAME).exists():
            raise StoreError(
                f"{directory} holds a SQLite store (of a directory that is used without nodes, or of a node made by an "
                "early version), which a node cannot use: start the node with an empty directory"
            )
        return database_path(directory).exists()


def make(directory: Path, acceptor_id: int, content: Mapping[bytes, bytes]) -> bool:
    """Make a store in ``directory`` that holds ``content``; False if there is one already.

    Raises StoreError, StoreFull.
    """
    check_local(directory)
    with explained(directory):
        make_directories(directory)
        with locked(directory):
            if exists(directory):
                return False
            for leftover in directory.glob(f"{_NEW_PREFIX}*"):
                shutil.rmtree(leftover)
            check_room(directory)
            new = directory / f"{_NEW_PREFIX}{secrets.token_hex(8)}"
            try:
                _write_new(new, acceptor_id, content)
                new.rename(database_path(directory))
            except BaseException:
                shutil.rmtree(new, ignore_errors=True)
                raise
            sync_directory(directory)
            return True


def _write_new(path: Path, acceptor_id: int, content: Mapping[bytes, bytes]) -> None:
    options = _options()
    options.create_if_missing(True)
    options.set_error_if_exists(True)
    database = Rdict(str(path), options)  # nothing of these options lasts: see _open
    batch = WriteBatch(raw_mode=True)
    identity = Identity(FORMAT, acceptor_id, secrets.token_bytes(_MARK_BYTES))
    for key, value in {_IDENTITY_KEY: msgspec.msgpack.encode(identity), **content}.items():
        batch.put(key, value)
    database.write(batch)
    database.flush_wal(True)
    release(database)
    for file in path.iterdir():
        sync_file(file)
    sync_directory(path)


def open_database(directory: Path, position_key: bytes) -> tuple[Rdict, Identity]:
    """Open the database of the store in ``directory``, after checking its log.

    The value under ``position_key``, which every batch writes, begins with the store's mark and the batch's number.
    Raises StoreError if there is no store, it is in use, or of a newer format; IntegrityError if something that was
    acknowledged is missing.
    """
    if not exists(directory):
        if directory.exists() and not directory.is_dir():
            raise StoreError(f"{directory} is a file, not the directory of a store: name a directory")
        raise StoreError(f"there is no store in {directory}: name another directory, or make a store there first")
    path = database_path(directory)
    with explained(directory):
        replayed = -1
        logs = [log for log in path.glob("*.log") if log.stat().st_size]
        if logs:
            looked_at = _open(path, AccessType.read_only(False), paranoid=True)
            identity = _identity(directory, looked_at)
            replayed = _batch_number(looked_at.get(position_key))
            oldest = looked_at.property_int_value(_OLDEST_LOG) or 0
            release(looked_at)
            _check_logs(directory, [log for log in logs if _number_of(log) >= oldest], identity.mark, replayed)
        database = _open(path, AccessType.read_write())
        try:
            identity = _identity(directory, database)
            if replayed not in (-1, found := _batch_number(database.get(position_key))):
                raise IntegrityError(f"the log of the store in {directory} reads as {replayed} and {found}: {_REPLACE}")
        except BaseException:
            release(database)
            raise
    return database, identity


def _open(path: Path, access: AccessType, paranoid: bool = False) -> Rdict:
    options = _options(paranoid)
    # Without naming the one column family, its options would come from a file there, the filters missing.
    return Rdict(str(path), options, {"default": options}, access)


def release(database: Rdict) -> None:
    """Close a database without writing what is in memory, all of which is in the log, to tables.

    Closing would wait for that with the interpreter's lock held, and for ever while the disk is full.
    """
    database.cancel_all_background(False)
    with suppress(Exception):  # it says that it wrote nothing
        database.close()


def _identity(directory: Path, database: Rdict) -> Identity:
    encoded = database.get(_IDENTITY_KEY)
    if encoded is None:
        raise IntegrityError(f"the store in {directory} has lost its identity: {_REPLACE}")
    (version, *_) = msgspec.msgpack.decode(encoded)
    if version != FORMAT:
        raise StoreError(
            f"the store in {directory} has format {version}, and this version of objmeta knows format {FORMAT}: use "
            "the version of objmeta that wrote it, or a newer one"
        )
    return _IDENTITY.decode(encoded)


def _batch_number(position: bytes | None) -> int:
    return 0 if position is None else int.from_bytes(position[_MARK_BYTES : _MARK_BYTES + _NUMBER_BYTES])


def _check_logs(directory: Path, logs: Iterable[Path], mark: bytes, replayed: int) -> None:
    """Raise IntegrityError unless at most the last batch in the logs that are needed is missing from what was replayed.

    Zeros in place of records are skipped silently by RocksDB (they may have been reserved in advance), so numbers must
    also follow one another, from log to log too.  A log that is used again holds the rest of older batches, with lower
    numbers, behind its own: all that is in it if not even the beginning of a batch of its own has reached the disk.
    """
    ended: int | None = None
    for log in sorted(logs, key=_number_of):
        raw = log.read_bytes()
        numbers = [number for number in _batch_numbers(raw, mark) if number <= replayed + _AHEAD_MAX]
        own = _own_numbers(numbers) if _is_begun(raw, _number_of(log)) else []
        last = max(numbers, default=0)
        follow = all(older < own[0] for older in numbers[len(own) :]) if own else True
        if not follow or last > replayed + 1 or (numbers and not any(raw[:_LOG_HEADER_BYTES])):
            raise IntegrityError(
                f"the log of the store in {directory} is damaged: batches up to {last} are in {log.name}, but "
                f"only those up to {replayed} can be read; {_REPLACE}"
            )
        if ended is not None and own[:1] not in ([], [ended + 1]):
            raise IntegrityError(
                f"the log of the store in {directory} is damaged: batches up to {ended} are before {log.name}, which "
                f"begins with {own[0]}; {_REPLACE}"
            )
        ended = own[-1] if own else 0


def _number_of(log: Path) -> int:
    return int(log.stem)


def _is_begun(raw: bytes, number: int) -> bool:
    """Whether a log begins with a record of its own, and not with one of the log that it was before."""
    if raw[_LOG_TYPE_AT : _LOG_TYPE_AT + 1] not in _LOG_TYPES_NUMBERED:
        return True  # it was never used again
    return int.from_bytes(raw[_LOG_HEADER_BYTES:_LOG_HEADER_NUMBERED_BYTES], "little") == number & 0xFFFF_FFFF


def _own_numbers(numbers: Sequence[int]) -> list[int]:
    """Those at the beginning that follow one another."""
    following = takewhile(lambda pair: pair[0] == pair[1], zip(numbers, count(numbers[0] if numbers else 0)))
    return [number for number, _ in following]


def _batch_numbers(raw: bytes, mark: bytes) -> list[int]:
    """The numbers of the batches in a log, in the order they lie there.

    The log is 32 KiB blocks; each record, or part of one, has a header, and parts end where their block ends.  Without
    the header that begins each block, what was cut apart is together again.  How long it is, its type says: the other
    length would find a number that lies across two blocks as well, and read it wrong.
    """
    joined = b"".join(
        raw[at + _header_bytes(raw, at) : at + _LOG_BLOCK_BYTES] for at in range(0, len(raw), _LOG_BLOCK_BYTES)
    )
    found = re.finditer(re.escape(mark) + rb"(.{%d})" % _NUMBER_BYTES, joined, re.DOTALL)
    return [int.from_bytes(match[1]) for match in found]


def _header_bytes(raw: bytes, at: int) -> int:
    """The length of the header of a record in a log: a checksum, a length, a type, and the log's number in one that may
    be used again (RocksDB, ``db/log_format.h``)."""
    numbered = raw[at + _LOG_TYPE_AT : at + _LOG_TYPE_AT + 1] in _LOG_TYPES_NUMBERED
    return _LOG_HEADER_NUMBERED_BYTES if numbered else _LOG_HEADER_BYTES


def removed_keys(database: Rdict) -> tuple[int, int]:
    """How many keys were removed whose marks are still kept, and how many entries the tables have in all."""
    tables = database.property_value("rocksdb.aggregated-table-properties") or ""
    told = {name.strip(): value for name, _, value in (part.partition("=") for part in tables.split(";"))}
    in_memory = database.property_int_value("rocksdb.num-deletes-active-mem-table") or 0
    return int(told.get("# deletions", 0)) + in_memory, int(told.get("# entries", 0))


def check_room(directory: Path) -> None:
    """Raise StoreFull if the disk has less room than ``RESERVE_BYTES``."""
    disk = os.statvfs(directory)
    if disk.f_bavail * disk.f_frsize < RESERVE_BYTES and disk.f_blocks:
        raise full(directory)


@contextmanager
def explained(directory: Path) -> Iterator[None]:
    """Turn errors of RocksDB and of the operating system into ours."""
    try:
        yield
    except Exception as error:
        explanation = explain(directory, error)
        if explanation is None:
            raise
        raise explanation from error


def explain(directory: Path, error: Exception, on_damage: str = _REPLACE) -> StoreError | None:
    """What an error means and what to do; None if it is neither RocksDB's, which has only a text, nor the system's."""
    if isinstance(error, OSError):
        return explain_os(directory, error)
    if isinstance(error, msgspec.MsgspecError):
        return IntegrityError(f"the store in {directory} is damaged ({error}): {_REPLACE}")
    if type(error) is not Exception and not isinstance(error, DbClosedError):
        return None
    said = str(error)
    if "No space left" in said or "quota exceeded" in said:
        return full(directory)
    if said.startswith("Corruption"):
        return IntegrityError(f"the store in {directory} is damaged ({said}): {on_damage}")
    if "/LOCK: " in said:
        return StoreError(f"the store in {directory} is in use already: close it there first")
    if "Permission denied" in said or "Read-only file system" in said:
        return StoreError(f"the store in {directory} cannot be written ({said}): check its permissions")
    return StoreError(f"the store in {directory} failed ({said}): check the disk under it")


def _options(paranoid: bool = False) -> Options:
    tables = BlockBasedOptions()
    tables.set_block_size(_BLOCK_BYTES)
    tables.set_bloom_filter(_BLOOM_BITS, False)  # whether a name is new costs no disk read
    tables.set_block_cache(Cache(_CACHE_BYTES))
    tables.set_cache_index_and_filter_blocks(True)
    tables.set_pin_l0_filter_and_index_blocks_in_cache(True)
    options = Options(raw_mode=True)
    options.create_if_missing(False)
    options.set_paranoid_checks(paranoid)
    options.set_wal_recovery_mode(DBRecoveryMode.point_in_time())
    options.set_block_based_table_factory(tables)
    options.set_compression_type(DBCompressionType.none())  # for the processor's sake; most data ends in the last level
    options.set_bottommost_compression_type(DBCompressionType.lz4())
    options.set_memtable_whole_key_filtering(True)
    options.set_memtable_prefix_bloom_ratio(_MEMTABLE_BLOOM)
    options.set_write_buffer_size(_MEMTABLE_BYTES)
    options.set_max_write_buffer_number(_MEMTABLES_MAX)
    options.set_max_total_wal_size(_LOG_BYTES_MAX)
    options.set_recycle_log_file_num(_LOGS_KEPT)
    options.set_max_open_files(_OPEN_FILES_MAX)
    options.set_max_background_jobs(2)
    # A compaction that cannot go on, because it meets a damaged block, must not hold up writing.
    options.set_level_zero_slowdown_writes_trigger(_NEVER)
    options.set_level_zero_stop_writes_trigger(_NEVER)
    options.set_soft_pending_compaction_bytes_limit(0)
    options.set_hard_pending_compaction_bytes_limit(0)
    options.set_max_log_file_size(1 << 20)  # these are texts for people, in LOG
    options.set_keep_log_file_num(3)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    return options
