"""Where a local place keeps the bytes of a chunk, and how to spoil them: for tests."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from gateway.blobs.index import INDEX
from objmeta import Chunk


def _index(place: Path) -> closing[sqlite3.Connection]:
    return closing(sqlite3.connect(f"{(place / INDEX).absolute().as_uri()}?mode=rw", uri=True))


def whereabouts(place: Path, chunk: Chunk) -> tuple[Path, int]:
    """The file that holds a chunk's bytes, and where in it they begin. KeyError: the index knows nothing of it."""
    with _index(place) as connection:
        row = connection.execute("SELECT pack, offset FROM chunks WHERE digest = ?", (chunk.digest,)).fetchone()
    if row is None:
        raise KeyError(chunk.digest.hex())
    pack, offset = row
    name = chunk.digest.hex()
    return (place / "packs" / f"{pack:014x}.pack", offset) if pack else (place / name[:2] / name, 0)


def is_held(place: Path, chunk: Chunk) -> bool:
    """Whether the index knows a chunk, and the file is there that has its bytes."""
    try:
        return whereabouts(place, chunk)[0].exists()
    except (KeyError, sqlite3.OperationalError):
        return False


def spoil(place: Path, chunk: Chunk) -> None:
    """Flip a bit of a chunk's bytes."""
    path, offset = whereabouts(place, chunk)
    with open(path, "r+b") as file:
        file.seek(offset + chunk.length - 1)
        (last,) = file.read(1)
        file.seek(offset + chunk.length - 1)
        file.write(bytes((last ^ 1,)))


def spoil_named(place: Path, digest: str) -> None:
    """The same for a chunk whose length the index knows."""
    with _index(place) as connection:
        (length,) = connection.execute(
            "SELECT length FROM chunks WHERE digest = ?", (bytes.fromhex(digest),)
        ).fetchone()
    spoil(place, Chunk(bytes.fromhex(digest), length))


def lose(place: Path, chunk: Chunk) -> None:
    """Remove the file that has a chunk's bytes, and all others that are in the same one."""
    whereabouts(place, chunk)[0].unlink()


def chunks(place: Path) -> list[str]:
    """The names of the chunks that the index knows."""
    with _index(place) as connection:
        return sorted(digest.hex() for (digest,) in connection.execute("SELECT digest FROM chunks"))
