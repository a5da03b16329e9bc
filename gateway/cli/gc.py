"""``gc``: take away what nothing needs any more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from gateway.cli import errors, output
from gateway.cli.app import say
from gateway.cli.options import common
from gateway.cli.session import with_store

if TYPE_CHECKING:
    from gateway.transfer import Store
    from objmeta.client import Collected

_ANSWER_S: Final = 5.0


@click.command()
@common
def gc() -> None:
    """Erase for good what was deleted, now.

    Removed objects and buckets leave traces, so that nothing that was on its way can bring them back. Nodes erase these
    in the background, an hour or two later; a store in a directory does so with this command alone. All nodes must be
    up. The exit code is 5 if one is not, or if something else kept it from finishing.
    """
    found = with_store(_collect)
    record = {
        "registers_erased": found.erased,
        "registers_left": found.left,
        "waiting_for": list(found.unreachable),
        "problem": found.problem,
    }
    text = f"erased {output.count_text(found.erased, 'register')}"
    output.emit(record, f"{text}, {found.left} could not be erased yet" if found.left else text)
    if found.unreachable:
        nodes = f"node{'s' * (len(found.unreachable) > 1)} {', '.join(map(str, found.unreachable))}"
        say(f"waiting for {nodes}: nothing can be erased while a node is away")
    elif found.problem:
        say(f"stopped early: {found.problem}")
    else:
        return
    raise click.exceptions.Exit(errors.UNAVAILABLE)


async def _collect(store: Store) -> Collected:
    found = await store.client.collect(timeout_s=_ANSWER_S)
    while not found.done:
        found = await store.client.collect(found.run, _ANSWER_S)
    return found
