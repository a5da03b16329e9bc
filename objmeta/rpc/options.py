"""What we use of gRPC and with which settings, each with its reason. (The stubs know no defaults.)"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final, TypeAlias, cast

from objmeta import channels
from objmeta.errors import Unavailable
from objmeta.grpcio import grpc, is_forked

MESSAGE_BYTES_MAX: Final = 64 << 20
"""No message is longer: one item of the greatest size, beside a full batch, with room to spare."""

ITEM_BYTES_MAX: Final = 32 << 20
"""No operation is longer: it would hold up everything behind it for about a tenth of a second. Enough for a manifest of
800,000 chunks."""

RECONNECT_S_MIN: Final = 0.02
"""First wait after a connection failed. The waits are ours (every attempt has a channel of its own): gRPC's cannot be
made shorter than 100 ms."""
RECONNECT_S_MAX: Final = 0.5
"""Last wait: a node that was restarted is found again within this time."""
CONNECT_S_MAX: Final = 2.0
"""An attempt that takes longer has failed (a machine that drops what is sent to it)."""
_KEEPALIVE_MS: Final = 1_000

Options = Sequence[tuple[str, Any]]

_COMMON: Final[Options] = (
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    # A machine that vanished closes no connection: these find it within two seconds.
    ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", _KEEPALIVE_MS),
    ("grpc.http2.max_pings_without_data", 0),
)

CHANNEL: Final[Options] = (
    *_COMMON,
    # Channels of one process must not share connections: nodes in one process (tests) would share their fate.
    ("grpc.use_local_subchannel_pool", 1),
    # A proxy named by the environment is not meant for nodes of a cluster.
    ("grpc.enable_http_proxy", 0),
    # We know better than gRPC what may be sent twice.
    ("grpc.enable_retries", 0),
)

SERVER: Final[Options] = (
    *_COMMON,
    # Two processes that share a port would each get some of its connections: refuse the second one.
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", _KEEPALIVE_MS // 2),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", _KEEPALIVE_MS // 2),
    ("grpc.http2.max_ping_strikes", 0),
)

Handler: TypeAlias = "grpc.GenericRpcHandler[Any, Any]"


def new_server() -> Any:
    """A ``grpc.aio.Server`` without services and ports. Raises ForkedClient in a forked child."""
    return channels.new_server(SERVER)


def open_channel(endpoint: str) -> Any:
    """A ``grpc.aio.Channel`` to ``host:port``; nothing is connected before the first call."""
    return channels.open_channel(endpoint, CHANNEL)


def ask_blocking(endpoint: str, method: str, message: bytes, timeout_s: float) -> bytes:
    """One call from code that has no event loop. Raises Unavailable."""
    try:
        if is_forked():  # there are no blocking channels without gRPC's C core
            return asyncio.run(_ask(endpoint, method, message, timeout_s))
        with grpc.insecure_channel(endpoint, options=CHANNEL) as channel:
            return cast(bytes, cast(Any, channel).unary_unary(method)(message, timeout=timeout_s))
    except grpc.RpcError as broken:
        raise Unavailable(f"{endpoint} did not answer: {cast(Any, broken).details()}") from None


async def _ask(endpoint: str, method: str, message: bytes, timeout_s: float) -> bytes:
    async with open_channel(endpoint) as channel:
        return cast(bytes, await channel.unary_unary(method)(message, timeout=timeout_s))
