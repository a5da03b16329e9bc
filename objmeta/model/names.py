"""Names people give, and the names of the registers behind them.

Register names are bytes and sort as listings do::

    b"b/" + bucket name                      a bucket
    b"o/" + bucket id (16 bytes) + key       the head of one object
    b"k/" + key                              a plain key-value register
    b"l/" + name                             a lock
    b"t/" + transaction id (16 bytes)        the outcome of a transaction; nobody can name one

The rules for names are S3's (Amazon S3 User Guide, "Bucket naming rules" and "Naming objects").
"""

from __future__ import annotations

import functools
import re
from typing import Final

from objmeta.errors import InvalidArgument

BUCKETS: Final = b"b/"
OBJECTS: Final = b"o/"
KEYS: Final = b"k/"
LOCKS: Final = b"l/"
TRANSACTIONS: Final = b"t/"
BUCKET_ID_BYTES: Final = 16
KEY_BYTES_MAX: Final = 1024

_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_ADDRESS: Final = re.compile(r"\d+\.\d+\.\d+\.\d+")


@functools.lru_cache(maxsize=1024)
def check_bucket(name: str) -> str:
    """Return ``name`` if it is a valid bucket name; raises InvalidArgument naming the rule it breaks."""
    if not 3 <= len(name) <= 63:
        raise InvalidArgument(f"bucket name {name!r} has {len(name)} characters; it must have 3 to 63")
    if not _BUCKET.fullmatch(name):
        raise InvalidArgument(
            f"bucket name {name!r} may hold only a-z, 0-9, '.' and '-', and must begin and end with a letter or digit"
        )
    if ".." in name or _ADDRESS.fullmatch(name):
        raise InvalidArgument(f"bucket name {name!r} must not hold two dots in a row or look like an IP address")
    return name


def check_key(key: str) -> str:
    """Return ``key`` if it is a valid object key; raises InvalidArgument naming the rule it breaks."""
    _encoded(key)
    return key


def _encoded(key: str) -> bytes:
    try:
        encoded = key.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"key {key!r} is not valid Unicode and cannot be written as UTF-8") from None
    if not 1 <= len(encoded) <= KEY_BYTES_MAX:
        found = f"key {_shortened(key)!r} has {len(encoded)} bytes in UTF-8"
        raise InvalidArgument(f"{found}; it must have 1 to {KEY_BYTES_MAX}")
    if "\x00" in key:
        raise InvalidArgument(f"key {_shortened(key)!r} holds a NUL character, which no file system can show")
    return encoded


def bucket_register(bucket: str) -> bytes:
    """The register of a bucket."""
    return BUCKETS + check_bucket(bucket).encode()


def object_prefix(bucket_id: bytes) -> bytes:
    """What the registers of a bucket's objects begin with."""
    return OBJECTS + bucket_id


def object_register(bucket_id: bytes, key: str) -> bytes:
    """The register of an object's head."""
    return OBJECTS + bucket_id + _encoded(key)


def value_register(key: bytes) -> bytes:
    """The register of a plain key-value pair."""
    if not 1 <= len(key) <= KEY_BYTES_MAX:
        raise InvalidArgument(f"a register's key must have 1 to {KEY_BYTES_MAX} bytes, this one has {len(key)}")
    return KEYS + key


def transaction_register(transaction: bytes) -> bytes:
    """The register of a transaction's outcome, by its id (16 bytes)."""
    return TRANSACTIONS + transaction


def lock_register(name: str) -> bytes:
    """The register of a lock; its name may be what a key may be. Raises InvalidArgument."""
    if not isinstance(name, str):
        raise InvalidArgument(f"a lock's name must be a string, not {type(name).__name__}")
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"lock name {name!r} is not valid Unicode and cannot be written as UTF-8") from None
    if not 1 <= len(encoded) <= KEY_BYTES_MAX:
        found = f"lock name {_shortened(name)!r} has {len(encoded)} bytes in UTF-8"
        raise InvalidArgument(f"{found}; it must have 1 to {KEY_BYTES_MAX}")
    return LOCKS + encoded


def _shortened(key: str) -> str:
    return key if len(key) <= 60 else key[:57] + "..."
