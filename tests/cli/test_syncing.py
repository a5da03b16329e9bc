"""``sync`` and ``import`` between the store, directories of this machine, and file systems that fsspec knows."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from tests.cli.conftest import Run, Shell, eventually

NASTY = ("a b.txt", "grüße/ß.txt", "😀/🎉.bin", "x?y#z%20*[k].csv", "a-b", "a/b", "a0", "-n", "empty")


def tree(root: Path) -> dict[str, bytes | None]:
    """Files and empty directories below a directory."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
        if path.is_file() or not os.listdir(path)
    }


@pytest.fixture
def source(shell: Shell) -> Path:
    """A directory with names of all kinds."""
    root = shell.directory / "source"
    for number, name in enumerate(NASTY):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"" if name == "empty" else b"x" * (number + 1) * 5000)
        os.utime(path, ns=(0, 1_700_000_000_123_456_789 + number))
    (root / "void" / "deep").mkdir(parents=True)
    return root


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    """fsspec's file system in memory, empty."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


def test_there_and_back(gateway: Run, bucket: str, source: Path) -> None:
    assert gateway("sync", "./source", "box/s").lines == ["stored 10 objects, 176K; 0 there already: objmeta://box/s/"]
    assert gateway("sync", "./source", "box/s").lines == ["stored 0 objects, 0; 10 there already: objmeta://box/s/"]
    assert gateway("sync", "box/s", "./back").lines == ["wrote 10 objects, 176K; 0 there already: back"]
    assert tree(Path("back")) == tree(source)
    assert Path("back/a0").stat().st_mtime_ns == (source / "a0").stat().st_mtime_ns
    assert gateway("sync", "box/s", "./back").lines == ["wrote 0 objects, 0; 10 there already: back"]
    assert gateway("sync", "./back", "box/s").lines == ["stored 0 objects, 0; 10 there already: objmeta://box/s/"]
    assert gateway("sync", "box/s", "box/t").lines == ["copied 10 objects, 176K; 0 there already: objmeta://box/t/"]
    assert gateway("sync", "box/s", "box/t").lines == ["copied 0 objects, 0; 10 there already: objmeta://box/t/"]


def test_what_changed_is_sent_and_nothing_else(gateway: Run, bucket: str, source: Path) -> None:
    gateway("sync", "./source", "box/s")
    (source / "a0").write_bytes(b"longer than before" * 5000)
    same_size = (source / "a-b").read_bytes().replace(b"x", b"y")
    (source / "a-b").write_bytes(same_size)
    os.utime(source / "a-b", ns=(0, 1_600_000_000_000_000_000))  # older than what it replaces, as after "cp -p"
    (source / "new").write_bytes(b"new")
    (source / "-n").unlink()
    planned = gateway("sync", "--dry-run", "--delete", "--json", "./source", "box/s").records
    assert [(each["action"], each["target"], each["reason"]) for each in planned] == [
        ("delete", "objmeta://box/s/-n", "extra"),
        ("store", "objmeta://box/s/a-b", "time"),
        ("store", "objmeta://box/s/a0", "size"),
        ("store", "objmeta://box/s/new", "new"),
    ]
    assert gateway("sync", "--dry-run", "--delete", "--json", "./source", "box/s").records == planned
    done = gateway("sync", "--delete", "--json", "./source", "box/s").records
    by_name = {each["target"]: each | {"dry_run": True} for each in done}
    assert by_name == {each["target"]: each for each in planned}
    gateway("sync", "--delete", "box/s", "./back")
    assert tree(Path("back")) == tree(source)


def test_contents_are_compared_when_asked(gateway: Run, bucket: str, source: Path) -> None:
    gateway("sync", "./source", "box/s")
    status = (source / "a0").stat()
    (source / "a0").write_bytes(b"y" * status.st_size)
    os.utime(source / "a0", ns=(0, status.st_mtime_ns))
    os.utime(source / "a-b", ns=(0, 1))
    assert "stored 1 object" in gateway("sync", "./source", "box/s").out  # a-b: its time differs
    assert "stored 1 object" in gateway("sync", "--checksum", "./source", "box/s").out  # a0: its content differs
    os.utime(source / "a-b", ns=(0, 2))
    assert "stored 0 objects" in gateway("sync", "--checksum", "./source", "box/s").out


def test_what_put_and_get_moved_is_not_moved_again(gateway: Run, bucket: str, source: Path) -> None:
    gateway("put", "-r", "source", "box/s")
    assert "stored 0 objects" in gateway("sync", "./source", "box/s").out
    gateway("get", "-r", "box/s", "back")
    assert "wrote 0 objects" in gateway("sync", "box/s", "./back").out
    assert gateway("sync", "--dry-run", "box/s", "./back").lines[-1].startswith("would write 0 objects")


def test_deleting_at_a_directory(gateway: Run, bucket: str, source: Path) -> None:
    gateway("sync", "./source", "box/s")
    gateway("sync", "box/s", "./back")
    Path("back/extra/deep").mkdir(parents=True)
    Path("back/extra/deep/file").write_bytes(b"1")
    Path("back/hollow/inner").mkdir(parents=True)
    os.symlink("/etc", "back/link")
    assert gateway("sync", "box/s", "./back").lines[-1].startswith("wrote 0 objects")
    gateway("sync", "--delete", "box/s", "./back")  # a link is nothing that a sync makes, so it stays
    assert os.path.islink("back/link")
    os.unlink("back/link")
    assert tree(Path("back")) == tree(source)
    assert not Path("back/hollow").exists()
    gateway("rm", "box/s/void/deep/")
    gateway("put", "source/empty", "box/s/void/")
    gateway("rm", "box/s/void/empty")
    gateway("sync", "--delete", "box/s", "./back")
    assert not Path("back/void").exists()


def test_a_directory_that_the_source_has_stays_when_it_is_emptied(gateway: Run, bucket: str) -> None:
    Path("s/a/b").mkdir(parents=True)
    gateway("sync", "./s", "box/s")
    gateway("sync", "box/s", "./back")
    Path("s/a/b").rmdir()
    gateway("sync", "--delete", "./s", "box/s")
    gateway("sync", "--delete", "box/s", "./back")
    assert tree(Path("back")) == {"a": None}


def test_filters_in_order(gateway: Run, bucket: str, source: Path) -> None:
    def planned(*options: str) -> set[str]:
        found = gateway("sync", "--dry-run", "--json", *options, "./source", "box/s").records
        return {each["target"].removeprefix("objmeta://box/s/") for each in found}

    assert planned("--exclude", "*", "--include", "*.txt") == {"a b.txt", "grüße/ß.txt"}
    assert planned("--include", "*.txt", "--exclude", "*") == set()
    assert planned("--exclude=*", "--include=a*", "--exclude=a/*") == {"a b.txt", "a-b", "a0"}
    gateway("sync", "./source", "box/s")
    (source / "a0").unlink()
    (source / "a b.txt").unlink()
    assert "deleted 1" in gateway("sync", "--delete", "--exclude", "*.txt", "./source", "box/s").out
    gateway("stat", "box/s/a b.txt")


def test_what_cannot_be_read_is_reported_and_not_deleted(gateway: Run, bucket: str, source: Path) -> None:
    gateway("sync", "./source", "box/s")
    os.rename(source / "a", source.parent / "elsewhere")
    os.symlink(source.parent / "elsewhere", source / "a")
    os.mkfifo(source / "pipe")
    (source / os.fsdecode(b"bad\xff")).write_bytes(b"1")
    said = gateway("sync", "--delete", "./source", "box/s", code=1).err
    assert "a symbolic link to a directory" in said
    assert "neither a file nor a directory" in said
    assert "not valid Unicode" in said
    gateway("stat", "box/s/a/b")
    gateway("sync", "--delete", "--exclude", "pipe", "--exclude", "bad*", "--exclude", "a", "./source", "box/s")


def test_a_source_that_is_not_there_empties_nothing(gateway: Run, bucket: str, source: Path) -> None:
    gateway("sync", "./source", "box/s")
    for missing, code in (("./sourec", 2), ("box/none", 4), ("nobucket", 3), ("memory://none", 1), ("./source/a0", 2)):
        gateway("sync", "--delete", missing, "box/s", code=code)
    assert len(gateway("ls", "-r", "box/s").lines) == 10


@pytest.mark.parametrize("key", ["../up", "a/../../up", "/etc/passwd", "a//b", "./a", "x" * 300])
def test_a_key_that_cannot_be_a_file_is_reported_and_written_nowhere(gateway: Run, bucket: str, key: str) -> None:
    Path("f").write_bytes(b"1")
    gateway("put", "f", f"box/s/{key}")
    gateway("put", "f", "box/s/good")
    before = tree(Path.cwd())
    assert key in gateway("sync", "--delete", "box/s", "./back", code=1).err
    assert tree(Path.cwd()) == before | {"back/good": b"1"}


def test_a_link_out_of_the_target_is_not_followed(gateway: Run, bucket: str) -> None:
    Path("f").write_bytes(b"1")
    gateway("put", "f", "box/s/out/f")
    Path("back").mkdir()
    Path("outside").mkdir()
    os.symlink("../outside", "back/out")
    assert "outside" in gateway("sync", "box/s", "./back", code=2).err
    assert os.listdir("outside") == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["sync", "./a", "./b"], "one of the two has to be in this store"),
        (["sync", "memory://a", "./b"], "one of the two has to be in this store"),
        (["sync", "box", "box/inner"], "one inside the other"),
        (["sync", "box/a", "box/a/"], "or the same"),
        (["sync", "foo://x", "box"], "Protocol not known: foo"),
        (["sync", "-o", "novalue", "memory://x", "box"], "is not NAME=VALUE"),
        (["sync", "-o", "a=1", "./x", "box"], "are for URLs"),
        (["sync", "github://x", "box"], "-o NAME=VALUE"),
        (["import", "box/a", "box/b"], "'gateway cp'"),
        (["import", "https://host/file"], "say where"),
        (["import", "memory://a", "./b"], "is not in this store"),
    ],
)
def test_what_cannot_be_synced(gateway: Run, bucket: str, arguments: list[str], says: str) -> None:
    assert says in gateway(*arguments, code=2).err


def test_a_name_without_a_dot_is_of_the_store_and_said_so(gateway: Run, source: Path, bucket: str) -> None:
    assert "./source is a directory of this machine" in gateway("sync", "source", "box/s", code=3).err
    assert "'gateway mb' makes one" in gateway("sync", "./source", "none1", code=3).err


# -- URLs -------------------------------------------------------------------------------------------------------------


def test_a_file_system_of_fsspec(gateway: Run, bucket: str, source: Path, memory: fsspec.AbstractFileSystem) -> None:
    gateway("sync", "./source", "box/s")
    assert "wrote 10 objects" in gateway("sync", "box/s", "memory://m").out
    assert memory.cat_file("/m/😀/🎉.bin") == (source / "😀/🎉.bin").read_bytes()
    assert memory.isdir("/m/void/deep")
    assert "wrote 0 objects" in gateway("sync", "box/s", "memory://m").out
    assert "stored 10 objects" in gateway("sync", "memory://m", "box/t").out
    assert "stored 0 objects" in gateway("sync", "memory://m", "box/t").out
    gateway("sync", "box/t", "./back")
    assert tree(Path("back")) == tree(source)
    memory.pipe_file("/m/a0", b"changed")
    memory.rm_file("/m/a-b")
    assert "stored 1 object, 7; deleted 1" in gateway("sync", "--delete", "memory://m", "box/t").out
    gateway("rm", "box/t/a0")
    assert "wrote 0 objects, 0; deleted 1" in gateway("sync", "--delete", "box/t", "memory://m").out
    assert not memory.exists("/m/a0")
    assert "wrote 0 objects" in gateway("sync", "--checksum", "box/t", "memory://m").out


def test_a_file_url_is_a_directory_of_this_machine(gateway: Run, bucket: str, source: Path) -> None:
    gateway("sync", f"file://{source}", "box/s")
    gateway("sync", "box/s", f"file://{source.parent}/back")
    assert tree(Path("back")) == tree(source)


def test_import_makes_the_bucket_and_never_deletes(
    gateway: Run, source: Path, memory: fsspec.AbstractFileSystem
) -> None:
    memory.pipe_file("/photos/2026/a.jpg", b"1")
    memory.pipe_file("/photos/b.jpg", b"22")
    assert gateway("import", "--dry-run", "memory://photos").lines[-1].startswith("would store 2 objects, 3")
    assert gateway("ls").lines == []
    assert gateway("import", "memory://photos").lines == [
        "made objmeta://photos",
        "stored 2 objects, 3; 0 there already: objmeta://photos",
    ]
    memory.rm_file("/photos/b.jpg")
    assert "stored 0 objects, 0; 1 there already" in gateway("import", "memory://photos").out
    assert gateway("ls", "-r", "photos").lines == ["2026/a.jpg", "b.jpg"]
    assert gateway("stat", "--json", "photos/b.jpg").records[0]["content_type"] == "image/jpeg"
    gateway("import", "memory://photos/2026/a.jpg", "photos/one/")
    gateway("import", "memory://photos/2026/a.jpg", "photos/other.jpg")
    gateway("import", "source/a0", "photos", code=2)
    gateway("import", "./source/a0", "photos")
    gateway("import", "./source", "photos/tree")
    assert set(gateway("ls", "photos").lines) == {"2026/", "b.jpg", "one/", "other.jpg", "a0", "tree/"}


def test_a_write_that_fails_half_way_leaves_no_file(
    gateway: Run, bucket: str, memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gateway.data.transfer import Store

    Path("f").write_bytes(b"1" * 100_000)
    gateway("put", "f", "box/s/f")
    original = Store.stream

    async def broken(self: Store, version: object, start: int = 0, stop: int | None = None) -> object:
        async for block in original(self, version, start, stop):  # type: ignore[arg-type]
            yield block[:10]
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(Store, "stream", broken)
    gateway("sync", "box/s", "memory://m", code=1)
    assert memory.find("/") == []


# -- Stopped ----------------------------------------------------------------------------------------------------------


def test_a_sync_that_is_interrupted_says_what_was_done_and_is_gone_on_with(shell: Shell, bucket: str) -> None:
    root = shell.directory / "many"
    root.mkdir()
    for number in range(600):
        (root / f"{number:04}").write_bytes(os.urandom(20_000))
    process = shell.start("sync", "-v", "./many", "box/s", env={"PYTHONUNBUFFERED": "1"})
    assert process.stdout is not None
    assert process.stdout.readline().startswith(b"stored objmeta://box/s/")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b" by then, which stays" in err
    assert err.endswith(b"gateway: interrupted\n")
    there = len(shell("ls", "-r", "box/s").lines)
    assert 0 < there < 600
    assert shell("sync", "./many", "box/s").out.endswith(f"; {there} there already: objmeta://box/s/\n")
    process = shell.start("sync", "box/s", "./back")
    back = shell.directory / "back"
    eventually(lambda: back.exists() and len(os.listdir(back)) > 40)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode in (130, 0)  # all may have been there already
    assert not [name for name in os.listdir(back) if name.endswith(".part")]
    shell("sync", "box/s", "./back")
    assert tree(back) == tree(root)


def test_a_file_where_a_directory_is_due(gateway: Run, shell: Shell, bucket: str) -> None:
    shell("put", "-", "box/file", data=b"1")
    assert "it is an object itself, which 'gateway get' fetches" in gateway("sync", "box/file", "./x", code=4).err
    gateway("get", "box/file", "file")
    assert "'gateway put' stores a file" in gateway("sync", "./file", "box/x", code=2).err
    for command in (["sync", "./nosuch", "box/x"], ["import", "./nosuch", "box/x"], ["put", "nosuch", "box/x"]):
        assert gateway(*command, code=2).err.endswith("nosuch: No such file or directory\n")


def test_a_file_that_changes_while_it_is_read_is_reported_and_sent_again(gateway: Run, bucket: str) -> None:
    Path("busy").mkdir()
    busy = Path("busy/log")
    busy.write_bytes(b"first")
    ended = threading.Event()

    def grow() -> None:
        while not ended.wait(0.001):
            with busy.open("ab") as file:
                file.write(bytes(10_000))

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        outcome = gateway("sync", "./busy", "box/s", code=1)
    finally:
        ended.set()
        writer.join()
    assert outcome.err.startswith("gateway: busy/log: it changed while it was read")
    assert "stored 1 object" in gateway("sync", "./busy", "box/s").out
    assert gateway("cat", "box/s/log").raw == busy.read_bytes()


def test_what_a_killed_sync_left_is_taken_away(gateway: Run, shell: Shell, bucket: str) -> None:
    """But not what another one is at, and nothing of it is stored."""
    shell("put", "-", "box/s/a", data=b"1")
    back = Path("back/deep")
    back.mkdir(parents=True)
    left, held = (back / f".objmeta-{digit * 16}.part" for digit in "01")
    left.write_bytes(b"half")
    with held.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        gateway("sync", "--dry-run", "box/s", "./back")
        assert left.exists()
        gateway("sync", "box/s", "./back")
        assert (left.exists(), held.exists()) == (False, True)
        gateway("put", "-r", "back", "box/t")
        gateway("sync", "./back", "box/u")
    assert gateway("ls", "-r", "box/t").lines == gateway("ls", "-r", "box/u").lines == ["a"]
    gateway("sync", "box/s", "./back")
    assert not held.exists()


def test_a_directory_as_it_was(gateway: Run, bucket: str, source: Path) -> None:
    gateway("sync", "./source", "box/s")
    before = gateway("stat", "--json", "box/s/a0").records[0]["last_modified"]
    latest = max(record["last_modified"] for record in gateway("ls", "-r", "--json", "box/s").records)
    assert before <= latest
    gateway("rm", "-r", "box/s")
    gateway("sync", "--as-of", latest, "box/s", "./back")
    assert tree(Path("back")) == tree(source)
    gateway("sync", "--as-of", latest, "./source", "box/s", code=2)


# -- Another store ----------------------------------------------------------------------------------------------------


@pytest.fixture
def old(gateway: Run, source: Path) -> str:
    """Another store, with what is in ``source`` in its bucket ``box``."""
    gateway("--store", "./old", "mb", "box")
    gateway("--store", "./old", "sync", "./source", "box/s")
    gateway("--store", "./old", "put", "--content-type", "text/x", "--meta", "by=me", "source/a0", "box/typed")
    return "./old"


def test_a_bucket_of_another_store_comes_along(gateway: Run, old: str, source: Path) -> None:
    planned = gateway("import", "--from-store", old, "--dry-run", "box").lines[-1]
    assert planned == "would store 11 objects, 210K; 0 there already: objmeta://box"
    assert gateway("import", "--from-store", old, "box").lines[-1] == (
        "stored 11 objects, 210K; 0 there already: objmeta://box"
    )
    gateway("sync", "box/s", "./back")
    assert tree(Path("back")) == tree(source)
    assert Path("back/a0").stat().st_mtime_ns == (source / "a0").stat().st_mtime_ns
    there, here = (gateway(*of, "stat", "--json", "box/typed").records[0] for of in (("--store", old), ()))
    assert (here["content_type"], here["metadata"]["by"]) == ("text/x", "me")
    assert here["etag"] == there["etag"]
    assert gateway("import", "--from-store", old, "box").lines[-1] == (
        "stored 0 objects, 0; 11 there already: objmeta://box"
    )


def test_two_stores_are_kept_alike(gateway: Run, bucket: str, old: str, source: Path) -> None:
    gateway("sync", "--from-store", old, "box/s", "box/t")
    gateway("--store", old, "rm", "box/s/a-b")
    same_size = (source / "a0").read_bytes().replace(b"x", b"y")
    Path("changed").write_bytes(same_size)
    gateway("--store", old, "put", "changed", "box/s/a0")
    done = gateway("sync", "--from-store", old, "--delete", "--json", "box/s", "box/t").records
    assert sorted((each["action"], each["target"], each["reason"]) for each in done) == [
        ("delete", "objmeta://box/t/a-b", "extra"),
        ("store", "objmeta://box/t/a0", "content"),
    ]
    gateway("get", "box/t/a0", "a0")
    assert Path("a0").read_bytes() == same_size


def test_one_object_of_another_store(gateway: Run, old: str) -> None:
    gateway("import", "--from-store", old, "box/typed", "new/")
    gateway("import", "--from-store", old, "box/typed", "new/other")
    assert gateway("ls", "new").lines == ["other", "typed"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["import", "--from-store", "./nowhere", "box"], 1, "there is no store in that directory"),
        (["import", "--from-store", "./source", "box"], 1, "there is no store in that directory"),
        (["import", "--from-store", "./old", "nothing"], 3, "'nothing' does not exist in ./old"),
        (["import", "--from-store", "./old", "box/nothing"], 4, "objmeta://box/nothing/ in ./old"),
        (["import", "--from-store", "./old", "./source", "box"], 2, "the source is in that store"),
        (["import", "--from-store", "./old", "s3://x/y", "box"], 2, "the source is in that store"),
        (["import", "--from-store", "./old", "-o", "a=b", "box"], 2, "the source is in that store"),
        (["import", "--from-store", "", "box"], 2, "not by an empty string"),
        (["import", "--from-store", "http://x", "box"], 2, "is a URL"),
        (["sync", "--from-store", "./old", "box", "./here"], 2, "the target is in this store"),
        (["import", "box"], 2, "--from-store names another store"),
    ],
)
def test_wrong_words_about_another_store(
    gateway: Run, bucket: str, old: str, arguments: list[str], code: int, says: str
) -> None:
    assert says in gateway(*arguments, code=code).err
    assert not Path("nowhere").exists()
    assert not Path("source/acceptor").exists()
