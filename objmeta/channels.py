"""Connections of gRPC: by its C core, or in forked children without it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, cast

from objmeta.errors import ForkedClient
from objmeta.grpcio import grpc, is_forked


def open_channel(address: str, options: Sequence[tuple[str, Any]]) -> Any:
    """A ``grpc.aio.Channel`` to ``host:port``, or what does the same; nothing is connected before the first call."""
    if is_forked():
        from objmeta.purechannel import PureChannel

        return PureChannel(address)
    _hold_aio()
    return cast(Any, grpc.aio).insecure_channel(address, options=options)


def new_server(options: Sequence[tuple[str, Any]]) -> Any:
    """A ``grpc.aio.Server`` without services and ports. Raises ForkedClient in a forked child."""
    if is_forked():
        raise ForkedClient(
            "no node can run in a forked child of a process that uses gRPC; start its process by spawn or forkserver "
            "(multiprocessing.set_start_method)"
        )
    _hold_aio()
    return cast(Any, grpc.aio).server(options=options)


@functools.cache
def _hold_aio() -> None:
    """Keep grpc.aio going until the process ends.

    When its last object goes, it waits for its poller thread.  A forked child has no such thread, and collects objects
    that the parent left: it would wait for ever.
    """
    cast(Any, grpc.aio).init_grpc_aio()
