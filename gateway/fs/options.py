"""Storage options: what the constructor of the file system is given, read and checked.

fsspec puts what its own config says (``FSSPEC_OBJMETA_*``, its files) among the arguments.  Such values are told from
real arguments here, so that the order stays the one of all settings (:mod:`objmeta.config`): arguments, ``OBJMETA_*``,
fsspec's config, the TOML file, defaults.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from fsspec.config import conf

from gateway.data.localfiles import BYTES_MAX
from gateway.data.past import parse_time
from gateway.fs.arguments import nearest
from gateway.fs.instances import anchored
from objmeta import Embedded
from objmeta.client import Location
from objmeta.config import DEFAULT, FIELDS, OPTIONS, Resolved, Settings, resolve
from objmeta.errors import InvalidArgument

_PLACES: Final = ("home", "disks", "endpoints", "target")
_SETTINGS: Final = (*FIELDS, "target")
_FSSPEC: Final = ("use_listings_cache", "listings_expiry_time", "max_paths")
_OWN: Final = ("path", *OPTIONS, "asynchronous", "loop", "skip_instance_cache")
_WORDS: Final = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}


@dataclass(frozen=True, slots=True)
class Found:
    """What a file system runs under: the settings of its client, and its own options."""

    settings: Settings
    version_aware: bool
    then: datetime | None
    local_dir: str | os.PathLike[str] | None
    local_bytes: int
    at_a_time: int | None


def read(given: Mapping[str, Any]) -> Found:
    """Settle what was given to the constructor and what is said elsewhere. Raises InvalidArgument."""
    said = _arguments(given)
    resolved = _resolved(said)

    def option(name: str, read: Callable[[Any], Any]) -> Any:
        if name in said:
            return read(said[name])
        try:
            return read(resolved.options.get(name))
        except InvalidArgument as bad:
            raise InvalidArgument(f"setting {name} ({resolved.sources[name]}): {bad}") from None

    return Found(
        resolved.settings,
        option("version_aware", lambda value: flag("version_aware", value, default=True)),
        option("as_of", lambda value: None if value is None else parse_time(value)),
        option("local_dir", lambda value: value),
        option("local_bytes", lambda value: _number("local_bytes", value)) or BYTES_MAX,
        option("batch_size", lambda value: _number("batch_size", value)) or _concurrency(resolved),
    )


def _arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the caller said, without what fsspec put there from its own config."""
    for name in given:
        if name not in (*_SETTINGS, *_FSSPEC, *_OWN):
            near = nearest(name, (*_SETTINGS, *_OWN))
            hint = f"did you mean {near!r}?" if near else f"known are {', '.join(('path', *_SETTINGS, *_OWN[1:]))}"
            raise InvalidArgument(f"unknown storage option {name!r}; {hint}")
    if flag("use_listings_cache", given.get("use_listings_cache")):
        raise InvalidArgument(
            "listings are never cached: every one is as new as the store, so use_listings_cache is off"
        )
    section = conf.get("objmeta", {})
    return {
        name: value
        for name, value in given.items()
        if not _is_empty(value) and not (name in section and value in (section[name], anchored(name, section[name])))
    }


def _resolved(said: Mapping[str, Any]) -> Resolved:
    section = conf.get("objmeta", {})
    arguments = {name: said[name] for name in _SETTINGS if name in said}
    configured = {name: value for name, value in section.items() if not _is_empty(value)}
    for values in (arguments, configured):
        path = said.get("path") if values is arguments else configured.pop("path", None)
        if path is not None:
            if "home" in values:
                raise InvalidArgument("path and home are two names for one thing; give only one of them")
            values["home"] = path
        if sum(name in values for name in _PLACES) > 1:
            raise InvalidArgument(
                "a store is a directory (path), several (disks) or a cluster (endpoints), only one of them"
            )
    return resolve(arguments, fsspec_conf=configured)


def _is_empty(value: Any) -> bool:
    """Whether a value says nothing. Zero does: it is wrong."""
    return value is None or (isinstance(value, Sized) and not len(value))


def _concurrency(resolved: Resolved) -> int | None:
    """How much is done at a time: the setting ``concurrency`` if somebody set it, else fsspec's own."""
    return resolved.settings.concurrency if resolved.sources["concurrency"] != DEFAULT else None


def _number(name: str, given: int | str | None) -> int | None:
    """A whole number from 1 on, also as text. Raises InvalidArgument."""
    if given is None:
        return None
    try:
        found = 0 if isinstance(given, bool) else int(given)
    except (TypeError, ValueError):
        found = 0
    if found < 1:
        raise InvalidArgument(f"{name} is a whole number from 1 on, not {given!r}")
    return found


def local_directory(given: str | os.PathLike[str] | None, location: Location) -> Path:
    """Where files lie that are handed out by their paths."""
    if given:
        return Path(given).expanduser().absolute()
    if isinstance(location, Embedded):
        return location.path / "local"
    import platformdirs

    return Path(platformdirs.user_cache_dir("objmeta", appauthor=False)) / "local"


def flag(name: str, value: Any, default: bool = False) -> bool:
    """A yes or no, also as text: the values of fsspec's config are. Raises InvalidArgument."""
    if value is None:
        return default
    found = _WORDS.get(str(value).lower()) if isinstance(value, str | int) else None
    if found is None:
        raise InvalidArgument(f"{name} is true or false, not {value!r}")
    return found
