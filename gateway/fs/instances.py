"""What an fsspec instance, which is cached and shared by threads, must not share."""

from __future__ import annotations

import os
import threading
from typing import Any


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
    """OBJMETA_* as it is now: two instances made under different ones are different, although nothing was passed."""

    def __get__(self, instance: Any, owner: type) -> tuple[tuple[str, str], ...]:
        return tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("OBJMETA_")))
