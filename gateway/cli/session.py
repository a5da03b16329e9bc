"""How a subcommand reaches the store: one event loop a command, and many objects at a time where there are many."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from gateway.cli import errors
from gateway.cli.options import current

if TYPE_CHECKING:
    from gateway.cli.output import Progress
    from gateway.data.transfer import Store
    from objmeta.config import Resolved

Result = TypeVar("Result")
Item = TypeVar("Item")


def resolved_settings() -> Resolved:
    """The settings under which the command runs, and where they come from."""
    from objmeta.config import parse_target, resolve

    options = current()
    parse_target(options.store)  # an empty one is an error here; resolve would take it as not given
    return resolve({"target": options.store, "timeout_s": options.timeout})


def moment() -> datetime | None:
    """The time as of which the command is to see the store: --as-of, or the setting ``as_of``; None is now.

    Where the setting is given a command that has no --as-of is refused: whoever reads what was must not believe that
    he changes that.
    """
    from gateway.data.past import parse_time
    from objmeta.errors import InvalidArgument

    options = current()
    if options.as_of is not None:
        return parse_time(options.as_of, now=datetime.now(UTC))
    resolved = resolved_settings()
    as_of = resolved.options.get("as_of")
    if as_of is None:
        return None
    try:
        then = parse_time(as_of)
    except InvalidArgument as bad:
        raise InvalidArgument(f"setting as_of ({resolved.sources['as_of']}): {bad}") from None
    context = click.get_current_context()
    if not any(parameter.name == "as_of" for parameter in context.command.params):
        raise click.UsageError(
            f"{context.command_path} is about what is now, but a time is set by {resolved.sources['as_of']}; unset it"
        )
    options.as_of, options.as_of_source = then.isoformat(), resolved.sources["as_of"]
    return then


def with_store(work: Callable[[Store], Coroutine[Any, Any, Result]], *, of_now: bool = False) -> Result:
    """Open the store, run ``work`` to its end, close the store, also on Ctrl-C and SIGTERM.

    ``of_now``: what is asked has no past, and nothing is changed; the setting ``as_of`` is of no concern.
    """
    settings = resolved_settings().settings
    then = None if of_now else moment()
    from gateway.data.transfer import open_store

    target = None if settings.disks else ",".join(settings.endpoints) if settings.endpoints else settings.home

    async def main() -> Result:
        with _sigterm_cancels():
            store = await open_store(
                target, disks=settings.disks or None, timeout_s=settings.timeout_s, failover_s=settings.failover_s
            )
            if then is not None:
                store = store.as_of(then)
            try:
                return await work(store)
            finally:
                await store.close()

    return asyncio.run(main())


class _sigterm_cancels:
    """SIGTERM cancels the running task, so that it cleans up; it then ends with Terminated."""

    def __enter__(self) -> None:
        self._arrived = False
        self._task = asyncio.current_task()
        if threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._cancel)

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is not None and issubclass(kind, asyncio.CancelledError) and self._arrived:
            raise errors.Terminated("terminated") from None

    def _cancel(self) -> None:
        self._arrived = True
        if self._task is not None:
            self._task.cancel()


class Tally:
    """Counts what was done and what failed in a command on several things, and reports each failure at once."""

    def __init__(self) -> None:
        self.done = 0
        self.bytes = 0
        self.unchanged = 0
        self.stopped = False
        self.pretends = False
        """Nothing is really done."""
        self._codes: list[int] = []

    def succeeded(self, size: int = 0) -> None:
        """One more thing was done."""
        self.done += 1
        self.bytes += size

    def kept(self) -> None:
        """One more was as it should be already."""
        self.unchanged += 1

    def failed(self, name: str, error: Exception | str, code: int | None = None) -> None:
        """One more failed; ``code`` is the exit code if nothing succeeds (default: the error's)."""
        from gateway.cli.app import say

        record = {"error": error, "kind": "left_out"} if isinstance(error, str) else errors.record(error)
        text = record["error"]
        say(text if name in text else f"{name}: {text}", {"name": name} | record)
        known = errors.exit_code(error) if isinstance(error, Exception) else errors.FAILED
        self._codes.append(known if code is None else code)

    def finish(self) -> None:
        """End the command with "partly" if some were done and some not, or with the first failure's code."""
        if self._codes:
            raise click.exceptions.Exit(errors.FAILED if self.done or self.unchanged else self._codes[0])

    def say_so_far(self) -> None:
        """What was done, for whoever stopped the command before its end."""
        from gateway.cli import output
        from gateway.cli.app import say

        if self.done and not self.pretends:
            size = f" ({output.size_text(self.bytes)})" if self.bytes else ""
            text = f"{self.done} done{size} by then, which stays; the same command, given again, does the rest"
            say(text, {"message": text, "done": self.done, "bytes": self.bytes})


LOOK_S: Final = 0.2
AHEAD: Final = 10_000
"""So many items are taken before their turn comes, so that a bar knows what is to be done."""


async def for_each(
    items: Iterable[Item] | AsyncIterable[Item],
    work: Callable[[Item], Awaitable[None]],
    tally: Tally,
    name: Callable[[Item], str] = str,
    limit: int | None = None,
    found: Callable[[Item], None] | None = None,
) -> None:
    """Run ``work`` on each item, ``limit`` at a time (default: the setting); ``found`` is told of each item before.

    What fails for one object only is reported and counted; anything else stops all of them and is raised, after what
    was done until then has been said.
    """
    taken: asyncio.Queue[Item | _End] = asyncio.Queue(AHEAD)

    async def take() -> None:
        async for item in _iterate(items):
            if found is not None:
                found(item)
            await taken.put(item)
        await taken.put(_END)

    async def worker() -> None:
        while True:
            item = await taken.get()
            if isinstance(item, _End):
                await taken.put(_END)  # for the others
                return
            try:
                await work(item)
            except Exception as error:
                if not errors.concerns_one_object(error):
                    raise
                tally.failed(name(item), error)

    limit = limit or resolved_settings().settings.concurrency
    tasks = [asyncio.create_task(each) for each in (take(), *(worker() for _ in range(limit)))]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        tally.stopped = True
        raise
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if tally.stopped:
            tally.say_so_far()


async def for_each_counted(
    title: str,
    items: Iterable[Item] | AsyncIterable[Item],
    work: Callable[[Item], Awaitable[None]],
    tally: Tally,
    name: Callable[[Item], str] = str,
) -> None:
    """The same with a bar that counts them."""
    from gateway.cli import output

    with output.counting(title) as progress:

        async def counted(item: Item) -> None:
            await work(item)
            progress.did()

        await for_each(items, counted, tally, name, found=lambda item: progress.expect(0))


@asynccontextmanager
async def following(progress: Progress, reached: Callable[[], int]) -> AsyncIterator[None]:
    """Have a bar show a number that grows meanwhile."""

    async def follow() -> None:
        while True:
            progress.reached(reached())
            await asyncio.sleep(LOOK_S)

    task = asyncio.create_task(follow())
    try:
        yield
        progress.reached(reached())
    finally:
        task.cancel()


class _End:
    """After the last item."""


_END: Final = _End()


async def _iterate(items: Iterable[Item] | AsyncIterable[Item]) -> AsyncIterator[Item]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
            await asyncio.sleep(0)  # the others have their turn while a tree is walked


async def in_thread(work: Callable[..., Result], *arguments: Any) -> Result:
    """Run blocking work on a pipe or terminal.

    Not in the loop's own pool: the loop waits for its pool at the end, and a read from a terminal may never return.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Result] = loop.create_future()

    def settle(result: Result | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def body() -> None:
        result, failure = None, None
        try:
            result = work(*arguments)
        except BaseException as error:
            failure = error
        try:
            loop.call_soon_threadsafe(settle, result, failure)
        except RuntimeError:
            return  # the loop is closed: nobody waits any more

    threading.Thread(target=body, daemon=True, name="gateway-stream").start()
    return await done
