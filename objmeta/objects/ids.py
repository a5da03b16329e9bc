"""Version ids as people write them."""

from __future__ import annotations

from objmeta.errors import InvalidArgument


def parse_version_id(text: str) -> bytes:
    """16 bytes from 32 hexadecimal digits. Raises InvalidArgument."""
    try:
        version_id = bytes.fromhex(text)
    except (ValueError, TypeError):
        version_id = b""
    if len(version_id) != 16:
        raise InvalidArgument(f"{text!r} is not a version id: it must be 32 hexadecimal digits")
    return version_id


def time_of(operation_id: bytes) -> int:
    """When the client drew a UUIDv7, in microseconds since the epoch, to the millisecond (RFC 9562, section 5.7)."""
    return int.from_bytes(operation_id[:6]) * 1000
