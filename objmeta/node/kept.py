"""Small things that a node remembers over restarts, each in a file of its own; it is right without them as well."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Generic, TypeVar
from zlib import crc32

import msgspec

_CHECKSUM_BYTES: Final = 4
_MARKS_NAME: Final = "marks"
_MARKS: Final = msgspec.msgpack.Decoder(dict[int, int])

_log = logging.getLogger(__name__)
_Value = TypeVar("_Value")


class Kept(Generic[_Value]):
    """One value in a file, replaced as a whole; belongs to one event loop.  A disk that fails is none of its business:
    what cannot be written is logged, and the file has what was written before."""

    def __init__(self, path: Path, decoder: msgspec.msgpack.Decoder[_Value]) -> None:
        self._path = path
        self._decoder = decoder
        self._written: _Value | None = None

    def read(self) -> _Value | None:
        """What is in the file; None if there is none, or it is damaged."""
        try:
            content = self._path.read_bytes()
            if crc32(content[_CHECKSUM_BYTES:]) == int.from_bytes(content[:_CHECKSUM_BYTES]):
                self._written = self._decoder.decode(content[_CHECKSUM_BYTES:])
            else:
                _log.warning("%s is damaged: what it had of the other nodes is forgotten", self._path)
        except FileNotFoundError:
            pass
        except (OSError, msgspec.MsgspecError) as damage:
            _log.warning("%s cannot be read: %s", self._path, damage)
        return self._written

    async def write(self, value: _Value) -> None:
        """Make it durable, if it is another one than before; the value is not changed any more by its owner."""
        if value == self._written:
            return
        try:
            await asyncio.to_thread(_write, self._path, msgspec.msgpack.encode(value))
        except OSError as failure:
            _log.warning("%s could not be written: %s", self._path, failure)
        else:
            self._written = value


class KeptMarks:
    """Satisfies :class:`objmeta.register.repairing.Marks`."""

    def __init__(self, directory: Path) -> None:
        self._file = Kept(directory / _MARKS_NAME, _MARKS)

    def kept(self) -> Mapping[int, int]:
        return self._file.read() or {}

    async def keep(self, marks: Mapping[int, int]) -> None:
        await self._file.write(dict(marks))


def _write(path: Path, encoded: bytes) -> None:
    new = path.with_name(f"{path.name}.new")
    with new.open("wb") as file:
        file.write(crc32(encoded).to_bytes(_CHECKSUM_BYTES) + encoded)
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
