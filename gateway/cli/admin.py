"""``status`` and ``config``: what the store is, and how this command sees it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from gateway.cli import errors, output
from gateway.cli.options import common
from gateway.cli.session import resolved_settings, with_store
from gateway.cli.upkeep import run_record, text_of

if TYPE_CHECKING:
    from gateway.data.transfer import Store
    from gateway.upkeep.runs import Run
    from gateway.upkeep.service import DataStatus
    from objmeta.client import NodeStatus, StoreStatus


@click.command()
@common
def status() -> None:
    """Show the store's nodes, their health, and whether there is a quorum.

    The exit code is 5 if there is none.
    """
    found, data = with_store(_status, of_now=True)
    record = {
        "store_id": found.store_id.hex(),
        "epoch": found.epoch,
        "quorum": found.quorum,
        "nodes": [_node_record(node, data.get(node.node_id)) for node in found.nodes],
    }
    cells = [["NODE", "ADDRESS", "STATE", "VERSION", "REGISTERS", "DISK FREE", "UP FOR", "REPAIR", ""]]
    cells += [_node_cells(node) for node in found.nodes]
    lines = [
        f"store {found.store_id.hex() or 'unknown'}, epoch {found.epoch}",
        *output.rows(cells, right=(0, 4, 5, 6)),
        *_data_lines(data),
        output.quorum_text(found.quorum, found.nodes),
    ]
    output.answer(record, "\n".join(lines))
    if not found.quorum:
        raise click.exceptions.Exit(errors.UNAVAILABLE)


async def _status(store: Store) -> tuple[StoreStatus, dict[int, DataStatus | str]]:
    from gateway.upkeep.stores import places_of, statuses

    found = await store.client.status()
    async with places_of(store.client.location, found) as places:
        return found, await statuses(places)


def _node_record(node: NodeStatus, data: DataStatus | str | None) -> dict[str, Any]:
    return {
        "node_id": node.node_id,
        "address": node.address,
        "state": node.state,
        "detail": node.detail,
        "version": node.version,
        "registers": node.registers,
        "changes": node.changes,
        "disk_free": node.disk_free,
        "uptime_s": round(node.uptime_s, 1),
        "repair": _repair_record(node),
        "data": _data_record(data),
    }


def _repair_record(node: NodeStatus) -> dict[str, Any] | None:
    repair = node.repair
    if repair is None:
        return None
    return {
        "running": repair.running,
        "compared": repair.compared,
        "repaired": repair.repaired,
        "records": repair.records,
        "left": repair.left,
        "running_s": round(repair.running_s, 1),
        "complete_s": None if repair.complete_s is None else round(repair.complete_s, 1),
        "passes": repair.passes,
        "problem": repair.problem,
        "peers": {str(peer): state for peer, state in repair.peers},
    }


def _repair_cell(node: NodeStatus) -> str:
    repair = node.repair
    if repair is None or node.state != "up":
        return "-"
    if repair.running:
        return f"{repair.compared:,} of {max(node.registers, repair.compared):,} compared, {repair.repaired:,} repaired"
    if repair.left:
        return f"{repair.left:,} left"
    return "caught up" if repair.complete_s is not None else "waits for peers"


def _data_record(data: DataStatus | str | None) -> dict[str, Any] | None:
    if data is None or isinstance(data, str):
        return None
    return {
        "zone": data.zone,
        "weight": data.weight,
        "chunks": data.chunks,
        "chunk_bytes": data.chunk_bytes,
        "stored_bytes": data.stored_bytes,
        "damaged": data.damaged,
        "missing": data.missing,
        "surplus": data.surplus,
        "trouble": data.trouble,
        "repair": run_record(data.repair),
        "scrub": run_record(data.scrub),
    }


def _data_lines(data: dict[int, DataStatus | str]) -> list[str]:
    known = {number: said for number, said in sorted(data.items()) if not isinstance(said, str)}
    cells = [
        ["DATA", "ZONE", "WEIGHT", "CHUNKS", "BYTES", "STORED", "MISSING", "DAMAGED", "SURPLUS", "REPAIR", "SCRUB"]
    ]
    cells += [
        [
            str(number),
            output.shown(said.zone) or "-",
            f"{said.weight:g}",
            f"{said.chunks:,}",
            output.size_text(said.chunk_bytes),
            output.size_text(said.stored_bytes),
            f"{said.missing:,}",
            f"{said.damaged:,}",
            f"{said.surplus:,}",
            _run_cell(said.repair),
            _run_cell(said.scrub),
        ]
        for number, said in known.items()
    ]
    lines = list(output.rows(cells, right=(0, 2, 3, 4, 5, 6, 7, 8)))
    lines += [f"data of {number}: {output.shown(said.trouble)}" for number, said in known.items() if said.trouble]
    missing = sum(said.missing for said in known.values())
    if missing:
        lines.append(f"too few copies: {output.count_text(missing, 'copy', 'copies')} to be made")
    return lines


def _run_cell(run: Run) -> str:
    if run.running:
        return f"running, {text_of(run)}"
    if not run.number or run.ended_s is None:
        return "-"
    return f"{_duration(run.ended_s)} ago" + (f", {run.left:,} left" if run.left else "")


def _node_cells(node: NodeStatus) -> list[str]:
    known = node.state == "up"
    return [
        str(node.node_id),
        output.shown(node.address),
        node.state,
        node.version or "-",
        str(node.registers) if known else "-",
        output.size_text(node.disk_free) if known else "-",
        _duration(node.uptime_s) if known else "-",
        _repair_cell(node),
        output.shown(node.detail),
    ]


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f}{unit}"
    return f"{seconds:.0f}s"


@click.command()
@common
def config() -> None:
    """Show every setting and where it comes from.

    The first of these that gives a value wins: options, OBJMETA_HOME, OBJMETA_ENDPOINTS, OBJMETA_TIMEOUT_S and so on,
    fsspec's config, the file $OBJMETA_CONFIG or objmeta/config.toml in the user's config directory, defaults.

    Options of the file system (OBJMETA_AS_OF, OBJMETA_LOCAL_DIR and so on) are shown if they are given.
    """
    cells = []
    for name, value, source in resolved_settings().rows():
        listed = [str(each) for each in value] if isinstance(value, tuple) else str(value)
        plain = value if isinstance(value, int | float) else listed
        between = os.pathsep if name == "disks" else ","  # as the environment variable has it
        text = (between.join(plain) or "-") if isinstance(plain, list) else str(plain)
        cells.append(({"name": name, "value": plain, "source": source}, [name, output.shown(text), source]))
    for (record, _), line in zip(cells, output.rows([row for _, row in cells]), strict=True):
        output.answer(record, line)
