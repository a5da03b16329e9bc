"""Plain key-value registers: get, put, compare-and-swap, change by a function, delete, scan."""

from __future__ import annotations

from collections.abc import Callable

from objmeta.core.change import Decision, Keep
from objmeta.core.listing import ScanRequest, decode_rows, successor
from objmeta.core.messages import RecordRef, State
from objmeta.errors import AlreadyExists, InvalidArgument, PreconditionFailed
from objmeta.interfaces import ChangeReply, ChangeRequest
from objmeta.model.changes import EXISTS, MISSING, NO_VERSION, PRECONDITION, SetValue
from objmeta.model.names import KEYS, value_register
from objmeta.model.values import Value, decode_value, tip_of
from objmeta.objects.context import Context
from objmeta.objects.ids import parse_version_id
from objmeta.objects.types import KeyValue

ChangeFunction = Callable[[bytes | None], bytes | None]
"""From the current value (None: there is none) to the next (None: delete it)."""

_RAISED = "raised"


class _FunctionChange:
    """A change by a function of this process; what the function raises is kept for the caller.

    The function is called once for each state it is asked about (a state is known by its newest record): a second call
    could give another value, or raise, when the first one's value is already with some acceptor.
    """

    def __init__(self, version_id: bytes, function: ChangeFunction) -> None:
        self.version_id = version_id
        self.operations = (version_id,)
        self.error: Exception | None = None
        self._values: dict[RecordRef | None, bytes | None] = {}
        self._function = function

    def value_after(self, parent: RecordRef | None) -> bytes | None:
        """What the function gave for the state whose newest record is ``parent``."""
        return self._values[parent]

    def apply(self, name: bytes, state: State | None, sequence_floor: int) -> Decision:
        tip = tip_of(state)
        if tip not in self._values:
            try:
                self._values[tip] = _checked(self._function(_value(state)))
            except Exception as error:
                self.error = error
                return Keep(_RAISED)
        return SetValue(self.version_id, self._values[tip]).apply(name, state, sequence_floor)


class KeyValues:
    """The registers under ``k/``."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def get(self, key: bytes) -> KeyValue | None:
        """The value now, or None."""
        (state,) = await self._context.registers.read((value_register(key),), self._context.timeout_s)
        return _key_value(key, state)

    async def put(self, key: bytes, value: bytes) -> KeyValue:
        """Set the value whatever it was."""
        return await self._set(key, SetValue(self._context.new_id(), _checked(value)))

    async def compare_and_swap(self, key: bytes, value: bytes, expected: str | None) -> KeyValue:
        """Set the value if the last change was ``expected`` (None: if there is no value).

        Raises PreconditionFailed, and of it AlreadyExists when ``expected`` is None.
        """
        required = NO_VERSION if expected is None else _required(expected)
        return await self._set(key, SetValue(self._context.new_id(), _checked(value), required))

    async def delete(self, key: bytes, if_version: str | None) -> bool:
        """Remove the value; False if there was none. Raises PreconditionFailed."""
        required = b"" if if_version is None else _required(if_version)
        reply = await self._change(key, SetValue(self._context.new_id(), None, required))
        if reply.code == PRECONDITION:
            raise PreconditionFailed(f"the value of {key!r} is not the one of change {if_version}")
        return reply.code != MISSING

    async def change(self, key: bytes, function: ChangeFunction) -> KeyValue | None:
        """Replace the value by a function of it, exactly once, though the function may be called several times."""
        if self._context.proposer_in_process:
            change = _FunctionChange(self._context.new_id(), function)
            reply = await self._change(key, change)
            if reply.code == _RAISED and change.error is not None:
                raise change.error
            if reply.code == MISSING or reply.state is not None:
                return _key_value(key, reply.state)
            assert reply.record is not None, "a change that took effect names its record"
            ref, value = reply.record.ref, change.value_after(reply.record.parent)
            return None if value is None else KeyValue(key, value, ref.version_id.hex(), ref.sequence)
        while True:
            current = await self.get(key)
            value = _checked(function(current.value if current else None))
            try:
                if value is not None:
                    return await self.compare_and_swap(key, value, current.version_id if current else None)
                if current is not None:
                    await self.delete(key, current.version_id)
                return None
            except PreconditionFailed:
                continue

    async def scan(self, prefix: bytes, start: bytes, limit: int) -> list[KeyValue]:
        """At most ``limit`` pairs whose keys begin with ``prefix`` and are not below ``start``, in order."""
        found: list[KeyValue] = []
        name = KEYS + max(prefix, start)
        while len(found) < limit:
            request = ScanRequest(name, successor(KEYS + prefix), limit - len(found))
            page = await self._context.registers.scan(request, self._context.timeout_s)
            for row in decode_rows(page.rows):
                pair = _key_value(row.name[len(KEYS) :], row.state)
                if pair is not None:
                    found.append(pair)
            if not page.next:
                break
            name = page.next
        return found

    async def _set(self, key: bytes, change: SetValue) -> KeyValue:
        reply = await self._change(key, change)
        if reply.code == EXISTS:
            raise AlreadyExists(f"{key!r} has a value already")
        if reply.code == PRECONDITION:
            raise PreconditionFailed(f"the value of {key!r} is not the one of change {change.if_version.hex()}")
        assert reply.record is not None, "a change that took effect names its record"
        assert change.value is not None
        return KeyValue(key, change.value, change.version_id.hex(), reply.record.ref.sequence)

    async def _change(self, key: bytes, change: SetValue | _FunctionChange) -> ChangeReply:
        return await self._context.registers.change(ChangeRequest(value_register(key), change), self._context.timeout_s)


def _required(text: str) -> bytes:
    version_id = parse_version_id(text)
    if version_id == NO_VERSION:
        raise InvalidArgument(f"{text!r} is not the id of a change; to require that there is no value, pass None")
    return version_id


def _checked(value: bytes | None) -> bytes | None:
    if value is not None and not isinstance(value, bytes):
        raise InvalidArgument(f"a register's value must be bytes, not {type(value).__name__}")
    return value


def _value(state: State | None) -> bytes | None:
    if state is None:
        return None
    value = decode_value(state.value)
    assert isinstance(value, Value)
    return value.value


def _key_value(key: bytes, state: State | None) -> KeyValue | None:
    value = _value(state)
    tip = tip_of(state)
    if value is None or tip is None:
        return None
    return KeyValue(key, value, tip.version_id.hex(), tip.sequence)
