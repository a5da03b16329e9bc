"""The directory of a node, and how far its life has come.

::

    DIR/lock            held (flock) by the node process that uses the directory
    DIR/acceptor/       the acceptor's store; made with the configuration inside it
    DIR/established     written when all members were known to be initialised; names the store

Rules.  A store without the mark is *bootstrapping*: its acceptor has never voted.  With the mark it is *established*:
it may have voted, so whoever finds the mark and no store, or an empty directory beside established siblings, has lost
data.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from pathlib import Path
from typing import Final

from objmeta.core.configuration import Configuration, Membership
from objmeta.errors import IntegrityError, StoreError, StoreFull
from objmeta.rpc.wire import BOOTSTRAPPING, EMPTY, ESTABLISHED
from objmeta.store import rocks_files
from objmeta.store.directories import NODE_LOCK
from objmeta.store.rocks import RocksStore

_ACCEPTOR: Final = "acceptor"
_MARK: Final = "established"


class DataDirectory:
    """Locked from construction to :meth:`close`. Raises StoreError if another process holds it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store: RocksStore | None = None
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(path / NODE_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as problem:
            raise _explained(path, problem) from problem
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as held:
            os.close(self._lock)
            raise StoreError(f"another node process is using {path}; give each node a directory of its own") from held
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        acceptor = self.path / _ACCEPTOR
        marked = self._marked()
        if rocks_files.exists(acceptor):
            self.store = RocksStore.open(acceptor)
        if marked and self.store is None:
            raise StoreError(f"{self.path} belongs to an established node but its store is gone; {REPLACE}")
        if marked and self.store is not None and marked != self.store.configuration.store_id.hex():
            raise IntegrityError(f"{self.path} holds parts of two different stores ({_MARK} and {_ACCEPTOR} disagree)")

    @property
    def phase(self) -> str:
        """EMPTY, BOOTSTRAPPING or ESTABLISHED."""
        if self.store is None:
            return EMPTY
        return ESTABLISHED if self._marked() else BOOTSTRAPPING

    @property
    def configuration(self) -> Configuration | None:
        """What the acceptor holds."""
        return self.store.configuration if self.store is not None else None

    @property
    def membership(self) -> Membership | None:
        """The same with addresses."""
        return self.store.membership if self.store is not None else None

    def initialise(
        self, node_id: int, configuration: Configuration, addresses: tuple[tuple[int, str], ...] = ()
    ) -> None:
        """Make the acceptor's store, durably. Raises StoreError, StoreFull."""
        assert self.store is None, "a store is initialised once"
        self.store = RocksStore.create(self.path / _ACCEPTOR, node_id, configuration, addresses)

    def establish(self) -> None:
        """Write the mark, durably. Raises StoreError, StoreFull."""
        assert self.store is not None, "what is established has been initialised"
        new = self.path / f"{_MARK}.new"
        try:
            with new.open("w") as file:
                file.write(self.store.configuration.store_id.hex())
                file.flush()
                os.fsync(file.fileno())
            new.rename(self.path / _MARK)
            directory = os.open(self.path, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as problem:
            raise _explained(self.path, problem) from problem

    def disk_free(self) -> int:
        """Bytes free on the disk, 0 if unknown."""
        with contextlib.suppress(OSError):
            return shutil.disk_usage(self.path).free
        return 0

    def close(self) -> None:
        """Close the store and unlock the directory."""
        if self.store is not None:
            self.store.close()
        os.close(self._lock)

    def _marked(self) -> str:
        try:
            return (self.path / _MARK).read_text()
        except FileNotFoundError:
            return ""
        except OSError as problem:
            raise _explained(self.path, problem) from problem


REPLACE: Final = (
    "it must not vote as if it had never promised anything: restore its directory, or start an empty node under a new "
    "id with --join and run 'gateway cluster replace'"
)


def _explained(path: Path, problem: OSError) -> StoreError:
    if problem.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(f"the disk under {path} is full")
    return StoreError(f"the node's directory {path} cannot be used: {problem.strerror}")
