"""Files under which something is fetched until it is complete, beside the one that it becomes.

Whoever writes such a file holds a lock on it (flock) from the beginning to the end.  So what a killed process left
behind is told from what is under way, by others as well, and can be taken away.
"""

from __future__ import annotations

import fcntl
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Final

_NAME: Final = re.compile(r"\.objmeta-[0-9a-f]{16}\.part")


def is_partial(name: str) -> bool:
    """Whether a file of this name is one."""
    return _NAME.fullmatch(name) is not None


def partial_path(folder: Path) -> Path:
    """A new one."""
    return folder / f".objmeta-{os.urandom(8).hex()}.part"


def claim(descriptor: int) -> bool:
    """Hold a file that was just made, until it is closed; False: somebody took it for abandoned before, make another.

    Where the file system knows no locks nobody takes any away.
    """
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return os.fstat(descriptor).st_nlink > 0


def remove_abandoned(path: Path) -> None:
    """Take a file away if nobody holds it. Raises nothing: it is looked for again the next time."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        finally:
            os.close(descriptor)
