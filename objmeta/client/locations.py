"""Where a store can be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from objmeta.config import Settings


@dataclass(frozen=True, slots=True)
class Embedded:
    """A store in a directory of this machine."""

    path: Path


@dataclass(frozen=True, slots=True)
class Cluster:
    """A store on nodes, reached through any of these endpoints."""

    endpoints: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Disks:
    """A store over several directories of this machine."""

    paths: tuple[Path, ...]


Location = Embedded | Cluster | Disks


def location(settings: Settings) -> Location:
    """Where the settings say that the store is."""
    if settings.endpoints:
        return Cluster(settings.endpoints)
    return Disks(settings.disks) if settings.disks else Embedded(settings.home)
