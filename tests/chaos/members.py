"""Changes of the members, made with ``gateway cluster`` while everything else goes wrong.

A change that was begun is completed, however long that takes: it may wait for nodes that are down or out of reach, its
coordinator may be killed, and nobody may know whether the command that asked for it was heard.  So there is one at a
time, kept in :attr:`Cluster.change`, and whoever is cancelled on the way leaves it to :func:`settle`.  In the end its
nodes are members, or none, and those that are none are ended.
"""

from __future__ import annotations

import asyncio
import random
from typing import Final

import objmeta
from objmeta.errors import ObjmetaError
from tests.chaos.cluster import Change, Cluster, Node, Note

MEMBERS_MIN: Final = 3
MEMBERS_MAX: Final = 5
WIPED_ODDS: Final = 0.5
"""How many of the nodes that are replaced are wiped before."""

_LOOK_TIMEOUT_S: Final = 5.0
_RETRY_S: Final = 0.2
_COMMAND_TIMEOUT_S: Final = 30.0
_REMOVED: Final = "was removed from the cluster"
_WIPED: Final = "data is gone"


async def begin(cluster: Cluster, rng: random.Random, note: Note) -> Change:
    """Draw a change, and prepare its nodes. Every node there is must be a member."""
    kinds = ["replace"]
    if len(cluster.nodes) < MEMBERS_MAX:
        kinds.append("add")
    if len(cluster.nodes) > MEMBERS_MIN:
        kinds.append("remove")
    kind = rng.choice(kinds)
    if kind == "add":
        return await _add(cluster, None)
    async with cluster.lend(rng) as node:
        if kind == "remove":
            return _remove(cluster, node)
        change = await _add(cluster, node)
        if rng.random() < WIPED_ODDS:
            note(f"wipe {node.name}")
            try:
                await cluster.wipe(node)
                node.may_end = (_WIPED, _REMOVED)
            finally:
                cluster.start(node)
        return change


async def _add(cluster: Cluster, replaced: Node | None) -> Change:
    node = await cluster.join()
    place = f"{node.id}={node.address}"
    if replaced is None:
        cluster.change = Change(("add", place), added=node)
    else:
        replaced.may_end = (_REMOVED,)
        cluster.change = Change(("replace", str(replaced.id), "--with", place), added=node, removed=replaced)
    return cluster.change


def _remove(cluster: Cluster, node: Node) -> Change:
    node.may_end = (_REMOVED,)
    cluster.change = Change(("remove", str(node.id)), removed=node)
    return cluster.change


async def complete(cluster: Cluster, change: Change, note: Note) -> None:
    """Return when the members are as the change wants them."""
    note(f"cluster {' '.join(change.command)}")
    while True:
        sets = await _member_sets(cluster)
        if len(sets) == 1 and change.fits(sets[0]):
            break
        if len(sets) == 1 and (change.added is None or await cluster.listens(change.added)):
            try:
                code, said = await cluster.gateway("cluster", *change.command, timeout_s=_COMMAND_TIMEOUT_S)
            except TimeoutError:
                continue  # it goes on, or never began
            if "Traceback" in said:
                cluster.problems.append(f"gateway cluster {' '.join(change.command)} fails: {said}")
            if not code:
                continue
            note(f"cluster {change.command[0]} says: {said.strip()}")
        await asyncio.sleep(_RETRY_S)
    note(f"the members are {', '.join(map(str, sets[0]))}")


async def forget(cluster: Cluster, change: Change) -> None:
    """End the node that is a member no more, if there is one: the change has been completed and is over."""
    node = change.removed
    if node is not None and node.id in cluster.nodes:
        if _WIPED in node.may_end and await cluster.serves(node):
            cluster.problems.append(f"{node.name} serves, though it was wiped")
        await cluster.leave(node)
    cluster.change = None
    cluster.changes += 1


async def settle(cluster: Cluster, note: Note) -> None:
    """Complete what was begun, and make the number of members odd again. Everything else must be mended."""
    while cluster.change is not None or len(cluster.nodes) % 2 == 0:
        change = cluster.change or _remove(cluster, next(iter(cluster.nodes.values())))
        await complete(cluster, change, note)
        await forget(cluster, change)


async def _member_sets(cluster: Cluster) -> tuple[tuple[int, ...], ...]:
    """The members, or those of before and after; nothing if no node says."""
    try:
        async with objmeta.connect_async(",".join(cluster.endpoints), timeout_s=_LOOK_TIMEOUT_S) as store:
            return (await store.members()).membership.configuration.member_sets
    except ObjmetaError:
        return ()
