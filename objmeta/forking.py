"""What must not be open while the process forks.

SQLite keeps what it knows of its locks in the process, and POSIX locks are not inherited: a child that opens a database
which its parent had open believes it holds locks that nobody holds, and the log may be deleted under it. So whoever
keeps a database open registers here, and has it closed for the moment of the fork, in which nobody may be using it.

The fork waits for each in turn, and lets none go on before the end: so nobody may wait for one of them while in
another, and :meth:`Forkable.before_fork` for nothing but what ends by itself.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol
from weakref import WeakSet


class Forkable(Protocol):
    """Something to be told of forks."""

    def before_fork(self) -> None:
        """Finish what is under way, begin nothing new, and close what a child must not inherit."""
        ...

    def after_fork(self, in_child: bool) -> None:
        """Go on; in the child there is no other thread, and locks are as these left them."""
        ...


# Python can only ever add to its hooks, so there is one set of them, and the process's list of whom they concern.
_CONCERNED: Final[WeakSet[Forkable]] = WeakSet()
_LOCK: Final = threading.Lock()
_told: list[Forkable] = []


def tell_of_forks(concerned: Forkable) -> None:
    """Have an object told of forks for as long as it lives: from before it opens anything."""
    with _LOCK:
        _CONCERNED.add(concerned)


@contextmanager
def no_fork() -> Iterator[None]:
    """Have forks wait meanwhile; for short work, and not within what is told of forks."""
    with _LOCK:
        yield


def _before() -> None:
    _LOCK.acquire()
    for concerned in list(_CONCERNED):
        concerned.before_fork()
        _told.append(concerned)


def _after(in_child: bool) -> None:
    while _told:
        _told.pop().after_fork(in_child)
    if _LOCK.locked():  # a C library that forks by itself says so in the child only
        _LOCK.release()


os.register_at_fork(before=_before, after_in_parent=lambda: _after(False), after_in_child=lambda: _after(True))
