"""The table of errors, and that no answer is never taken for an answer."""

from __future__ import annotations

import errno
import inspect
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gateway.fs.filesystem import ObjmetaFileSystem
from gateway.fs.oserrors import ERRNO, os_error, oserrors
from objmeta import errors

ALL = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.ObjmetaError)]


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (errors.NoSuchBucket, FileNotFoundError),
        (errors.NoSuchKey, FileNotFoundError),
        (errors.NoSuchVersion, FileNotFoundError),
        (errors.AlreadyExists, FileExistsError),
        (errors.NoQuorum, TimeoutError),
        (errors.InvalidArgument, OSError),
        (errors.PreconditionFailed, OSError),
        (errors.BucketNotEmpty, OSError),
        (errors.UnknownOutcome, OSError),
        (errors.StoreFull, OSError),
        (errors.IntegrityError, OSError),
    ],
)
def test_the_table(error: type[errors.ObjmetaError], found: type[OSError]) -> None:
    raised = os_error(error("what happened"), "bucket/key")
    assert type(raised) is found
    assert (raised.strerror, raised.filename) == ("what happened", "bucket/key")
    assert isinstance(raised.__cause__, error)


@pytest.mark.parametrize("kind", ALL)
def test_every_error_has_its_place(kind: type[errors.ObjmetaError]) -> None:
    first = next(listed for listed, _ in ERRNO if issubclass(kind, listed))
    assert first is kind or first is not errors.ObjmetaError or kind is errors.ObjmetaError
    with pytest.raises(OSError, match="what happened") as caught, oserrors():
        raise kind("what happened")
    assert caught.value.errno


def test_an_unknown_outcome_is_not_a_timeout() -> None:
    assert not isinstance(os_error(errors.UnknownOutcome("perhaps")), TimeoutError)


def test_the_reason_of_the_disk_goes_through() -> None:
    error = errors.StoreError("the store's directory cannot be written")
    error.__cause__ = PermissionError(errno.EACCES, "denied")
    assert isinstance(os_error(error), PermissionError)


def test_a_bad_name_is_an_error_where_it_is_used_and_nothing_where_it_is_sought(fs: ObjmetaFileSystem) -> None:
    for path, rule in [("AB/x", "3 to 63"), ("Upper/x", "a-z"), ("bucket/" + "x" * 1025, "1024"), ("bucket/\0", "NUL")]:
        assert not fs.exists(path)
        assert not fs.isfile(path)
        assert not fs.isdir(path)
        for call in (fs.cat_file, fs.info, lambda path: fs.pipe_file(path, b""), lambda path: fs.open(path, "wb")):
            with pytest.raises(OSError, match=rule) as caught:
                call(path)
            assert caught.value.errno == errno.EINVAL


@pytest.fixture
def silent(no_settings: None) -> Iterator[ObjmetaFileSystem]:
    """A cluster of one node that does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        fs = ObjmetaFileSystem(endpoints=f"127.0.0.1:{server.getsockname()[1]}", timeout_s=0.2)
        yield fs
        fs.close()
    ObjmetaFileSystem.clear_instance_cache()


ASKING: dict[str, Callable[[ObjmetaFileSystem], Any]] = {
    "exists": lambda fs: fs.exists("bucket/a"),
    "lexists": lambda fs: fs.lexists("bucket/a"),
    "isfile": lambda fs: fs.isfile("bucket/a"),
    "isdir": lambda fs: fs.isdir("bucket/a"),
    "info": lambda fs: fs.info("bucket"),
    "ls": lambda fs: fs.ls(""),
    "find": lambda fs: fs.find("bucket"),
    "walk": lambda fs: list(fs.walk("bucket")),
    "glob": lambda fs: fs.glob("bucket/*.x"),
    "cat": lambda fs: fs.cat("bucket/a"),
    "open": lambda fs: fs.open("bucket/a"),
    "open to write": lambda fs: fs.open("bucket/a", "wb"),
    "pipe": lambda fs: fs.pipe_file("bucket/a", b"x"),
    "makedirs": lambda fs: fs.makedirs("bucket/a", exist_ok=True),
    "rm": lambda fs: fs.rm("bucket/a"),
    "put": lambda fs: fs.put(__file__, "bucket/a/"),
    "touch": lambda fs: fs.touch("bucket/a"),
    "mv": lambda fs: fs.mv("bucket/a", "bucket/b"),
    "modified": lambda fs: fs.modified("bucket/a"),
}


@pytest.mark.parametrize("asking", ASKING)
def test_no_answer_is_a_timeout_with_its_reason(silent: ObjmetaFileSystem, asking: str) -> None:
    with pytest.raises(TimeoutError) as caught:
        ASKING[asking](silent)
    assert caught.value.errno == errno.ETIMEDOUT
    assert caught.value.strerror
    assert isinstance(caught.value.__cause__, errors.NoQuorum)
