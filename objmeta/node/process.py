"""A node as a process of its own: event loop, signals, exit."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import resource
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Final

from objmeta.node.node import Node

_SWITCH_INTERVAL_S: Final = 0.0005
"""How long a thread with a finished commit waits for the interpreter lock: Python's 5 ms can be longer than a sync."""

_GARBAGE_THRESHOLD: Final = 100_000
"""Objects made between two looks for cycles: a node's requests make none, and each look costs."""

_M_ARENA_MAX: Final = -8
_HEAPS: Final = 2


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a node's coroutine in this process: on uvloop where it is installed, and with Python set for a server."""
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    _share_heaps()
    _allow_descriptors()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(main)


async def serve(node: Node, announce: Callable[[Node], None] = lambda node: None) -> None:
    """Start a node, call ``announce`` when it listens, stop it gracefully on SIGTERM or SIGINT.

    Raises what keeps the node from starting or serving.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await node.start()
    failed = asyncio.ensure_future(node.failed())
    stopped = asyncio.ensure_future(stop.wait())
    try:
        announce(node)
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GARBAGE_THRESHOLD, 50, 50)
        await asyncio.wait((failed, stopped), return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()
        await node.stop()
    if failed.done() and not failed.cancelled():
        failed.result()
    else:
        failed.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await failed


def _allow_descriptors() -> None:
    """Take as many file descriptors as the system lets us: the usual 1024 are for programs that call select()."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _share_heaps() -> None:
    """Let all threads allocate from few heaps (glibc only).

    By default glibc gives eight to a core, and each keeps what it once held: a node that passes large objects through
    its threads kept 240 MB where 160 MB do.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _HEAPS)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
