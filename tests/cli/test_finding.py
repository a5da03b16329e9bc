"""``find``, ``tree``, ``head`` and ``cat --range``."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from gateway.cli.values import byte_range, size
from tests.cli.conftest import Run, Shell


@pytest.fixture
def filled(gateway: Run, bucket: str) -> str:
    """A bucket with a few objects of various sizes, kinds and metadata."""
    for name, length in (("a.csv", 10), ("d/b.csv", 3000), ("d/e/ü [1].csv", 5000), ("d/e/c.txt", 0)):
        Path("f").write_bytes(b"x" * length)
        gateway("put", "--meta", f"kind={Path(name).suffix[1:]}", "f", f"{bucket}/{name}")
    gateway("put", "f", f"{bucket}/d/gone")
    gateway("rm", f"{bucket}/d/gone")
    return bucket


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ([], ["a.csv", "d/b.csv", "d/e/c.txt", "d/e/ü [1].csv"]),
        (["--name", "*.csv"], ["a.csv", "d/b.csv", "d/e/ü [1].csv"]),
        (["--name", "a*", "--name", "c*"], ["a.csv", "d/e/c.txt"]),
        (["--name", "ü [[]1].csv"], ["d/e/ü [1].csv"]),
        (["--path", "d/*.csv"], ["d/b.csv", "d/e/ü [1].csv"]),
        (["--path", "*.csv", "--path", "d/e/*", "--name", "*.txt"], ["d/e/c.txt"]),
        (["--larger", "2K"], ["d/b.csv", "d/e/ü [1].csv"]),
        (["--larger", "10"], ["d/b.csv", "d/e/ü [1].csv"]),
        (["--smaller", "1", "--larger", "0"], []),
        (["--smaller", "1"], ["d/e/c.txt"]),
        (["--newer-than", "1h", "--smaller", "11"], ["a.csv", "d/e/c.txt"]),
        (["--older-than", "1h"], []),
        (["--older-than", "2020-01-01"], []),
        (["--meta", "kind=t*"], ["d/e/c.txt"]),
        (["--meta", "kind", "--larger", "4K"], ["d/e/ü [1].csv"]),
        (["--meta", "none"], []),
    ],
)
def test_find(gateway: Run, filled: str, options: list[str], found: list[str]) -> None:
    assert gateway("find", filled, *options).lines == [f"{filled}/{name}" for name in found]


def test_find_for_programs(gateway: Run, shell: Shell, filled: str) -> None:
    assert gateway("find", "box/d", "--name", "b*", "-0").raw == b"box/d/b.csv\0"
    (record,) = gateway("find", "box/d/b.csv", "--json").records
    assert (record["bucket"], record["key"], record["size"]) == ("box", "d/b.csv", 3000)
    gateway("find", "box/none", code=4)
    assert gateway("find", "box/none", "box/d/e", code=1).lines == ["box/d/e/c.txt", "box/d/e/ü [1].csv"]
    for wrong in (["--larger", "big"], ["--newer-than", "soon"], ["--meta", "=x"], ["-0", "--json"]):
        gateway("find", "box", *wrong, code=2)


def test_find_as_of(gateway: Run, filled: str) -> None:
    before = str(time.time())
    gateway("rm", "-r", "box/d")
    assert len(gateway("find", "box").lines) == 1
    assert len(gateway("find", "box", "--as-of", before).lines) == 4


def test_tree(gateway: Run, shell: Shell, filled: str) -> None:
    assert gateway("tree", "box").lines == [
        "objmeta://box",
        "├── a.csv",
        "└── d/",
        "    ├── b.csv",
        "    └── e/",
        "        ├── c.txt",
        "        └── ü [1].csv",
        "2 directories, 4 objects",
    ]
    assert gateway("tree", "-L", "1", "-s", "-h", "box").lines == [
        "objmeta://box",
        "├── [      10]  a.csv",
        "└── d/",
        "1 directory, 1 object, 10",
    ]
    assert gateway("tree", "-d", "box/d").lines == ["objmeta://box/d/", "└── e/", "1 directory"]
    assert [each["depth"] for each in gateway("tree", "--json", "box").records] == [1, 1, 2, 2, 3, 3]
    assert shell("tree", "box/d/e", env={"PYTHONIOENCODING": "ascii"}).lines[1] == "|-- c.txt"
    gateway("tree", "box/none", code=4)


def test_head(gateway: Run, bucket: str) -> None:
    text = b"".join(b"line %d\n" % number for number in range(60_000))
    Path("f").write_bytes(text)
    Path("short").write_bytes(b"no end")
    gateway("put", "f", "short", "box/")
    lines = text.splitlines(keepends=True)
    assert gateway("head", "box/f").raw == b"".join(lines[:10])
    assert gateway("head", "-n", "50000", "box/f").raw == b"".join(lines[:50_000])
    assert gateway("head", "-n", "100000", "box/f").raw == text
    assert gateway("head", "-n", "0", "box/f").raw == b""
    assert gateway("head", "-c", "4", "box/f").raw == b"line"
    assert gateway("head", "-n", "1", "box/f", "box/short").raw == (
        b"==> objmeta://box/f <==\nline 0\n\n==> objmeta://box/short <==\nno end"
    )
    gateway("head", "-n", "-1", "box/f", code=2)
    gateway("head", "box/none", code=4)


def test_a_range(gateway: Run, bucket: str) -> None:
    data = os.urandom(3_000_000)
    Path("f").write_bytes(data)
    gateway("put", "f", "box/f")
    for text, expected in (
        ("0-99", data[:100]),
        ("bytes=5-5", data[5:6]),
        ("2999990-", data[-10:]),
        ("-7", data[-7:]),
        ("1000000-1999999", data[1_000_000:2_000_000]),
        ("3000000-", b""),
        ("-9999999", data),
        ("2999999-4000000", data[-1:]),
    ):
        assert gateway("cat", "--range", text, "box/f").raw == expected
    for text in ("5-4", "-", "5", "a-b", "1-2-3", "٣-٤", "--5"):
        gateway("cat", f"--range={text}", "box/f", code=2)


def test_sizes_and_ranges() -> None:
    assert [size(text) for text in ("0", "10k", "1.5M", "2GiB", "3b", "1KB")] == [0, 10240, 1572864, 2 << 30, 3, 1024]
    assert byte_range("-0") == (0, None)
