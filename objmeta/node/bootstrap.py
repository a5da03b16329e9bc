"""How a cluster comes to be: store identity and configuration are written into every acceptor, once.

Theory of operation.  ::

    EMPTY --Init--> BOOTSTRAPPING --all members are initialised--> ESTABLISHED

The member with the lowest id leads: when every member answers and none is established, it draws the store id, makes its
own store, sends Init to the others and, when all have confirmed, marks itself established and tells them.  No acceptor
votes before it is established, so up to then any of them may crash, or lose its directory, and begin anew: the leader
goes on with the identity it finds.  From then on an empty directory is lost data, and its node refuses to serve.

A node that joins later has its store made by the coordinator of the change (``register.membership``), outside the
store's epochs; it serves when it was given a membership with epoch.  Whatever members a node was told of, those in its
store count.
"""

from __future__ import annotations

import asyncio
import os
from typing import Final

from objmeta.core.configuration import OUTSIDE, Configuration, Membership, single_set
from objmeta.errors import ConfigurationMismatch, StoreError, Unavailable
from objmeta.node.data import REPLACE, DataDirectory
from objmeta.node.settings import NodeSettings
from objmeta.rpc import wire
from objmeta.rpc.peer import ask
from objmeta.rpc.wire import EMPTY, ESTABLISHED, Hello

_POLL_S: Final = 0.1
_JOIN_POLL_S: Final = 1.0
_ASK_TIMEOUT_S: Final = 1.0
_INIT_TIMEOUT_S: Final = 10.0


class Bootstrap:
    """One node's part. Belongs to one event loop."""

    def __init__(self, settings: NodeSettings, data: DataDirectory) -> None:
        self._settings = settings
        self._data = data
        self._news = asyncio.Event()
        self._changing = asyncio.Lock()
        self.waiting_for = "the other members"
        """What is missing, for people."""

    def check_identity(self) -> None:
        """Whether the data is this node's. Raises ConfigurationMismatch."""
        store, settings = self._data.store, self._settings
        if store is None:
            return
        if store.acceptor_id != settings.node_id:
            raise ConfigurationMismatch(
                f"{self._data.path} belongs to node {store.acceptor_id}, but this is to be node {settings.node_id}"
            )
        configuration = store.configuration
        members, known = configuration.quorums.members, {*configuration.quorums.members, *configuration.retired}
        if settings.node_id not in members:
            raise removed(settings.node_id)
        if configuration.epoch == OUTSIDE or settings.join:
            return
        if not known.issuperset(settings.members) and not set(settings.members).issuperset(members):
            raise ConfigurationMismatch(
                f"the store in {self._data.path} has {_nodes(members)}, but this node was told of "
                f"{_nodes(settings.members)}; if the members were changed while it was down, name one with --join"
            )

    async def run(self) -> None:
        """Return when this node is established.

        Raises StoreError if its data is gone, ConfigurationMismatch if the members are not of one mind.
        """
        if self._settings.join and self._data.phase == EMPTY:
            await self._wait_to_join()
        if self._outside:
            await asyncio.to_thread(self._data.establish)
            return
        while self._data.phase != ESTABLISHED:
            self._news.clear()
            hellos = await self._ask_all()
            self._check(hellos)
            if self._data.phase != EMPTY and any(hello.phase == ESTABLISHED for hello in hellos.values()):
                async with self._changing:  # the leader may be telling the same at this moment
                    if self._data.phase != ESTABLISHED:
                        await asyncio.to_thread(self._data.establish)
                return
            missing = [str(other) for other in self._settings.others if other not in hellos]
            if missing:
                self.waiting_for = f"node {', '.join(missing)}"
            elif self._settings.node_id == self._settings.members[0]:
                if await self._lead(hellos):
                    return
            else:
                self.waiting_for = f"node {self._settings.members[0]} to finish setting up the cluster"
            try:
                async with asyncio.timeout(_POLL_S):
                    await self._news.wait()
            except TimeoutError:
                continue

    @property
    def _outside(self) -> bool:
        return self._data.configuration is not None and self._data.configuration.epoch == OUTSIDE

    async def _wait_to_join(self) -> None:
        """Return when the store has been made by somebody who changes the members."""
        node_id = self._settings.node_id
        while self._data.phase == EMPTY:
            self._news.clear()
            await self._check_join()
            self.waiting_for = f"'gateway cluster add {node_id}=HOST:PORT'"
            try:
                async with asyncio.timeout(_JOIN_POLL_S):
                    await self._news.wait()
            except TimeoutError:
                continue

    async def newest(self, membership: Membership) -> Membership:
        """The highest membership known to this node's store or those named by ``join``: it may have been down long."""
        for hello in await asyncio.gather(*(self._ask(address) for address in self._settings.join)):
            theirs = hello.membership if hello is not None else None
            if theirs is None or theirs.configuration.store_id != membership.configuration.store_id:
                continue
            if theirs.configuration.epoch > membership.configuration.epoch:
                membership = theirs
        return membership

    async def _check_join(self) -> None:
        """Raises ConfigurationMismatch, StoreError if a member knows that this empty node may not join."""
        hellos = await asyncio.gather(*(self._ask(address) for address in self._settings.join))
        for address, hello in zip(self._settings.join, hellos, strict=True):
            if hello is not None and self._data.phase == EMPTY:
                self._check_may_join(address, hello)

    def _check_may_join(self, address: str, hello: Hello) -> None:
        configuration = hello.configuration
        if configuration is None or hello.phase != ESTABLISHED:
            return
        if self._settings.node_id in configuration.retired:
            raise removed(self._settings.node_id)
        if self._settings.node_id in configuration.quorums.members:
            raise self._data_gone(f"node {hello.node_id} at {address}")

    def _data_gone(self, who: str) -> StoreError:
        return StoreError(
            f"{self._settings.data} is empty, but {who} knows node {self._settings.node_id} as a member: "
            f"this node's data is gone; {REPLACE}"
        )

    # -- What others ask ----------------------------------------------------------------------------------------------

    async def init(self, configuration: Configuration) -> None:
        """Make the store as the leader says; once more is no harm. Raises ConfigurationMismatch, StoreError."""
        async with self._changing:
            if configuration.quorums.members != self._settings.members:
                raise ConfigurationMismatch(
                    f"node {self._settings.node_id} was told of {_nodes(self._settings.members)}, "
                    f"not of {_nodes(configuration.quorums.members)}"
                )
            own = self._data.configuration
            if own is None:
                addresses = tuple(sorted(self._settings.peers.items()))
                await asyncio.to_thread(self._data.initialise, self._settings.node_id, configuration, addresses)
            elif own != configuration:
                raise ConfigurationMismatch(f"node {self._settings.node_id} belongs to another store")

    async def join(self, configuration: Configuration) -> None:
        """Make the store of a node that is to join; once more is no harm. Raises ConfigurationMismatch, StoreError."""
        node_id = self._settings.node_id
        async with self._changing:
            await self._check_join()  # whoever asks for it may be late, and this node a member that lost its data
            if configuration.quorums.members != (node_id,):
                raise ConfigurationMismatch(f"this is node {node_id}, not {_nodes(configuration.quorums.members)}")
            own = self._data.configuration
            if own is None and not self._settings.join:
                raise ConfigurationMismatch(f"node {node_id} was not started with --join")
            if own is not None and own != configuration:
                same = own.store_id == configuration.store_id
                raise ConfigurationMismatch(
                    f"node {node_id} is a member already" if same else f"node {node_id} belongs to another store"
                )
            if own is None:
                await asyncio.to_thread(self._data.initialise, node_id, configuration)
            if self._data.phase != ESTABLISHED:
                await asyncio.to_thread(self._data.establish)
        self._news.set()

    async def establish(self, configuration: Configuration) -> None:
        """All members are initialised. Raises ConfigurationMismatch, StoreError."""
        async with self._changing:
            if self._data.configuration != configuration:
                raise ConfigurationMismatch(f"node {self._settings.node_id} does not belong to this store")
            if self._data.phase != ESTABLISHED:
                await asyncio.to_thread(self._data.establish)
        self._news.set()

    # -- The leader ---------------------------------------------------------------------------------------------------

    async def _lead(self, hellos: dict[int, Hello]) -> bool:
        """Initialise whoever is not; whether all are."""
        known = [hello.configuration for hello in hellos.values() if hello.configuration is not None]
        configuration = self._data.configuration or next(iter(known), None)
        if configuration is None:
            configuration = single_set(os.urandom(16), self._settings.members)
        await self.init(configuration)
        for node_id, address in self._settings.others.items():
            if hellos[node_id].configuration is None and not await self._tell(wire.INIT, address, configuration):
                self.waiting_for = f"node {node_id}"
                return False
        await asyncio.to_thread(self._data.establish)
        tell = (self._tell(wire.ESTABLISH, address, configuration) for address in self._settings.others.values())
        await asyncio.gather(*tell)  # who misses this learns it by asking
        return True

    async def _tell(self, method: str, address: str, configuration: Configuration) -> bool:
        try:
            hello = await ask(address, method, wire.encode(configuration), wire.decode_hello, _INIT_TIMEOUT_S)
        except Unavailable:
            return False
        if hello.problem:
            raise ConfigurationMismatch(hello.problem)
        return hello.configuration == configuration

    # -- Looking around -----------------------------------------------------------------------------------------------

    async def _ask_all(self) -> dict[int, Hello]:
        others = self._settings.others
        answers = await asyncio.gather(*(self._ask(address) for address in others.values()))
        return {node_id: hello for node_id, hello in zip(others, answers, strict=True) if hello is not None}

    async def _ask(self, address: str) -> Hello | None:
        try:
            return await ask(address, wire.HELLO, b"", wire.decode_hello, _ASK_TIMEOUT_S)
        except Unavailable:
            return None

    def _check(self, hellos: dict[int, Hello]) -> None:
        """What the others say must fit together with what this node holds and was told."""
        settings, own = self._settings, self._data.configuration
        for node_id, hello in hellos.items():
            where = f"node {node_id} at {settings.others[node_id]}"
            if hello.node_id != node_id:
                raise ConfigurationMismatch(f"{where} says that it is node {hello.node_id}: check the peers' addresses")
            if own is None and hello.phase == ESTABLISHED and hello.configuration is not None:
                if settings.node_id in hello.configuration.retired:
                    raise removed(settings.node_id)
                if settings.node_id not in hello.configuration.quorums.members:
                    raise ConfigurationMismatch(
                        f"node {settings.node_id} is no member of the cluster of {where}: "
                        "start it with --join, and add it with 'gateway cluster add'"
                    )
                raise self._data_gone(where)
            if hello.phase != ESTABLISHED and hello.members != settings.members:
                raise ConfigurationMismatch(
                    f"{where} was told of {_nodes(hello.members)}, this one of {_nodes(settings.members)}; "
                    "all nodes must be given the same members"
                )
        stores = {hello.configuration.store_id for hello in hellos.values() if hello.configuration is not None}
        if own is not None:
            stores.add(own.store_id)
        if len(stores) > 1:
            raise ConfigurationMismatch(
                "the members hold parts of different stores; start with directories of one store"
            )


def removed(node_id: int) -> ConfigurationMismatch:
    """What a node is told that was removed from its cluster."""
    return ConfigurationMismatch(
        f"node {node_id} was removed from the cluster and its id is never used again: to use this machine in it, "
        "start an empty node under a new id with --join, and add it with 'gateway cluster add'"
    )


def _nodes(members: tuple[int, ...]) -> str:
    return f"members {', '.join(map(str, members))}"
