"""fsspec's transactions, ``with fs.transaction:``, kept: all of it at one instant, or none.

fsspec commits one file after the other, and one that fails leaves those before it.  Here the files that were opened for
writing in the block are one commit (``AsyncClient.commit``), so there may be 1,000 of them and each name once.  What
does not open a file (``pipe``, ``put``, ``rm``, …) takes effect at once, as with fsspec, and so does what other threads
do: a transaction belongs to the thread that began it.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from fsspec.transaction import Transaction

if TYPE_CHECKING:
    from gateway.fs.writers import Writer


class Together(Transaction):  # type: ignore[misc]
    """The files of one block."""

    fs: Any

    def complete(self, commit: bool = True) -> None:
        """Commit all files, or discard them. Raises OSError: then nothing was stored, unless the outcome is unknown.

        A file that is still open has not all of its content: it is an error, also for the others.
        """
        writers: list[Writer] = list(self.files)
        self.files.clear()
        fs, self.fs = self.fs, None
        try:
            if commit:
                for writer in writers:
                    if not writer.closed:
                        raise OSError(
                            errno.EINVAL, "still open at the end of its transaction: none was stored", writer.path
                        )
                fs.commit_together([writer for writer in writers if writer.has_content])
        finally:
            for writer in writers:
                if writer.version is None:
                    writer.discard()
            fs._intrans = False
            fs._transaction = None
