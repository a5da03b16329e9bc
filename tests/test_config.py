"""Settings: which source wins, what is refused, and that nothing is read behind the caller's back."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from objmeta.config import (
    ARGUMENT,
    DEFAULT,
    FIELDS,
    Resolved,
    Settings,
    default_config_file,
    default_home,
    parse_endpoints,
    parse_target,
    resolve,
    version,
)
from objmeta.errors import InvalidArgument


def settle(
    overrides: dict[str, Any] | None = None,
    environ: dict[str, str] | None = None,
    files: tuple[Path, ...] = (),
    fsspec_conf: dict[str, Any] | None = None,
) -> Resolved:
    """``resolve`` with nothing from this process."""
    return resolve(overrides or {}, environ or {}, files, fsspec_conf or {})


def toml(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# -- Targets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("localhost:7401", ("localhost:7401",)),
        ("a:1,b.example.org:2,10.0.0.3:65535", ("a:1", "b.example.org:2", "10.0.0.3:65535")),
        ("a:1, b:2", ("a:1", "b:2")),
        ("a:1,a:1,b:2,", ("a:1", "b:2")),
        ("[::1]:7401,[fe80::1%eth0]:1", ("[::1]:7401", "[fe80::1%eth0]:1")),
        ("my_node-1:80", ("my_node-1:80",)),
    ],
)
def test_endpoints_are_recognised(text: str, expected: tuple[str, ...]) -> None:
    assert parse_target(text) == expected


@pytest.mark.parametrize("text", ["data", "./data", "/x/y", "data/a:1", "./a:1", "./a:b", "localhost", "x y", "a,b"])
def test_everything_else_is_a_path(text: str) -> None:
    assert parse_target(text) == Path(text).absolute()


def test_a_path_object_is_a_path_whatever_it_looks_like() -> None:
    assert parse_target(Path("a:1")) == Path("a:1").absolute()


def test_home_directories_are_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_target("~/store") == tmp_path / "store"


def test_none_means_not_given() -> None:
    assert parse_target(None) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("a:1,b", "mixes"),
        ("a:1,/x/y", "mixes"),
        ("a:b", "not host:port"),
        ("localhost:74o1", "not host:port"),
        ("a:", "not host:port"),
        ("ä:1", "not host:port"),
        (":1", "not host:port"),
        ("a:0", "1 to 65535"),
        ("a:65536", "1 to 65535"),
        ("[1:2]:3", "IPv6"),
        ("http://host:80", "URL"),
        ("objmeta://bucket", "URL"),
        ("a\x00b", "NUL"),
        ("~nobody-of-that-name/x", "home directory"),
    ],
)
def test_bad_targets_are_refused(text: str, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        parse_target(text)


def test_something_else_is_no_target() -> None:
    with pytest.raises(InvalidArgument, match="not by 7"):
        parse_target(7)  # type: ignore[call-overload]


def test_endpoints_as_a_list() -> None:
    assert parse_endpoints(["a:1", "b:2"]) == ("a:1", "b:2")
    with pytest.raises(InvalidArgument, match="host:port"):
        parse_endpoints([1])  # type: ignore[list-item]


# -- Which source wins ------------------------------------------------------------------------------------------------


def test_defaults() -> None:
    found = settle()
    assert found.settings == Settings(home=default_home())
    assert set(found.sources.values()) == {DEFAULT}
    assert [name for name, _, _ in found.rows()] == list(FIELDS)
    assert found.settings.target == default_home()


def test_each_source_beats_the_next(tmp_path: Path) -> None:
    first = toml(tmp_path / "first.toml", "timeout_s = 4")
    second = toml(tmp_path / "second.toml", "timeout_s = 5\nfailover_s = 0.5")
    layers: list[tuple[dict[str, Any], float, str]] = [
        ({"overrides": {"timeout_s": 1}}, 1.0, ARGUMENT),
        ({"environ": {"OBJMETA_TIMEOUT_S": "2"}}, 2.0, "environment variable OBJMETA_TIMEOUT_S"),
        ({"fsspec_conf": {"timeout_s": "3", "block_size": 7}}, 3.0, "fsspec config"),
        ({"files": (first, second)}, 4.0, f"file {first}"),
    ]
    while layers:
        merged: dict[str, Any] = {}
        for layer, _, _ in layers:
            merged |= layer
        found = settle(**merged)
        assert (found.settings.timeout_s, found.sources["timeout_s"]) == layers[0][1:]
        assert found.settings.failover_s == 0.5
        assert found.sources["failover_s"] == f"file {second}"
        del layers[0]


def test_what_is_none_or_empty_is_not_given() -> None:
    found = settle({"timeout_s": None, "home": None}, {"OBJMETA_TIMEOUT_S": "", "OBJMETA_HOME": "", "OBJMETA_X": "1"})
    assert found.settings == Settings(home=default_home())


def test_the_first_source_that_names_a_place_decides_it(tmp_path: Path) -> None:
    file = toml(tmp_path / "config.toml", 'endpoints = ["a:1", "b:2"]')
    assert settle(files=(file,)).settings.target == ("a:1", "b:2")
    found = settle(environ={"OBJMETA_HOME": str(tmp_path)}, files=(file,))
    assert found.settings.target == tmp_path
    assert found.settings.endpoints == ()
    assert found.sources["endpoints"] == "not used: home is given by environment variable OBJMETA_HOME"
    found = settle({"target": "c:3"}, {"OBJMETA_HOME": str(tmp_path)}, (file,))
    assert found.settings.target == ("c:3",)
    assert found.sources["endpoints"] == ARGUMENT
    found = settle(environ={"OBJMETA_HOME": str(tmp_path), "OBJMETA_ENDPOINTS": "d:4"})
    assert found.settings.target == ("d:4",)


def test_relative_paths_of_a_file_begin_at_the_file(tmp_path: Path) -> None:
    assert settle(files=(toml(tmp_path / "c.toml", 'home = "store"'),)).settings.home == tmp_path / "store"
    assert settle(files=(toml(tmp_path / "d.toml", 'target = "store"'),)).settings.home == tmp_path / "store"


def test_a_missing_file_gives_nothing(tmp_path: Path) -> None:
    assert settle(files=(tmp_path / "none.toml", tmp_path / "none" / "deep.toml")).settings.timeout_s == 10.0


def test_the_config_variable_must_name_a_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"OBJMETA_CONFIG names .*none"):
        resolve({}, {"OBJMETA_CONFIG": str(tmp_path / "none")}, None, {})
    file = toml(tmp_path / "c.toml", "concurrency = 5")
    assert resolve({}, {"OBJMETA_CONFIG": str(file)}, None, {}).settings.concurrency == 5


def test_the_default_file_follows_the_platform(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert default_config_file() == tmp_path / "objmeta" / "config.toml"
    assert default_home() == tmp_path / "data" / "objmeta"


# -- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("timeout_s", "soon"),
        ("timeout_s", "0"),
        ("timeout_s", "-1"),
        ("timeout_s", "nan"),
        ("timeout_s", "inf"),
        ("failover_s", "1e9"),
        ("concurrency", "0"),
        ("concurrency", "2.5"),
        ("concurrency", "9999"),
        ("endpoints", "nonsense"),
        ("endpoints", "a:1,b"),
        ("home", "a\x00b"),
    ],
)
def test_bad_values_name_the_setting_and_its_source(name: str, value: str) -> None:
    with pytest.raises(InvalidArgument, match=rf"setting {name} \(environment variable OBJMETA_{name.upper()}\)"):
        settle(environ={f"OBJMETA_{name.upper()}": value})


@pytest.mark.parametrize(("name", "value"), [("timeout_s", True), ("timeout_s", []), ("concurrency", 1.0), ("home", 3)])
def test_bad_types(name: str, value: Any) -> None:
    with pytest.raises(InvalidArgument, match=rf"setting {name} \(argument\)"):
        settle({name: value})


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="unknown setting 'timeout'"):
        settle({"timeout": 1})
    with pytest.raises(InvalidArgument, match=r"unknown setting 'tiemout_s' \(file .*c.toml\); known are home, "):
        settle(files=(toml(tmp_path / "c.toml", "tiemout_s = 1"),))


def test_a_target_and_a_place_contradict_each_other() -> None:
    with pytest.raises(InvalidArgument, match="only one"):
        settle({"target": "a:1", "home": "/x"})


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="not valid TOML"):
        settle(files=(toml(tmp_path / "c.toml", "timeout_s ="),))
    with pytest.raises(InvalidArgument, match="cannot be read"):
        settle(files=(tmp_path,))
    (tmp_path / "latin.toml").write_bytes(b'home = "\xff"')
    with pytest.raises(InvalidArgument, match="not valid TOML"):
        settle(files=(tmp_path / "latin.toml",))


# -- The process ------------------------------------------------------------------------------------------------------

_SCRIPT = """
import sys
from importlib import metadata
import objmeta.config
resolved = objmeta.config.resolve()
print(resolved.settings.timeout_s, resolved.sources["timeout_s"], "fsspec" in sys.modules, sep="|")
"""


def run_script(tmp_path: Path, **environ: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        env={"HOME": str(tmp_path), "PATH": "", **environ},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_fsspec_is_not_loaded_for_nothing(tmp_path: Path) -> None:
    assert run_script(tmp_path) == "10.0|default|False"


def test_fsspec_settings_hold_for_everybody(tmp_path: Path) -> None:
    assert run_script(tmp_path, FSSPEC_OBJMETA_TIMEOUT_S="7") == "7.0|fsspec config|True"
    folder = tmp_path / ".config" / "fsspec"
    folder.mkdir(parents=True)
    toml(folder / "conf.json", '{"objmeta": {"timeout_s": 6}}')
    assert run_script(tmp_path) == "6.0|fsspec config|True"


def test_the_version_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    known = version()

    def refuse(name: str) -> str:
        raise AssertionError("every status would read the package's metadata")

    monkeypatch.setattr(metadata, "version", refuse)
    assert version() == known
