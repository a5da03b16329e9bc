"""Files and directories into the store and out again, and copies inside it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from blake3 import blake3

from tests.cli.conftest import Run, Shell

AWKWARD = ["with space.txt", "grüße.txt", "🦔.bin", "a'b\"c.txt", "100%.txt", "*.txt", "-dash", "new\nline", "q?x#y"]


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def tree_of(root: Path) -> dict[str, bytes | None]:
    """Relative path -> content; directories end with a slash and have None."""
    return {
        str(path.relative_to(root)) + ("/" if path.is_dir() else ""): None if path.is_dir() else path.read_bytes()
        for path in root.rglob("*")
    }


def keys(gateway: Run, name: str) -> list[str]:
    return [record["key"] for record in gateway("ls", "-r", "--json", name).records]


# -- One file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 8192, 8193, 5_000_000])
def test_a_file_comes_back_as_it_was(gateway: Run, bucket: str, size: int) -> None:
    data = os.urandom(size)
    write(Path("in.bin"), data)
    assert "stored objmeta://box/some/key" in gateway("put", "in.bin", f"{bucket}/some/key").out
    gateway("get", f"objmeta://{bucket}/some/key", "out.bin")
    assert Path("out.bin").read_bytes() == data
    assert gateway("cat", f"{bucket}/some/key").raw == data
    assert [path.name for path in Path().iterdir()] in (["in.bin", "out.bin"], ["out.bin", "in.bin"])


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_names(gateway: Run, bucket: str, name: str) -> None:
    write(Path(name), name.encode())
    gateway("put", f"./{name}", f"{bucket}/dir/")
    assert keys(gateway, bucket) == [f"dir/{name}"]
    gateway("get", f"{bucket}/dir/{name}", "out/")
    assert Path("out", name).read_bytes() == name.encode()
    gateway("rm", f"{bucket}/dir/{name}")
    assert keys(gateway, bucket) == []


def test_standard_input_and_output(shell: Shell, bucket: str) -> None:
    data = os.urandom(3_000_000)
    shell("put", "-", f"{bucket}/stream", data=data)
    assert shell("get", f"{bucket}/stream", "-").raw == data
    shell("put", "-", f"{bucket}/nothing")
    assert shell("cat", f"{bucket}/nothing").raw == b""


def test_cat_joins_objects_and_goes_on_after_one_that_is_missing(gateway: Run, bucket: str) -> None:
    for name in ("a", "b"):
        gateway("put", str(write(Path(name), name.encode())), f"{bucket}/")
    assert gateway("cat", "box/a", "box/b").raw == b"ab"
    assert gateway("cat", "box/a", "box/none", "box/b", code=1).raw == b"ab"


def test_where_a_file_goes(gateway: Run, bucket: str) -> None:
    write(Path("f.txt"), b"1")
    gateway("put", "f.txt", bucket)
    gateway("put", "f.txt", f"{bucket}/")
    gateway("put", "f.txt", f"{bucket}/d/")
    gateway("put", "f.txt", f"{bucket}/d/g.txt")
    assert keys(gateway, bucket) == ["d/f.txt", "d/g.txt", "f.txt"]
    Path("there").mkdir()
    gateway("get", "box/d/g.txt")
    gateway("get", "box/d/g.txt", "there")
    gateway("get", "box/d/g.txt", "new/deep/")
    gateway("get", "box/d/g.txt", "new/name")
    assert {"g.txt", "there/g.txt", "new/deep/g.txt", "new/name"} < set(tree_of(Path()))


def test_several_files_need_a_directory(gateway: Run, bucket: str) -> None:
    for name in ("a", "b"):
        write(Path(name), name.encode())
    assert "box/x/" in gateway("put", "a", "b", "box/x", code=2).err
    gateway("put", "a", "b", "box/x/")
    assert keys(gateway, bucket) == ["x/a", "x/b"]


def test_a_file_is_replaced_through_a_link_and_a_device_never(gateway: Run, bucket: str) -> None:
    gateway("put", str(write(Path("f"), b"new")), "box/f")
    write(Path("real"), b"old")
    Path("link").symlink_to("real")
    gateway("get", "box/f", "link")
    assert Path("link").is_symlink()
    assert Path("real").read_bytes() == b"new"
    gateway("get", "box/f", "/dev/null")
    assert not Path("/dev/null").is_file()


def test_a_named_pipe_is_read_to_its_end(shell: Shell, bucket: str) -> None:
    pipe = shell.directory / "pipe"
    os.mkfifo(pipe)
    process = shell.start("put", "pipe", f"{bucket}/from-pipe")
    pipe.write_bytes(b"x" * 100_000)
    assert process.wait(20) == 0
    assert shell("cat", f"{bucket}/from-pipe").raw == b"x" * 100_000


def test_content_type_and_metadata(gateway: Run, bucket: str) -> None:
    for name, kind in [
        ("a.csv", "text/csv"),
        ("a.parquet", "application/vnd.apache.parquet"),
        ("a.csv.gz", "application/gzip"),
        ("a.weird", "application/octet-stream"),
    ]:
        gateway("put", str(write(Path(name), b"1")), "box/")
        assert gateway("stat", "--json", f"box/{name}").records[0]["content_type"] == kind
    gateway("put", "--content-type", "x/y", "--meta", "who=ünï", "--meta", "eq=a=b", "a.csv", "box/a.csv")
    (record,) = gateway("stat", "--json", "box/a.csv").records
    assert record["content_type"] == "x/y"
    assert record["metadata"] == {"who": "ünï", "eq": "a=b"}
    assert "who=ünï, eq=a=b" in gateway("stat", "box/a.csv").out


def test_preconditions(gateway: Run, bucket: str) -> None:
    write(Path("f"), b"1")
    (first,) = gateway("put", "--json", "--if-absent", "f", "box/f").records
    gateway("put", "-n", "f", "box/f", code=6)
    write(Path("f"), b"22")
    gateway("put", "--if-version", first["version_id"], "f", "box/f")
    gateway("put", "--if-version", first["version_id"], "f", "box/f", code=6)
    gateway("cp", "--if-version", first["version_id"], "box/f", "box/f2", code=6)
    gateway("rm", "--if-version", first["version_id"], "box/f", code=6)
    gateway("get", "-n", "box/f", "f", code=6)
    gateway("put", "--expect", "00" * 32, "f", "box/f3", code=8)
    gateway("put", "--expect", blake3(b"22").hexdigest(), "f", "box/f3")
    assert gateway("cat", "box/f").raw == b"22"
    assert gateway("cat", "--version-id", first["version_id"], "box/f").raw == b"1"
    gateway("get", "--version-id", first["version_id"], "box/f", "old")
    assert Path("old").read_bytes() == b"1"


# -- Directories ------------------------------------------------------------------------------------------------------


@pytest.fixture
def photos(shell: Shell) -> Path:
    """A tree with awkward names, many small files, a large one, empty directories and links to files."""
    root = shell.directory / "photos"
    for name in AWKWARD:
        write(root / "awkward" / name, name.encode())
    for number in range(100):
        write(root / "many" / f"{number % 7}" / f"{number}.txt", b"%d" % number * number)
    write(root / "large.bin", os.urandom(6_000_000))
    write(root / "empty.txt", b"")
    (root / "hollow" / "deeper").mkdir(parents=True)
    (root / "link.txt").symlink_to("empty.txt")
    return root


def test_a_directory_comes_back_byte_by_byte(gateway: Run, bucket: str, photos: Path) -> None:
    expected = tree_of(photos)
    assert "stored 113 objects" in gateway("put", "-r", "photos", "box/2026").out
    assert "fetched 113 objects" in gateway("get", "-r", "box/2026", "back").out
    assert tree_of(Path("back")) == expected
    gateway("get", "-r", "box/2026/", "again/")
    assert tree_of(Path("again")) == expected
    gateway("get", "-r", "box/2026")
    assert tree_of(Path("2026")) == expected
    gateway("put", "-r", "photos/", "box/other/")
    gateway("get", "-r", "box", "all")
    assert tree_of(Path("all/2026")) == tree_of(Path("all/other")) == expected
    assert "hollow/deeper/" in gateway("ls", "-r", "box/2026").lines


def test_several_directories_keep_their_names(gateway: Run, bucket: str) -> None:
    for name in ("a/x", "b/x", "c"):
        write(Path(name), name.encode())
    gateway("put", "-r", "a", "b/", "c", "box")
    assert keys(gateway, bucket) == ["a/x", "b/x", "c"]


def test_what_is_in_the_working_directory(gateway: Run, bucket: str) -> None:
    write(Path("d/x"), b"1")
    gateway("put", "-r", ".", "box/w")
    assert keys(gateway, bucket) == ["w/d/x"]


def test_json_tells_each_object_of_a_directory(gateway: Run, bucket: str, photos: Path) -> None:
    records = gateway("put", "-r", "--json", "photos", "box/p").records
    assert len(records) == 113
    assert {record["key"] for record in records} == set(keys(gateway, "box/p"))
    assert all(record["source"] is None or Path(record["source"]).is_file() for record in records)
    fetched = gateway("get", "-r", "--json", "box/p", "out").records
    assert len(fetched) == 113


def test_links_and_special_files_are_reported(gateway: Run, bucket: str) -> None:
    write(Path("d/file"), b"1")
    Path("d/broken").symlink_to("nowhere")
    Path("d/circle").symlink_to(".")
    os.mkfifo("d/pipe")
    found = gateway("put", "-r", "d", "box/d", code=1)
    assert "d/broken: a symbolic link to nothing; it was left out" in found.err
    assert "d/circle: a symbolic link to a directory; it was left out" in found.err
    assert "d/pipe: neither a file nor a directory; it was left out" in found.err
    assert keys(gateway, bucket) == ["d/file"]


def test_unreadable_files_are_reported(gateway: Run, bucket: str) -> None:
    write(Path("d/file"), b"1")
    Path("d/secret").symlink_to("/proc/self/mem")  # a file that even root cannot read
    found = gateway("put", "-r", "d", "box/d", code=1)
    assert found.err.startswith("gateway: d/secret: ")
    assert "stored 1 object" in found.out
    assert keys(gateway, bucket) == ["d/file"]


def test_a_name_that_is_no_text_is_reported(gateway: Run, bucket: str) -> None:
    write(Path("d/file"), b"1")
    write(Path(os.fsdecode(b"d/\xff")), b"1")
    assert "UTF-8" in gateway("put", "-r", "d", "box/d", code=1).err
    assert keys(gateway, bucket) == ["d/file"]


def test_the_store_is_not_stored_in_itself(gateway: Run, bucket: str, shell: Shell) -> None:
    write(Path("x"), b"1")
    found = gateway("put", "-r", "..", "box/all", code=1)
    assert "the store's own directory" in found.err
    assert not [key for key in keys(gateway, bucket) if key.startswith("all/home/")]


def test_no_clobber_stores_what_is_missing(gateway: Run, bucket: str) -> None:
    write(Path("d/old"), b"1")
    gateway("put", "-r", "d", "box/d")
    write(Path("d/new"), b"1")
    found = gateway("put", "-r", "-n", "d", "box/d", code=1)
    assert "stored 1 object" in found.out
    assert "old" in found.err
    gateway("put", "-r", "-n", "d", "box/d", code=6)


def test_keys_that_lead_out_of_the_directory_are_refused(gateway: Run, bucket: str, shell: Shell) -> None:
    write(Path("f"), b"evil")
    for key in ("d/../../escaped", "d//absolute", "d/./here", "d/good", "d/.."):
        gateway("put", "f", f"box/{key}")
    found = gateway("get", "-r", "box/d", "out", code=1)
    assert found.err.count("it was not fetched") == 4
    assert tree_of(Path("out")) == {"good": b"evil"}
    assert not (shell.directory.parent / "escaped").exists()
    gateway("get", "box/d/..", code=2)
    gateway("get", "box/d/..", "named")
    assert Path("named").read_bytes() == b"evil"


def test_a_link_below_the_directory_does_not_lead_out_either(gateway: Run, bucket: str) -> None:
    gateway("put", str(write(Path("f"), b"evil")), "box/d/link/escaped")
    Path("outside").mkdir()
    Path("out").mkdir()
    Path("out/link").symlink_to("../outside")
    assert "outside" in gateway("get", "-r", "box/d", "out", code=2).err
    assert list(Path("outside").iterdir()) == []


def test_a_file_and_a_directory_of_one_name(gateway: Run, bucket: str) -> None:
    write(Path("f"), b"1")
    for key in ("d/a", "d/a/b"):
        gateway("put", "f", f"box/{key}")
    gateway("get", "-r", "box/d", "out", code=1)
    assert gateway("ls", "box/d").lines == ["a", "a/"]
    gateway("get", "box/d/a", "single")
    gateway("get", "-r", "box/d/a", "tree")
    assert tree_of(Path("tree")) == {"b": b"1"}


def test_a_directory_where_a_file_is_due(gateway: Run, bucket: str) -> None:
    gateway("put", str(write(Path("f"), b"1")), "box/d/f")
    Path("here/f").mkdir(parents=True)
    assert "is a directory where a file is due" in gateway("get", "box/d/f", "here", code=2).err
    assert "use -r" in gateway("get", "box/d", code=4).err
    for command in ("cat", "head", "diff", "undo"):  # which have no -r
        assert "use 'gateway ls' to see" in gateway(command, "box/d", code=4).err
    assert "use -r" in gateway("restore", "box/d", code=4).err
    assert "use -r" in gateway("rm", "box/d", code=4).err
    assert "use -r" in gateway("cp", "box/d", "box/e", code=4).err
    assert "-r fetches" in gateway("get", "box/d/", code=2).err
    assert "is a file where a directory is due" in gateway("get", "-r", "box/d", "f", code=2).err


def test_an_empty_bucket_is_fetched_as_an_empty_directory(gateway: Run, bucket: str) -> None:
    gateway("get", "-r", "box", "out")
    assert tree_of(Path("out")) == {}
    gateway("get", "-r", "box/none/", "out2", code=4)
    assert not Path("out2").exists()


# -- Inside the store -------------------------------------------------------------------------------------------------


def test_copies_and_moves(gateway: Run, bucket: str, photos: Path) -> None:
    expected = tree_of(photos)
    gateway("mb", "other")
    gateway("put", "-r", "photos", "box/p")
    gateway("cp", "-r", "box/p", "other/q")
    gateway("mv", "-r", "other/q", "other/r/s")
    gateway("get", "-r", "other/r/s", "back")
    assert tree_of(Path("back")) == expected
    gateway("ls", "other/q", code=4)
    gateway("cp", "box/p/empty.txt", "other/")
    gateway("mv", "other/empty.txt", "other/renamed")
    assert gateway("ls", "other").lines == ["r/", "renamed"]
    gateway("cp", "-r", "box/p/awkward", "box/p/hollow", "other/")
    assert gateway("ls", "other").lines == ["awkward/", "hollow/", "r/", "renamed"]


def test_a_copy_keeps_type_and_metadata(gateway: Run, bucket: str) -> None:
    gateway("put", "--meta", "a=b", str(write(Path("f.csv"), b"1,2")), "box/f.csv")
    gateway("cp", "box/f.csv", "box/copy")
    (record,) = gateway("stat", "--json", "box/copy").records
    assert (record["content_type"], record["metadata"], record["size"]) == ("text/csv", {"a": "b"}, 3)


def test_moving_what_is_not_there(gateway: Run, bucket: str) -> None:
    gateway("mv", "box/none", "box/x", code=4)
    gateway("cp", "box/none", "box/x", code=4)
    gateway("cp", "-r", "box/none/", "box/x", code=4)
    gateway("cp", "nobucket/none", "box/x", code=3)
    gateway("put", str(write(Path("f"), b"1")), "box/f")
    gateway("cp", "box/f", "nobucket/x", code=3)
