"""Open files of a mounted directory, from open() to the version that close() makes.

Rules.
* A file that is opened for reading is one version until it is closed, whoever writes to it.
* What is written goes into a draft (``drafts``) and becomes one version at close, unless nothing was written since the
  last one; fsync makes a version too, because it promises that what was written so far is safe.
* close and fsync say what went wrong: EEXIST if a file that was created exclusively is there by now, EIO if a file
  that was opened to be changed was changed by others, ETIMEDOUT if the store does not answer.  What was written is
  kept on this machine then, and the user is told where.

Locks are taken in the order that ``operations`` gives.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from gateway.fs.conditions import Terms
from gateway.fs.entries import Name
from gateway.fs.readers import Reader
from gateway.mount.drafts import Draft
from gateway.mount.looking import Handle, Looking
from objmeta.errors import UnknownOutcome


class Files(Looking):
    """The part of a mounted directory that is about the content of files."""

    def open(self, path: str, flags: int) -> Handle:
        """Open a file that exists."""
        if flags & os.O_ACCMODE == os.O_RDONLY and not flags & os.O_TRUNC:
            with self._tables:
                draft = self._drafts.get(path)
                if draft is not None:
                    draft.users += 1
            if draft is None:
                return self._opened(path, reader=self._fs.open(self._name(path).path, "rb"))
            return self._joined(path, draft, flags, writes=False)
        name = self._changeable(path)
        return self._draft_opened(path, name, flags, lambda draft: self._fill(draft, bool(flags & os.O_TRUNC)))

    def create(self, path: str, mode: int, flags: int) -> Handle:
        """Make a file. Nobody elsewhere sees it before it is published."""
        name = self._changeable(path)
        exclusive, truncate = bool(flags & os.O_EXCL), bool(flags & os.O_TRUNC)
        if exclusive and self._type(path):
            raise FileExistsError(errno.EEXIST, "this exists already", path)

        def begin(draft: Draft) -> None:
            if not exclusive:
                with suppress(FileNotFoundError):  # the kernel found none, but that was a moment ago
                    self._fill(draft, truncate)
                    return
            draft.exclusive = exclusive
            draft.terms = Terms(if_absent=exclusive or not truncate)
            draft.open()
            draft.truncate(0)

        return self._draft_opened(path, name, flags, begin)

    def _draft_opened(self, path: str, name: Name, flags: int, begin: Callable[[Draft], None]) -> Handle:
        with self._tables:
            draft = self._drafts.get(path)
            is_new = draft is None
            if draft is None:
                draft = self._drafts[path] = self._spool.draft(name)
                draft.lock.acquire()  # until its content is there
            draft.users += 1
            draft.writers += 1
        if is_new:
            try:
                begin(draft)
            except BaseException as failure:
                draft.failure = failure if isinstance(failure, OSError) else OSError(errno.EIO, str(failure), path)
                self._leave(draft, writes=True)
                raise
            finally:
                draft.lock.release()
        return self._joined(path, draft, flags, writes=True)

    def _joined(self, path: str, draft: Draft, flags: int, writes: bool) -> Handle:
        with draft.lock:
            if draft.failure is not None and not draft.changed:
                self._leave(draft, writes)
                raise draft.failure
            if flags & os.O_TRUNC:
                draft.truncate(0)
        handle = self._opened(path, draft=draft)
        handle.writes, handle.appends = writes, bool(flags & os.O_APPEND)
        return handle

    def _opened(self, path: str, reader: Reader | None = None, draft: Draft | None = None) -> Handle:
        with self._tables:
            self._number += 1
            handle = Handle(self._number, path, reader, draft)
            handle.direct = any(
                other.path == path and (other.draft is not draft or _version_id(other) != _version_id(handle))
                for other in self._handles.values()
            )
            self._handles[handle.number] = handle
            return handle

    def _fill(self, draft: Draft, truncate: bool) -> None:
        """Bring what is there into a draft, or only what is kept of it when a file is replaced."""
        name = draft.name

        async def fetch() -> None:
            version = await self._fs._get_file_version(name, with_data=False)
            kept = Terms(version.content_type, dict(version.metadata))
            draft.terms = kept if truncate else replace(kept, if_version=version.version_id)
            if not truncate:
                store = await self._fs.store()
                await store.get_file(name.bucket, name.key, draft.file, version_id=version.version_id)

        self._run(fetch(), name.path)
        draft.open()
        if truncate:
            draft.truncate(0)

    def _handle(self, number: int) -> Handle:
        with self._tables:
            handle = self._handles.get(number)
        if handle is None:
            raise OSError(errno.EBADF, "this file is not open")
        return handle

    def read(self, path: str | None, size: int, offset: int, number: int) -> bytes:
        """Bytes of an open file; fewer than ``size`` only at its end."""
        handle = self._handle(number)
        if handle.draft is not None:
            return handle.draft.read(size, offset)
        assert handle.reader is not None, "a handle is of a version or of a draft"
        handle.reader.seek(offset)  # the position is this thread's own
        return handle.reader.read(size)

    def write(self, path: str | None, data: bytes, offset: int, number: int) -> int:
        """Write to the draft."""
        handle = self._handle(number)
        if handle.draft is None:
            raise OSError(errno.EBADF, "this file is open for reading")
        return handle.draft.write(data, None if handle.appends else offset)

    def truncate(self, path: str | None, length: int, number: int | None = None) -> int:
        """Cut a file, or fill it up with zeros; without an open file that is a version at once."""
        if number is not None:
            draft = self._handle(number).draft
            if draft is None:
                raise OSError(errno.EBADF, "this file is open for reading")
            draft.truncate(length)
            return 0
        assert path is not None, "only open files come without a path"
        handle = self.open(path, os.O_WRONLY | (0 if length else os.O_TRUNC))
        assert handle.draft is not None, "what is opened for writing has a draft"
        try:
            handle.draft.truncate(length)
            return self.fsync(path, 0, handle.number)
        finally:
            self.release(path, handle.number)

    def flush(self, path: str | None, number: int) -> int:
        """What close does: publish what was written.

        A file to which nothing was written yet waits for the last close: shells open a file, give it another number and
        close the first one before they begin.
        """
        draft = self._handle(number).draft
        if draft is not None:
            with draft.lock:
                if not draft.blank or draft.exclusive:
                    self._publish(draft)
        return 0

    def fsync(self, path: str | None, data_only: int, number: int) -> int:
        """Publish what was written so far."""
        draft = self._handle(number).draft
        if draft is not None:
            with draft.lock:
                self._publish(draft)
        return 0

    def release(self, path: str | None, number: int) -> int:
        """The last of those who share an open file has closed it."""
        with self._tables:
            handle = self._handles.pop(number, None)
        if handle is None:
            return 0
        if handle.reader is not None:
            handle.reader.close()
        if handle.draft is not None:
            with handle.draft.lock:
                if handle.writes and handle.draft.writers == 1 and handle.draft.failure is None:
                    with suppress(OSError):  # nobody hears of it; the content is kept, and that is said
                        self._publish(handle.draft)  # an empty file, or what a mapping wrote after the close
                self._leave(handle.draft, handle.writes)
        return 0

    def _publish(self, draft: Draft) -> None:
        """Make a version of a draft if it was changed. Its lock is held."""
        if not draft.changed or draft.gone:
            return
        name = draft.name

        async def put() -> str:
            store = await self._fs.store()
            made = await store.put_file(name.bucket, name.key, draft.file, **draft.terms.arguments)
            return made.version_id

        try:
            version_id = self._run(put(), name.path)
        except OSError as failure:
            draft.failure = failure
            if failure.errno == errno.ESTALE:  # to the kernel that would mean that the name is to be looked up again
                raise OSError(errno.EIO, failure.strerror, name.path) from failure
            raise
        draft.changed, draft.failure = False, None
        draft.terms = replace(draft.terms, if_absent=False, if_version=version_id)

    def _leave(self, draft: Draft, writes: bool) -> None:
        """One less has a draft open. Its lock is held.

        After the last one who writes it is found no more: who opens the file then gets what is in the store.  The last
        one of all keeps what could not be published.
        """
        with self._tables:
            draft.users -= 1
            draft.writers -= writes
            if not draft.writers:
                for path in [path for path, each in self._drafts.items() if each is draft]:
                    del self._drafts[path]
            if draft.users:
                return
        self._end(draft)

    def _end(self, draft: Draft) -> None:
        if draft.changed and not draft.gone:
            self.lost += 1
            why = draft.failure.strerror if draft.failure is not None else "it was not closed"
            unknown = draft.failure is not None and isinstance(draft.failure.__cause__, UnknownOutcome)
            what = "may not have been stored" if unknown else "was not stored"
            self._say(f"{draft.name.path} {what} ({why}); what was written is in {self._spool.keep(draft)}")
        draft.close()

    def close(self) -> None:
        """The end: what programs have not closed is no version; it is kept, and that is said."""
        with self._tables:
            drafts = {id(each.draft): each.draft for each in self._handles.values() if each.draft is not None}
            self._drafts.clear()
            self._handles.clear()
        for draft in drafts.values():
            with draft.lock:
                self._end(draft)
        self._spool.close()


def _version_id(handle: Handle) -> str | None:
    return handle.reader.version.version_id if handle.reader is not None else None
