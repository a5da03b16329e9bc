"""Pages of versions taken apart and turned into Arrow, in processes of their own where there is much to do.

A first load is bound by Python, and one process runs Python on one core.  So after the first pages helpers are started:
plain child processes that are given pages as they came and answer with Arrow's stream format, on their pipes.

Rules.
* A helper is a start of the same interpreter with the same module path, not a fork (threads and connections are open
  here) and not ``multiprocessing`` (which would run a caller's unguarded script again).
* Helpers are no more than help: where none can be started, or one dies or refuses a page, the page is taken apart here.
  They end when their input does, so that none is left behind by a process that was killed.
* Nobody waits for a helper to start: it is given pages once it has said that it is there.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import queue
import select
import signal
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Final, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from gateway.catalog import batches
from objmeta import EncodedVersions

HELPERS_MAX: Final = 4
"""One writes and one reads the store beside them: more would wait."""
_ALONE: Final = 12
"""Pages: half a second's work, about what a start costs a helper."""
_LENGTH_BYTES: Final = 8
_PIPE_BYTES: Final = 1 << 20
"""A page at once: who waits for a pipe waits for Python's lock as well, which others hold for milliseconds."""
_PROGRAM: Final = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from gateway.catalog.decoding import help_out
help_out()
"""


class Decoded(NamedTuple):
    """What is on a page: rows of ``version_rows``, rows of ``removals`` if there are any, and how many objects.

    The first ``latest`` rows of versions are those of current ones.
    """

    versions: pa.Table
    removals: pa.Table | None
    objects: int
    latest: int


class _Answer(msgspec.Struct, array_like=True):
    """A helper's; ``objects`` negative: it could not."""

    objects: int
    latest: int = 0
    versions: bytes = b""
    removals: bytes = b""


_ENCODER: Final = msgspec.msgpack.Encoder()
_VERSIONS: Final = msgspec.msgpack.Decoder(EncodedVersions)
_ANSWER: Final = msgspec.msgpack.Decoder(_Answer)


class Decoders:
    """Takes pages apart, several at once; use it with ``with``."""

    def __init__(self, resolve: batches.Resolve, helpers: int | None = None) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.helpers = min(HELPERS_MAX, max(0, cores - 1)) if helpers is None else helpers
        self._resolve = resolve
        self.asked: set[int] = set()
        """The helpers that were given pages, by process id."""
        self._pages = 0
        self._idle: queue.SimpleQueue[_Helper | None] = queue.SimpleQueue()
        self._held = contextlib.ExitStack()
        self._threads = ThreadPoolExecutor(max(1, self.helpers), "objmeta-decoding")

    def submit(self, versions: EncodedVersions) -> Future[Decoded]:
        """What is on this page, later. The future raises IntegrityError."""
        self._pages += 1
        if self._pages == _ALONE:
            for _ in range(self.helpers):
                self._idle.put(None)
        return self._threads.submit(self._decoded, versions)

    def __enter__(self) -> Decoders:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._held.close()

    def _decoded(self, versions: EncodedVersions) -> Decoded:
        try:
            helper = self._idle.get_nowait()
        except queue.Empty:
            return decoded(versions, self._resolve)
        with contextlib.suppress(OSError, EOFError, msgspec.MsgspecError, pa.ArrowInvalid):
            if helper is None:
                helper = self._held.enter_context(_Helper())
            found = None
            if helper.is_there():
                self.asked.add(helper.process_id)
                found = helper.decoded(versions)
            self._idle.put(helper)
            if found is not None:
                return found
        return decoded(versions, self._resolve)


def decoded(versions: EncodedVersions, resolve: batches.Resolve) -> Decoded:
    """What is on a page. Raises IntegrityError."""
    arrays = versions.arrays()
    others = arrays.others
    rows = [batches.plain_versions(arrays)]
    if len(others):
        rows.append(batches.versions(others, resolve))
    removals = batches.removals(others) if others.removals else None
    objects = int(arrays.is_latest.sum()) + len(set(others.key))
    made = pa.Table.from_batches(rows)
    is_latest = made["is_latest"]
    latest, older = made.filter(is_latest), made.filter(pc.invert(is_latest))
    return Decoded(pa.concat_tables((latest, older)), removals, objects, latest.num_rows)


class _Helper:
    """A child process, for one caller at a time. Raises OSError if it cannot be started."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", "-c", _PROGRAM, json.dumps(sys.path)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
        assert self._process.stdin is not None, "it is a pipe"
        assert self._process.stdout is not None, "it is a pipe"
        self._input, self._output = self._process.stdin, self._process.stdout
        self._greeted = False
        for end in (self._input, self._output):
            with contextlib.suppress(OSError, AttributeError):  # where it cannot be had it is only slower
                fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    @property
    def process_id(self) -> int:
        """Of the child."""
        return self._process.pid

    def is_there(self) -> bool:
        """Whether it has started; does not wait for that. Raises EOFError if the process is gone."""
        if not self._greeted and select.select((self._output,), (), (), 0)[0]:
            _received(self._output)
            self._greeted = True
        return self._greeted

    def decoded(self, versions: EncodedVersions) -> Decoded | None:
        """What is on a page; None if that cannot be told there. Raises OSError, EOFError if the process is gone."""
        _send(self._input, _ENCODER.encode(versions))
        answer = _ANSWER.decode(_received(self._output))
        if answer.objects < 0:
            return None
        removals = pa.ipc.open_stream(answer.removals).read_all() if answer.removals else None
        return Decoded(pa.ipc.open_stream(answer.versions).read_all(), removals, answer.objects, answer.latest)

    def __enter__(self) -> _Helper:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        for pipe in (self._input, self._output):
            with contextlib.suppress(OSError):  # what was not sent is not wanted any more
                pipe.close()
        self._process.wait()


def help_out() -> None:
    """What a helper does: says that it is there, and answers until its input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a caller's Ctrl-C ends the caller, and its input with it
    gc.disable()  # for good: pages make no cycles
    with contextlib.suppress(OSError, EOFError):
        _send(sys.stdout.buffer, b"")
        while True:
            versions = _VERSIONS.decode(_received(sys.stdin.buffer))
            _send(sys.stdout.buffer, _ENCODER.encode(_answer(versions)))


def _answer(versions: EncodedVersions) -> _Answer:
    try:
        found = decoded(versions, _unresolved)
    except Exception:  # told by who asked, who meets it again
        return _Answer(-1)
    removals = _streamed(found.removals) if found.removals is not None else b""
    return _Answer(found.objects, found.latest, _streamed(found.versions), removals)


def _unresolved(*_: object) -> None:
    raise LookupError("lists of chunks are read by who has a client")


def _streamed(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write(rows)
    return bytes(sink.getvalue())


def _send(pipe: IO[bytes], message: bytes) -> None:
    pipe.write(len(message).to_bytes(_LENGTH_BYTES))
    pipe.write(message)
    pipe.flush()


def _received(pipe: IO[bytes]) -> bytes:
    return _exactly(pipe, int.from_bytes(_exactly(pipe, _LENGTH_BYTES)))


def _exactly(pipe: IO[bytes], length: int) -> bytes:
    found = pipe.read(length)
    if len(found) < length:
        raise EOFError("the other process is gone")
    return found
