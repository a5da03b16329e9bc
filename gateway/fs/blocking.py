"""Coroutines of the file system as ordinary calls, with the reason of a timeout kept.

fsspec runs a coroutine on its IO thread and waits for it.  A TimeoutError that comes back it replaces by one of its
own, without errno or message, and asyncio by one without path and cause; here the original is raised instead, so that
"no quorum" says so.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import inspect
import types
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from fsspec.asyn import mirror_sync_methods, sync_wrapper
from fsspec.exceptions import FSTimeoutError

_T = TypeVar("_T")


class _Carried(Exception):
    """Brings a TimeoutError whole from one thread to another."""

    def __init__(self, error: TimeoutError) -> None:
        super().__init__(str(error))
        self.error = error


def start(coroutine: Coroutine[Any, Any, _T], loop: asyncio.AbstractEventLoop) -> concurrent.futures.Future[_T]:
    """Start a coroutine on a loop of another thread; its result is for :func:`outcome`."""
    return asyncio.run_coroutine_threadsafe(_carrying(coroutine), loop)


def outcome(future: concurrent.futures.Future[_T], loop: asyncio.AbstractEventLoop) -> _T:
    """Wait for what :func:`start` started; refuses on the loop's own thread, where it would wait for ever."""
    if not future.done() and _running_loop() is loop:
        raise NotImplementedError("a blocking file was used on the event loop that serves it")
    try:
        return future.result()
    except _Carried as carried:
        raise carried.error from carried.error.__cause__


def _running_loop() -> asyncio.AbstractEventLoop | None:
    with contextlib.suppress(RuntimeError):
        return asyncio.get_running_loop()
    return None


async def _carrying(coroutine: Coroutine[Any, Any, _T]) -> _T:
    try:
        return await coroutine
    except TimeoutError as error:
        raise _Carried(error) from error


def blocking(coroutine_method: Callable[..., Any]) -> Any:
    """The blocking twin of a coroutine method, to be made in the class body: ``touch = blocking(_touch)``."""
    found = _keeping_the_reason(sync_wrapper(coroutine_method))
    found.__name__ = coroutine_method.__name__.removeprefix("_")  # by which it is found when it was pickled
    return found


def add_blocking_methods(fs: Any) -> None:
    """Give an instance a blocking twin of every coroutine method for which fsspec defines one."""
    mirror_sync_methods(fs)
    for name, method in list(vars(fs).items()):
        if inspect.isfunction(method) and hasattr(method, "__wrapped__"):
            setattr(fs, name, _bound(fs, name, _keeping_the_reason(method)))


def _bound(fs: Any, name: str, call: Callable[..., Any]) -> types.MethodType:
    """A call as a method, which can be pickled (``pool.map(fs.cat_file, …)``), unlike an instance's own function."""

    @functools.wraps(call)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        return call(*args, **kwargs)

    run.__name__ = name
    run.__wrapped__ = getattr(type(fs), f"_{name}")  # its signature has a self
    return types.MethodType(run, fs)


def _keeping_the_reason(call: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.isgeneratorfunction(call):

        @functools.wraps(call)
        def generate(*args: Any, **kwargs: Any) -> Iterator[Any]:
            try:
                yield from call(*args, **kwargs)
            except FSTimeoutError as error:
                reason = _reason(error)
                raise reason from reason.__cause__

        return generate

    @functools.wraps(call)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except FSTimeoutError as error:
            reason = _reason(error)
            raise reason from reason.__cause__

    return run


def _reason(error: FSTimeoutError) -> BaseException:
    cause = error.__cause__
    return cause if isinstance(cause, OSError) and cause.errno else error
