"""What an asynchronous client opens: the registers of its location, and all operations over them."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import uuid_utils

from objmeta.client.locations import Cluster, Disks, Embedded, Location
from objmeta.config import Settings
from objmeta.interfaces import Registers
from objmeta.objects.buckets import Buckets
from objmeta.objects.context import Context
from objmeta.objects.feed import Feed
from objmeta.objects.keyvalue import KeyValues
from objmeta.objects.listing import Listings
from objmeta.objects.locks import Locks
from objmeta.objects.objects import Objects
from objmeta.objects.transactions import Transactions


@dataclass(frozen=True, slots=True)
class Services:
    """What one process and loop uses; made anew after a fork."""

    pid: int
    context: Context
    registers: Registers
    buckets: Buckets
    objects: Objects
    transactions: Transactions
    listings: Listings
    feed: Feed
    values: KeyValues
    locks: Locks


async def open_services(settings: Settings, location: Location) -> Services:
    """Open a store, on the running event loop. Raises what the kind of location does."""
    registers = await _open_registers(settings, location)
    context = Context(
        registers,
        _now_us,
        new_id,
        settings.timeout_s,
        proposer_in_process=not isinstance(location, Cluster),
    )
    buckets = Buckets(context)
    objects = Objects(context, buckets)
    return Services(
        os.getpid(),
        context,
        registers,
        buckets,
        objects,
        Transactions(context, buckets, objects),
        Listings(buckets),
        Feed(context, buckets),
        KeyValues(context),
        Locks(context),
    )


async def _open_registers(settings: Settings, location: Location) -> Registers:
    if isinstance(location, Embedded):
        from objmeta.client.embedded import EmbeddedRegisters

        return await EmbeddedRegisters.open(location.path)
    if isinstance(location, Disks):
        from objmeta.client.disks import DiskRegisters

        return await DiskRegisters.open(location.paths)
    from objmeta.rpc.client import RemoteRegisters

    return RemoteRegisters(location.endpoints, failover_s=settings.failover_s)


def new_id() -> bytes:
    """A fresh operation id: UUIDv7."""
    return uuid_utils.uuid7().bytes


def _now_us() -> int:
    return time.time_ns() // 1000
