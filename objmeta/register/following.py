"""Following the changes of a store: which registers changed since somebody last asked (docs/protocol.md, "Following").

Rules.
* A quorum must list what changed since the *watermark* that was kept of each.  One whose watermark is not known, or
  that keeps its changes no more, does not count; where the others are no quorum, everything must be read anew
  (*reload*).
* A list counts only if its acceptor was in our configuration at that instant, and only watermarks of the same epoch
  are gone on from.
* What is listed is only a hint where to look.  The registers must then be read by a scan that states ``covering``, and
  the watermark of an acceptor that did not answer that scan must not move.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from objmeta.core.inventory import ChangesRequest
from objmeta.errors import ConfigurationMismatch, NoQuorum, StoreError, Unavailable
from objmeta.interfaces import ChangedNames, Changes, Watermarks
from objmeta.register.asking import gather, meet

if TYPE_CHECKING:
    from objmeta.register.engine import Engine

_NEWEST: Final = 2**62
"""As ``since``: only the newest number is wanted."""
_RETRY_S: Final = 0.05
_LINGER_S: Final = 0.01
"""How long the rest is waited for when a quorum has answered, so that no watermark falls behind for ever."""
_FOLLOWING_PART: Final = 0.5
"""How much of the time is for those whose watermarks are known, before all are asked where to begin anew."""
BEGINNING_LINGER_S: Final = 0.25
"""The same where one that does not answer is left out for good."""


async def changes(engine: Engine, since: Watermarks | None, limit: int, timeout_s: float) -> ChangedNames:
    """See :meth:`objmeta.interfaces.Registers.changes`. Raises NoQuorum."""
    now = engine.loop.time()
    deadline, followed_until = now + timeout_s, now + timeout_s * _FOLLOWING_PART
    while True:
        configuration = engine.configuration
        known = since is not None and (since.store_id, since.epoch) == (configuration.store_id, configuration.epoch)
        if since is None or not known:
            found = await _ask(engine, dict.fromkeys(engine.quorums.members, _NEWEST), 1, deadline, BEGINNING_LINGER_S)
        else:
            found = await _ask(engine, dict(since.marks), limit, followed_until, _LINGER_S)
            found = {acceptor: listed for acceptor, listed in found.items() if not listed.reload}
        if engine.configuration is not configuration:
            continue
        if engine.quorums.is_quorum(found):
            break
        if known:
            since = None  # too many of them have forgotten, or are away
        elif engine.loop.time() >= deadline:
            raise NoQuorum("no majority of the nodes said in time what has changed; try again")
    if since is None or not known:
        newest = tuple((acceptor, listed.newest) for acceptor, listed in sorted(found.items()))
        return ChangedNames((), Watermarks(configuration.store_id, configuration.epoch, newest), reload=True)
    names = sorted({name for listed in found.values() for name in listed.names})
    marks = tuple((acceptor, listed.watermark) for acceptor, listed in sorted(found.items()))
    more = any(listed.watermark < listed.newest for listed in found.values())
    return ChangedNames(tuple(names), Watermarks(configuration.store_id, configuration.epoch, marks), more)


async def _ask(
    engine: Engine, since: dict[int, int], limit: int, deadline: float, linger_s: float
) -> dict[int, Changes]:
    """What answers under the configuration in force."""
    epoch, members = engine.configuration.epoch, engine.quorums.members
    questions = {
        acceptor: _ask_one(engine, acceptor, ChangesRequest(number, limit), epoch, deadline)
        for acceptor, number in since.items()
        if acceptor in members
    }
    return await gather(questions, engine.quorums.is_quorum, linger_s)


async def _ask_one(
    engine: Engine, acceptor: int, request: ChangesRequest, epoch: int, deadline: float
) -> Changes | None:
    """One acceptor's list, asked for until it is one of this epoch; None if the epoch is over, or there is none."""
    while engine.configuration.epoch == epoch and (left_s := deadline - engine.loop.time()) > 0:
        try:
            async with asyncio.timeout(min(left_s, engine.settings.round_timeout_s)):
                listed = await engine.transport.changes(acceptor, request)
            if listed.epoch == epoch:
                return listed
            await meet(engine, acceptor)
        except (TimeoutError, Unavailable):
            pass
        except ConfigurationMismatch:
            if not await meet(engine, acceptor):
                return None
        except StoreError:
            return None
        await asyncio.sleep(min(_RETRY_S, max(0.0, deadline - engine.loop.time())))
    return None
