"""``cluster``: show the members of a cluster, and change them while it works.

A change goes on by itself once it has begun, also when the node that began it dies; these commands wait and watch.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from gateway.cli import errors, output
from gateway.cli.options import common, current
from gateway.cli.session import with_store

if TYPE_CHECKING:
    from gateway.data.transfer import Store
    from objmeta.client import Membership, MembersStatus

_LOOK_S: Final = 0.2

_no_wait: Final = click.option("--no-wait", is_flag=True, help="Return when the change has begun.")


@click.group()
@common
def cluster() -> None:
    """Show and change the members of a cluster.

    \b
      gateway cluster status
      gateway cluster add 4=10.0.0.4:7401 5=10.0.0.5:7401
      gateway cluster remove 1
      gateway cluster replace 2 --with 6=10.0.0.6:7401

    A new node is started first, empty, under an id that was never used: gateway serve --data DIR --node-id 4 --listen
    10.0.0.4:7401 --join HOST:PORT of any member. The cluster works on meanwhile, and clients find the new members by
    themselves. A node that lost its data is replaced; ids of removed nodes never come back.

    Everything moves: names, versions and the bytes of objects. A node that leaves ends when the others have what they
    are to have of it, which takes as long as its data at the rate of repair; one that does not answer is not waited
    for. The status shows how far that is.
    """


@cluster.command()
@common
def status() -> None:
    """Show the members, and how far a change of members has come.

    The exit code is 5 if there is no quorum.
    """
    found = with_store(_look, of_now=True)
    output.answer(_record(found), "\n".join(_lines(found)))
    if not found.quorum:
        raise click.exceptions.Exit(errors.UNAVAILABLE)


@cluster.command()
@common
@_no_wait
@click.argument("nodes", metavar="ID=HOST:PORT...", nargs=-1, required=True)
def add(nodes: tuple[str, ...], no_wait: bool) -> None:
    """Add nodes, which run already and wait to join."""
    _change(_places(nodes), (), no_wait)


@cluster.command()
@common
@_no_wait
@click.argument("nodes", metavar="ID...", nargs=-1, type=int, required=True)
def remove(nodes: tuple[int, ...], no_wait: bool) -> None:
    """Remove nodes; they end when everything they hold is with the others."""
    _change({}, nodes, no_wait)


@cluster.command()
@common
@_no_wait
@click.argument("node", metavar="ID", type=int)
@click.option("--with", "successor", metavar="ID=HOST:PORT", required=True, help="The new node, under a new id.")
def replace(node: int, successor: str, no_wait: bool) -> None:
    """Replace a node, dead or alive, by a new one."""
    _change(_places((successor,)), (node,), no_wait)


def _places(texts: Sequence[str]) -> dict[int, str]:
    from objmeta.config import parse_endpoints

    places: dict[int, str] = {}
    for text in texts:
        number, _, address = text.partition("=")
        if not number.isdecimal() or not int(number) or not address or int(number) in places:
            raise click.UsageError(f"{text!r} is not ID=HOST:PORT with an id of its own, such as 4=10.0.0.4:7401")
        (places[int(number)],) = parse_endpoints(address)
    return places


def _change(add: Mapping[int, str], remove: Sequence[int], no_wait: bool) -> None:
    async def work(store: Store) -> MembersStatus:
        from gateway.cli.app import say

        before = (await store.client.members()).membership.configuration
        begun = await store.client.change_members(add, remove, epoch=before.epoch)
        if no_wait:
            return await store.client.members()
        goal = begun.configuration.epoch + begun.configuration.is_joint
        told = ""
        while True:
            found = await _patiently(store)
            if found.membership.configuration.epoch >= goal:
                return found
            text = _progress(found)
            if text != told and sys.stderr.isatty() and not current().quiet:
                say(text)
                told = text
            await asyncio.sleep(_LOOK_S)

    found = with_store(work)
    output.emit(_record(found), "\n".join(_lines(found)))


async def _look(store: Store) -> MembersStatus:
    return await store.client.members()


async def _patiently(store: Store) -> MembersStatus:
    """The change goes on whether or not somebody looks: a node that ends meanwhile is no reason to give up."""
    from objmeta.errors import Unavailable

    try:
        return await store.client.members()
    except Unavailable:
        return await store.client.members()


# -- What is shown ----------------------------------------------------------------------------------------------------


def _record(found: MembersStatus) -> dict[str, Any]:
    configuration = found.membership.configuration
    states = {node.node_id: node for node in found.nodes}
    change = found.change
    return {
        "store_id": configuration.store_id.hex(),
        "epoch": configuration.epoch,
        "quorum": found.quorum,
        "changing": configuration.is_joint,
        "members": [
            {
                "node_id": node,
                "address": address,
                "role": _role(found.membership, node),
                "state": states[node].state if node in states else "unknown",
                "detail": states[node].detail if node in states else "",
            }
            for node, address in _members(found.membership)
        ],
        "retired": list(configuration.retired),
        "change": None
        if change is None
        else {
            "coordinator": change.coordinator,
            "phase": change.phase,
            "registers": change.names,
            "records": change.records,
            "problem": change.problem,
        },
    }


def _lines(found: MembersStatus) -> list[str]:
    configuration = found.membership.configuration
    states = {node.node_id: node for node in found.nodes}
    cells = [["NODE", "ADDRESS", "ROLE", "STATE", ""]]
    for node, address in _members(found.membership):
        known = states.get(node)
        state, detail = (known.state, known.detail) if known is not None else ("unknown", "")
        role = _role(found.membership, node)
        cells.append([str(node), output.shown(address), role, state, output.shown(detail)])
    lines = [
        f"store {configuration.store_id.hex()}, epoch {configuration.epoch}",
        *output.rows(cells, right=(0,)),
    ]
    if configuration.retired:
        lines.append(f"retired ids: {', '.join(map(str, configuration.retired))}")
    if configuration.is_joint:
        lines.append(_progress(found))
    lines.append(output.quorum_text(found.quorum, found.nodes))
    return lines


def _progress(found: MembersStatus) -> str:
    change = found.change
    if change is None:
        return "changing: nobody coordinates at the moment; a member goes on within seconds"
    text = f"changing: node {change.coordinator} is {change.phase}, {output.count_text(change.names, 'register')} done"
    return f"{text} ({output.shown(change.problem)})" if change.problem else text


def _members(membership: Membership) -> list[tuple[int, str]]:
    addresses = dict(membership.addresses)
    nodes = sorted({node for members in membership.configuration.member_sets for node in members})
    return [(node, addresses.get(node, "?")) for node in nodes]


def _role(membership: Membership, node: int) -> str:
    sets = membership.configuration.member_sets
    if len(sets) == 1:
        return "member"
    return "member" if node in sets[0] and node in sets[1] else ("joining" if node in sets[1] else "leaving")
