"""gRPC: whoever uses it imports it from here, as it takes some settings only from the environment, and only when it is
imported first.  The environment is put back as it was, and what the user set stays in force.

Where somebody else has imported gRPC before, it handles forks in its own way: children crash now and then, even those
that never touch it.  That cannot be undone, so it is said when the process forks.
"""

from __future__ import annotations

import gc
import os
import sys
import warnings
from typing import Any, Final, cast

_FORKS: Final = "GRPC_ENABLE_FORK_SUPPORT"
_SETTINGS: Final = {
    # A busy parent's children crash with its handlers: 49 of 200 with version 1.85, and none without.
    _FORKS: "0",
    # A connection that ends is no news for somebody's terminal.
    "GRPC_VERBOSITY": "ERROR",
}
_OFF: Final = frozenset({"0", "false", "f", "no", "n"})

_PROCESS: Final = os.getpid()

_is_late = "grpc" in sys.modules
_ours = {name: value for name, value in _SETTINGS.items() if name not in os.environ}
os.environ.update(_ours)
try:
    import grpc  # noqa: TID251
    import grpc.aio  # noqa: TID251
finally:
    for _name in _ours:
        del os.environ[_name]

__all__ = ["EOF", "grpc", "is_forked"]

EOF: Final = cast(Any, grpc.aio).EOF
"""What a stream reads at its end. (The stubs do not know it.)"""


def is_forked() -> bool:
    """Whether this is a child of the process that began to use gRPC: its C core hangs or crashes here."""
    return bool(_forks) or os.getpid() != _PROCESS


def _after_fork() -> None:
    """Note it in the child: in a namespace of its own it may have the parent's number.

    What the parent left to be collected would go through the C core here, and crash it; so it stays.
    """
    _forks.append(os.getpid())
    gc.freeze()


_forks: Final[list[int]] = []
os.register_at_fork(after_in_child=_after_fork)


def _warn() -> None:
    text = (
        "processes that are forked now may crash, as gRPC handles forks here: start them by spawn or forkserver "
        f"(multiprocessing.set_start_method), or this one with {_FORKS}=0 in its environment"
    )
    warnings.warn(text, RuntimeWarning, stacklevel=2)


if os.environ.get(_FORKS, "1" if _is_late else "0").lower() not in _OFF:
    os.register_at_fork(before=_warn)
