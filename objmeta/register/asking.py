"""Questions to single acceptors, asked until they are answered: for who changes the members, copies or repairs.

All requests here may be sent twice (questions, floors, adoption, duplicates of accepts).  An acceptor that is found in
another configuration is brought together with the engine first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from objmeta.core.messages import Read, Refusal, Refused, Reply, Request
from objmeta.errors import ConfigurationMismatch, NoQuorum, StoreError, Unavailable

if TYPE_CHECKING:
    from objmeta.register.engine import Engine

Answer = TypeVar("Answer")

PROBE: Final = b"~probe"
"""A register that nobody writes: reading it shows the configuration an acceptor is in."""
_AGAIN_S: Final = 0.5
_RETRY_S: Final = 0.05
_MEET_S: Final = 0.5


async def ask(engine: Engine, acceptor: int, request: Request, timeout_s: float) -> Reply | None:
    """The acceptor's reply, or None if none came in time; a refusal is a reply."""
    answer: asyncio.Future[Reply] = engine.loop.create_future()

    def on_reply(acceptor: int, reply: Reply) -> None:
        if isinstance(reply, Refused) and reply.reason is Refusal.CONFIGURATION:
            engine.bring_together(acceptor, reply)
        if not answer.done():
            answer.set_result(reply)

    deadline = engine.loop.time() + timeout_s
    while not answer.done() and (left_s := deadline - engine.loop.time()) > 0:
        engine.transport.send(acceptor, request, on_reply)
        await asyncio.wait((answer,), timeout=min(_AGAIN_S, left_s))
    return answer.result() if answer.done() else None


async def meet(engine: Engine, acceptor: int) -> bool:
    """Bring engine and acceptor together in the higher of their configurations; False if they have nothing in common.

    Whether the lower one has adopted by then is another question: ask again.
    """
    reply = await ask(engine, acceptor, Read(PROBE), _MEET_S)
    if isinstance(reply, Refused) and reply.reason is Refusal.CONFIGURATION:
        return reply.behind or reply.membership is not None
    return True


async def insist(engine: Engine, acceptor: int, question: Callable[[], Awaitable[Answer]], timeout_s: float) -> Answer:
    """Put a question of the transport to an acceptor again and again until it is answered.

    Raises NoQuorum at the end of the time, and ConfigurationMismatch from an acceptor of another store.
    """
    deadline = engine.loop.time() + timeout_s
    why: Exception = NoQuorum(f"node {acceptor} did not answer within {timeout_s:g} s")
    while (left_s := deadline - engine.loop.time()) > 0:
        try:
            async with asyncio.timeout(left_s):
                return await question()
        except TimeoutError:
            break
        except ConfigurationMismatch:
            if not await meet(engine, acceptor):
                raise
        except (Unavailable, StoreError) as failure:
            why = failure
        await asyncio.sleep(min(_RETRY_S, max(0.0, deadline - engine.loop.time())))
    raise NoQuorum(f"node {acceptor} did not answer: {why}")


async def gather(
    questions: Mapping[int, Coroutine[Any, Any, Answer | None]],
    enough: Callable[[dict[int, Answer]], bool],
    linger_s: float = 0.0,
) -> dict[int, Answer]:
    """Run all at once until ``enough`` of them have answered, and ``linger_s`` longer for the rest.

    None and Unavailable are no answer.  When all have ended, what there is is given, enough or not.
    """
    tasks = {asyncio.ensure_future(question): acceptor for acceptor, question in questions.items()}
    answers: dict[int, Answer] = {}
    pending = set(tasks)
    loop = asyncio.get_running_loop()
    give_up_at: float | None = None
    try:
        while pending:
            if give_up_at is None and enough(answers):
                give_up_at = loop.time() + linger_s
            left_s = None if give_up_at is None else give_up_at - loop.time()
            if left_s is not None and left_s <= 0:
                break
            done, pending = await asyncio.wait(pending, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=lambda task: tasks[task]):
                try:
                    answer = task.result()
                except Unavailable:
                    continue
                if answer is not None:
                    answers[tasks[task]] = answer
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)  # of those that ended, too, so that no failure is lost
    return answers


async def all_of(work: Sequence[Coroutine[Any, Any, Answer]]) -> list[Answer]:
    """Run all at once; the first that fails ends the others, and is raised."""
    tasks = [asyncio.ensure_future(piece) for piece in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
