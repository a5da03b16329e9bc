"""One process of clients: each does one thing after the other to a few registers and objects, and notes it down.

Started as ``python -m tests.chaos.clients --first N --tasks T --endpoints … --seed S``; the history goes to standard
output.  On SIGTERM the clients finish what they have under way.

Most keys move on every ``EPOCH_S`` seconds, so that first writes keep happening and histories stay short; some
operations go to keys of the epoch before.  Those of epoch 0 last as long as the run.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import blake3

import objmeta
from objmeta import errors
from tests.chaos.history import (
    CHANGE,
    DELETE,
    DELETE_IF,
    FAIL,
    GET,
    OK,
    PUT,
    PUT_IF,
    PUT_IF_ABSENT,
    UNKNOWN,
    Operation,
    Recorder,
)

BUCKET: Final = "chaos"
VALUES, OBJECTS = "value", "object"
SLOTS: Final = 3
"""Keys of each kind at a time."""
EPOCH_S: Final = 1.0
TIMEOUT_S: Final = 2.0
"""For one operation: short, so that clients meet unknown outcomes and go on."""
_PAUSE_S_MAX: Final = 0.01
_EPOCH_ODDS: Final = (75, 15, 10)

_VALUE_ODDS: Final = {GET: 30, PUT: 15, CHANGE: 10, PUT_IF_ABSENT: 8, PUT_IF: 20, DELETE: 5, DELETE_IF: 7, "list": 5}
_OBJECT_ODDS: Final = {GET: 30, PUT: 20, PUT_IF_ABSENT: 8, PUT_IF: 20, DELETE: 6, DELETE_IF: 6, "list": 10}

Result = dict[str, Any]
Do = Callable[[], Awaitable[Result]]


def key(kind: str, epoch: int, slot: int) -> str:
    """The name of a register in a history; what follows the kind is its name in the store."""
    return f"{kind}/{epoch:06}/{slot}"


def content(value: str) -> bytes:
    """What an object holds whose value is called so: from some bytes to some kilobytes."""
    return f"{value}\n".encode() * (1 + hash_of(value) % 500)


def etag(value: str) -> str:
    """The etag of such an object."""
    return blake3.blake3(content(value)).hexdigest()


def hash_of(value: str) -> int:
    """A number that is the same in every process."""
    return int.from_bytes(blake3.blake3(value.encode()).digest(4))


class Client:
    """One client: at most one operation at a time, one history for all its process."""

    def __init__(self, number: int, store: objmeta.AsyncClient, recorder: Recorder, rng: random.Random) -> None:
        self._number = number
        self._store = store
        self._recorder = recorder
        self._rng = rng
        self._operations = 0
        self._versions: dict[str, tuple[str, str]] = {}
        """Of each key, the last value seen and the version it has in the store."""

    async def run(self, stop: asyncio.Event) -> None:
        """Go on until ``stop``."""
        while not stop.is_set():
            epoch = self._rng.choices((now := int(time.monotonic() / EPOCH_S), now - 1, 0), _EPOCH_ODDS)[0]
            kind = self._rng.choice((VALUES, OBJECTS))
            odds = _VALUE_ODDS if kind == VALUES else _OBJECT_ODDS
            (what,) = self._rng.choices(tuple(odds), tuple(odds.values()))
            if what == "list":
                await self.list(kind, epoch)
            else:
                await self.one(kind, key(kind, epoch, self._rng.randrange(SLOTS)), what)
            await asyncio.sleep(self._rng.random() * _PAUSE_S_MAX)

    async def one(self, kind: str, name: str, what: str) -> str:
        """One operation on one key; its outcome."""
        value = f"{self._number}-{self._operations + 1}"
        seen = self._versions.get(name)
        if seen is None and what in (PUT_IF, DELETE_IF):
            what = GET
        expected, version = seen or ("", "")
        argument = {"value": value} if what in (PUT, CHANGE, PUT_IF, PUT_IF_ABSENT) else {}
        if what in (PUT_IF, DELETE_IF):
            argument["expected"] = expected
        operation = self._begin(name, what, argument)
        stored = name.partition("/")[2]
        does = self._value_operation if kind == VALUES else self._object_operation
        outcome, result = await _perform(lambda: does(what, stored, value, version))
        self._end(operation, outcome, result)
        return outcome

    async def list(self, kind: str, epoch: int) -> str:
        """A listing of one epoch's keys: a look at each of them."""
        names = [key(kind, epoch, slot) for slot in range(SLOTS)]
        looks = {name.partition("/")[2]: self._begin(name, GET, {"by": "list"}) for name in names}
        found: dict[str, Result] = {}

        async def scan() -> Result:
            prefix = f"{epoch:06}/"
            if kind == VALUES:
                for pair in await self._store.scan(prefix):
                    found[pair.key.decode()] = _told(pair, pair.value.decode())
            else:
                async for entry in self._store.iter_objects(BUCKET, prefix):
                    assert not isinstance(entry, str)
                    # which value has this etag is known when all histories are put together
                    found[entry.key] = _told(entry, f"etag {entry.etag}")
            return {}

        outcome, result = await _perform(scan)
        for stored, operation in looks.items():
            self._end(operation, outcome, (found.pop(stored, {"value": None}) if outcome == OK else result))
        for stored, surplus in found.items():
            self._end(self._begin(f"{kind}/{stored}", GET, {"by": "list"}), OK, surplus)
        return outcome

    def _begin(self, name: str, what: str, argument: Result) -> Operation:
        self._operations += 1
        number = f"{self._number}-{self._operations}"
        operation = Operation(
            id=number, client=self._number, key=name, kind=what, argument=argument, called=time.monotonic()
        )
        self._recorder.call(operation)
        return operation

    def _end(self, operation: Operation, outcome: str, result: Mapping[str, Any]) -> None:
        self._recorder.settle(operation, outcome, result)
        value, version = result.get("value", operation.value), result.get("version")
        if version is not None and value is not None and not value.startswith("etag"):
            self._versions[operation.key] = (value, version)

    async def _value_operation(self, what: str, name: str, value: str, version: str) -> Result:
        store, data = self._store, value.encode()
        if what == GET:
            found = await store.get(name)
            return {"value": None} if found is None else _told(found, found.value.decode())
        if what == PUT:
            return _told(await store.put(name, data))
        if what == CHANGE:
            previous: list[bytes | None] = []

            def function(current: bytes | None) -> bytes:
                previous.append(current)
                return data

            changed = await store.change(name, function)
            assert changed is not None
            replaced = previous[-1]
            return _told(changed) | {"previous": None if replaced is None else replaced.decode()}
        if what == DELETE:
            return {"done": await store.delete(name)}
        try:
            if what == DELETE_IF:
                return {"done": await store.delete(name, if_version=version)}
            expected = version if what == PUT_IF else None
            return _told(await store.compare_and_swap(name, data, expected=expected)) | {"done": True}
        except errors.PreconditionFailed:
            return {"done": False}

    async def _object_operation(self, what: str, name: str, value: str, version: str) -> Result:
        store = self._store
        try:
            if what == GET:
                found = await store.get_object(BUCKET, name)
                assert found.data is not None
                seen = found.data.decode().partition("\n")[0]
                if found.data != content(seen):
                    raise errors.IntegrityError(f"{name} holds what nobody wrote: {found.data[:50]!r}")
                return _told(found, seen)
            if what in (DELETE, DELETE_IF):
                await store.delete_object(BUCKET, name, if_version=version if what == DELETE_IF else None)
                return {"done": True}
            made = await store.put_object(
                BUCKET,
                name,
                data=content(value),
                if_absent=what == PUT_IF_ABSENT,
                if_version=version if what == PUT_IF else None,
            )
            return _told(made) | ({} if what == PUT else {"done": True})
        except errors.NoSuchKey:
            return {"value": None} if what == GET else {"done": False}
        except errors.PreconditionFailed:
            return {"done": False}


def _told(shown: objmeta.KeyValue | objmeta.ObjectSummary, value: str | None = None) -> Result:
    told: Result = {"version": shown.version_id, "sequence": shown.sequence}
    return told if value is None else told | {"value": value}


async def _perform(do: Do) -> tuple[str, Result]:
    """Outcome and result. An error that no client should meet is an unknown outcome, with ``unexpected`` set."""
    try:
        return OK, await do()
    except errors.UnknownOutcome as error:
        return UNKNOWN, {"error": error.kind}
    except (errors.Unavailable, errors.StoreFull) as error:
        return FAIL, {"error": error.kind}
    except (errors.ObjmetaError, AssertionError, UnicodeDecodeError) as error:
        return UNKNOWN, {"error": type(error).__name__, "unexpected": str(error)}


async def _main() -> None:
    parser = argparse.ArgumentParser(description="One process of clients for python -m tests.chaos.")
    parser.add_argument("--first", type=int, required=True, help="number of the first client")
    parser.add_argument("--tasks", type=int, required=True, help="how many clients")
    parser.add_argument("--endpoints", required=True)
    parser.add_argument("--seed", type=int, required=True)
    given = parser.parse_args()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    recorder = Recorder(sys.stdout.fileno())
    async with objmeta.connect_async(given.endpoints, timeout_s=TIMEOUT_S) as store:
        numbers = range(given.first, given.first + given.tasks)
        clients = [Client(number, store, recorder, random.Random(given.seed + number)) for number in numbers]
        await asyncio.gather(*(client.run(stop) for client in clients))


if __name__ == "__main__":
    asyncio.run(_main())
