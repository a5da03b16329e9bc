"""What clients asked of registers and what they were told, as lines of JSON for this checker and for others.

An operation is two lines, or one if its client was killed.  When it begins::

    {"event": "call", "time": 3.2114, "client": 2, "id": "2-17", "key": "value/000001/3", "operation": "put_if",
     "argument": {"expected": "1-40", "value": "2-17"}}

and when it ends, the same with ``"event": "return"``, ``outcome`` and ``result``.  ``time`` is in seconds of one clock
that all processes share.  A client has one operation at a time.  Values are names that are written once in a history;
null is "no value".  Each key is a register of its own:

| operation       | argument          | result, if the outcome is ok                          |
| --------------- | ----------------- | ----------------------------------------------------- |
| `get`           |                   | `value`                                               |
| `put`           | `value`           |                                                       |
| `change`        | `value`           | `previous`: what it replaced, in the same instant     |
| `put_if_absent` | `value`           | `done`: false if there was a value                    |
| `put_if`        | `expected, value` | `done`: false if the value was not the expected one   |
| `delete`        |                   | `done`: false if there was no value                   |
| `delete_if`     | `expected`        | `done`: false if the value was not the expected one   |

Results also hold ``version`` and ``sequence`` where the store tells them.  A listing is a ``get`` of every key it could
have shown, by one client each.  Outcomes: ``ok``; ``fail``, it had no effect and never will; ``unknown``, it may have
had its effect, or may yet have it; an operation without a return line is unknown as well.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GET, PUT, CHANGE, PUT_IF_ABSENT = "get", "put", "change", "put_if_absent"
PUT_IF, DELETE, DELETE_IF = "put_if", "delete", "delete_if"
OK, FAIL, UNKNOWN = "ok", "fail", "unknown"


@dataclass(slots=True, kw_only=True)
class Operation:
    """One operation from call to return; ``returned`` is None and the outcome unknown while there is no answer."""

    id: str
    client: int
    key: str
    kind: str
    argument: dict[str, Any]
    called: float
    returned: float | None = None
    outcome: str = UNKNOWN
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def value(self) -> str | None:
        """What it writes."""
        return self.argument.get("value")

    @property
    def expected(self) -> str | None:
        """What must be there."""
        return self.argument.get("expected")

    def __str__(self) -> str:
        end = "…" if self.returned is None else f"{self.returned:.4f}"
        return f"[{self.called:.4f}, {end}] {self.id} {self.kind} {self.argument} -> {self.outcome} {self.result}"


class Recorder:
    """Writes lines as they happen, each in one piece, so that a killed client leaves what it has done."""

    def __init__(self, file: int) -> None:
        self._file = file

    def call(self, operation: Operation) -> None:
        """Write the line of the call; to be done before the operation begins."""
        self._write(_line(operation, "call", operation.called))

    def settle(self, operation: Operation, outcome: str, result: Mapping[str, Any]) -> None:
        """Note how an operation ended, and write its second line."""
        operation.returned, operation.outcome, operation.result = time.monotonic(), outcome, dict(result)
        self._write(_line(operation, "return", operation.returned))

    def _write(self, line: dict[str, Any]) -> None:
        os.write(self._file, json.dumps(line, separators=(",", ":")).encode() + b"\n")


def read(paths: Iterable[Path]) -> list[Operation]:
    """All operations in these files, by the time of their call. Raises ValueError if a line makes no sense."""
    found: dict[str, Operation] = {}
    for path in paths:
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
            if not line.endswith(b"\n"):
                continue  # its writer was killed in the middle of it
            try:
                told = json.loads(line)
                if told["event"] == "call":
                    found[told["id"]] = Operation(
                        id=told["id"],
                        client=told["client"],
                        key=told["key"],
                        kind=told["operation"],
                        argument=told["argument"],
                        called=told["time"],
                    )
                else:
                    operation = found[told["id"]]
                    operation.returned = told["time"]
                    operation.outcome, operation.result = told["outcome"], told["result"]
            except (ValueError, KeyError, TypeError) as problem:
                raise ValueError(f"{path}, line {number}, is no line of a history: {problem!r}") from None
    return sorted(found.values(), key=lambda operation: operation.called)


def write(operations: Iterable[Operation], path: Path) -> None:
    """Write a whole history, in the order of time."""
    lines: list[dict[str, Any]] = []
    for operation in operations:
        lines.append(_line(operation, "call", operation.called))
        if operation.returned is not None:
            lines.append(_line(operation, "return", operation.returned))
    lines.sort(key=lambda line: line["time"])
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def _line(operation: Operation, event: str, when: float) -> dict[str, Any]:
    line = {"event": event, "time": when, "client": operation.client, "id": operation.id, "key": operation.key}
    line |= {"operation": operation.kind, "argument": operation.argument}
    if event == "return":
        line |= {"outcome": operation.outcome, "result": operation.result}
    return line
