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
WINDOW_BYTES: Final = 3 * CHUNK_BYTES_MAX
"""How much is looked at together: what is left at the end of one window, at most a chunk, is copied to the next."""

_NORMALIZED: Final = 1
"""Cuts are four times as likely behind the average length as before it: few chunks are very short or very long."""


class Cutter:
    """Takes content piece by piece and gives it back in chunks. Keeps a window of it in memory, and what was added."""

    def __init__(self) -> None:
        self._cdc = FastCDC(
            CHUNK_BYTES_AVERAGE,
            min_size=CHUNK_BYTES_MIN,
            max_size=CHUNK_BYTES_MAX,
            normalized_chunking=_NORMALIZED,
        )
        self._parts: list[bytes | memoryview] = []
        self.buffered = 0
        """Bytes that were added and not given back yet."""

    def add(self, data: bytes | memoryview) -> bool:
        """Add content, which must not change any more; whether it is time to :meth:`cut`."""
        if data:
            self._parts.append(data)
            self.buffered += len(data)
        return self.buffered >= WINDOW_BYTES

    def cut(self, ended: bool = False) -> list[bytes]:
        """The chunks that are complete; with ``ended``, when no more content follows, all that is left.

        Takes milliseconds; another thread may do it, while nothing is added.
        """
        window = self.rest()
        found: list[bytes] = []
        start = 0
        if window:
            for piece in self._cdc.cut_buf(window):
                if not ended and len(window) - start < CHUNK_BYTES_MAX:
                    break  # what follows may have a say
                found.append(window if piece.length == len(window) else window[start : start + piece.length])
                start += piece.length
        self._parts, self.buffered = [], 0
        self.add(memoryview(window)[start:])
        return found

    def rest(self) -> bytes:
        """All that was not given back yet, as one."""
        if len(self._parts) == 1 and isinstance(self._parts[0], bytes):
            return self._parts[0]
        return b"".join(self._parts)
