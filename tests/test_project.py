"""Rules for the tree itself: names, docs that can't rot, and what must not be in it."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import gateway
import objmeta
from objmeta.testing.sim import BROKEN

ROOT = Path(__file__).parents[1]
MADE_BY_TOOLS = {".git", ".venv", "build", "dist", "__pycache__"}
PUBLIC = (objmeta, objmeta.client, gateway)
"""Packages that say in ``__all__`` what is public."""


def sources() -> Iterator[Path]:
    """Every text file that a person wrote."""
    pending = [ROOT]
    while pending:
        for path in pending.pop().iterdir():
            if path.is_dir():
                if path.name not in MADE_BY_TOOLS and not path.name.endswith(("_cache", ".egg-info", ".hypothesis")):
                    pending.append(path)
            elif path.suffix not in {".pyc", ".parquet", ".db"}:
                yield path


def packages() -> list[ModuleType]:
    """objmeta, gateway and all packages inside them."""
    found: list[ModuleType] = []
    for top in (objmeta, gateway):
        found.append(top)
        found += [
            importlib.import_module(module.name)
            for module in pkgutil.walk_packages(top.__path__, f"{top.__name__}.")
            if module.ispkg
        ]
    return found


# -- Names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", PUBLIC, ids=lambda package: package.__name__)
def test_public_names_are_those_of_the_init(package: ModuleType) -> None:
    named = package.__all__
    assert len(set(named)) == len(named)
    assert named == sorted(named)
    for name in named:
        assert getattr(package, name) is not None
    bound = {
        name
        for name, value in vars(package).items()
        if not name.startswith("_")
        and getattr(value, "__module__", "__future__") != "__future__"
        and not inspect.ismodule(value)
        and str(value.__module__).startswith(("objmeta", "gateway"))
    }
    assert bound - set(named) <= {"resolve"}, "bound in __init__ and not public"


@pytest.mark.parametrize("package", packages(), ids=lambda package: package.__name__)
def test_a_package_says_what_each_of_its_modules_is_for(package: ModuleType) -> None:
    said = package.__doc__ or ""
    for module in pkgutil.iter_modules(package.__path__):
        if not module.name.startswith("__"):
            assert re.search(rf"\b{module.name}\b", said), f"{package.__name__} does not say what {module.name} is for"


def test_importing_objmeta_is_light() -> None:
    heavy = ("duckdb", "pandas", "pyarrow", "fsspec", "rich")
    code = f"import sys, objmeta, gateway; print([name for name in {heavy} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


# -- What must not be in the tree -------------------------------------------------------------------------------------


def test_nothing_is_left_to_do_and_nothing_names_this_machine() -> None:
    marks = ["TO" + "DO", "FIX" + "ME", "XX" + "X"]
    places = [f"{ROOT}/", f"{Path.home()}/", f"{ROOT.parent}/"]
    unwanted = re.compile("|".join([rf"\b{mark}\b" for mark in marks] + [re.escape(place) for place in places]))
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sources()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if unwanted.search(line)
    ]
    assert found == []


def test_modules_stay_small() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in sources()
        if path.suffix == ".py" and (lines := len(path.read_text().splitlines())) > 550
    }
    assert long == {}


# -- Docs -------------------------------------------------------------------------------------------------------------


def named_in_docs() -> Iterator[tuple[str, str, str]]:
    """(document, path, name): every ``path`` or ``path::name`` in backticks, and every relative link."""
    for document in [ROOT / "README.md", ROOT / "bench" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = document.read_text()
        for path, name in re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|md|toml))(?:::([\w.]+))?`", text):
            yield str(document.relative_to(ROOT)), path, name
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            yield str(document.relative_to(ROOT)), str((document.parent / target).resolve().relative_to(ROOT)), ""


def test_what_the_docs_name_exists() -> None:
    missing = []
    for document, path, name in named_in_docs():
        file = ROOT / path
        if not file.exists():
            missing.append(f"{document}: {path}")
        elif name:
            last = name.rpartition(".")[2]
            if not re.search(rf"^\s*(?:(?:async )?def |class )?{last}\b", file.read_text(), re.MULTILINE):
                missing.append(f"{document}: {path}::{name}")
    assert missing == []


def test_the_protocol_names_every_broken_variant() -> None:
    told = re.findall(r"variants? ((?:`[\w-]+`(?:, )?)+)", (ROOT / "docs" / "protocol.md").read_text())
    assert {name for names in told for name in re.findall(r"[\w-]+", names)} == BROKEN.keys()


def test_the_version_is_told_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_make_lists_its_targets() -> None:
    said = subprocess.run(["make", "-s", "-C", str(ROOT), "help"], capture_output=True, text=True, check=True).stdout
    for target in ("demo", "test", "slow", "sim", "chaos", "cluster", "bench", "clean"):
        assert re.search(rf"^make {target}\b", said, re.MULTILINE), target


def test_entry_points() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["scripts"].values()]
    for group in project["entry-points"].values():
        declared += group.values()
    for entry in declared:
        module, _, name = entry.partition(":")
        assert hasattr(importlib.import_module(module), name), entry
