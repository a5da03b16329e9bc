"""Work in numbered runs, one at a time: begun when it is due or asked for, and watched from outside."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from objmeta import errors

_log = logging.getLogger(__name__)

LOOK_S: Final = 0.5
"""How often is looked whether something is due."""
AGAIN_S_MIN: Final = 5.0
AGAIN_S_MAX: Final = 600.0
"""After a run that did not end well the next one follows, sooner at first."""


class Run(msgspec.Struct, frozen=True, array_like=True):
    """How far the run ``number`` has come, or had come when it ended; number 0: there was none yet.

    ``chunks`` were looked at (of ``total``, 0: unknown), ``bytes`` read or fetched for it; ``fixed`` were wrong and are
    right now, ``left`` are still wrong, ``dropped`` copies given away.  Times are seconds: since it began, and since it
    ended (None: it runs).  ``problem`` says in words what kept it from its end.
    """

    number: int = 0
    chunks: int = 0
    total: int = 0
    bytes: int = 0
    fixed: int = 0
    left: int = 0
    dropped: int = 0
    running_s: float = 0.0
    ended_s: float | None = 0.0
    problem: str = ""

    @property
    def running(self) -> bool:
        """Whether it is under way."""
        return self.ended_s is None


class Progress:
    """What the work itself counts; fields as in :class:`Run`."""

    def __init__(self) -> None:
        self.chunks = 0
        self.total = 0
        self.bytes = 0
        self.fixed = 0
        self.left = 0
        self.dropped = 0


Work = Callable[[Progress], Awaitable[None]]


class Runner:
    """One kind of work; belongs to one event loop. :meth:`forever` ends only by cancellation.

    ``retries_left`` says whether another run could help where one left something undone.
    """

    def __init__(self, name: str, work: Work, *, retries_left: bool) -> None:
        self._name = name
        self._work = work
        self._retries_left = retries_left
        self._number = 0
        self._asked = 0
        self._wake = asyncio.Event()
        self._progress = Progress()
        self._running = False
        self._began = self._ended = 0.0
        self._problem = ""

    def ask(self) -> int:
        """Have a run begin after this call; its number."""
        self._asked = self._number + 1
        self._wake.set()
        return self._asked

    def told(self) -> Run:
        """The run that is under way, else the last one."""
        made, now = self._progress, asyncio.get_running_loop().time()
        return Run(
            self._number,
            made.chunks,
            made.total,
            made.bytes,
            made.fixed,
            made.left,
            made.dropped,
            (now if self._running else self._ended) - self._began,
            None if self._running else now - self._ended,
            self._problem,
        )

    async def forever(self, due: Callable[[], Awaitable[bool]]) -> None:
        """Run whenever ``due`` says so, or somebody asks, and again after what did not end well."""
        again_s, not_before, failed = AGAIN_S_MIN, 0.0, False
        loop = asyncio.get_running_loop()
        while True:
            asked = self._asked > self._number
            # due is always asked: it may remember what it saw
            wanted = await due() or failed
            if asked or (wanted and loop.time() >= not_before):
                failed = not await self.once()
                again_s = min(2 * again_s, AGAIN_S_MAX) if failed else AGAIN_S_MIN
                not_before = loop.time() + again_s if failed else 0.0
                continue
            self._wake.clear()
            if self._asked <= self._number:
                try:
                    async with asyncio.timeout(LOOK_S):
                        await self._wake.wait()
                except TimeoutError:
                    pass

    async def once(self) -> bool:
        """One run; whether it ended well and left nothing that another one should try."""
        self._number += 1
        self._progress, self._problem = Progress(), ""
        self._began, self._running = asyncio.get_running_loop().time(), True
        try:
            await self._work(self._progress)
        except errors.ObjmetaError as problem:
            self._problem = str(problem)
            _log.warning("%s did not end well: %s", self._name, problem)
        except Exception as defect:
            self._problem = f"{type(defect).__name__}: {defect}"
            _log.exception("%s failed in an unforeseen way", self._name)
        finally:
            self._ended, self._running = asyncio.get_running_loop().time(), False
        return not self._problem and not (self._retries_left and self._progress.left)
