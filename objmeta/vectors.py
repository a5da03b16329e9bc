"""Many values of one type read from MessagePack at once, column by column, with numpy.

For whom an object of Python for each value would cost too much.  The values are read in step: one field of all of them,
then the next, each with a few operations on whole arrays.  How they are laid out comes from their type, as msgspec
writes it: integers that are not negative, bytes, str, bool, dictionaries of str, tuples of one type, ``X | None``,
array-like structs and named tuples; where a type says ``msgspec.Raw``, an integer of 64 bits that does not matter.

A value that is not laid out so is no error: it may be an older one with fewer fields, or of another type.  It is marked
as not ``good``, and what the columns say of it means nothing.  So is one with a tuple or dictionary of more than
``ITEMS_MAX``, since each of their places takes a step for itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import msgspec
import numpy as np
from msgspec import inspect
from numpy.typing import NDArray

ITEMS_MAX: Final = 64
_NIL, _FALSE, _TRUE = 0xC0, 0xC2, 0xC3
_WORD_BYTES: Final = 8

Numbers: TypeAlias = NDArray[np.int64]
Flags: TypeAlias = NDArray[np.bool_]
_Bytes: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Spans:
    """A column of bytes or of text: where each value lies in ``data``."""

    data: _Bytes
    start: Numbers
    length: Numbers

    def take(self, which: Numbers | Flags | slice) -> Spans:
        """Those of some rows."""
        return Spans(self.data, self.start[which], self.length[which])

    def after(self, length: int) -> Spans:
        """Each without its first bytes."""
        return Spans(self.data, self.start + length, np.maximum(self.length - length, 0))

    def words(self, width: int) -> NDArray[np.uint64]:
        """A row of ``width`` / 8 words for each, of no meaning where it is not ``width`` bytes long."""
        return _windows(self.data, width)[self.start].view(np.uint64).reshape(len(self.start), width // _WORD_BYTES)

    def values(self) -> list[bytes]:
        """Each as an object of its own."""
        data = self.data.data
        return [bytes(data[start : start + length]) for start, length in zip(self.start, self.length, strict=True)]

    def joined(self) -> _Bytes:
        """All of them, one after another."""
        some = self.length > 0
        start, length = self.start[some], self.length[some]
        if len(length) and (length == length[0]).all() and length[0] <= _PADDING:
            return _windows(self.data, int(length[0]))[start].view(np.uint8)
        at = np.repeat(start - (np.cumsum(length) - length), length) + np.arange(length.sum())
        found: _Bytes = self.data[at]
        return found


@dataclass(frozen=True, slots=True)
class Many:
    """A column of tuples or dictionaries: how many items each has, and all items, one after another."""

    count: Numbers
    items: Any


@dataclass(frozen=True, slots=True)
class Perhaps:
    """A column of what may be None: ``value`` means nothing where it is not ``there``."""

    there: Flags
    value: Any


Column: TypeAlias = "Numbers | Flags | Spans | Many | Perhaps | dict[str, Column]"
"""A dictionary: the fields of a struct, or the ``keys`` and ``values`` of dictionaries."""


def column(encoded: bytes, start: Numbers, length: Numbers) -> Spans:
    """Values that lie somewhere in ``encoded``, as a column."""
    return Spans(np.frombuffer(encoded + bytes(_PADDING), np.uint8), start, length)


def items(encoded: bytes) -> Spans:
    """The items of an encoded list, as a column. Raises msgspec.MsgspecError if it is none."""
    found = _ITEMS.decode(encoded)
    length = np.fromiter(map(len, found), np.int64, len(found))
    end = np.cumsum(length)
    return column(encoded, end - length + (len(encoded) - length.sum()), length)


def equal(left: Spans, right: Spans) -> Flags:
    """Which rows of two columns hold the same bytes."""
    same: Flags = left.length == right.length
    at = 0
    while len(some := np.flatnonzero(same & (left.length > at))):
        rest = _REST[np.minimum(left.length[some] - at, _WORD_BYTES)]
        words = [_words(each.data, "<u8")[each.start[some] + at] for each in (left, right)]
        same[some] = (words[0] ^ words[1]) & rest == 0
        at += _WORD_BYTES
    return same


def read(kind: type, encoded: Spans) -> tuple[dict[str, Any], Flags]:
    """The fields of values of a struct, by name, and which values are good."""
    cursor = _Cursor(encoded.data, encoded.start)
    columns = _reader(kind)(cursor)
    return columns, cursor.good & (cursor.at == encoded.start + encoded.length)


# -- Bytes ------------------------------------------------------------------------------------------------------------

_PADDING: Final = 64
"""Bytes behind the last value: so many may be read at once wherever a cursor stands."""


def _windows(data: _Bytes, width: int) -> NDArray[np.void]:
    """From each byte on the next ``width``; nothing is copied."""
    return np.ndarray((len(data) - width + 1,), f"V{width}", data, strides=(1,))


_ITEMS: Final = msgspec.msgpack.Decoder(list[msgspec.Raw])
_REST: Final = np.array([256**length - 1 for length in range(_WORD_BYTES + 1)], np.uint64)
"""The bytes of a word that are of something so long."""


def _words(data: _Bytes, kind: str) -> NDArray[np.uint64]:
    """From each byte on the next 8, as an integer; nothing is copied."""
    return np.ndarray((len(data) - _WORD_BYTES + 1,), kind, data, strides=(1,))


class _Form:
    """How an integer, or the length of something, is written: tables by the first byte."""

    def __init__(self, fixed: range, first: int | None, widths: Sequence[int]) -> None:
        self.width = np.full(256, -1, np.int64)
        """Of what follows the first byte; -1: it does not begin so."""
        self.small = np.zeros(256, np.int64)
        """What the first byte says alone."""
        self.keep = np.zeros(256, np.uint64)
        """All bits, if more follows."""
        self.shift = np.zeros(256, np.uint64)
        """What of the next 8 bytes is beyond it."""
        self.tags = dict(enumerate(fixed))
        """The byte that is all of a value."""
        for value, tag in self.tags.items():
            self.width[tag] = 0
            self.small[tag] = value
        for tag, width in enumerate(widths, first or 0):
            self.width[tag] = width
            self.keep[tag] = _REST[_WORD_BYTES]
            self.shift[tag] = 8 * (_WORD_BYTES - width)


_INTEGER: Final = _Form(range(0x80), 0xCC, (1, 2, 4, 8))
_BINARY: Final = _Form(range(0), 0xC4, (1, 2, 4))
_TEXT: Final = _Form(range(0xA0, 0xC0), 0xD9, (1, 2, 4))
_ARRAY: Final = _Form(range(0x90, 0xA0), 0xDC, (2, 4))
_MAP: Final = _Form(range(0x80, 0x90), 0xDE, (2, 4))


class _Cursor:
    """Where each of many values is read; ``good``: those that were as they must be up to there."""

    def __init__(self, data: _Bytes, at: Numbers) -> None:
        self.data = data
        self.end = len(data) - _PADDING
        self.at = at
        self.good: Flags = np.ones(len(at), np.bool_)
        self._words = _words(data, ">u8")

    def byte(self) -> _Bytes:
        found: _Bytes = self.data[self.at]
        self._pass(1)
        return found

    def number(self, form: _Form, large: bool = False) -> Numbers:
        """An integer, or the length of what follows; only where it does not matter it may be ``large``."""
        tags = self.data[self.at]
        if len(tags) and (tags == tags[0]).all():
            return self._alike(form, int(tags[0]), large)
        width = form.width.take(tags)
        self.good &= width >= 0
        widest = width.max(initial=0)
        found: Numbers = form.small.take(tags)
        if widest == 1:
            found = np.where(width == 1, self.data[self.at + 1], found)
        elif widest > 1:
            word = self._words[self.at + 1].astype(np.uint64) >> form.shift.take(tags)
            found |= (word & form.keep.take(tags)).view(np.int64)
        return self._checked(found, width, widest == _WORD_BYTES and not large)

    def _alike(self, form: _Form, tag: int, large: bool) -> Numbers:
        """The same where all begin with this byte."""
        width = int(form.width[tag])
        if width < 0:
            self.good[:] = False
        found: Numbers
        if width <= 0:
            found = np.full(len(self.at), form.small[tag])
        elif width == 1:
            found = self.data[self.at + 1].astype(np.int64)
        else:
            found = (self._words[self.at + 1].astype(np.uint64) >> form.shift[tag]).view(np.int64)
        return self._checked(found, width, width == _WORD_BYTES and not large)

    def _checked(self, found: Numbers, width: Any, may_be_large: bool) -> Numbers:
        if may_be_large:
            self.good &= found >= 0  # one of 64 bits with the first set is none of ours
        self._pass(width + 1)
        return found

    def spans(self, form: _Form) -> Spans:
        length = self.number(form)
        start = self.at
        self.good &= length <= self.end - start
        length = np.where(self.good, length, 0)
        self._pass(length)
        return Spans(self.data, start, length)

    def expect(self, form: _Form, value: int) -> None:
        tag = form.tags.get(value)
        if tag is None:
            self.good &= self.number(form) == value
        else:
            self.good &= self.data[self.at] == tag
            self._pass(1)

    def _pass(self, length: Any) -> None:
        self.at = np.minimum(self.at + length, self.end)


# -- Types ------------------------------------------------------------------------------------------------------------

_Read: TypeAlias = Callable[[_Cursor], Any]


@functools.cache
def _reader(kind: type) -> _Read:
    return _made(inspect.type_info(kind))


def _made(kind: inspect.Type) -> _Read:
    match kind:
        case inspect.IntType():
            return lambda cursor: cursor.number(_INTEGER)
        case inspect.RawType():
            return lambda cursor: cursor.number(_INTEGER, large=True)
        case inspect.BytesType():
            return lambda cursor: cursor.spans(_BINARY)
        case inspect.StrType():
            return lambda cursor: cursor.spans(_TEXT)
        case inspect.BoolType():
            return _flags
        case inspect.DictType(key_type=inspect.StrType(), value_type=inspect.StrType()):
            return functools.partial(_many, _MAP, _fields({"keys": kind.key_type, "values": kind.value_type}))
        case inspect.VarTupleType():
            return functools.partial(_many, _ARRAY, _made(kind.item_type))
        case inspect.StructType(array_like=True):
            fields = {field.encode_name: field.type for field in kind.fields}
            return functools.partial(_array, kind.tag, len(fields), _fields(fields))
        case inspect.NamedTupleType():
            fields = {field.encode_name: field.type for field in kind.fields}
            return functools.partial(_array, None, len(fields), _fields(fields))
        case (
            inspect.UnionType(types=(value, inspect.NoneType())) | inspect.UnionType(types=(inspect.NoneType(), value))
        ):
            return functools.partial(_perhaps, _made(value))
    raise TypeError(f"values with {kind} in them cannot be read by the column")


def _fields(kinds: dict[str, inspect.Type]) -> _Read:
    readers = {name: _made(kind) for name, kind in kinds.items()}
    return lambda cursor: {name: read_field(cursor) for name, read_field in readers.items()}


def _array(tag: str | int | None, fields: int, read_fields: _Read, cursor: _Cursor) -> dict[str, Any]:
    cursor.expect(_ARRAY, fields + (tag is not None))
    if isinstance(tag, str):
        written = tag.encode()
        found = cursor.spans(_TEXT)
        cursor.good &= (found.length == len(written)) & (
            _windows(cursor.data, len(written))[found.start] == np.void(written)
        )
    elif tag is not None:
        cursor.expect(_INTEGER, tag)
    columns: dict[str, Any] = read_fields(cursor)
    return columns


def _flags(cursor: _Cursor) -> Flags:
    found = cursor.byte()
    true: Flags = found == _TRUE
    cursor.good &= true | (found == _FALSE)
    return true


def _perhaps(read_value: _Read, cursor: _Cursor) -> Perhaps:
    start = cursor.at
    there: Flags = cursor.data[start] != _NIL
    value = _Cursor(cursor.data, start)
    columns = read_value(value)
    cursor.at = np.where(there, value.at, start + 1)
    cursor.good &= value.good | ~there
    return Perhaps(there, columns)


def _many(form: _Form, read_item: _Read, cursor: _Cursor) -> Many:
    count = cursor.number(form)
    cursor.good &= count <= ITEMS_MAX
    count = np.where(cursor.good, count, 0)
    most = count.max(initial=0)
    start = np.empty(count.sum(), np.int64)
    first = np.cumsum(count) - count
    at = cursor.at.copy()
    items = read_item(_Cursor(cursor.data, start)) if not most else None
    for place in range(most):
        having = np.flatnonzero(count > place)
        start[first[having] + place] = at[having]
        item = _Cursor(cursor.data, at[having])
        items = read_item(item)
        at[having] = item.at
        cursor.good[having] &= item.good
    cursor.at = at
    # Items of one place only have been read in their order; else once more, in it.
    return Many(count, items if most <= 1 else read_item(_Cursor(cursor.data, start)))
