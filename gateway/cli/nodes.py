"""``serve`` and ``dev``: one node, or a whole cluster on this machine. Both end with code 0 on Ctrl-C and SIGTERM."""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from gateway.cli import errors, output
from gateway.cli.options import common

if TYPE_CHECKING:
    from gateway.server import LocalCluster

DEFAULT_LISTEN: Final = "127.0.0.1:7401"
NODES_MAX: Final = 9
_STOPS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LOOK_S: Final = 0.2


@click.command()
@common
@click.option("--data", metavar="DIR", required=True, help="Where the node keeps everything; its own directory.")
@click.option("--listen", metavar="HOST:PORT", default=DEFAULT_LISTEN, show_default=True, help="Port 0: a free one.")
@click.option(
    "--data-port",
    metavar="PORT",
    default="any",
    show_default=True,
    help="Where chunks come in quickly, at the same host: a port, any free one, or none (all goes over the other).",
)
@click.option("--node-id", metavar="N", type=int, default=1, show_default=True, help="Which of the nodes this is.")
@click.option("--peers", metavar="1=HOST:PORT,2=HOST:PORT", default="", help="All nodes; the same list for each.")
@click.option("--join", metavar="HOST:PORT,HOST:PORT", default="", help="Members of a cluster that this node joins.")
@click.option(
    "--erase-interval", metavar="SECONDS", type=float, default=3600.0, show_default=True, help="Between two erasures."
)
@click.option("--zone", metavar="NAME", default="", help="What the node may fail together with: a rack, a building.")
@click.option("--weight", metavar="N", type=float, default=1.0, show_default=True, help="Its capacity, in any unit.")
@click.option(
    "--repair-rate", metavar="MIB", type=float, default=32.0, show_default=True, help="MiB/s that repair may fetch."
)
@click.option(
    "--scrub-rate", metavar="MIB", type=float, default=32.0, show_default=True, help="MiB/s that the scrub may read."
)
@click.option(
    "--collect-interval",
    metavar="SECONDS",
    type=float,
    default=21_600.0,
    show_default=True,
    help="How often what nothing uses any more is deleted.",
)
@click.option("--insecure", is_flag=True, help="Listen beyond this machine, although nothing is encrypted yet.")
def serve(
    data: str,
    listen: str,
    data_port: str,
    node_id: int,
    peers: str,
    join: str,
    erase_interval: float,
    zone: str,
    weight: float,
    repair_rate: float,
    scrub_rate: float,
    collect_interval: float,
    insecure: bool,
) -> None:
    """Run one node of a cluster.

    \b
      gateway serve --data /srv/n1 --listen 127.0.0.1:7401 --node-id 1 \\
          --peers 1=127.0.0.1:7401,2=127.0.0.1:7402,3=127.0.0.1:7403

    3 or 5 nodes form a cluster, which works as long as a majority of them does. A node ends cleanly on Ctrl-C and
    SIGTERM; everything acknowledged is on its disk by then, as it is after a crash.

    A node that is to join a cluster is started with an empty directory, an id that was never used, and --join instead
    of --peers; it waits until 'gateway cluster add' (or replace) lets it in. Only that command changes the members:
    what --peers says counts when the cluster is made, and later only for addresses that have changed.

    Clients ask a node where its chunks come in and go out, and connect to that port of the host they know it by; where
    they cannot (a firewall), chunks take the way of everything else, which costs more of the processor.

    The copies of a chunk are spread over zones first, then over nodes by weight. A node that is started with another
    zone or weight than before has its data moved, in the background and at the rate of repair.
    """
    places = _peers(peers)
    from objmeta.config import parse_endpoints

    members = parse_endpoints(join) if join else ()
    from gateway.server import NodeSettings, Said, UpkeepSettings, parse_data_port, run
    from gateway.server import serve as run_node

    def announce(node: int, address: str) -> None:
        output.emit({"node_id": node, "address": address, "data": data}, f"node {node} listens on {address}")
        sys.stdout.flush()

    settings = NodeSettings(
        data=Path(data).absolute(),
        listen=listen,
        node_id=node_id,
        peers=places,
        join=members,
        insecure=insecure,
        erase_interval_s=erase_interval,
    )
    upkeep = UpkeepSettings(
        said=Said(weight, zone),
        repair_mib_per_s=repair_rate,
        scrub_mib_per_s=scrub_rate,
        collect_interval_s=collect_interval,
    )
    run(run_node(settings, upkeep, announce, parse_data_port(data_port)))


def _peers(text: str) -> dict[int, str]:
    from objmeta.config import parse_endpoints

    places: dict[int, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        number, _, address = part.partition("=")
        if not number.isdecimal() or not address or int(number) in places:
            raise click.UsageError(f"--peers {text!r}: {part!r} is not ID=HOST:PORT with an id of its own")
        (places[int(number)],) = parse_endpoints(address)
    return places


@click.command()
@common
@click.option("--nodes", type=click.IntRange(1, NODES_MAX), default=3, show_default=True, help="How many.")
@click.option("--data", metavar="DIR", help="Keep the data here; default: a directory that is removed at the end.")
def dev(nodes: int, data: str | None) -> None:
    """Start a cluster on this machine, to try things.

    It runs until Ctrl-C. With --data the same cluster can be started again later, under other ports.
    """
    from gateway.server import local_cluster

    with _directory(data) as directory:
        cluster = local_cluster(directory, nodes)
        try:
            with _raising_stop():
                cluster.open()
                _announce(cluster, directory, kept=data is not None)
                _watch(cluster)
        except _Stop:
            pass
        finally:
            with _ignoring_signals():
                cluster.close()
    output.emit({"stopped": True}, "stopped")


class _Stop(BaseException):
    """Somebody wants the cluster to end."""


@contextmanager
def _directory(data: str | None) -> Iterator[Path]:
    if data is not None:
        yield Path(data).absolute()
        return
    with tempfile.TemporaryDirectory(prefix="gateway-dev-", ignore_cleanup_errors=True) as made:
        yield Path(made)


def _announce(cluster: LocalCluster, directory: Path, kept: bool) -> None:
    nodes = [
        {"node_id": node_id, "address": cluster.endpoint(node_id), "pid": cluster.pid(node_id)}
        for node_id in cluster.node_ids
    ]
    endpoints = ",".join(cluster.endpoints)
    lines = [
        f"{output.count_text(len(nodes), 'node')} running, data in {directory}"
        + ("" if kept else ", removed at the end"),
        *(f"  node {node['node_id']}  {node['address']}  pid {node['pid']}" for node in nodes),
        "In another shell:",
        f"  export OBJMETA_ENDPOINTS={endpoints}",
        "  gateway status",
        "  gateway mb photos",
        "In Python:",
        f'  objmeta.connect("{endpoints}")',
        "Ctrl-C stops the nodes.",
    ]
    record = {"endpoints": list(cluster.endpoints), "data": str(directory), "nodes": nodes}
    output.answer(record, "\n".join(lines))
    sys.stdout.flush()


def _watch(cluster: LocalCluster) -> None:
    """Wait for a signal; say so when a node ends meanwhile (they are there to be killed)."""
    from gateway.cli.app import say

    running = set(cluster.node_ids)
    while True:
        time.sleep(_LOOK_S)
        for node_id in sorted(running):
            if cluster.pid(node_id) is None:
                running.discard(node_id)
                say(f"node {node_id} has ended; {len(running)} of {len(cluster.node_ids)} nodes are running")
        if not running:
            raise click.exceptions.Exit(errors.FAILED)


@contextmanager
def _raising_stop() -> Iterator[None]:
    def stop(number: int, frame: Any) -> None:
        raise _Stop

    with _handling(stop):
        yield


@contextmanager
def _ignoring_signals() -> Iterator[None]:
    with _handling(signal.SIG_IGN):
        yield


@contextmanager
def _handling(handler: Any) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in _STOPS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
