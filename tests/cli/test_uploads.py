"""``gateway upload``: an object in parts, by several processes, seen when it is complete and not before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from blake3 import blake3

from tests.cli.conftest import Run, Shell
from tests.cli.test_copying import AWKWARD, write

PIECES = [os.urandom(size) for size in (700_000, 5, 2_000_000)]
WHOLE = b"".join(PIECES)
NOBODY = "0" * 32


def begun(gateway: Run, *arguments: str) -> str:
    (upload_id,) = gateway("upload", "begin", *arguments).lines
    return upload_id


def test_several_workers_make_one_object(gateway: Run, shell: Shell, bucket: str) -> None:
    upload_id = begun(gateway, f"{bucket}/big.parquet", "--meta", "by=me")
    for number, piece in enumerate(PIECES, 1):
        write(Path(f"piece-{number}"), piece)
    workers = [shell.start("upload", "part", upload_id, str(number), f"piece-{number}") for number in (3, 1, 2)]
    for worker in workers:
        _, err = worker.communicate(timeout=60)
        assert worker.returncode == 0, err
    assert gateway("ls", bucket).out == ""
    (open_,) = gateway("--json", "upload", "list").records
    assert (open_["upload_id"], open_["key"], open_["parts"]) == (upload_id, "big.parquet", 3)
    assert open_["size"] == len(WHOLE)
    listed = gateway("--json", "upload", "parts", upload_id).records
    assert [(each["part_number"], each["size"], each["etag"]) for each in listed] == [
        (number, len(piece), blake3(piece).hexdigest()) for number, piece in enumerate(PIECES, 1)
    ]
    (record,) = gateway(
        "--json", "upload", "complete", upload_id, "--parts", "3", "--expect", blake3(WHOLE).hexdigest()
    ).records
    assert (record["etag"], record["metadata"]) == (blake3(WHOLE).hexdigest(), {"by": "me"})
    assert record["content_type"] == "application/vnd.apache.parquet"
    assert gateway("cat", f"{bucket}/big.parquet").raw == WHOLE
    assert gateway("upload", "list").out == ""
    gateway("upload", "complete", upload_id, code=4)


def test_parts_are_replaced_and_come_through_pipes(gateway: Run, shell: Shell, bucket: str) -> None:
    upload_id = begun(gateway, f"{bucket}/key")
    shell("upload", "part", upload_id, "2", "-", data=b"wrong")
    shell("upload", "part", upload_id, "2", "-", data=b" world")
    shell("upload", "part", upload_id, "10", "-", data=b"")
    shell("upload", "part", upload_id, "1", "-", data=b"hello")
    assert gateway("--quiet", "upload", "parts", upload_id).lines[1].split() == [
        "2",
        "6",
        blake3(b" world").hexdigest(),
    ]
    gateway("upload", "complete", upload_id)
    assert gateway("cat", f"{bucket}/key").raw == b"hello world"


def test_an_object_of_nothing(gateway: Run, bucket: str) -> None:
    write(Path("empty"), b"")
    upload_id = begun(gateway, f"{bucket}/empty")
    for number in ("1", "2"):
        gateway("upload", "part", upload_id, number, "empty")
    (record,) = gateway("--json", "upload", "complete", upload_id, "--if-absent").records
    assert (record["size"], record["etag"]) == (0, blake3(b"").hexdigest())
    assert gateway("cat", f"{bucket}/empty").raw == b""


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_names(gateway: Run, bucket: str, name: str) -> None:
    write(Path(name), b"content")
    upload_id = begun(gateway, f"{bucket}/{name}")
    gateway("upload", "part", upload_id, "1", f"./{name}")
    assert [each["key"] for each in gateway("--json", "upload", "list", f"{bucket}/{name}").records] == [name]
    gateway("upload", "complete", upload_id, "--if-absent")
    assert gateway("cat", f"{bucket}/{name}").raw == b"content"


def test_what_is_not_complete_is_refused_and_stays(gateway: Run, bucket: str) -> None:
    upload_id = begun(gateway, f"{bucket}/key")
    assert "has no parts" in gateway("upload", "complete", upload_id, code=2).err
    write(Path("piece"), b"piece")
    for number in ("1", "3"):
        gateway("upload", "part", upload_id, number, "piece")
    assert "lacks part 2" in gateway("upload", "complete", upload_id, "--parts", "3", code=2).err
    assert "has beside them part 3" in gateway("upload", "complete", upload_id, "--parts", "1", code=2).err
    gateway("upload", "complete", upload_id, "--expect", blake3(b"other").hexdigest(), code=8)
    gateway("upload", "part", upload_id, "1", "piece", "--expect", blake3(b"other").hexdigest(), code=8)
    gateway("put", "piece", f"{bucket}/key")
    gateway("upload", "complete", upload_id, "--if-absent", code=6)
    gateway("upload", "complete", upload_id, "--if-version", "0" * 32, code=6)
    assert gateway("cat", f"{bucket}/key").raw == b"piece"
    gateway("upload", "complete", upload_id)
    assert gateway("cat", f"{bucket}/key").raw == b"piecepiece"


def test_aborted_ones_are_forgotten(gateway: Run, bucket: str) -> None:
    write(Path("piece"), PIECES[0])
    gone, kept = begun(gateway, f"{bucket}/gone"), begun(gateway, f"{bucket}/dir/kept")
    gateway("upload", "part", gone, "1", "piece")
    gateway("upload", "part", kept, "1", "piece")
    outcome = gateway("upload", "abort", NOBODY, gone, code=1)
    assert outcome.out == f"aborted {gone}\n"
    assert f"no upload {NOBODY}" in outcome.err
    assert [line.split()[0] for line in gateway("upload", "list", f"{bucket}/dir").lines] == [kept]
    assert gateway("upload", "list", f"{bucket}/other").out == ""
    gateway("upload", "part", gone, "2", "piece", code=4)
    gateway("upload", "complete", kept)
    assert gateway("cat", f"{bucket}/dir/kept").raw == PIECES[0]


@pytest.mark.parametrize("upload_id", [NOBODY, "no id", "../x", "", "ü" * 16, "0" * 33, f"{NOBODY}/00001"])
def test_ids_that_nobody_has(gateway: Run, bucket: str, upload_id: str) -> None:
    write(Path("piece"), b"piece")
    for arguments in (
        ("part", upload_id, "1", "piece"),
        ("complete", upload_id),
        ("abort", upload_id),
        ("parts", upload_id),
    ):
        assert "there is no upload" in gateway("upload", *arguments, code=4).err


def test_bad_arguments(gateway: Run, bucket: str) -> None:
    upload_id = begun(gateway, f"{bucket}/key")
    assert "is a bucket" in gateway("upload", "begin", bucket, code=2).err
    gateway("upload", "begin", "nowhere/key", code=3)
    gateway("upload", "list", "nowhere", code=3)
    gateway("upload", "begin", f"{bucket}/{'k' * 1025}", code=2)
    assert "is not NAME=VALUE" in gateway("upload", "begin", f"{bucket}/key", "--meta", "x", code=2).err
    write(Path("piece"), b"piece")
    for number in ("0", "10001", "one"):
        gateway("upload", "part", upload_id, number, "piece", code=2)
    assert "missing: No such file" in gateway("upload", "part", upload_id, "1", "missing", code=1).err
    Path("folder").mkdir()
    assert "folder: Is a directory" in gateway("upload", "part", upload_id, "1", "folder", code=1).err
    assert "exclude" in gateway("upload", "complete", upload_id, "--if-absent", "--if-version", "x", code=2).err
    assert gateway("upload", "parts", upload_id).out == ""


def test_a_worker_that_is_interrupted_leaves_the_part_as_it_was(gateway: Run, shell: Shell, bucket: str) -> None:
    upload_id = begun(gateway, f"{bucket}/key")
    shell("upload", "part", upload_id, "1", "-", data=b"first")
    worker = shell.start("upload", "part", upload_id, "1", "-", stdin=-1)
    assert worker.stdin is not None
    worker.stdin.write(PIECES[2])  # more than a pipe holds: it has begun to read when this returns
    worker.stdin.flush()
    worker.terminate()
    assert worker.wait(30) == 143
    gateway("upload", "complete", upload_id)
    assert gateway("cat", f"{bucket}/key").raw == b"first"
