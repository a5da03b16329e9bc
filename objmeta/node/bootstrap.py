"""How a cluster comes to be: store identity and configuration are written into every acceptor, once.

Theory of operation.  ::

    EMPTY --Init--> BOOTSTRAPPING --all members are initialised--> ESTABLISHED

The member with the lowest id leads: when every member answers and none is established, it draws the store id, makes its
own store, sends Init to the others and, when all have confirmed, marks itself established and tells them.  No acceptor
votes before it is established, so up to then any of them may crash, or lose its directory, and begin anew: the leader
goes on with the identity it finds.  From then on an empty directory is lost data, and its node refuses to serve.
"""

from __future__ import annotations

import asyncio
import os
from typing import Final

from objmeta.core.configuration import Configuration, single_set
from objmeta.errors import ConfigurationMismatch, StoreError, Unavailable
from objmeta.node.data import REPLACE, DataDirectory
from objmeta.node.settings import NodeSettings
from objmeta.rpc import wire
from objmeta.rpc.peer import ask
from objmeta.rpc.wire import EMPTY, ESTABLISHED, Hello

_POLL_S: Final = 0.1
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
        if store.configuration.quorums.members != settings.members:
            raise ConfigurationMismatch(
                f"the store in {self._data.path} has {_nodes(store.configuration.quorums.members)}, "
                f"but this node was told of {_nodes(settings.members)}"
            )

    async def run(self) -> None:
        """Return when this node is established.

        Raises StoreError if its data is gone, ConfigurationMismatch if the members are not of one mind.
        """
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
                await asyncio.to_thread(self._data.initialise, self._settings.node_id, configuration)
            elif own != configuration:
                raise ConfigurationMismatch(f"node {self._settings.node_id} belongs to another store")

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
            if hello.members != settings.members:
                raise ConfigurationMismatch(
                    f"{where} was told of {_nodes(hello.members)}, this one of {_nodes(settings.members)}; "
                    "all nodes must be given the same members"
                )
            if own is None and hello.phase == ESTABLISHED:
                raise StoreError(
                    f"{settings.data} is empty, but {where} is established: this node's data is gone; {REPLACE}"
                )
        stores = {hello.configuration.store_id for hello in hellos.values() if hello.configuration is not None}
        if own is not None:
            stores.add(own.store_id)
        if len(stores) > 1:
            raise ConfigurationMismatch(
                "the members hold parts of different stores; start with directories of one store"
            )


def _nodes(members: tuple[int, ...]) -> str:
    return f"members {', '.join(map(str, members))}"
