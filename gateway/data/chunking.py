"""Where content is cut into chunks: at places that it shows itself (FastCDC), so that near-copies share chunks.

A place to cut is found by a hash over the few bytes before it, and begins anew behind each cut.  Whoever inserts or
removes something therefore changes the chunks around it and no others, wherever what follows has moved to.  How the
content arrives, in which pieces, has no influence.  Content of up to ``CHUNK_BYTES_MIN`` is one chunk.

Never change the sizes or the hash without need: what is stored by one rule shares no chunk with what is stored by
another.
"""

from __future__ import annotations

from typing import Final

from pyfastcdc import FastCDC

CHUNK_BYTES_MIN: Final = 512 << 10
CHUNK_BYTES_AVERAGE: Final = 1 << 20
CHUNK_BYTES_MAX: Final = 4 << 20
WINDOW_BYTES: Final = 2 * CHUNK_BYTES_MAX
"""How much is looked at together: what is left at the end of one window, at most a chunk, is copied to the next."""

_NORMALIZED: Final = 1
"""Cuts are four times as likely behind the average length as before it: few chunks are very short or very long."""


class Cutter:
    """Takes content piece by piece and gives it back in chunks. Keeps a window of it in memory, and what was added.

    One window may be cut in another thread while content for the next is added.
    """

    def __init__(self) -> None:
        self._cdc = FastCDC(
            CHUNK_BYTES_AVERAGE,
            min_size=CHUNK_BYTES_MIN,
            max_size=CHUNK_BYTES_MAX,
            normalized_chunking=_NORMALIZED,
        )
        self._left = b""
        self._parts: list[bytes | memoryview] = []
        self._added = 0

    @property
    def buffered(self) -> int:
        """Bytes that wait to be taken."""
        return len(self._left) + self._added

    def add(self, data: bytes | memoryview) -> bool:
        """Add content, which must not change any more; whether there is a window full of it to :meth:`take`."""
        if data:
            self._parts.append(data)
            self._added += len(data)
        return self.buffered >= WINDOW_BYTES

    def take(self) -> list[bytes | memoryview]:
        """A window to :meth:`cut`: what the last one left, and what was added since."""
        window = [self._left, *self._parts] if self._left else self._parts
        self._left, self._parts, self._added = b"", [], 0
        return window

    def rest(self) -> bytes:
        """All that waits to be taken, as one; it stays."""
        return joined([self._left, *self._parts] if self._left else self._parts)

    def cut(self, window: list[bytes | memoryview], ended: bool = False) -> list[bytes]:
        """The chunks that are complete; with ``ended``, when no more content follows, all that is left.

        They are copies, so that one that waits keeps no window in memory.  Empties the list it is given.  Takes
        milliseconds; another thread may do it, one window at a time.
        """
        whole = joined(window)
        window.clear()
        found: list[bytes] = []
        start = 0
        if whole:
            for piece in self._cdc.cut_buf(whole):
                stop = start + piece.length
                if stop == len(whole) and not ended:
                    break  # what follows may have a say
                found.append(whole[start:stop])
                start = stop
        self._left = whole[start:]
        return found


def joined(parts: list[bytes | memoryview]) -> bytes:
    """Parts as one."""
    if len(parts) == 1 and isinstance(parts[0], bytes):
        return parts[0]
    return b"".join(parts)
