"""What is done to the processes and their network. A fault breaks something, holds it for a while, and mends it.

A new one is a class with ``run``, entered in one of the groups below.  It is cancelled when the time of the faults is
over, and must have mended everything when it returns or raises.  A change of the members cannot be mended then, as
others may hold it up: it is finished when all else is mended (``members``).
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from tests.chaos import members
from tests.chaos.cluster import Cluster, Node, Note

CLIENTS_EACH: Final = 4
"""Clients in one process."""
HELD_S: Final = (0.1, 2.5)
"""How long a fault lasts, at least and at most."""
QUIET_S_MAX: Final = 1.0
"""How long nothing new breaks after it was mended, at most."""


@dataclass
class Stage:
    """What faults work on; ``pace`` below 1 makes all of them shorter."""

    cluster: Cluster
    rng: random.Random
    note: Note
    pace: float = 1.0

    async def hold(self) -> None:
        """Leave things broken for a while."""
        await asyncio.sleep(self.rng.uniform(*HELD_S) * self.pace)

    async def rest(self) -> None:
        """Leave things well for a while."""
        await asyncio.sleep(self.rng.uniform(0, QUIET_S_MAX) * self.pace)


class Fault(Protocol):
    """One kind of trouble."""

    async def run(self, stage: Stage) -> None:
        """Make trouble once."""
        ...


class Kill:
    """SIGKILL for a node, which is started again after a while."""

    async def run(self, stage: Stage) -> None:
        """See :class:`Fault`."""
        await _end(stage, "kill", stage.cluster.kill)


class Stop:
    """SIGTERM for a node, which is started again after a while."""

    async def run(self, stage: Stage) -> None:
        """See :class:`Fault`."""
        await _end(stage, "stop", stage.cluster.stop)


class Crash:
    """SIGKILL for all nodes at once: only what is on the disks is left."""

    async def run(self, stage: Stage) -> None:
        """See :class:`Fault`."""
        cluster = stage.cluster
        nodes = [node for node in cluster.nodes.values() if not node.lent and node.pid is not None]
        for node in nodes:
            node.lent = True
        stage.note(f"kill {', '.join(node.name for node in nodes)} at once")
        try:
            await asyncio.gather(*(cluster.kill(node) for node in nodes))
        finally:
            for node in nodes:
                if node.pid is None:  # the time was over before it was killed, otherwise
                    cluster.start(node)
                node.lent = False


class Pause:
    """SIGSTOP for a node, and SIGCONT after a while: all that it meant to do before, it does now."""

    async def run(self, stage: Stage) -> None:
        """See :class:`Fault`."""
        async with stage.cluster.lend(stage.rng) as node:
            stage.note(f"pause {node.name}")
            stage.cluster.send(node, signal.SIGSTOP)
            try:
                await stage.hold()
            finally:
                stage.cluster.send(node, signal.SIGCONT)
                stage.note(f"resume {node.name}")


class Cut:
    """Links are cut: some nodes from the others, one from another, or clients from some nodes; one way or both."""

    async def run(self, stage: Stage) -> None:
        """See :class:`Fault`."""
        network, rng = stage.cluster.network, stage.rng
        nodes = [node.name for node in stage.cluster.nodes.values()]
        rng.shuffle(nodes)
        draw = rng.random()
        if draw < 0.4:
            few = 1 + rng.randrange(max(1, len(nodes) // 2))
            pairs = [(one, other) for one in nodes[:few] for other in nodes[few:]]
            told = f"{', '.join(nodes[:few])} from the other nodes"
        elif draw < 0.7 and len(nodes) > 1:
            pairs = [(nodes[0], nodes[1])]
            told = f"{nodes[0]} from {nodes[1]}"
        else:
            client = f"clients {rng.choice(list(stage.cluster.clients))}"
            pairs = [(client, node) for node in nodes[1:]]
            told = f"{client} from all nodes but {nodes[0]}"
        if rng.random() < 0.5:  # the other way
            pairs = [(target, source) for source, target in pairs]
        both = rng.random() < 0.5
        if both:
            pairs += [(target, source) for source, target in pairs]
        breaks = both and rng.random() < 0.5
        how = "sever" if breaks else "silence"
        stage.note(f"{how} {told}, {'both ways' if both else f'from {pairs[0][0]} to {pairs[0][1]} …'}")
        try:
            for source, target in pairs:
                (network.sever if breaks else network.silence)(source, target)
            await stage.hold()
        finally:
            for source, target in pairs:
                network.mend(source, target)
            stage.note(f"mend {told}")


class Fill:
    """The disk of a node is full for a while; perhaps it is killed meanwhile, and cannot begin before there is room."""

    async def run(self, stage: Stage) -> None:
        """See :class:`Fault`."""
        cluster, dies = stage.cluster, stage.rng.random() < 0.3
        async with cluster.lend(stage.rng) as node:
            stage.note(f"fill the disk of {node.name}{', and kill it' if dies else ''}")
            try:
                node.fill()
                if dies:
                    try:
                        await cluster.kill(node)
                    finally:
                        cluster.start(node)
                await stage.hold()
            finally:
                node.free()
                stage.note(f"free the disk of {node.name}")


class Membership:
    """The members are changed: one more, one less, or another one in place of one that was perhaps wiped."""

    async def run(self, stage: Stage) -> None:
        """See :class:`Fault`."""
        cluster = stage.cluster
        change = cluster.change or await members.begin(cluster, stage.rng, stage.note)
        await members.complete(cluster, change, stage.note)
        await stage.hold()  # who left may not know it yet
        await members.forget(cluster, change)


class Replace:
    """SIGKILL for a process of clients: what it had under way stays open. Others take its place."""

    async def run(self, stage: Stage) -> None:
        """See :class:`Fault`."""
        cluster = stage.cluster
        number = stage.rng.choice(list(cluster.clients))
        stage.note(f"kill clients {number}")
        cluster.kill_client(number)
        cluster.start_client(next_client(cluster), CLIENTS_EACH, stage.rng.randrange(1 << 30))
        await stage.hold()


NODE_FAULTS: Final[Mapping[str, type[Fault]]] = {
    "kill": Kill,
    "stop": Stop,
    "crash": Crash,
    "pause": Pause,
    "disk": Fill,
}
OTHER_FAULTS: Final[Mapping[str, type[Fault]]] = {"cut": Cut, "client": Replace}
LONG_FAULTS: Final[Mapping[str, type[Fault]]] = {"membership": Membership}
GROUPS: Final = (NODE_FAULTS, OTHER_FAULTS, LONG_FAULTS)
"""One fault of each at a time."""
FAULTS: Final[Mapping[str, type[Fault]]] = {name: fault for group in GROUPS for name, fault in group.items()}
"""Of each of the two groups one fault at a time: more, and clients rarely see a majority."""


def next_client(cluster: Cluster) -> int:
    """The first number of a process of clients that nobody had."""
    used = [int(path.stem.partition("-")[2]) for path in cluster.histories()]
    return max(used) + CLIENTS_EACH if used else 1


async def trouble(stage: Stage, names: Sequence[str], done: Counter[str]) -> None:
    """One fault after the other, until cancelled; ``done`` counts them. Every kind comes in turn, in random order."""
    while True:
        for name in stage.rng.sample(names, len(names)):
            done[name] += 1
            await FAULTS[name]().run(stage)
            await stage.rest()


async def _end(stage: Stage, what: str, end: Callable[[Node], Awaitable[None]]) -> None:
    async with stage.cluster.lend(stage.rng) as node:
        stage.note(f"{what} {node.name}")
        try:
            await end(node)
            await stage.hold()
        finally:
            stage.cluster.start(node)
            stage.note(f"start {node.name}")
