"""One run: a cluster, clients, faults; then everything is mended, and what was promised is checked.

After mending, a change of the members that is under way must come to its end, every node must take writes and reads of
its own within ``PROGRESS_S``, and every key must be readable; these reads end the history, so that a lost write is one
that the history cannot explain.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import objmeta
from objmeta.errors import NoQuorum, ObjmetaError
from tests.chaos import clients, faults, history, members
from tests.chaos.checker import Verdict, check
from tests.chaos.cluster import Cluster
from tests.chaos.history import OK, Operation, Recorder

SETTLE_S: Final = 120.0
"""From mending until all processes have begun and the members stand: some starts of Python and two changes of the
members one after the other take seconds, and a minute on a machine with ten busy processes to a core."""
PROGRESS_S: Final = 20.0
"""From then to the first success through each node: seconds are enough, on a busy machine too."""
_PROGRESS_TRY_S: Final = 5.0
PROCESSES: Final = 2
_PATIENCE_S: Final = 10.0
_READERS: Final = 16
_FULL_PACE_S: Final = 20.0
"""In shorter runs faults are shorter too, so that every kind has its turn."""
_AFTER: Final = 0
"""Number of the client that reads everything at the end."""


@dataclass
class Outcome:
    """What a run showed."""

    verdict: Verdict = field(default_factory=Verdict)
    problems: list[str] = field(default_factory=list)
    """Broken promises other than those of single registers."""
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    changes: int = 0
    """Changes of the members that were completed."""
    recovery_s: float = 0.0
    """From mending to the last node's success."""

    @property
    def failures(self) -> list[str]:
        """All that is wrong."""
        return [*self.problems, *self.verdict.violations]


class Run:
    """One run in a directory of its own, which keeps logs and histories."""

    def __init__(self, directory: Path, seed: int, memory_disks: bool) -> None:
        self.directory = directory
        self.outcome = Outcome()
        self._seed = seed
        self._begun = time.monotonic()
        self._cluster = Cluster(directory, memory_disks, self._note)

    async def execute(self, nodes: int, seconds: float, kinds: list[str], target: Path) -> Outcome:
        """Do everything; the history of all clients goes to ``target``."""
        cluster = self._cluster
        try:
            await cluster.open(nodes)
            self._note(f"{nodes} nodes serve")
            async with objmeta.connect_async(",".join(cluster.endpoints), timeout_s=PROGRESS_S) as store:
                await store.create_bucket(clients.BUCKET)
            for _ in range(PROCESSES):
                cluster.start_client(faults.next_client(cluster), faults.CLIENTS_EACH, self._seed)
            await self._trouble(seconds, kinds)
            cluster.network.mend_all()
            self._note("everything is mended")
            recovered = await self._settle() and await self._progress()
            codes = await cluster.stop_clients(_PATIENCE_S)
            for code in codes:
                if code not in (0, -signal.SIGTERM):  # the signal itself: it had only just begun
                    self.outcome.problems.append(f"a process of clients ended with code {code}")
            if recovered:
                await self._read_all()
                await self._look_well()
        finally:
            await cluster.close()
        operations = resolve(history.read(cluster.histories()))
        history.write(operations, target)
        self._check(operations)
        return self.outcome

    async def _trouble(self, seconds: float, kinds: list[str]) -> None:
        rng = random.Random(self._seed)
        pace = min(1.0, seconds / _FULL_PACE_S)
        groups = [[name for name in kinds if name in group] for group in faults.GROUPS]
        try:
            async with asyncio.timeout(seconds), asyncio.TaskGroup() as makers:
                for names in filter(None, groups):
                    stage = faults.Stage(self._cluster, random.Random(rng.random()), self._note, pace)
                    makers.create_task(faults.trouble(stage, names, self.outcome.faults))
                await asyncio.Event().wait()
        except TimeoutError:
            pass

    async def _settle(self) -> bool:
        """Whether every process has begun, and a change of the members that was under way comes to its end."""
        try:
            async with asyncio.timeout(SETTLE_S):
                await members.settle(self._cluster, self._note)
                await asyncio.gather(
                    *(self._cluster.until(node, self._cluster.listens) for node in self._cluster.nodes.values())
                )
        except (TimeoutError, NoQuorum) as problem:
            change = self._cluster.change
            late = "the nodes do not listen" if change is None else f"cluster {' '.join(change.command)} is not done"
            self.outcome.problems.append(f"{late} {SETTLE_S:g} s after mending. {problem}")
            return False
        self.outcome.changes = self._cluster.changes
        return True

    async def _progress(self) -> bool:
        """Whether every node takes a write and a read in time."""
        mended = time.monotonic()

        async def through(name: str, address: str) -> None:
            key, errors = f"after/{address}", Counter[str]()
            while True:
                async with objmeta.connect_async(address, timeout_s=_PROGRESS_TRY_S) as store:
                    try:
                        written = await store.put(key, b"progress")
                        read = await store.get(key)
                    except ObjmetaError as error:
                        errors[str(error)] += 1
                        await asyncio.sleep(0.05)
                        continue
                if read is None or read.sequence < written.sequence:
                    self.outcome.problems.append(f"{address} does not see its own write")
                self._note(f"{name} makes progress after {time.monotonic() - mended:.2f} s {dict(errors) or ''}")
                return

        waiting = {
            asyncio.create_task(through(node.name, node.address), name=node.name)
            for node in self._cluster.nodes.values()
        }
        done, late = await asyncio.wait(waiting, timeout=PROGRESS_S)
        for task in late:
            task.cancel()
            self.outcome.problems.append(f"no progress through {task.get_name()} within {PROGRESS_S:g} s of mending")
        await asyncio.gather(*late, return_exceptions=True)
        for task in done:
            task.result()
        self.outcome.recovery_s = time.monotonic() - mended
        self._note(f"all nodes make progress after {self.outcome.recovery_s:.2f} s" if not late else "no progress")
        return not late

    async def _look_well(self) -> None:
        """Have ``gateway status`` say that everything is well, as soon as no answer of a node is late."""
        deadline = time.monotonic() + PROGRESS_S
        while True:
            code, said = await self._cluster.gateway("status")
            if not code:
                return
            if time.monotonic() > deadline:
                self.outcome.problems.append(f"gateway status says, with everything well: {said}")
                return

    async def _read_all(self) -> None:
        """Read every key there is, to the end of the history."""
        names = iter(sorted({operation.key for operation in history.read(self._cluster.histories())}))
        with self._cluster.history(_AFTER).open("ab", buffering=0) as file:
            endpoints = ",".join(self._cluster.endpoints)
            async with objmeta.connect_async(endpoints, timeout_s=_PATIENCE_S) as store:
                # one number each: a client does one thing at a time
                readers = [
                    clients.Client(-number, store, Recorder(file.fileno()), random.Random(self._seed))
                    for number in range(1, _READERS + 1)
                ]

                async def read(client: clients.Client) -> None:
                    for name in names:
                        if await client.one(name.partition("/")[0], name, history.GET) != OK:
                            self.outcome.problems.append(f"{name} cannot be read though everything is mended")

                await asyncio.gather(*(read(client) for client in readers))

    def _check(self, operations: list[Operation]) -> None:
        outcome = self.outcome
        outcome.verdict = check(operations)
        outcome.outcomes.update(operation.outcome for operation in operations)
        for operation in operations:
            if "unexpected" in operation.result:
                outcome.problems.append(f"a client met an error that should not be: {operation}")
        outcome.problems += self._cluster.problems

    def _note(self, what: str) -> None:
        line = f"{time.monotonic():12.3f} {time.monotonic() - self._begun:7.2f} s  {what}"
        with (self.directory / "faults.log").open("a") as log:
            log.write(line + "\n")
        print(line[13:], flush=True)


def resolve(operations: Iterable[Operation]) -> list[Operation]:
    """Put the values in place of the etags that listings told."""
    found = list(operations)
    wanted = {o.key for o in found if str(o.result.get("value")).startswith("etag ")}
    values = {f"etag {clients.etag(o.value)}": o.value for o in found if o.key in wanted and o.value is not None}
    for operation in found:
        value = operation.result.get("value")
        if value in values:
            operation.result["value"] = values[value]
    return found
