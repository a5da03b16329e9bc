"""``diff``, ``undo`` and ``restore``."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from gateway.data.transfer import Store
from tests.cli.conftest import Run


def put(gateway: Run, data: bytes, name: str = "box/k") -> str:
    """Store content; the version's id."""
    Path("f").write_bytes(data)
    version: str = gateway("put", "--json", "f", name).records[0]["version_id"]
    return version


def test_a_difference_of_text_can_be_patched(gateway: Run, bucket: str) -> None:
    old = "one\ntwo\n\x0cthree\u2028still\nfour"
    new = "zero\none\n2\n\x0cthree\u2028still\nfour\n"
    first = put(gateway, old.encode())
    made = gateway("diff", "box/k").lines
    assert made[0] == "--- /dev/null"
    second = put(gateway, new.encode())
    found = gateway("diff", "box/k")
    assert found.out.startswith(f"--- objmeta://box/k {first} ")
    assert f"\n+++ objmeta://box/k {second} " in found.out
    assert "\n\\ No newline at end of file\n" in found.out
    Path("old").write_text(old)
    subprocess.run(["patch", "-s", "-o", "patched", "old"], input=found.raw, check=True)
    assert Path("patched").read_text() == new
    assert gateway("diff", "--from", second, "--to", first, "box/k").out.count("\n+two") == 1
    (record,) = gateway("diff", "--json", "box/k").records
    assert (record["same"], record["is_text"], record["lines_added"], record["lines_removed"]) == (False, True, 3, 2)
    assert "same content" in gateway("diff", "--from", first, "--to", first, "box/k").out


def test_a_difference_of_bytes_is_told_in_figures(gateway: Run, bucket: str) -> None:
    data = random.Random(1).randbytes(3_000_000)  # some others are one chunk
    put(gateway, data)
    put(gateway, data[:2_000_000] + b"\0\0\0\0" + data[2_000_004:])
    (record,) = gateway("diff", "--json", "box/k").records
    assert record["first_difference"] in (2_000_000, 2_000_001, 2_000_002)
    assert (record["is_text"], record["same"]) == (False, False)
    assert 0 < record["shared_bytes"] < 3_000_000
    assert "the contents differ from byte 200000" in gateway("diff", "box/k").out
    put(gateway, data[:10], "box/short")
    put(gateway, data[:5] + b"\xff", "box/other")
    assert gateway("diff", "--json", "box/short", "box/k").records[0]["first_difference"] == 10
    assert gateway("diff", "--json", "box/k", "box/other").records[0]["to_size"] == 6


def test_a_difference_to_nothing(gateway: Run, bucket: str) -> None:
    put(gateway, b"a\n")
    gateway("rm", "box/k")
    assert gateway("diff", "box/k").lines[-1] == "-a"
    put(gateway, b"b\n")
    assert gateway("diff", "box/k").lines[-1] == "+b"
    gateway("diff", "box/none", code=4)
    assert "'gateway versions'" in gateway("diff", "--from", "0" * 32, "box/k", code=4).err
    gateway("diff", "box", code=2)


def test_undo_of_every_kind_of_change(gateway: Run, bucket: str) -> None:
    put(gateway, b"one")
    assert "undid the making" in gateway("undo", "box/k").out
    gateway("cat", "box/k", code=4)
    assert "undid the deletion" in gateway("undo", "box/k").out
    assert gateway("cat", "box/k").raw == b"one"
    put(gateway, b"two")
    (record,) = gateway("undo", "--json", "box/k").records
    assert record["action"] == "restore"
    assert gateway("cat", "box/k").raw == b"one"
    gateway("undo", "box/k")
    assert gateway("cat", "box/k").raw == b"two"
    gateway("rm", "box/k")
    for command in ("cat", "stat", "get", "rm"):
        assert "'gateway undo' brings it back" in gateway(command, "box/k", code=4).err
    before = len(gateway("versions", "box/k").lines)
    gateway("undo", "box/k")
    assert gateway("cat", "box/k").raw == b"two"
    assert len(gateway("versions", "box/k").lines) == before - 1


def test_undo_of_what_cannot_be_undone(gateway: Run, bucket: str) -> None:
    first = put(gateway, b"one")
    put(gateway, b"two")
    gateway("rm", "--version-id", first, "box/k")
    assert "was removed for good" in gateway("undo", "box/k", code=4).err
    assert gateway("cat", "box/k").raw == b"two"
    gateway("undo", "box/none", code=4)
    gateway("undo", "box", code=2)
    put(gateway, b"x", "box/other")
    assert gateway("undo", "box/k", "box/other", code=1).out.startswith("undid the making of objmeta://box/other")


@pytest.mark.parametrize("deleted", [False, True])
def test_undo_beside_another_writer_changes_nothing(
    gateway: Run, bucket: str, deleted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(gateway, b"one")
    put(gateway, b"two")
    if deleted:
        gateway("rm", "box/k")
    from gateway.cli import undoing

    history = undoing._history

    async def late(store: Store, target: object) -> object:
        found = await history(store, target)  # type: ignore[arg-type]
        await store.client.put_object("box", "k", data=b"three")
        return found

    monkeypatch.setattr(undoing, "_history", late)
    gateway("undo", "box/k", code=6)
    assert gateway("cat", "box/k").raw == b"three"


def test_a_directory_is_restored(gateway: Run, bucket: str) -> None:
    for name in ("d/a", "d/b c", "d/e/ü", "other"):
        put(gateway, name.encode(), f"box/{name}")
    gateway("rm", "box/d/a")
    gateway("rm", "-r", "box/d")
    gateway("rm", "box/other")
    assert gateway("restore", "-r", "box/d").lines == ["restored 3 objects, 14, below objmeta://box/d"]
    assert gateway("ls", "-r", "box").lines == ["d/a", "d/b c", "d/e/ü"]
    assert gateway("restore", "-r", "box/d").lines == ["restored 0 objects, 0, below objmeta://box/d"]
    gateway("restore", "-r", "--version-id", "0", "box/d", code=2)
    assert "-r restores" in gateway("restore", "box", code=2).err
