"""What an fsspec instance, which is cached and shared by threads, must not share, and what it is known by."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from fsspec.spec import _Cached

from objmeta.config import parse_target
from objmeta.errors import InvalidArgument

_PLACES: Final = ("path", "home", "local_dir")
_VARIABLES: Final = (
    "OBJMETA_HOME", "OBJMETA_PATH", "OBJMETA_DISKS", "OBJMETA_TARGET", "OBJMETA_LOCAL_DIR", "OBJMETA_CONFIG",
)  # fmt: skip


class Anchored(_Cached):  # type: ignore[misc]
    """Makes instances whose arguments mean the same in any working directory and process, and can be JSON.

    An instance is found again by its arguments, and travels as them: a path that is relative would name another store
    after a ``chdir``, or in a worker.
    """

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """The instance for these arguments, new or from fsspec's cache."""
        first = tuple(anchored("path", value) for value in args[:1])
        return super().__call__(*first, *args[1:], **{name: anchored(name, value) for name, value in kwargs.items()})


def anchored(name: str, value: Any) -> Any:
    """An argument of the file system with its paths absolute, and a time as text. What is bad stays as it is."""
    if name in _PLACES and value and isinstance(value, str | os.PathLike):
        return _absolute(value)
    if name == "disks" and isinstance(value, str):
        return os.pathsep.join(_absolute(each) if each else each for each in value.split(os.pathsep))
    if name == "disks" and isinstance(value, Sequence):
        return [_absolute(each) if isinstance(each, str | os.PathLike) else each for each in value]
    if name == "target":
        with suppress(InvalidArgument):
            found = parse_target(value)
            return str(found) if isinstance(found, Path) else value
    if name == "as_of" and not isinstance(value, str | int | float | None):
        return str(value)  # all kinds of times say what they are in ISO 8601
    return value


def _absolute(path: str | os.PathLike[str]) -> str:
    with suppress(RuntimeError):  # nobody's home
        return str(Path(path).expanduser().absolute())
    return os.fspath(path)


class PerThread:
    """An attribute with a value for each thread. fsspec keeps a transaction on the shared, cached instance."""

    def __init__(self, default: object) -> None:
        self._default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = f"_per_thread{name}"

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        return getattr(instance.__dict__.get(self._name), "value", self._default)

    def __set__(self, instance: Any, value: object) -> None:
        instance.__dict__.setdefault(self._name, threading.local()).value = value


class Environment:
    """OBJMETA_* as it is now: two instances made under different ones are different, although nothing was passed.

    So is one that was made in another working directory, where a relative path in there names another store.
    """

    def __get__(self, instance: Any, owner: type) -> tuple[tuple[str, str], ...]:
        found = sorted((name, value) for name, value in os.environ.items() if name.startswith("OBJMETA_"))
        is_relative = any(name in _VARIABLES and not value.startswith(("/", "~")) for name, value in found)
        return (*found, ("", os.getcwd())) if is_relative else tuple(found)
