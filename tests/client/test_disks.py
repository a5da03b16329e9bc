"""A store over several disks: any minority may be lost, several processes use it, and a new disk takes over."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import objmeta
from objmeta.config import resolve
from objmeta.errors import ConfigurationMismatch, Conflict, InvalidArgument, NoQuorum, StoreError
from objmeta.store import disks as places
from objmeta.store import sqlite_files
from objmeta.store.sqlite import SqliteStore


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return [tmp_path / name for name in "abc"]


@pytest.fixture
def filled(paths: list[Path]) -> Iterator[objmeta.Client]:
    with objmeta.connect(disks=paths, timeout_s=5) as client:
        client.create_bucket("bucket")
        for number in range(10):
            client.put_object("bucket", f"{number}", data=b"%d" % number)
        yield client


def check(client: objmeta.Client, last: int = 10) -> None:
    assert [each.key for each in client.list_objects("bucket").objects] == [f"{n}" for n in range(last)]
    for number in range(last):
        assert client.get_object("bucket", f"{number}").data == b"%d" % number


def states(client: objmeta.Client) -> dict[str, str]:
    return {Path(node.address).name: node.state for node in client.status().nodes}


def test_any_one_of_three_disks_may_be_lost(filled: objmeta.Client, paths: list[Path]) -> None:
    assert states(filled) == {"a": "up", "b": "up", "c": "up"}
    filled.close()
    for lost in paths:
        away = lost.with_name("away")
        lost.rename(away)
        lost.mkdir()  # an unmounted disk is an empty directory
        with objmeta.connect(disks=paths, timeout_s=60) as client:
            began = time.monotonic()
            check(client)
            client.put_object("bucket", "0", data=b"0")
            assert time.monotonic() - began < 60, "a missing disk was waited for"
            assert states(client)[lost.name] == "down"
            (down,) = [node for node in client.status().nodes if node.state == "down"]
            assert "mount its disk" in down.detail
        assert not any(lost.iterdir()), "an empty directory was made a disk of the store"
        lost.rmdir()
        away.rename(lost)


def test_without_a_majority_nothing_is_opened_or_made(filled: objmeta.Client, paths: list[Path]) -> None:
    filled.close()
    for lost in paths[1:]:
        shutil.rmtree(lost)
    with objmeta.connect(disks=paths, timeout_s=5) as client, pytest.raises(NoQuorum, match="no majority of the 3"):
        client.buckets()
    assert not paths[1].exists()


def test_a_disk_that_comes_back_is_used_and_brought_up_to_date(filled: objmeta.Client, paths: list[Path]) -> None:
    filled.close()
    away = paths[2].with_name("away")
    paths[2].rename(away)
    with objmeta.connect(disks=paths, timeout_s=5) as client:
        client.put_object("bucket", "new", data=b"new")
    away.rename(paths[2])
    with objmeta.connect(disks=paths, timeout_s=5) as client:
        collected = client.collect()
        deadline = time.monotonic() + 20
        while not collected.done and time.monotonic() < deadline:
            collected = client.collect(collected.run)
        assert collected.done
    shutil.rmtree(paths[0])  # of the two left, only the one that was never away had it
    with objmeta.connect(disks=paths, timeout_s=5) as client:
        assert client.get_object("bucket", "new").data == b"new"
    with closing(SqliteStore.open(paths[2] / places.ACCEPTOR)) as store:
        assert any(name.endswith(b"new") for name in store.changes(0, 1000).names)


def become(client: objmeta.Client, wanted: dict[str, str]) -> bool:
    """Whether the disks come to be in these states; one that could not be opened is tried again after five seconds."""
    until = time.monotonic() + 20
    while (is_so := states(client) == wanted) is False and time.monotonic() < until:
        time.sleep(0.1)
    return is_so


def test_a_disk_that_opens_late_is_let_in(
    filled: objmeta.Client, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    new = paths[0].with_name("d")
    go_on = threading.Event()
    open_one = places.open_one

    def slowly(path: Path) -> SqliteStore:
        if path == new:
            assert go_on.wait(60)
        return open_one(path)

    monkeypatch.setattr(places, "open_one", slowly)
    monkeypatch.setattr("objmeta.client.disks._OPENING_S", 0.01)
    filled.replace_disk(paths[1], new)
    assert states(filled)["d"] == "down"
    go_on.set()
    assert become(filled, {"a": "up", "c": "up", "d": "up"}), "it was given no vote"


def test_a_lost_disk_is_replaced_by_an_empty_one(filled: objmeta.Client, paths: list[Path]) -> None:
    new = paths[0].with_name("d")
    with objmeta.connect(disks=paths, timeout_s=5) as other:
        check(other)
        filled.close()
        shutil.rmtree(paths[1])
        with objmeta.connect(disks=paths, timeout_s=5) as client:
            client.replace_disk(paths[1], new)
            check(client)
            assert become(client, {"a": "up", "c": "up", "d": "up"})
            client.replace_disk(paths[1], new)  # once more is no harm
            with objmeta.connect(disks=paths, timeout_s=5) as fresh:  # whose settings are not the newest
                assert become(fresh, {"a": "up", "c": "up", "d": "up"})
            with pytest.raises(Conflict, match="in use"):
                client.replace_disk(paths[0], new)
            with pytest.raises(InvalidArgument, match="none of the store's disks"):
                client.replace_disk(paths[1], paths[1])
        other.put_object("bucket", "10", data=b"10")  # a client that was open all the time follows
        check_keys = [each.key for each in other.list_objects("bucket").objects]
        assert len(check_keys) == 11
    shutil.rmtree(paths[0])
    with objmeta.connect(disks=[paths[0], new, paths[2]], timeout_s=5) as client:
        assert client.get_object("bucket", "10").data == b"10"
        for number in range(10):
            assert client.get_object("bucket", f"{number}").data == b"%d" % number


def test_a_damaged_row_is_mended_from_the_others(filled: objmeta.Client, paths: list[Path]) -> None:
    filled.close()
    database = sqlite_files.database_path(paths[0] / places.ACCEPTOR)
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        assert other.execute("UPDATE registers SET state = zeroblob(40) WHERE state IS NOT NULL").rowcount > 10
    with objmeta.connect(disks=paths, timeout_s=5) as client:
        check(client)
        deadline = time.monotonic() + 20
        while True:
            with closing(sqlite3.connect(database)) as other:
                left = other.execute("SELECT count(*) FROM registers WHERE state = zeroblob(40)").fetchone()[0]
            if not left:
                break
            assert time.monotonic() < deadline, f"{left} damaged rows were not mended"
            check(client)
            client.buckets()
        (node,) = [node for node in client.status().nodes if node.address == str(paths[0])]
        assert node.detail.startswith("damaged: ")
    shutil.rmtree(paths[1])
    with objmeta.connect(disks=paths, timeout_s=5) as client:
        check(client)


WRITER = """
import sys, objmeta
with objmeta.connect(disks=sys.argv[2:], timeout_s=20) as client:
    for number in range(20):
        client.put_object("shared", f"{sys.argv[1]}-{number:02}", data=b"x")
"""


def test_several_processes_at_once_make_and_use_one_store(paths: list[Path]) -> None:
    make = "import sys, objmeta\nwith objmeta.connect(disks=sys.argv[1:]) as client:\n    client.buckets()\n"
    arguments = [str(path) for path in paths]
    makers = [subprocess.Popen([sys.executable, "-c", make, *order]) for order in (arguments, arguments[::-1])]
    assert [maker.wait(60) for maker in makers] == [0, 0]
    with objmeta.connect(disks=paths, timeout_s=20) as client:
        client.create_bucket("shared")
        writers = [subprocess.Popen([sys.executable, "-c", WRITER, name, *arguments]) for name in ("p", "q")]
        assert [writer.wait(60) for writer in writers] == [0, 0]
        assert len(client.list_objects("shared").objects) == 40


def test_making_that_was_interrupted_goes_on(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    real = sqlite_files.make
    made: list[Path] = []

    def once(directory: Path, *arguments: object) -> bool:
        if made:
            raise StoreError("the machine has stopped")
        made.append(directory)
        return real(directory, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(sqlite_files, "make", once)
    with pytest.raises(StoreError, match="stopped"):
        places.open_or_create(paths)
    monkeypatch.undo()
    opened = places.open_or_create(paths)
    assert sorted(opened.stores) == [1, 2, 3]
    assert len({store.configuration for store in opened.stores.values()}) == 1
    opened.close()


def test_disks_of_different_stores_are_refused(filled: objmeta.Client, paths: list[Path], tmp_path: Path) -> None:
    filled.close()
    others = [tmp_path / name for name in "xyz"]
    places.open_or_create(others).close()
    with pytest.raises(ConfigurationMismatch, match="same store"):
        places.open_or_create([*paths[:2], others[2]])


def test_one_disk_alone_is_no_store(filled: objmeta.Client, paths: list[Path]) -> None:
    with objmeta.connect(paths[0]) as client, pytest.raises(ConfigurationMismatch, match="name all of them"):
        client.buckets()
    check(filled)


def test_settings_name_the_disks(tmp_path: Path) -> None:
    environ = {"OBJMETA_DISKS": "/a:/b:/c"}
    with pytest.raises(InvalidArgument, match=r"names 1; .* 3 to 9 different directories .* such as /a:/b:/c"):
        resolve({}, {"OBJMETA_DISKS": "/a,/b,/c"}, (), {})
    found = resolve({}, environ, [], {})
    assert found.settings.disks == (Path("/a"), Path("/b"), Path("/c"))
    assert found.sources["disks"] == "environment variable OBJMETA_DISKS"
    file = tmp_path / "config.toml"
    file.write_text('disks = ["a", "b", "c"]\n')
    assert resolve({}, {}, [file], {}).settings.disks == tuple(tmp_path / name for name in "abc")
    assert resolve({"target": tmp_path}, environ, [], {}).settings.disks == ()
    assert resolve({"disks": ["/a", "/b", "/c"]}, {"OBJMETA_ENDPOINTS": "h:1"}, [], {}).settings.endpoints == ()
    for wrong in (["/a", "/b"], ["/a", "/a", "/b"], "/a", 3):
        with pytest.raises(InvalidArgument, match="disks"):
            resolve({"disks": wrong}, {}, [], {})
