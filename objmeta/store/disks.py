"""A store over several directories, best on as many disks: each holds an acceptor (Active Disk Paxos).

Rules.

* The acceptors say who they are; which directory holds which does not matter.  A directory without an acceptor is never
  given one while another directory has one: an empty directory may be a disk that is not mounted, and its acceptor must
  not forget what it promised.
* So all are made together, at the first use: first each directory is marked as being made, with the store's identity,
  then the acceptors are made, then the marks removed.  Nobody votes while there are only marked ones.  A crash in
  between leaves marks, and whoever comes next goes on with the identity they hold.  Locks keep makers apart.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from objmeta.core.configuration import OUTSIDE, Configuration, Membership, single_set
from objmeta.errors import ConfigurationMismatch, NoQuorum, StoreError
from objmeta.store import sqlite_files as files
from objmeta.store.directories import locked, make_directories, sync_directory, sync_file
from objmeta.store.sqlite import SqliteStore

ACCEPTOR: Final = "acceptor"
_MARK: Final = "being-made"
_MEMBERSHIP: Final = msgspec.msgpack.Decoder(Membership)


@dataclass(slots=True)
class Disks:
    """The stores that could be opened, by acceptor id, and why the other directories could not be."""

    stores: dict[int, SqliteStore] = field(default_factory=dict)
    problems: dict[Path, str] = field(default_factory=dict)

    @property
    def membership(self) -> Membership:
        """The newest one that any of them holds."""
        return max((store.membership for store in self.stores.values()), key=lambda known: known.configuration.epoch)

    def close(self) -> None:
        """Close all stores."""
        for store in self.stores.values():
            store.close()


def open_or_create(directories: Sequence[Path]) -> Disks:
    """Open the store in these directories, making it if none of them holds anything of one.

    Raises NoQuorum if too few can be opened, ConfigurationMismatch if they belong to different stores, and what keeps a
    new store from being made (StoreError, StoreFull).
    """
    if not any(_is_established(directory) for directory in directories):
        _make(directories)
    disks = Disks()
    try:
        for directory in directories:
            try:
                _add(disks, directory, open_one(directory))
            except StoreError as problem:
                if isinstance(problem, ConfigurationMismatch):
                    raise
                disks.problems[directory] = str(problem)
        _check(disks, directories)
    except BaseException:
        disks.close()
        raise
    return disks


def open_one(directory: Path) -> SqliteStore:
    """Open the acceptor in one directory. Raises StoreError, with what to do."""
    if not _has_acceptor(directory):
        raise StoreError(
            f"{directory} holds no part of the store: mount its disk, or, if its data is gone, replace it"
            " by another directory (replace_disk)"
        )
    return SqliteStore.open(directory / ACCEPTOR)


def prepare(directory: Path, configuration: Configuration) -> None:
    """Make an acceptor that is to join. Raises StoreError if there is another one."""
    ((acceptor_id,),) = configuration.member_sets
    if files.make(directory / ACCEPTOR, acceptor_id, configuration):
        return
    with contextlib.closing(SqliteStore.open(directory / ACCEPTOR)) as store:
        if (store.acceptor_id, store.configuration) != (acceptor_id, configuration):
            raise StoreError(f"{directory} holds a part of a store already: name an empty directory")


def acceptor_id_in(directory: Path, store_id: bytes) -> int:
    """The id of the acceptor of this store that waits in a directory to join; 0 if there is none."""
    if not _has_acceptor(directory):
        return 0
    with contextlib.closing(SqliteStore.open(directory / ACCEPTOR)) as store:
        own = store.configuration
        return store.acceptor_id if (own.store_id, own.epoch) == (store_id, OUTSIDE) else 0


def _add(disks: Disks, directory: Path, store: SqliteStore) -> None:
    store_ids = {other.configuration.store_id for other in disks.stores.values()}
    if store.acceptor_id in disks.stores or store_ids - {store.configuration.store_id}:
        store.close()
        raise ConfigurationMismatch(
            f"{directory} does not belong to the same store as the other disks, or is a copy of one of them: name the "
            "directories of one store, each once"
        )
    disks.stores[store.acceptor_id] = store


def _check(disks: Disks, directories: Sequence[Path]) -> None:
    reasons = "; ".join(disks.problems.values())
    if not disks.stores:
        raise NoQuorum(f"none of the {len(directories)} disks can be used: {reasons}")
    known = disks.membership
    reachable = {
        acceptor for acceptor, place in known.addresses if Path(place) not in directories and _has_acceptor(Path(place))
    }
    if not known.configuration.quorums.is_quorum({*disks.stores, *reachable}):
        raise NoQuorum(f"no majority of the {len(known.configuration.quorums.members)} disks can be used: {reasons}")


# -- Making -----------------------------------------------------------------------------------------------------------


def _has_acceptor(directory: Path) -> bool:
    with contextlib.suppress(OSError):
        return files.database_path(directory / ACCEPTOR).exists()
    return False


def _is_established(directory: Path) -> bool:
    return _has_acceptor(directory) and not (directory / _MARK).exists()


def _make(directories: Sequence[Path]) -> None:
    with contextlib.ExitStack() as locks:
        for directory in sorted(directories):
            with files.explained(directory):
                make_directories(directory)
                locks.enter_context(locked(directory))
        if any(_is_established(directory) for directory in directories):
            return
        membership = _marked(directories) or Membership(
            single_set(os.urandom(16), tuple(range(1, len(directories) + 1))),
            tuple((number, str(directory)) for number, directory in enumerate(directories, 1)),
        )
        for directory in directories:
            _mark(directory, membership)
        for acceptor_id, place in membership.addresses:
            files.make(Path(place) / ACCEPTOR, acceptor_id, membership.configuration, membership.addresses)
        for directory in directories:
            with files.explained(directory):
                (directory / _MARK).unlink()
                sync_directory(directory)


def _marked(directories: Sequence[Path]) -> Membership | None:
    """What somebody began to make here before; raises StoreError if that was something else."""
    found: set[Membership] = set()
    for directory in directories:
        with files.explained(directory), contextlib.suppress(FileNotFoundError):
            found.add(_MEMBERSHIP.decode((directory / _MARK).read_bytes()))
    if not found:
        return None
    membership = found.pop()
    if found or {Path(place) for _, place in membership.addresses} != set(directories):
        raise StoreError(
            f"making a store over {', '.join(place for _, place in membership.addresses)} was interrupted: name the "
            "same directories again"
        )
    return membership


def _mark(directory: Path, membership: Membership) -> None:
    with files.explained(directory):
        new = directory / f"{_MARK}.new"
        new.write_bytes(msgspec.msgpack.encode(membership))
        sync_file(new)
        new.rename(directory / _MARK)
        sync_directory(directory)
