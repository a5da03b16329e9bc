"""Settings: what a client needs to know, and where each value came from.

Rules.
* Nothing is read at import. :func:`resolve` reads its arguments, and what of the process is passed as None.
* The first source that gives a value wins: arguments, then ``OBJMETA_*`` environment, then fsspec's own config
  (section ``objmeta``), then a TOML file (``$OBJMETA_CONFIG``, else ``objmeta/config.toml`` in the user's config
  directory), then defaults.
* ``home``, ``disks`` and ``endpoints`` answer one question, where the store is; the first source that gives one of them
  decides it. So ``OBJMETA_HOME=/tmp/try gateway ls`` never reaches the cluster that a config file names. Within one
  source ``endpoints`` wins, then ``disks``. ``target`` may stand for ``home`` or ``endpoints``, as in
  :func:`parse_target`; outside of arguments ``path``, as the file system calls it, for ``home``.
* What only the file system and the command line understand (``OPTIONS``) comes from the same places, arguments apart,
  and is handed on as it is said.
* A bad value is refused with the setting's name, its source and what would be right. Nothing is corrected silently.
"""

from __future__ import annotations

import functools
import importlib
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, overload

from objmeta.errors import InvalidArgument

Target = Path | tuple[str, ...]
"""Where a store is: a directory (embedded), or endpoints ``host:port`` of a cluster's nodes."""

CONFIG_VARIABLE: Final = "OBJMETA_CONFIG"
DISKS_MIN: Final = 3
DISKS_MAX: Final = 9
DEFAULT: Final = "default"
ARGUMENT: Final = "argument"

_ENDPOINT: Final = re.compile(
    r"(?P<host>\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?):(?P<port>\d+)"
)
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@functools.cache
def version() -> str:
    """Of objmeta, as installed. Raises importlib.metadata.PackageNotFoundError if it is not."""
    from importlib import metadata

    return metadata.version("objmeta")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Valid settings of one client. How to get them: :func:`resolve`."""

    home: Path
    """Directory of the embedded store; used when ``endpoints`` and ``disks`` are empty."""

    disks: tuple[Path, ...] = ()
    """Directories of an embedded store over several disks, at least three; it survives the loss of a minority."""

    endpoints: tuple[str, ...] = ()
    """Nodes of a cluster as ``host:port``; any of them will do, the others are tried when one is slow or gone."""

    timeout_s: float = 10.0
    """Seconds an operation may take before it fails with "no quorum" or "outcome unknown"."""

    failover_s: float = 0.1
    """Seconds to wait for one node before another is tried as well."""

    concurrency: int = 32
    """How many objects the command line and the file system move at the same time."""

    @property
    def target(self) -> Target:
        """Where the store is if not on ``disks``: ``endpoints`` if there are any, else ``home``."""
        return self.endpoints or self.home


@dataclass(frozen=True, slots=True)
class Resolved:
    """Settings, and for each field a few words that say where its value came from."""

    settings: Settings
    sources: Mapping[str, str]
    options: Mapping[str, Any] = field(default_factory=dict)
    """Those of ``OPTIONS`` that are given, as they were said."""

    def rows(self) -> Iterator[tuple[str, Any, str]]:
        """(name, value, source) of every setting, in the order of the fields, and of the options that are given."""
        for name in FIELDS:
            yield name, getattr(self.settings, name), self.sources[name]
        for name, value in self.options.items():
            yield name, value, self.sources[name]


# -- Reading values ---------------------------------------------------------------------------------------------------


@overload
def parse_target(target: None, base: Path | None = None) -> None: ...
@overload
def parse_target(target: str | os.PathLike[str], base: Path | None = None) -> Target: ...
def parse_target(target: str | os.PathLike[str] | None, base: Path | None = None) -> Target | None:
    """Tell endpoints from a path; None (not given) stays None.

    ``"host:port"`` and ``"host:port,host:port"`` (IPv6 in brackets) are endpoints; any other string and every PathLike
    is a path, made absolute (from ``base``, by default the working directory), with ``~`` expanded. A string with a
    colon and no slash that is no endpoint is refused: a misspelt endpoint must not become a new, empty store. A path
    of that form is written ``./host:1``.

    Raises InvalidArgument for an empty string, a URL, a port that is none or out of range, or a mixture of both.
    """
    if target is None:
        return None
    if not isinstance(target, str):
        if not isinstance(target, os.PathLike):
            raise InvalidArgument(f"a store is named by a path or by host:port,host:port, not by {target!r}")
        return _absolute(os.fspath(target), base)
    if not target.strip():
        raise InvalidArgument("a store is named by a path or by host:port,host:port, not by an empty string")
    if _SCHEME.match(target):
        raise InvalidArgument(f"{target!r} is a URL; a store is named by a path or by host:port,host:port")
    parts = [part.strip() for part in target.split(",")]
    matching = [_ENDPOINT.fullmatch(part) is not None for part in parts if part]
    if not any(matching):
        if ":" in target and "/" not in target:
            raise InvalidArgument(
                f"{target!r} is not host:port, such as 127.0.0.1:7401 or [::1]:7401 (a path may begin with './')"
            )
        return _absolute(target, base)
    if not all(matching):
        raise InvalidArgument(
            f"{target!r} mixes host:port with something else; write host:port,host:port (a path may begin with './')"
        )
    return parse_endpoints(target)


def parse_endpoints(value: str | Sequence[str]) -> tuple[str, ...]:
    """Read ``"host:port,host:port"``, or a sequence of ``"host:port"``; repeated ones are dropped.

    Raises InvalidArgument if one of them is something else.
    """
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, Sequence) or not all(isinstance(part, str) for part in parts):
        raise InvalidArgument(f"{value!r} is not a list of host:port")
    return tuple(dict.fromkeys(_endpoint(part.strip()) for part in parts if part.strip()))


def _endpoint(text: str) -> str:
    found = _ENDPOINT.fullmatch(text)
    if found is None:
        raise InvalidArgument(f"{text!r} is not host:port, such as 127.0.0.1:7401 or [::1]:7401")
    if not 1 <= int(found["port"]) <= 65535:
        raise InvalidArgument(f"{text!r} has port {found['port']}; it must be 1 to 65535")
    if found["host"].startswith("["):
        import ipaddress

        try:
            ipaddress.IPv6Address(found["host"][1:-1])
        except ValueError:
            raise InvalidArgument(f"{text!r} holds brackets but no IPv6 address, such as [::1]:7401") from None
    return text


def _absolute(text: str, base: Path | None = None) -> Path:
    if "\x00" in text:
        raise InvalidArgument(f"path {text!r} holds a NUL character")
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise InvalidArgument(f"path {text!r} names a home directory that is not known") from None
    return (base / path if base else path).absolute()


def _seconds(value: Any, base: Path | None) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number <= 86_400:
        raise InvalidArgument(f"{value!r} is not a number of seconds above 0 and at most 86400, such as 10 or 0.5")
    return number


def _count(value: Any, base: Path | None) -> int:
    try:
        number = int(value) if isinstance(value, str) or type(value) is int else 0
    except ValueError:
        number = 0
    if not 1 <= number <= 1024:
        raise InvalidArgument(f"{value!r} is not a whole number from 1 to 1024")
    return number


def _home(value: Any, base: Path | None) -> Path:
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise InvalidArgument(f"{value!r} is not the path of a directory")
    return _absolute(os.fspath(value), base)


def _disks(value: Any, base: Path | None) -> tuple[Path, ...]:
    parts = value.split(os.pathsep) if isinstance(value, str) else value
    if not isinstance(parts, Sequence) or not all(isinstance(part, str | os.PathLike) and str(part) for part in parts):
        raise InvalidArgument(f"{value!r} is not a list of directories")
    disks = tuple(_absolute(os.fspath(part), base) for part in parts)
    if not DISKS_MIN <= len(disks) <= DISKS_MAX or len(set(disks)) < len(disks):
        raise InvalidArgument(
            f"{value!r} names {len(set(disks))}; a store needs {DISKS_MIN} to {DISKS_MAX} different directories to "
            f"survive the loss of one, such as {os.pathsep.join(('/a', '/b', '/c'))}"
        )
    return disks


def _endpoints(value: Any, base: Path | None) -> tuple[str, ...]:
    return parse_endpoints(value)


def _as_said(value: Any, base: Path | None) -> Any:
    return value


_READERS: Final[dict[str, Callable[[Any, Path | None], Any]]] = {
    "home": _home,
    "disks": _disks,
    "endpoints": _endpoints,
    "timeout_s": _seconds,
    "failover_s": _seconds,
    "concurrency": _count,
}
_PLACES: Final = ("endpoints", "disks", "home")
FIELDS: Final = tuple(_READERS)
"""The settings' names, in the order in which they are shown."""
_OPTION_READERS: Final[dict[str, Callable[[Any, Path | None], Any]]] = {
    "as_of": _as_said,
    "version_aware": _as_said,
    "local_dir": _home,
    "local_bytes": _as_said,
    "batch_size": _as_said,
}
OPTIONS: Final = tuple(_OPTION_READERS)
"""Names of what may be said in the same places and is no setting of a client."""
_SAID: Final = (*FIELDS, "target", "path", *OPTIONS)


# -- Where values come from -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Source:
    """Values as one source gives them. ``base`` is what its relative paths begin at; ``named`` how it is cited."""

    values: Mapping[str, Any]
    named: Callable[[str], str]
    base: Path | None = None


def resolve(
    overrides: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    config_files: Sequence[Path] | None = None,
    fsspec_conf: Mapping[str, Any] | None = None,
) -> Resolved:
    """Settle every setting. Of ``overrides`` those that are None are left out.

    What is None is taken from the process: ``os.environ``, the default config file, fsspec's config (read only if
    fsspec is loaded already or its config says something). Of several ``config_files`` the first that gives a value
    wins, and one that does not exist gives none; but ``$OBJMETA_CONFIG`` must exist.

    Raises InvalidArgument: a value is bad, a name is unknown, or a file cannot be read.
    """
    environ = os.environ if environ is None else environ
    files = _default_files(environ) if config_files is None else config_files
    section = _fsspec_section(environ) if fsspec_conf is None else fsspec_conf
    sources = [
        _Source(_known(overrides or {}, ARGUMENT, (*FIELDS, "target")), lambda name: ARGUMENT),
        _Source(_environment(environ), lambda name: f"environment variable OBJMETA_{name.upper()}"),
        # fsspec's section also holds arguments of the file system that are of no concern here
        _Source({name: section[name] for name in _SAID if name in section}, lambda name: "fsspec config"),
        *(_file(path) for path in files),
    ]
    values: dict[str, Any] = {}
    cited: dict[str, str] = {}
    for source in sources:
        given = _read(source)
        where = _place(given) if not _place(values) else ""
        for name, (value, named) in given.items():
            if name not in values and (name not in _PLACES or name == where):
                values[name], cited[name] = value, named
    chosen = _place(values)
    if chosen in ("home", "disks"):
        values["endpoints"], cited["endpoints"] = (), f"not used: {chosen} is given by {cited[chosen]}"
    if "home" not in values:
        values["home"], cited["home"] = default_home(), DEFAULT
    options = {name: values.pop(name) for name in OPTIONS if name in values}
    sources_of = {name: cited.get(name, DEFAULT) for name in (*FIELDS, *options)}
    return Resolved(Settings(**values), sources_of, options)


def _place(given: Mapping[str, Any]) -> str:
    return next((name for name in _PLACES if name in given), "")


def _read(source: _Source) -> dict[str, tuple[Any, str]]:
    given = {name: value for name, value in source.values.items() if value is not None and value != ""}
    found: dict[str, tuple[Any, str]] = {}
    for name, value in given.items():
        try:
            if name == "target":
                place = parse_target(value, source.base)
                found["endpoints" if isinstance(place, tuple) else "home"] = (place, source.named(name))
            elif name == "path":
                found["home"] = (_home(value, source.base), source.named(name))
            else:
                read = _READERS.get(name) or _OPTION_READERS[name]
                found[name] = (read(value, source.base), source.named(name))
        except InvalidArgument as bad:
            raise InvalidArgument(f"setting {name} ({source.named(name)}): {bad}") from None
    if "target" in given and any(place in given for place in _PLACES):
        raise InvalidArgument(f"setting target ({source.named('target')}) stands for home or endpoints; give only one")
    if "path" in given and ("home" in given or "target" in given):
        raise InvalidArgument(f"setting path ({source.named('path')}) is another name for home; give only one")
    return {name: value for name, value in found.items() if name != "endpoints" or value[0]}


def _known(values: Mapping[str, Any], where: str, names: Sequence[str] = _SAID) -> Mapping[str, Any]:
    for name in values:
        if name not in names:
            raise InvalidArgument(f"unknown setting {name!r} ({where}); known are {', '.join(FIELDS)}")
    return values


def _environment(environ: Mapping[str, str]) -> Mapping[str, str]:
    return {name: environ.get(f"OBJMETA_{name.upper()}", "") for name in _SAID}


def _fsspec_section(environ: Mapping[str, str]) -> Mapping[str, Any]:
    loaded = sys.modules.get("fsspec.config")
    if loaded is None and _fsspec_says_something(environ):
        loaded = importlib.import_module("fsspec.config")
    conf = getattr(loaded, "conf", {}).get("objmeta", {})
    return conf if isinstance(conf, Mapping) else {}


def _fsspec_says_something(environ: Mapping[str, str]) -> bool:
    if any(name.upper().startswith("FSSPEC_OBJMETA") for name in environ):
        return True
    folder = environ.get("FSSPEC_CONFIG_DIR") or os.path.join(environ.get("HOME", ""), ".config", "fsspec")
    try:
        return any(name.endswith((".json", ".ini")) for name in os.listdir(folder))
    except OSError:
        return False


def _default_files(environ: Mapping[str, str]) -> Sequence[Path]:
    named = environ.get(CONFIG_VARIABLE, "")
    if not named:
        return (default_config_file(),)
    path = _absolute(named)
    if not path.is_file():
        raise InvalidArgument(f"environment variable {CONFIG_VARIABLE} names {path}, which is not a file")
    return (path,)


def _file(path: Path) -> _Source:
    import tomllib

    where = f"file {path}"
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        values = {}
    except OSError as failure:
        raise InvalidArgument(f"config file {path} cannot be read: {failure.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as bad:
        raise InvalidArgument(f"config file {path} is not valid TOML: {bad}") from None
    return _Source(_known(values, where), lambda name: where, path.absolute().parent)


def default_home() -> Path:
    """Where the embedded store lies when nothing says otherwise: ``objmeta`` in the user's data directory."""
    import platformdirs

    return Path(platformdirs.user_data_dir("objmeta", appauthor=False))


def default_config_file() -> Path:
    """Where settings are looked for when ``$OBJMETA_CONFIG`` is not set."""
    import platformdirs

    return Path(platformdirs.user_config_dir("objmeta", appauthor=False)) / "config.toml"
